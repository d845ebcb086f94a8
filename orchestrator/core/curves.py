from bisect import bisect_left
from collections.abc import Sequence
from statistics import fmean

from orchestrator.core import events as ev

CHECKED_SHARES = {0.1: "a tenth of the budget", 0.5: "half of it", 1.0: "the end"}
NEARLY = 0.9
"""A curve that comes so far has come to the end."""


def compare_metrics(scores: Sequence[ev.Scored], base: Sequence[ev.Scored]) -> list[tuple[str, float, float]]:
    """What was measured of the first run, and of the base's; 0 where unknown."""
    ours, theirs = (runs[0].metrics if runs else ev.RunMetrics() for runs in (scores, base))
    return [
        ("optimizer steps", ours.steps, theirs.steps),
        ("tokens per second", compute_throughput(ours), compute_throughput(theirs)),
        ("parameters", ours.parameters, theirs.parameters),
        ("MB of memory at the peak", ours.memory_mb, theirs.memory_mb),
    ]


def compute_gaps(ours: Sequence[ev.Point], base: Sequence[ev.Point]) -> dict[float, float]:
    """Our loss minus the base's at the moments that both curves reach."""
    if not ours or not base:
        return {}
    last = min(ours[-1].progress, base[-1].progress)
    moments = {moment: last if moment == 1.0 and last > NEARLY else moment for moment in CHECKED_SHARES}
    pairs = {moment: (interpolate_loss(ours, at), interpolate_loss(base, at)) for moment, at in moments.items()}
    return {moment: a - b for moment, (a, b) in pairs.items() if a is not None and b is not None}


def compute_throughput(measures: ev.RunMetrics) -> float:
    return measures.tokens / measures.train_seconds if measures.train_seconds else 0.0


def interpolate_loss(curve: Sequence[ev.Point], progress: float) -> float | None:
    """The loss at this share of the budget, between two points by a straight line; None outside the curve."""
    after = bisect_left(curve, progress, key=lambda point: point.progress)
    if after == len(curve) or (after == 0 and curve[0].progress > progress):
        return None
    right = curve[after]
    if after == 0 or right.progress == progress:
        return right.loss
    left = curve[after - 1]
    share = (progress - left.progress) / (right.progress - left.progress)
    return left.loss + share * (right.loss - left.loss)


def thin_curve(curve: Sequence[ev.Point], most: int) -> list[ev.Point]:
    """At most so many points of a curve, evenly taken, the last one included."""
    if len(curve) <= most:
        return list(curve)
    return [curve[round(i * (len(curve) - 1) / (most - 1))] for i in range(most)]


WINDOW = 0.1
"""Share of the budget that a loss is averaged over: that of a single step is mostly its batch's."""


def get_recent_loss(curve: Sequence[ev.Point], progress: float) -> float | None:
    """The mean loss just before that share of the budget; None where the curve has no point there."""
    losses = [point.loss for point in curve if progress - WINDOW < point.progress <= progress]
    return fmean(losses) if losses else None


def average_recent_loss(scores: Sequence[ev.Scored], progress: float) -> float | None:
    """The same, averaged over runs."""
    losses = [loss for score in scores if (loss := get_recent_loss(score.curve, progress)) is not None]
    return fmean(losses) if losses else None
