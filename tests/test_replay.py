"""Replay: every event again, from every prefix, through interruptions and overlap."""

import asyncio
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.events import (
    Granted,
    KeepRule,
    Kept,
    Proposed,
    Record,
    Resumed,
    SessionLimits,
    StopAsked,
    Unanswered,
)
from orchestrator.loop import run
from orchestrator.ports import Log
from orchestrator.session.replay import Tape, replay
from tests.fakes import FakeCrew, FakeLab, started
from tests.hunting import try_examples
from tests.virtual import run_virtually, virtual_clock


class Notebook(Log):
    """A session without a file."""

    def __init__(self, records=(), texts=None):
        super().__init__()
        self.texts = dict(texts or {})
        self.fold(*records)

    async def append(self, task_id, *events, last=False):
        self.finished |= {task_id} if last else set()
        self.write(task_id, *events)

    def write(self, task_id, *events):
        at = max(virtual_clock(), self.state.now)
        self.fold(*[Record(seq=len(self.records) + i, at=at, task_id=task_id, event=e) for i, e in enumerate(events)])
        self.tell()


def night(seed, *, kills=(), slots=1, trouble=0.15, hours=0.2, stop_after=None, **settings):
    """A night that is killed after each of these spans of seconds, and resumed."""

    async def life(log, span, last):
        task = asyncio.create_task(run(log, FakeCrew(seed, trouble), FakeLab(log, seed, trouble)))
        if last and stop_after:
            await asyncio.sleep(stop_after)
            log.write("", StopAsked(reason="enough"))
        elif not last:
            await asyncio.sleep(span)
            task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    log = Notebook()
    for i, span in enumerate([*kills, 0]):

        async def go(i=i, span=span):
            log.watchers.clear()
            log.finished.clear()
            begin = started(slots=slots, limits=SessionLimits(hours=hours), **settings)
            log.write("", begin if i == 0 else Resumed())
            await life(log, span, last=i == len(kills))

        run_virtually(go())
    return log


def verify(log, seed, trouble=0.15):
    """The tape after a replay, with the divergences found."""

    async def go():
        tape = Tape(log)
        assert await replay(tape, lambda tape: run(tape, FakeCrew(seed, trouble), tape)) is tape.divergences
        return tape

    return run_virtually(go())


def reproduce(log, seed, trouble=0.15):
    """The tape after a replay without divergences."""
    tape = verify(log, seed, trouble)
    assert not tape.divergences, tape.divergences[0]
    return tape


@try_examples(8)
@given(
    seed=st.integers(0, 10**6),
    slots=st.integers(1, 4),
    stacks=st.booleans(),
    ahead=st.booleans(),
    combines=st.booleans(),
    chronological=st.booleans(),
    kills=st.lists(st.floats(0.05, 300), max_size=3),
    stop_after=st.none() | st.floats(1, 400),
)
def test_replay_reproduces_every_event(seed, slots, stacks, ahead, combines, chronological, kills, stop_after):
    rule = KeepRule(stacks=stacks, ahead=ahead, combines=combines, chronological=chronological)
    log = night(seed, slots=slots, kills=kills, stop_after=stop_after, hours=0.15, rule=rule)

    tape = reproduce(log, seed)

    assert log.records == tape.records
    assert log.state == tape.state


def test_every_prefix_resumes_and_replays():
    whole = night(3, trouble=0.3, hours=0.12)

    for cut in range(1, len(whole.records), 4):
        log = Notebook(whole.records[:cut], whole.texts)

        async def go(log=log):
            log.write("", Resumed())
            await run(log, FakeCrew(3, 0.3), FakeLab(log, 3, 0.3))

        run_virtually(go())
        assert log.state.ended
        assert log.records == reproduce(log, 3, 0.3).records


def test_a_record_that_ends_between_two_proposals_of_one_request_is_verified_to_its_end():
    log = night(5, slots=4)
    proposed = [record for record in log.records if isinstance(record.event, Proposed)]
    cut = next(b.seq for a, b in pairwise(proposed) if a.task_id == b.task_id)

    async def check(*after):
        tape = Tape(Notebook([*log.records[:cut], *after], log.texts))
        return await asyncio.wait_for(replay(tape, lambda tape: run(tape, FakeCrew(5, 0.15), tape)), 1e6)

    restart = Record(seq=cut, at=log.records[cut].at, task_id="", event=Resumed())
    assert not run_virtually(check())
    assert not run_virtually(check(restart))


@pytest.mark.parametrize("place", [0, 4])
def test_a_changed_proposal_is_the_only_divergence(place):
    log = night(5)
    proposals = [i for i, record in enumerate(log.records) if isinstance(record.event, Proposed)]
    i = proposals[place]
    event = log.records[i].event
    changed = event.proposal.model_copy(update={"title": "another title"})
    record = log.records[i].model_copy(update={"event": event.model_copy(update={"proposal": changed})})
    log.records[i] = record

    tape = verify(log, 5)

    assert [divergence.seq for divergence in tape.divergences] == [i]
    assert "another title" in tape.divergences[0].difference
    assert tape.records == log.records, "the recorded event is taken in, and the verification goes on"


@pytest.mark.parametrize(("factor", "differs"), [(1 + 1e-15, False), (1 + 1e-6, True)])
def test_what_another_processor_rounds_otherwise_is_no_divergence(factor, differs):
    log = night(5)
    i, record = next((i, record) for i, record in enumerate(log.records) if isinstance(record.event, Kept))
    event = record.event.model_copy(update={"mean": record.event.mean * factor})
    log.records[i] = record.model_copy(update={"event": event})

    tape = verify(log, 5)

    assert [divergence.seq for divergence in tape.divergences] == [i] * differs
    assert tape.records == log.records


def test_another_crew_diverges_where_it_first_acts_otherwise():
    log = night(5)
    first = next(i for i, record in enumerate(log.records) if isinstance(record.event, Proposed | Unanswered))

    tape = verify(log, 6)

    assert tape.divergences[0].seq == first
    assert len(tape.divergences) > 1


def test_verification_stops_at_an_event_that_is_never_due():
    log = night(5)
    i = next(i for i, record in enumerate(log.records) if isinstance(record.event, Granted))
    log.records[i] = log.records[i].model_copy(update={"task_id": "train 77"})

    tape = verify(log, 5)

    assert [divergence.seq for divergence in tape.divergences] == [i]
    assert "not due" in str(tape.divergences[0])
    assert tape.upcoming == log.records[i]
