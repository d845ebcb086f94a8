"""Slots: where one run at a time may train, a GPU of this machine or a share of its cores.

A slot is held by a file lock whose descriptor the run's guardian inherits, so it is free only when the run is gone.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.lab.failures import MachineError
from prepare.files import LockedError, hold_lock
from prepare.machine import Gpu

DRIVER_NODES = tuple(
    f"/dev/{name}" for name in ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps", "dxg")
)
"""Device files that programs on any NVIDIA GPU share."""


@dataclass(frozen=True, slots=True)
class Slot:
    lock: Path
    devices: str = ""
    """Value of CUDA_VISIBLE_DEVICES; empty where runs use the CPU."""
    threads: int = 0
    """Threads for arithmetic on the CPU; 0 leaves the number to the libraries."""
    nodes: tuple[str, ...] = ()
    """Device files of the GPU and its driver."""
    patience: float = 30.0
    """Seconds to wait for the previous run to end."""


def list_slots(count: int, folder: Path, cores: int, gpus: Sequence[Gpu] = ()) -> tuple[Slot, ...]:
    """Return the first `count` GPUs, locked for all sessions of this user, or without GPUs shares of the cores."""
    if not gpus:
        return tuple(Slot(folder / f"slot-{i}.lock", threads=max(1, cores // count)) for i in range(count))
    shared = Path(tempfile.gettempdir(), f"nightshift-{os.getuid()}")
    return tuple(
        Slot(shared / f"{gpu.uuid}.lock", devices=gpu.uuid, nodes=(f"/dev/nvidia{gpu.node}", *DRIVER_NODES))
        for gpu in gpus[:count]
    )


@asynccontextmanager
async def hold_slot(slot: Slot) -> AsyncGenerator[int]:
    """Hold the slot and yield the descriptor of its lock. Raises MachineError where it stays taken, OSError."""
    deadline = time.monotonic() + slot.patience
    with ExitStack() as stack:
        while True:
            try:
                descriptor = stack.enter_context(hold_lock(slot.lock))
                break
            except LockedError:
                if time.monotonic() > deadline:
                    raise MachineError(f"{slot.devices or slot.lock.stem} is in use by another session") from None
            await asyncio.sleep(0.05)
        yield descriptor
