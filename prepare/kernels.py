"""Sum up what a step's kernels take on a GPU. A profiler watches one step of the warm-up, before the clock starts."""

import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

OPTIMIZER = "optimizer"
KINDS = {  # by what the names of kernels contain; the first that fits
    "attention": re.compile(r"flash|fmha|attention", re.IGNORECASE),
    "matmul": re.compile(r"gemm|nvjet|xmma|cutlass|cublas|triton_tem", re.IGNORECASE),
    "fused": re.compile(r"triton"),  # what torch.compile makes of all else
    "copy": re.compile(r"memcpy|memset", re.IGNORECASE),
}


@contextmanager
def trace_step(wait: Callable[[], None], report: Callable[[dict[str, float]], None]) -> Generator[None]:
    """Report the kernels of the body, a whole step; nothing where the profiler does not work. `wait` awaits the GPU."""
    trace = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
    with suppress(RuntimeError):
        trace.start()
    found = dict[str, float]()
    try:
        yield
        wait()
    finally:
        with suppress(RuntimeError, AssertionError):  # the second where it did not start
            trace.stop()
            found = sum_kernels(trace.events() or ())
    if found:
        report(found)


@contextmanager
def mark_optimizer(wait: Callable[[], None]) -> Generator[None]:
    """Mark the body as the optimizer's step, so that its kernels are told apart from the model's."""
    wait()
    with record_function(OPTIMIZER):
        yield
        wait()


def sum_kernels(events: Iterable[Any]) -> dict[str, float]:
    """Return the milliseconds of a profiler's kernels by kind, and by part: model or optimizer; the longest first."""
    every, found = list(events), Counter[str]()
    marks = [event.time_range for event in every if event.name == OPTIMIZER and event.device_type.name == "CPU"]
    for event in every:
        if event.device_type.name != "CUDA" or event.is_user_annotation:
            continue
        at = event.time_range
        kind = next((kind for kind, names in KINDS.items() if names.search(event.name)), "other")
        part = OPTIMIZER if any(mark.start <= at.start <= mark.end for mark in marks) else "model"
        found.update(dict.fromkeys((f"kernel/{kind}", f"part/{part}"), (at.end - at.start) / 1000))
    return dict(found.most_common())
