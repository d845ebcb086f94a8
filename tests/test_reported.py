"""Nights on the user's own ground: any command, with the user's own preparation, evaluation and metric."""

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.cli.options import UsageError
from orchestrator.cli.preflight import load_style
from orchestrator.cli.task_file import find_task
from orchestrator.core.events import BaselineCommitted, Crashed, Granted, RunResult, Scored
from orchestrator.core.source import compute_digest
from orchestrator.core.task import Metric, Task
from orchestrator.executor import LocalExecutor
from orchestrator.lab.failures import Fault
from orchestrator.lab.log import NumberReader
from orchestrator.lab.monitor import RunLimits
from orchestrator.lab.reported import ReportedRunner, TaskFolder, find_change, find_score, set_reported_limits
from orchestrator.lab.sandbox.base import NoSandbox
from orchestrator.lab.sandbox.bubblewrap import Bubblewrap
from orchestrator.lab.sandbox.landlock import Landlock
from orchestrator.lab.sandbox.select import NoSandboxError, select_sandbox, self_check
from orchestrator.lab.slots import Slot
from orchestrator.repo import Repo
from orchestrator.session.store import Session
from orchestrator.views.musings import write_musings
from orchestrator.views.report import write_files
from prepare.files import read_written
from prepare.tree import join_files
from tests.fakes import PROFILE
from tests.hunting import try_examples
from tests.scripted import SOURCE, Scripted, _call, _opening, served
from tests.simulated import Landscape
from tests.simulated import night as simulate
from tests.test_cli import wait_until
from tests.workplace import ROOT, begun, git, orchestrate

UPSTREAM = ROOT / "tests/scripts/upstream"
SAFE = {"PYTHONSAFEPATH": "1"}
"""The folder holds a prepare.py of its own, which must not be ours."""
WORDS = ("--offline", "--hours", "1", "--session", "night", "--seed", "3")
LIMITS = RunLimits(wall=150, free_disk=1)
GRANTED = Granted(experiment=7, run=1, slot=0, seed=123)


def ground(folder: Path, files: dict[str, str]) -> Path:
    """A user's repository with these files, committed."""
    folder.mkdir(parents=True)
    for name, text in ({".gitignore": "/sessions/\n/musings/\n__pycache__/\n"} | files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "begin")
    return folder


def upstream(folder: Path, **more: str) -> Path:
    return ground(folder, {path.name: path.read_text() for path in UPSTREAM.iterdir() if path.is_file()} | more)


def opened(place: Path) -> Session:
    return Session(place / "sessions/night/session.db", time.time, read_only=True)


