"""Several runs at a time: a night with two slots, the locks on GPUs, and what becomes of a sick one."""

import os
import time
from collections import Counter
from dataclasses import replace
from statistics import fmean

import pytest

from benchmarks.slots import measure, simulate
from orchestrator.cli.options import Options, UsageError
from orchestrator.cli.preflight import Preflight
from orchestrator.cli.wiring import hold_slots
from orchestrator.core import events as ev
from orchestrator.core.state import fold
from orchestrator.lab.slots import Slot
from orchestrator.policy.thresholds import KEEP_RULE
from orchestrator.session.store import Session
from orchestrator.views.usage import list_runs
from prepare.machine import Gpu, count_cores, count_roomy_cores
from tests.fakes import FakeLab, started
from tests.test_loop import night
from tests.test_runner import GRANTED, HONEST, bench  # noqa: F401 - a fixture
from tests.workplace import orchestrate, workplace


def list_scores(place, name):
    """The scores of a night by source and seed, and the most runs at a time."""
    session = Session(place / f"sessions/{name}/session.db", time.time)
    seeds = {(r.event.experiment, r.event.run): r.event.seed for r in session.records if r.event.kind == "granted"}
    sources = {r.event.experiment: r.event.source for r in session.records if r.event.kind == "committed"}
    sources[0] = session.state.parents[0].source
    scored = [record.event for record in session.records if record.event.kind == "scored"]
    claimed = {(e.experiment, e.run): e.audit.claimed if e.audit else e.val_bpb for e in scored}
    found = {(sources[run[0]], seeds[run]): value for run, value in claimed.items()}
    runs = list_runs(session.records)
    most = max(sum(run.start <= other.start < run.end for run in runs) for other in runs)
    return session, found, most


@pytest.mark.skipif(count_cores() < 2, reason="two slots need two cores")
def test_two_slots_give_the_scores_of_one(tmp_path):
    place, words = workplace(tmp_path / "place"), ("--offline", "--hours", "1", "--max-experiments", "4", "--seed", "3")
    for count in ("1", "2"):
        done = orchestrate(place, *words, "--slots", count, "--session", f"night-{count}")
        assert done.returncode == 0, done.stdout + done.stderr
    (_, one, least), (session, two, most) = list_scores(place, "night-1"), list_scores(place, "night-2")

    assert (least, most) == (1, 2)
    assert session.state.session.slots == 2
    assert session.state.ended == "4 experiments are done"
    assert not [record for record in session.records if record.event.kind in ("aborted", "crashed")]
    shared = one.keys() & two.keys()
    assert len(shared) > 2
    assert {key: one[key] for key in shared} == {key: two[key] for key in shared}
    session.close()

    refused = orchestrate(place, "--offline", "--slots", "4096")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "4096 slots need as many cores, and " in refused.stderr


SHARE = f"import os; print(sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])\n{HONEST}"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processes cannot be bound to cores here")
async def test_a_run_has_its_share_of_the_cores_and_all_threads(bench):  # noqa: F811
    last = max(os.sched_getaffinity(0))
    outcome = await bench.run(SHARE, slot=Slot(bench.folder / "slot.lock", threads=2, cpus=(last,)))
    assert bench.log(outcome).splitlines()[0] == f"[{last}] 2"


def test_without_gpus_auto_is_a_run_on_each_core_if_runs_cannot_disturb_each_other(tmp_path):
    place = workplace(tmp_path / "place")
    paths = Options(place / "sessions", place / "data", place / "train.py")
    assert Preflight(replace(paths, slots="auto"), "a", "optuna").count_slots() == count_roomy_cores() <= count_cores()

    (place / "nightshift.toml").write_text('command = "python train.py"\n')
    assert Preflight(replace(paths, slots="auto"), "a", "optuna").count_slots() == 1


MIXED = [(16, "NVIDIA T4"), (80, "NVIDIA A100"), (40, "NVIDIA A100"), (80, "NVIDIA A100")]


class WithGpus(Preflight):
    """A night on a machine that has two GPUs."""

    def list_gpus(self):
        return [Gpu(1 << 33, (8, 0), f"GPU-{i}-{os.getpid()}", i) for i in range(2)]


