"""Render report.html: a session on one self-contained page that needs no network.

Text by agents is untrusted, and escaped by Jinja; all of it can be read without scripts.
"""

from collections.abc import Callable, Sequence
from functools import partial

from orchestrator.core.events import Discarded, Failed, Kept, Pruned
from orchestrator.core.state import UNTESTED
from orchestrator.policy.ablation import assess_keep
from orchestrator.policy.limits import estimate_run_seconds
from orchestrator.policy.thresholds import NEAR_MISS
from orchestrator.views.charts import Places, draw_curves, draw_progress, render_page
from orchestrator.views.experiments import ExperimentRow, LogReader, list_rows, show_diff
from orchestrator.views.summary import describe_trust, suggest_command, summarize, tabulate
from orchestrator.views.usage import list_runs, measure_utilization
from prepare.command import write_command


def render_report(log: LogReader, command: Callable[..., str] = write_command, git: str = "git") -> str:
    """Return the page; `command` completes a command of ours, `git` begins one about the script."""
    state, rows, summary = log.state, list_rows(log.state), summarize(log.state)
    curves = {f"curve-{row.experiment}": curve for row in rows if (curve := draw_curves(row))}
    return render_page(
        "page.html",
        {"progress": draw_progress(rows, _list_axes(log, rows), summary)} | curves,
        state=state,
        summary=summary,
        rows=rows,
        held=list_runs(log.records),
        used=measure_utilization(log.records, state.session.slots),
        trust=describe_trust(log),
        near_miss=NEAR_MISS,
        untested=UNTESTED,
        assess_keep=partial(assess_keep, state),
        show_diff=partial(show_diff, log),
        tabulate=tabulate,
        suggested=suggest_command(log, command),
        command=command,
        run_seconds=estimate_run_seconds(state),
        git=git,
    )


def _list_axes(log: LogReader, rows: Sequence[ExperimentRow]) -> dict[str, Places]:
    """Return where each experiment lies along each axis of the chart of scores."""
    axes: dict[str, Places] = {
        "experiment": {row.experiment: row.experiment for row in rows},
        "hours": {
            record.event.experiment: (record.at - log.state.started_at) / 3600
            for record in log.records
            if isinstance(record.event, Kept | Discarded | Failed | Pruned)
        },
        "MB of memory": {
            row.experiment: max(run.metrics.memory_mb for run in row.runs) or None for row in rows if row.runs
        },
        "lines of train.py": {
            row.experiment: len(log.get(row.commit.source).splitlines()) for row in rows if row.commit
        },
    }
    for name in dict.fromkeys(name for row in rows for score in row.scores for name in score.reported):
        axes[name] = {row.experiment: row.scores[0].reported.get(name) for row in rows if row.scores}
    return axes
