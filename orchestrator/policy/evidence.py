"""Compare a candidate with the incumbent at equal seeds: the differences, and how certain they are."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import fsum, sqrt
from statistics import fmean

from orchestrator.core import events as ev
from orchestrator.core.state import UNTESTED, Candidate, Decided, Incumbent, State
from orchestrator.policy import belief
from orchestrator.policy.noise import estimate_sigma, pool_variance
from orchestrator.policy.thresholds import OTHER_SHAPE, PAIRING_DOF, PRIOR_DOF, PRIOR_WINDOW, SAME_SHAPE, SAME_STEPS


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate against the incumbent, in bits per byte and in σ."""

    sigma: float
    differences: tuple[float, ...]
    """Incumbent minus candidate at the seeds that both ran with, in bits per byte; of the means if there are none."""
    same_shape: bool
    link: float
    """Correlation of the two sides' luck at one seed."""
    gain: float
    """In σ; positive is better."""
    error: float
    """Standard error of the gain, in σ."""
    lucks: tuple[ev.SeedLuck, ...] = ()
    """Luck of the incumbent at these seeds before this comparison."""


def compare(state: State, best: Incumbent, candidate: Candidate) -> Comparison:
    """Return how a candidate that has run compares with the incumbent."""
    spread = pool_variance(state, candidate.scores)
    # Inflate σ where few degrees of freedom support it: with two it is easily off by a factor of two.
    sigma = estimate_sigma(state, candidate.scores) * sqrt(max(PRIOR_DOF / max(spread.dof, 1), 1.0))
    ours = {seed: score.val_bpb for seed, score in zip(candidate.seeds, candidate.scores, strict=False)}
    theirs = {seed: score.val_bpb for seed, score in zip(best.seeds, best.scores, strict=False)}
    same_shape = has_same_shape(state, best, candidate)
    differences = tuple(theirs[seed] - ours[seed] for seed in ours if seed in theirs)
    if not differences:  # a session that started before seeds were shared, or an incumbent that failed to run again
        difference = fmean(score.val_bpb for score in best.scores) - candidate.mean
        return Comparison(sigma, (difference,), same_shape, 0.0, difference / sigma, sqrt(1 + 1 / len(best.scores)))
    link = estimate_link(state, same_shape, differences, sigma)
    known = {luck.seed: luck for luck in best.luck}
    lucks = tuple(known.get(seed, ev.SeedLuck(seed=seed)) for seed in ours if seed in theirs)
    gain, error = belief.compare([difference / sigma for difference in differences], lucks, link)
    return Comparison(sigma, differences, same_shape, link, gain, error, lucks)


def has_same_shape(state: State, best: Incumbent, candidate: Candidate) -> bool:
    """Return whether a candidate has the incumbent's parameters and sees the same data in the same order."""
    before, now = best.scores[0].metrics, candidate.scores[0].metrics
    if candidate.proposal.family == "data order" or before.parameters != now.parameters:
        return False
    return state.session.profile.budget_kind == "time" or abs(now.steps - before.steps) <= SAME_STEPS * before.steps


def estimate_link(state: State, same_shape: bool, differences: tuple[float, ...], sigma: float) -> float:
    """Return the correlation of luck at equal seeds, from the scatter of differences among changes of this kind.

    Earlier measurements act as a prior worth PAIRING_DOF degrees of freedom. Where pairing does not help, the
    correlation is 0, and the comparison is that of independent runs.
    """
    if state.session.task.noun != "seed":
        return 0.0
    unlinked = state.session.profile.budget_kind == "time" or not same_shape
    squares, dof = PAIRING_DOF * (OTHER_SHAPE if unlinked else SAME_SHAPE) * sigma**2, PAIRING_DOF
    alike = [verdict for verdict in _list_evidence(state.results[-PRIOR_WINDOW:]) if verdict.same_shape == same_shape]
    for group in filter(None, (differences, *(verdict.differences for verdict in alike))):
        mean = fmean(group)
        squares += fsum((difference - mean) ** 2 for difference in group)
        dof += len(group) - 1
    return min(max(1 - squares / dof / (2 * sigma**2), 0.0), 0.98)


def learn_outlook(state: State) -> belief.Outlook:
    """Return the outlook on the next idea, given the last ones measured in this session."""
    ideas = [result for result in state.judged if result.experiment > 0 and result.proposal.reverts is None]
    measured = [verdict for verdict in _list_evidence(ideas) if verdict.error > 0]
    return belief.learn_outlook(tuple((v.gain / v.sigma, v.error / v.sigma) for v in measured[-PRIOR_WINDOW:]))


def _list_evidence(results: Iterable[Decided]) -> list[ev.Evidence]:
    """Return the verdicts that rest on scores of the proposed change."""
    return [r.verdict for r in results if isinstance(r.verdict, ev.Evidence) and r.status not in UNTESTED]
