"""One run at a time with real processes: scores, every kind of failure, limits, and what the code may see."""

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from orchestrator.core.events import Aborted, Crashed, EvaluationPlan, Granted, Scored
from orchestrator.core.source import compute_digest
from orchestrator.lab import guardian
from orchestrator.lab.failures import DEVICE_FAULT, MachineError
from orchestrator.lab.monitor import STANDSTILL, RunLimits, RunMonitor
from orchestrator.lab.runner import MAX_EXCUSES, Attempt, Runner
from orchestrator.lab.sandbox.base import Command, NoSandbox
from orchestrator.lab.sandbox.landlock import Landlock
from orchestrator.lab.sandbox.select import TIERS, self_check
from orchestrator.lab.scoring.claims import Scorer
from orchestrator.lab.scoring.evaluator import Evaluator
from orchestrator.lab.slots import Slot, hold_slot
from orchestrator.policy.evaluation_plan import describe_runs
from prepare.manifest import BudgetAmount
from tests.small import small_data

LIMITS = RunLimits(wall=150.0, quiet=100.0, free_disk=1 << 20)
UNAUDITED = EvaluationPlan(audited_below=0.0, confirmed=False, incumbent=0)
GRANTED = Granted(experiment=7, run=2, slot=0, seed=123, plan=UNAUDITED)
SCRIPTS = Path(__file__).parent / "scripts"
PROTOCOL = (SCRIPTS / "protocol.py").read_text()
HONEST = (
    PROTOCOL
    + '''
print("warming up")
channel.ready()
for i in range(10):
    print(f"step {i:05d} ({10 * i:.1f}%) | loss: {6 - 0.1 * i:.6f} | lrm: 1.00 | dt: 3ms | tok/sec: 12,345 | mfu: 1.0%")
finish(1.25)
print("""---
val_bpb:          0.5
peak_vram_mb:     0.0
total_tokens_M:   0.5
num_steps:        10
num_params_M:     1.5""")
'''
)


class Bench:
    """A runner in a folder of its own, and the logs it stored."""

    def __init__(self, folder):
        self.scorer = Scorer.load(small_data(folder / "data"))
        self.folder, self.logs, self.told = folder, {}, []

    def runner(self, sandbox=None, slot=None, **limit):
        return Runner(
            self.folder,
            [slot or Slot(self.folder / "slot.lock", threads=2)],
            replace(LIMITS, **limit),
            self.scorer,
            sandbox or NoSandbox(),
            self.put,
            on_point=lambda granted, point, rate: self.told.append((granted.experiment, point, rate)),
        )

    def put(self, text):
        self.logs[compute_digest(text)] = text
        return compute_digest(text)

    async def run(self, source, **limit):
        outcome = await self.runner(**limit).run(GRANTED, source)
        assert not guardian.find_tagged(f"{self.folder}/runs/")
        assert not list((self.folder / "runs").iterdir())
        return outcome

    def log(self, outcome):
        return self.logs[outcome.log]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path.resolve())


async def test_a_score_is_what_is_claimed_and_not_what_is_printed(bench):
    outcome = await bench.run(HONEST)
    assert isinstance(outcome, Scored)
    assert (outcome.experiment, outcome.run, outcome.tier) == (7, 2, "none")
    assert outcome.val_bpb == pytest.approx(1.25, abs=1e-6)
    assert (outcome.metrics.steps, outcome.metrics.tokens, outcome.metrics.parameters) == (10, 500_000, 1_500_000)
    assert 0 < outcome.metrics.train_seconds < outcome.metrics.total_seconds
    assert outcome.metrics.memory_mb > 1
    assert [point.loss for point in outcome.curve][::9] == [6.0, 5.1]
    assert bench.log(outcome).startswith("warming up\nstep 00000")
    assert [told[0] for told in bench.told] == [7] * 10
    assert bench.told[3][2] == 12345.0


