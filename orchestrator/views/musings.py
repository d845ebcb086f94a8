"""Write the musings, one Markdown page per experiment and an index of them, and search those of all sessions by words.

They are derived from the log and can be rebuilt. A rationale is on disk before anything is edited.
"""

import re
import sqlite3
import unicodedata
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import finalize

from orchestrator.core.events import Forked, Proposed, Started
from orchestrator.core.state import Decided, Idea
from orchestrator.core.task import BPB, Metric
from orchestrator.core.text import flatten, make_printable, name_numbers
from orchestrator.views.experiments import ExperimentRow, LogReader, list_open_rows, list_rows, show_diff
from orchestrator.views.render import File, render_template
from orchestrator.views.summary import summarize, tabulate
from prepare.command import UserError
from prepare.files import write_atomically
from subagents.prompts import split_front_matter

OURS = re.compile(r"(?m)^(## (Why we|What we|What happened|What next)|\||\[All of|Training loss:|What the agents).*$")
"""The words of a page's template, and its tables: no content to search."""
OF_A_PAGE = {"session", "experiment", "status", "verdict", "delta"}  # in a user's own note some are missing
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
        return render_template("outcome.txt", matter=self.matter, metric=_choose_metric(self.matter))


def list_musings(log: LogReader, folder: Path, live: bool = False) -> Iterator[File]:
    """Yield the page of each experiment, and the session's index in the same folder.

    In a `live` night an experiment's page is written once it is proposed, and then once it has a verdict.
    """
    if log.state.parents:
        rows, summary = list_rows(log.state), summarize(log.state)
        for row in rows:
            shows = row.proposal if live and not row.verdict else row
            yield folder / make_file_name(row), shows, partial(render_musing, log, row)
        yield folder / "index.md", (rows, summary, log.state.notebook), partial(render_index, log)


def list_overview(log: LogReader, folder: Path) -> Iterator[File]:
    """Yield the overview above it. It tells what all sessions found, so that it costs more with each earlier night.

    A user's own file of that name stays.
    """
    path, first = folder.parent / "index.md", "# Musings"
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline(100)
    if log.state.parents and first.rstrip() == "# Musings":
        told, profile = summarize(log.state), log.state.session.profile.name
        yield path, told, partial(render_overview, folder.parent, profile)


def list_rationales(log: LogReader, folder: Path) -> Iterator[File]:
    """Yield the page of each experiment that is only proposed."""
    for row in list_open_rows(log.state, Idea):
        yield folder / make_file_name(row), row.proposal, partial(render_musing, log, row)


def write_musings(log: LogReader, folder: Path, *, overview: bool = True) -> None:
    """Write all musings of a session into its folder, and the overview beside it. Raises OSError."""
    for path, _, render in chain(list_musings(log, folder), list_overview(log, folder) if overview else ()):
        write_atomically(path, render())


def make_file_name(row: ExperimentRow | Decided) -> str:
    """Return the page's file name: the number, and the title in characters that every file system accepts."""
    return f"{row.experiment:03d}-{_make_slug(row.proposal.title)}.md"


@lru_cache(maxsize=4096)
def _make_slug(title: str) -> str:
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return "-".join(re.findall(r"[a-z0-9.]+", plain)).strip("-.")[:60].rstrip("-.") or "experiment"


def render_musing(log: LogReader, row: ExperimentRow) -> str:
    """Return the page of one experiment, as far as it has come."""
    diff, found = show_diff(log, row), (one for one in reversed(log.records) if isinstance(one.event, Proposed))
    proposed = (record.at for record in found if getattr(record.event, "experiment", None) == row.experiment)
    own, fence = log.state.session, "`" * max(3, 1 + max(map(len, re.findall("`+", diff)), default=0))
    facts = {"session": own.name, "profile": own.profile, "origin": own.origin, "file_name": make_file_name}
    facts |= {"row": row, "numbers": tabulate(row), "diff": diff, "fence": fence, "proposed": next(proposed, None)}
    return _render_page("musing.md", judged={each.experiment: each for each in log.state.judged}, **facts)


def render_index(log: LogReader) -> str:
    """Return a session's index: its summary, a table of experiments, and the lessons of what was kept."""
    began = max(record.at for record in log.records if isinstance(record.event, Started | Forked))
    facts = {"state": log.state, "summary": summarize(log.state), "rows": list_rows(log.state), "began": began}
    return _render_page("index.md", escape=_escape, file_name=make_file_name, **facts)


def render_overview(folder: Path, profile: str) -> str:
    """Return the overview of all sessions in the folder, newest first, and what they found, first on the profile."""
    found = [(path.parent.name, read_musing(path)[0]) for path in folder.glob("*/index.md")]
    sessions = [(name, matter) for name, matter in found if "session" in matter]
    latest = sorted(sessions, key=lambda pair: str(pair[1].get("started")), reverse=True)
    paths = [path for name, _ in latest[:LATEST] for path in sorted((folder / name).glob("[0-9]*.md"))]
    told = ((path, *read_musing(path)) for path in reversed(paths))
    shared = {_name_shared(p, m): (p, m, body) for p, m, body in told if m.keys() >= OF_A_PAGE and m["experiment"]}
    pages = [{"link": f"{p.parent.name}/{p.name}", "matter": m, "body": b} for p, m, b in reversed(shared.values())]
    facts = {"sessions": latest, "mine": profile, "pages": pages, "choose_metric": _choose_metric}
    return _render_page("overview.md", escape=_escape, **facts)