def research(place: Path, *words: str, experiments: int = 3):
    done = orchestrate(place, *WORDS, "--max-experiments", str(experiments), *words, **SAFE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """A night in an unmodified upstream-shaped folder, killed in the middle and resumed."""
    place = upstream(tmp_path_factory.mktemp("upstream") / "place")
    life = begun(place, *WORDS, "--max-experiments", "3", **SAFE)
    wait_until((place / "sessions/night/session.db").exists)
    wait_until(lambda: any(isinstance(record.event, Scored) for record in opened(place).records))
    os.kill(life.pid, signal.SIGKILL)
    life.communicate()
    return place, orchestrate(place, "resume", "night", **SAFE)


def test_an_unmodified_upstream_folder_runs_and_survives_a_kill(night):
    place, done = night

    assert done.returncode == 0, done.stdout + done.stderr
    session = opened(place)
    task = session.state.session.task
    assert (task.form, task.metric, task.command) == ("reported", Metric(), "python train.py")
    assert "be bold" in task.program
    assert session.state.ended == "3 experiments are done"
    assert len(session.state.results) == 4
    events = [record.event for record in session.records]
    grants = [(event.experiment, event.run) for event in events if isinstance(event, Granted)]
    assert len(set(grants)) == len(grants)
    score = next(event for event in events if isinstance(event, Scored))
    assert score.audit is None
    assert score.metrics.steps == 20
    assert len(score.curve) > 10
    assert score.reported["depth"] == 8
    assert "step 00019" in session.get(score.log)


def test_the_users_own_files_are_the_ground(night):
    place, _ = night
    session = opened(place)

    baseline = next(record.event for record in session.records if isinstance(record.event, BaselineCommitted))
    own = (UPSTREAM / "train.py").read_text()
    seeded = 'random.seed(int(__import__("os").environ.get("NIGHTSHIFT_SEED", 42)))'
    assert session.get(baseline.source) == own.replace("random.seed(42)", seeded)
    assert git(place, "diff", "--name-only", "main", "research/night") == "train.py"
    assert "random.seed(42)" in git(place, "show", "research/night:train.py").splitlines(), "the gains only"
    assert git(place, "status", "--porcelain") == ""


def test_a_session_goes_on_with_the_packages_that_it_began_with(night):
    place, _ = night
    (place / ".venv").mkdir()
    refused = orchestrate(place, "resume", "night", **SAFE)
    (place / ".venv").rmdir()
    assert refused.returncode == 2
    assert "earlier runs had the packages of Nightshift itself, and now they would have the packages of .venv: put" in (
        refused.stderr
    )


def test_what_it_says_is_what_the_record_shows(night):
    place, done = night

    told = done.stdout + (place / "sessions/night/report.html").read_text()
    assert "reported by the script, not audited" in done.stdout
    assert told.count("reported by the script, not audited") > 1
    doctor = orchestrate(place, "doctor", "--offline", **SAFE)
    assert "reported" in doctor.stdout
    assert "not audited" in " ".join(doctor.stdout.split())
    assert "train.py has a fixed seed: each run reads its own" in doctor.stdout
    assert '+random.seed(int(__import__("os").environ.get("NIGHTSHIFT_SEED", 42)))' in doctor.stdout
    task = opened(place).state.session.task
    assert task.seed == {"env": "NIGHTSHIFT_SEED"}
    assert task.noun == "repeat", "this script draws nothing, so that its seeds make no difference"


def test_it_replays_and_its_report_can_be_rebuilt(night):
    place, _ = night

    verified = orchestrate(place, "replay", "night", "--verify", **SAFE)
    assert verified.returncode == 0, verified.stdout
    (place / "sessions/night/results.tsv").unlink()
    assert orchestrate(place, "report", "night", **SAFE).returncode == 0
    assert (place / "sessions/night/results.tsv").read_text().startswith("commit\tval_bpb\tmemory_gb\t")


# One run


class Bench:
    """A runner of a task in a folder of its own, and the logs that it stored."""

    def __init__(
        self, folder: Path, source: str, files: dict[str, str] | None = None, place: Path | None = None, **task
    ):
        self.source, self.logs = source, {}
        place = place or ground(folder / "place", {"train.py": source} | (files or {}))
        self.task = Task(**({"form": "reported", "command": "python train.py", "editable": ["train.py"]} | task))
        repo = Repo(place / "train.py", "night", self.task)
        self.folder, self.scorer = folder, TaskFolder(self.task, repo, repo.get_start())

    def put(self, text):
        self.logs[compute_digest(text)] = text
        return compute_digest(text)

    def runner(self, sandbox=None, limits=LIMITS):
        slots = [Slot(self.folder / "slot.lock", threads=2)]
        return ReportedRunner(self.folder, slots, limits, self.scorer, sandbox or NoSandbox(), self.put)

    async def run(self, sandbox=None, source=None, limits=LIMITS):
        outcome = await self.runner(sandbox, limits).run(GRANTED, source or self.source)
        assert not list((self.folder / "runs").iterdir())
        return outcome


ACCURACY = {"name": "accuracy", "goal": "max"}


async def test_a_run_waits_for_a_repository_that_is_away(tmp_path):
    bench, said = Bench(tmp_path, "print('METRIC val_bpb=1')"), []
    lab = LocalExecutor(bench.scorer.repo, bench.runner(), bench.put, say=said.append, patience=1)
    git_folder, away = tmp_path / "place/.git", tmp_path / "away"
    git_folder.rename(away)

    running = asyncio.create_task(lab.train(GRANTED, bench.source))
    while not said:
        await asyncio.sleep(0.01)
    away.rename(git_folder)

    assert (await running).val_bpb == 1


async def test_a_run_whose_files_take_long_to_lay_out_was_not_suspended(tmp_path):
    class Slow(ReportedRunner):
        async def _train(self, run, command, listen):
            run.monitor.read_at -= 60  # as if it had taken so long until here
            await super()._train(run, command, listen)

    bench = Bench(tmp_path, "print('METRIC val_bpb=1')", budget=30.0)
    outcome = await Slow(**vars(bench.runner())).run(GRANTED, bench.source)
    assert outcome.kind == "scored", outcome


async def test_a_metric_to_maximize_is_scored_by_its_negative(tmp_path):
    source = "print('METRIC accuracy=0.5\\nMETRIC f1=0.25\\nMETRIC accuracy=0.75\\nMETRIC bad=nan')"
    outcome = await Bench(tmp_path, source, metric=ACCURACY).run()
    assert isinstance(outcome, Scored)
    assert outcome.val_bpb == -0.75
    assert outcome.reported == {"f1": 0.25}


@pytest.mark.parametrize(
    ("source", "task", "words"),
    [
        ("print('accuracy: 0.5')", {}, "`METRIC accuracy=1.23`, or `accuracy: 1.23` below `---`"),
        ("print('ValueError: 5\\nbye')", {}, "below `---`; it printed «ValueError: 5»"),
        ("print('METRIC accuracy=nan')", {}, "its accuracy is nan"),
        ("print('METRIC accuracy=1'); raise SystemExit('gone')", {}, "gone"),
        ("raise ValueError('no luck')", {}, "ValueError: no luck"),
        ("print('METRIC accuracy=1')", {"checks": ["true", "test -f missing"]}, "check 2 failed: test -f missing"),
        ("print('METRIC accuracy=1')", {"metric": ACCURACY | {"pattern": "top1 (.+)"}}, "matches 'top1 (.+)'"),
    ],
)
async def test_without_a_number_it_is_the_candidates_crash(tmp_path, source, task, words):
    bench = Bench(tmp_path, source, **({"metric": ACCURACY} | task))
    outcome = await bench.run()
    assert isinstance(outcome, Crashed)
    assert words in outcome.message
    assert outcome.log in bench.logs


async def test_a_run_ends_at_its_timeout_and_silence_is_no_hang(tmp_path):
    task = Task(form="reported", timeout=1.5)
    limits = set_reported_limits(task)
    assert (limits.wall, set_reported_limits(Task()).wall) == (1.5, 600)
    outcome = await Bench(tmp_path, "import time; time.sleep(60)").run(limits=limits)
    assert (outcome.kind, outcome.failure) == ("crashed", "timeout")


async def test_a_loss_may_be_a_large_sum(tmp_path):
    source = "print('step 1 (1%) | loss: {}', flush=True); import time; time.sleep(0.5); print('METRIC val_bpb=1')"
    bench = Bench(tmp_path, source.format("2500000"))
    limits = replace(set_reported_limits(bench.task), free_disk=1)
    outcome = await bench.run(limits=limits)
    assert (outcome.kind, outcome.curve[0].loss) == ("scored", 2_500_000)
    assert (await bench.run(source=source.format("inf"), limits=limits)).failure == "NaN"


@pytest.mark.parametrize(
    ("seed", "source"),
    [
        ({"env": "MY_SEED"}, "import os; print('METRIC val_bpb=' + os.environ['MY_SEED'])"),
        ({"argument": "--seed"}, "import sys; assert sys.argv[1] == '--seed'; print('METRIC val_bpb=' + sys.argv[2])"),
        ({"argument": "train.seed="}, "import sys; print('METRIC val_bpb=' + sys.argv[1].removeprefix('train.seed='))"),
    ],
)
async def test_a_seed_is_passed_as_the_user_says(tmp_path, seed, source):
    outcome = await Bench(tmp_path, source, seed=seed, command="python train.py\n").run()
    assert outcome.val_bpb == 123


@pytest.mark.parametrize(
    ("command", "is_one"),
    [
        ("python fit.py --tag 'a|b; c' 2>&1 > log.txt", True),
        ("python fit.py \\\n  --lr=3", True),
        ("./fit.sh -c 1", True),
        ("python fit.py | tee log", False),
        ("cd a && python fit.py", False),
        ("python fit.py; python judge.py", False),
        ("python fit.py\npython judge.py", False),
        ("python fit.py # note", False),
        ("(python fit.py)", False),
        ("bash -ec 'python fit.py'", False),
        ("bash -euo pipefail -c 'python fit.py'", False),
        ("sh -e -c 'python fit.py'", False),
        ("bash -O globstar -c 'python fit.py'", False),
        ("bash --rcfile conf +e -c 'python fit.py'", False),
        ("fish -c'python fit.py'", False),
        ("fish --command='python fit.py'", False),
        ("bash -o errexit fit.sh -c conf", True),
        ("bash --norc fit.sh --command conf", True),
    ],
)
def test_a_seed_is_added_to_the_end_of_one_program_only(tmp_path, command, is_one):
    (tmp_path / "train.py").write_text("print('METRIC val_bpb=1')")
    (tmp_path / "nightshift.toml").write_text(
        f'command = """{command}"""\nseed = {{argument = "--seed"}}\n'.replace("\\", "\\\\")
    )
    if is_one:
        assert find_task(tmp_path / "train.py").seed == {"argument": "--seed"}
        return
    with pytest.raises(
        UsageError, match=r"is not one program: write --seed \$NIGHTSHIFT_SEED into the command"
    ) as caught:
        find_task(tmp_path / "train.py")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "open('rows.csv')",
            '; rows.csv is here and in no run: data = ["rows.csv"] in nightshift.toml lets it read that',
        ),
        ("open('out/model.pt', 'w')", "; no run has the folder out: let the command make it, `mkdir -p out && …`"),
        (
            "raise OSError(30, 'Read-only file system', 'log.csv')",
            "; a run may only read log.csv: let it write elsewhere",
        ),
        ("import os; os.listdir('out')", '; out is here and in no run: data = ["out"]'),
        (
            "raise PermissionError(13, 'Permission denied', 'rows/cache')",
            "; a run may only read rows/cache: let",
        ),
        (
            "raise PermissionError(13, 'Permission denied', './bench')",
            "; a run may execute what it makes only under bubblewrap",
        ),
        ("import sys; print('cat: rows.csv: No such file or directory'); sys.exit('failed')", 'data = ["rows.csv"]'),
        ("raise ConnectionError('Max retries exceeded')", "; a run has no network: download before the night"),
        ("import gone", "; python is "),
        ("import out.made", '; out is here and in no run: data = ["out"]'),
        ("print('/bin/sh: 1: poetry: not found'); exit('failed')", "; no run has the program poetry"),
        ("print('fatal: not a git repository'); exit(1)", "; a run has the files that git tracks, and no .git"),
        (
            "import os; os.environ['PYTEST_CURRENT_TEST']",
            "; a run has no variable PYTEST_CURRENT_TEST: begin",
        ),
        ("open('/var/tmp/none/of/it', 'w')", "'/var/tmp/none/of/it'"),
        (
            "raise OSError(2, 'No such file or directory', '/var/tmp/x')",
            "; no run has the folder /var/tmp: $TMPDIR",
        ),
        ("open('gone.csv')", "'gone.csv'"),
        ("print('loss: 3')", "; it printed «loss: 3»; metric in nightshift.toml may name another"),
        ("open('log.csv', 'a').write('1')", "; `protected` in nightshift.toml can leave it out"),
    ],
)
async def test_a_baseline_that_lacks_what_is_here_says_what_to_do(tmp_path, source, words):
    bench = Bench(tmp_path, source, {"log.csv": ""}, data=["rows"])
    (tmp_path / "place/rows").mkdir()
    (tmp_path / "place/out").mkdir()
    (tmp_path / "place/out/made.py").write_text("")
    (tmp_path / "place/rows.csv").write_text("1,2")
    baseline = await bench.runner().run(GRANTED.model_copy(update={"experiment": 0}), source)
    later = await bench.run()
    assert words in baseline.message
    assert baseline.message.startswith(later.message), "a candidate is told only what its run printed"


