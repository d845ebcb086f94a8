"""What a loss curve foretells: how far a run will end behind the best, from how far behind it is on the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, sqrt
from statistics import fmean

from orchestrator.events import Point, Scored

WINDOW = 0.1
"""Share of the budget that a loss is averaged over: that of a single step is mostly its batch's."""


@dataclass(frozen=True, slots=True)
class Line:
    """final = offset + slope · gap, fitted by least squares."""

    offset: float
    slope: float
    error: float
    """Standard error of one more prediction near the middle."""
    freedom: int

    def border(self, errors: float) -> float | None:
        """The gap from which a run ends behind though the line is wrong by so many errors; None if gaps say nothing."""
        return (errors * self.error - self.offset) / self.slope if self.slope > 0 else None


def level(curve: Sequence[Point], progress: float) -> float | None:
    """The mean loss just before that share of the budget; None where the curve has no point there."""
    losses = [point.loss for point in curve if progress - WINDOW < point.progress <= progress]
    return fmean(losses) if losses else None


def level_of(scores: Sequence[Scored], progress: float) -> float | None:
    """The same, averaged over runs."""
    losses = [loss for score in scores if (loss := level(score.curve, progress)) is not None]
    return fmean(losses) if losses else None


def fit(pairs: Sequence[tuple[float, float]]) -> Line | None:
    """The line through (gap on the way, gap in the end); None where there is none."""
    count = len(pairs)
    if count < 3:
        return None
    x, y = fmean(gap for gap, _ in pairs), fmean(final for _, final in pairs)
    width = fsum((gap - x) ** 2 for gap, _ in pairs)
    if width == 0:
        return None
    slope = fsum((gap - x) * (final - y) for gap, final in pairs) / width
    offset = y - slope * x
    squares = fsum((final - offset - slope * gap) ** 2 for gap, final in pairs)
    return Line(offset, slope, sqrt(squares / (count - 2) * (1 + 1 / count)), count - 2)
