"""The loop against stand-ins: whole nights, deaths, resumptions."""

import asyncio
from contextlib import suppress

import pytest

from orchestrator import policy
from orchestrator.events import (
    Committed,
    Crashed,
    Ended,
    Failed,
    Granted,
    Kept,
    Limits,
    Proposed,
    Resumed,
    Scored,
    StopAsked,
)
from orchestrator.loop import run
from orchestrator.musings import write as write_musings
from orchestrator.report.files import write as write_files
from orchestrator.session import Session, SessionError
from orchestrator.state import Training, fold
from tests.fakes import FakeCrew, FakeLab, started
from tests.virtual import run_virtually, virtual_clock


def night(path, *, trouble=0.1, seed=0, **changes) -> Session:
    async def go():
        session = Session(path, virtual_clock, create=True)
        session.write("", started(**changes))
        await run(session, FakeCrew(seed, trouble), FakeLab(session, seed, trouble))
        return session

    return run_virtually(go())


def test_a_night_ends_with_everything_recorded(tmp_path):
    session = night(tmp_path / "s" / "session.db")

    state = session.state
    assert state.ended == "the 1 hours are over"
    assert len(state.findings) > 30
    assert state.best and state.best.mark < state.findings[0].val_bpb - 0.01
    assert state.now <= state.deadline + 60
    assert not any(isinstance(stage, Training) for stage in state.open.values())


class StrictLab(FakeLab):
    """Believes no score but the baseline's."""

    async def train(self, granted, source):
        outcome = await super().train(granted, source)
        if granted.experiment == 0 or outcome.kind != "scored":
            return outcome
        facts = {name: value for name, value in outcome if name in Crashed.model_fields and name != "kind"}
        return Crashed(failure="disqualified", message="it sees what it is to predict", **facts)


def test_who_is_disqualified_is_neither_repaired_nor_kept(tmp_path):
    async def go():
        session = Session(tmp_path / "s" / "session.db", virtual_clock, create=True)
        session.write("", started(limits=Limits(hours=0.3)))
        await run(session, FakeCrew(0, 0.0), StrictLab(session, 0, 0.0))
        return session

    session = run_virtually(go())
    verdicts = [finding.verdict for finding in session.state.findings if finding.experiment and finding.crash]
    assert len(verdicts) > 10
    assert all(isinstance(verdict, Failed) for verdict in verdicts)
    assert verdicts[0].reason == "disqualified: it sees what it is to predict"
    assert not any(isinstance(r.event, Committed) and r.event.how == "repaired" for r in session.records)


def test_the_hopeless_end_early_and_some_run_on_to_check_that(tmp_path):
    session = night(tmp_path / "s" / "session.db", trouble=0.0, limits=Limits(hours=2.0))
    records, findings = session.records, session.state.findings

    early = [finding for finding in findings if finding.crash]
    spared = [f for f in findings if f.scores and f.scores[0].condemned]
    assert len(early) > 5
    assert all((f.verdict.failure, f.scores) == ("hopeless", ()) for f in early)
    assert policy.alarms(session.state) == (len(spared), 0)
    assert len(spared) > 0
    first = next(r.seq for r in records if isinstance(r.event, Granted) and r.event.terms.bounds)
    known = fold(records[:first]).findings
    assert sum(f.experiment > 0 for f in known) >= policy.CALIBRATION
    kept = [finding for finding in session.state.kept if finding.experiment]
    assert all(any(score.confirmed for score in finding.scores) for finding in kept)

    write_files(session, tmp_path / "files")
    write_musings(session, tmp_path / "musings" / "night")
    page = (tmp_path / "files/report.html").read_text()
    assert f"{len(early)} were ended early" in page
    musing = next((tmp_path / "musings/night").glob(f"{early[0].experiment:03}-*.md")).read_text()
    assert "**Ended early**: far behind after" in musing


def test_the_slot_is_never_idle_between_runs(tmp_path):
    session = night(tmp_path / "s" / "session.db", trouble=0.0)

    busy, since, first, last = 0.0, 0.0, None, 0.0
    for record in session.records:
        if isinstance(record.event, Granted):
            since, first = record.at, first or record.at
        if isinstance(record.event, Scored | Crashed):
            busy, last = busy + record.at - since, record.at
    assert busy / (last - first) > 0.97


def test_several_slots_need_no_other_loop(tmp_path):
    session = night(tmp_path / "s" / "session.db", slots=4, limits=Limits(hours=0.5))

    under_way, most = set(), 0
    for record in session.records:
        match record.event:
            case Granted(experiment=n):
                under_way.add(n)
            case event if event.kind in {"scored", "crashed", "aborted"}:
                under_way.discard(event.experiment)
        most = max(most, len(under_way))
    assert most == 4
    assert session.state.ended


def test_limits_end_the_night(tmp_path):
    session = night(tmp_path / "a" / "session.db", limits=Limits(hours=5, experiments=6))

    assert session.state.next == 7
    assert session.state.ended == "6 experiments are done"


def test_nothing_is_kept_on_one_seed(tmp_path):
    session = night(tmp_path / "s" / "session.db")

    for finding in session.state.kept:
        assert len(finding.scores) >= policy.MIN_RUNS
        assert isinstance(finding.verdict, Kept)


def test_asked_to_stop_it_finishes_what_trains(tmp_path):
    async def go():
        session = Session(tmp_path / "s" / "session.db", virtual_clock, create=True)
        session.write("", started())
        task = asyncio.create_task(run(session, FakeCrew(), FakeLab(session)))
        await asyncio.sleep(333)
        session.write("", StopAsked(reason="you asked"))
        await task
        return session

    session = run_virtually(go())
    asked = next(i for i, record in enumerate(session.records) if isinstance(record.event, StopAsked))
    kinds = [record.event.kind for record in session.records[asked:]]
    assert "granted" not in kinds
    assert kinds[-1] == "ended"
    assert not any(isinstance(stage, Training) for stage in session.state.open.values())


@pytest.mark.parametrize("seed", range(4))
def test_killed_anywhere_it_resumes_and_counts_everything_once(tmp_path, seed):
    path = tmp_path / "s" / "session.db"
    kills = [37, 111, 260, 500, 800]

    async def life(first: bool, seconds: float | None):
        session = Session(path, virtual_clock, create=first)
        session.write("", started(limits=Limits(hours=0.5)) if first else Resumed())
        task = asyncio.create_task(run(session, FakeCrew(seed), FakeLab(session, seed)))
        if seconds is not None:
            await asyncio.sleep(seconds)
            task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        session.close()
        return session

    for i, seconds in enumerate([*kills, None]):
        session = run_virtually(life(i == 0, seconds))
    numbers = [record.event.experiment for record in session.records if isinstance(record.event, Proposed)]
    assert numbers == list(range(1, session.state.next))
    assert isinstance(session.records[-1].event, Ended)
    closed = [finding.experiment for finding in session.state.findings]
    assert len(closed) == len(set(closed))
    assert session.state == Session(path, virtual_clock).state


def test_files_that_are_no_sessions_are_refused_in_one_line(tmp_path):
    (tmp_path / "text").write_text("hello")
    for path, words in [(tmp_path / "none", "no session"), (tmp_path / "text", "not a session file")]:
        with pytest.raises(SessionError, match=words):
            Session(path, virtual_clock)


def test_a_newer_format_is_refused(tmp_path):
    path = tmp_path / "s" / "session.db"
    session = Session(path, virtual_clock, create=True)
    session.db.execute("pragma user_version = 99")
    session.close()

    with pytest.raises(SessionError, match="newer"):
        Session(path, virtual_clock)
