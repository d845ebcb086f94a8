"""What was measured of an experiment, in plain words: the post-mortem of somebody who only states facts."""

from collections.abc import Iterator, Sequence
from typing import Literal

from orchestrator.events import Crashed, Discarded, Failed, Kept, Measures, Point, Postmortem, Scored
from orchestrator.figures import loss_at
from orchestrator.state import Decided, State

MOMENTS = {0.1: "a tenth of the budget", 0.5: "half of it", 1.0: "the end"}
NEARLY = 0.9
"""A curve that comes so far has come to the end."""
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


def postmortem(state: State, decided: Decided) -> Postmortem:
    """Verdict, facts, reading, one lesson and what next, from measurements alone."""
    scores, title = decided.candidate.scores, decided.candidate.proposal.title
    base = scores_of(state, decided.against)
    match decided.verdict:
        case Failed(reason=reason, failure="hopeless"):
            return _hopeless(decided, title, reason, base)
        case Failed(reason=reason):
            return _crashed(decided, title, reason)
        case Kept(gain=gain, error=error, mean=mean):
            outcome = "helps"
        case Discarded(gain=gain, error=error, mean=mean):
            outcome = "hurts" if gain < -error else "may help, within the noise" if gain > error else "changes little"
    seeds = f"{len(scores)} seed{'s' * (len(scores) > 1)}"
    score = f"val_bpb {mean:.4f} over {seeds}: {signed(-gain)} against the best's {mean + gain:.4f} (± {error:.4f})."
    curves = curve_facts(scores[0].curve, base[0].curve if base else ())
    verdict, follow = FOLLOWS[outcome]
    return Postmortem(
        verdict=verdict,
        happened=" ".join([score, *curves, *measure_facts(scores, base)]),
        why=_reading(scores, base, gain),
        lesson=f"{title}: {outcome} ({signed(-gain)} ± {error:.4f}).",
        next=follow,
    )


def scores_of(state: State, experiment: int) -> tuple[Scored, ...]:
    """The scored runs of an experiment, closed or just judged; empty where there are none."""
    for finding in reversed(state.findings):
        if finding.experiment == experiment:
            return finding.scores
    stage = state.open.get(experiment)
    return stage.candidate.scores if isinstance(stage, Decided) else ()


def curve_facts(ours: Sequence[Point], base: Sequence[Point]) -> Iterator[str]:
    """How the training loss stood against the base's at equal progress."""
    gaps = gaps_at(ours, base)
    if gaps:
        parts = [f"{_against(gap)} at {MOMENTS[moment]}" for moment, gap in gaps.items()]
        yield f"Its training loss stood {_listed(parts)}."


def measure_facts(scores: Sequence[Scored], base: Sequence[Scored]) -> Iterator[str]:
    """Steps, throughput, parameters and memory against the base's, where they differ enough to say so."""
    for name, mine, other in measures(scores, base):
        if mine and other and abs(mine / other - 1) >= WORTH_SAYING:
            yield f"{count(mine)} {name} against {count(other)} ({mine / other - 1:+.0%})."


def measures(scores: Sequence[Scored], base: Sequence[Scored]) -> list[tuple[str, float, float]]:
    """What was measured of the first run, and of the base's; 0 where unknown."""
    ours, theirs = (runs[0].measures if runs else Measures() for runs in (scores, base))
    return [
        ("optimizer steps", ours.steps, theirs.steps),
        ("tokens per second", _throughput(ours), _throughput(theirs)),
        ("parameters", ours.parameters, theirs.parameters),
        ("MB of memory at the peak", ours.memory_mb, theirs.memory_mb),
    ]


def _hopeless(decided: Decided, title: str, reason: str, base: Sequence[Scored]) -> Postmortem:
    verdict, follow = FOLLOWS["hurts"]
    curve = decided.crash.curve if decided.crash else ()
    return Postmortem(
        verdict=verdict,
        happened=" ".join([f"It was ended early: {reason}.", *curve_facts(curve, base[0].curve if base else ())]),
        why="It learned too slowly to come back in the budget that was left.",
        lesson=f"{title}: hurts (it was ended early, far behind).",
        next=follow,
    )


def _crashed(decided: Decided, title: str, reason: str) -> Postmortem:
    crash = decided.crash
    reached = f" It had reached {crash.curve[-1].progress:.0%} of its budget." if crash and crash.curve else ""
    return Postmortem(
        verdict="inconclusive",
        happened=f"It crashed: {reason}.{reached}",
        why=_cause(crash),
        lesson=f"{title}: does not run ({crash.failure if crash else 'crash'}).",
        next="Stay away from this corner; the idea itself has not been tested.",
    )


def _cause(crash: Crashed | None) -> str:
    match crash.failure if crash else "other":
        case "out of device memory" | "out of host memory":
            return "It needed more memory than the machine has."
        case "NaN":
            return "The loss left the range of numbers: the steps were too large for this model."
        case "timeout" | "hang":
            return "It did not come to its end in time."
        case _:
            return "These values do not go together in this train.py."


def _reading(scores: Sequence[Scored], base: Sequence[Scored], gain: float) -> str:
    """What the facts suggest: more steps, or more from each step; and how the curves crossed."""
    if not base:
        return "There is nothing to compare it with."
    mine, other = scores[0].measures.steps, base[0].measures.steps
    steps = mine / other - 1 if mine and other else 0.0
    better = gain > 0
    if abs(steps) < WORTH_SAYING:
        words = "It made as many steps as the base, so the difference is in what each step taught."
    elif (steps > 0) == better:
        words = f"{'More' if better else 'Fewer'} steps from the same budget ({steps:+.0%}) are part of the difference."
    else:
        number, yielded = ("fewer", "more") if better else ("more", "less")
        words = f"It made {number} steps ({steps:+.0%}), and each taught {yielded}."
    gaps = list(gaps_at(scores[0].curve, base[0].curve).values())
    if len(gaps) > 1 and gaps[0] > FLAT and gaps[-1] < -FLAT:
        words += " It started behind and overtook: it learns slower at first and goes further."
    elif len(gaps) > 1 and gaps[0] < -FLAT and gaps[-1] > FLAT:
        words += " It started ahead and was overtaken: quick at first, but it does not go as far."
    return words


def gaps_at(ours: Sequence[Point], base: Sequence[Point]) -> dict[float, float]:
    """Our loss minus the base's at the moments that both curves reach."""
    if not ours or not base:
        return {}
    last = min(ours[-1].progress, base[-1].progress)
    moments = {moment: last if moment == 1.0 and last > NEARLY else moment for moment in MOMENTS}
    pairs = {moment: (loss_at(ours, at), loss_at(base, at)) for moment, at in moments.items()}
    return {moment: a - b for moment, (a, b) in pairs.items() if a is not None and b is not None}


def _against(gap: float) -> str:
    return (
        "level with the base's" if abs(gap) < FLAT else f"{abs(gap):.3f} {'above' if gap > 0 else 'below'} the base's"
    )


def _throughput(measures: Measures) -> float:
    return measures.tokens / measures.train_seconds if measures.train_seconds else 0.0


def count(number: float) -> str:
    """A number as people say it: three digits, k, M."""
    return f"{number:.3g}" if number < 1000 else f"{number / 1000:.3g}k" if number < 1e6 else f"{number / 1e6:.3g}M"


def signed(number: float) -> str:
    """Four decimals, with a real minus."""
    return f"{number:+.4f}".replace("-", "−")


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
