"""Weigh the evidence: the noise of a run over seeds, the differences at equal seeds, and how certain they are."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain, islice
from math import fsum, hypot, sqrt
from statistics import NormalDist, fmean

from orchestrator.core import events as ev
from orchestrator.core.state import UNTESTED, Candidate, Decided, Incumbent, PooledVariance, State
from orchestrator.policy import belief
from orchestrator.policy import thresholds as th
from orchestrator.policy.limits import estimate_runs, remember


def pool_variance(state: State, scores: tuple[ev.Scored, ...] = ()) -> PooledVariance:
    """Return the pooled variance over seeds, including the profile's prior and these further runs of a candidate."""
    variance, prior = state.variance.add(scores), state.session.profile.sigma
    if prior and state.session.keeps_seed:
        variance = PooledVariance()
    dof = th.PRIOR_DOF if prior else 0
    return PooledVariance(variance.squares + dof * prior**2, variance.dof + dof)


def calibrate_noise(profile: ev.SessionProfile, earlier: PooledVariance) -> ev.SessionProfile:
    """Return the profile with the σ that earlier sessions on this machine measured, where they say enough."""
    if earlier.dof < th.PRIOR_DOF:
        return profile
    prior = PooledVariance(th.PRIOR_DOF * profile.sigma**2, th.PRIOR_DOF * bool(profile.sigma))
    total = earlier.pool(prior)
    return profile.model_copy(update={"sigma": sqrt(total.squares / total.dof)})


def estimate_sigma(state: State, scores: tuple[ev.Scored, ...] = ()) -> float:
    """Return the standard deviation of one run's score by the session and further runs of one candidate; never 0."""
    variance, scale, base = pool_variance(state, scores), 1.0, state.baseline_bpb
    if not state.session.task.metric.is_bpb:
        scale = abs((scores[0].val_bpb if scores else 0.0) if base is None else base) or 1.0
    return max(sqrt(variance.squares / max(variance.dof, 1)), th.SIGMA_FLOOR * scale)


def get_t_90(dof: int) -> float:
    """Return the half-width of a 90 % interval, in standard errors, by Student's t."""
    return th.T_90[max((known for known in th.T_90 if known <= dof), default=1)]


def compute_t(share: float, dof: float) -> float:
    """Return a quantile of Student's t, by the first terms of its expansion about the normal one."""
    z = NormalDist().inv_cdf(share)
    return z + (z**3 + z) / (4 * dof) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * dof**2)


def compute_visible_difference(pairs: int) -> float:
    """Return the difference of two arms that this many paired nights see with 80 % power, in σ of one night's gain.

    It sums Student's quantiles for interval and power, and takes nights of equal seeds as independent, the worst case.
    """
    return (get_t_90(pairs - 1) + compute_t(0.8, pairs - 1)) * sqrt(2 / pairs)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate against the incumbent, in bits per byte and in σ."""

    sigma: float
    differences: tuple[float, ...]
    """Incumbent minus candidate at the seeds that both ran with, in bits per byte; of the means if there are none."""
    same_shape: bool
    link: float  # correlation of the two sides' luck at one seed
    gain: float  # in σ; positive is better
    error: float  # standard error of the gain, in σ
    lucks: tuple[ev.SeedLuck, ...] = ()  # luck of the incumbent at these seeds before this comparison


def compare(state: State, best: Incumbent, candidate: Candidate) -> Comparison:
    """Return how a candidate that has run compares with the incumbent."""
    spread = pool_variance(state, candidate.scores)
    # Inflate σ where few degrees of freedom support it: with two it is easily off by a factor of two.
    sigma = estimate_sigma(state, candidate.scores) * sqrt(max(th.PRIOR_DOF / max(spread.dof, 1), 1.0))
    ours = {score.seed: score.val_bpb for score in candidate.scores}
    theirs = {score.seed: score.val_bpb for score in best.scores}
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


def include_earlier(prior: belief.Belief, candidate: Candidate, sigma: float) -> belief.Belief:
    """Return the belief in a change after what it has shown on earlier parents."""
    for gain, error, _ in candidate.earlier:
        prior = belief.infer(prior, gain / sigma, hypot(error / sigma, th.INTERACTION))
    return prior


def has_same_shape(state: State, best: Incumbent, candidate: Candidate) -> bool:
    """Return whether a candidate has the incumbent's parameters and sees the same data in the same order."""
    before, now = best.scores[0].metrics, candidate.scores[0].metrics
    if candidate.proposal.family == "data order" or before.parameters != now.parameters:
        return False
    return state.session.profile.budget_kind == "time" or abs(now.steps - before.steps) <= th.SAME_STEPS * before.steps


