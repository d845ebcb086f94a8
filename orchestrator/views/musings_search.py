import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

FENCE = "---\n"


@dataclass(frozen=True, slots=True)
class Hit:
    """One musing that a search has found."""

    path: Path
    session: str
    experiment: int
    title: str
    status: str
    verdict: str
    family: str
    delta: float | None
    snippet: str
    """The words around what was found, which stands between ** and **."""


def search(
    folder: Path, query: str, *, family: str = "", verdict: str = "", session: str = "", limit: int = 10
) -> list[Hit]:
    """The musings under the folder that fit the words best, over all sessions.

    Filters are exact; `verdict` takes the reflector's (supported, …) or the judge's (kept, discarded, …). Musings with
    all the words come first; if there are none, those with any.
    """
    words = re.findall(r"\w+", query)
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("create virtual table m using fts5(path unindexed, title, body, tokenize = 'porter unicode61')")
        matters: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.glob("*/[0-9]*.md")):
            matter, body = read_musing(path)
            if _is_wanted(matter, family, verdict, session):
                matters[str(path)] = matter
                title, _, rest = body.partition("\n")
                plain = re.sub(r"[*`|>#]|--:?", "", rest)
                db.execute("insert into m values (?, ?, ?)", (str(path), title.lstrip("# "), plain))
        for joint in (" AND ", " OR "):
            if rows := _match(db, joint.join(f'"{word}"' for word in words), limit):
                return [_make_hit(Path(path), title, snippet, matters[path]) for path, title, snippet in rows]
    return []


def _match(db: sqlite3.Connection, match: str, limit: int) -> list[tuple[str, str, str]]:
    """The best first; without words, the latest."""
    if not match:
        newest = "select path, title, substr(body, 1, 160) from m order by path desc limit ?"
        return db.execute(newest, (limit,)).fetchall()
    around = "snippet(m, -1, '**', '**', '…', 24)"
    best = f"select path, title, {around} from m where m match ? order by bm25(m, 0, 4, 1) limit ?"
    return db.execute(best, (match, limit)).fetchall()


def _make_hit(path: Path, title: str, snippet: str, matter: dict[str, Any]) -> Hit:
    return Hit(
        path=path,
        session=str(matter.get("session", "")),
        experiment=int(matter.get("experiment", 0)),
        title=title,
        status=str(matter.get("status", "")),
        verdict=str(matter.get("verdict") or ""),
        family=str(matter.get("family", "")),
        delta=matter.get("delta"),
        snippet=" ".join(snippet.split()),
    )


def _is_wanted(matter: dict[str, Any], family: str, verdict: str, session: str) -> bool:
    return (
        family in ("", matter.get("family"))
        and verdict in ("", matter.get("verdict"), matter.get("status"))
        and session in ("", matter.get("session"))
    )


def read_musing(path: Path) -> tuple[dict[str, Any], str]:
    """Front matter and body; no matter where a person has written something else into the folder."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith(FENCE):
        return {}, text
    head, _, body = text.removeprefix(FENCE).partition(f"\n{FENCE}")
    try:
        matter = yaml.load(head, yaml.CSafeLoader)
    except yaml.YAMLError:
        return {}, text
    return (cast("dict[str, Any]", matter), body.lstrip()) if isinstance(matter, dict) else ({}, text)