def _choose_metric(matter: Mapping[str, Any]) -> Metric:
    """Return a metric that writes a page's numbers in as many decimals as they need; their sign is the user's."""
    return BPB if "val_bpb" in matter else Metric(name="other")


def _name_shared(path: Path, matter: Mapping[str, Any]) -> str:
    """Return what a fork's page has in common with its parent's: what it says of the experiment, or its own path."""
    return str([matter.get(key) for key in ("experiment", "commit", "proposed")] if matter.get("proposed") else path)


@lru_cache(maxsize=4)
class _Words:
    """The words of all musings in a folder; a file is read again only once it has changed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lock = folder, Lock()
        self.marks = dict[Path, tuple[int, ...]]()  # what changes with the content of a file
        self.db = sqlite3.connect("", check_same_thread=False)  # a temporary file: in memory it would grow
        finalize(self, self.db.close)
        facts = ("path", "shared", "session", "family", "verdict", "status")
        columns = ", ".join([*(f"{name} unindexed" for name in facts), "title", "body"])
        self.db.execute(f"create virtual table m using fts5({columns}, tokenize = 'porter unicode61')")

    def update(self) -> None:
        """Take in the pages that are new or have changed, and drop those that are gone."""
        found = dict[Path, tuple[int, ...]]()
        for path in self.folder.glob("*/[0-9]*.md"):
            with suppress(OSError):  # it may go meanwhile
                if path.name[:4] != "000-":  # our words on a baseline
                    status = path.stat()
                    found[path] = status.st_ino, status.st_size, status.st_mtime_ns
        for path in [path for path in self.marks | found if self.marks.get(path) != found.get(path)]:
            if path in self.marks:
                self.db.execute("delete from m where path = ?", (str(path),))
            matter, body = read_musing(path)
            title, _, rest = name_numbers(body, path.parent.name).partition("\n")
            plain = re.sub(r"\[([^]\n]*)\]\([^)\n]*\.md\)|[*`|>#]|--:?", r"\1", OURS.sub("", rest))
            facts = [str(matter.get(name) or "") for name in ("family", "verdict", "status")]
            row = (str(path), _name_shared(path, matter), path.parent.name, *facts, title.lstrip("# "), plain)
            self.db.executemany("insert into m values (?, ?, ?, ?, ?, ?, ?, ?)", [row] if body else [])
        self.marks = found

    def match(self, words: str, filters: Mapping[str, str], limit: int) -> list[Hit]:
        """Return the best matches; without words, the newest musings."""
        text, order = "snippet(m, -1, '**', '**', '…', 24)", "bm25(m, 0, 0, 0, 0, 0, 0, 4, 1), path"
        if not words:
            text, order = "substr(body, 1, 160)", "path desc"
        chosen = {clause: value for clause, value in {"m match ?": words, **filters}.items() if value}
        query = f"select shared, path, title, {text} from m where {' and '.join(chosen) or 1} order by {order}"
        found = dict[str, tuple[str, str, str]]()
        for shared, *hit in self.db.execute(query, tuple(chosen.values())):
            found.setdefault(shared, (hit[0], hit[1], " ".join(hit[2].split())))
            if len(found) == limit:
                break
        return [Hit(Path(path), title, read_musing(Path(path))[0], text) for path, title, text in found.values()]


def search(
    folder: Path, query: str, *, family: str = "", verdict: str = "", session: str = "", limit: int = 10
) -> list[Hit]:
    """Return the musings under the folder, of all sessions, that match the words best.

    Filters are exact; `verdict` is the reflector's (supported, …) or the judge's (kept, discarded, …). If no musing
    has all the words, those with any are returned. An experiment that a fork shares with its parent is found once.
    """
    filters = {"session = ?": session, "family = ?": family, "? in (verdict, status)": verdict}
    quoted, words = [f'"{word}"' for word in re.findall(r"\w+", query)], _Words(folder)
    if query.strip() and not quoted:
        return []
    with words.lock, _wrap_full_disk(), words.db:
        words.update()
        return words.match(" AND ".join(quoted), filters, limit) or words.match(" OR ".join(quoted), filters, limit)


@contextmanager
def _wrap_full_disk() -> Generator[None]:
    """Turn an error of the index, which is a file once it is large, into a UserError."""
    try:
        yield
    except sqlite3.Error as error:
        raise UserError(f"the musings cannot be searched: {error}") from error


def find_page(folder: Path, session: str, experiment: int) -> str:
    """Return the musing of an experiment, with its numbers written out; empty if there is none."""
    found = (path for path in folder.glob(f"*/{experiment:03d}-*.md") if path.parent.name == session)
    return next((name_numbers(read_musing(path)[1], session) for path in found), "")


def read_musing(path: Path) -> tuple[dict[str, Any], str]:
    """Return front matter and body; the former is empty if the file is not a musing, both if it cannot be read."""
    text = ""
    with suppress(OSError, ValueError):
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""  # not from a FIFO
        text = make_printable(text)
        matter, body = split_front_matter(text)
        return matter, body.lstrip()
    return {}, text


def _render_page(template: str, **facts: object) -> str:
    """Return a page without consecutive blank lines."""
    return re.sub(r"\n{3,}", "\n\n", render_template(template, **facts)).rstrip() + "\n"


def _escape(text: str) -> str:
    return flatten(text).replace("|", "\\|").replace("[", "\\[").replace("]", "\\]")
