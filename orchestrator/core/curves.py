"""Compare loss curves at equal shares of the budget."""

from bisect import bisect_left
from collections.abc import Sequence
from statistics import fmean

from orchestrator.core import events as ev

CHECKED_SHARES = {0.1: "a tenth of the budget", 0.5: "half of it", 1.0: "the end"}
"""Shares of the budget at which two curves are compared in words."""
WINDOW = 0.1
"""Share of the budget that a loss is averaged over: the loss of a single step mostly reflects its batch."""


def interpolate_loss(curve: Sequence[ev.Point], progress: float) -> float | None:
    """Return the loss at a share of the budget, linear between two points; None outside the curve."""
    after = bisect_left(curve, progress, key=lambda point: point.progress)
    if after == len(curve):
        return None
    right = curve[after]
    if right.progress == progress:
        return right.loss
    if after == 0:
        return None
    left = curve[after - 1]
    share = (progress - left.progress) / (right.progress - left.progress)
    return left.loss + share * (right.loss - left.loss)


def get_recent_loss(curve: Sequence[ev.Point], progress: float) -> float | None:
    """Return the mean loss just before a share of the budget; None where the curve has no point there."""
    losses = [point.loss for point in curve if progress - WINDOW < point.progress <= progress]
    return fmean(losses) if losses else None


def average_recent_loss(scores: Sequence[ev.Scored], progress: float) -> float | None:
    """Return the mean over runs of their recent losses; None where no run has one."""
    losses = [loss for score in scores if (loss := get_recent_loss(score.curve, progress)) is not None]
    return fmean(losses) if losses else None
