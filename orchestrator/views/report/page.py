"""Render report.html: a session on one self-contained page that needs no network.

Text by agents is untrusted, and escaped by Jinja; all of it can be read without scripts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from orchestrator.core.events import Discarded, Failed, Kept, Pruned
from orchestrator.core.state import UNTESTED
from orchestrator.policy.ablation import assess_keep
from orchestrator.policy.thresholds import NEAR_MISS
from orchestrator.views import charts
from orchestrator.views.experiments import ExperimentRow, list_rows, select_retried, show_diff
from orchestrator.views.render import render_page
from orchestrator.views.snapshot import LogReader
from orchestrator.views.summary import describe_trust, suggest_command, summarize, tabulate
from orchestrator.views.usage import list_runs, measure_utilization
from prepare.command import write_command

SURPRISES = 5
SURPRISING = 2.0
"""Standard errors between the predicted and the measured change."""
LESSONS, NEAR_MISSES = 40, 8


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
            "slots": charts.draw_slots(runs, state.session.slots),
            **{f"curve-{e.row.experiment}": e.curve for e in entries if e.curve},
        }
        return render_page(
            "page.html",
            figures,
            state=state,
            summary=summary,
            runs=len(runs),
            used=measure_utilization(log.records, state.session.slots),
            entries=entries,
            families=group_families(rows),
            retried=select_retried(rows),
            believed={
                row.experiment: assess_keep(state, row.experiment).probability
                for row in rows
                if isinstance(row.verdict, Kept)
                and row.verdict.probability is not None
                and row.proposal.reverts is None
            },
            trust=describe_trust(log),
            surprises=list_surprises(rows),
            near_misses=list_near_misses(rows),
            lessons=[row for row in reversed(rows) if row.postmortem][:LESSONS],
            command=suggest_command(log, self.command),
            git=self.git,
        )


def group_families(rows: Sequence[ExperimentRow]) -> list[list[ExperimentRow]]:
    """Return what was tested by family, by total gain of its keeps, largest first."""
    tested = [row for row in rows if row.experiment and row.is_decided and row.status not in UNTESTED]
    names = dict.fromkeys(row.proposal.family for row in tested)
    families = [[row for row in tested if row.proposal.family == name] for name in names]
    by_size = sorted(families, key=len, reverse=True)
    return sorted(by_size, key=lambda rows: sum(row.gain or 0.0 for row in rows if row.status == "kept"), reverse=True)


def list_surprises(rows: Sequence[ExperimentRow]) -> list[ExperimentRow]:
    """Return the experiments furthest from their predicted change, in standard errors, furthest first."""
    predicted = [row for row in rows if row.proposal.expected_delta]
    return _rank(predicted, lambda row, gain: abs(gain + row.proposal.expected_delta), SURPRISING)[:SURPRISES]


def list_near_misses(rows: Sequence[ExperimentRow]) -> list[ExperimentRow]:
    """Return the discarded experiments that looked better by more than the noise, most certain first."""
    discarded = [row for row in rows if row.status == "discarded"]
    return _rank(discarded, lambda _, gain: gain, NEAR_MISS)[:NEAR_MISSES]


def _rank(
    rows: Sequence[ExperimentRow], measure: Callable[[ExperimentRow, float], float], least: float
) -> list[ExperimentRow]:
    """Return the rows with a measure above `least` standard errors, largest first."""
    found = [(measure(row, row.gain) / row.error, row) for row in rows if row.gain is not None and row.error]
    return [row for errors, row in sorted(found, key=itemgetter(0), reverse=True) if errors > least]


def _describe_entry(log: LogReader, row: ExperimentRow) -> Entry:
    beside = {f"experiment {row.incumbent}": row.compared} if row.experiment else {}
    curve = charts.draw_curves({f"experiment {row.experiment}": row.runs} | beside) if row.runs else None
    lines = len(log.get(row.commit.source).splitlines()) if row.commit else None
    return Entry(row, tabulate(row), show_diff(log, row), lines, curve)
