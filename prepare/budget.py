"""Measure what a run spends: on a GPU wall time from the first batch, on a CPU work, in FLOP equivalents."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prepare import channel
from prepare.manifest import BudgetAmount, load

# torch counts attention only on GPUs.
_CPU_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
flop_counter.flop_registry[getattr(torch.ops.aten, _CPU_ATTENTION)] = flop_counter.sdpa_flop
flop_counter.flop_registry[getattr(torch.ops.aten, f"{_CPU_ATTENTION}_backward")] = flop_counter.sdpa_backward_flop

FLOPS_PER_BYTE, FLOPS_PER_CALL = 16, 10_000_000
"""FLOPs that take a CPU as long as reading or writing one byte of a tensor, and as calling one operation. With them,
work predicts a step's time within 15 % over twelve variants of the baseline; FLOPs alone are off by a factor of three
between extremes (`python -m benchmarks work`)."""


class TrafficCounter(TorchDispatchMode):
    """Counts the work that FLOPs leave out: operations, and the bytes of the tensors that they read and write."""

    work = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
            nbytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.work += FLOPS_PER_CALL + FLOPS_PER_BYTE * nbytes
        return out


class Budget:
    """The budget of this run. Measure one step, then call `step` after each, and stop when it is `done`."""

    def __init__(self, amount: BudgetAmount | None = None) -> None:
        chosen = amount or load().budget
        self.kind, self.amount = chosen.kind, chosen.amount
        self.step_work = 0
        self._work = 0.0

    @contextmanager
    def measure(self) -> Generator[None]:
        """Count the work of the body, one whole step; repeat when steps change. Raises RuntimeError if it is none."""
        if self.kind == "time":
            yield
            return
        with flop_counter.FlopCounterMode(display=False) as counter, TrafficCounter() as traffic:
            yield
        self.step_work = counter.get_total_flops() + traffic.work
        if not self.step_work:
            raise RuntimeError("the measured step did nothing")
        channel.send({"event": "measured", "work": self.step_work})

    def step(self) -> None:
        """Charge one step. Raises RuntimeError if no step was measured."""
        if self.kind == "work" and not self.step_work:
            raise RuntimeError("measure a step first: `with budget.measure(): ...`")
        self._work += self.step_work

    @property
    def spent(self) -> float:
        """Work or seconds so far, as `kind` says."""
        return self._work if self.kind == "work" else channel.elapsed()

    @property
    def progress(self) -> float:
        """Share of the budget spent, 0 to 1."""
        return min(self.spent / self.amount, 1.0)

    @property
    def done(self) -> bool:
        """True if one more step would miss the amount by more than stopping now, so that large steps gain nothing."""
        return self.spent + self.step_work / 2 >= self.amount
