"""Builds the commands of a run: Python in a slot and a sandbox, with a clean environment and a folder of its own."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.lab import guardian
from orchestrator.lab.sandbox.base import KERNELS, TRUSTED, Command, Sandbox
from orchestrator.lab.slots import Slot


def build_command(
    slot: Slot, sandbox: Sandbox, words: Sequence[str], folder: Path, connection: int, **more: str
) -> Command:
    """Return a command of Python and make its `tmp`; `connection` is a descriptor, `more` adds to the environment."""
    (folder / "tmp").mkdir(parents=True)
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(TRUSTED.parent),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",  # the order of a set is not part of an experiment
        "OMP_WAIT_POLICY": "passive",
        "MKL_CBWR": "AUTO,STRICT",  # the same sums in the same order in every process
        # Compilers' caches are never shared, since they hold code.
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "tmp/inductor"),
        "TRITON_CACHE_DIR": str(folder / "tmp/triton"),
        "CUDA_CACHE_PATH": str(folder / "tmp/cuda"),
        "CUDA_VISIBLE_DEVICES": slot.devices,
        "NIGHTSHIFT_FD": str(connection),
        guardian.TAG: f"{folder}/",
    }
    if slot.threads:
        env["OMP_NUM_THREADS"] = str(slot.threads)
    if slot.devices:
        # Where containers keep the driver, and where downloaded kernels are; nothing is downloaded in a sandbox.
        folders = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
        env["LD_LIBRARY_PATH"] = os.pathsep.join(path for path in folders if path.startswith("/"))
        env |= {KERNELS: str(Path(os.environ.get(KERNELS, "/nowhere")).resolve()), "HF_HUB_OFFLINE": "1"}
    return sandbox.wrap(Command((sys.executable, *words), env | more, folder, (connection,), slot.nodes))
