"""The loop against stand-ins: whole nights, deaths, resumptions."""

import asyncio
import random
import tempfile
from contextlib import suppress
from dataclasses import replace
from math import inf
from pathlib import Path

import psutil
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.core import events as ev
from orchestrator.core.state import Decided, Training, apply, fold
from orchestrator.loop import MESSAGES, run
from orchestrator.policy import pruning, thresholds
from orchestrator.policy.evaluation_plan import draw_seed
from orchestrator.policy.schedule import find_due
from orchestrator.policy.steps import Propose
from orchestrator.session.store import Session, SessionError
from orchestrator.views.musings import write_musings
from orchestrator.views.report import write_files
from tests.fakes import PROFILE, FakeCrew, FakeLab, InventiveCrew, started
from tests.hunting import try_examples
from tests.virtual import run_virtually, virtual_clock


def night(path, *, trouble=0.1, seed=0, lab=FakeLab, crew=FakeCrew, **changes) -> Session:
    async def go():
        session = Session(path, virtual_clock, create=True)
        session.write("", started(**changes))
        await run(session, crew(seed, trouble), lab(session, seed, trouble))
        return session

    return run_virtually(go())


def test_a_night_ends_with_everything_recorded(tmp_path):
    session = night(tmp_path / "s" / "session.db")

    state = session.state
    assert state.ended == "the hour is over"
    assert len(state.results) > 30
    assert state.incumbent and state.incumbent.score_to_beat < state.results[0].val_bpb - 0.01
    assert state.now <= state.deadline + 60
    assert not any(isinstance(stage, Training) for stage in state.open.values())


class StrictLab(FakeLab):
    """Believes no score but the baseline's."""

    async def train(self, granted, source):
        outcome = await super().train(granted, source)
        if granted.experiment == 0 or outcome.kind != "scored":
            return outcome
        facts = {name: value for name, value in outcome if name in ev.Crashed.model_fields and name != "kind"}
        return ev.Crashed(failure="disqualified", message="it sees what it is to predict", **facts)


def test_who_is_disqualified_is_neither_repaired_nor_kept(tmp_path):
    async def go():
        session = Session(tmp_path / "s" / "session.db", virtual_clock, create=True)
        session.write("", started(limits=ev.SessionLimits(hours=0.3)))
        await run(session, FakeCrew(0, 0.0), StrictLab(session, 0, 0.0))
        return session

    session = run_virtually(go())
    verdicts = [result.verdict for result in session.state.results if result.experiment and result.crash]
    assert len(verdicts) > 10
    assert all(isinstance(verdict, ev.Failed) for verdict in verdicts)
    assert verdicts[0].reason == "disqualified: it sees what it is to predict"
    assert not any(isinstance(r.event, ev.Committed) and r.event.how == "repaired" for r in session.records)


