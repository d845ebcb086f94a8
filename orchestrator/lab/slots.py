"""A slot is where one run at a time may train: a GPU of this machine, or a share of its cores.

It is held by a file lock whose descriptor the run's guardian inherits: it is free only when the run is really gone.
"""

import asyncio
import fcntl
import os
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from prepare.machine import Gpu

DRIVER = tuple(
    f"/dev/{name}" for name in ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps", "dxg")
)
"""What programs on any NVIDIA GPU share."""


@dataclass(frozen=True, slots=True)
class Slot:
    """`devices` is what CUDA_VISIBLE_DEVICES will say; empty where runs are to use the CPU."""

    lock: Path
    devices: str = ""
    threads: int = 0
    """For arithmetic on the CPU; 0 leaves it to the libraries."""
    nodes: tuple[str, ...] = ()
    """Of the GPU and its driver, in /dev."""
    patience: float = 30.0
    """Seconds to wait for the run before."""


class SlotBusy(Exception):  # noqa: N818 - it is no error of anybody's
    """Somebody else, another session perhaps, is using the slot."""


def list_slots(count: int, folder: Path, cores: int, cards: Sequence[Gpu] = ()) -> tuple[Slot, ...]:
    """The first of the GPUs, at most `count`, locked for all of this user's sessions; else shares of the cores."""
    if not cards:
        return tuple(Slot(folder / f"slot-{i}.lock", threads=max(1, cores // count)) for i in range(count))
    shared = Path(tempfile.gettempdir(), f"nightshift-{os.getuid()}")
    return tuple(
        Slot(shared / f"{gpu.uuid}.lock", devices=gpu.uuid, nodes=(f"/dev/nvidia{gpu.node}", *DRIVER))
        for gpu in cards[:count]
    )


@asynccontextmanager
async def hold_slot(slot: Slot) -> AsyncGenerator[int]:
    """The descriptor that holds the slot. Raises SlotBusy where it does not become free in time, OSError."""
    slot.lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(slot.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + slot.patience
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise SlotBusy(f"{slot.devices or slot.lock.stem} is in use by another session")
            await asyncio.sleep(0.05)
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
