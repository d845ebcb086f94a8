"""Keep a session in one SQLite file: an append-only list of records, and the texts that they refer to by digest.

This is the only writer of events. Every append is on disk before anything acts on it.
"""

import asyncio
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

from pydantic import ValidationError

from orchestrator.core.events import VERSION, Digest, Event, Record, Started, parse_event
from orchestrator.core.source import compute_digest
from orchestrator.core.text import make_printable, shorten
from orchestrator.ports import Log
from prepare.command import UserError
from prepare.files import open_replacement

SCHEMA = """
create table events (
    seq integer primary key, at real not null, lane text not null, kind text not null, body text not null
);
create table texts (digest text primary key, body blob not null);
"""
BUSY_SECONDS = 60.0  # to wait for another program that holds the file's lock; a night waits until its end
RETRY = 0.5  # seconds between two attempts to write during a night, and of each
MAX_BYTES = 64 << 20  # largest size of one event or text, decompressed; anything larger is treated as damage
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RecursionError)
"""Exceptions that parsing or folding a damaged event may raise."""
NEWER = ("extra_forbidden", "union_tag_invalid")  # pydantic's errors at a field or a kind of event that we lack

_BEGAN = time.time() - time.monotonic()


class SessionError(UserError):
    """A session file cannot be used; the message says why in one line."""


def read_clock() -> float:
    """Return the seconds since the epoch: by the wall clock when this process began, and by a monotonic one since."""
    return _BEGAN + time.monotonic()


