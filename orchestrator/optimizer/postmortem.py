"""Write a rule-based post-mortem: the measurements of an experiment, put into words by `templates/postmortem.txt`."""

from typing import Literal

from orchestrator.core import events as ev
from orchestrator.core.description import CHECKED_SHARES, compare_curves, compare_metrics
from orchestrator.core.state import Decided
from orchestrator.core.templates import Macros, load_templates
from orchestrator.policy.thresholds import CLEAR, NEAR_MISS

WORTH_SAYING = 0.03  # relative change from which a metric is mentioned
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
    known = [(name, own, other) for name, own, other in compare_metrics(runs, base) if own and other]
    changed = [(name, own, other) for name, own, other in known if abs(own / other - 1) >= WORTH_SAYING]
    steps = next((own / other - 1 for name, own, other in changed if name == "optimizer steps"), 0.0)
    return ev.Postmortem(
        verdict=CONCLUSIONS.get(outcome, "inconclusive"),
        happened=WORDS.happened(decided, gaps, changed),
        why=WORDS.why(decided, gaps, steps),
        lesson=WORDS.lesson(decided, outcome),
        next=WORDS.next(outcome),
    )


def _classify(verdict: ev.Verdict | ev.Refused | ev.Abandoned | ev.Vetoed) -> str:
    match verdict:
        case ev.Kept():
            return "helps"
        case ev.Pruned():
            return "hurts"
        case ev.Discarded(gain=gain, error=error):
            if gain < -error:
                return "hurts" if gain < -CLEAR * error else "may hurt, within the noise"
            return "may help, within the noise" if gain > NEAR_MISS * error else "changes little"
        case _:
            return "does not run"
