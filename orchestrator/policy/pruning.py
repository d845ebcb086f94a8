"""What a loss curve foretells: how far a run will end behind the best, from how far behind it is on the way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import fsum, sqrt
from statistics import fmean

from orchestrator.core import curves
from orchestrator.core import events as ev
from orchestrator.core.state import ExperimentResult, Incumbent, State
from orchestrator.policy.noise import compute_sigma, pool_variance, t_critical
from orchestrator.policy.thresholds import CALIBRATION_RANGE, CALIBRATION_RUNS, CHECKPOINTS, MAX_FALSE_PRUNES


@dataclass(frozen=True, slots=True)
class RegressionLine:
    """final = offset + slope · gap, fitted by least squares."""

    offset: float
    slope: float
    error: float
    """Standard error of one more prediction near the middle."""
    dof: int

    def border(self, errors: float) -> float | None:
        """The gap from which a run ends behind though the line is wrong by so many errors; None if gaps say nothing."""
        return (errors * self.error - self.offset) / self.slope if self.slope > 0 else None


def fit_line(pairs: Sequence[tuple[float, float]]) -> RegressionLine | None:
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
    return RegressionLine(offset, slope, sqrt(squares / (count - 2) * (1 + 1 / count)), count - 2)


def compute_thresholds(state: State, best: Incumbent) -> tuple[ev.PruningThreshold, ...]:
    """Where a first run is hopeless: from there on, none of this session's would have come back to the best."""
    reprieved, wrong = count_false_prunes(state)
    if wrong > MAX_FALSE_PRUNES * reprieved:
        return ()
    bounds = ((at, _compute_threshold(state, best, at)) for at in CHECKPOINTS)
    return tuple(ev.PruningThreshold(progress=at, loss=loss) for at, loss in bounds if loss is not None)


def _compute_threshold(state: State, best: Incumbent, progress: float) -> float | None:
    """The loss from which a run is hopeless at that share of its budget; None while that is not known."""
    near = CALIBRATION_RANGE * compute_sigma(pool_variance(state))
    pairs = [(gap, final) for gap, final in _pair_gaps(state, best, progress) if abs(final) <= near]
    line = fit_line(pairs) if len(pairs) >= CALIBRATION_RUNS else None
    usual = curves.average_recent_loss(best.scores, progress)
    if line is None or usual is None or (border := line.border(t_critical(line.dof))) is None:
        return None
    return usual + max([0.0, border, *(gap for gap, final in pairs if final <= 0)])


def _pair_gaps(state: State, best: Incumbent, progress: float) -> Iterator[tuple[float, float]]:
    """Of each finished candidate: how far its first run was behind its base on the way, and how far in the end."""
    runs = {f.experiment: f.scores for f in state.results} | {best.experiment: best.scores}
    for result in state.results:
        if result.experiment == 0 or not result.commit or (final := _measure_deficit(result)) is None:
            continue
        base = curves.average_recent_loss(runs.get(result.commit.parent, ()), progress)
        loss = curves.get_recent_loss(result.scores[0].curve, progress)
        if base is not None and loss is not None:
            yield loss - base, final


def _measure_deficit(result: ExperimentResult) -> float | None:
    """How far the first run ended behind the best of its time."""
    match result.verdict:
        case ev.Kept() | ev.Discarded() as verdict if result.scores:
            return result.scores[0].val_bpb - (verdict.mean + verdict.gain)
        case _:
            return None


def count_false_prunes(state: State) -> tuple[int, int]:
    """Runs that were hopeless but reprieved, and how many of them ended as good as the best."""
    spared = [_measure_deficit(f) for f in state.results if f.scores and f.scores[0].would_prune_at is not None]
    ends = [end for end in spared if end is not None]
    return len(ends), sum(end <= 0 for end in ends)