class Session(Log):
    """The log of one session, open on its file."""

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = read_clock,
        *,
        create: bool = False,
        read_only: bool = False,
        salvage: bool = False,
        known: Log | None = None,
    ) -> None:
        """Open or create the file, and fold it, or all before the first damage to `salvage` it. Raises SessionError.

        `known` is what was read of the same file before: only what follows is read.
        """
        super().__init__()
        self.path, self.salvage, self.turn = path, salvage, asyncio.Lock()
        self.packed: dict[Digest, bytes] = {}  # compressed texts of a file that is written: it may get damaged
        self.marks: list[tuple[int, int, int]] = []
        self.say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)
        """Tells the user why the night waits, or what is lost."""
        try:
            self.db = _create(path) if create else _open(path, read_only)
            last = known.records[-1] if known else None
            same = "select at from events where seq = ?"  # two forks have their beginning in common
            if known and last and self.db.execute(same, (last.seq,)).fetchone() == (last.at,):
                self.records, self.state = list(known.records), known.state
            if not create:
                self._load()
            if not read_only:
                self.packed = dict(self.db.execute("select digest, body from texts"))
                self.marks = self._read_marks()
        except (sqlite3.Error, UnicodeDecodeError, OSError) as error:
            raise SessionError(f"{path} cannot be used as a session: {error}") from error
        behind = max(0.0, self.state.now - clock())  # the wall clock was set back since the last life
        self.clock = lambda: clock() + behind

    async def append(self, task_id: str, *events: Event, last: bool = False) -> None:
        """Write the events, in the order of the calls, as soon as the file can be written. Raises SessionError."""
        async with self.turn:
            deadline, said, renewed = max(self.state.deadline, self.clock() + BUSY_SECONDS), False, False
            self.db.execute(f"pragma busy_timeout = {1000 * RETRY:.0f}")
            while True:
                try:
                    return self.write(task_id, *events, last=last)
                except SessionError as error:
                    cause = error.__cause__
                    if isinstance(cause, sqlite3.IntegrityError | sqlite3.DataError) or self.clock() > deadline:
                        raise
                    if isinstance(cause, sqlite3.DatabaseError) and not isinstance(cause, sqlite3.OperationalError):
                        if renewed:
                            raise
                        self.marks[:1], renewed = [(-1, 0, 0)], True  # damaged, though not since: write the file anew
                    if not said:
                        self.say(f"{self.path} cannot be written ({cause}): make it so; training goes on")
                    said = True
                await asyncio.sleep(RETRY)

    def write(self, task_id: str, *events: Event, last: bool = False) -> None:
        """Write the events and what was put in one transaction, fold them, call the watchers. Raises SessionError."""
        at, numbered = max(self.clock(), self.state.now), enumerate(events, len(self.records))
        self._save([Record(seq=seq, at=at, task_id=task_id, event=event) for seq, event in numbered])
        self.finished |= {task_id} if last else set()
        self.tell()

    def get(self, name: Digest) -> str:
        """Return the text of that digest. Raises SessionError."""
        with suppress(*(SessionError,) if self.salvage else ()):
            return self.texts[name] if name in self.texts else self._read_text(name)
        return "(damaged)"

    def fork(self, path: Path, at: int) -> "Session":
        """Fork into a new file that shares the first `at` records, and all texts; return it. Raises SessionError."""
        fork = Session(path, self.clock, create=True)
        try:
            fork._save(self.records[:at], self._list_texts())
        except (ValueError, sqlite3.Error) as error:  # a surrogate, or levels that JSON has and pydantic does not write
            raise SessionError(f"{self.path} is damaged: {error}") from error
        return fork

    def close(self) -> None:
        """Close the file; a running session's is left whole, whatever another program has done to it."""
        with suppress(sqlite3.Error, OSError):
            self._repair()
            if self.marks:  # while another program reads the file, SQLite would leave what is new beside it
                self.db.execute("pragma wal_checkpoint(truncate)")
        self.db.close()

    def _list_texts(self) -> Mapping[Digest, bytes]:
        """Return the compressed texts; to salvage them, those that can be read. Raises SQLite's errors."""
        every, found = "select digest, body from texts", dict[Digest, bytes]()
        try:
            return dict(self.db.execute(every))
        except sqlite3.Error:
            if not self.salvage:
                raise
        with suppress(sqlite3.Error):
            for name in self.db.execute("select digest from texts order by digest"):  # the index lies on other pages
                with suppress(sqlite3.Error):
                    found |= self.db.execute(f"{every} where digest = ?", name)
        return found

    def _read_text(self, name: Digest) -> str:
        """Return a text that is written already. Raises SessionError."""
        stream, query = zlib.decompressobj(), "select body from texts where digest = ?"
        try:
            row = (self.packed[name],) if name in self.packed else self.db.execute(query, (name,)).fetchone()
            if row is None:
                raise SessionError(f"{self.path} is damaged: the text {name} is missing")
            text = stream.decompress(row[0], MAX_BYTES).decode()
        except (sqlite3.Error, zlib.error, TypeError, UnicodeDecodeError) as error:
            raise SessionError(f"the text {name} is damaged: {error}") from error
        if not stream.eof:
            raise SessionError(f"the text {name} is damaged: cut off, or larger than {MAX_BYTES >> 20} MiB")
        if compute_digest(text) != name:
            raise SessionError(f"the text {name} is damaged: it does not hash to its name")
        return text

    def _save(self, records: list[Record], texts: Mapping[Digest, bytes] | None = None) -> None:
        """Write records, texts, and those that were put, and fold the records. Raises SessionError."""
        put = {**(texts or {}), **{name: zlib.compress(text.encode(), 9) for name, text in self.texts.items()}}
        try:
            self._repair()
            _write_rows(self.db, records, put)
        except (sqlite3.Error, OSError) as error:
            safe = "; earlier events are safe: resume" * isinstance(error, sqlite3.OperationalError | OSError)
            raise SessionError(f"{self.path} cannot be written: {error}{safe}") from error
        with suppress(OSError):  # the events are there; the next write looks closer
            self._mark()
        self.packed |= put
        self.texts.clear()
        self.fold(*records)

    def _read_marks(self) -> list[tuple[int, int, int]]:
        """Return inode, size and time of change of the file, of its -wal, and of its -shm, which is always changing."""
        paths = [self.path.with_name(self.path.name + end) for end in ("", "-wal", "-shm")]
        found = [path.stat() if path.exists() else None for path in paths]
        marks = [(file.st_ino, file.st_size, file.st_mtime_ns) if file else (0, 0, 0) for file in found]
        return [*marks[:2], (*marks[2][:2], 0)]

    def _repair(self) -> None:
        """Write the session anew if another program has deleted, replaced or damaged its file. Raises SQLite's errors.

        What was measured is in memory, so nothing is lost. A -shm that was cut off is lengthened first: SQLite has it
        mapped, and would be killed where the file has no page.
        """
        if not self.marks or ((marks := self._read_marks()) == self.marks and not self._is_other(marks)):
            return
        if marks[2][0] == self.marks[2][0] and marks[2][1] < self.marks[2][1]:
            os.truncate(f"{self.path}-shm", self.marks[2][1])
        if self._is_other(marks) or not self._is_whole():
            self._rewrite()
        self._mark()

    def _mark(self) -> None:
        """Remember how the files are, unless they are not ours any more, which the next write will see."""
        marks = self._read_marks()
        self.marks = self.marks if self._is_other(marks) else marks

    def _is_other(self, marks: Sequence[tuple[int, int, int]]) -> bool:
        """Return whether a file was deleted or replaced; one may go at any moment, also between a write and a look."""
        changed = (old[0] not in {0, new[0]} for old, new in zip(self.marks or marks, marks, strict=True))
        return not marks[0][0] or any(changed)

    def _is_whole(self) -> bool:
        """Return whether the file can be read and has all that was written to it."""
        counts = "select (select count(*) from events), (select count(*) from texts)"
        try:
            with closing(sqlite3.connect(self.path, timeout=RETRY)) as db:
                db.execute("pragma wal_checkpoint(truncate)")  # pages that are damaged may lie there as well
                sound = db.execute("pragma quick_check").fetchall() == [("ok",)]
                events, texts = db.execute(counts).fetchone()
        except (sqlite3.DatabaseError, UnicodeDecodeError):
            return False
        return sound and events >= len(self.records) and texts >= len(self.packed)

    def _rewrite(self) -> None:
        """Write a new file, put it in its place, and open it. Raises SQLite's errors and OSError."""
        with open_replacement(self.path) as part, closing(_create(part)) as copy:
            copy.execute("pragma journal_mode = delete")  # all goes into the one file, or is an error
            _write_rows(copy, self.records, self.packed)
            self.marks = [(part.stat().st_ino, 0, 0), (0, 0, 0), (0, 0, 0)]
            self.db.close()
            for end in ("-wal", "-shm"):  # before the new file is there, which they do not belong to
                self.path.with_name(self.path.name + end).unlink(missing_ok=True)
        self.db = _connect(self.path)
        self.say(f"{self.path} was deleted, replaced or damaged by another program: the session is written anew")

    def _load(self) -> None:
        """Fold the records of the file. Raises SessionError for the first that is damaged, or if there is none."""
        seq, rows = 0, "select seq, at, lane, body from events where seq >= ? order by seq"
        try:
            for seq, at, task_id, body in self.db.execute(rows, (len(self.records),)):
                if seq != len(self.records):
                    raise ValueError("the one before it is missing")
                self.fold(Record(seq=seq, at=at, task_id=task_id, event=parse_event(body)))
        except (*DAMAGE, sqlite3.Error) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else {"type": "", "msg": f"{error}"}
            newer = "was written by a newer Nightshift, or " * (first["type"] in NEWER)
            damage = make_printable(f"{self.path} {newer}is damaged: event {seq}: {shorten(first['msg'], 100)}")
            if not self.salvage or not self.state.started:
                raise SessionError(damage) from error
            self.say(f"{damage}; what follows is left out")
        if not self.records:
            raise SessionError(f"{self.path} has no events: the session never began; delete {self.path.parent}")
        name = self.state.started.name if self.state.started else ""
        if not re.fullmatch(r"\w[\w.-]*", name):  # part of paths, of lines, and of commands to paste
            raise SessionError(f"{self.path} is damaged: {name!r} cannot be the name of a session")


