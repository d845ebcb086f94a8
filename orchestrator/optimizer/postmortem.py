"""Write a rule-based post-mortem: the measurements of an experiment, put into words by `templates/postmortem.txt`."""

from typing import Literal

from orchestrator.core import events as ev
from orchestrator.core.description import CHECKED_SHARES, compare_curves, compare_metrics
from orchestrator.core.state import Decided
from orchestrator.core.templates import Macros, load_templates
from orchestrator.policy.thresholds import CLEAR, NEAR_MISS

WORTH_SAYING = 0.03  # relative change of the number of steps from which it is mentioned
CONCLUSIONS: dict[str, Literal["supported", "refuted", "inconclusive"]] = {"helps": "supported", "hurts": "refuted"}
"""Verdict on the hypothesis, by outcome; inconclusive after any other."""
FLAT = 0.01  # difference in nats below which two losses count as equal
WORDS = Macros(load_templates("orchestrator.optimizer"), "postmortem.txt")


def write_postmortem(decided: Decided) -> ev.Postmortem:
    """Return the post-mortem of a judged experiment, from its measurements alone."""
    outcome, base = _classify(decided.verdict), decided.compared
    runs = () if decided.crash else decided.runs
    losses = ((CHECKED_SHARES[share], gap) for share, gap in compare_curves(runs, base).items())
    gaps = {time: 0.0 if abs(gap) < FLAT else gap for time, gap in losses}
    _, own, other = compare_metrics(runs, base)[0]  # the number of optimizer steps
    more = own / other - 1 if own and other else None
    return ev.Postmortem(
        verdict=CONCLUSIONS.get(outcome, "inconclusive"),
        happened=WORDS.happened(decided, gaps).strip(),
        why=WORDS.why(decided, gaps, more if more is None or abs(more) >= WORTH_SAYING else 0.0),
        lesson=WORDS.lesson(decided, outcome),
        next=WORDS.next(outcome),
    )


def _classify(verdict: ev.Verdict | ev.Refused | ev.Abandoned | ev.Vetoed) -> str:
    match verdict:
        case ev.Kept():
            return "helps"
        case ev.Pruned(deficit=None):
            return "hurts"
        case ev.Pruned():
            return "probably hurts"
        case ev.Discarded(gain=gain, error=error):
            if gain > NEAR_MISS * error:
                return "may help, within the noise"
            return "hurts" if gain < -CLEAR * error else "no better, within the noise"
        case _:
            return "does not run"
