"""Judge a candidate: kept, discarded, or what must run first."""

from dataclasses import dataclass, replace
from math import log2, sqrt
from statistics import fmean
from typing import Any

from orchestrator.core import events as ev
from orchestrator.core.description import count_seeds
from orchestrator.core.state import Candidate, Incumbent, State
from orchestrator.core.text import format_signed
from orchestrator.policy import belief
from orchestrator.policy import thresholds as th
from orchestrator.policy.ablation import assess_keep, count_seeds_of_keep, get_expected_gain
from orchestrator.policy.evidence import Comparison, compare, learn_outlook
from orchestrator.policy.limits import explain_stop
from orchestrator.policy.noise import compute_sigma, pool_variance
from orchestrator.policy.seeds import draw_seed


@dataclass(frozen=True, slots=True)
class NeededRun:
    """A run that a verdict waits for, of the candidate or of the incumbent."""

    experiment: int
    seed: int


def judge(state: State, number: int, candidate: Candidate) -> ev.Kept | ev.Discarded | NeededRun:
    """Return the verdict on a candidate, or the run that it waits for."""
    best, runs, reverts = state.get_rival(candidate.commit), len(candidate.scores), candidate.proposal.reverts
    following = NeededRun(number, draw_seed(state, runs + 1 + count_seeds_of_keep(state, reverts)))
    if best is None:
        return _establish_baseline(state, number, candidate) if runs >= count_baseline_runs(state) else following
    if not runs:
        return following
    missing = [seed for seed in (*candidate.seeds, following.seed) if seed not in best.seeds]
    # An incumbent that failed twice to run again is known as well as it will ever be.
    known = best.failures > 1 or bool(explain_stop(state))
    if missing and missing[0] != following.seed and not known:
        return NeededRun(best.experiment, missing[0])
    outlook = learn_outlook(state)
    prior, undone = outlook.prior, 0.0
    if reverts is not None:
        prior, outlook = assess_keep(state, reverts).mirror(), replace(outlook, bar=th.REVERT_BAR)
        undone = get_expected_gain(state, reverts)
    found, growth = compare(state, best, candidate), _measure_growth(best, candidate)
    verdict = _Reasoning(number, candidate, best, found, prior, outlook, growth, undone)
    decision = verdict.decide(2 if missing else 1)
    if decision == "keep":
        return verdict.keep()
    if decision == "discard" or (missing and known) or explain_stop(state):
        return verdict.discard()
    return NeededRun(best.experiment, missing[0]) if missing else following


def count_baseline_runs(state: State) -> int:
    """Return the runs that the baseline needs."""
    return th.BASELINE_RUNS if state.session.profile.sigma else th.UNKNOWN_BASELINE_RUNS


def describe_rule(state: State) -> str:
    """Return what a keep needs now, in one sentence."""
    bar = learn_outlook(state).bar
    return (
        "Every experiment runs with the same seeds in the same order and is compared with the best at equal seeds: it "
        f"is kept once it is better with a probability of at least {bar:.2f}, or loses nothing and is "
        f"{th.SIMPLER_LINES} lines shorter, and runs again while that could still pay; each doubling of memory costs "
        f"{th.MEMORY_PRICE:g}σ."
    )


