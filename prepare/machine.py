"""Inspect this machine: its cores and GPUs. Never imports torch."""

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import psutil


def count_cores() -> int:
    """Return the number of cores this process may use, without hyper-threads, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


@dataclass(frozen=True)
class Gpu:
    """`memory` and `used` are bytes; `capability` is CUDA's, (8, 0) for Ampere; `node` is the N of /dev/nvidiaN."""

    memory: int
    capability: tuple[int, int]
    uuid: str = ""
    node: int = 0
    name: str = ""
    used: int = 0


def list_gpus() -> list[Gpu]:
    """Return the usable NVIDIA GPUs: all, or those in CUDA_VISIBLE_DEVICES."""
    import pynvml

    try:
        pynvml.nvmlInit()
        found = [_read_gpu(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
    return filter_visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def filter_visible(found: list[Gpu], names: str | None) -> list[Gpu]:
    """Return the GPUs named by number or by prefix of a UUID, up to the first unknown name, as CUDA does."""
    if names is None:
        return found
    chosen: list[Gpu] = []
    for name in map(str.strip, names.split(",")):
        matches = [gpu for i, gpu in enumerate(found) if name == str(i) or (name and gpu.uuid.startswith(name))]
        if len(matches) != 1 or matches[0] in chosen:
            break
        chosen += matches
    return chosen


def _read_gpu(handle: Any) -> Gpu:
    import pynvml

    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    uuid, node, used = str(pynvml.nvmlDeviceGetUUID(handle)), 0, 0
    memory = psutil.virtual_memory().total  # for a GPU that shares it
    unsupported = cast("type[Exception]", pynvml.nvmlExceptionClass(pynvml.NVML_ERROR_NOT_SUPPORTED))
    with suppress(unsupported):
        info = pynvml.nvmlDeviceGetMemoryInfo(handle)
        memory, used = int(info.total), int(info.used)
    with suppress(unsupported):  # in a virtual machine with one node
        node = int(pynvml.nvmlDeviceGetMinorNumber(handle))
    return Gpu(memory, (major, minor), uuid, node, str(pynvml.nvmlDeviceGetName(handle)), used)


# The number of threads is part of an experiment: it changes the last digits of sums.
THREADS = int(os.environ.get("OMP_NUM_THREADS") or count_cores())
