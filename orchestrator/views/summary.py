"""Sum a session up in a few numbers: what terminal, last lines of a night, messages, report and musings show."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.description import count_distinct
from orchestrator.core.state import State
from orchestrator.core.text import flatten, format_signed
from orchestrator.policy.noise import estimate_sigma
from orchestrator.views.experiments import UNTRAINED, ExperimentRow, list_rows, select_retried
from orchestrator.views.usage import TrustSummary


@dataclass(frozen=True, slots=True)
class Summary:
    """Where a session stands. Experiments are those that have been decided, the baseline not counted."""

    baseline: float | None
    """Mean val_bpb; None until it is measured."""
    best: float | None
    """The score to beat."""
    sigma: float
    """Standard deviation of one run's val_bpb; 0 until it is known."""
    tried: int
    kept: int
    discarded: int
    pruned: int
    crashed: int
    untrained: int
    """Refused as repeats, abandoned before they ran, or run as something else than was proposed."""
    retried: int
    """Kept or discarded on more than one seed."""
    seeds: int
    """Of the kept ones, at least."""
    hours: float
    usd: float | None
    """Dollars; None where the price of a request is not known."""
    failure: str
    """Why the baseline does not train; empty where it does."""
    ended: str

    @property
    def gain(self) -> float:
        """Bits per byte from the baseline to the best; positive is better."""
        return self.baseline - self.best if self.baseline and self.best else 0.0

    @property
    def percent(self) -> float:
        return 100 * self.gain / self.baseline if self.baseline else 0.0

    @property
    def sigmas(self) -> float:
        """The gain over σ."""
        return self.gain / self.sigma if self.sigma else 0.0


def summarize(state: State) -> Summary:
    """Return where the session stands."""
    rows = list_rows(state)
    decided = [row for row in rows if row.experiment and row.is_decided]
    counts = Counter(row.status for row in decided)
    best = state.incumbent.score_to_beat if state.incumbent else None
    return Summary(
        baseline=best if state.baseline_bpb is None else state.baseline_bpb,
        best=best,
        sigma=estimate_sigma(state) if state.incumbent else 0.0,
        tried=len(decided),
        kept=counts["kept"],
        discarded=counts["discarded"],
        pruned=counts["pruned"],
        crashed=counts["crashed"],
        untrained=sum(counts[status] for status in UNTRAINED),
        retried=len(select_retried(decided)),
        seeds=min((count_distinct(row.scores) for row in decided if row.status == "kept"), default=0),
        hours=state.hours,
        usd=None if any(usage.unpriced for usage in state.usage.values()) else state.usd,
        failure=next((flatten(row.reason) for row in rows if row.experiment == 0 and row.status == "crashed"), ""),
        ended=state.ended,
    )


def write_headline(summary: Summary) -> str:
    """Return one line: baseline, best, and what the difference is worth."""
    if summary.failure:
        return f"The baseline does not train: {summary.failure}."
    if summary.baseline is None or summary.best is None:
        return "The baseline was not measured." if summary.ended else "The baseline is being measured."
    worth = f"{summary.gain:.4f} better: {summary.sigmas:.1f} times σ = {summary.sigma:.4f}"
    return (
        f"val_bpb {summary.baseline:.4f} → {summary.best:.4f} ({worth if summary.gain > 0 else 'nothing better yet'})"
    )


def write_counts(summary: Summary) -> str:
    """Return one line: experiments, keeps, hours and dollars."""
    cost = ", cost unknown" if summary.usd is None else f", ${summary.usd:.2f}" * (summary.usd > 0)
    return f"{summary.tried} experiments, {summary.kept} kept, {summary.hours:.2g} hours{cost}"


def describe_trust(trust: TrustSummary) -> str:
    """Return one line: why the scores can be believed."""
    confined = "no sandbox" if trust.tiers <= {"none"} else " and ".join(sorted(trust.tiers))
    audits = f"{trust.audited} audited, off by {trust.correction:.1g} at most" if trust.audited else "none audited"
    confirmed = f", {trust.confirmed} scored on held-out text" * (trust.confirmed > 0)
    names = f" (experiment {', '.join(map(str, trust.disqualified))})" if trust.disqualified else ""
    pruned = f"; {trust.pruned} pruned" * (trust.pruned > 0)
    controls = f"; {describe_controls(trust)}" * (trust.control_runs > 0)
    return f"{confined}; {audits}{confirmed}; {len(trust.disqualified)} disqualified{names}{pruned}{controls}"


def describe_controls(trust: TrustSummary) -> str:
    """Return how often pruning was checked, and how often it would have been wrong."""
    return f"{_count(trust.control_runs, 'control run')}, {_count(trust.false_prunes, 'false prune')}"


def describe_late_discards(rows: Sequence[ExperimentRow]) -> str:
    """Return how many looked better on their first seed, and why they were discarded; empty where none did."""
    late = [row for row in select_retried(rows) if row.status == "discarded"]
    reasons = Counter(row.reason.partition(":")[0] for row in late)
    words = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f"{len(late)} that looked better on the first seed: {words}" if late else ""


def format_change(row: ExperimentRow) -> str:
    """Return the change of val_bpb, negative is better; empty where it is not known."""
    return "" if row.gain is None else format_signed(-row.gain)


def format_score(row: ExperimentRow) -> str:
    """Return the mean val_bpb; empty where there is none."""
    return "" if row.val_bpb is None else f"{row.val_bpb:.4f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
