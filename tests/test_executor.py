"""The loop's port as a whole: a real repository, real runs, the text store of a session."""

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from orchestrator.cli.start import describe_profile
from orchestrator.core.events import Aborted, Granted, RunMetrics, Scored
from orchestrator.core.source import compute_digest, compute_fingerprint
from orchestrator.executor import STALE, LocalExecutor
from orchestrator.lab.monitor import RunLimits
from orchestrator.lab.runner import Runner
from orchestrator.lab.sandbox.base import NoSandbox
from orchestrator.lab.scoring.claims import Scorer
from orchestrator.lab.slots import list_slots
from orchestrator.repo import Repo, RepoError
from prepare import profiles
from prepare.machine import Gpu
from prepare.manifest import BudgetAmount, Manifest
from tests.small import small_data
from tests.test_repo import git, project
from tests.test_runner import HONEST, UNAUDITED
from tests.virtual import run_virtually

SCRIPT = f"DEPTH = 8  # 1..12 – blocks\nprint('depth', DEPTH)\n{HONEST}"


@pytest.fixture
def bench(tmp_path):
    folder = project(tmp_path / "project")
    (folder / "train.py").write_text(SCRIPT)
    git(folder, "commit", "-qam", "a script")
    session, texts = tmp_path / "sessions/may", {}
    session.mkdir(parents=True)

    def put(text):
        texts[compute_digest(text)] = text
        return compute_digest(text)

    limits, scorer = RunLimits(wall=60, free_disk=1), Scorer.load(small_data(tmp_path / "data"))
    runner = Runner(session, list_slots(1, session, threads=2), limits, scorer, NoSandbox(), put)
    return (
        LocalExecutor(
            Repo(folder / "train.py", "may"), runner, put, lambda own: profiles.apply_to_script(own, profiles.CPU)
        ),
        texts,
        folder,
    )


async def test_a_small_night(bench):
    lab, texts, folder = bench
    fitted = await lab.commit_baseline()
    assert fitted == await lab.commit_baseline()
    base = texts[fitted.source]
    assert base.startswith("DEPTH = 3")
    assert fitted.fingerprint == compute_fingerprint(base)
    assert fitted.commit == git(folder, "rev-parse", "HEAD") == git(folder, "rev-parse", "research/may")
    assert git(folder, "show", "refs/nightshift/may/0:train.py") == base.strip()
    source = base.replace("1.25", "1.125")
    await lab.commit(1, fitted.commit, source, "candidate 1: try")
    outcome = await lab.train(Granted(experiment=1, run=1, slot=0, seed=5, plan=UNAUDITED), source)
    assert isinstance(outcome, Scored)
    assert outcome.val_bpb == pytest.approx(1.125, abs=1e-6)
    assert texts[outcome.log].startswith("depth 3\nwarming up")
    kept = await lab.promote(1, fitted.commit, source, "try\n\nExperiment: 1\n")
    assert git(folder, "rev-parse", "research/may") == kept
    assert git(folder, "show", f"{kept}:train.py") == SCRIPT.replace("1.25", "1.125").strip()
    assert git(folder, "status", "--porcelain") == ""


async def test_a_lock_on_a_ref_of_the_session_that_was_left_behind_holds_nothing_up(bench):
    lab, texts, folder = bench
    fitted = await lab.commit_baseline()
    lock = folder / ".git/refs/nightshift/may/1.lock"
    lock.touch()
    os.utime(lock, (0, time.time() - STALE))

    assert await lab.commit(1, fitted.commit, texts[fitted.source].replace("1.25", "1.125"), "candidate 1: try")

    assert not lock.exists()


