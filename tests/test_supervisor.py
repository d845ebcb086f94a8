"""Signals, the deadline and guidance.md around the loop, in virtual time."""

import asyncio
import os
import signal

import pytest

from orchestrator.core import events as ev
from orchestrator.core.state import Decided
from orchestrator.session.store import Session, SessionError
from orchestrator.supervisor import GUIDANCE_CHARACTERS, SILENCE, supervise
from tests.fakes import FakeCrew, FakeLab, started
from tests.virtual import run_virtually, virtual_clock


@pytest.fixture(autouse=True)
def signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


class Stalled(FakeCrew):
    """Its reflector never answers."""

    async def reflect(self, state, step, decided):
        await asyncio.Event().wait()


def live(path, crew, sent=(), at=333.0, meanwhile=None, kind=Session):
    """One life of a session, which is sent the signals, or disturbed otherwise; what it said."""
    said = []

    async def go():
        session = kind(path / "s/session.db", virtual_clock, create=not (path / "s").exists())
        session.say = said.append
        session.write("", ev.Resumed() if session.records else started(limits=ev.SessionLimits(hours=0.3)))

        async def disturb():
            await asyncio.sleep(at)
            for number in sent:
                os.kill(os.getpid(), number)
            if meanwhile:
                await meanwhile(session, path / "guidance.md")

        disturbing = asyncio.ensure_future(disturb())
        try:
            async with asyncio.timeout(9_000):  # wait_for would start a task, in which Ctrl-C is told twice
                await supervise(session, crew, FakeLab(session), path / "guidance.md")
        finally:
            disturbing.cancel()
            session.close()
        return session

    return run_virtually(go()), said


def test_ctrl_c_does_not_wait_for_a_model_that_has_stalled(tmp_path):
    with pytest.raises(KeyboardInterrupt, match="a model was silent"):
        live(tmp_path, Stalled(), [signal.SIGINT])
    state = Session(tmp_path / "s/session.db", virtual_clock).state
    assert state.stopping == "you asked to stop"
    assert not state.running, "the current runs were finished"
    assert state.now < state.started_at + 400

    session, _ = live(tmp_path, FakeCrew())
    assert session.state.ended == "the 0.3 hours are over"
    assert not any(isinstance(stage, Decided) for stage in session.state.open.values())


async def interrupt(session, path):
    os.kill(os.getpid(), signal.SIGINT)


async def interrupt_when_stopping(session, path):
    await session.append("", ev.StopAsked(reason="the dollars are spent"))
    await interrupt(session, path)


@pytest.mark.parametrize(
    ("meanwhile", "reason"), [(interrupt, "you asked to stop"), (interrupt_when_stopping, "the dollars are spent")]
)
def test_one_ctrl_c_waits_for_runs_and_a_model_that_answers(tmp_path, meanwhile, reason):
    session, said = live(tmp_path, FakeCrew(), meanwhile=meanwhile)
    assert session.state.ended == reason
    assert len(said) == 1


@pytest.mark.parametrize("sent", [[signal.SIGTERM], [signal.SIGINT] * 2, [signal.SIGINT, signal.SIGTERM] * 9])
def test_a_storm_of_signals_stops_at_once_and_nothing_is_lost(tmp_path, sent):
    with pytest.raises(KeyboardInterrupt):
        live(tmp_path, FakeCrew(), sent)
    session, _ = live(tmp_path, FakeCrew())
    assert session.state.ended == "the 0.3 hours are over"


class Unwritable(Session):
    """Another program holds its file at the deadline."""

    async def append(self, task_id, *events, last=False):
        if any(isinstance(event, ev.StopAsked) for event in events):
            raise SessionError("the file cannot be written")
        await super().append(task_id, *events, last=last)


async def pause(session, path):
    await session.append("", ev.Paused(reason="you asked for a pause"))


def test_a_paused_night_whose_deadline_cannot_be_recorded_ends_with_the_error(tmp_path):
    with pytest.raises(SessionError, match="cannot be written"):
        live(tmp_path, FakeCrew(), meanwhile=pause, kind=Unwritable)


async def write_often(session, path, seconds=5.0):
    for number in range(8_000):
        path.write_text(str(number))
        await asyncio.sleep(seconds)


async def write_at_once(session, path):
    await write_often(session, path, 0.7)


def list_guidance(session):
    return [record.event.text for record in session.records if isinstance(record.event, ev.GuidanceChanged)]


def test_a_guidance_that_is_written_again_and_again_is_no_sign_of_life(tmp_path):
    session, _ = live(tmp_path, Stalled(), meanwhile=write_often)
    assert len(list_guidance(session)) > 9
    assert session.state.now <= session.state.deadline + SILENCE + 30


def test_a_guidance_that_never_settles_is_not_recorded(tmp_path):
    session, _ = live(tmp_path, FakeCrew(), meanwhile=write_at_once)
    assert list_guidance(session) == []


async def replace_slowly(session, path):
    await asyncio.sleep(0.5 - session.clock() % 1)
    path.unlink()
    await asyncio.sleep(1)
    path.symlink_to(path)  # cannot be read, as on a file server that is away
    await asyncio.sleep(5)
    path.unlink()
    path.write_text("be bold" + "!" * GUIDANCE_CHARACTERS)
    await asyncio.sleep(5)
    path.unlink()


def test_a_guidance_is_gone_only_where_it_is_not_there_twice(tmp_path):
    (tmp_path / "guidance.md").write_text("be careful")
    session, said = live(tmp_path, FakeCrew(), meanwhile=replace_slowly)
    careful, bold, gone = list_guidance(session)
    assert (careful, len(bold), bold[:8], gone) == ("be careful", GUIDANCE_CHARACTERS, "be bold!", "")
    assert "8,000 characters of guidance.md are read, and no more" in said
