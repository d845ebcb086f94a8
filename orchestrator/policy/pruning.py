"""Predict from loss curves how far behind the incumbent a run will end, and set the losses at which it is pruned."""

from collections.abc import Iterator, Sequence
from math import fsum, sqrt
from statistics import StatisticsError, linear_regression

from orchestrator.core import events as ev
from orchestrator.core.description import average_recent_loss, get_recent_loss
from orchestrator.core.state import Decided, Incumbent, State
from orchestrator.policy import thresholds as th
from orchestrator.policy.evidence import estimate_sigma
from orchestrator.policy.limits import remember, remember_each


def compute_thresholds(state: State, best: Incumbent) -> tuple[ev.PruningThreshold, ...]:
    """Return the losses above which a first run is pruned; none while uncalibrated, or after too many false prunes."""
    controls, wrong = count_false_prunes(state.results)
    return tuple(_list_thresholds(state, best)) if wrong <= th.MAX_FALSE_PRUNES * controls else ()


@remember
def count_false_prunes(results: tuple[Decided, ...]) -> tuple[int, int]:
    """Return how many control runs would have been pruned, and how many of those ended at least as good."""
    controls = [result for result in results if result.scores and result.scores[0].would_prune_at is not None]
    ends = [end for control in controls if (end := _measure_deficit(control)) is not None]
    return len(ends), sum(end <= 0 for end in ends)


def _list_thresholds(state: State, best: Incumbent) -> Iterator[ev.PruningThreshold]:
    near = th.CALIBRATION_RANGE * estimate_sigma(state)
    runs = [*(past.gaps for past in state.session.earlier), *list_gaps(state).values()]
    known = [gap for gaps in runs for gap in gaps if abs(gap.deficit) <= near]
    for progress in th.CHECKPOINTS:
        pairs = [(gap.gap, gap.deficit) for gap in known if gap.progress == progress]
        usual = average_recent_loss(best.scores, progress)
        border = find_border(pairs) if len(pairs) >= th.CALIBRATION_RUNS else None
        if usual is not None and border is not None:
            loss = usual + max([0.0, border, *(gap for gap, final in pairs if final <= 0)])
            yield ev.PruningThreshold(progress=progress, loss=loss)


def find_border(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return the gap from which a run ends behind even at the prediction interval's lower end; None if there is none.

    Each pair is a gap in training loss at a checkpoint and the final deficit in val_bpb.
    """
    try:
        slope, offset = linear_regression(*zip(*pairs, strict=True))
    except StatisticsError:  # all gaps are equal
        return None
    dof = len(pairs) - 2
    squares = fsum((final - offset - slope * gap) ** 2 for gap, final in pairs)
    error = sqrt(squares / dof * (1 + 1 / len(pairs)))  # of a prediction near the mean gap
    sure = th.T_CRITICAL[max((known for known in th.T_CRITICAL if known <= dof), default=1)]
    return (sure * error - offset) / slope if slope > 0 else None


def list_gaps(state: State) -> dict[int, tuple[ev.LossGap, ...]]:
    """Return by experiment, for each finished candidate, how far its first run was behind its parent on the way."""
    runs = {result.experiment: result.scores for result in state.results}
    if state.incumbent:
        runs[state.best] = state.incumbent.scores
    latest = [(result, result.commit) for result in state.tried[-th.PRIOR_WINDOW :] if result.commit]
    results, bases = [result for result, _ in latest], [runs.get(commit.parent, ()) for _, commit in latest]
    found = zip(results, _measure_gaps(results, bases), strict=True)
    return {result.experiment: gaps for result, gaps in found if gaps is not None}


@remember_each
def _measure_gaps(result: Decided, base: Sequence[ev.Scored]) -> tuple[ev.LossGap, ...] | None:
    """Return how far the first run was behind its parent's runs, the base, by checkpoint; None without a score."""
    if (final := _measure_deficit(result)) is None:
        return None
    curve = result.scores[0].curve
    return tuple(
        ev.LossGap(progress=progress, gap=loss - usual, deficit=final)
        for progress in th.CHECKPOINTS
        if (loss := get_recent_loss(curve, progress)) is not None
        and (usual := average_recent_loss(base, progress)) is not None
    )


def _measure_deficit(result: Decided) -> float | None:
    """Return how far behind its incumbent the first run ended, in bits per byte; None if it has no score."""
    match result.verdict:
        case ev.Evidence(differences=(first, *_)):
            return -first
        case ev.Evidence() as verdict if result.scores:
            return result.scores[0].val_bpb - (verdict.mean + verdict.gain)
        case _:
            return None
