"""Sum a session up in a few numbers: what terminal, last lines of a night, messages, report and musings show."""

from collections.abc import Callable
from dataclasses import dataclass
from math import hypot

from orchestrator.core.description import CHECKED_SHARES, compare_curves, compare_metrics, count_distinct
from orchestrator.core.events import Certified, Record, Resumed
from orchestrator.core.state import State, apply
from orchestrator.core.text import flatten, format_count
from orchestrator.policy.limits import explain_stop
from orchestrator.policy.noise import estimate_sigma, get_t_90, pool_variance
from orchestrator.policy.pruning import count_false_prunes
from orchestrator.views.experiments import ExperimentRow, list_rows
from orchestrator.views.render import format_change, format_score, render_template
from orchestrator.views.snapshot import LogReader


@dataclass(frozen=True, slots=True)
class Summary:
    """Where a session stands. Experiments are those that have been decided, the baseline not counted."""

    baseline: float | None
    """Mean val_bpb; None until it is measured."""
    best: float | None
    """The baseline less the gain."""
    gain: float
    """From the baseline to the best; positive is better: the certificate's once there is one, until then `estimate`."""
    margin: float
    """Half the width of the gain's 90 % interval; `wide` is that in standard errors."""
    wide: float
    estimate: float
    """The gain by the runs that decided, corrected for luck."""
    sigma: float
    """Standard deviation of one run's val_bpb; 0 until it is known."""
    tried: int
    kept: int
    seeds: int
    """Of the kept ones, at least."""
    hours: float
    usd: float | None
    """Dollars; None where the price of a request is not known."""
    failure: str
    """Why the baseline does not train; empty where it does."""
    certificate: Certified | None
    ended: str


def summarize(state: State) -> Summary:
    """Return where the session stands."""
    rows = list_rows(state)
    decided = [row for row in rows if row.experiment and row.is_decided]
    kept = [row for row in decided if row.status == "kept" and row.proposal.reverts is None]
    expected = state.incumbent.score_to_beat if state.incumbent else None
    baseline = expected if state.baseline_bpb is None else state.baseline_bpb
    found = state.certificate if state.certificate and state.certificate.experiment == state.best else None
    # Runs that measure the baseline again are no gain.
    estimate = gain = baseline - expected if state.best and baseline is not None and expected is not None else 0.0
    wide = get_t_90(pool_variance(state).dof) if state.incumbent else 0.0
    margin = wide * hypot(*(row.error or 0.0 for row in kept))
    if found:
        gain, margin = found.gain, (found.high - found.low) / 2
    return Summary(
        baseline=baseline,
        best=None if baseline is None else baseline - gain,
        gain=gain,
        margin=margin,
        wide=wide,
        estimate=estimate,
        sigma=estimate_sigma(state) if state.incumbent else 0.0,
        tried=len(decided),
        kept=len(kept),
        seeds=min((count_distinct(row.scores) for row in kept), default=0),
        hours=state.hours,
        usd=None if any(usage.unpriced for usage in state.usage.values()) else state.usd,
        failure=next((row.reason for row in rows if row.experiment == 0 and row.status == "crashed"), ""),
        certificate=found,
        ended=flatten(state.ended),
    )


def describe_trust(log: LogReader) -> str:
    """Return one line: why the scores can be believed."""
    events = [record.event for record in log.records]
    return render_template("trust.txt", events=events, controls=count_false_prunes(log.state))


def tabulate(row: ExperimentRow) -> list[tuple[str, str, str, str]]:
    """Return name, value, the incumbent's value and the change of all that was measured, means over seeds."""
    if not row.runs:
        return []
    change = f"{format_change(row.gain)} ± {format_score(row.error)}" if row.gain is not None and row.error else ""
    other = row.val_bpb + row.gain if row.val_bpb is not None and row.gain is not None else None
    table = [("val_bpb", format_score(row.val_bpb), format_score(other), change)] if row.scores else []
    if len(row.scores) > 1:
        table.append(("by seed", ", ".join(format_score(score.val_bpb) for score in row.scores), "", ""))
    for label, ours, theirs in compare_metrics(row.runs, row.compared):
        if ours:
            change = f"{ours / theirs - 1:+.0%}".replace("-", "−") if theirs else ""
            table.append((label, format_count(ours), format_count(theirs) if theirs else "", change))
    for share, gap in compare_curves(row.runs, row.compared).items():
        table.append((f"training loss at {CHECKED_SHARES[share]}", "", "", f"{gap:+.3f}".replace("-", "−")))
    return table


def write_command(*words: str) -> str:
    """Return a command in which every folder is the default one."""
    return " ".join(["python -m orchestrator", *words])


def suggest_command(log: LogReader, write: Callable[..., str] = write_command) -> str:
    """Return the command that continues: where the limits are spent, a resumed session would end at once."""
    state, last = log.state, len(log.records) - 1
    name, limits = state.session.name, state.session.limits
    resumed = apply(state, Record(seq=last + 1, at=state.now, task_id="", event=Resumed()))
    if not explain_stop(resumed):
        return write("resume", name)
    number = ["--max-experiments", str(limits.experiments)] if limits.experiments else []
    dollars = ["--max-usd", f"{limits.usd:g}"] if limits.usd else []
    return write("fork", name, "--at", str(last), "--hours", f"{limits.hours:g}", *number, *dollars)
