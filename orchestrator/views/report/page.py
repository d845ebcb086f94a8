"""Render report.html: a session on one self-contained page that needs no network.

Text by agents is untrusted, and escaped by Jinja; all of it can be read without scripts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.core.events import Discarded, Failed, Kept, Pruned
from orchestrator.core.state import UNTESTED
from orchestrator.policy.ablation import assess_keep
from orchestrator.policy.limits import estimate_run_seconds
from orchestrator.policy.thresholds import NEAR_MISS
from orchestrator.views import charts
from orchestrator.views.experiments import ExperimentRow, list_rows, select_retried, show_diff
from orchestrator.views.render import render_page
from orchestrator.views.snapshot import LogReader
from orchestrator.views.summary import describe_trust, suggest_command, summarize, tabulate
from orchestrator.views.usage import list_runs, measure_utilization
from prepare.command import write_command

SURPRISING = 2.0
"""Standard errors between the predicted and the measured change."""
PATIENCE = 2.0
"""Runs, in their usual length, after which a page that was not written again is overdue."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An experiment as the page shows it."""

    row: ExperimentRow
    numbers: Sequence[Sequence[str]]
    diff: str
    lines: int | None
    curve: Any
    """The figure of its loss curve; None without points."""


class Page:
    """Renders the page, and computes the entry of a closed experiment once."""

    def __init__(self, command: Callable[..., str] = write_command, git: str = "git") -> None:
        self.command, self.git = command, git
        self.known: dict[int, Entry] = {}

    def render(self, log: LogReader) -> str:
        """Return the whole page for the current log."""
        state, rows, runs, summary = log.state, list_rows(log.state), list_runs(log.records), summarize(log.state)
        entries = [self.known.get(row.experiment) or _describe_entry(log, row) for row in rows]
        closed = {result.experiment for result in state.results}
        self.known |= {entry.row.experiment: entry for entry in entries if entry.row.experiment in closed}
        decided = {
            record.event.experiment: (record.at - state.started_at) / 3600
            for record in log.records
            if isinstance(record.event, Kept | Discarded | Failed | Pruned)
        }
        axes: dict[str, charts.Places] = {
            "experiment": {row.experiment: row.experiment for row in rows},
            "hours": decided,
            "MB of memory": {row.experiment: row.memory_mb or None for row in rows},
            "lines of train.py": {e.row.experiment: e.lines for e in entries},
        }
        for name in dict.fromkeys(name for row in rows for score in row.scores for name in score.reported):
            axes[name] = {row.experiment: row.scores[0].reported.get(name) if row.scores else None for row in rows}
        figures = {
            "progress": charts.draw_progress(rows, axes, summary),
            **{f"curve-{e.row.experiment}": e.curve for e in entries if e.curve},
        }
        return render_page(
            "page.html",
            figures,
            state=state,
            summary=summary,
            held=runs,
            used=measure_utilization(log.records, state.session.slots),
            entries=entries,
            retried=select_retried(rows),
            believed={
                row.experiment: assess_keep(state, row.experiment).probability
                for row in rows
                if isinstance(row.verdict, Kept)
                and row.verdict.probability is not None
                and row.proposal.reverts is None
            },
            trust=describe_trust(log),
            surprising=SURPRISING,
            near_miss=NEAR_MISS,
            untested=UNTESTED,
            command=suggest_command(log, self.command),
            resume=self.command("resume", state.session.name),
            listing=self.command("sessions"),
            due=max([state.now + PATIENCE * estimate_run_seconds(state), *(w.until for w in state.waiting.values())]),
            git=self.git,
        )


def _describe_entry(log: LogReader, row: ExperimentRow) -> Entry:
    beside = {f"experiment {row.incumbent}": row.compared} if row.experiment else {}
    curve = charts.draw_curves({f"experiment {row.experiment}": row.runs} | beside) if row.runs else None
    lines = len(log.get(row.commit.source).splitlines()) if row.commit else None
    return Entry(row, tabulate(row), show_diff(log, row), lines, curve)
