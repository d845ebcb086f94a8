"""Write the musings, one Markdown page per experiment and an index of them, and search those of all sessions by words.

They are derived from the log and can be rebuilt. A rationale is on disk before anything is edited.
"""

import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from orchestrator.core.events import Proposed
from orchestrator.core.state import Decided, State
from orchestrator.core.task import BPB
from orchestrator.core.text import flatten, name_numbers
from orchestrator.views.experiments import ExperimentRow, LogReader, list_open_rows, list_rows, show_diff
from orchestrator.views.render import File, render_template
from orchestrator.views.summary import summarize, tabulate
from prepare.files import write_atomically
from subagents.prompts import split_front_matter

OURS = re.compile(r"(?m)^(## (Why we|What we|What happened|What next)|\||\[All of|Training loss:|What the agents).*$")
"""The words of a page's template, and its tables: no content to search."""
LATEST = 10  # sessions whose findings the overview tells


@dataclass(frozen=True, slots=True)
class Hit:
    """A musing found by a search."""

    path: Path
    title: str
    matter: Mapping[str, Any]
    snippet: str  # the text around the match, which is between ** and **

    @property
    def outcome(self) -> str:
        """How the experiment ended, and its change of the score with its error where there is one."""
        delta, error, status = (self.matter.get(name) for name in ("delta", "error", "status"))
        if not isinstance(delta, float):
            return "no verdict" if status in ("proposed", "ready", "training") else str(status or "")
        spread = f" ± {BPB.format_size(error)}" if isinstance(error, float) else ""
        return f"{status} {BPB.format_change(delta)}{spread}"


def list_musings(log: LogReader, folder: Path) -> Iterator[File]:
    """Yield the page of each experiment, the session's index in the same folder, and the overview above it."""
    if log.state.parents:
        rows, summary = list_rows(log.state), summarize(log.state)
        yield from (_make_file(log, folder, row) for row in rows)
        yield folder / "index.md", (rows, summary, log.state.notebook), partial(render_index, log.state, rows)
        told = summary.tried, summary.kept, summary.baseline, summary.best
        yield folder.parent / "index.md", told, partial(render_overview, folder.parent, log.state.session.profile.name)


def list_rationales(log: LogReader, folder: Path) -> Iterator[File]:
    """Yield the page of each experiment that is only proposed."""
    return (_make_file(log, folder, row) for row in list_open_rows(log.state) if row.status == "proposed")


def write_musings(log: LogReader, folder: Path) -> None:
    """Write all musings of a session into its folder, and the overview beside it. Raises OSError."""
    for path, _, render in list_musings(log, folder):
        write_atomically(path, render())


def _make_file(log: LogReader, folder: Path, row: ExperimentRow) -> File:
    return folder / make_file_name(row), row, partial(render_musing, log, row)


def make_file_name(row: ExperimentRow | Decided) -> str:
    """Return the page's file name: the number, and the title in characters that every file system accepts."""
    return f"{row.experiment:03d}-{_make_slug(row.proposal.title)}.md"


@lru_cache(maxsize=4096)
def _make_slug(title: str) -> str:
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return "-".join(re.findall(r"[a-z0-9.]+", plain)).strip("-.")[:60].rstrip("-.") or "experiment"


def render_musing(log: LogReader, row: ExperimentRow) -> str:
    """Return the page of one experiment, as far as it has come."""
    diff, events = show_diff(log, row), ((record.event, record.at) for record in reversed(log.records))
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
        origin=log.state.session.origin,
        judged={result.experiment: result for result in log.state.judged},
        file_name=make_file_name,
    )


def render_index(state: State, rows: Sequence[ExperimentRow]) -> str:
    """Return a session's index: its summary, a table of experiments, and the lessons of what was kept."""
    facts = {"session": state.session, "started": state.started_at, "summary": summarize(state), "rows": rows}
    return _render_page("index.md", escape=_escape, file_name=make_file_name, notebook=state.notebook, **facts)


