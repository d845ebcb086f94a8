"""Pause, stop and veto of a running night: the inbox, what becomes of each, and that a replay reproduces it."""

import asyncio
import json
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.agents.briefing import brief_researcher
from orchestrator.core import events as ev
from orchestrator.core.state import Candidate, Idea, State, Training, apply
from orchestrator.loop import run
from orchestrator.policy.proposals import find_duplicate
from orchestrator.policy.schedule import find_due
from orchestrator.policy.steps import Edit, Propose, Train
from orchestrator.session.inbox import INBOX, Control, send_control, take_controls
from orchestrator.session.recording import Live
from orchestrator.session.replay import Tape, replay
from orchestrator.session.store import Session
from orchestrator.supervisor import supervise
from orchestrator.views.musings import write_musings
from orchestrator.views.report import write_files
from orchestrator.views.usage import list_runs
from tests.fakes import SOURCE, FakeCrew, FakeLab, started
from tests.hunting import try_examples
from tests.scripted import SCRIPT
from tests.simulated import SOURCE as SIMULATED
from tests.simulated import Landscape
from tests.test_crew import make_crew
from tests.test_fruitless import Player
from tests.test_replay import Notebook, reproduce
from tests.virtual import run_virtually, virtual_clock

STAGES = {"proposed": Idea, "waiting": Candidate, "training": Training}


def steered(seed, acts, *, slots=1, kill=None, hours=0.1):
    """A night in which the user acts: after some seconds, an event, or the veto of the open experiment of that rank."""

    async def steer(log):
        for after, act in acts:
            await asyncio.sleep(after)
            vetoable = [number for number in sorted(log.state.open) if log.state.is_vetoable(number)]
            if not isinstance(act, int):
                log.write("", act)
            elif vetoable:
                log.write("", ev.VetoAsked(experiment=vetoable[act % len(vetoable)]))

    async def live(log, span=None):
        over = asyncio.Event()
        log.watchers.append(lambda: over.set() if log.state.ended else None)
        research = asyncio.ensure_future(run(log, FakeCrew(seed, 0.15), FakeLab(log, seed, 0.15), over.wait))
        steering = asyncio.ensure_future(steer(log))
        await asyncio.wait([research], timeout=span)
        steering.cancel()
        if span:
            research.cancel()
        with suppress(asyncio.CancelledError):
            await research

    log, first = Notebook(), started(slots=slots, limits=ev.SessionLimits(hours=hours))
    for event, span in [(first, kill), (ev.Resumed(), None)][: 1 + (kill is not None)]:

        async def go(event=event, span=span):
            log.watchers.clear()
            log.finished.clear()
            log.write("", event)
            asyncio.get_running_loop().call_later(3600 * hours, lambda: log.write("", ev.StopAsked(reason="over")))
            await live(log, span)

        run_virtually(go())
    return log


PAUSE, GO_ON = ev.Paused(reason="you asked for a pause"), ev.Continued()
acts = st.lists(st.tuples(st.floats(0, 90), st.integers(0, 9) | st.sampled_from([PAUSE, GO_ON])), max_size=8)


@try_examples(6)
@given(seed=st.integers(0, 999), acts=acts, slots=st.integers(1, 3), kill=st.none() | st.floats(1, 300))
def test_whatever_the_user_asks_is_done_and_replays(seed, acts, slots, kill):
    log = steered(seed, acts, slots=slots, kill=kill)

    assert log.state.ended
    assert log.state.vetoed == frozenset()
    asked = {r.event.experiment for r in log.records if isinstance(r.event, ev.VetoAsked)}
    assert {result.experiment for result in log.state.results if result.status == "vetoed"} == asked
    assert log.records == reproduce(log, seed).records


@try_examples(3)
@given(seed=st.integers(0, 999), begin=st.floats(1, 100), span=st.floats(1, 100))
def test_in_a_pause_nothing_new_is_started(seed, begin, span):
    """What was under way before it may end in it."""
    log = steered(seed, [(begin, PAUSE), (span, GO_ON)], slots=2)
    kinds = [record.event.kind for record in log.records]
    pause, end = kinds.index("paused"), kinds.index("continued")
    states = list(accumulate(log.records, apply, initial=State()))[pause + 1 : end + 1]

    assert all(state.paused for state in states)
    assert not any(isinstance(step, Train | Edit | Propose) for state in states for step in find_due(state))
    assert "granted" not in kinds[pause:end]
    assert "granted" in kinds[end:]


class Patient(FakeLab):
    """Its runs last; it counts those that were ended from outside."""

    ended = 0

    async def train(self, granted, source):
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            await asyncio.sleep(5)  # its processes are ended
            Patient.ended += 1
            raise
        return await super().train(granted, source)


