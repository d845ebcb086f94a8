"""Read musings, and search those of all sessions by words."""

import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.core.task import BPB
from subagents.prompts import split_front_matter


@dataclass(frozen=True, slots=True)
class Hit:
    """A musing found by a search."""

    path: Path
    title: str
    matter: Mapping[str, Any]
    """The musing's front matter."""
    snippet: str
    """The text around the match, which is between ** and **."""

    def __str__(self) -> str:
        """Return session and title, what came of it, and the snippet, on one line."""
        outcome = filter(None, (self.matter.get(key) for key in ("status", "verdict", "delta")))
        return f"{self.path.parent.name} {self.title} ({', '.join(map(str, outcome))}): {self.snippet}"

    @property
    def outcome(self) -> str:
        """How the experiment ended, and its change of the score where there is one."""
        delta, status = self.matter.get("delta"), str(self.matter.get("status", ""))
        return f"{status} {BPB.format_change(delta)}" if isinstance(delta, float) else status


def search(
    folder: Path, query: str, *, family: str = "", verdict: str = "", session: str = "", limit: int = 10
) -> list[Hit]:
    """Return the musings under the folder, of all sessions, that match the words best.

    Filters are exact; `verdict` is the reflector's (supported, …) or the judge's (kept, discarded, …). If no musing
    has all the words, those with any are returned.
    """
    words = re.findall(r"\w+", query)
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("create virtual table m using fts5(path unindexed, title, body, tokenize = 'porter unicode61')")
        matters: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.glob("*/[0-9]*.md")):
            matter, body = read_musing(path)
            in_scope = session in ("", matter.get("session")) and family in ("", matter.get("family"))
            if body and in_scope and verdict in ("", matter.get("verdict"), matter.get("status")):
                matters[str(path)] = matter
                title, _, rest = body.partition("\n")
                plain = re.sub(r"[*`|>#]|--:?", "", rest)
                db.execute("insert into m values (?, ?, ?)", (str(path), title.lstrip("# "), plain))
        for joint in (" AND ", " OR "):
            if rows := _match(db, joint.join(f'"{word}"' for word in words), limit):
                return [Hit(Path(path), title, matters[path], " ".join(text.split())) for path, title, text in rows]
    return []


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


def _match(db: sqlite3.Connection, match: str, limit: int) -> list[tuple[str, str, str]]:
    """Return path, title and snippet of the best matches; without words, of the newest musings."""
    if not match:
        newest = "select path, title, substr(body, 1, 160) from m order by path desc limit ?"
        return db.execute(newest, (limit,)).fetchall()
    around = "snippet(m, -1, '**', '**', '…', 24)"
    best = f"select path, title, {around} from m where m match ? order by bm25(m, 0, 4, 1) limit ?"
    return db.execute(best, (match, limit)).fetchall()
