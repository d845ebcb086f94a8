"""The session file among other programs: locked, full, deleted or replaced while a night goes on; and the clock."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import time
import zlib
from contextlib import closing

import pytest

from orchestrator.core import events as ev
from orchestrator.core.source import compute_digest
from orchestrator.session.store import MAX_BYTES, SCHEMA, Session, SessionError
from tests.fakes import started
from tests.virtual import run_virtually, virtual_clock
from tests.workplace import environment

FULL_WHILE_WRITTEN_ANEW = """
import asyncio, os, resource, signal
from pathlib import Path
from orchestrator.core.events import GuidanceChanged
from orchestrator.session.store import Session

path = Path("{path}")
session = Session(path)
size = path.stat().st_size
with path.open("r+b") as file:
    file.seek(size // 2)
    file.write(os.urandom(9000))

def make_room(text):
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

session.say = make_room
resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
asyncio.run(session.append("", GuidanceChanged(text="x")))
session.close()
"""


@pytest.fixture
def session(tmp_path):
    session = Session(tmp_path / "s/night/session.db", create=True)
    session.said = []
    session.say = session.said.append
    session.write("", started())
    yield session
    session.close()


def guidance(session) -> list[str]:
    with closing(Session(session.path, read_only=True)) as written:
        return [record.event.text for record in written.records[1:]]


async def test_what_could_not_be_read_again_is_not_written(session):
    with pytest.raises(SessionError, match="too big"):
        await session.append("", ev.GuidanceChanged(text="x" * MAX_BYTES))

    await session.append("", ev.GuidanceChanged(text="short"))
    assert guidance(session) == ["short"]
    assert not session.said


async def test_a_lock_of_another_program_is_waited_for_while_everything_else_goes_on(session):
    with closing(sqlite3.connect(session.path, isolation_level=None)) as other:
        other.execute("begin immediate")
        texts = [str(n) for n in range(5)]
        waiting = [asyncio.ensure_future(session.append("", ev.GuidanceChanged(text=text))) for text in texts]
        while not session.said:
            await asyncio.sleep(0.01)
        assert not any(task.done() for task in waiting)
        other.execute("rollback")
    await asyncio.gather(*waiting)

    assert guidance(session) == texts, "in the order of the calls"
    assert len(session.said) == 1
    assert "database is locked" in session.said[0]


def test_its_file_alone_holds_all_of_it_though_another_program_reads_it(session):
    session.write("", ev.GuidanceChanged(text="try muon"))
    with closing(sqlite3.connect(session.path)) as reader:
        reader.execute("select * from events").fetchall()
        session.close()
        alone = shutil.copy(session.path, session.path.with_name("alone.db"))
        with closing(Session(session.path.with_name(alone.name), read_only=True)) as read:
            assert [record.event.text for record in read.records[1:]] == ["try muon"]


@pytest.mark.parametrize("body", ['"\\ud800"', "[" * 260 + "]" * 260])
def test_what_json_has_and_cannot_be_written_again_is_told_when_it_is_forked(session, body, tmp_path):
    talk = {"agent": "researcher", "experiment": 1, "request": "r", "tokens": ev.Tokens(), "usd": None}
    session.write("", ev.ModelReplied(message={"x": "here"}, **talk))
    session.db.execute("update events set body = replace(body, '\"here\"', ?) where seq = 1", (body,))
    session.db.commit()
    session.close()
    with closing(Session(session.path, read_only=True)) as old, pytest.raises(SessionError, match="is damaged"):
        old.fork(tmp_path / "fork/session.db", 2)


def test_what_was_read_before_is_not_taken_for_a_part_of_another_fork(session):
    for n in range(9):
        session.write("", ev.GuidanceChanged(text=str(n)))
    longer = session.fork(session.path.with_name("longer.db"), 8)
    with closing(longer), closing(session.fork(session.path.with_name("shorter.db"), 4)) as shorter:
        shorter.write("", ev.GuidanceChanged(text="another"))
        with closing(Session(shorter.path, read_only=True, known=longer)) as read:
            assert read.records == shorter.records
        with closing(Session(session.path, read_only=True, known=longer)) as read:
            assert read.records == session.records


def test_a_fork_reads_its_own_texts_where_its_parents_file_has_others_of_their_names(session):
    session.db.execute("insert into texts values (?, ?)", (compute_digest("mine"), zlib.compress(b"theirs")))
    session.db.commit()
    with closing(session.fork(session.path.with_name("fork.db"), 1)) as fork:
        fork.put("mine")
        fork.write("", ev.GuidanceChanged(text="x"))
    with closing(Session(fork.path, read_only=True)) as read:
        assert read.get(compute_digest("mine")) == "mine"
    with pytest.raises(SessionError, match="does not hash to its name"):
        session.get(compute_digest("mine"))


async def test_what_cannot_be_written_anew_replaces_nothing(session):
    """The disk has room for a part of it only; then for all."""
    for n in range(40):
        session.write("", ev.GuidanceChanged(text=f"{n} " * 3_000))
    code = FULL_WHILE_WRITTEN_ANEW.format(path=str(session.path))
    session.close()
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [text.split()[0] for text in guidance(session)] == [*map(str, range(40)), "x"]
    assert {path.name for path in session.path.parent.iterdir()} <= {f"session.db{end}" for end in ("", "-wal", "-shm")}


async def test_a_full_disk_is_waited_for(session):
    (pages,) = session.db.execute("pragma page_count").fetchone()
    session.db.execute(f"pragma max_page_count = {pages}")
    name = session.put("".join(map(str, range(9_999))))
    waiting = asyncio.ensure_future(session.append("", ev.GuidanceChanged(text="x" * 9_999)))
    while not session.said:
        await asyncio.sleep(0.01)
    assert "disk is full" in session.said[0]
    session.db.execute("pragma max_page_count = 1000000")
    await waiting

    assert guidance(session) == ["x" * 9_999]
    assert session.get(name).endswith("9998")


def test_a_disk_that_stays_full_ends_the_night_in_a_line(tmp_path):
    async def go():
        session = Session(tmp_path / "s/session.db", virtual_clock, create=True)
        session.write("", started(limits=ev.SessionLimits(hours=0.02)))
        session.db.execute("pragma max_page_count = 1")  # it takes the pages that are there, and no more
        await session.append("", ev.GuidanceChanged(text="x" * 9_999))

    with pytest.raises(SessionError, match="full; earlier events are safe: resume"):
        run_virtually(go())


def remove_folder(path):
    shutil.rmtree(path.parent)


def remove_folder_of_sessions(path):
    shutil.rmtree(path.parent.parent)


def remove_wal(path):
    path.with_name("session.db-wal").unlink()


def replace_file(path):
    path.unlink()
    path.write_bytes(b"something else")


def put_an_old_copy_in_its_place(path):
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    copy.replace(path)


def truncate_file(path):
    os.truncate(path, 0)


def cut_file(path):
    os.truncate(path, 5000)


def truncate_wal(path):
    os.truncate(f"{path}-wal", 0)


def truncate_all(path):
    for end in ("", "-wal", "-shm"):
        os.truncate(f"{path}{end}", 0)


def overwrite_in_place(path):
    with path.open("r+b") as file:
        file.write(b"something else" * 1000)


def overwrite_wal(path):
    with path.with_name("session.db-wal").open("r+b") as file:
        file.write(b"\0" * 9000)


def copy_an_old_one_over_it(path):
    path.with_name("copy").unlink(missing_ok=True)
    with closing(sqlite3.connect(path.with_name("copy"))) as old:
        old.executescript(SCHEMA + "pragma user_version = 1")
    path.write_bytes(path.with_name("copy").read_bytes())
    os.truncate(f"{path}-wal", 0)


def delete_rows(path):
    with closing(sqlite3.connect(path)) as other:
        other.executescript("delete from texts; delete from events where seq > 0")


def drop_table(path):
    with closing(sqlite3.connect(path)) as other:
        other.executescript("drop table texts; vacuum; pragma wal_checkpoint(truncate)")


HARMS = [
    *(remove_folder, remove_folder_of_sessions, remove_wal, replace_file, put_an_old_copy_in_its_place),
    *(truncate_file, cut_file, truncate_wal, truncate_all, overwrite_in_place, overwrite_wal),
    *(copy_an_old_one_over_it, delete_rows, drop_table),
]
COVERED = {cut_file, truncate_wal, overwrite_in_place, overwrite_wal}
"""Harms that may hit only what lies in the other file as well."""


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("harm", HARMS)
async def test_a_session_that_is_deleted_or_damaged_under_us_is_said_and_written_anew(session, harm, checkpointed):
    name = session.put("a text")
    await session.append("", ev.GuidanceChanged(text="before"))
    for _ in range(2):
        if checkpointed:
            session.db.execute("pragma wal_checkpoint(truncate)")
            session.write("")
        harm(session.path)
        await session.append("", ev.GuidanceChanged(text="after"))

    assert guidance(session) == ["before", "after", "after"]
    assert len(session.said) == 2 or harm in COVERED
    assert all("was deleted, replaced or damaged" in said for said in session.said)
    assert session.get(name) == "a text"
    session.close()
    assert [path.name for path in session.path.parent.iterdir() if path.name != "copy"] == ["session.db"]
    assert Session(session.path).get(name) == "a text"


class Raced(Session):
    """A session whose files another program harms in the moment before they are looked at for the n-th time."""

    looks, harms = 0, ()

    def _read_marks(self):
        self.looks += 1
        for harm in [harm for look, harm in self.harms if look == self.looks]:
            harm(self.path)
        return super()._read_marks()


@pytest.mark.parametrize("looks", [(2,), (1, 2)])
@pytest.mark.parametrize("harm", [remove_folder, remove_wal, replace_file, put_an_old_copy_in_its_place])
async def test_a_session_that_is_deleted_between_a_write_and_a_look_is_written_anew(tmp_path, harm, looks):
    session, said = Raced(tmp_path / "s" / "session.db", time.time, create=True), []
    session.say = said.append
    session.write("", started(), ev.GuidanceChanged(text="before"))
    session.looks, session.harms = 0, [(look, harm) for look in looks]
    for text in ("during", "after"):
        await session.append("", ev.GuidanceChanged(text=text))
    assert said
    session.close()
    assert guidance(session) == ["before", "during", "after"]


async def test_a_session_that_was_damaged_before_it_was_opened_is_written_anew(session):
    name = session.put("a text")
    await session.append("", ev.GuidanceChanged(text="before"))
    query = "select rootpage from sqlite_master where name = 'sqlite_autoindex_texts_1'"
    (page,), (size,) = (session.db.execute(words).fetchone() for words in (query, "pragma page_size"))
    session.close()
    with session.path.open("r+b") as file:  # no part of what is read to open it
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)

    again = Session(session.path)
    again.say = session.said.append
    again.put("another text")
    await asyncio.wait_for(again.append("", ev.GuidanceChanged(text="after")), 150)
    again.close()

    assert ["cannot be written" in said for said in session.said] == [True, False]
    assert guidance(Session(session.path)) == ["before", "after"]
    assert Session(session.path).get(name) == "a text"


def empty_shm(path):
    os.truncate(f"{path}-shm", 0)


def zero_shm(path):
    with path.with_name("session.db-shm").open("r+b") as file:
        file.write(b"\0" * 32768)


def vacuum(path):
    with closing(sqlite3.connect(path)) as other:
        other.executescript("create index if not exists mine on events (kind); vacuum; pragma wal_checkpoint(truncate)")


def read_all(path):
    with closing(sqlite3.connect(path)) as other:
        other.execute("select * from events").fetchall()


@pytest.mark.parametrize("use", [empty_shm, zero_shm, vacuum, read_all])
async def test_a_session_that_other_programs_use_is_written_to_as_before(session, use):
    session.put("a text")
    await session.append("", ev.GuidanceChanged(text="before"))
    for _ in range(3):
        use(session.path)
        await session.append("", ev.GuidanceChanged(text="after"))
    use(session.path)
    session.close()

    assert guidance(session) == ["before", *["after"] * 3]
    assert not session.said


async def test_what_was_done_to_a_session_after_its_last_event_is_mended_at_its_end(session):
    session.write("", ev.GuidanceChanged(text="last"))
    os.truncate(session.path, 0)
    os.truncate(f"{session.path}-wal", 0)
    session.close()
    assert guidance(session) == ["last"]


async def test_a_clock_that_was_set_back_between_two_lives_loses_no_time(tmp_path):
    now = [1000.0]
    path = tmp_path / "s/session.db"
    first = Session(path, lambda: now[0], create=True)
    first.write("", started())
    now[0] += 1800
    first.write("", ev.GuidanceChanged(text="half of the hour"))
    first.close()

    now[0] -= 7200
    second = Session(path, lambda: now[0])
    second.write("", ev.Resumed())
    now[0] += 900
    second.write("", ev.GuidanceChanged(text="three quarters"))

    assert second.state.hours == pytest.approx(0.75)
    assert second.state.deadline - second.clock() == pytest.approx(900)
