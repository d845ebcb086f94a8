"""Judge a candidate: kept, discarded, or what must run first."""

from dataclasses import asdict, dataclass
from math import log2, sqrt
from statistics import fmean
from typing import Literal

from orchestrator.core import events as ev
from orchestrator.core.state import Candidate, Incumbent, State
from orchestrator.policy import thresholds as th
from orchestrator.policy.limits import explain_stop
from orchestrator.policy.noise import compute_sigma, pool_variance, t_critical


def judge(state: State, number: int, candidate: Candidate) -> ev.Verdict | Literal["again", "remeasure"]:
    """Return the verdict on a candidate, or what must run first: the candidate once more, or the incumbent."""
    best, runs = state.incumbent, len(candidate.scores)
    spread = pool_variance(state, candidate.scores)
    deviation, needed = compute_sigma(spread), t_critical(spread.dof)
    if best is None:
        return _establish_baseline(number, candidate, deviation) if runs >= th.BASELINE_RUNS else "again"
    error = deviation * sqrt(1 / runs + 1 / len(best.scores))
    gain = best.score_to_beat - candidate.mean
    numbers = _Numbers(number, candidate.mean, gain, error, deviation)
    growth = _measure_growth(best, candidate)
    worth = gain - th.MEMORY_PRICE * deviation * log2(growth)
    ratio = f"{worth / error:+.1f} standard errors over {runs} seed{'s' * (runs > 1)}"
    if growth > 1:
        ratio += f" ({gain / error:+.1f}, less the price of {growth:.2g} times the memory)"
    simpler = candidate.commit.removed - candidate.commit.added >= th.SIMPLER_LINES and worth > -error / 2
    if runs < th.MAX_RUNS and worth < th.FUTILITY_BOUNDS[runs - 1] * error and not simpler:
        word = "worse than" if worth < -2 * error else "no better than" if worth < error else "too little better than"
        return numbers.discard(f"{word} the best: {ratio}")
    transfers = _holds_on_heldout(best, candidate, gain, error)
    jump = gain > th.IMPLAUSIBLE_GAIN * best.score_to_beat
    if runs >= (th.IMPLAUSIBLE_RUNS if jump else th.MIN_RUNS) and worth >= needed * error and transfers:
        look = f"; a jump of {gain / best.score_to_beat:.0%} is hard to believe, so have a look at it" * jump
        return numbers.keep(
            best.score_to_beat, f"better beyond the noise: {ratio}, and a keep needs {needed:.1f}{look}"
        )
    if runs >= th.SIMPLER_RUNS and simpler and transfers:
        return numbers.keep(best.score_to_beat, f"as good as the best with fewer lines: {ratio}")
    if transfers is False:
        return numbers.discard(f"better only on text that decisions have used, not on fresh text: {ratio}")
    if runs >= th.MAX_RUNS:
        why = "not examined on fresh text" if worth >= needed * error else "not beyond the noise"
        return numbers.discard(f"{why}: {ratio}, and a keep needs {needed:.1f}")
    if explain_stop(state):
        return numbers.discard(f"promising, but the night ended before it could be confirmed: {ratio}")
    # An incumbent that failed twice to run again is known as well as it will ever be.
    known = best.runs if best.runs - len(best.scores) > 1 else len(best.scores)
    return "remeasure" if runs >= th.MIN_RUNS and known < runs else "again"


def describe_rule(state: State) -> str:
    """Return in one sentence what keeps a candidate now; there must be an incumbent."""
    assert state.incumbent is not None
    spread, known = pool_variance(state), len(state.incumbent.scores)
    few = t_critical(spread.dof) * compute_sigma(spread) * sqrt(1 / th.MIN_RUNS + 1 / known)
    many = t_critical(spread.dof + 2 * th.MAX_RUNS - known - 1) * compute_sigma(spread) * sqrt(2 / th.MAX_RUNS)
    return (
        "A candidate runs once, then again with new seeds only while its gain is promising, and is kept once "
        f"its mean gain in val_bpb is beyond the noise, about {few:.4f} after {th.MIN_RUNS} seeds or {many:.4f} after "
        f"{th.MAX_RUNS}, or if it loses nothing and is {th.SIMPLER_LINES} lines shorter."
    )


def _measure_growth(best: Incumbent, candidate: Candidate) -> float:
    """Return the multiple of the incumbent's memory that it takes; 1 where that is not more, or not known."""
    before, now = (fmean(score.metrics.memory_mb for score in runs) for runs in (best.scores, candidate.scores))
    return min(now / before, th.MAX_MEMORY_GROWTH) if before > 0 and now > th.MEMORY_SLACK * before else 1.0


def _holds_on_heldout(best: Incumbent, candidate: Candidate, gain: float, error: float) -> bool | None:
    """Return whether at least half of the gain shows on the held-out text, within the noise; None while unknown.

    A model's two scores share its seed's luck, so one run of each side shows well how much is lost from text to text.
    """
    before, now = _measure_shift(best.scores), _measure_shift(candidate.scores)
    if before is None:
        return True  # no text is held out
    return None if now is None else gain - (now - before) >= (gain - error) / 2


def _measure_shift(scores: tuple[ev.Scored, ...]) -> float | None:
    """Return how much higher val_bpb is on the held-out text."""
    shifts = [score.confirmed - score.val_bpb for score in scores if score.confirmed is not None]
    return fmean(shifts) if shifts else None


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The numbers that every verdict on a scored candidate states."""

    experiment: int
    mean: float
    gain: float
    error: float
    sigma: float

    def keep(self, score_to_beat: float, reason: str) -> ev.Kept:
        return ev.Kept(**asdict(self), score_to_beat=min(score_to_beat, self.mean), reason=reason)

    def discard(self, reason: str) -> ev.Discarded:
        return ev.Discarded(**asdict(self), reason=reason)


def _establish_baseline(number: int, candidate: Candidate, deviation: float) -> ev.Kept:
    runs = len(candidate.scores)
    numbers = _Numbers(number, candidate.mean, 0.0, deviation / sqrt(runs), deviation)
    return numbers.keep(candidate.mean, f"the baseline, over {runs} seeds")
