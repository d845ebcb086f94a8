"""What this machine has: cores for threads, memory of its accelerator. Never imports torch."""

import os
import sys

import psutil


def physical_cores() -> int:
    """Cores this process may use, hyper-threads not counted, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def gpu_memory() -> int | None:
    """Bytes on the first NVIDIA GPU, or None where there is none."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).total)
    except pynvml.NVMLError:
        return None


def is_apple_silicon() -> bool:
    return sys.platform == "darwin" and os.uname().machine == "arm64"


# The number of threads is part of an experiment: sums change with it in the last digits.
THREADS = int(os.environ.get("OMP_NUM_THREADS") or physical_cores())