@pytest.mark.parametrize("stage", STAGES)
def test_a_veto_by_the_inbox_ends_what_is_under_way(stage, tmp_path):
    """And only that: the slot is free once the run has gone, and the same code may run another time."""
    Patient.ended = 0

    async def go():
        session = Session(tmp_path / "s/session.db", virtual_clock, create=True)
        session.write("", started(limits=ev.SessionLimits(hours=0.25)))

        async def veto():
            while not any(n and type(s) is STAGES[stage] for n, s in session.state.open.items()):
                await asyncio.sleep(0.5)
            number = next(n for n, s in session.state.open.items() if n and type(s) is STAGES[stage])
            send_control(session.path.parent, Control(action="veto", experiment=number))
            return number

        vetoing = asyncio.ensure_future(veto())
        await supervise(session, FakeCrew(1, 0.0), Patient(session, 1, 0.0), tmp_path / "guidance.md")
        return session, await vetoing

    session, number = run_virtually(go())
    result = next(result for result in session.state.results if result.experiment == number)
    runs = list_runs(session.records)

    assert (result.status, result.scores, result.postmortem) == ("vetoed", (), None)
    assert Patient.ended == (stage == "training")
    assert all(later.start >= run.end for run, later in pairwise(runs))
    assert ("vetoed" in {run.outcome for run in runs}) == (stage == "training")
    if commit := result.commit:
        again = replace(session.state, open={99: Candidate(result.proposal, commit)})
        assert find_duplicate(again, 99, ()) == ""
    assert "Vetoed: «the user vetoed it»." in brief_researcher(session.state, 9, 1, SOURCE)["history"]
    assert session.records == reproduce(session, 1, 0.0).records
    write_files(session, tmp_path / "files")
    write_musings(session, tmp_path / "musings")
    assert "vetoed" in (tmp_path / "files/report.html").read_text()


def test_a_stop_by_the_inbox_is_one_ctrl_c(tmp_path):
    said = []

    async def go():
        session = Session(tmp_path / "s/session.db", virtual_clock, create=True)
        session.say = said.append
        session.write("", started())
        (tmp_path / "s" / INBOX / "stuck.json").mkdir(parents=True)

        async def ask():
            await asyncio.sleep(300)
            for action in ("pause", "stop", "stop", "continue"):
                send_control(session.path.parent, Control(action=action))

        asking = asyncio.ensure_future(ask())
        await supervise(session, FakeCrew(), FakeLab(session), tmp_path / "guidance.md")
        await asking
        return session

    session = run_virtually(go())
    asked = [record.event.kind for record in session.records if record.event.kind in ("paused", "stop_asked")]
    assert asked == ["paused", "stop_asked"]
    assert session.state.ended == "you asked to stop"
    assert 300 < session.state.now - session.state.started_at < 400
    assert ["stuck.json" in text for text in said] == [True, False], "what cannot be taken is said once"


def test_an_inbox_takes_only_what_is_a_request(tmp_path):
    box = tmp_path / INBOX
    box.mkdir()
    for number, text in enumerate(
        [
            "",
            "not json",
            '{"action": "shutdown"}',
            '{"action": "veto", "experiment": -1}',
            '{"action": "veto", "experiment": "all"}',
            '{"action": "pause", "path": "/etc"}',
            json.dumps({"action": "pause"}) + " " * 2000,
        ]
    ):
        (box / f"{number}.json").write_text(text)
    (box / "9.json").mkdir()
    (tmp_path / "elsewhere").write_text("kept")
    (box / "link.json").symlink_to(tmp_path / "elsewhere")
    send_control(tmp_path, Control(action="veto", experiment=3))
    send_control(tmp_path, Control(action="continue"))

    refused = []
    taken = take_controls(tmp_path, refused.append)
    assert taken == [Control(action="veto", experiment=3), Control(action="continue")]
    assert [path.name for path in refused] == [*(f"{number}.json" for number in range(7)), "9.json", "link.json"]
    assert take_controls(tmp_path) == []
    assert [path.name for path in box.iterdir()] == ["9.json"]
    assert (tmp_path / "elsewhere").read_text() == "kept"


class Slow(Player):
    """Takes its time, so that a veto comes in the middle of a conversation."""

    async def reply(self, request, on_wait):
        await asyncio.sleep(7)
        return await super().reply(request, on_wait)


def test_a_veto_ends_a_conversation_and_replays(tmp_path):
    async def go():
        session = Session(tmp_path / "s/session.db", virtual_clock, create=True)
        session.write("", started(limits=ev.SessionLimits(hours=0.1), crew="claude"))

        async def veto():
            while True:
                await asyncio.sleep(11)
                for number in [n for n in session.state.open if session.state.is_vetoable(n)]:
                    await session.append("", ev.VetoAsked(experiment=number))

        vetoing = asyncio.ensure_future(veto())
        await run(session, make_crew(session, Live(Slow(SCRIPT), session)), Landscape(session, SIMULATED))
        vetoing.cancel()
        return session

    async def verify(session):
        tape = Tape(session)
        return await replay(tape, lambda tape: run(tape, make_crew(tape, tape), tape)), tape

    session = run_virtually(go())
    cut = {record.task_id for record in session.records if isinstance(record.event, ev.Vetoed)}
    talked = {record.task_id for record in session.records if isinstance(record.event, ev.ConversationOpened)}
    divergences, tape = run_virtually(verify(session))

    assert any(task.startswith("train") for task in cut)
    assert cut & talked
    assert divergences == []
    assert tape.records == session.records