def test_a_gpu_belongs_to_one_session(tmp_path):
    place = workplace(tmp_path / "place")
    paths = Options(place / "sessions", place / "data", place / "train.py")
    all_of_them, one = WithGpus(replace(paths, slots="auto"), "a", "optuna"), WithGpus(paths, "b", "optuna")

    with hold_slots(all_of_them) as slots:
        assert [slot.devices for slot in slots] == [gpu.uuid for gpu in one.list_gpus()]
        with pytest.raises(UsageError, match="is in use by another session"), hold_slots(one):
            pass
    with hold_slots(one) as slots:
        assert len(slots) == 1
    assert "1 GPU idle" in one.estimate()
    assert "idle" not in all_of_them.estimate()
    for count, words in (
        ("3", "3 slots need as many GPUs, and 2 may be used"),
        ("0", "give a number"),
        ("x", "or auto"),
    ):
        with pytest.raises(UsageError, match=words):
            WithGpus(replace(paths, slots=count), "c", "optuna").count_slots()


def test_all_runs_of_a_night_use_gpus_of_one_model(tmp_path):
    place = workplace(tmp_path / "place")
    (place / "nightshift.toml").write_text('command = "python train.py"\n')  # whose data no profile is for
    paths = Options(place / "sessions", place / "data", place / "train.py", slots="auto")
    cards = [Gpu(size << 30, (8, 0), f"GPU-{i}", i, name) for i, (size, name) in enumerate(MIXED)]
    first = Preflight(paths, "a", "optuna", find_gpus=lambda: cards)
    assert [gpu.node for gpu in first.list_gpus()] == [1, 3]
    assert (first.count_slots(), first.gpu) == (2, "NVIDIA A100, 86 GB")
    assert "2 GPUs of other models unused" in first.estimate()

    def resume(gpu, cards):
        state = fold([ev.Record(seq=0, at=0.0, task_id="", event=started(gpu=gpu, task=first.task))])
        return Preflight(paths, "a", "optuna", state=state, find_gpus=lambda: cards)

    assert [gpu.node for gpu in resume("NVIDIA T4, 17 GB", cards).list_gpus()] == [0]
    assert [gpu.node for gpu in resume("A100", cards).list_gpus()] == [1, 2, 3], "as a cluster names it"
    assert [gpu.node for gpu in resume("", cards).list_gpus()] == [1, 3]
    for here, said in ((cards[:1], "here is NVIDIA T4, 17 GB"), ([], "here is no GPU")):
        with pytest.raises(UsageError, match=f"was measured on NVIDIA A100, 86 GB.*{said}"):
            resume(first.gpu, here).count_slots()


async def test_a_gpu_that_keeps_its_memory_is_given_up(bench):  # noqa: F811
    answers = iter([True])
    slot = Slot(bench.folder / "gpu.lock", devices="GPU-1", patience=0.3, is_free=lambda: next(answers, False))
    runner = bench.runner(slot=slot)
    outcomes = [await runner.run(GRANTED, HONEST) for _ in range(4)]

    assert [outcome.kind for outcome in outcomes] == ["scored", "aborted", "aborted", "aborted"]
    assert [outcome.quarantined for outcome in outcomes[1:]] == [False, False, True]
    assert outcomes[-1].reason == (
        "GPU-1 is sick, and is not used any more: GPU-1 is in use by another session, or by what a run has left"
    )


async def test_a_gpu_that_the_driver_has_lost_is_given_up(bench):  # noqa: F811
    def look():
        raise OSError("NVML: GPU is lost") from RuntimeError("GPU is lost")

    runner = bench.runner(slot=Slot(bench.folder / "gpu.lock", devices="GPU-1", is_free=look))
    outcomes = [await runner.run(GRANTED, HONEST) for _ in range(3)]

    assert [outcome.quarantined for outcome in outcomes] == [False, False, True], "no script says so"


async def test_a_fault_of_the_gpu_is_not_the_candidates(bench):  # noqa: F811
    slot = Slot(bench.folder / "gpu.lock", devices="GPU-1")
    runner = bench.runner(slot=slot)
    broken = "raise RuntimeError('CUDA error: uncorrectable ECC error encountered')"

    async def look(*experiments):
        outcomes = [await runner.run(GRANTED.model_copy(update={"experiment": n}), broken) for n in experiments]
        return [outcome.kind == "aborted" and outcome.quarantined for outcome in outcomes]

    assert await look(7, 7, 7, 7) == [False] * 4, "one script may be broken, and say what it likes"
    assert await look(8, 9) == [False, True]
    assert (await runner.run(GRANTED.model_copy(update={"experiment": 10}), HONEST)).kind == "scored"
    assert await look(7, 8, 9) == [False, False, True], "it is counted anew once a run has ended well"
    on_a_cpu = await bench.run(broken)
    assert on_a_cpu.kind == "crashed"


