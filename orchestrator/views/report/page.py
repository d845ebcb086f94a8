"""Render report.html: a session on one page, in one file that asks nothing of any network.

Everything that agents wrote is untrusted text, which Jinja escapes; all of it can be read without scripts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from orchestrator.core.events import Discarded, Failed, Kept, Pruned
from orchestrator.core.state import get_scores
from orchestrator.policy.thresholds import NEAR_MISS
from orchestrator.views import charts
from orchestrator.views.experiments import UNTRAINED, ExperimentRow, list_rows, select_retried, show_diff
from orchestrator.views.render import render_page
from orchestrator.views.snapshot import LogReader
from orchestrator.views.summary import describe_trust, suggest_command, summarize, tabulate
from orchestrator.views.usage import list_runs, measure_utilization

SURPRISES = 5
SURPRISING = 2.0
"""Standard errors between what was predicted and what came."""
LESSONS, NEAR_MISSES = 40, 8
REFRESH_SECONDS = 30
"""Seconds between two looks of an open page for a newer one, while the session lives."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An experiment as the page tells it."""

    row: ExperimentRow
    numbers: Sequence[Sequence[str]]
    diff: str
    lines: int | None
    curve: Any
    """The figure of its loss; None where it has none."""


class Page:
    """Renders the page; what it shows of a closed experiment is worked out once."""

    def __init__(self) -> None:
        self.known: dict[int, Entry] = {}

    def render(self, log: LogReader) -> str:
        """Return the whole file as the log now stands."""
        state, rows, runs, summary = log.state, list_rows(log.state), list_runs(log.records), summarize(log.state)
        entries = [self.known.get(row.experiment) or _describe_entry(log, row) for row in rows]
        closed = {result.experiment for result in state.results}
        self.known |= {entry.row.experiment: entry for entry in entries if entry.row.experiment in closed}
        decided = {
            record.event.experiment: (record.at - state.started_at) / 3600
            for record in log.records
            if isinstance(record.event, Kept | Discarded | Failed | Pruned)
        }
        points = [charts.ChartPoint(e.row, decided.get(e.row.experiment), e.lines) for e in entries]
        figures = {
            "progress": charts.draw_progress(points, summary),
            "slots": charts.draw_slots(runs, state.session.slots),
            **{f"curve-{e.row.experiment}": e.curve for e in entries if e.curve},
        }
        kept = [entry for entry in entries if entry.row.status == "kept" and entry.row.experiment > 0]
        return render_page(
            "page.html",
            figures,
            state=state,
            summary=summary,
            runs=len(runs),
            used=measure_utilization(log.records, state.session.slots),
            entries=entries,
            kept=kept,
            gained=sum(entry.row.gain or 0.0 for entry in kept),
            families=summarize_families(rows),
            retried=select_retried(rows),
            trust=describe_trust(log),
            surprises=list_surprises(rows),
            near_misses=list_near_misses(rows),
            lessons=[row for row in reversed(rows) if row.postmortem][:LESSONS],
            command=suggest_command(log),
            refresh=REFRESH_SECONDS,
        )


def summarize_families(rows: Sequence[ExperimentRow]) -> list[Mapping[str, Any]]:
    """Return what was trained by family, and what it gained, the most fruitful first."""
    families: dict[str, list[ExperimentRow]] = {}
    for row in rows:
        if row.experiment > 0 and row.is_decided and row.status not in UNTRAINED:
            families.setdefault(row.proposal.family, []).append(row)
    table = [
        {
            "name": name,
            "tried": len(tried),
            "kept": sum(row.status == "kept" for row in tried),
            "crashed": sum(row.status == "crashed" for row in tried),
            "gain": sum(row.gain or 0.0 for row in tried if row.status == "kept"),
            "best": max((row.gain for row in tried if row.gain is not None), default=None),
        }
        for name, tried in families.items()
    ]
    return sorted(table, key=lambda family: (-family["gain"], -family["tried"]))


def list_surprises(rows: Sequence[ExperimentRow]) -> list[ExperimentRow]:
    """Return the experiments that ended furthest from what was predicted, in standard errors, the furthest first."""
    distances = [
        (abs(row.gain + row.proposal.expected_delta) / row.error, row)
        for row in rows
        if row.proposal.expected_delta and row.gain is not None and row.error
    ]
    return [row for distance, row in _rank(distances)[:SURPRISES] if distance >= SURPRISING]


def list_near_misses(rows: Sequence[ExperimentRow]) -> list[ExperimentRow]:
    """Return the discarded experiments that looked better by more than the noise, the surest first."""
    discarded = [row for row in rows if row.status == "discarded"]
    found = [(row.gain / row.error, row) for row in discarded if row.gain is not None and row.error]
    return [row for sureness, row in _rank(found)[:NEAR_MISSES] if sureness > NEAR_MISS]


def _rank(found: Sequence[tuple[float, ExperimentRow]]) -> list[tuple[float, ExperimentRow]]:
    return sorted(found, key=itemgetter(0), reverse=True)


def _describe_entry(log: LogReader, row: ExperimentRow) -> Entry:
    beside = {f"experiment {row.incumbent}": get_scores(log.state, row.incumbent)} if row.experiment else {}
    curve = charts.draw_curves({f"experiment {row.experiment}": row.runs} | beside) if row.runs else None
    lines = len(log.get(row.commit.source).splitlines()) if row.commit else None
    return Entry(row, tabulate(log.state, row), show_diff(log, row), lines, curve)