def test_the_hopeless_end_early_and_some_run_on_to_check_that(tmp_path):
    session = night(tmp_path / "s" / "session.db", trouble=0.0, limits=ev.SessionLimits(hours=1.5))
    records, results = session.records, session.state.results

    early = [result for result in results if result.status == "pruned"]
    spared = [f for f in results if f.scores and f.scores[0].would_prune_at]
    assert len(early) > 5
    assert all(result.scores == () for result in early)
    assert pruning.count_false_prunes(session.state.results) == (len(spared), 0)
    assert len(spared) > 0
    first = next(r.seq for r in records if isinstance(r.event, ev.Granted) and r.event.plan.pruning_thresholds)
    known = fold(records[:first]).results
    assert sum(f.experiment > 0 for f in known) >= thresholds.CALIBRATION_RUNS

    write_files(session, tmp_path / "files")
    write_musings(session, tmp_path / "musings" / "night")
    page = (tmp_path / "files/report.html").read_text()
    assert f"<dt>pruned (ended early)</dt><dd>{len(early)}</dd>" in page
    musing = next((tmp_path / "musings/night").glob(f"{early[0].experiment:03}-*.md")).read_text()
    assert "**Pruned**: far behind after" in musing


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A night without trouble, to be read only."""
    return night(tmp_path_factory.mktemp("calm") / "s" / "session.db", trouble=0.0)


def test_the_slot_is_never_idle_between_runs(calm):
    session = calm
    busy, since, first, last = 0.0, 0.0, None, 0.0
    for record in session.records:
        if isinstance(record.event, ev.Granted):
            since, first = record.at, first or record.at
        if isinstance(record.event, ev.Scored | ev.Crashed | ev.Pruned):
            busy, last = busy + record.at - since, record.at
    assert busy / (last - first) > 0.97


class AttentiveCrew(FakeCrew):
    """Notes which post-mortems a proposal is made without, although a run keeps the slot busy."""

    missed: list[int] = []

    async def propose(self, state, step):
        unread = [number for number, stage in state.open.items() if number and isinstance(stage, Decided)]
        self.missed.extend(unread if state.running else [])
        return await super().propose(state, step)


def test_with_one_slot_a_proposal_knows_the_last_post_mortem(tmp_path):
    session = night(tmp_path / "s" / "session.db", crew=AttentiveCrew)

    assert sum(result.postmortem is not None for result in session.state.results) > 20
    assert not AttentiveCrew.missed


def test_several_slots_need_no_other_loop(tmp_path):
    session = night(tmp_path / "s" / "session.db", slots=4, limits=ev.SessionLimits(hours=0.25))

    under_way, most = set(), 0
    for record in session.records:
        match record.event:
            case ev.Granted(experiment=n):
                under_way.add(n)
            case event if event.kind in {"scored", "crashed", "pruned", "aborted"}:
                under_way.discard(event.experiment)
        most = max(most, len(under_way))
    assert most == 4
    assert session.state.ended


def test_limits_end_the_night(tmp_path):
    session = night(tmp_path / "a" / "session.db", limits=ev.SessionLimits(hours=5, experiments=6))

    assert session.state.next == 7
    assert session.state.ended == "6 experiments are done"


def test_run_r_of_every_experiment_has_the_same_seed(calm):
    session = calm
    seeds: dict[int, list[int]] = {}
    ablations = {result.experiment for result in session.state.results if result.proposal.reverts is not None}
    for granted in (record.event for record in session.records if isinstance(record.event, ev.Granted)):
        if not granted.plan.certifies and granted.experiment not in ablations:
            seeds.setdefault(granted.experiment, []).append(granted.seed)
    longest = max(seeds.values(), key=len)
    assert len(longest) > 2
    assert len(set(longest)) == len(longest)
    assert all(found == longest[: len(found)] for found in seeds.values())
    assert all(len(result.verdict.differences) == len(result.scores) for result in session.state.kept)


def test_the_night_ends_with_a_certificate_on_fresh_seeds(tmp_path):
    session = night(tmp_path / "s" / "session.db", limits=ev.SessionLimits(hours=2.0))

    state, granted = session.state, [r.event for r in session.records if isinstance(r.event, ev.Granted)]
    fresh = {event.seed for event in granted if event.plan.certifies}
    assert state.certificate.experiment == state.best
    assert 1 < state.certificate.pairs <= len(fresh)
    assert state.certificate.heldout
    assert not fresh & {event.seed for event in granted if not event.plan.certifies}
    expected, margin = (
        state.baseline_bpb - state.incumbent.score_to_beat,
        state.certificate.high - state.certificate.gain,
    )
    assert abs(expected - state.certificate.gain) < 3 * margin, "both are estimates, and the interval covers 90 %"
    assert state.now < state.deadline


def test_runs_of_the_certificate_are_no_failures_of_the_incumbent(calm):
    """A night that goes on later may need further runs of the incumbent for its comparisons."""
    state = calm.state
    assert state.certificate.pairs > 0
    assert state.grants[state.best] > len(state.incumbent.scores)
    assert state.incumbent.failures == 0


def test_a_night_that_kept_nothing_has_nothing_to_certify(tmp_path):
    session = night(tmp_path / "s" / "session.db", limits=ev.SessionLimits(hours=2.0, experiments=1))
    assert session.state.certificate is None or session.state.kept


def test_asked_to_stop_it_finishes_what_trains(tmp_path):
    async def go():
        session = Session(tmp_path / "s" / "session.db", virtual_clock, create=True)
        session.write("", started())
        task = asyncio.create_task(run(session, FakeCrew(), FakeLab(session)))
        await asyncio.sleep(333)
        session.write("", ev.StopAsked(reason="you asked"))
        await task
        return session

    session = run_virtually(go())
    asked = next(i for i, record in enumerate(session.records) if isinstance(record.event, ev.StopAsked))
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
        session.write("", started(limits=ev.SessionLimits(hours=0.5)) if first else ev.Resumed())
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
    numbers = [record.event.experiment for record in session.records if isinstance(record.event, ev.Proposed)]
    assert numbers == list(range(1, session.state.next))
    assert isinstance(session.records[-1].event, ev.Ended)
    closed = [result.experiment for result in session.state.results]
    assert len(closed) == len(set(closed))
    assert session.state == Session(path, virtual_clock).state


@pytest.mark.parametrize("stride", [23, pytest.param(1, marks=pytest.mark.soak)])
def test_killed_at_an_event_it_resumes_and_counts_everything_once(tmp_path, stride):
    """Killed as soon as event n is on disk, for every n in the night; the second life goes on to the end."""

    async def life(path, last):
        session = Session(path, virtual_clock, create=not path.exists())
        limits = ev.SessionLimits(hours=0.1)
        session.write("", ev.Resumed() if session.records else started(limits=limits))
        task = asyncio.ensure_future(run(session, FakeCrew(3), FakeLab(session, 3)))
        session.watchers.insert(0, lambda: task.cancel() if len(session.records) >= last else None)
        with suppress(asyncio.CancelledError):
            await task
        session.close()
        return session

    whole = len(run_virtually(life(tmp_path / "whole/session.db", inf)).records)
    for last in range(2, whole, stride):
        path = tmp_path / f"{last}/session.db"
        run_virtually(life(path, last))
        session = run_virtually(life(path, inf))
        events = [record.event for record in session.records]
        assert isinstance(events[-1], ev.Ended)
        assert sum(isinstance(event, ev.Resumed) for event in events[last:]) == 1
        proposed = [event.experiment for event in events if isinstance(event, ev.Proposed)]
        assert proposed == list(range(1, session.state.next))
        for kind in (ev.Granted, ev.Scored):
            runs = [(event.experiment, event.run) for event in events if isinstance(event, kind)]
            assert len(set(runs)) == len(runs)
        promoted = [event.experiment for event in events if isinstance(event, ev.Promoted)]
        assert promoted == [event.experiment for event in events if isinstance(event, ev.Kept)]


def test_files_that_are_no_sessions_are_refused_in_one_line(tmp_path):
    (tmp_path / "text").write_text("hello")
    for path, words in [(tmp_path / "none", "does not exist"), (tmp_path / "text", "not a session file")]:
        with pytest.raises(SessionError, match=words):
            Session(path, virtual_clock)


def test_a_newer_format_is_refused(tmp_path):
    path = tmp_path / "s" / "session.db"
    session = Session(path, virtual_clock, create=True)
    session.db.execute("pragma user_version = 99")
    session.close()

    with pytest.raises(SessionError, match="newer"):
        Session(path, virtual_clock)


class EqualLengths(FakeLab):
    """Every run takes the same time, so that several candidates are judged in one pass."""

    async def train(self, granted, source):
        self.trained.append((granted.experiment, granted.run))
        await asyncio.sleep(25)
        key = {"experiment": granted.experiment, "run": granted.run, "log": self.log.put("log"), "curve": ()}
        value = 2.25 - 0.05 * source.count("KNOB_") + 0.05 * source.count("= 0.0") + granted.seed % 7 * 1e-4
        return ev.Scored(**key, metrics=ev.RunMetrics(train_seconds=20), val_bpb=value, confirmed=value + 0.1)


SHORT = ev.SessionLimits(hours=0.3, experiments=60)


@example(slots=8, seed=352, stacks=True, ahead=False)  # its last promotion reverts a keep
@try_examples(2)
@given(slots=st.sampled_from([1, 2, 4, 8]), seed=st.integers(0, 1000), stacks=st.booleans(), ahead=st.booleans())
def test_a_keep_always_starts_from_the_head_of_the_branch(slots, seed, stacks, ahead):
    changes = {"slots": slots, "seed": seed, "limits": SHORT, "rule": ev.KeepRule(stacks=stacks, ahead=ahead)}
    with tempfile.TemporaryDirectory() as folder:
        session = night(Path(folder) / "s" / "session.db", trouble=0.0, lab=EqualLengths, **changes)
        head, kept = 0, []
        for record in session.records:
            match record.event:
                case ev.Promoted(experiment=number) if number:
                    commit = next(r.commit for r in session.state.judged if r.experiment == number)
                    assert commit.parent == head
                    assert commit.onto in ("", session.state.parents[head].source)
                    head = number
                    kept.append(number)
                case _:
                    pass
        session.close()
    assert kept, "the test says something only where something is kept"


def test_a_promotion_from_another_parent_is_refused(tmp_path):
    session = night(tmp_path / "s" / "session.db", trouble=0.0, lab=EqualLengths)
    promoted = [record for record in session.records if isinstance(record.event, ev.Promoted)]
    assert len(promoted) > 2
    before = fold(session.records[: promoted[-1].seq])
    elsewhere = replace(before, incumbent=replace(before.incumbent, experiment=0))
    with pytest.raises(ValueError, match="while the branch stands at 0"):
        apply(elsewhere, promoted[-1])

    asking = [state for at in promoted if any(map(is_proposal, find_due(state := fold(session.records[: at.seq]))))]
    patient = [replace(s, started=s.session.model_copy(update={"asks_after_promotion": True})) for s in asking]
    assert asking, "the test says something only where proposals are due at a promotion"
    assert not any(is_proposal(step) for state in patient for step in find_due(state)), "they wait for the commit"


def is_proposal(step):
    return isinstance(step, Propose)


class Lucky(FakeLab):
    """Every change but the first helps by nothing; that one helps at the session's first seed only."""

    async def train(self, granted, source):
        await asyncio.sleep(25)
        shared = random.Random(granted.seed).gauss(0, 0.004)
        luck = random.Random(f"{granted.seed}/{source}").gauss(0, 0.001)
        better = 0.006 * (granted.seed == draw_seed(self.log.state, 1)) - 0.003
        changed = sum("= 0.0" not in line for line in source.split("\n") if line.startswith("KNOB_"))
        value = 2.25 + shared + luck - better * (changed == 1) + 0.04 * max(changed - 1, 0)
        key = {"experiment": granted.experiment, "run": granted.run, "log": self.log.put("log"), "curve": ()}
        return ev.Scored(**key, metrics=ev.RunMetrics(train_seconds=20), val_bpb=value, confirmed=value + 0.1)