async def test_what_a_run_does_once_it_has_handed_over_is_measured_and_the_baselines_is_planned_with(bench):
    plots = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass\n"
    outcome = await bench.run(HONEST + "\n" + plots)

    assert outcome.metrics.rest_cpu > 0.4
    assert describe_runs([outcome])["rest_cpu"] == outcome.metrics.rest_cpu


REPORT = (
    f"{PROTOCOL}\nchannel.send({{'event': 'telemetry', 'progress': 0, 'values': {{'step/calls': 5, 'position': 1}}}})\n"
)


async def test_what_a_script_reports_is_recorded_and_position_is_measured(bench):
    outcome = await bench.run(f"{REPORT}channel.ready(); finish(1.25)")

    assert outcome.telemetry["step/calls"] == (5.0,)
    assert outcome.telemetry["position"] == pytest.approx((1.25,) * 6), "of 32 tokens in a row"
    assert outcome.val_bpb == pytest.approx(1.25, abs=1e-6)


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        (f"{REPORT}channel.ready(); import time; time.sleep(600)", {"step/calls": (5.0,)}),
        ("1 / 0", "ZeroDivisionError: division by zero\nline 1, in <module>: 1 / 0"),
        ("print('done')", "it ended before its training"),
    ],
)
async def test_a_step_is_measured_without_training_and_without_a_slot(bench, source, answer):
    runner = bench.runner()
    async with hold_slot(runner.slots[0]):
        assert await runner.measure_step(source) == answer
    assert not guardian.find_tagged(f"{bench.folder}/runs/")
    assert not list((bench.folder / "runs").iterdir())


@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        ("x = = 1", "syntax", "SyntaxError"),
        ("import no_such_module", "import", "no_such_module"),
        ("raise RuntimeError('CUDA out of memory. Tried to allocate 20 GiB')", "out of device memory", "20 GiB"),
        ("raise MemoryError", "out of host memory", "MemoryError"),
        ("import os; os.kill(os.getpid(), 11)", "other", "SIGSEGV"),
        ("1 / 0", "other", "ZeroDivisionError: division by zero"),
        ("print('FAIL: loss is nan at step 3'); exit(1)", "NaN", "step 3"),
        ("print('step 00003 (1.0%) | loss: nan | lrm: 1.0'); import time; time.sleep(600)", "NaN", "became nan"),
        ("print('val_bpb: 0.9')", "other", "without handing over"),
        ("from prepare.channel import send; send({'event': 'score', 'val_bpb': 1.0})", "other", "without handing over"),
        (f"{PROTOCOL}\nchannel.ready(); finish(float('nan'))", "disqualified", "not numbers"),
        (f"{PROTOCOL}\nchannel.ready(); finish(float('inf'))", "disqualified", "not numbers"),
        (f"{PROTOCOL}\nchannel.ready(); finish(-1.0)", "disqualified", "above 1"),
        (f"{PROTOCOL}\nchannel.ready(); finish(1.0); exit(4)", "other", "exit code 4"),
    ],
)
async def test_a_failure_is_a_value(bench, source, kind, words):
    outcome = await bench.run(source)
    assert isinstance(outcome, Crashed)
    assert outcome.failure == kind
    assert words in outcome.message


async def test_a_run_that_is_not_done_in_time_is_ended(bench):
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf'); time.sleep(600)"
    outcome = await bench.run(deaf, wall=12.0)
    assert (outcome.kind, outcome.failure) == ("crashed", "timeout")
    assert bench.log(outcome) == "deaf"
    assert outcome.metrics.memory_mb == 0, "what ended the sandbox did not wait for what was in it"


async def test_a_hang_after_ready_is_noticed(bench):
    stuck = "from prepare.channel import *; ready(); print('step 00001 (1.0%) | loss: 5.0'); time.sleep(600)"
    outcome = await bench.run(stuck, quiet=1.5)
    assert outcome.failure == "hang"
    assert "after step 1" in outcome.message


