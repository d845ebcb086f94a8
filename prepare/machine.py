"""What this machine has: cores for threads, memory of its accelerator. Never imports torch."""

import os
import sys
from dataclasses import dataclass

import psutil


def physical_cores() -> int:
    """Cores this process may use, hyper-threads not counted, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


@dataclass(frozen=True)
class Gpu:
    """`memory` in bytes; `capability` is CUDA's, (8, 0) for Ampere."""

    memory: int
    capability: tuple[int, int]


def gpu() -> Gpu | None:
    """The first NVIDIA GPU, or None where there is none."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        return Gpu(int(pynvml.nvmlDeviceGetMemoryInfo(handle).total), (major, minor))
    except pynvml.NVMLError:
        return None


def is_apple_silicon() -> bool:
    return sys.platform == "darwin" and os.uname().machine == "arm64"


# The number of threads is part of an experiment: sums change with it in the last digits.
THREADS = int(os.environ.get("OMP_NUM_THREADS") or physical_cores())