def test_a_keep_that_was_luck_is_reverted_by_a_commit_that_says_so(tmp_path):
    session = night(
        tmp_path / "s" / "session.db", trouble=0.0, lab=Lucky, limits=ev.SessionLimits(hours=9, experiments=80)
    )

    state = session.state
    ablation = next(r for r in state.tried if r.proposal.reverts is not None and r.status == "kept")
    reverted = next(result for result in state.tried if result.experiment == ablation.proposal.reverts)
    assert reverted.status == "reverted"
    assert reverted not in state.kept
    assert state.incumbent.score_to_beat == pytest.approx(state.baseline_bpb), "nothing is expected of it any more"
    assert "= 1" not in session.get(state.parent.source)
    assert ablation.commit.source == state.parents[reverted.commit.parent].source
    assert ablation.verdict.reason.startswith(f"#{reverted.experiment} is reverted")
    assert f"revert #{reverted.experiment}" in MESSAGES.keep(ablation)
    assert state.certificate and state.certificate.experiment == state.best


KNOWN = PROFILE.model_copy(update={"sigma": 0.003})


class Subtle(FakeLab):
    """Every change helps by less than one run shows."""

    async def train(self, granted, source):
        await asyncio.sleep(25)
        changed = sum("= 0.0" not in line for line in source.split("\n") if line.startswith("KNOB_"))
        luck = random.Random(f"{granted.seed}/{source}").gauss(0, 0.002)
        value = 2.25 + random.Random(granted.seed).gauss(0, 0.003) + luck - 0.0012 * changed
        key = {"experiment": granted.experiment, "run": granted.run, "log": self.log.put("log"), "curve": ()}
        return ev.Scored(**key, metrics=ev.RunMetrics(train_seconds=20), val_bpb=value, confirmed=value + 0.1)


