"""A session is one SQLite file: an append-only list of records, and the texts that they name by digest.

It is the only writer of events. Every append is on disk before anything is done about it.
"""

import hashlib
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from pydantic import ValidationError

from orchestrator.events import EVENT, VERSION, Digest, Event, Record
from orchestrator.state import State, apply

SCHEMA = """
create table events (
    seq integer primary key, at real not null, lane text not null, kind text not null, body text not null
);
create table texts (digest text primary key, body blob not null);
"""


class SessionError(Exception):
    """The session's file cannot be used; the message says why in one line."""


class Session:
    """The open log of one session, and the state folded from it."""

    def __init__(self, path: Path, clock: Callable[[], float], *, create: bool = False) -> None:
        """Open (or create) the file and fold it. Raises SessionError."""
        self.path, self.clock = path, clock
        self.watchers: list[Callable[[], None]] = []
        self.records: list[Record] = []
        self.state = State()
        try:
            self.db = _create(path) if create else _open(path)
            for record in self._read():
                self._fold(record)
        except sqlite3.Error as error:
            raise SessionError(f"{path} cannot be used as a session: {error}") from error

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call the watcher after every append."""
        self.watchers.append(watcher)

    async def append(self, lane: str, *events: Event) -> None:
        """Write the events in one transaction, fold them, tell the watchers."""
        self.write(lane, *events)

    def write(self, lane: str, *events: Event) -> None:
        """As append, for whoever is outside the loop."""
        at = max(self.clock(), self.state.now)
        records = [Record(seq=len(self.records) + i, at=at, lane=lane, event=event) for i, event in enumerate(events)]
        with self.db:
            self.db.executemany(
                "insert into events values (?, ?, ?, ?, ?)",
                [(r.seq, r.at, r.lane, r.event.kind, r.event.model_dump_json()) for r in records],
            )
        for record in records:
            self._fold(record)
        for watcher in self.watchers:
            watcher()

    def put(self, text: str) -> Digest:
        """Store a text; the same text is stored once."""
        name = digest(text)
        with self.db:
            self.db.execute("insert or ignore into texts values (?, ?)", (name, zlib.compress(text.encode(), 9)))
        return name

    def get(self, name: Digest) -> str:
        """The text of that digest. Raises KeyError."""
        row = self.db.execute("select body from texts where digest = ?", (name,)).fetchone()
        if row is None:
            raise KeyError(name)
        return zlib.decompress(row[0]).decode()

    def close(self) -> None:
        self.db.close()

    def _fold(self, record: Record) -> None:
        self.state = apply(self.state, record)
        self.records.append(record)

    def _read(self) -> Iterator[Record]:
        for seq, at, lane, body in self.db.execute("select seq, at, lane, body from events order by seq"):
            yield Record(seq=seq, at=at, lane=lane, event=_parse(body))


def digest(text: str) -> Digest:
    """The name of a text: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _parse(body: str) -> Event:
    try:
        return EVENT.validate_json(body)
    except ValidationError as error:
        raise SessionError(f"an event cannot be read: {error.errors()[0]['msg']}") from error


def _create(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True)
    except FileExistsError as error:
        raise SessionError(f"there is a session in {path.parent} already; resume it, or choose another name") from error
    except OSError as error:
        raise SessionError(f"{path.parent} cannot be written: {error.strerror}") from error
    db = _connect(path)
    db.executescript(SCHEMA)
    db.execute(f"pragma user_version = {VERSION}")
    return db


def _open(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise SessionError(f"there is no session at {path}")
    with path.open("rb") as file, closing(file):
        if not file.read(16).startswith(b"SQLite format 3"):
            raise SessionError(f"{path} is not a session file")
    db = _connect(path)
    (version,) = db.execute("pragma user_version").fetchone()
    if version > VERSION:
        raise SessionError(f"{path} was written by a newer Nightshift (format {version}, ours is {VERSION}): upgrade")
    if version == 0:
        raise SessionError(f"{path} is not a session file")
    return db


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path)
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = full")
    return db
