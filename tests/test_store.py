"""The session file among other programs: locked, full, deleted or replaced while a night goes on; and the clock."""

import asyncio
import shutil
import sqlite3
from contextlib import closing

import pytest

from orchestrator.core import events as ev
from orchestrator.session.store import Session, SessionError
from tests.fakes import started
from tests.virtual import run_virtually, virtual_clock


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


@pytest.mark.parametrize(
    "harm", [remove_folder, remove_folder_of_sessions, remove_wal, replace_file, put_an_old_copy_in_its_place]
)
async def test_a_session_that_is_deleted_under_us_is_said_and_written_anew(session, harm):
    name = session.put("a text")
    await session.append("", ev.GuidanceChanged(text="before"))
    for _ in range(2):
        harm(session.path)
        await session.append("", ev.GuidanceChanged(text="after"))

    assert guidance(session) == ["before", "after", "after"]
    assert len(session.said) == 2
    assert "was deleted or replaced" in session.said[0]
    assert session.get(name) == "a text"
    session.close()
    assert [path.name for path in session.path.parent.iterdir() if path.name != "copy"] == ["session.db"]
    assert Session(session.path).get(name) == "a text"


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
