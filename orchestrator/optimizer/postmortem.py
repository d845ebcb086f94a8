"""Write a rule-based post-mortem: the measurements of an experiment, in words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from orchestrator.core import events as ev
from orchestrator.core.description import CHECKED_SHARES, compare_curves, compare_metrics, count_seeds
from orchestrator.core.state import Decided
from orchestrator.core.text import format_count
from orchestrator.policy.thresholds import NEAR_MISS

WORTH_SAYING = 0.03
"""Relative change from which a metric is mentioned."""
FOLLOWS: dict[str, tuple[Literal["supported", "refuted", "inconclusive"], str]] = {
    "helps": ("supported", "Move the same constants further in the same direction."),
    "hurts": ("refuted", "Try the other direction, unless that has been tried."),
    "may help, within the noise": ("inconclusive", "Combine it with other near-misses."),
    "changes little": ("inconclusive", "Leave it, and change what affects the score more."),
    "does not run": ("inconclusive", "Avoid these values; the idea itself has not been tested."),
}
"""Verdict on the hypothesis and advice for the next experiment, by outcome."""
CAUSES: dict[ev.FailureKind, str] = {
    "out of device memory": "It needed more memory than the machine has.",
    "out of host memory": "It needed more memory than the machine has.",
    "NaN": "The loss became NaN or infinite: the steps were too large for this model.",
    "timeout": "It did not end in time.",
    "hang": "It stopped making progress.",
}
FLAT = 0.01
"""Difference in nats below which two losses count as equal."""


def write_postmortem(decided: Decided) -> ev.Postmortem:
    """Return the post-mortem of a judged experiment, from its measurements alone."""
    scores, base, metric = decided.scores, decided.compared, decided.task.metric
    match decided.verdict:
        case ev.Pruned() as pruned:
            outcome, detail = "hurts", "it was pruned, far behind"
            happened = [f"It was pruned: {pruned.reason}.", *_describe_curve(compare_curves([pruned], base))]
            why = "It learned too slowly to catch up in the rest of the budget."
        case ev.Kept() | ev.Discarded() as verdict:
            change, error = metric.format_change(-verdict.gain), metric.format_size(verdict.error)
            outcome, detail = _classify(verdict), f"{change} ± {error}"
            mean, best = metric.format_score(verdict.mean), metric.format_score(verdict.mean + verdict.gain)
            runs = count_seeds(scores, decided.task.noun)
            score = f"{metric.name} {mean} over {runs}: {change} against the best's {best} (± {error})."
            metrics, gaps = compare_metrics(scores, base), compare_curves(scores, base)
            happened = [score, *_describe_curve(gaps), *_describe_metrics(metrics)]
            why = _interpret(metrics, gaps, verdict.gain) if base else "There is no run to compare it with."
        case verdict:
            assert decided.crash, "only what crashed is judged without a score"
            failure, curve = decided.crash.failure, decided.crash.curve
            outcome, detail = "does not run", failure
            reached = [f"It had reached {curve[-1].progress:.0%} of its budget."] if curve else []
            happened = [f"It crashed: {verdict.reason}.", *reached]
            why = CAUSES.get(failure, "These values do not work together in this train.py.")
    conclusion, follow = FOLLOWS[outcome]
    lesson = f"{decided.proposal.title}: {outcome} ({detail})."
    return ev.Postmortem(verdict=conclusion, happened=" ".join(happened), why=why, lesson=lesson, next=follow)


def _classify(verdict: ev.Kept | ev.Discarded) -> str:
    if isinstance(verdict, ev.Kept):
        return "helps"
    if verdict.gain < -verdict.error:
        return "hurts"
    return "may help, within the noise" if verdict.gain > NEAR_MISS * verdict.error else "changes little"


def _describe_curve(gaps: Mapping[float, float]) -> Iterator[str]:
    if gaps:
        parts = [f"{_describe_gap(gap)} at {CHECKED_SHARES[share]}" for share, gap in gaps.items()]
        yield f"Its training loss was {' and '.join(filter(None, [', '.join(parts[:-1]), parts[-1]]))}."


def _describe_gap(gap: float) -> str:
    side = "equal to" if abs(gap) < FLAT else f"{abs(gap):.3f} {'above' if gap > 0 else 'below'}"
    return f"{side} the incumbent's"


def _describe_metrics(metrics: Sequence[tuple[str, float, float]]) -> Iterator[str]:
    """Yield the metrics that differ from the incumbent's by at least WORTH_SAYING."""
    for name, mine, other in metrics:
        if mine and other and abs(mine / other - 1) >= WORTH_SAYING:
            yield f"{format_count(mine)} {name} against {format_count(other)} ({mine / other - 1:+.0%})."


def _interpret(metrics: Sequence[tuple[str, float, float]], gaps: Mapping[float, float], gain: float) -> str:
    """Return whether the number of steps or the progress per step explains the gain, and whether the curves crossed."""
    mine, other = next((mine, other) for name, mine, other in metrics if name == "optimizer steps")
    steps = mine / other - 1 if mine and other else 0.0
    number = "more" if steps > 0 else "fewer"
    if abs(steps) < WORTH_SAYING:
        words = "It made as many steps as the incumbent, so the progress per step differs."
    elif (steps > 0) == (gain > 0):
        words = f"It made {number} steps in the same budget ({steps:+.0%}), which is part of the difference."
    else:
        words = f"It made {number} steps ({steps:+.0%}), with {'more' if gain > 0 else 'less'} progress per step."
    course = [*gaps.values()] or [0.0]
    if course[0] > FLAT and course[-1] < -FLAT:
        words += " It was behind at first and ahead at the end: it learns more slowly but for longer."
    elif course[0] < -FLAT and course[-1] > FLAT:
        words += " It was ahead at first and behind at the end: it learns faster but stops sooner."
    return words
