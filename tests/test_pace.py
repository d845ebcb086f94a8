"""What views take of a core is bounded: counts of drawings in virtual time, with a made-up clock of CPU time."""

import asyncio
from itertools import pairwise

import pytest

from orchestrator.core import events as ev
from orchestrator.session.store import Session
from orchestrator.views.pace import OLDEST, SHARE, SOON, Follower, Pace
from tests.fakes import started
from tests.virtual import run_virtually, virtual_clock

HOUR = 3600.0


class Cpu:
    """A clock of CPU time that stands still while nothing is drawn."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def follow(folder, cost, *, events=720, hours=20.0, quiet=0.0):
    """Let the log grow evenly; return when a view of that cost wrote how much of it, and the session."""
    session, cpu, written = Session(folder / "session.db", virtual_clock, create=True), Cpu(), list[tuple[float, int]]()
    session.db.execute("pragma synchronous = off")
    session.write("", started())
    began = session.clock()

    def write(log):
        cpu.now += cost(len(log.records))
        written.append((session.clock() - began, len(log.records)))

    follower = Follower(session, write, Pace(session.clock, cpu=cpu))
    session.watchers.append(follower.start)

    async def live():
        for number in range(events):
            session.write("", ev.GuidanceChanged(text=str(number)))
            await asyncio.sleep(HOUR * hours / events)
        await asyncio.sleep(quiet)

    run_virtually(live())
    return written, session


@pytest.mark.parametrize("cost", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("events", [200, 2000])
def test_drawings_take_a_bounded_share_however_much_they_cost_and_however_much_happens(tmp_path, cost, events):
    written, _ = follow(tmp_path, lambda _: cost, events=events)

    late = [at for at, _ in written if at > 10 * HOUR]
    assert 1 < len(late) <= 10 * HOUR * SHARE / cost + 1
    assert len(written) <= 20 * HOUR * SHARE / cost + 50, "at the beginning it is drawn more often"


def test_a_view_that_costs_more_with_each_event_is_drawn_less_often(tmp_path):
    written, _ = follow(tmp_path, lambda count: 0.001 * count)

    rests = [after - before for (before, _), (after, _) in pairwise(written)]
    assert rests == sorted(rests)
    assert all(
        count * 0.001 <= SHARE * rest for (at, count), rest in zip(written, rests, strict=False) if at > 5 * HOUR
    )


def test_a_short_night_is_shown_though_it_costs(tmp_path):
    written, session = follow(tmp_path, lambda _: 0.5, hours=0.2, events=100)

    ages = [after / before for (before, _), (after, _) in pairwise(written)]
    assert max(ages[5:]) < 1 + OLDEST + 0.1
    assert written[-1][1] > 0.75 * len(session.records)


def test_a_cheap_view_follows_at_once(tmp_path):
    written, _ = follow(tmp_path, lambda _: 0.0)

    assert [count for _, count in written] == [*range(2, 722)]
    assert {round(at % 100, 3) for at, _ in written} == {SOON}


def test_the_last_event_is_shown_though_nothing_follows(tmp_path):
    written, session = follow(tmp_path, lambda _: 0.5, quiet=HOUR)

    assert written[-1][1] == len(session.records)