JUDGED = """import pathlib, evaluation
assert pathlib.Path('corpus/words.txt').read_text() == 'hello'
assert pathlib.Path('~/.cache/far/words.txt').expanduser().read_text() == 'hello'
assert pathlib.Path('.cache/set/words.txt').read_text() == 'hello'
assert pathlib.Path('corpus/README').read_text() == 'the newest'
assert pathlib.Path('corpus/net.py').read_text() == pathlib.Path('corpus.bin').read_text() == 'the newest'
open('log.csv', 'a').write('a row')
pathlib.Path('notes.txt').write_text('mine')
pathlib.Path('out/notes.txt').write_text('mine')
print('METRIC val_bpb=%s' % evaluation.judge(1.5))
"""
DATA = ("corpus", "corpus.bin", ".cache/set", "~/.cache/far")
FILES = {
    "evaluation.py": "def judge(x):\n    return x\n",
    "out/.gitkeep": "",
    "deep/er/file.txt": "x",
    "corpus/README": "",
    "corpus/net.py": "committed",
    "log.csv": "",
    "corpus.bin": "committed",
    ".cache/set/.gitkeep": "",
}


ANEW = """import os
os.rename('{0}', '{0}.old')
os.makedirs('deep/er', exist_ok=True)
open('deep/er/file.txt', 'w').write('y')
print('METRIC val_bpb=0')
"""


@pytest.mark.parametrize(
    "cheat",
    [
        "open('evaluation.py', 'w').write('def judge(x): return 0'); print('METRIC val_bpb=0')",
        *(ANEW.format(name) for name in ("deep/er/file.txt", "deep/er", "deep")),
    ],
)
async def test_a_candidate_cannot_change_its_judge(tmp_path, cheat):
    try:
        sandboxes = [NoSandbox(), select_sandbox()]
    except NoSandboxError:
        sandboxes = [NoSandbox()]
    for number, sandbox in enumerate(sandboxes):
        bench = Bench(tmp_path / str(number), "print('METRIC val_bpb=1')", FILES)
        outcome = await bench.run(sandbox, source=cheat)
        assert outcome.kind == "crashed"
        assert outcome.failure == "disqualified" or re.search("Read-only|busy", outcome.message), outcome.message
        assert (await bench.run(sandbox)).val_bpb == 1