def estimate_link(state: State, same_shape: bool, differences: tuple[float, ...], sigma: float) -> float:
    """Return the correlation of luck at equal seeds, from the scatter of differences among changes of this kind.

    Earlier measurements act as a prior worth PAIRING_DOF degrees of freedom. Where pairing does not help, the
    correlation is 0, and the comparison is that of independent runs.
    """
    if state.session.task.noun != "seed":
        return 0.0
    unlinked = state.session.profile.budget_kind == "time" or not same_shape
    squares, dof = th.PAIRING_DOF * (th.OTHER_SHAPE if unlinked else th.SAME_SHAPE) * sigma**2, th.PAIRING_DOF
    groups = (verdict.differences for verdict in _list_recent(state.results) if verdict.same_shape == same_shape)
    for group in (group for group in (differences, *groups) if len(group) > 1):  # one alone shows no scatter
        mean = fmean(group)
        squares += fsum((difference - mean) ** 2 for difference in group)
        dof += len(group) - 1
    return min(max(1 - squares / dof / (2 * sigma**2), 0.0), 0.98)


@remember
def _list_recent(results: tuple[Decided, ...]) -> list[ev.Evidence]:
    return list(_list_evidence(results[-th.PRIOR_WINDOW :]))


def _measure_ideas(results: Iterable[Decided]) -> Iterator[tuple[float, float]]:
    """Yield gain and error of each idea that was measured, in σ."""
    ideas = (result for result in results if result.experiment > 0 and result.proposal.is_idea)
    return ((v.gain / v.sigma, v.error / v.sigma) for v in _list_evidence(ideas) if v.error > 0)


@remember
def _measure_closed(results: tuple[Decided, ...]) -> list[tuple[float, float]]:
    """Return the latest of them, the last first."""
    return list(islice(_measure_ideas(reversed(results)), th.PRIOR_WINDOW))


@remember
def learn_outlook(state: State) -> belief.Outlook:
    """Return the outlook on the next idea, given the last ones measured in this session."""
    decided = [stage for stage in state.open.values() if isinstance(stage, Decided)]
    latest = islice(chain(_measure_ideas(reversed(decided)), _measure_closed(state.results)), th.PRIOR_WINDOW)
    seen = tuple(latest)[::-1]
    runs, rule = estimate_runs(state), state.session.rule
    return belief.learn_outlook(seen, runs, rule, max(round(runs) - sum(state.grants.values()), 0) if rule.risk else 0)


def assess_keep(state: State, experiment: int, prior: belief.Belief | None = None) -> belief.Belief:
    """Return the posterior of a kept change now, from its comparison, its ablation if any, and the present prior."""
    found = prior or learn_outlook(state).prior
    for result in state.judged:
        if result.experiment == experiment:
            found = include_verdict(expect(state, result.proposal, found), result)
        elif result.proposal.reverts == experiment:
            found = include_verdict(found, result, -1)
    return found


def expect(state: State, proposal: ev.Proposal, prior: belief.Belief) -> belief.Belief:
    """Return the belief in a proposal before it runs: in a combination, the sum of what its parts have shown.

    That counts for less than on its own, since the effects may differ together, and were seen at the same seeds.
    """
    parts = (result for result in state.judged if result.experiment in proposal.combines) if proposal.combines else ()
    found = [include_verdict(prior, part, slack=th.INTERACTION) for part in parts]
    return reduce(belief.Belief.add, found) if found else prior


def include_verdict(prior: belief.Belief, result: Decided, sign: int = 1, slack: float = 0.0) -> belief.Belief:
    """Return the belief in a change after its verdict; `sign` is -1 for the verdict on its ablation.

    `slack` is a standard deviation in σ by which its effect may be another one now.
    """
    if not isinstance(verdict := result.verdict, ev.Evidence) or verdict.error <= 0:
        return prior
    return belief.infer(prior, sign * verdict.gain / verdict.sigma, hypot(verdict.error / verdict.sigma, slack))


def list_verdicts(decided: Decided) -> Sequence[str]:
    """Return what the measurements carry of a hypothesis, the clearest first.

    A gain without a keep, a loss, or the lack of the gain that its author expected must be clear of the noise.
    """
    found, expected = decided.verdict, max(0.0, -decided.proposal.expected_delta)
    if not isinstance(found, ev.Discarded):
        return "supported", "refuted", "inconclusive"
    margins = {"supported": found.gain, "refuted": expected - found.gain, "inconclusive": th.CLEAR * found.error}
    return [verdict for verdict, margin in margins.items() if margin >= th.CLEAR * found.error]


def explain_unsupported(decided: Decided, post: ev.Postmortem) -> str:
    """Return why the measurements do not carry a post-mortem's verdict; empty if they do."""
    verdict, carried = post.verdict, list_verdicts(decided)
    fault = f"verdict: in view of the error, the change is too small to call it {verdict}: it is {' or '.join(carried)}"
    return fault * (verdict not in carried and post.implemented != "no")


def find_keep(state: State, experiment: int | None) -> ev.Kept | None:
    """Return the verdict on a keep; None if no such experiment was kept."""
    if experiment is None:
        return None
    verdicts = (result.verdict for result in state.judged if result.experiment == experiment)
    return next((verdict for verdict in verdicts if isinstance(verdict, ev.Kept)), None)


def _list_evidence(results: Iterable[Decided]) -> Iterator[ev.Evidence]:
    """Yield the verdicts that rest on scores of the proposed change."""
    return (r.verdict for r in results if isinstance(r.verdict, ev.Evidence) and r.status not in UNTESTED)
