"""Summarize a session in a few numbers, the same in terminal, messages, report and musings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import hypot
from statistics import fmean

from orchestrator.core.description import CHECKED_SHARES, compare_curves, compare_metrics
from orchestrator.core.events import Certified, Crashed, Forked, Pruned, Scored
from orchestrator.core.state import UNTESTED, State, fold
from orchestrator.core.task import Task
from orchestrator.core.text import flatten, format_count
from orchestrator.policy.evidence import estimate_sigma, get_t_90, pool_variance
from orchestrator.policy.limits import is_over, measure_usage, remember
from orchestrator.policy.pruning import count_false_prunes
from orchestrator.views.experiments import ExperimentRow, LogReader, list_rows
from orchestrator.views.render import render_template
from prepare.command import write_command

OPTIONS = {"hours": "--hours", "experiments": "--max-experiments", "usd": "--max-usd"}  # of `fork`, by limit


@dataclass(frozen=True, slots=True)
class Summary:
    """The state of a session in numbers. Decided experiments count, not the baseline, nor those lost to an outage."""

    task: Task
    baseline: float | None  # mean score, lower is better; None until it is measured
    best: float | None  # the baseline less the gain
    gain: float
    """From the baseline to the best; positive is better: the certificate's once there is one, until then `estimate`."""
    margin: float  # half the width of the gain's 90 % interval; `wide` is that in standard errors
    wide: float
    estimate: float  # the gain by the runs that decided, corrected for luck
    sigma: float  # standard deviation of one run's score; 0 until it is known
    tried: int
    untested: int  # of these, refused, abandoned, vetoed, or edited into something else
    kept: int
    hours: float
    usd: float | None  # dollars; None if the price of a request is unknown
    failure: str  # why the baseline does not train; empty if it does
    certificate: Certified | None
    ended: str


@remember
def summarize(state: State) -> Summary:
    """Return where the session stands."""
    rows = list_rows(state)
    decided = [row for row in rows if row.experiment and row.verdict and not getattr(row.verdict, "outage", False)]
    kept = [row for row in decided if row.is_gain]
    expected = state.incumbent.score_to_beat if state.incumbent else None
    baseline = expected if state.baseline_bpb is None else state.baseline_bpb
    found = state.certificate if kept and state.certificate and state.certificate.experiment == state.best else None
    # Runs that measure the baseline again are no gain, nor is an ablation that leads back to it.
    estimate = gain = baseline - expected if kept and baseline is not None and expected is not None else 0.0
    wide = get_t_90(pool_variance(state).dof) if state.incumbent else 0.0
    margin = wide * hypot(*(row.error or 0.0 for row in kept))
    if found:
        gain, margin = found.gain, (found.high - found.low) / 2
    return Summary(
        task=state.session.task,
        baseline=baseline,
        best=None if baseline is None else baseline - gain,
        gain=gain,
        margin=margin,
        wide=wide,
        estimate=estimate,
        sigma=estimate_sigma(state) if state.incumbent else 0.0,
        tried=len(decided),
        untested=sum(row.status in UNTESTED for row in decided),
        kept=len(kept),
        hours=state.hours,
        usd=None if any(usage.unpriced for usage in state.usage.values()) else state.usd,
        failure=next((row.reason for row in rows if row.experiment == 0 and row.status == "crashed"), ""),
        certificate=found,
        ended=flatten(state.ended),
    )


def describe_trust(log: LogReader) -> str:
    """Return one line: why the scores can be trusted."""
    runs = [record.event for record in log.records if isinstance(record.event, Scored | Crashed | Pruned)]
    caveat = log.state.session.task.caveat
    return render_template("trust.txt", runs=runs, controls=count_false_prunes(log.state.results), caveat=caveat)


def tabulate(row: ExperimentRow) -> list[tuple[str, str, str, str]]:
    """Return name, value, incumbent's value and change of every measurement, as means over seeds."""
    table, metric, change, other = list[tuple[str, str, str, str]](), row.task.metric, "", ""
    if row.val_bpb is not None:
        if row.gain is not None:
            other = metric.format_score(fmean([score.val_bpb for score in row.compared] or [row.val_bpb + row.gain]))
            change = f"{metric.format_change(-row.gain)} ± {metric.format_size(row.error)}" if row.error else ""
        table.append((metric.name, metric.format_score(row.val_bpb), other, change))
        reported, theirs = _average_reported(row.scores), _average_reported(row.compared)
        if len(row.scores) > 1:
            values = ", ".join(metric.format_score(score.val_bpb) for score in row.scores)
            table.append((f"by {row.task.noun}", values, "", ""))
        for name, value in reported.items():
            table.append((name, f"{value:g}", f"{theirs[name]:g}" if name in theirs else "", ""))
    for label, ours, base in compare_metrics(row.runs, row.compared):
        if ours:
            change = f"{100 * (ours / base - 1):+z.0f} %".replace("-", "−") if base and row.scores else ""
            table.append((label, format_count(ours), format_count(base) if base else "", change))
    for share, gap in compare_curves(row.runs, row.compared).items():
        table.append((f"training loss at {CHECKED_SHARES[share]}", "", "", f"{gap:+z.3f}".replace("-", "−")))
    return table


def _average_reported(scores: Sequence[Scored]) -> dict[str, float]:
    """Return the mean of each number that the script reports beside its metric, over the runs in which it does."""
    names = dict.fromkeys(name for score in scores for name in score.reported)
    told = {name: [score.reported[name] for score in scores if name in score.reported] for name in names}
    return {name: sum(values) / len(values) for name, values in told.items()}  # fmean raises where they are infinite


def suggest_command(log: LogReader, write: Callable[..., str] = write_command, file: str = "") -> str:
    """Return the command that continues the session: `resume`, or `fork` if its limits are spent.

    `file` is that of a session which is not in the folder of its name: it can only be forked.
    """
    state, at = log.state, str(len(log.records) - bool(log.state.ended))
    name, limits = state.session.name, state.session.limits
    if not is_over(state):  # a fork has what is left
        return write("fork", file, "--at", at) if file else write("resume", name)
    before = max((at for at, record in enumerate(log.records) if isinstance(record.event, Forked)), default=0)
    own, options = limits.model_dump(), list[str]()  # of a fork, what it was to have itself
    for limit, used in measure_usage(fold(log.records[:before])).items():
        if own[limit]:
            left = round(own[limit] - used, 4)
            options += [OPTIONS[limit], f"{left if left > 0 else own[limit]:.10g}"]
    return write("fork", file or name, "--at", at, *options)