MADE = """import os, subprocess
open('k', 'w').write('#!/bin/sh\\necho METRIC val_bpb=2\\n')
os.chmod('k', 0o755)
print(os.stat('k').st_mode & 0o100, flush=True)
subprocess.run(['./k'], check=True)
"""


async def test_what_a_run_makes_it_can_execute_unless_it_is_root(tmp_path):
    try:
        sandbox = select_sandbox()
    except NoSandboxError as reason:
        pytest.skip(str(reason))
    outcome = await Bench(tmp_path, MADE).run(sandbox)
    if os.getuid() and isinstance(sandbox, Bubblewrap):
        assert outcome.val_bpb == 2
    else:
        assert outcome.kind == "crashed"
        assert "Permission denied" in outcome.message
    assert (await Bench(tmp_path / "plain", MADE).run(NoSandbox())).val_bpb == 2


@pytest.mark.parametrize(
    "change",
    [
        "open('log.csv', 'w').truncate(4 << 30)",  # which takes a while to read
        "os.remove('log.csv'); os.symlink('/proc/self/mem', 'log.csv')",  # which cannot be read
        "os.remove('log.csv'); os.symlink('evaluation.py', 'log.csv')",
        "os.remove('log.csv'); os.mkfifo('log.csv')",
    ],
)
async def test_what_is_put_in_the_place_of_a_protected_file_is_not_even_read(tmp_path, change):
    bench = Bench(tmp_path, f"import os; print('METRIC val_bpb=1'); {change}", {"log.csv": "", "evaluation.py": ""})
    outcome = await bench.run()
    assert (outcome.kind, outcome.failure) == ("crashed", "disqualified")
    assert outcome.message == "it changed log.csv, which is protected"


def test_of_the_changed_files_one_that_need_not_be_read_is_found_first(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").write_text("longer")
    assert find_change({tmp_path / "a": (3, "another digest"), tmp_path / "b": (3, "")}) == tmp_path / "b"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"src/config": "", "src/config/x.py": ""}, "src/config: File exists"),
        ({"src/config/deep/x.py": ""}, "src/config"),  # what git tracks
        ({"src/lib": ""}, "src/lib: Is a directory"),
        ({f"src/{'x' * 256}.py": ""}, "File name too long"),
        ({"src/" + "x/" * 3_000 + "y.py": ""}, "File name too long"),
        ({"tmp": ""}, "tmp: File exists"),
        ({"rows": ""}, "rows: File exists"),
    ],
)
async def test_files_that_cannot_lie_beside_each_other_are_the_candidates_fault(tmp_path, files, words):
    source, there = "print('METRIC val_bpb=1')", {"src/config": "", "src/lib/x.py": ""}
    task = {"editable": ["train.py", "src/*", "tmp", "rows"], "protected": ["src/config", "src/lib/*"]}
    bench = Bench(tmp_path, source, there, **task | {"data": ["rows/a"]} if "rows" in files else task)
    (tmp_path / "place/rows").mkdir()
    (tmp_path / "place/rows/a").write_text("")
    if "src/config" in files:
        bench = Bench(tmp_path / "all", source, there, editable=["train.py", "src/*"])
    outcome = await bench.run(source=join_files({"train.py": source} | files))
    assert outcome.kind == "crashed", outcome.reason
    assert words in outcome.message
    assert str(tmp_path) not in outcome.message


async def test_data_and_files_are_where_the_script_expects_them(tmp_path, monkeypatch):
    try:
        sandbox = select_sandbox()
    except NoSandboxError as reason:
        pytest.skip(str(reason))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    editable, protected = ("train.py", "*.py"), ("evaluation.py",)
    bench = Bench(tmp_path, JUDGED, FILES, data=DATA, editable=editable, protected=protected)
    for folder in (tmp_path / "place/corpus", tmp_path / "place/.cache/set", tmp_path / "home/.cache/far"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "words.txt").write_text("hello")
    for name in ("corpus/README", "corpus/net.py", "corpus.bin"):
        (tmp_path / "place" / name).write_text("the newest")
    bench.source = bench.scorer.repo.read_source("HEAD")
    outcome = await bench.run(sandbox)
    assert outcome.kind == "scored", bench.logs[outcome.log]
    assert outcome.val_bpb == 1.5


async def test_data_that_are_away_are_no_fault_of_the_candidate(tmp_path):
    bench = Bench(tmp_path, "print('METRIC val_bpb=' + open('share/x').read())", data=["share"])
    (tmp_path / "place/share").mkdir()
    (tmp_path / "place/share/x").write_text("1")
    assert (await bench.run()).val_bpb == 1

    (tmp_path / "place/share").rename(tmp_path / "away")
    outcome = await bench.run()
    assert (outcome.kind, outcome.reason) == ("aborted", "share, which a run needs, is not there")


async def test_thousands_of_files_may_lie_beside_the_script(tmp_path):
    if weakness := self_check(Bubblewrap()):
        pytest.skip(weakness)
    source = """import os
assert len(os.listdir()) > 3_200
assert open('tmp/kept').read() == open('1234').read() == 'x'
for folder, may in (('.', False), (os.environ['TMPDIR'], True)):
    try: open(folder + '/made', 'w')
    except OSError: assert not may
    else: assert may
print('METRIC val_bpb=1')"""
    bench = Bench(tmp_path, source, {f"{number}": "x" for number in range(3_200)} | {"tmp/kept": "x"})
    outcome = await bench.run(Bubblewrap())
    assert outcome.kind == "scored", outcome
    assert (await bench.run(Bubblewrap(), "open('1234', 'w')")).failure == "other", "a protected file"


