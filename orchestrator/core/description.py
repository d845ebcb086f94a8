"""Describe an experiment in numbers beside the incumbent that it was judged against.

All views take their numbers from here, so that they agree: means over runs on both sides.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice, product, zip_longest
from statistics import fmean

import numpy as np

from orchestrator.core import events as ev
from orchestrator.core.state import count_distinct

CHECKED_SHARES = {0.1: "a tenth of the budget", 0.5: "half of it", 1.0: "the end"}
"""Shares of the budget at which two curves are compared in words."""
WINDOW = 0.1  # share of the budget that a loss is averaged over: a single step's is mostly its batch's
NEARLY = 0.9  # share of the budget from which a curve counts as complete
POINTS = 64  # most numbers of a series: eleven are tenths of a budget, and a row has 2**POINTS positions at most
SERIES = 96  # most numbers that one run may report by name, and that are shown of several
MEASURES: Mapping[str, Callable[[ev.RunMetrics], float]] = {
    "optimizer steps": lambda metrics: metrics.steps,
    "training tokens": lambda metrics: metrics.tokens,
    "parameters": lambda metrics: metrics.parameters,
    "MB of memory at the peak": lambda metrics: metrics.memory_mb,
    "percent of the GPU's peak (MFU)": lambda metrics: metrics.mfu,
}


def interpolate_loss(curve: Sequence[ev.Point], progress: float) -> float | None:
    """Return the loss at a share of the budget, linear between two points; None outside the curve."""
    return interpolate_losses(curve, [progress])[0]


def interpolate_losses(curve: Sequence[ev.Point], shares: Sequence[float]) -> list[float | None]:
    """Return the loss at each share of the budget, linear between two points; None outside the curve."""
    if not curve:
        return [None] * len(shares)
    found = np.interp(shares, [point.progress for point in curve], [point.loss for point in curve])
    known = (curve[0].progress <= share <= curve[-1].progress for share in shares)
    return [float(loss) if inside else None for loss, inside in zip(found, known, strict=True)]


def get_recent_loss(curve: Sequence[ev.Point], progress: float) -> float | None:
    """Return the mean loss just before a share of the budget; None where the curve has no point there."""
    losses = [point.loss for point in curve if progress - WINDOW < point.progress <= progress]
    return fmean(losses) if losses else None


def average_recent_loss(scores: Sequence[ev.Scored], progress: float) -> float | None:
    """Return the mean over runs of their recent losses; None where no run has one."""
    losses = [loss for score in scores if (loss := get_recent_loss(score.curve, progress)) is not None]
    return fmean(losses) if losses else None


def average_telemetry(runs: Sequence[ev.RunResult]) -> dict[str, list[tuple[float, float]]]:
    """Return what the runs reported, by name: shares of the budget, each with the mean over the runs that have it."""
    names, found = dict.fromkeys(name for run in runs for name in run.telemetry), dict[str, list[tuple[float, float]]]()
    for name in islice(names, SERIES):
        columns = enumerate(zip_longest(*(run.telemetry.get(name, ())[:POINTS] for run in runs)))
        known = ((tenth / 10, [value for value in column if value is not None]) for tenth, column in columns)
        found[name] = [(share, fmean(values)) for share, values in known if values]
    return found


def count_seeds(scores: Sequence[ev.Scored], noun: str = "seed") -> str:
    """Return the number of seeds or repeats in words; if the seed made no difference, say that instead."""
    if len(scores) > 1 and count_distinct(scores) == 1:
        return f"{len(scores)} identical runs" + " (their seeds made no difference)" * (noun == "seed")
    return f"{len(scores)} {noun}{'s' * (len(scores) > 1)}"


def compare_metrics(runs: Sequence[ev.RunResult], incumbent: Sequence[ev.Scored]) -> list[tuple[str, float, float]]:
    """Return each metric's name and its means, 0 where unknown."""
    return [(name, _average(runs, read), _average(incumbent, read)) for name, read in MEASURES.items()]


def compare_curves(runs: Sequence[ev.RunResult], incumbent: Sequence[ev.Scored]) -> dict[float, float]:
    """Return our mean training loss minus the incumbent's at each of CHECKED_SHARES that both curves reach."""
    found: dict[float, list[float]] = {share: [] for share in CHECKED_SHARES}
    for ours, base in product((run.curve for run in runs if run.curve), (run.curve for run in incumbent if run.curve)):
        last = min(ours[-1].progress, base[-1].progress)
        for share, gaps in found.items():
            at = last if share == 1.0 and last > NEARLY else share
            a, b = interpolate_loss(ours, at), interpolate_loss(base, at)
            if a is not None and b is not None:
                gaps.append(a - b)
    return {share: fmean(gaps) for share, gaps in found.items() if gaps}


def _average(runs: Sequence[ev.RunResult], read: Callable[[ev.RunMetrics], float]) -> float:
    """Return the mean over the runs that know it; 0 where none does."""
    values = [value for run in runs if (value := read(run.metrics))]
    return fmean(values) if values else 0.0
