"""What one run may spend: on a GPU wall time from the first real batch, on a CPU work, counted in FLOPs.

A busy laptop changes how long a step takes, but never how much it computes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from prepare import channel
from prepare.manifest import BudgetAmount, load


def _attention_flops(q, k, v, *_args, **_kwargs) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward_flops(grad, q, k, v, *_args, **_kwargs) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


# torch counts attention on GPUs only.
_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,  # noqa: SLF001 - its only name
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,  # noqa: SLF001
}


class Budget:
    """Measure one step, then call `step` after each: `progress` runs from 0 to 1, and `done` says when to stop."""

    def __init__(self, amount: BudgetAmount | None = None) -> None:
        self.kind, self.amount = (given := amount or load().budget).kind, given.amount
        self.step_flops = 0
        self._flops = 0.0

    @contextmanager
    def measure(self) -> Iterator[None]:
        """The body is one whole step; from now on `step` costs what it cost. Measure again when steps change."""
        if self.kind == "time":
            yield
            return
        with FlopCounterMode(display=False, custom_mapping=_ON_CPU) as counter:
            yield
        self.step_flops = counter.get_total_flops()
        if not self.step_flops:
            raise RuntimeError("the measured step did no countable work (matrix products, convolutions, attention)")
        channel.send({"event": "measured", "flops": self.step_flops})

    def step(self) -> None:
        if self.kind == "work" and not self.step_flops:
            raise RuntimeError("measure a step first: `with budget.measure(): ...`")
        self._flops += self.step_flops

    @property
    def spent(self) -> float:
        """FLOPs or seconds so far."""
        return self._flops if self.kind == "work" else channel.elapsed()

    @property
    def progress(self) -> float:
        return min(self.spent / self.amount, 1.0)

    @property
    def done(self) -> bool:
        """True when one more step would end further from the amount than stopping now: large steps gain nothing."""
        return self.spent + self.step_flops / 2 >= self.amount