@pytest.mark.soak
async def test_as_many_files_as_bubblewrap_takes_one_by_one_leave_their_folder_writable(tmp_path):
    if weakness := self_check(Bubblewrap()):
        pytest.skip(weakness)
    bench = Bench(tmp_path, "open('made', 'w'); print('METRIC val_bpb=1')", {f"{n}": "x" for n in range(2_800)})
    assert (await bench.run(Bubblewrap())).kind == "scored"


async def test_what_is_laid_out_for_a_run_is_none_of_its_disk(tmp_path):
    bench = Bench(tmp_path, "import time; time.sleep(0.5); print('METRIC val_bpb=1')", {"blob": "x" * (64 << 20)})
    limits = replace(LIMITS, reserve=shutil.disk_usage(tmp_path).free - (32 << 20))
    assert (await bench.run(limits=limits)).kind == "scored"


@pytest.mark.parametrize("sandbox", [NoSandbox(), Landlock()], ids=lambda sandbox: sandbox.tier)
async def test_what_a_run_writes_to_its_tmp_is_its_own(tmp_path, sandbox):
    if sandbox.tier != "none" and (weakness := self_check(sandbox)):
        pytest.skip(weakness)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "rows").write_text("1")
    source = "import os; open(os.environ['TMPDIR'] + '/x', 'w'); print('METRIC val_bpb=' + open('tmp/rows').read())"
    place = ground(tmp_path / "place", {"train.py": source})
    (place / "tmp").symlink_to(scratch)
    git(place, "add", ".")
    git(place, "commit", "-qm", "link")
    bench = Bench(tmp_path, source, data=["tmp/rows"], place=place)
    for _ in range(2):
        assert (await bench.run(sandbox)).kind == "scored"
    assert [path.name for path in scratch.iterdir()] == ["rows"]


async def test_no_run_has_another_interpreter_than_those_before_it(tmp_path):
    bench = Bench(tmp_path, "print('METRIC val_bpb=1')", {".gitignore": ".venv/"})
    python = tmp_path / "place/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    bench.scorer = TaskFolder(bench.task, bench.scorer.repo, bench.scorer.commit)
    python.unlink()
    for _ in range(2):
        outcome = await bench.run()
        assert outcome.kind == "aborted", "else it would be scored"
        assert outcome.reason == ".venv/bin/python, which a run needs, is not there"
        bench.scorer = TaskFolder(bench.task, bench.scorer.repo, bench.scorer.commit)  # as after `resume`


async def test_a_script_below_the_top_runs_in_its_folder(tmp_path):
    files = {"deep/er/train.py": "x", "helper.py": "A = 1", "tmp/kept.txt": "x", "deep/er/near.txt": "2.5"}
    bench = Bench(tmp_path, "unused", files)
    bench.scorer = TaskFolder(bench.task, Repo(tmp_path / "place/deep/er/train.py", "n"), bench.scorer.commit)
    source = "print(open('../../tmp/kept.txt').read()); print('METRIC val_bpb=' + open('near.txt').read())"
    assert (await bench.run(source=source)).val_bpb == 2.5


async def test_a_package_that_is_installed_editable_is_the_candidates(tmp_path):
    """Its folder is found by a pointer in the environment, which lies at the top of the repository."""
    files = {"code/train.py": "x", "src/pack.py": "WIDTH = 2.5", ".gitignore": ".venv/"}
    bench = Bench(tmp_path, "unused", files)
    packages = tmp_path / f"place/.venv/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    packages.mkdir(parents=True)
    (packages / "pack.pth").write_text(f"import sys\n{tmp_path / 'place/src'}\n/nowhere\n")
    (tmp_path / "place/.venv/bin").mkdir()
    (tmp_path / "place/.venv/bin/python").symlink_to(sys.executable)
    (tmp_path / "place/src/pack.py").write_text("WIDTH = 9 # not committed")
    bench.scorer = TaskFolder(bench.task, Repo(tmp_path / "place/code/train.py", "n"), bench.scorer.commit)
    source = "import pack; print(f'METRIC val_bpb={pack.WIDTH}')"
    assert (await bench.run(source=source)).val_bpb == 2.5
    (packages / "pack.pth").write_text("import __editable___pack_finder; __editable___pack_finder.install()")
    mapping = {"other": f"{tmp_path}/place/odd", "pack": f"{tmp_path}/place/src/pack"}
    (packages / "__editable___pack_finder.py").write_text(f"import sys\nMAPPING: dict[str, str] = {mapping}\n")
    assert (await bench.run(source=source)).val_bpb == 2.5, "as setuptools writes it"


@pytest.mark.parametrize("sandbox", [Bubblewrap(), Landlock()], ids=lambda sandbox: sandbox.tier)
async def test_of_a_home_in_which_python_is_installed_a_run_sees_the_parts_of_python(tmp_path, sandbox):
    if weakness := self_check(sandbox):
        pytest.skip(weakness)
    home = tmp_path / "home"
    place = ground(home / "place", {"train.py": "x", ".gitignore": ".venv/"})
    for name, text in {"bin/python": '#!/bin/sh\nexec /bin/sh "$1"', ".ssh/id": "0", "share/keys": "0"}.items():
        (home / name).parent.mkdir()
        (home / name).write_text(text)
    (home / "bin/python").chmod(0o755)
    (place / ".venv/bin").mkdir(parents=True)
    (place / ".venv/bin/python").symlink_to(home / "bin/python")
    bench = Bench(tmp_path, f"cat {home}/.ssh/id {home}/share/keys; echo METRIC val_bpb=1", place=place)
    outcome = await bench.run(sandbox)
    assert outcome.kind == "scored", bench.logs[outcome.log]
    assert bench.logs[outcome.log].count("cat: ") == 2


async def test_an_environment_and_its_python_may_be_reached_by_links(tmp_path):
    if weakness := self_check(Bubblewrap()):
        pytest.skip(weakness)
    place = ground(tmp_path / "place", {"train.py": "x", ".gitignore": ".venv"})
    real = tmp_path / "cellar/py/bin/python"
    for folder in (real.parent, tmp_path / "envs/x/bin", tmp_path / "opt"):
        folder.mkdir(parents=True)
    real.write_text('#!/bin/sh\nexec /bin/sh "$1"')
    real.chmod(0o755)
    (tmp_path / "opt/py").symlink_to("../cellar/py")
    (tmp_path / "envs/x/bin/python").symlink_to("python3")
    (tmp_path / "envs/x/bin/python3").symlink_to(tmp_path / "opt/py/bin/python")
    (place / ".venv").symlink_to(tmp_path / "envs/x")
    bench = Bench(tmp_path, "echo METRIC val_bpb=1", place=place)
    outcome = await bench.run(Bubblewrap())
    assert outcome.kind == "scored", bench.logs[outcome.log]