def render_overview(folder: Path, profile: str) -> str:
    """Return the overview of all sessions in the folder, newest first, and what they found, first on the profile."""
    found = [(path.parent.name, read_musing(path)[0]) for path in folder.glob("*/index.md")]
    sessions = [(name, matter) for name, matter in found if "session" in matter]
    latest = sorted(sessions, key=lambda pair: str(pair[1].get("started")), reverse=True)
    paths = (path for name, _ in latest[:LATEST] for path in sorted((folder / name).glob("[0-9]*.md")))
    told = ((path, matter, body) for path, matter, body in _read_pages(paths) if matter.get("experiment"))
    pages = [{"link": f"{path.parent.name}/{path.name}", "matter": matter, "body": body} for path, matter, body in told]
    return _render_page("overview.md", escape=_escape, sessions=latest, mine=profile, pages=pages)


def _read_pages(paths: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any], str]]:
    """Yield path, front matter and body of each page; of an experiment that a fork shares with its parent, once."""
    seen = set[str]()
    for path in paths:
        matter, body = read_musing(path)
        known = str([matter.get(key) for key in ("experiment", "commit", "proposed")])
        if body and known not in seen:
            seen |= {known} if matter.get("proposed") else set()
            yield path, matter, body


def search(
    folder: Path, query: str, *, family: str = "", verdict: str = "", session: str = "", limit: int = 10
) -> list[Hit]:
    """Return the musings under the folder, of all sessions, that match the words best.

    Filters are exact; `verdict` is the reflector's (supported, …) or the judge's (kept, discarded, …). If no musing
    has all the words, those with any are returned. An experiment that a fork shares with its parent is found once.
    """
    words, matters = [f'"{word}"' for word in re.findall(r"\w+", query)], dict[str, dict[str, Any]]()
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("create virtual table m using fts5(path unindexed, title, body, tokenize = 'porter unicode61')")
        found = (path for path in sorted(folder.glob("*/[0-9]*.md")) if session in ("", path.parent.name))
        paths = (path for path in found if not path.name.startswith("000-"))  # the words on a baseline are ours
        for path, matter, body in _read_pages(paths):
            if family in ("", matter.get("family")) and verdict in ("", matter.get("verdict"), matter.get("status")):
                matters[str(path)] = matter
                title, _, rest = name_numbers(body, path.parent.name).partition("\n")
                plain = re.sub(r"\[([^]\n]*)\]\([^)\n]*\.md\)|[*`|>#]|--:?", r"\1", OURS.sub("", rest))
                db.execute("insert into m values (?, ?, ?)", (str(path), title.lstrip("# "), plain))
        rows = _match(db, " AND ".join(words), limit) or _match(db, " OR ".join(words), limit)
    return [Hit(Path(path), title, matters[path], " ".join(text.split())) for path, title, text in rows]


def find_page(folder: Path, session: str, experiment: int) -> str:
    """Return the musing of an experiment, with its numbers written out; empty if there is none."""
    found = (path for path in folder.glob(f"*/{experiment:03d}-*.md") if path.parent.name == session)
    return next((name_numbers(read_musing(path)[1], session) for path in found), "")


def read_musing(path: Path) -> tuple[dict[str, Any], str]:
    """Return front matter and body; the former is empty if the file is not a musing, both if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""  # not from a FIFO
    except OSError:
        return {}, ""
    try:
        matter, body = split_front_matter(text)
    except ValueError:
        return {}, text
    return matter, body.lstrip()


def _render_page(template: str, **facts: object) -> str:
    """Return a page without consecutive blank lines."""
    return re.sub(r"\n{3,}", "\n\n", render_template(template, **facts)).rstrip() + "\n"


def _escape(text: str) -> str:
    return flatten(text).replace("|", "\\|").replace("[", "\\[").replace("]", "\\]")


def _match(db: sqlite3.Connection, match: str, limit: int) -> list[tuple[str, str, str]]:
    """Return path, title and snippet of the best matches; without words, of the newest musings."""
    if not match:
        newest = "select path, title, substr(body, 1, 160) from m order by path desc limit ?"
        return db.execute(newest, (limit,)).fetchall()
    around = "snippet(m, -1, '**', '**', '…', 24)"
    best = f"select path, title, {around} from m where m match ? order by bm25(m, 0, 4, 1) limit ?"
    return db.execute(best, (match, limit)).fetchall()
