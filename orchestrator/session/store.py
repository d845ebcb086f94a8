"""Keep a session in one SQLite file: an append-only list of records, and the texts that they refer to by digest.

This is the only writer of events. Every append is on disk before anything acts on it.
"""

import shutil
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, contextmanager
from pathlib import Path

from pydantic import ValidationError

from orchestrator.core.events import VERSION, Digest, Event, Record, parse_event
from orchestrator.core.source import compute_digest
from orchestrator.core.state import State, apply
from prepare.errors import UserError

SCHEMA = """
create table events (
    seq integer primary key, at real not null, lane text not null, kind text not null, body text not null
);
create table texts (digest text primary key, body blob not null);
"""
BUSY_SECONDS = 60.0
"""Seconds to wait for another program that holds the file's lock."""
MAX_BYTES = 64 << 20
"""Largest size of one event or text, decompressed; anything larger is treated as damage."""
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RecursionError)
"""Exceptions that parsing or folding a damaged event may raise."""


class SessionError(UserError):
    """A session file cannot be used; the message says why in one line."""


class EventLog:
    """An append-only list of records in memory, and the state folded from it."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.state = State()
        self.watchers: list[Callable[[], None]] = []
        self.texts: dict[Digest, str] = {}
        self.finished: set[str] = set()
        """Tasks that have appended their last event since the session was last started or resumed."""

    def subscribe(self, watcher: Callable[[], None]) -> None:
        """Call the watcher after every append."""
        self.watchers.append(watcher)

    def put(self, text: str) -> Digest:
        """Store a text, once, and return its name."""
        name = compute_digest(text)
        self.texts[name] = text
        return name

    def get(self, name: Digest) -> str:
        """Return the text of that digest. Raises KeyError."""
        return self.texts[name]

    def fold(self, *records: Record) -> None:
        """Fold records that are already stored. Raises ValueError if an event cannot follow the state."""
        for record in records:
            self.state = apply(self.state, record)
            self.records.append(record)

    def tell(self) -> None:
        """Call the watchers."""
        for watcher in self.watchers:
            watcher()


class Session(EventLog):
    """The log of one session, open on its file."""

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.time,
        *,
        create: bool = False,
        read_only: bool = False,
    ) -> None:
        """Open or create the file, and fold it; `clock` gives seconds since the epoch. Raises SessionError."""
        super().__init__()
        self.path, self.clock = path, clock
        try:
            self.db = _create(path) if create else _open(path, read_only)
            self._load()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise SessionError(f"{path} cannot be used as a session: {error}") from error
        except OSError as error:
            raise SessionError(f"{path} cannot be opened: {error.strerror}") from error

    async def append(self, task_id: str, *events: Event, last: bool = False) -> None:
        """Write the events, as `write` does; asynchronous because a replay waits for its turn here."""
        self.finished |= {task_id} if last else set()
        self.write(task_id, *events)

    def write(self, task_id: str, *events: Event) -> None:
        """Write the events in one transaction, fold them, call the watchers. Raises SessionError."""
        at, numbered = max(self.clock(), self.state.now), enumerate(events, len(self.records))
        self._write_records([Record(seq=seq, at=at, task_id=task_id, event=event) for seq, event in numbered])
        self.tell()

    def put(self, text: str) -> Digest:
        """Store a text, once, and return its name. Raises SessionError."""
        name = compute_digest(text)
        self._write_rows("insert or ignore into texts values (?, ?)", [(name, zlib.compress(text.encode(), 9))])
        return name

    def get(self, name: Digest) -> str:
        """Return the text of that digest. Raises KeyError, SessionError."""
        return _read_text(self.db, name)

    @contextmanager
    def read_texts(self) -> Generator[Callable[[Digest], str]]:
        """Give a `get` with a connection of its own, for another thread. Raises sqlite3.Error."""
        with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            yield lambda name: _read_text(db, name)

    def fork(self, path: Path, at: int) -> "Session":
        """Fork into a new file that shares the first `at` records, and all texts; return it. Raises SessionError."""
        fork = Session(path, self.clock, create=True)
        fork._write_records(self.records[:at])
        fork._write_rows("insert into texts values (?, ?)", self.db.execute("select digest, body from texts"))
        return fork

    def close(self) -> None:
        self.db.close()

    def _write_records(self, records: list[Record]) -> None:
        rows = [(r.seq, r.at, r.task_id, r.event.kind, r.event.model_dump_json()) for r in records]
        self._write_rows("insert into events values (?, ?, ?, ?, ?)", rows)
        self.fold(*records)

    def _write_rows(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        try:
            with self.db:
                self.db.executemany(statement, rows)
        except sqlite3.Error as error:
            raise SessionError(f"{self.path} cannot be written: {error}; earlier events are safe: resume") from error

    def _load(self) -> None:
        """Fold the records of the file. Raises SessionError for the first that is damaged."""
        for seq, at, task_id, body in self.db.execute("select seq, at, lane, body from events order by seq"):
            try:
                if seq != len(self.records):
                    raise ValueError("the one before it is missing")
                self.fold(Record(seq=seq, at=at, task_id=task_id, event=parse_event(body)))
            except DAMAGE as error:
                reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
                raise SessionError(f"{self.path} is damaged: event {seq}: {reason}") from error
        name = self.state.session.name if self.state.started else "none"
        if name in {"", ".."} or name != Path(name).name:  # it becomes part of paths, and may be a stranger's
            raise SessionError(f"{self.path} is damaged: {name!r} cannot be the name of a session")


def _read_text(db: sqlite3.Connection, name: Digest) -> str:
    """Return the text of that digest. Raises KeyError, SessionError."""
    stream = zlib.decompressobj()
    try:
        row = db.execute("select body from texts where digest = ?", (name,)).fetchone()
        if row is None:
            raise KeyError(name)
        text = stream.decompress(row[0], MAX_BYTES).decode()
    except (sqlite3.Error, zlib.error, TypeError, UnicodeDecodeError) as error:
        raise SessionError(f"the text {name} is damaged: {error}") from error
    if not stream.eof:
        raise SessionError(f"the text {name} is damaged: cut off, or larger than {MAX_BYTES >> 20} MiB")
    return text


def _create(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True)
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
    tables = db.execute("select sql from sqlite_master where tbl_name in ('events', 'texts') and sql is not null")
    if version <= 0 or {sql.lower() for (sql,) in tables} != set(SCHEMA.strip().rstrip(";").split(";\n")):
        raise SessionError(f"{path} is not a session file")  # a view or a trigger could run foreign SQL
    return db


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_SECONDS)
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