def test_the_last_number_of_a_name_counts():
    found = NumberReader(Metric(name="acc", pattern=r"top1 (.+)"))
    found.read("top1  93.1 %")
    assert found.numbers == {"acc": 93.1}
    reader = NumberReader(Metric(name="ms", pattern=r"took (\S+) ms"))
    for row in ("ms: 1", "took 12.5 ms", "---", "ms: 3", "rows: 1,000", "took 11.5 ms", "took long ms x"):
        reader.read(row)
    for row in (
        "12:01 INFO METRIC top1=93.1%",
        "100%|##| 5/5METRIC f1=5E-1; done",
        "METRIC loss=0,93",
        "METRIC comma=0.25, next=3",
        "METRIC end=6 METRIC end=7, METRIC n=2; took 11.5 ms",
        "METRIC n=1,23",
    ):
        reader.read(row)
    reader.read(f"METRIC long=0.{'1' * 45}e-5")
    assert reader.numbers.pop("long") == pytest.approx(1.1111e-6, rel=1e-4)
    reader.read(f"METRIC long=0.{'1' * 400}e-5")
    known = {"rows": 1000.0, "top1": 93.1, "f1": 0.5, "comma": 0.25, "end": 7.0, "n": 2.0}
    assert reader.numbers == {"ms": 11.5, **known}
    assert find_score(reader) == 11.5
    with pytest.raises(Fault, match="without a number"):
        find_score(NumberReader(Metric()))


SLOW = r"(\w+[ :=]*)+accuracy: (\d+)"


async def test_a_pattern_that_takes_too_long_fails_the_run_and_not_the_night(tmp_path):
    reader = NumberReader(Metric(name="accuracy", pattern=SLOW))
    row = f"{'a' * 900} accuracy: x"
    for _ in range(10_000):
        reader.read(row)
    with pytest.raises(Fault, match=r"the pattern of metric takes too long on «a{100}"):
        find_score(reader)
    bench = Bench(tmp_path, f"print('{row}', flush=True); import time; time.sleep(600)", metric={"pattern": SLOW})
    outcome = await bench.run()
    assert outcome.kind == "crashed"
    assert "the pattern of metric takes too long on «aaa" in outcome.message


def test_many_lines_on_which_a_pattern_is_slow_are_one_on_which_it_is_too_slow():
    reader = NumberReader(Metric(name="accuracy", pattern=r"(a+)+b"))
    reader.patience = 0.0
    reader.read("a" * 30)
    assert "takes too long" in reader.fault


def test_a_pattern_of_a_recorded_session_is_loaded_whatever_it_is():
    task = Task.model_validate_json('{"metric": {"name": "x", "pattern": "x{99999999999999999999}"}}')
    with pytest.raises(Fault, match="the pattern of metric: Input should be a valid regular expression"):
        find_score(NumberReader(task.metric))
    assert json.loads(Task(metric=Metric(pattern="a(b)")).model_dump_json())["metric"]["pattern"] == "a(b)"


class Printing(Landscape):
    """A lab whose scripts report one of these numbers each time, in turn."""

    def __init__(self, numbers, log):
        super().__init__(log)
        self.numbers = cycle(numbers)

    async def train(self, granted, source):
        ended, reader = await super().train(granted, source), NumberReader(Metric(**ACCURACY))
        reader.read(f"METRIC accuracy={next(self.numbers)!r}")
        try:
            return ended.model_copy(update={"val_bpb": find_score(reader)})
        except Fault as fault:
            facts = {name: getattr(ended, name) for name in RunResult.model_fields}
            return Crashed(failure=fault.kind, message=fault.message, **facts)


@pytest.mark.parametrize("seed", [{}, {"env": "SEED"}])
@try_examples(5)
@given(numbers=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=7))
@example(numbers=[1e160, -1e160, 3e160])
@example(numbers=[8e307, -8e307, 8e307, 1.0])
@example(numbers=[1e-165, 2e-165, 3e-165])
@example(numbers=[1e-165, 2e-165, 3e-165, 1e29, 1.0])
@example(numbers=[1e-30, 1e-30, 1e-30, 1e30, -1e30])
@example(numbers=[5e-324])
def test_no_number_that_a_script_reports_ends_the_night(seed, numbers):
    task = Task(form="reported", command="x", editable=("train.py",), metric=Metric(**ACCURACY), seed=seed)
    profile = PROFILE.model_copy(update={"sigma": 0.0})
    with tempfile.TemporaryDirectory() as folder:
        lab = partial(Printing, numbers)
        session = simulate(Path(folder, "session.db"), experiments=6, lab=lab, task=task, profile=profile, repairs=0)
        assert session.state.ended
        write_files(session, Path(folder))
        write_musings(session, Path(folder))