def test_the_last_runs_of_a_night_try_near_misses_together(tmp_path):
    changes = {"limits": ev.SessionLimits(hours=0.4), "rule": thresholds.KEEP_RULE, "profile": KNOWN}
    found = list[str]()
    for seed in (1, 2, 9):
        session = night(tmp_path / f"{seed}" / "session.db", trouble=0.0, seed=seed, lab=Subtle, **changes)
        results = {result.experiment: result for result in session.state.judged}
        for together in (result for result in results.values() if result.proposal.combines and result.commit):
            source = session.get(together.commit.source)
            parts = [results[number].proposal.instructions for number in together.proposal.combines]
            assert len(parts) > 1
            assert all(part in source for part in parts)
            found.append(together.status)
        write_musings(session, tmp_path / "musings" / "night")
        assert "fit with the others" not in session.state.setback, "no crew is to blame for that"
    assert any("combines [" in page.read_text("utf-8") for page in (tmp_path / "musings" / "night").iterdir())
    assert found.count("kept") > 1


@pytest.mark.soak
def test_two_thousand_experiments_take_little_memory_and_no_descriptor(tmp_path):
    process = psutil.Process()
    before, memory = process.num_fds(), process.memory_info().rss  # tests before this one may have filled some
    limits = ev.SessionLimits(hours=170, experiments=2_000)
    session = night(tmp_path / "s" / "session.db", crew=InventiveCrew, limits=limits)
    assert session.state.ended == "2000 experiments are done"
    assert process.memory_info().rss - memory < 200 << 20
    session.close()
    assert process.num_fds() <= before + 3  # a loop's own
