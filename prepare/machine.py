"""Inspect this machine: its cores and GPUs. Never imports torch."""

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mode
from typing import Any, cast

import psutil
import pynvml

ROOM = 2 << 30  # bytes of memory for each of several runs on a CPU; one on the cpu profile takes a quarter
MIG_INSTANCES = 7  # parts that a GPU can be divided into at most


def count_cores() -> int:
    """Return the number of cores this process may use, without hyper-threads, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def count_roomy_cores() -> int:
    """Return the number of cores that have ROOM each, at least 1."""
    return max(1, min(count_cores(), psutil.virtual_memory().total // ROOM))


@dataclass(frozen=True)
class Gpu:
    """`memory` and `used` are bytes; `capability` is CUDA's, (8, 0) for Ampere; `node` is the N of /dev/nvidiaN."""

    memory: int
    capability: tuple[int, int]
    uuid: str = ""
    node: int = 0
    name: str = ""
    used: int = 0

    @property
    def model(self) -> str:
        """Name and decimal GB: scores on GPUs of different models cannot be compared."""
        return f"{self.name}, {self.memory / 1e9:.0f} GB"


def read_birth(process: int) -> str:
    """Return when a process began, in ticks since the start of the machine, which no clock moves; empty on macOS."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def list_gpus() -> list[Gpu]:
    """Return the usable NVIDIA GPUs: all, or those in CUDA_VISIBLE_DEVICES."""
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        found = [gpu for handle in handles for gpu in _read_gpus(handle)]
    except pynvml.NVMLError:
        return []
    return filter_visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def filter_model(found: list[Gpu], model: str = "") -> list[Gpu]:
    """Return the GPUs of that model, which Ray names in a word, or of the most frequent."""
    model = model or mode([gpu.model for gpu in found] or [""])
    return [gpu for gpu in found if model in gpu.model]


def read_used_memory(uuid: str) -> int:
    """Return the bytes in use of a GPU or of a MIG instance. Raises OSError."""
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(uuid)).used)
    except pynvml.NVMLError as error:
        if cast("Any", error).value == pynvml.NVML_ERROR_NOT_SUPPORTED:  # its memory is the machine's
            return 0
        raise OSError(f"NVML: {error}") from error


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


def _read_gpus(handle: Any) -> list[Gpu]:
    """Return the GPU, or the MIG instances that it is divided into."""
    whole, parts = _read_gpu(handle), list[Gpu]()
    for i in range(MIG_INSTANCES):
        with suppress(pynvml.NVMLError):  # that instance does not exist, or the card cannot be divided
            part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, i)
            info, uuid = pynvml.nvmlDeviceGetMemoryInfo(part), str(pynvml.nvmlDeviceGetUUID(part))
            parts.append(replace(whole, memory=int(info.total), used=int(info.used), uuid=uuid))
    return parts or [whole]


def _choose_threads() -> int:
    """Return OMP_NUM_THREADS, of which "4,2" means 4 at the outermost level; otherwise the number of cores."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return (int(first) if first.isdecimal() else 0) or count_cores()


def _read_gpu(handle: Any) -> Gpu:
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
THREADS = _choose_threads()