class Sick(FakeLab):
    """From the third run on, the slots of this set lose every run."""

    slots = (1,)

    async def train(self, granted, source):
        outcome = await super().train(granted, source)
        if granted.slot not in self.slots or len(self.trained) < 3:
            return outcome
        return ev.Aborted(experiment=granted.experiment, run=granted.run, reason="GPU-1 is sick", quarantined=True)


def test_nothing_is_started_on_a_sick_gpu(tmp_path):
    session = night(tmp_path / "s" / "session.db", trouble=0.0, lab=Sick, slots=2)

    sick = next(r.seq for r in session.records if r.event.kind == "aborted")
    after = [r.event.slot for r in session.records[sick:] if r.event.kind == "granted"]
    assert len(after) > 20
    assert set(after) == {0}
    assert session.state.certificate
    assert session.state.ended == "the hour is over"


class AllSick(Sick):
    slots = (0, 1)


def test_without_a_gpu_the_night_ends_and_says_so(tmp_path):
    session = night(tmp_path / "s" / "session.db", trouble=0.0, lab=AllSick, slots=2)
    assert session.state.ended == "no GPU is left: GPU-1 is sick; GPU-1 is sick"
    assert fold([*session.records, ev.Record(seq=0, at=session.state.now, task_id="", event=ev.Resumed())]).slots == (
        0,
        1,
    )


def test_one_slot_trains_while_the_models_think(tmp_path):
    """A proposal takes a minute, an edit and a post-mortem most of another; how the last run ends is chance."""
    found = [measure(simulate(tmp_path / str(seed) / "session.db", 1, seed=seed)) for seed in (5, 7)]
    assert fmean(night.busy for night in found) >= 0.98
    assert min(night.kept for night in found) > 5


def test_an_overtaken_candidate_that_is_worse_than_its_parent_does_not_run_again(tmp_path):
    session = simulate(tmp_path / "s" / "session.db", 4, hours=2.5)

    state, best, overtaken = session.state, 0, 0
    for record in session.records:
        match record.event:
            case ev.Promoted(experiment=number):
                best = number
            case ev.Discarded(experiment=number):
                result = next(result for result in state.judged if result.experiment == number)
                assert result.incumbent == result.commit.parent == result.against.experiment
                overtaken += result.incumbent != best
            case ev.Kept(experiment=number) if number:
                result = next(result for result in state.judged if result.experiment == number)
                assert result.commit.parent == best
            case _:
                pass
    assert overtaken
    fresh = [run for run in list_runs(session.records) if run.end > state.now - 1000]
    assert {run.slot for run in fresh} == {0, 1, 2, 3}, "the certificate's runs go to all slots"
    assert state.certificate


def test_stacked_candidates_are_kept_one_after_the_other_and_none_is_measured_from_nothing(tmp_path):
    session = simulate(tmp_path / "s" / "session.db", 8, hours=1.5)
    alone = simulate(tmp_path / "a" / "session.db", 8, hours=1.5, rule=KEEP_RULE.model_copy(update={"stacks": False}))

    kept = {result.experiment: result for result in session.state.kept}
    runs, parents, soon = Counter[int](), dict[int, ev.Committed](), 0
    for record in session.records:
        match record.event:
            case ev.Scored(experiment=number):
                runs[number] += 1
            case ev.Committed(experiment=number, how="rebased") as commit if number in runs:
                assert commit.earlier
                assert commit.earlier[2] == runs.pop(number), "what ran on the old parent is remembered"
                parents[number] = commit
                soon += bool(commit.onto) and not runs[commit.parent]
            case ev.Committed(experiment=number):
                parents[number] = record.event
            case _:
                pass
    stacked = [number for number in kept if parents[number].onto]
    assert len(stacked) > 2
    assert soon, "none waits for the first score of what it is stacked on"
    assert all("earlier parents" in kept[number].verdict.reason for number in stacked)
    assert any(record.event.how == "rebased" for record in alone.records if record.event.kind == "committed")
    assert not any(record.event.onto for record in alone.records if record.event.kind == "committed")
    assert measure(session, 1.5).gain > measure(alone, 1.5).gain
