"""Measure what a run spends: on a GPU wall time from the first batch, on a CPU work, in FLOP equivalents.

And report what happens in it: numbers that the orchestrator shows, and never judges by.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch.nn.utils import get_total_norm
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prepare import channel, kernels
from prepare.manifest import BudgetAmount, load

# torch counts attention only on GPUs.
_CPU_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
flop_counter.flop_registry[getattr(torch.ops.aten, _CPU_ATTENTION)] = flop_counter.sdpa_flop
flop_counter.flop_registry[getattr(torch.ops.aten, f"{_CPU_ATTENTION}_backward")] = flop_counter.sdpa_backward_flop

FLOPS_PER_BYTE, FLOPS_PER_CALL = 16, 10_000_000
"""FLOPs that take a CPU as long as reading or writing one byte of a tensor, and as calling one operation. With them,
work predicts a step's time within 15 % over twelve variants of the baseline; FLOPs alone are off by a factor of three
between extremes (`python -m benchmarks work`)."""

REPORTS, MAX_VALUES, MAX_NAME, FEW = 10, 60, 48, 16
"""Reports of a watched model in a run; values of a report, characters of a name, so that it fits into one line; and
elements up to which each of a parameter is reported."""
_LAYER = re.compile(r"\.\d+(?=\.|$)|\.weight$")


class TrafficCounter(TorchDispatchMode):
    """Counts the work that FLOPs leave out: operations, and the bytes of the tensors that they read and write."""

    def __init__(self, flops: flop_counter.FlopCounterMode | None = None) -> None:
        """`flops` counts the rest, and knows in which module an operation is."""
        super().__init__()
        self.flops, self.work = flops or flop_counter.FlopCounterMode(display=False), 0
        self.costs = Counter[str]()  # the whole work by its kind, by operation, and by part of the model

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = self.flops.get_total_flops()
        out = func(*args, **kwargs)
        costs = {"step/FLOPs": self.flops.get_total_flops() - before}
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
            nbytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.work += FLOPS_PER_CALL + FLOPS_PER_BYTE * nbytes
            costs |= {"step/bytes": FLOPS_PER_BYTE * nbytes, "step/calls": FLOPS_PER_CALL}
        operation = func.overloadpacket.__name__.removeprefix("_scaled_dot_product").replace("_for_cpu", "").strip("_")
        names = f"op/{operation}", f"part/{self._find_part()}"
        self.costs.update(costs | dict.fromkeys(names, sum(costs.values())))
        return out

    def _find_part(self) -> str:
        """Return the part of the model that an operation is in; backward, torch does not tell where each part ends."""
        tracker = self.flops.mod_tracker
        innermost = max(tracker.parents, key=lambda name: (name != "Global", len(name)))
        _, *names = _LAYER.sub("", innermost).split(".")
        return "backward" if tracker.is_bw else ".".join(names[:2]) or "rest"


def compare_parameters(model: torch.nn.Module, before: Iterable[torch.Tensor]) -> dict[str, float]:
    """Return norms of gradients, norms of changes over those of the parameters, and learned scalars, by part."""
    found, parts = dict[str, float](), defaultdict[str, list[tuple[torch.nn.Parameter, torch.Tensor]]](list)
    for (name, parameter), old in zip(model.named_parameters(), before, strict=True):
        parts[_LAYER.sub("", name)].append((parameter, old))
    for name, part in parts.items():
        now = [parameter.detach() for parameter, _ in part]
        change = get_total_norm([new - old for new, (_, old) in zip(now, part, strict=True)]).item()
        found[f"gradient/{name}"] = get_total_norm([p.grad for p, _ in part if p.grad is not None]).item()
        found[f"update/{name}"] = change / (get_total_norm(now).item() or 1.0)
        few = [float(value) for p in now if p.numel() <= FEW for value in p.flatten()]
        found |= {f"scalar/{name}.{i}": value for i, value in enumerate(few)}
    return found


class Budget:
    """The budget of this run. Measure one step, then call `step` after each, and stop when it is `done`."""

    def __init__(self, amount: BudgetAmount | None = None) -> None:
        chosen = amount or load().budget
        self.kind, self.amount = chosen.kind, chosen.amount
        self.step_work = 0
        self._work = 0.0
        self._watched = -1
        self._is_traced = False

    @contextmanager
    def measure(self) -> Generator[None]:
        """Count the work of the body, one whole step; repeat when steps change. Raises RuntimeError if none fits.

        With a time budget nothing counts, and in the warm-up a GPU's kernels are timed.
        """
        if self.kind == "time":
            self._is_traced = torch.cuda.is_available() and not channel.elapsed()
            try:
                with kernels.trace_step(torch.cuda.synchronize, self.report) if self._is_traced else nullcontext():
                    yield
            finally:
                self._is_traced = False
            return
        self.step_work = 0
        with flop_counter.FlopCounterMode(display=False) as counter, TrafficCounter(counter) as traffic:
            yield
        self.step_work = counter.get_total_flops() + traffic.work
        if not self.step_work:
            raise RuntimeError("the measured step did nothing")
        if self.step_work > 2 * self.amount:
            raise RuntimeError(f"the budget of {self.amount:.2g} is below half a step, of {self.step_work:.2g}")
        channel.send({"event": "measured", "work": self.step_work})
        self.report(dict(traffic.costs.most_common(MAX_VALUES // 2)))

    @contextmanager
    def watch(self, model: torch.nn.Module) -> Generator[None]:
        """Report, ten times a run but not of a measured step, what the body, an optimizer's step, does to the model."""
        if self._is_traced:
            with kernels.mark_optimizer(torch.cuda.synchronize):
                yield
            return
        due = int(REPORTS * self.progress)
        is_measured = self.kind == "work" and not self.step_work  # then a report would count as work
        if due <= self._watched or is_measured or not channel.elapsed():
            yield
            return
        self._watched = due
        before = [parameter.detach().clone() for parameter in model.parameters()]
        yield
        self.report(compare_parameters(model, before))

    def report(self, values: Mapping[str, float]) -> None:
        """Tell the orchestrator up to MAX_VALUES numbers of this moment, by names such as "scalar/gate"."""
        known = ((name[:MAX_NAME], float(f"{value:.4g}")) for name, value in values.items() if math.isfinite(value))
        kept = dict(islice(known, MAX_VALUES))
        channel.send({"event": "telemetry", "progress": round(self.progress, 4), "values": kept})

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
