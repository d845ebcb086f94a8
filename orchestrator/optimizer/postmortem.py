"""What was measured of an experiment, in plain words: the post-mortem of somebody who only states facts."""

from collections.abc import Iterator, Sequence
from typing import Literal

from orchestrator.core import events as ev
from orchestrator.core.curves import CHECKED_SHARES, compare_metrics, compute_gaps
from orchestrator.core.state import Decided, State, get_scores
from orchestrator.core.text import format_count, format_signed

WORTH_SAYING = 0.03
"""A change of a measure by less than 3 % is not mentioned."""
FOLLOWS: dict[str, tuple[Literal["supported", "refuted", "inconclusive"], str]] = {
    "helps": ("supported", "Turn the same constants further the same way; then ask what the new train.py lacks."),
    "hurts": ("refuted", "Try the other way, unless that has been tried."),
    "may help, within the noise": ("inconclusive", "Keep it as a near-miss, to be combined with others."),
    "changes little": ("inconclusive", "Leave it alone; look where the score moves."),
}
"""What an outcome says of the hypothesis, and what to do next."""
FLAT = 0.01
"""Losses closer than this count as equal."""


def write_postmortem(state: State, decided: Decided) -> ev.Postmortem:
    """Verdict, facts, reading, one lesson and what next, from measurements alone."""
    scores, title = decided.candidate.scores, decided.candidate.proposal.title
    base = get_scores(state, decided.incumbent)
    match decided.verdict:
        case ev.Pruned() as pruned:
            return _explain_pruned(pruned, title, base)
        case ev.Failed(reason=reason):
            return _explain_crash(decided, title, reason)
        case ev.Kept(gain=gain, error=error, mean=mean):
            outcome = "helps"
        case ev.Discarded(gain=gain, error=error, mean=mean):
            outcome = "hurts" if gain < -error else "may help, within the noise" if gain > error else "changes little"
    seeds = f"{len(scores)} seed{'s' * (len(scores) > 1)}"
    score = (
        f"val_bpb {mean:.4f} over {seeds}: {format_signed(-gain)} against the best's {mean + gain:.4f} (± {error:.4f})."
    )
    curves = describe_curve(scores[0].curve, base[0].curve if base else ())
    verdict, follow = FOLLOWS[outcome]
    return ev.Postmortem(
        verdict=verdict,
        happened=" ".join([score, *curves, *describe_metrics(scores, base)]),
        why=_interpret(scores, base, gain),
        lesson=f"{title}: {outcome} ({format_signed(-gain)} ± {error:.4f}).",
        next=follow,
    )


def describe_curve(ours: Sequence[ev.Point], base: Sequence[ev.Point]) -> Iterator[str]:
    """How the training loss stood against the base's at equal progress."""
    gaps = compute_gaps(ours, base)
    if gaps:
        parts = [f"{_describe_gap(gap)} at {CHECKED_SHARES[moment]}" for moment, gap in gaps.items()]
        yield f"Its training loss stood {_join(parts)}."


def describe_metrics(scores: Sequence[ev.Scored], base: Sequence[ev.Scored]) -> Iterator[str]:
    """Steps, throughput, parameters and memory against the base's, where they differ enough to say so."""
    for name, mine, other in compare_metrics(scores, base):
        if mine and other and abs(mine / other - 1) >= WORTH_SAYING:
            yield f"{format_count(mine)} {name} against {format_count(other)} ({mine / other - 1:+.0%})."


def _explain_pruned(pruned: ev.Pruned, title: str, base: Sequence[ev.Scored]) -> ev.Postmortem:
    verdict, follow = FOLLOWS["hurts"]
    return ev.Postmortem(
        verdict=verdict,
        happened=" ".join(
            [f"It was ended early: {pruned.reason}.", *describe_curve(pruned.curve, base[0].curve if base else ())]
        ),
        why="It learned too slowly to come back in the budget that was left.",
        lesson=f"{title}: hurts (it was ended early, far behind).",
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
        next="Stay away from this corner; the idea itself has not been tested.",
    )


def _guess_cause(crash: ev.Crashed | None) -> str:
    match crash.failure if crash else "other":
        case "out of device memory" | "out of host memory":
            return "It needed more memory than the machine has."
        case "NaN":
            return "The loss left the range of numbers: the steps were too large for this model."
        case "timeout" | "hang":
            return "It did not come to its end in time."
        case _:
            return "These values do not go together in this train.py."


def _interpret(scores: Sequence[ev.Scored], base: Sequence[ev.Scored], gain: float) -> str:
    """What the facts suggest: more steps, or more from each step; and how the curves crossed."""
    if not base:
        return "There is nothing to compare it with."
    mine, other = scores[0].metrics.steps, base[0].metrics.steps
    steps = mine / other - 1 if mine and other else 0.0
    better = gain > 0
    if abs(steps) < WORTH_SAYING:
        words = "It made as many steps as the base, so the difference is in what each step taught."
    elif (steps > 0) == better:
        words = f"{'More' if better else 'Fewer'} steps from the same budget ({steps:+.0%}) are part of the difference."
    else:
        number, yielded = ("fewer", "more") if better else ("more", "less")
        words = f"It made {number} steps ({steps:+.0%}), and each taught {yielded}."
    gaps = list(compute_gaps(scores[0].curve, base[0].curve).values())
    if len(gaps) > 1 and gaps[0] > FLAT and gaps[-1] < -FLAT:
        words += " It started behind and overtook: it learns slower at first and goes further."
    elif len(gaps) > 1 and gaps[0] < -FLAT and gaps[-1] > FLAT:
        words += " It started ahead and was overtaken: quick at first, but it does not go as far."
    return words


def _describe_gap(gap: float) -> str:
    return (
        "level with the base's" if abs(gap) < FLAT else f"{abs(gap):.3f} {'above' if gap > 0 else 'below'} the base's"
    )


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
