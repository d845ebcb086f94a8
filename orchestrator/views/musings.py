"""Write the musings: one Markdown page per experiment, and an index of them.

They are derived from the log and can be rebuilt. A rationale is on disk before anything is edited.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from orchestrator.core.events import Proposed
from orchestrator.core.state import Decided, State
from orchestrator.core.text import flatten
from orchestrator.views.experiments import ExperimentRow, LogReader, list_rows, show_diff
from orchestrator.views.musings_search import read_musing
from orchestrator.views.render import File, render_template
from orchestrator.views.summary import summarize, tabulate
from prepare.files import write_atomically


def list_musings(log: LogReader, folder: Path) -> Iterator[File]:
    """Yield the page of each experiment, the session's index in the same folder, and the overview above it."""
    if log.state.baseline_commit is not None:
        rows, summary = list_rows(log.state), summarize(log.state)
        yield from (_make_file(log, folder, row) for row in rows)
        yield folder / "index.md", (rows, summary), partial(render_index, log.state, rows)
        told = summary.tried, summary.kept, summary.baseline, summary.best
        yield folder.parent / "index.md", told, partial(render_overview, folder.parent)


def list_rationales(log: LogReader, folder: Path) -> Iterator[File]:
    """Yield the page of each experiment that is only proposed."""
    return (_make_file(log, folder, row) for row in list_rows(log.state) if row.status == "proposed")


def write_musings(log: LogReader, folder: Path) -> None:
    """Write all musings of a session into its folder, and the overview beside it. Raises OSError."""
    for path, _, render in list_musings(log, folder):
        write_atomically(path, render())


def _make_file(log: LogReader, folder: Path, row: ExperimentRow) -> File:
    return folder / make_file_name(row), row, partial(render_musing, log, row)


def make_file_name(row: ExperimentRow | Decided) -> str:
    """Return the page's file name: the number, and the title in characters that every file system accepts."""
    plain = unicodedata.normalize("NFKD", row.proposal.title).encode("ascii", "ignore").decode().lower()
    slug = "-".join(re.findall(r"[a-z0-9.]+", plain)).strip("-.")[:60].rstrip("-.")
    return f"{row.experiment:03d}-{slug or 'experiment'}.md"


def render_musing(log: LogReader, row: ExperimentRow) -> str:
    """Return the page of one experiment, as far as it has come."""
    diff, events = show_diff(log, row), ((record.event, record.at) for record in log.records)
    proposed = (at for event, at in events if isinstance(event, Proposed) and event.experiment == row.experiment)
    return _render_page(
        "musing.md",
        session=log.state.session.name,
        row=row,
        proposed=next(proposed, None),
        diff=diff,
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", diff)), default=0)),
        numbers=tabulate(row),
        profile=log.state.session.profile,
        judged={result.experiment: result for result in log.state.judged},
        file_name=make_file_name,
    )


def render_index(state: State, rows: Sequence[ExperimentRow]) -> str:
    """Return a session's index: its summary, a table of experiments, and the lessons of what was kept."""
    facts = {"session": state.session, "started": state.started_at, "summary": summarize(state), "rows": rows}
    return _render_page("index.md", escape=_escape, file_name=make_file_name, **facts)


def render_overview(folder: Path) -> str:
    """Return the overview of all sessions in the folder, read from their indexes, newest first."""
    found = [(path.parent.name, read_musing(path)[0]) for path in folder.glob("*/index.md")]
    sessions = [(name, matter) for name, matter in found if "session" in matter]
    latest = sorted(sessions, key=lambda pair: str(pair[1].get("started")), reverse=True)
    return render_template("overview.md", sessions=latest, escape=_escape)


def _render_page(template: str, **facts: object) -> str:
    """Return a page without consecutive blank lines."""
    return re.sub(r"\n{3,}", "\n\n", render_template(template, **facts)).rstrip() + "\n"


def _escape(text: str) -> str:
    return flatten(text).replace("|", "\\|").replace("[", "\\[").replace("]", "\\]")