def read_start(path: Path) -> Started:
    """Return what a session began with, and read nothing else. Raises SessionError, OSError, and those of DAMAGE."""
    try:
        with closing(_open(path, read_only=True)) as db:
            event = parse_event(*db.execute("select body from events where seq = 0").fetchone())
    except sqlite3.Error as error:
        raise SessionError(f"{path} cannot be used as a session: {error}") from error
    assert isinstance(event, Started), "a session begins with it"
    return event


def _write_rows(db: sqlite3.Connection, records: Iterable[Record], texts: Mapping[Digest, bytes]) -> None:
    """Write records and compressed texts in one transaction."""
    rows = [(r.seq, r.at, r.task_id, r.event.kind, r.event.model_dump_json()) for r in records]
    over = "on conflict (digest) do update set body = excluded.body where body is not excluded.body"  # it was damaged
    with db:
        db.executemany(f"insert into texts values (?, ?) {over}", texts.items())
        db.executemany("insert into events values (?, ?, ?, ?, ?)", rows)


def _create(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = _connect(path)
    db.executescript(SCHEMA)
    db.execute(f"pragma user_version = {VERSION}")
    return db


def _open(path: Path, read_only: bool) -> sqlite3.Connection:
    """Check that a file is a session, and open it. Raises SessionError, OSError."""
    if not path.is_file():
        raise SessionError(f"{path} does not exist")
    with path.open("rb") as file:
        if not file.read(16).startswith(b"SQLite format 3"):
            raise SessionError(f"{path} is not a session file")
    db = _connect_to_read(path) if read_only else _connect(path)
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BYTES)
    (version,) = db.execute("pragma user_version").fetchone()
    if version > VERSION:
        raise SessionError(f"{path} was written by a newer Nightshift (format {version}, ours is {VERSION}): upgrade")
    tables = db.execute("select sql from sqlite_master where tbl_name in ('events', 'texts') and type != 'index'")
    if version <= 0 or {str(sql).lower() for (sql,) in tables} != set(SCHEMA.strip().rstrip(";").split(";\n")):
        raise SessionError(f"{path} is not a session file")  # a view or a trigger could run foreign SQL
    return db


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_SECONDS)
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BYTES)  # nothing is written that could not be read again
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = full")
    return db


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """Connect without writing anything, not even SQLite's files beside it: the folder may be read-only."""
    wal, index = (path.with_name(path.name + end) for end in ("-wal", "-shm"))
    uri = path.absolute().as_uri()
    if not (wal.is_file() and wal.stat().st_size):
        return sqlite3.connect(f"{uri}?immutable=1", uri=True)
    if index.exists():  # another process may be writing
        return sqlite3.connect(f"{uri}?mode=ro", uri=True, timeout=BUSY_SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copy(path, folder))
        shutil.copy(wal, folder)
        memory = sqlite3.connect(":memory:")
        with closing(sqlite3.connect(copy)) as db:
            db.backup(memory)
    return memory
