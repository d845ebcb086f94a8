"""Judge a candidate: keep it, discard it, or say which run the verdict waits for."""

from dataclasses import dataclass, replace
from math import log2, sqrt
from statistics import fmean
from typing import Any, NamedTuple

from orchestrator.core import events as ev
from orchestrator.core.description import count_seeds
from orchestrator.core.state import Candidate, Incumbent, State
from orchestrator.core.task import Task
from orchestrator.policy import belief, evidence
from orchestrator.policy import thresholds as th
from orchestrator.policy.evaluation_plan import draw_seed
from orchestrator.policy.limits import WORDS, explain_stop


class NeededRun(NamedTuple):
    """A run that a verdict waits for, of the candidate or of the incumbent."""

    experiment: int
    seed: int


def judge(state: State, number: int, candidate: Candidate) -> ev.Kept | ev.Discarded | NeededRun:
    """Return the verdict on a candidate, or the run that it waits for."""
    best, runs = state.get_rival(candidate.commit), len(candidate.scores)
    reverted = evidence.find_keep(state, candidate.proposal.reverts)
    # An ablation uses later seeds than those that the keep was selected by.
    following = NeededRun(number, draw_seed(state, runs + 1 + (len(reverted.differences) if reverted else 0)))
    if state.incumbent is None:
        profile = state.session.profile
        needed = profile.baseline_runs if profile.sigma else th.UNKNOWN_BASELINE_RUNS
        return _establish_baseline(state, number, candidate) if runs >= needed else following
    if not runs or best is None:
        return following
    ran = {score.seed for score in best.scores}
    missing = [seed for seed in (*(score.seed for score in candidate.scores), following.seed) if seed not in ran]
    next_run = NeededRun(best.experiment, missing[0]) if missing else following
    # Nothing more is learned at the end of the night, nor of an incumbent that failed twice to run again.
    is_last = bool(explain_stop(state)) or (bool(missing) and best.failures > 1)
    if next_run.seed != following.seed and not is_last:
        return next_run
    found, outlook = evidence.compare(state, best, candidate), evidence.learn_outlook(state)
    prior = evidence.expect(state, candidate.proposal, outlook.prior)
    if reverted:
        prior = evidence.assess_keep(state, reverted.experiment, prior).mirror()
        outlook = replace(outlook, bar=th.REVERT_BAR, seeds=1, risk=0.0)
    if state.session.rule.consistent and found.gain < -th.CLEAR * found.error:
        known = prior if reverted else outlook.prior  # beside a clear loss, what was seen elsewhere would cancel it
    else:
        known = evidence.include_earlier(prior, candidate, found.sigma)
    posterior = belief.infer(known, found.gain, found.error)
    verdict = _Reasoning(number, candidate, best, found, posterior, outlook, reverted, state.session.task)
    decision = verdict.decide(2 if missing else 1)
    if decision == "again" and not is_last:
        return next_run
    return verdict.keep() if decision == "keep" else verdict.discard()


def describe_rule(state: State) -> str:
    """Return what a keep needs now, in one sentence."""
    return WORDS.rule(evidence.learn_outlook(state).explain(), state.session.task, th)


@dataclass(frozen=True, slots=True)
class _Reasoning:
    """The evidence for and against a candidate."""

    number: int
    candidate: Candidate
    best: Incumbent
    found: evidence.Comparison
    posterior: belief.Belief
    outlook: belief.Outlook
    reverted: ev.Kept | None  # the verdict on the keep that it reverts, if it is an ablation
    task: Task

    @property
    def earlier(self) -> int:
        """Return its runs on earlier parents."""
        return sum(runs for *_, runs in self.candidate.earlier)

    @property
    def growth(self) -> float:
        """Return its memory as a multiple of the incumbent's; 1 if it takes no more, or if that is unknown."""
        runs = (self.best.scores, self.candidate.scores)
        before, now = (fmean(score.metrics.memory_mb for score in scores) for scores in runs)
        return min(now / before, th.MAX_MEMORY_GROWTH) if before > 0 and now > th.MEMORY_SLACK * before else 1.0

    @property
    def jump(self) -> float:
        """Return the gain as a share of val_bpb; 0 for other metrics, of which no gain is known to be implausible."""
        return self.task.metric.is_bpb * self.found.gain * self.found.sigma / (self.best.score_to_beat or 1.0)

    @property
    def expected(self) -> float:
        """Return the gain to expect in σ: the posterior's, or the measured one where that is off the grid."""
        return self.found.gain if abs(self.found.gain) > belief.GRID[-1] else self.posterior.mean

    @property
    def worth(self) -> belief.Belief:
        """Return the posterior of the effect less the price of memory."""
        return self.posterior.shift(th.MEMORY_PRICE * log2(self.growth))

    def decide(self, cost: int) -> str:
        """Return keep, discard or again, where the next comparison costs `cost` runs."""
        runs, commit = len(self.candidate.scores), self.candidate.commit
        decision = belief.decide(self.outlook, self.worth, runs + self.earlier, cost)
        if decision == "keep":
            return "again" if self.jump > th.IMPLAUSIBLE_GAIN and runs < th.IMPLAUSIBLE_RUNS else "keep"
        if commit.removed - commit.added < th.SIMPLER_LINES or self.growth > 1:
            return decision
        if runs >= th.SIMPLER_RUNS:
            return "keep" if self.found.gain >= 0 else "discard"
        return "again" if self.found.gain > -self.found.error else decision

    def keep(self) -> ev.Kept:
        change = self.expected * self.found.sigma
        if keep := self.reverted:
            change = -(keep.gain if keep.expected is None else keep.expected)
        score, reason = self.best.score_to_beat - change, WORDS.kept(self, th)
        return ev.Kept(**self._list_numbers(kept=True), score_to_beat=score, reason=reason)

    def discard(self) -> ev.Discarded:
        return ev.Discarded(**self._list_numbers(kept=False), reason=WORDS.discarded(self))

    def _list_numbers(self, *, kept: bool) -> dict[str, Any]:
        found, posterior = self.found, self.posterior
        lucks = {} if kept else {luck.seed: luck for luck in self.best.luck}
        for luck, difference in zip(found.lucks, found.differences, strict=False):
            lucks[luck.seed] = belief.update_luck(luck, difference / found.sigma, found.link, posterior, kept=kept)
        return {
            "experiment": self.number,
            "mean": self.candidate.mean,
            "gain": found.gain * found.sigma,
            "error": found.error * found.sigma,
            "sigma": found.sigma,
            "differences": found.differences,
            "same_shape": found.same_shape,
            "probability": posterior.probability,
            "expected": self.expected * found.sigma,
            "luck": tuple(lucks.values()),
        }


def _establish_baseline(state: State, number: int, candidate: Candidate) -> ev.Kept:
    runs, sigma, task = len(candidate.scores), evidence.estimate_sigma(state, candidate.scores), state.session.task
    return ev.Kept(
        experiment=number,
        mean=candidate.mean,
        gain=0.0,
        error=sigma / sqrt(runs),
        sigma=sigma,
        score_to_beat=candidate.mean,
        reason=", ".join(filter(None, [f"the baseline, over {count_seeds(candidate.scores, task.noun)}", task.caveat])),
    )