@dataclass(frozen=True, slots=True)
class _Reasoning:
    """What speaks for and against a candidate."""

    number: int
    candidate: Candidate
    best: Incumbent
    found: Comparison
    prior: belief.Belief
    outlook: belief.Outlook
    growth: float
    """Its memory relative to the incumbent's; 1 where it takes no more."""
    undone: float
    """Gain in bits per byte that was expected of the keep that it takes back."""

    @property
    def reverts(self) -> int | None:
        return self.candidate.proposal.reverts

    @property
    def posterior(self) -> belief.Belief:
        return belief.infer(self.prior, self.found.gain, self.found.error)

    @property
    def worth(self) -> belief.Belief:
        """Return the posterior of what is left of the effect after the price of memory."""
        return self.posterior.shift(th.MEMORY_PRICE * log2(self.growth))

    def decide(self, cost: int) -> str:
        """Return keep, discard or again, where the next comparison costs `cost` runs."""
        runs, gain = len(self.candidate.scores), self.found.gain * self.found.sigma
        decision = belief.decide(self.outlook, self.worth, runs, cost)
        if decision == "keep":
            is_implausible = gain > th.IMPLAUSIBLE_GAIN * self.best.score_to_beat
            return "again" if is_implausible and runs < th.IMPLAUSIBLE_RUNS else "keep"
        commit = self.candidate.commit
        if commit.removed - commit.added < th.SIMPLER_LINES or self.growth > 1:
            return decision
        if runs >= th.SIMPLER_RUNS:
            return "keep" if gain >= 0 else "discard"
        return "again" if self.found.gain > -self.found.error else decision

    def keep(self) -> ev.Kept:
        posterior = self.posterior
        certainty = "certain" if posterior.probability > 0.995 else f"likely {posterior.probability:.2f}"
        why = "adopted" if posterior.mean > 0 else "adopted for its fewer lines"
        why = why if self.reverts is None else f"#{self.reverts} is taken back"
        jump = self.found.gain * self.found.sigma / self.best.score_to_beat
        change = posterior.mean * self.found.sigma if self.reverts is None else -self.undone
        look = f"; a jump of {jump:.0%} is hard to believe, so have a look at it" * (jump > th.IMPLAUSIBLE_GAIN)
        return ev.Kept(
            **self._list_numbers(kept=True),
            score_to_beat=self.best.score_to_beat - change,
            reason=f"{why}, {certainty}: {self._explain()}{look}",
        )

    def discard(self) -> ev.Discarded:
        needed = f"and a keep needs {self.outlook.bar:.2f}"
        stays = "" if self.reverts is None else f"#{self.reverts} stays: without it "
        likely = f"{stays}better with probability {self.worth.probability:.2f}, {needed}"
        return ev.Discarded(**self._list_numbers(kept=False), reason=f"{likely}: {self._explain()}")

    def _explain(self) -> str:
        found, pairs = self.found, len(self.found.differences)
        price = f", and takes {self.growth:.2g} times the memory" * (self.growth > 1)
        change, error = format_signed(-found.gain * found.sigma), found.error * found.sigma
        return f"{change} ± {error:.4f} at {pairs} equal seed{'s' * (pairs != 1)}{price}"

    def _list_numbers(self, *, kept: bool) -> dict[str, Any]:
        found, posterior = self.found, self.posterior
        lucks = {} if kept else {luck.seed: luck for luck in self.best.luck}
        pairs = zip(found.seeds, found.differences, found.lucks, strict=False)
        for seed, difference, before in pairs:
            luck = belief.update_luck(before, difference / found.sigma, found.link, posterior, kept=kept)
            lucks[seed] = ev.SeedLuck(seed=seed, mean=luck.mean, variance=luck.variance)
        return {
            "experiment": self.number,
            "mean": self.candidate.mean,
            "gain": found.gain * found.sigma,
            "error": found.error * found.sigma,
            "sigma": found.sigma,
            "differences": found.differences,
            "same_shape": found.same_shape,
            "probability": posterior.probability,
            "expected": posterior.mean * found.sigma,
            "luck": tuple(lucks.values()),
        }


def _measure_growth(best: Incumbent, candidate: Candidate) -> float:
    """Return the multiple of the incumbent's memory that it takes; 1 where that is not more, or not known."""
    before, now = (fmean(score.metrics.memory_mb for score in runs) for runs in (best.scores, candidate.scores))
    return min(now / before, th.MAX_MEMORY_GROWTH) if before > 0 and now > th.MEMORY_SLACK * before else 1.0


def _establish_baseline(state: State, number: int, candidate: Candidate) -> ev.Kept:
    runs, sigma = len(candidate.scores), compute_sigma(pool_variance(state, candidate.scores))
    return ev.Kept(
        experiment=number,
        mean=candidate.mean,
        gain=0.0,
        error=sigma / sqrt(runs),
        sigma=sigma,
        score_to_beat=candidate.mean,
        reason=f"the baseline, over {count_seeds(candidate.scores)}",
    )