# nightshift.toml


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("comand = 'x'", "unknown key comand"),
        ("[metric]\nnmae = 'x'", "unknown key metric.nmae"),
        ("metric = {goal = 'up'}", "metric.goal"),
        ("metric = {name = 'val acc'}", "letters, digits and . / - alone; a pattern finds any other"),
        ("metric = {pattern = '('}", "metric.pattern"),
        ("metric = {pattern = 'x{99999999999999999999}'}", "metric.pattern"),
        (f"metric = {{pattern = '{'(' * 5_000}'}}", "metric.pattern"),
        ("metric = {pattern = '\\N{no such letter}'}", "metric.pattern"),
        ("budget = -1", "budget"),
        ("editable = ['../a.py']", "editable"),
        ("editable = ['**/../*.py']", "editable"),
        ("editable = ['/etc/passwd']", "editable"),
        ("editable = ['**/net.py']", "**/ stands for one folder or more, unless a * follows: name net.py and */net.py"),
        ("editable = ['train.py', 'eval.py']\nprotected = ['./eval.py']", "eval.py is both editable and protected"),
        ("editable = ['notes.txt']", "command is missing"),
        ("data = ['nowhere']", "nowhere is not a folder or file"),
        ("data = ['~nobody-here/x']", "~nobody-here/x is not a folder or file"),
        ("command = ", "not TOML"),
        (f"x = {'[' * 50_000}", "not TOML"),
    ],
)
def test_what_is_wrong_with_the_file_is_one_line(tmp_path, text, says):
    (tmp_path / "nightshift.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        find_task(tmp_path / "train.py")
    assert says in str(caught.value)
    assert "nightshift.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_lie_where_a_run_can_have_them(tmp_path):
    names = ("deep/train.py", "rows/a", "tmp/a", "deep/tmp/a", "deep/net/a.py")
    place = ground(tmp_path / "place", dict.fromkeys(names, ""))
    (tmp_path / "corp").mkdir()
    for name, says in (
        ("../rows", ""),
        ("tmp", ""),
        (str(tmp_path / "corp"), ""),
        ("../../corp", "../../corp leads out of the repository: write it from / or ~/ on"),
        ("../tmp/", "../tmp/ is where a run has files of its own: name what lies in it"),
        (".", ". holds train.py, which a run has from git: name what else it needs"),
        (f"{place}/deep/net", f"{place}/deep/net holds net/a.py, which a run has from git: name what else it needs"),
    ):
        (place / "deep/nightshift.toml").write_text(f"data = ['{name}']\neditable = ['train.py', 'net/*.py']")
        if not says:
            assert find_task(place / "deep/train.py").data == (name,)
            continue
        with pytest.raises(UsageError) as caught:
            find_task(place / "deep/train.py")
        assert str(caught.value).endswith(f"nightshift.toml: data: {says}")


def test_a_link_to_no_file_is_not_taken_for_no_file(tmp_path):
    (tmp_path / "nightshift.toml").symlink_to("elsewhere.toml")
    with pytest.raises(UsageError, match=r"nightshift\.toml is not a file, or a link to none"):
        find_task(tmp_path / "train.py")


def test_the_form_is_chosen_by_what_is_found(tmp_path):
    script = tmp_path / "train.py"
    assert find_task(script).form == "examined", "that it is missing is said elsewhere"
    script.write_text("from prepare import evaluate_bpb\n")
    assert find_task(script) == Task()
    (tmp_path / "prepare.py").write_text("")
    assert find_task(script).form == "reported"
    (tmp_path / "prepare.py").unlink()
    (tmp_path / "nightshift.toml").write_text("# nothing yet\n")
    assert find_task(script) == Task()
    script.write_text("print('val_bpb: 1')\n")
    assert find_task(script).command == "python train.py"
    (tmp_path / "nightshift.toml").write_text("command = 'make score'\neditable = ['a.txt']\n")
    assert (find_task(script).command, find_task(script).editable) == ("make score", ("a.txt",))
    for editable, command in {
        "'model/*.py'": "train.py",
        "'b.py', 'train.py'": "train.py",
        "'*', 'a/b.py'": "a/b.py",
    }.items():
        (tmp_path / "nightshift.toml").write_text(f"editable = [{editable}]\n")
        assert find_task(script).command == f"python {command}"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_what_people_write_is_read_as_it_is_encoded_or_refused(tmp_path, encoding):
    texts = {"nightshift.toml": "# Größe\r\nbudget = 5\r\n", "program.md": "Größe\r\n", "guidance.md": "Größe\r\n"}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode(encoding))
    (tmp_path / "train.py").write_text("print('val_bpb: 1')")
    (tmp_path / "style").mkdir()
    (tmp_path / "style/researcher.md").write_text((ROOT / "prompts/default/researcher.md").read_text(), "utf-8-sig")

    if encoding == "latin-1":
        for name in ("nightshift.toml", "program.md"):
            with pytest.raises(UsageError, match=f"{name} is not UTF-8 text: save it as UTF-8"):
                find_task(tmp_path / "train.py")
            (tmp_path / name).unlink()
    else:
        task = find_task(tmp_path / "train.py")
        assert (task.budget, task.program) == (5, "Größe\n")
    guidance = read_written(tmp_path / "guidance.md", "replace")
    assert guidance == ("Gr\ufffd\ufffde\n" if encoding == "latin-1" else "Größe\n")
    assert "You" in load_style(str(tmp_path / "style"), ())["researcher"].system


def test_a_session_of_before_is_examined():
    assert Task() == Task(form="examined", metric=Metric(name="val_bpb", goal="min"))


# Three tasks of other kinds


