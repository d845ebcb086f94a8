"""Write a rule-based post-mortem: what was measured of an experiment, in plain words."""

from collections.abc import Iterator, Sequence
from typing import Literal

from orchestrator.core import events as ev
from orchestrator.core.curves import CHECKED_SHARES
from orchestrator.core.description import RunDescription, count_seeds, describe_run
from orchestrator.core.state import Decided, State, get_scores
from orchestrator.core.text import format_count, format_signed
from orchestrator.policy.thresholds import NEAR_MISS

WORTH_SAYING = 0.03
"""Share by which a metric must change to be mentioned."""
FOLLOWS: dict[str, tuple[Literal["supported", "refuted", "inconclusive"], str]] = {
    "helps": ("supported", "Turn the same constants further the same way; then ask what the new train.py lacks."),
    "hurts": ("refuted", "Try the other way, unless that has been tried."),
    "may help, within the noise": ("inconclusive", "Keep it as a near-miss, to be combined with others."),
    "changes little": ("inconclusive", "Leave it alone; look where the score moves."),
}
"""Verdict on the hypothesis and advice for the next experiment, by outcome."""
FLAT = 0.01
"""Difference in nats below which two losses count as equal."""


def write_postmortem(state: State, decided: Decided) -> ev.Postmortem:
    """Return the post-mortem of a judged experiment, from its measurements alone."""
    scores, title = decided.candidate.scores, decided.candidate.proposal.title
    base = get_scores(state, decided.incumbent)
    match decided.verdict:
        case ev.Pruned() as pruned:
            return _explain_pruned(pruned, title, describe_run([pruned], base, pruned))
        case ev.Failed(reason=reason):
            return _explain_crash(decided, title, reason)
        case ev.Kept(gain=gain, error=error, mean=mean):
            outcome = "helps"
        case ev.Discarded(gain=gain, error=error, mean=mean):
            outcome = (
                "hurts"
                if gain < -error
                else "may help, within the noise"
                if gain > NEAR_MISS * error
                else "changes little"
            )
    score = (
        f"val_bpb {mean:.4f} over {count_seeds(scores)}: {format_signed(-gain)} against the best's {mean + gain:.4f} "
        f"(± {error:.4f})."
    )
    run = describe_run(scores, base, decided.verdict)
    verdict, follow = FOLLOWS[outcome]
    return ev.Postmortem(
        verdict=verdict,
        happened=" ".join([score, *_describe_curve(run), *_describe_metrics(run)]),
        why=_interpret(run, gain) if base else "There is nothing to compare it with.",
        lesson=f"{title}: {outcome} ({format_signed(-gain)} ± {error:.4f}).",
        next=follow,
    )


def _describe_curve(run: RunDescription) -> Iterator[str]:
    if run.gaps:
        parts = [f"{_describe_gap(gap)} at {CHECKED_SHARES[share]}" for share, gap in run.gaps.items()]
        yield f"Its training loss stood {_join(parts)}."


def _describe_metrics(run: RunDescription) -> Iterator[str]:
    """Yield the metrics that differ enough from the incumbent's to say so."""
    for name, mine, other in run.metrics:
        if mine and other and abs(mine / other - 1) >= WORTH_SAYING:
            yield f"{format_count(mine)} {name} against {format_count(other)} ({mine / other - 1:+.0%})."


def _explain_pruned(pruned: ev.Pruned, title: str, run: RunDescription) -> ev.Postmortem:
    verdict, follow = FOLLOWS["hurts"]
    return ev.Postmortem(
        verdict=verdict,
        happened=" ".join([f"It was pruned: {pruned.reason}.", *_describe_curve(run)]),
        why="It learned too slowly to catch up in the budget that was left.",
        lesson=f"{title}: hurts (it was pruned, far behind).",
        next=follow,
    )


def _explain_crash(decided: Decided, title: str, reason: str) -> ev.Postmortem:
    crash = decided.crash
    reached = f" It had reached {crash.curve[-1].progress:.0%} of its budget." if crash and crash.curve else ""
    return ev.Postmortem(
        verdict="inconclusive",
        happened=f"It crashed: {reason}.{reached}",
        why=_guess_cause(crash),
        lesson=f"{title}: does not run ({crash.failure if crash else 'crash'}).",
        next="Avoid these values; the idea itself has not been tested.",
    )


def _guess_cause(crash: ev.Crashed | None) -> str:
    match crash.failure if crash else "other":
        case "out of device memory" | "out of host memory":
            return "It needed more memory than the machine has."
        case "NaN":
            return "The loss left the range of numbers: the steps were too large for this model."
        case "timeout" | "hang":
            return "It did not end in time."
        case _:
            return "These values do not work together in this train.py."


def _interpret(run: RunDescription, gain: float) -> str:
    """Return what the metrics suggest: more steps, or more from each step; and how the curves crossed."""
    mine, other = next((mine, other) for name, mine, other in run.metrics if name == "optimizer steps")
    steps = mine / other - 1 if mine and other else 0.0
    better = gain > 0
    if abs(steps) < WORTH_SAYING:
        words = "It made as many steps as the incumbent, so the difference is in what each step taught."
    elif (steps > 0) == better:
        words = f"{'More' if better else 'Fewer'} steps from the same budget ({steps:+.0%}) are part of the difference."
    else:
        number, yielded = ("fewer", "more") if better else ("more", "less")
        words = f"It made {number} steps ({steps:+.0%}), and each taught {yielded}."
    gaps = list(run.gaps.values())
    if len(gaps) > 1 and gaps[0] > FLAT and gaps[-1] < -FLAT:
        words += " It started behind and overtook: it learns slower at first and goes further."
    elif len(gaps) > 1 and gaps[0] < -FLAT and gaps[-1] > FLAT:
        words += " It started ahead and was overtaken: quick at first, but it does not go as far."
    return words


def _describe_gap(gap: float) -> str:
    return (
        "level with the incumbent's"
        if abs(gap) < FLAT
        else f"{abs(gap):.3f} {'above' if gap > 0 else 'below'} the incumbent's"
    )


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
