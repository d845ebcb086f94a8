"""Predict from loss curves how far behind the incumbent a run will end, and set the losses at which it is pruned.

A run is pruned once finishing it promises less than it costs (decision 0066). Sessions that recorded no such rule, and
metrics whose scale is not the loss's, prune by significance (0017).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import fsum, hypot, inf, sqrt
from statistics import StatisticsError, fmean, linear_regression

from orchestrator.core import events as ev
from orchestrator.core.description import average_recent_loss, get_recent_loss
from orchestrator.core.state import Candidate, Decided, Incumbent, State
from orchestrator.policy import thresholds as th
from orchestrator.policy.belief import Belief, Outlook, infer
from orchestrator.policy.evidence import estimate_sigma, include_earlier, learn_outlook
from orchestrator.policy.limits import remember, remember_each


def compute_thresholds(
    state: State, best: Incumbent, candidate: Candidate, seed: int
) -> tuple[ev.PruningThreshold, ...]:
    """Return the losses above which a first run is pruned; none while uncalibrated, or after too many false prunes."""
    controls, wrong = count_false_prunes(state.results)
    if wrong > th.MAX_FALSE_PRUNES * controls:
        return ()
    if not (state.session.rule.prunes_by_gain and state.session.task.metric.is_bpb):
        return tuple(_list_thresholds(state, best))
    paired = [score for score in best.scores if score.seed == seed] or best.scores
    return tuple(_list_limits(state, paired, candidate)) if candidate.proposal.is_idea else ()


def _list_limits(state: State, base: Sequence[ev.Scored], candidate: Candidate) -> Iterator[ev.PruningThreshold]:
    """Yield the losses from which on finishing promises less than it costs, against runs of the incumbent."""
    outlook, sigma, last = learn_outlook(state), estimate_sigma(state), average_recent_loss(base, th.CHECKPOINTS[-1])
    scale = fmean(score.val_bpb for score in base) / last / sigma if last else 0.0  # σ for a unit of loss
    runs = [*(past.gaps for past in state.session.earlier), *list_gaps(state).values()]
    first = [gap for gaps in runs for gap in gaps if gap.progress == th.CHECKPOINTS[0]]
    misled = estimate_misled(outlook.prior, [(scale * gap.gap, gap.deficit / sigma) for gap in first])
    if state.session.rule.consistent:
        outlook = replace(outlook, prior=include_earlier(outlook.prior, candidate, sigma))
    for progress in th.CHECKPOINTS:
        if candidate.proposal.family == "schedule" and progress < th.CHECKPOINTS[-1]:
            continue  # its curve differs on the way for other reasons than its effect
        usual, gap = average_recent_loss(base, progress), find_limit(outlook, misled, progress)
        if usual is not None and gap < inf and scale > 0:
            yield ev.PruningThreshold(progress=progress, loss=usual + gap / scale, usual=usual, scale=scale * sigma)


def estimate_misled(prior: Belief, pairs: Sequence[tuple[float, float]]) -> float:
    """Return the probability that an idea's curve tells nothing of its end: by itself, or as all curves here.

    Each pair is a gap at the first checkpoint and the final deficit of a finished run, in σ. What counts is whether the
    run ended ahead: those that end far behind in spite of a small gap are no reason to prune less.
    """
    odds, known = th.BLIND / (1 - th.BLIND), prior.probability
    for gap, deficit in pairs:
        told = infer(prior, *_predict_gain(gap, th.CHECKPOINTS[0])).probability
        ratio = told / known if deficit < 0 else (1 - told) / (1 - known)
        odds /= th.MISLED + (1 - th.MISLED) * ratio
    return 1 - (1 - th.MISLED) / (1 + odds)


def is_hopeless(outlook: Outlook, misled: float, progress: float, gap: float) -> bool:
    """Return whether finishing a run that is behind by `gap` σ promises less than the rest of it costs."""
    cost, blind = th.FINISH_WORTH * (1 - progress) * outlook.price, misled * outlook.prior.promise
    if gap <= 0 or blind >= cost:
        return False
    return blind + (1 - misled) * infer(outlook.prior, *_predict_gain(gap, progress)).promise < cost


def find_limit(outlook: Outlook, misled: float, progress: float) -> float:
    """Return the gap in σ above which a run is hopeless; infinite if none is."""
    low, high = 0.0, th.FAR_BEHIND
    if not is_hopeless(outlook, misled, progress, high):
        return inf
    while high - low > th.FAR_BEHIND / 1000:
        middle = (low + high) / 2
        low, high = (low, middle) if is_hopeless(outlook, misled, progress, middle) else (middle, high)
    return high


def _predict_gain(gap: float, progress: float) -> tuple[float, float]:
    """Return the gain that a gap at a checkpoint predicts, and its error, in σ."""
    gap = max(-th.FAR_BEHIND, min(gap, th.FAR_BEHIND))
    return -gap, hypot(th.CURVE_ERRORS[progress], th.CURVE_SPREAD * gap)


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
