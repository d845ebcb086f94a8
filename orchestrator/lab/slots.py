"""Slots: a GPU or a share of the cores, where one run at a time trains, and the command that starts it there.

A slot is held by a file lock whose descriptor the run's guardian inherits, so it is free only once the run has ended.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.lab import guardian
from orchestrator.lab.failures import MachineError
from orchestrator.lab.sandbox.base import KERNELS, TRUSTED, Command
from orchestrator.lab.sandbox.seccomp import Grants
from prepare.files import LockedError, hold_lock
from prepare.machine import Gpu, read_used_memory

DRIVER_NODES = tuple(
    f"/dev/{name}" for name in ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps", "dxg")
)
"""Device files that programs on any NVIDIA GPU share."""
SPARE_MEMORY = 1 << 30  # bytes of a GPU's memory that others may take during a session


@dataclass(frozen=True, slots=True)
class Slot:
    lock: Path
    devices: str = ""  # value of CUDA_VISIBLE_DEVICES; empty for the CPU
    threads: int = 0  # threads for arithmetic on the CPU; 0 for the libraries' default
    cpus: tuple[int, ...] = ()  # logical CPUs that its runs share; empty for all
    nodes: tuple[str, ...] = ()
    patience: float = guardian.KILL_PATIENCE + 20.0  # seconds to wait for the previous run to end, and for its memory
    is_free: Callable[[], bool] = lambda: True
    """Tells whether the GPU has the memory back that runs have used."""

    def build_command(
        self, words: Sequence[str], folder: Path, connection: int, grants: Grants = "run", /, **more: str
    ) -> Command:
        """Return a Python command, and make its `tmp`; `connection` is a descriptor, `more` environment."""
        env = {"PYTHONPATH": str(TRUSTED.parent), "NIGHTSHIFT_FD": str(connection), **more}
        argv = (sys.executable, *words)
        return Command(argv, self.make_env(folder) | env, folder, (connection,), self.nodes, self.cpus, grants=grants)

    def make_env(self, folder: Path) -> dict[str, str]:
        """Return the environment of a run in this folder, and make the folder's `tmp`."""
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(folder),
            "TMPDIR": str(folder / "tmp"),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",  # a set's order must not differ between runs
            "OMP_WAIT_POLICY": "passive",
            "MKL_CBWR": "AUTO,STRICT",  # sums in the same order in every process
            # Compilers' caches are never shared, since they hold code.
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "tmp/inductor"),
            "TRITON_CACHE_DIR": str(folder / "tmp/triton"),
            "CUDA_CACHE_PATH": str(folder / "tmp/cuda"),
            "CUDA_VISIBLE_DEVICES": self.devices,
            guardian.TAG: f"{folder}/",
        }
        if self.threads:
            env["OMP_NUM_THREADS"] = str(self.threads)
        if self.devices:
            # Where containers keep the driver and where downloaded kernels are; a sandbox has no network.
            folders = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
            env["LD_LIBRARY_PATH"] = os.pathsep.join(path for path in folders if path.startswith("/"))
            env |= {KERNELS: str(Path(os.environ.get(KERNELS) or "/nowhere").resolve()), "HF_HUB_OFFLINE": "1"}
        return env


def list_slots(count: int, folder: Path, threads: int, gpus: Sequence[Gpu] = ()) -> tuple[Slot, ...]:
    """Return the first `count` GPUs, locked for all sessions of this user; without GPUs, shares of the cores.

    A share does not change the number of threads: sums depend on it, and scores must not depend on the other slots.
    """
    if not gpus:
        cpus = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
        shares = enumerate(tuple(cpus[i::count]) for i in range(count))
        return tuple(Slot(folder / f"slot-{i}.lock", threads=threads, cpus=share) for i, share in shares)
    shared = Path(tempfile.gettempdir(), f"nightshift-{os.getuid()}")
    return tuple(
        Slot(
            shared / f"{gpu.uuid}.lock",
            devices=gpu.uuid,
            nodes=(f"/dev/nvidia{gpu.node}", *DRIVER_NODES),
            is_free=lambda gpu=gpu: read_used_memory(gpu.uuid) < gpu.used + SPARE_MEMORY,
        )
        for gpu in gpus[:count]
    )


@asynccontextmanager
async def hold_slot(slot: Slot) -> AsyncGenerator[int]:
    """Hold the slot and yield its lock's descriptor. Raises MachineError if it stays taken, OSError."""
    deadline = time.monotonic() + slot.patience
    while time.monotonic() < deadline:
        with suppress(LockedError), hold_lock(slot.lock) as descriptor:
            if slot.is_free():
                yield descriptor
                return
        await asyncio.sleep(0.05)
    raise MachineError(f"{slot.devices or slot.lock.stem} is in use by another session, or by what a run has left")