CLASSIFIER = '''"""Classify points by a ball around the origin; the data never change."""

import math
import random

RADIUS = 0.5   # 0.1..2.0 – of the ball
DEPTH = 3      # 1..6 – does nothing but cost
SHARPNESS = 1.0

luck = random.Random(0)
points = [(luck.uniform(-1, 1), luck.uniform(-1, 1)) for _ in range(400)]
right = sum((math.hypot(*p) * SHARPNESS < RADIUS) == (math.hypot(*p) < 0.9) for p in points)
print(f"accuracy is {right / len(points):.4f} at depth {DEPTH}")
print(f"METRIC f1={right / len(points) / 2:.4f}")
'''
KERNEL = '''"""A kernel with a tile size; its latency is noisy."""

import json
import os
import re
import random

TILE = 16      # one of 4, 8, 16, 32, 64
UNROLL = 2     # 1..8

luck = random.Random(int(os.environ["MY_SEED"]))
latency = 12.4 + 0.4 * abs(TILE - 32) ** 0.5 + 0.2 * abs(UNROLL - 4) + luck.gauss(0, 0.02)
print(f"---\\nlatency_ms: {latency:.3f}\\nbytes: {TILE * 1024}")
'''


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A deterministic accuracy to maximize, found by a pattern; its script has a name and a folder of its own."""
    metric = "metric = {name = 'accuracy', goal = 'max', pattern = 'accuracy is ([0-9.]+)'}"
    toml = f"{metric}\neditable = ['run.py']\nbudget = 2\n"
    files = {"model/run.py": CLASSIFIER, "model/nightshift.toml": toml}
    place = ground(tmp_path_factory.mktemp("classifier") / "place", files)
    return place, research(place, "--script", "model/run.py")


def test_an_accuracy_rises_and_is_shown_as_one(classifier):
    place, done = classifier

    state = opened(place).state
    assert state.incumbent.score_to_beat < state.baseline_bpb < 0
    assert len(state.kept) >= 1
    found = re.search(r"accuracy +(0\.\d+) → (0\.\d+): (0\.\d+) better", done.stdout)
    assert found
    assert float(found[1]) < float(found[2]) <= 1
    rows = (place / "sessions/night/results.tsv").read_text().splitlines()
    assert rows[0].split("\t")[1] == "accuracy"
    assert 0 < float(rows[1].split("\t")[1]) < 1
    kept = next(result for result in state.kept if result.experiment)
    message = git(place, "log", "-1", "--format=%B", "refs/nightshift/night/kept")
    assert "Accuracy: 0." in message
    assert kept.verdict.reason.endswith("reported by the script, not audited")
    assert re.search(r"\+0\.\d+ ± ", kept.verdict.reason)
    page = (place / "sessions/night/report.html").read_text()
    assert "accuracy" in page
    assert "f1" in page
    musing = next((place / "musings/night").glob("001-*.md")).read_text()
    assert re.search(r"\| accuracy \| 0\.\d+ \| 0\.\d+ \| \+0\.\d+ ± ", musing)
    assert "accuracy rises by more than the noise.\n" in musing, "its runs are identical, so that no σ is known"
    for words in (("sessions",), ("replay", "night")):
        assert "-0." not in orchestrate(place, *words, **SAFE).stdout.replace("−", "")


def test_a_script_is_called_by_its_name(classifier):
    place, done = classifier

    log = orchestrate(place, "replay", "night", "--json", **SAFE).stdout
    page = (place / "sessions/night/report.html").read_text()
    pages = [path.read_text() for path in (place / "musings/night").glob("*.md")]
    for text in (done.stdout + done.stderr, log, page[page.index("<header") :], *pages):
        assert "train.py" not in text
    assert "In run.py set" in log


def test_runs_without_a_seed_are_called_repeats(classifier):
    place, done = classifier

    state = opened(place).state
    assert state.results[0].verdict.reason.startswith("the baseline, over 3 identical runs, reported")
    written = [done.stdout, *(path.read_text() for path in (place / "musings/night").glob("*.md"))]
    page = (place / "sessions/night/report.html").read_text()
    written.append(page[page.index("<header") :])
    for text in written:
        for claim in ("fresh seed", "equal seed", " seeds", "val_bpb", "audited, off by", "confirmed"):
            assert claim not in text, claim
        assert "audited" not in text.replace("not audited", "")


def test_a_noisy_latency_falls_at_seeds_that_are_passed(tmp_path):
    toml = "editable = ['bench.py']\nmetric = {name = 'latency_ms'}\nseed = {env = 'MY_SEED'}\n"
    place = ground(tmp_path / "place", {"bench.py": KERNEL, "nightshift.toml": toml})

    done = research(place)

    state = opened(place).state
    assert state.incumbent.score_to_beat < state.baseline_bpb
    assert 0.001 < state.results[0].verdict.sigma < 0.2
    assert state.results[0].verdict.reason.startswith("the baseline, over 3 seeds")
    assert re.search(r"latency_ms 1\d\.\d+ → 1\d\.\d+", done.stdout)
    assert state.results[0].scores[0].reported == {"bytes": 16384}


JUDGE = """words = open('prompt.txt').read().split()
print('METRIC score=%d' % (10 + 5 * ('kindly' in words) - words.count('stupid')))
"""


class Poet(Scripted):
    """Plays the agents for a text: the researcher asks for a word, and the mechanic adds it."""

    def draft(self, number, known):
        word = ("kindly", "stupid")[(number - 1) % 2]
        return {
            "title": f"Add the word {word}",
            "hypothesis": f"The word {word} raises the score.",
            "rationale": "Words matter.",
            "expected_delta": 3.0,
            "family": "other",
            "settings": {},
            "direction": None,
            "instructions": f"Append the word {word}.",
        }

    def mechanic(self, request):
        opening = _opening(request)
        source, word = SOURCE.search(opening)[1], re.search(r"Append the word (\w+)\.", opening)[1]
        edits = [_call("replace", old=source, new=f"{source} {word}"), _call("check")]
        return [*edits, _call("submit", summary=f"{word} is in it.")], "tool_use"


def test_a_text_is_improved_by_three_agents(tmp_path):
    toml = "command = 'python judge.py'\neditable = ['prompt.txt']\nmetric = {name = 'score', goal = 'max'}\n"
    files = {
        "prompt.txt": "Answer the question",
        "judge.py": JUDGE,
        "nightshift.toml": toml,
        "program.md": "Be nice.",
    }
    place, app = ground(tmp_path / "place", files | {"program.md": "Be nice."}), Poet(("turn",))
    words = ("--hours", "1", "--session", "night", "--seed", "3", "--max-experiments", "2")

    with served(app) as url:
        done = orchestrate(place, *words, ANTHROPIC_BASE_URL=url, ANTHROPIC_API_KEY="none", **SAFE)

    assert done.returncode == 0, done.stdout + done.stderr
    state = opened(place).state
    assert [result.status for result in state.results[1:]] == ["kept", "discarded"]
    assert state.results[1].proposal.expected_delta == -3.0
    assert git(place, "show", "research/night:prompt.txt") == "Answer the question kindly"
    told = json.dumps(app.requests)
    assert "score, higher is better, reported by the script, not audited" in told
    assert "Be nice." in told
    assert "bits per byte" not in told
    assert "train.py" not in told
    assert "Expected change of score: +3.0000" in (place / "musings/night/001-add-the-word-kindly.md").read_text()
    assert orchestrate(place, "replay", "night", "--verify", **SAFE).returncode == 0