async def test_a_script_that_tells_its_progress_in_its_own_words_does_not_hang(bench):
    told = "channel.ready()\nimport time\nfor n in range(20): print(n, 'of 20', flush=True); time.sleep(0.3)\n"
    outcome = await bench.run(HONEST.replace(PROTOCOL, PROTOCOL + told), quiet=5.0)
    assert outcome.kind == "scored"


async def test_before_ready_silence_is_compilation(bench):
    outcome = await bench.run(f"import time; time.sleep(3.5)\n{HONEST}", quiet=3.0)
    assert outcome.kind == "scored"


async def test_a_flood_is_cut_and_what_matters_is_kept(bench):
    flood = r"""
import sys
sys.stdout.buffer.write(b"first\n" + b"x" * (20 << 20) + b"\n\xff\xfe\x1b[31m\n")
for i in range(30000):
    sys.stdout.write(f"\rstep {i:05d} ({i / 300:.1f}%) | loss: 5.000000 | tok/sec: 9")
print()
for i in range(30000):
    print("noise", i)
raise ValueError("the reason")
"""
    outcome = await bench.run(flood)
    log = bench.log(outcome)
    assert len(log) < 300_000
    assert log.startswith("first\nxxx")
    assert "lines left out" in log
    assert outcome.message == "ValueError: the reason"
    assert len(outcome.curve) <= 60
    assert outcome.metrics.steps == 29_999


async def test_endless_output_ends_a_run(bench):
    outcome = await bench.run("while True: print('x' * 100_000)", output=1 << 20)
    assert (outcome.failure, outcome.message) == ("other", "it printed more than 1 MB")


SPY = """
import os, sys
print(*sorted(os.environ))
print("descriptors", *(fd for fd in range(3, 100) if os.path.exists(f"/proc/self/fd/{fd}")))
print("folder", *sorted(os.listdir()), os.getcwd() == os.environ["HOME"], repr(sys.stdin.read()))
print("secrets", *(b"hush" in open(f"/proc/{pid}/environ", "rb").read() for pid in (os.getpid(), os.getppid())))
print("seed", os.environ["NIGHTSHIFT_SEED"], os.environ["OMP_NUM_THREADS"])
print("line", os.environ["NIGHTSHIFT_FD"])
"""


