"""What views take of a core is bounded: counts of drawings in virtual time, with a made-up clock of CPU time."""

import asyncio
from itertools import pairwise

import pytest

from orchestrator.core import events as ev
from orchestrator.session.store import Session
from orchestrator.views.pace import SHARE, SOON, Follower, Pace
from tests.fakes import started
from tests.virtual import run_virtually, virtual_clock

HOUR = 3600.0


class Cpu:
    """A clock of CPU time that stands still while nothing is drawn."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def follow(folder, cost, *, events=720, hours=2.0, quiet=0.0):
    """Let the log grow at an even rate, and return when what was written by a view of that cost, and the session."""
    session, cpu, written = Session(folder / "session.db", virtual_clock, create=True), Cpu(), list[tuple[float, int]]()
    session.db.execute("pragma synchronous = off")
    session.write("", started())

    def write(log):
        cpu.now += cost(len(log.records))
        written.append((session.clock(), len(log.records)))

    follower = Follower(session, write, Pace(cpu))
    session.watchers.append(follower.start)

    async def live():
        for number in range(events):
            session.write("", ev.GuidanceChanged(text=str(number)))
            await asyncio.sleep(HOUR * hours / events)
        await asyncio.sleep(quiet)

    run_virtually(live())
    return written, cpu.now, session


@pytest.mark.parametrize("cost", [0.01, 0.1, 0.5])
def test_drawings_take_a_bounded_share_however_much_they_cost(tmp_path, cost):
    _, spent, _ = follow(tmp_path, lambda _: cost)

    assert spent <= 2 * HOUR * SHARE + 3 * cost  # the first two are free


def test_a_view_that_costs_more_with_each_event_is_drawn_less_often(tmp_path):
    written, spent, _ = follow(tmp_path, lambda count: 0.001 * count)

    rests = [after - before for (before, _), (after, _) in pairwise(written)]
    assert rests[2:] == sorted(rests[2:])
    assert spent <= 2 * HOUR * SHARE + 2 * 0.001 * 721  # it rests by the cheaper of two


@pytest.mark.parametrize("events", [100, 1000])
def test_the_number_of_events_does_not_matter(tmp_path, events):
    written, _, _ = follow(tmp_path, lambda _: 0.1, events=events)

    assert len(written) == pytest.approx(2 * HOUR * SHARE / 0.1 + 2, abs=2)


def test_a_cheap_view_follows_at_once(tmp_path):
    written, _, _ = follow(tmp_path, lambda _: 0.0)

    assert len(written) == 720
    assert {round(at % 10, 3) for at, _ in written} == {SOON}


def test_the_last_event_is_shown_though_nothing_follows(tmp_path):
    written, _, session = follow(tmp_path, lambda _: 0.5, quiet=HOUR)

    assert written[-1][1] == len(session.records)


def test_the_first_drawing_does_not_count_since_it_imports(tmp_path):
    written, _, _ = follow(tmp_path, lambda count: 2.0 if count == 2 else 0.01)

    assert len(written) > 100
