"""Signals, the deadline and guidance.md around the loop, in virtual time."""

import asyncio
import os
import signal

import pytest

from orchestrator.core import events as ev
from orchestrator.core.state import Decided
from orchestrator.session.store import Session
from orchestrator.supervisor import supervise
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


def live(path, crew, sent=(), at=333.0):
    """One life of a session, which is sent the signals; what it said."""
    said = []

    async def go():
        session = Session(path / "s/session.db", virtual_clock, create=not (path / "s").exists())
        session.say = said.append
        session.write("", ev.Resumed() if session.records else started(limits=ev.SessionLimits(hours=0.3)))

        async def disturb():
            await asyncio.sleep(at)
            for number in sent:
                os.kill(os.getpid(), number)

        disturbing = asyncio.ensure_future(disturb())
        try:
            await supervise(session, crew, FakeLab(session), path / "guidance.md")
        finally:
            disturbing.cancel()
            session.close()
        return session

    return run_virtually(go()), said


def test_ctrl_c_does_not_wait_for_a_model_that_has_stalled(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        live(tmp_path, Stalled(), [signal.SIGINT])
    state = Session(tmp_path / "s/session.db", virtual_clock).state
    assert state.stopping == "you asked to stop"
    assert not state.running, "the current runs were finished"
    assert state.now < state.started_at + 400

    session, _ = live(tmp_path, FakeCrew())
    assert session.state.ended == "the 0.3 hours are over"
    assert not any(isinstance(stage, Decided) for stage in session.state.open.values())


def test_ctrl_c_waits_for_a_model_that_answers(tmp_path):
    session, said = live(tmp_path, FakeCrew(), [signal.SIGINT])
    assert session.state.ended == "you asked to stop"
    assert len(said) == 1


@pytest.mark.parametrize("sent", [[signal.SIGTERM], [signal.SIGINT] * 2, [signal.SIGINT, signal.SIGTERM] * 9])
def test_a_storm_of_signals_stops_at_once_and_nothing_is_lost(tmp_path, sent):
    with pytest.raises(KeyboardInterrupt):
        live(tmp_path, FakeCrew(), sent)
    session, _ = live(tmp_path, FakeCrew())
    assert session.state.ended == "the 0.3 hours are over"