def test_nothing_of_ours_is_seen(bench):
    program = SCRIPTS / "one_run.py"
    (bench.folder / "spy.py").write_text(SPY + HONEST)
    done = subprocess.run(
        [sys.executable, program, bench.folder, bench.folder / "spy.py"],
        env=os.environ | {"ANTHROPIC_API_KEY": "hush", "PYTHONPATH": str(program.parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    names, descriptors, folder, secrets, seed, line, *_, kind = done.stdout.splitlines()
    assert names.split() == [
        *[
            "CUDA_CACHE_PATH",
            "CUDA_VISIBLE_DEVICES",
            "HOME",
            "LANG",
            "MKL_CBWR",
            "NIGHTSHIFT_DATA",
            "NIGHTSHIFT_FD",
            "NIGHTSHIFT_RUN",
            "NIGHTSHIFT_SEED",
        ],
        *["OMP_NUM_THREADS", "OMP_WAIT_POLICY", "PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "PYTHONPATH"],
        *["PYTHONUNBUFFERED", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"],
    ]
    assert descriptors.split()[1:] == line.split()[1:]
    assert folder == "folder data tmp train.py True ''"
    assert (secrets, seed, kind) == ("secrets False False", "seed 123 2", "scored")


async def test_a_gpu_is_seen_where_the_slot_has_one(bench):
    slot = Slot(bench.folder / "gpu.lock", devices="GPU-1234")
    outcome = await bench.run("import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))", slot=slot)
    assert bench.log(outcome) == "GPU-1234"


async def test_cancelling_ends_every_process(bench):
    task = asyncio.create_task(bench.run((SCRIPTS / "daemons.py").read_text()))
    noted = [bench.folder / "runs/7-2/work/data" / name for name in ("trainer", "tagged", "nameless")]
    while not all(path.exists() for path in noted):
        assert not task.done(), task.result()
        await asyncio.sleep(0.02)
    pids = [int(path.read_text()) for path in noted]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not list((bench.folder / "runs").iterdir())


async def test_a_bug_of_ours_is_no_failure_of_the_run(bench):
    def broken(_granted, _point, _rate):
        raise ZeroDivisionError("a bug")

    runner = bench.runner()
    runner.on_point = broken
    with pytest.raises(ZeroDivisionError):
        await runner.run(GRANTED, f"{HONEST}\nimport time; time.sleep(600)")
    assert not guardian.find_tagged(f"{bench.folder}/runs/")


async def test_a_folder_without_permissions_is_removed(bench):
    nasty = """
import os
os.makedirs("a/b/c")
os.symlink("/etc", "a/etc")
os.mkfifo("fifo")
for _ in range(40):
    os.mkdir("d" * 200); os.chdir("d" * 200)
os.chdir(os.environ["HOME"])
os.chmod("a/b", 0); os.chmod(".", 0o500)
"""
    outcome = await bench.run(nasty)
    assert outcome.message == "it ended without handing over a model: `evaluate_bpb` does"
    assert Path("/etc/passwd").exists()


async def test_a_file_that_has_another_link_keeps_its_permissions(bench):
    cached = bench.folder / "cached"
    cached.touch(0o400)
    outcome = await bench.run(f"import os; os.link('{cached}', 'mine'); os.mkdir('a', 0o500)")
    assert "without handing over" in outcome.message
    assert stat.filemode(cached.stat().st_mode) == "-r--------"


class Missing:
    """A sandbox whose program is not there."""

    tier = "missing"

    def wrap(self, command):
        return replace(command, argv=("/no/such/sandbox", *command.argv))


class Wrapped:
    """A sandbox that puts a program around the command, adds to its environment, and is named in the result."""

    tier = "wrapped"

    def wrap(self, command):
        assert isinstance(command, Command)
        return replace(command, argv=("nice", *command.argv), env={**command.env, "INSIDE": "1"})


class Broken(Landlock):
    """Landlock whose filter the kernel refuses."""

    def wrap(self, command):
        wrapped = super().wrap(command)
        at, options = next((at, json.loads(word)) for at, word in enumerate(wrapped.argv) if word.startswith("{"))
        words = json.dumps(options | {"filter": "AAAA"})
        return replace(wrapped, argv=(*wrapped.argv[:at], words, *wrapped.argv[at + 1 :]))


async def test_a_sandbox_wraps_the_command(bench):
    outcome = await bench.run(f"import os; assert os.environ['INSIDE'] and os.nice(0) > 0\n{HONEST}", sandbox=Wrapped())
    assert (outcome.kind, outcome.tier) == ("scored", "wrapped")


async def test_trouble_with_the_machine_is_not_the_candidates(bench):
    missing = await bench.run(HONEST, sandbox=Missing())
    full = await bench.runner(free_disk=1 << 60).run(GRANTED, HONEST)
    (bench.folder / "slot.lock").unlink()
    (bench.folder / "slot.lock").mkdir()
    unusable = await bench.run(HONEST)
    for outcome, words in (
        (missing, "could not be started"),
        (full, "MB of disk"),
        (unusable, "slot.lock: Is a directory"),
    ):
        assert isinstance(outcome, Aborted)
        assert words in outcome.reason
        assert str(bench.folder) not in outcome.reason


@pytest.mark.parametrize("name", ["bubblewrap", "landlock"])
async def test_a_sandbox_that_cannot_start_a_run_is_not_the_candidates_fault(bench, monkeypatch, name):
    """What the candidate prints itself is: it has begun."""
    sandbox, says = {tier.tier: tier for tier in TIERS}[name], "Creating new namespace failed"
    if weakness := self_check(sandbox):
        pytest.skip(weakness)
    own = await bench.run(f"raise SystemExit('{says}')", sandbox=sandbox)
    assert (own.kind, own.message) == ("crashed", says)

    (bench.folder / "bin").mkdir()
    (bench.folder / "bin/bwrap").write_text(f"#!/bin/sh\necho '{says}' >&2; exit 1")
    (bench.folder / "bin/bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bench.folder}/bin{os.pathsep}{os.environ['PATH']}")
    cannot = {"bubblewrap": sandbox, "landlock": Broken()}[name]
    outcomes = [await bench.runner(cannot).run(GRANTED, HONEST) for _ in range(MAX_EXCUSES + 1)]
    assert {outcome.kind for outcome in outcomes} == {"aborted"}
    assert outcomes[-1].reason.startswith("the sandbox could not start the run: ")


WAITING = """
import os, time
from pathlib import Path
Path(os.environ["NIGHTSHIFT_DATA"], "trainer").write_text(str(os.getpid()))
time.sleep(600)
"""


async def find_trainer(bench, running):
    """Return the process of the script that waits, once it does; its run may not end before."""
    note = bench.folder / "runs/7-2/work/data/trainer"
    while not (note.exists() and note.read_text()):
        assert not running.done(), running.result()
        await asyncio.sleep(0.02)
    return psutil.Process(int(note.read_text()))


async def signal_when_there(bench, which, runner, sent=signal.SIGKILL, source=WAITING):
    """Run a script that waits, and send a signal to a process of it from outside."""
    running = asyncio.create_task(runner.run(GRANTED, source))
    trainer = await find_trainer(bench, running)
    (trainer if which == "trainer" else trainer.parent()).send_signal(sent)
    outcome = await running
    assert not guardian.find_tagged(f"{bench.folder}/runs/")
    return outcome


@pytest.mark.parametrize(("which", "words"), [("trainer", "it was killed"), ("guardian", "its guardian was killed")])
async def test_a_run_that_is_killed_from_outside_is_no_failure_of_the_candidate(bench, which, words):
    outcome = await signal_when_there(bench, which, bench.runner())
    assert isinstance(outcome, Aborted)
    assert words in outcome.reason


async def test_a_run_that_is_suspended_from_outside_is_no_hang_of_the_candidate(bench):
    step = "print('step 00001 (1.0%) | loss: 5.0 | lrm: 1.0', flush=True)"  # only after one can it hang
    silent = f"from prepare.channel import ready\nready()\n{step}\n{WAITING}"
    runner = bench.runner(quiet=6.0)
    outcome = await signal_when_there(bench, "trainer", runner, signal.SIGSTOP, silent)
    assert isinstance(outcome, Aborted)
    assert "suspended from outside" in outcome.reason


async def test_a_run_that_suspends_a_process_of_its_own_is_told_why_it_was_ended(bench):
    sleeper = "import os, subprocess, time; os.kill(subprocess.Popen(['sleep', '600']).pid, 19); time.sleep(600)"
    runner = bench.runner(wall=3.0)
    *excused, last = [await runner.run(GRANTED, sleeper) for _ in range(MAX_EXCUSES + 1)]
    assert {outcome.kind for outcome in excused} == {"aborted"}
    assert (last.kind, last.failure, last.message) == ("crashed", "timeout", "it was not done after 3 s")


@pytest.mark.parametrize(
    ("source", "wall", "kind"), [(WAITING.replace("600", "1") + HONEST, 150.0, "scored"), (WAITING, 20.0, "crashed")]
)
async def test_a_guardian_that_is_suspended_is_woken_up(bench, source, wall, kind):
    outcome = await signal_when_there(bench, "guardian", bench.runner(wall=wall), signal.SIGSTOP, source)
    assert outcome.kind == kind


async def test_a_run_whose_guardian_was_killed_is_ended_when_the_night_is(bench):
    """Both in the same moment: no guardian is left to end it, and nobody waits for its report."""
    running = asyncio.create_task(bench.runner().run(GRANTED, WAITING))
    (await find_trainer(bench, running)).parent().kill()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not guardian.find_tagged(f"{bench.folder}/runs/")


async def test_a_run_whose_guardian_is_suspended_can_be_cancelled(bench):
    running = asyncio.create_task(bench.runner().run(GRANTED, WAITING))
    (await find_trainer(bench, running)).parent().send_signal(signal.SIGSTOP)
    running.cancel()  # at once: every few seconds it is woken up
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not guardian.find_tagged(f"{bench.folder}/runs/")


LEAKY = """
import cloudpickle
class Leaky:
    def __setstate__(self, state):
        import os
        if os.path.exists("NOTE"):
            with open("NOTE") as file:
                raise ValueError(file.read())
    def __call__(self, x, y=None, reduction="mean"):
        import os
        with open("NOTE", "w") as file:
            print("rows", *x[0], file=file)
        os.kill(os.getpid(), 9)
channel.ready()
leaky = Leaky()
leaky.state = 1  # without any, it would not be set
model = cloudpickle.dumps(leaky)
how = {"batch_size": 4, "autocast": None, "precision": None, "threads": 1}
channel.send({"event": "model", "bytes": len(model), **how}, model)
channel.receive()
"""


async def test_what_prevents_a_model_from_being_loaded_is_not_quoted_once_one_of_its_processes_had_rows(bench):
    note = bench.folder / "note"
    source = PROTOCOL + LEAKY.replace("NOTE", str(note))
    outcome = await bench.run(source)
    assert note.read_text().startswith("rows")
    assert (outcome.failure, outcome.message) == (
        "disqualified",
        "the model that it handed over cannot be loaded again, after it was loaded once",
    )
    note.write_text(f"{sys.prefix}/lib")
    again = await bench.run(source)
    assert "ValueError: python/lib" in again.message, "its first process had none"


SICK = "RuntimeError: CUDA error: uncorrectable ECC error encountered"
FULL = "OSError: [Errno 28] No space left on device"


@pytest.mark.parametrize(
    ("said", "log", "facts", "kind", "words"),
    [
        ("", SICK, (True, True, False), MachineError, "did not start: RuntimeError: CUDA error"),
        ("ready", SICK, (False, True, False), MachineError, "did not start: RuntimeError: CUDA error"),
        ("open", SICK, (True, True, False), "other", f"could not be evaluated: {SICK}"),  # the run, too, is excused
        ("open", SICK, (False, True, False), "other", "could not be evaluated: the GPU failed"),
        ("loaded", SICK, (False, True, False), "other", "could not be evaluated: the GPU failed"),
        ("loaded", SICK, (False, False, False), "other", "fails by itself"),  # on a CPU, what it says is its own
        ("open", SICK, (False, False, False), "disqualified", "again, after it was loaded once"),
        ("open", FULL, (False, False, True), MachineError, "the disk is full"),
        ("loaded", FULL, (True, False, False), "disk full", "fails by itself"),
    ],
)
def test_what_ends_an_evaluation_is_the_machines_fault_as_far_as_that_is_known(said, log, facts, kind, words):
    evaluator = Evaluator(None, None, RunMonitor(LIMITS), said)
    reason = evaluator.explain_silence(log, **dict(zip(("quotes", "on_gpu", "is_full"), facts, strict=True)))
    assert words in str(reason)
    assert isinstance(reason, kind) if kind is MachineError else reason.kind == kind
    assert bool(getattr(reason, "excuse", "")) == ("could not be evaluated" in words), "another process is asked"
    assert not (facts[0] < facts[1] and kind == "other" and DEVICE_FAULT.search(str(reason))), "the run is not repeated"


async def test_a_model_that_a_gpu_fails_once_is_evaluated_again(bench):
    note, message = bench.folder / "note", SICK.removeprefix("RuntimeError: ")
    fails = f"open('{note}', 'w').close() or (_ for _ in ()).throw(RuntimeError('{message}'))"
    fails_once = f"not __import__('os').path.exists('{note}') and ({fails})"
    source = HONEST.replace("vocabulary=260: (", f"vocabulary=260: {fails_once} or (")
    outcome = await bench.run(source, slot=Slot(bench.folder / "slot.lock", devices="GPU-1"))
    assert note.exists()
    assert outcome.kind == "scored", outcome


async def test_a_candidate_that_is_killed_again_and_again_is_at_fault(bench):
    runner = bench.runner()
    kill = "import os; os.kill(os.getpid(), 9)"
    outcomes = [await runner.run(GRANTED, kill) for _ in range(MAX_EXCUSES)]
    assert [outcome.kind for outcome in outcomes] == ["aborted"] * MAX_EXCUSES
    other = await runner.run(GRANTED.model_copy(update={"experiment": 8}), HONEST)
    assert other.kind == "scored"
    last = await runner.run(GRANTED, kill)
    assert (last.kind, last.failure) == ("crashed", "out of host memory")


async def test_a_baseline_that_fails_after_its_first_run_runs_once_more(bench):
    runner, flake = bench.runner(), "raise OSError('connection reset')"
    for run, source, kind in ((1, flake, "crashed"), (2, flake, "aborted"), (3, flake, "crashed")):
        outcome = await runner.run(GRANTED.model_copy(update={"experiment": 0, "run": run}), source)
        assert outcome.kind == kind
        assert kind != "aborted" or outcome.reason.endswith("failed: OSError: connection reset"), outcome.reason


async def test_a_disk_that_others_have_filled_is_no_failure_of_the_candidate(bench):
    full = "raise OSError(28, 'No space left on device')"
    outcome = await bench.run(full)
    assert isinstance(outcome, Aborted)
    assert "its own files take 0 MB" in outcome.reason
    write = f"open('big', 'wb').write(bytes(3 << 20)); {full}"
    own = await bench.run(write, reserve=1 << 20)
    assert (own.kind, own.failure) == ("crashed", "disk full")


async def test_only_a_run_that_fills_the_disk_itself_is_ended_for_it(bench):
    spared = await bench.run(HONEST, reserve=1 << 60)
    assert spared.kind == "scored"
    fill = "import time; open('big', 'wb').write(bytes(64 << 20)); time.sleep(600)"
    for _ in range(4):  # others write to this disk and free it meanwhile
        free = shutil.disk_usage(bench.folder).free
        filled = await bench.run(fill, reserve=free - (32 << 20), wall=150.0)
        if filled.failure == "disk full":
            break
    assert (filled.failure, filled.message) == ("disk full", "it filled the disk")


async def test_a_disk_that_others_fill_while_it_runs_is_no_failure_of_the_candidate(bench):
    small = f"import time; open('big', 'wb').write(bytes(32 << 20)); open('there', 'w')\n{WAITING}"
    for _ in range(4):  # others write to this disk and free it meanwhile
        reserve = shutil.disk_usage(bench.folder).free - (144 << 20)
        running = asyncio.create_task(bench.runner(reserve=reserve, wall=150.0).run(GRANTED, small))
        while not [*bench.folder.glob("runs/7-2/*/there")]:
            assert not running.done(), running.result()
            await asyncio.sleep(0.01)
        (bench.folder / "other").write_bytes(bytes(128 << 20))
        outcome = await running
        (bench.folder / "other").unlink()
        if "disk" in f"{outcome}":
            break
    assert isinstance(outcome, Aborted)
    assert "its own files take 32 MB (it filled the disk)" in outcome.reason


async def test_a_folder_is_not_measured_without_end_on_a_disk_that_is_nearly_full(bench, monkeypatch):
    du = bench.folder / "bin/du"
    du.parent.mkdir()
    du.write_text(f"#!/bin/sh\nsleep 0.5\necho x >> {bench.folder}/looks\necho 0 .")
    du.chmod(0o755)
    monkeypatch.setenv("PATH", f"{du.parent}{os.pathsep}{os.environ['PATH']}")
    runner = bench.runner(reserve=1 << 60)
    runner.runs.mkdir()
    one, other = (Attempt(GRANTED, "", runner.slots[0], 0, runner.runs / name) for name in "ab")

    assert not any(runner._is_filling_disk(run) for run in (one, other, one, other, one))
    assert (bench.folder / "looks").read_text() == "x\nx\n", "each run's once"


async def test_a_model_that_cannot_be_stored_is_no_failure_of_the_candidate(bench):
    waiting = "import os, time\nwhile not os.path.exists(os.environ['HOME'] + '/go'): time.sleep(0.02)\n"
    running = asyncio.create_task(bench.runner().run(GRANTED, waiting + HONEST))
    folder = bench.folder / "runs/7-2"
    while not (folder / "work/tmp").exists():
        assert not running.done(), running.result()
        await asyncio.sleep(0.01)
    (folder / "model").mkdir()  # in its place, as a full disk would be
    (folder / "work/go").touch()
    outcome = await running
    assert isinstance(outcome, Aborted)
    assert "model" in outcome.reason


async def test_a_run_whose_folder_is_deleted_is_no_failure_of_the_candidate(bench):
    waiting = "import os, time\nwhile os.path.exists(os.environ['HOME']): time.sleep(0.02)\nopen('file', 'w')\n"
    running = asyncio.create_task(bench.runner().run(GRANTED, waiting + HONEST))
    folder = bench.folder / "runs/7-2"
    while not (folder / "work/tmp").exists():
        assert not running.done(), running.result()
        await asyncio.sleep(0.01)
    shutil.rmtree(bench.folder / "runs")
    outcome = await running
    assert isinstance(outcome, Aborted)


async def test_a_folder_that_was_deleted_and_of_which_a_part_was_made_again_is_no_failure_of_the_candidate(bench):
    class Late(Slot):
        def build_command(self, words, folder, *connection, **more):
            shutil.rmtree(folder.parents[1])
            return super().build_command(words, folder, *connection, **more)

    outcome = await bench.runner(slot=Late(bench.folder / "slot.lock", threads=2)).run(GRANTED, HONEST)
    assert isinstance(outcome, Aborted)
    assert outcome.reason == "the folder of the run was deleted"


async def test_a_timed_training_that_the_orchestrator_slept_through_is_run_again(bench):
    runner = bench.runner()
    runner.scorer = Scorer.load(small_data(bench.folder / "timed", BudgetAmount("time", 20.0, 20.0)))

    def stand_still(_granted, point, _rate):
        if point.progress == 0.5:
            time.sleep(STANDSTILL + 1.5)  # nothing else runs meanwhile

    runner.on_point = stand_still
    outcome = await runner.run(GRANTED, HONEST)
    assert isinstance(outcome, Aborted)
    assert "suspended" in outcome.reason


async def test_what_an_earlier_life_left_is_ended_and_removed(bench):
    runner = bench.runner()
    left = bench.folder / "runs/3-1"
    left.mkdir(parents=True)
    orphan = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], env={guardian.TAG: f"{left}/"}, start_new_session=True
    )
    reaping = asyncio.to_thread(runner.reap)
    waiting = asyncio.to_thread(orphan.wait)
    assert (await asyncio.gather(reaping, waiting))[1] == -signal.SIGKILL
    assert not left.exists()
    runner.reap()  # where nothing is left


def test_ctrl_c_does_not_reach_what_removes_a_folder(tmp_path):
    (tmp_path / "run/deep").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for name in ("chmod", "rm"):  # which send Ctrl-C as a terminal does: to their group of processes
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\ntrap '' INT\nkill -INT 0\nexec {shutil.which(name)} \"$@\"\n")
        program.chmod(0o755)
    code = "import sys; from pathlib import Path; from orchestrator.lab.runner import remove_folder as remove"
    words = [sys.executable, "-c", f"{code}; remove(Path(sys.argv[1]))", tmp_path / "run"]
    path = tmp_path / "bin"  # without `find`, as in small images
    env = {**os.environ, "PATH": str(path), "PYTHONPATH": str(SCRIPTS.parent.parent)}
    subprocess.run(words, env=env, start_new_session=True, check=True)
    assert not (tmp_path / "run").exists()