async def test_git_is_waited_for_with_a_line_while_runs_go_on_until_the_night_stops(bench):
    lab, texts, folder = bench
    said, stopping = [], []
    lab = replace(lab, say=said.append, is_stopping=lambda: bool(stopping), patience=0)
    fitted = await lab.commit_baseline()
    base = texts[fitted.source]
    locks = [folder / f".git/refs/nightshift/may/{name}.lock" for name in ("1", "kept")]
    for lock in locks:
        lock.touch()
        os.utime(lock, (time.time() + 3600,) * 2)  # else it would be taken for one that was left
    waiting = asyncio.create_task(lab.commit(1, fitted.commit, base, "candidate 1: try"))
    outcome = await lab.train(Granted(experiment=1, run=1, slot=0, seed=5, plan=UNAUDITED), base)
    assert outcome.kind == "scored"
    while not said:  # git's own patience with the lock may be longer than the training
        assert not waiting.done()
        await asyncio.sleep(0.01)
    assert "1.lock" in said[0]
    locks[0].unlink()
    assert await waiting == git(folder, "rev-parse", "refs/nightshift/may/1")
    assert len(said) == 1

    stopping.append("the hours are over")
    with pytest.raises(RepoError, match="lock"):
        await lab.promote(1, fitted.commit, base, "try\n\nExperiment: 1\n")


def test_the_profile_says_what_the_data_was_prepared_for():
    manifest = Manifest(
        profile="cpu",
        corpus="docstrings",
        corpus_sha256="0" * 64,
        seq_len=256,
        vocab_size=2048,
        eval_tokens=1 << 16,
        budget=BudgetAmount("work", 3e12, 20.0),
        rows={"train": 1, "val": 1},
        files={},
        versions={},
    )
    found = describe_profile(manifest, 2.8)
    assert (found.name, found.budget_kind, found.budget) == ("cpu", "work", 3e12)
    assert found.expected_seconds > 20
    timed = replace(manifest, budget=BudgetAmount("time", 20.0, 20.0))
    assert describe_profile(timed, 2.8).expected_seconds > found.expected_seconds  # a GPU's code is compiled first
    assert found.data_hash == manifest.digest
    assert (found.train_tokens, found.bytes_per_token) == (256, 2.8)


def test_a_slot_is_a_card_with_its_node_or_a_share_of_the_cores(tmp_path):
    cards = [Gpu(1 << 33, (8, 0), f"GPU-{node}", node) for node in (3, 1, 2)]

    first, second = list_slots(2, tmp_path, 8, cards)
    assert (first.devices, second.devices) == ("GPU-3", "GPU-1")
    assert first.nodes[0] == "/dev/nvidia3"
    assert "/dev/nvidiactl" in first.nodes
    assert not any("nvidia1" in node for node in first.nodes)
    assert first.lock.parent == second.lock.parent != tmp_path

    shares = list_slots(2, tmp_path, 8)
    assert [(slot.devices, slot.threads) for slot in shares] == [("", 8)] * 2
    assert not set(shares[0].cpus) & set(shares[1].cpus)


def test_the_lab_needs_no_torch():
    program = "import sys, orchestrator.executor; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)


class Machine:
    """A trainer whose broken slots end every run."""

    def __init__(self, *broken):
        self.broken, self.begun = broken, []

    async def run(self, granted, _):
        self.begun.append((granted.slot, asyncio.get_running_loop().time()))
        await asyncio.sleep(1)
        return (
            Aborted(experiment=1, run=1, reason="the disk is full")
            if granted.slot in self.broken
            else Scored(experiment=1, run=1, val_bpb=1.0, metrics=RunMetrics(), curve=(), log="")
        )


def test_a_slot_pauses_after_faults_of_its_own_and_not_for_ever():
    """One count for all slots made 16 of them wait for up to a week after a moment in which the disk was full."""
    lab = LocalExecutor(None, machine := Machine(1), None)

    async def work(slot):
        for _ in range(7):
            await lab.train(Granted(experiment=1, run=1, slot=slot, seed=0), "")

    async def go():
        await asyncio.gather(*map(work, range(2)))
        machine.broken = ()
        await lab.train(Granted(experiment=1, run=1, slot=1, seed=0), "")
        await lab.train(Granted(experiment=1, run=1, slot=1, seed=0), "")

    run_virtually(go())
    sound, broken = ([at for slot, at in machine.begun if slot == which] for which in range(2))
    assert [later - at for at, later in pairwise(sound)] == [1] * 6
    assert [later - at - 1 for at, later in pairwise(broken)] == [10, 30, 70, 150, 150, 150, 150, 0]
