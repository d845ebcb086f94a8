"""Candidates of several files in examined form: what travels, what evaluates them, and whole nights."""

import asyncio
import dataclasses
import os
import signal
from contextlib import closing
from functools import partial

import pytest

from orchestrator.cli.options import Options
from orchestrator.cli.preflight import Preflight
from orchestrator.cli.task_file import find_task
from orchestrator.core.events import EvaluationPlan, Granted, Origin
from orchestrator.core.task import EXAMINED, Task
from orchestrator.executor import LocalExecutor
from orchestrator.lab.failures import MachineError
from orchestrator.lab.monitor import RunLimits
from orchestrator.lab.runner import Runner
from orchestrator.lab.scoring.claims import Scorer
from orchestrator.lab.slots import Slot
from orchestrator.lab.tree import ScriptTree, find_modules
from orchestrator.repo import Repo
from orchestrator.session.store import Session
from prepare.constants import read_values, with_originals
from prepare.profiles import CPU, apply_to_script
from prepare.tree import join_files, split_files
from subagents.files import EditedFiles
from subagents.tools import ToolCall
from tests.hostile.test_enemies import SANDBOXES, TIERS
from tests.scripted import _call, served
from tests.small import small_data
from tests.test_cli import wait_until
from tests.test_reported import ground, opened, research
from tests.test_trees import Builder, assert_replays
from tests.workplace import begun, git, orchestrate

TRAIN = """import os
import pickle
import random

from prepare import channel
from prepare.evaluator import LoadedFiles

from model.net import Net
from util.text import describe

MATRIX_LR = 0.04  # 0.005..0.4 log – best at 0.08

luck = random.Random(int(os.environ.get("NIGHTSHIFT_SEED", "42")))
channel.send({"event": "telemetry", "progress": 0, "values": {"step/calls": 5}})
channel.ready()
for step in range(20):
    print(describe(step, 5 * step, 8 * 0.97**step), flush=True)
score = 2.0 + abs(MATRIX_LR - 0.08) + luck.gauss(0, 0.001)
files = LoadedFiles()
files.places = ["."]
data = pickle.dumps(files) + pickle.dumps(Net(score))
how = {"batch_size": 64, "autocast": None, "precision": None, "threads": 1}
channel.send({"event": "model", "bytes": len(data), **how}, data)
channel.receive()
"""
NET = """import math

import numpy as np

from .layers import EXPANSION

DEPTH = 3  # one of 2, 3


class Net:
    def __init__(self, score):
        self.nats = math.log(2) * (score + 0.2 * (DEPTH - 2) + 0.3 * (EXPANSION - 1))

    def __call__(self, x, y=None, reduction="mean"):
        if y is not None:
            return np.full(y.shape, self.nats)
        row = np.full(260, np.log((1 - np.exp(-self.nats)) / 259))
        row[ord("a")] = -self.nats
        return np.broadcast_to(row, (*x.shape, 260))
"""
FILES = {
    "train.py": TRAIN,
    "model/__init__.py": "",
    "model/net.py": NET,
    "model/layers.py": "EXPANSION = 2  # one of 1, 2\n",
    "util/text.py": 'def describe(step, share, loss):\n    return f"step {step:05d} ({share}%) | loss: {loss:.4f}"\n',
    "other.py": "KNOWN = 1\n",
}
TREE = {path: text for path, text in FILES.items() if path == "train.py" or path.startswith("model/")}
TASK = Task(editable=("train.py", "model/*.py"), command="python train.py")
MODULES = {path: text for path, text in FILES.items() if path not in TREE}


def place_of(folder, **more):
    """The user's repository with this task, and small data."""
    toml = {"nightshift.toml": "editable = ['train.py', 'model/*.py']\n"}
    place = ground(folder, FILES | toml | {".gitignore": "/data/\n/sessions/\n/musings/\n__pycache__/\n"} | more)
    small_data(place / "data")
    return place


# What travels


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("import lib.a.b", "lib/a/b.py"),
        ("from lib.a import b", "lib/a/b.py"),
        ("from lib import a", "lib/a/__init__.py"),
        ("def f():\n    try:\n        import lib.a\n    except ImportError:\n        pass", "lib/a.py"),
        ("import importlib\nnet = importlib.import_module('lib.net')", "lib/net.py"),
        ("import sys\nsys.path.append('src')\nimport net", "src/net.py"),
    ],
)
def test_what_a_script_imports_travels_with_the_packages_around_it(line, path):
    others = {path: "", "lib/__init__.py": "from . import deep", "lib/deep.py": "from ..up import x", "up.py": ""}
    found = find_modules({"train.py": line}, others | {"secret.py": "", "libs.py": "", "prepare.py": ""})

    assert path in found
    assert not found.keys() & {"secret.py", "libs.py", "prepare.py"}
    assert path.startswith("src") or found.keys() >= {"lib/__init__.py", "lib/deep.py", "up.py"}


def test_one_file_travels_as_ever_and_no_candidate_leaves_its_folder(tmp_path):
    alone, several = ScriptTree(EXAMINED, {"other.py": ""}), ScriptTree(TASK, MODULES)

    assert alone.select("import os, torch\n") == {"train.py": "import os, torch\n"}
    assert several.select(join_files(TREE)) == TREE | {"util/text.py": FILES["util/text.py"]}
    fixed = ScriptTree(Task(editable=("model/*.py",), command="python train.py"), MODULES | {"train.py": TRAIN})
    assert fixed.select(join_files({"model/net.py": NET})).keys() == {"train.py", "model/net.py", "util/text.py"}
    for path in ("../x.py", "other.py", "data/manifest.json"):
        with pytest.raises(MachineError, match="not editable"):
            several.lay_out(tmp_path / "work", join_files(TREE | {path: "x"}))
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("path", ["model/notes/x", "model/deep"])
def test_no_candidate_takes_the_place_of_what_it_may_not_change(tmp_path, path):
    task = Task(editable=("train.py", "model/*"), protected=("model/notes", "model/deep/*"), command="python train.py")
    assert task.is_editable(path)
    tree = ScriptTree(task, others=frozenset({"model/notes", "model/deep/a/b.bin", "README.md"}))

    tree.lay_out(tmp_path / "good", join_files({"train.py": "", "model/other/x": "x"}))
    with pytest.raises(FileExistsError, match=path):
        tree.lay_out(tmp_path / "bad", join_files({"train.py": "", path: "x"}))
    assert not (tmp_path / "bad").exists()


# Runs


def runner_of(folder, tier):
    return Runner(
        folder,
        [Slot(folder / "slot.lock", threads=1)],
        RunLimits(wall=150.0, quiet=100.0, free_disk=1 << 20),
        Scorer.load(small_data(folder / "data")),
        SANDBOXES[tier](),
        lambda text: print(text) or "0" * 16,
        tree=ScriptTree(TASK, MODULES),
    )


@pytest.mark.parametrize("tier", TIERS)
async def test_both_evaluators_find_the_modules_of_the_model_and_no_other_file(tmp_path, tier):
    seen = repr(sorted([*TREE, "tempfile.py", "util/text.py"]))
    looks = f"""
    def __setstate__(self, state):
        import glob

        self.__dict__ = state
        seen = sorted(path for path in glob.glob('**/*.py', recursive=True) if path[:4] != "tmp/")
        assert seen == {seen}, seen
"""
    task = TASK.model_copy(update={"editable": (*TASK.editable, "tempfile.py")})
    runner = runner_of(tmp_path.resolve(), tier)
    runner.tree = dataclasses.replace(runner.tree, task=task)
    # A file that hides a module which the evaluator itself needs is no way into it.
    hides = "import sys\nassert sys.argv[0] == 'train.py'\n"
    source = join_files(TREE | {"model/net.py": NET + looks, "tempfile.py": hides})

    outcome = await runner.run(
        Granted(experiment=1, run=1, slot=0, seed=1, plan=EvaluationPlan(audit="always", confirmed=False, incumbent=0)),
        source,
    )

    assert outcome.kind == "scored", outcome
    assert outcome.val_bpb == pytest.approx(2.54, abs=0.01)
    assert outcome.audit.claimed == pytest.approx(outcome.val_bpb, abs=1e-4)


@pytest.mark.parametrize("path", ["model/net.py2/x.py", f"model/{'x' * 256}.py", "data", "tmp"])
async def test_files_that_cannot_lie_beside_each_other_are_the_candidates_fault(tmp_path, path):
    runner = runner_of(tmp_path.resolve(), TIERS[0].values[0])
    runner.tree = dataclasses.replace(runner.tree, task=TASK.model_copy(update={"editable": ("*",)}))
    files = TREE | {path: ""} | ({"model/net.py2": ""} if "/x.py" in path else {})
    outcome = await runner.run(Granted(experiment=1, run=1, slot=0, seed=1), join_files(files))
    assert outcome.kind == "crashed", outcome.reason
    assert outcome.message.startswith("its files cannot lie in one folder: ")


async def test_a_fault_in_another_file_is_told_by_its_place(tmp_path):
    runner = runner_of(tmp_path.resolve(), TIERS[0].values[0])
    broken = join_files(TREE | {"model/layers.py": "EXPANSION = 2\nEXPANSION.shape\n"})

    found = await runner.measure_step(broken)

    assert "model/layers.py, line 2, in <module>: EXPANSION.shape" in found
    assert "'int' object has no attribute 'shape'" in found
    tree = EditedFiles(TREE, runner.measure_step, TASK.is_editable, join_files)
    tree.files["model/layers.py"] = "EXPANSION = 1\nEXPANSION.shape\n"
    told = (await tree.tools[-1].run(ToolCall("1", "check", {}))).text
    assert "It fails before its training begins" in told
    assert "| model/layers.py, line 2" in told


# The user's constants


def test_each_file_gets_the_profiles_constants_and_gives_them_back():
    own = join_files(TREE | {"model/net.py": NET.replace("DEPTH = 3  # one of 2, 3", "DEPTH = 8  # blocks")})
    fitted = apply_to_script(own, CPU)
    moved = split_files(fitted)
    line = next(line for line in moved["model/net.py"].splitlines() if line.startswith("DEPTH"))
    moved["model/net.py"] = moved["model/net.py"].replace(line, "from .depth import DEPTH")

    assert read_values(fitted)["DEPTH"] == 3
    assert split_files(fitted)["model/layers.py"] == FILES["model/layers.py"]
    assert with_originals(fitted, fitted, own) == own
    moved |= {"model/depth.py": f"{line}\n", "model/broken.py": "DEPTH = = 3\n"}
    back = split_files(with_originals(join_files(moved), fitted, own))
    assert back["model/depth.py"] == "DEPTH = 8  # blocks\n"
    assert back["model/broken.py"] == "DEPTH = = 3\n"


def test_a_night_from_elsewhere_brings_its_gains_and_not_its_fit(tmp_path):
    files = {"model/net.py": NET.replace("DEPTH = 3", "DEPTH = 8")}
    place, texts = place_of(tmp_path / "place", **files), list[str]()
    fit = partial(apply_to_script, profile=CPU)
    best = fit(join_files(TREE | files)).replace("EXPANSION = 2", "EXPANSION = 1")
    lab = LocalExecutor(Repo(place / "train.py", "second", TASK), None, lambda text: texts.append(text) or "name", fit)
    lab.origin = Origin(session="first", experiment=1, commit="1" * 40, source="name"), best

    asyncio.run(lab.commit_baseline())

    assert texts == [best]
    assert git(place, "diff", "--stat", "main", "research/second").splitlines()[0].split()[0] == "model/layers.py"


# What is found, and said


def test_the_form_is_found_in_the_files(tmp_path):
    place = place_of(tmp_path / "place")

    def find(toml, **files):
        for name, text in {"train.py": TRAIN, "nightshift.toml": toml, **files}.items():
            (place / name).write_text(text)
        return find_task(place / "train.py")

    several = "editable = ['train.py', 'model/*.py']\n"
    assert find(several) == TASK
    assert find(several + "protected = ['model/judge.py']").protected == ("model/judge.py",)
    assert find("editable = ['model/*.py']").command == "python train.py"
    assert find("") == find("editable = ['train.py']") == EXAMINED
    thin = {"train.py": "import model.net\n", "model/net.py": "import prepare\n"}
    assert find(several, **thin).form == "examined"
    assert find(several + "budget = 3").form == find(several, **{"train.py": "", "model/net.py": ""}).form == "reported"
    assert find(several, **{"train.py": "", "model/net.py": "class {{name}}:"}).form == "reported"
    for own in ("prepare/__init__.py", "prepare.py"):
        (place / own).parent.mkdir(exist_ok=True)
        (place / own).touch()
        assert find(several).form == find("").form == "reported"
        (place / own).unlink()


def test_what_a_run_would_lack_is_said(tmp_path):
    place = place_of(tmp_path / "place")
    night = Preflight(Options(script=place / "train.py", data=place / "data"), "night", "optuna")
    for name in ("util/text.py", "other.py"):
        (place / name).write_text("def describe(*_):\n    return ''\n")

    found = [result.message for result in night.check()]
    assert "uncommitted changes of util/text.py take no part: a run sees what is committed" in found
    git(place, "rm", "-q", "--cached", "util/text.py")
    git(place, "commit", "-qm", "forgotten")
    night = Preflight(night.options, "night", "optuna")
    assert any(
        "train.py imports util/text.py, which is not committed: `git -C" in result.message for result in night.check()
    )
    (place / "util/text.py").unlink()
    (place / "util/text.py").symlink_to("../other.py")
    git(place, "add", "util/text.py")
    git(place, "commit", "-qm", "a link")
    said = [result.message for result in Preflight(night.options, "night", "optuna").check() if result.state == "bad"]
    words = "train.py imports util/text.py, which is a symbolic link, and a run follows none: commit the file"
    assert f"{words} in its place" in said


# Nights


@pytest.mark.soak
def test_the_optimizer_tunes_a_constant_of_the_model(tmp_path):
    place = place_of(tmp_path / "place")

    research(place, "--fit", experiments=1)

    assert [result.status for result in opened(place).state.results] == ["kept", "kept"]
    assert git(place, "diff", "--name-only", "main", "research/night") == "model/net.py"
    page = (place / "sessions/night/report.html").read_text()
    assert "+++ b/model/net.py" in page
    assert "not audited" not in page
    assert_replays(place)
    git(place, "merge", "-q", "--ff-only", "research/night")
    assert "\nDEPTH = 2 " in (place / "model/net.py").read_text()


class Examined(Builder):
    """Adds a module with a wrong name, which the check finds; mended, it is handed in."""

    def mechanic(self, request):
        if len(request["messages"]) > 1:
            edits = [_call("replace", path="model/extra.py", old="def fall_", new="def fall")]
            return [*edits, _call("check"), _call("submit", summary="It is there.", deviations="0.3")], "tool_use"
        edits = [
            _call("create", path="model/extra.py", text="def fall_(depth):\n    return 0.3 * depth\n"),
            _call("replace", path="model/net.py", old="0.2 * (DEPTH - 2)", new="0.2 * (DEPTH - 2) - fall(DEPTH)"),
            _call("replace", path="model/net.py", old="from .layers", new="from .extra import fall\nfrom .layers"),
        ]
        return [*edits, _call("check"), _call("submit", summary="It is there.", deviations="0.3")], "tool_use"


def test_three_agents_add_a_module_of_the_model(tmp_path):
    place, app = place_of(tmp_path / "place"), Examined(("turn",))

    with served(app) as url:
        words = ("--hours", "1", "--session", "night", "--seed", "3", "--max-experiments", "1")
        done = orchestrate(place, *words, ANTHROPIC_BASE_URL=url, ANTHROPIC_API_KEY="none")

    assert done.returncode == 0, done.stdout + done.stderr
    session = opened(place)
    assert [result.status for result in session.state.results] == ["kept", "kept"]
    changed = git(place, "diff", "--name-only", "main", "research/night").split()
    assert changed == ["model/extra.py", "model/net.py"]
    checks = [
        event.result for record in session.records if (event := record.event).kind == "used" and event.tool == "check"
    ]
    assert "model/net.py, line 5, in <module>: from .extra import fall" in checks[0]
    assert "a step of it ran" in checks[1]
    assert_replays(place)


@pytest.mark.soak
def test_nights_from_it_and_forks_of_it_survive_a_kill(tmp_path):
    place = place_of(tmp_path / "place")
    research(place, "--fit", experiments=2)
    assert git(place, "diff", "--name-only", "main", "research/night").split() == ["model/layers.py", "model/net.py"]
    end = str(len(opened(place).records) - 1)
    nights = {
        "second": ("--offline", "--from", "night", "--fit", "--hours", "1", "--max-experiments", "2"),
        "later": ("fork", "night", "--at", end, "--hours", "1", "--max-experiments", "2"),
    }
    for name, words in nights.items():
        life = begun(place, *words, "--session", name)
        path = place / f"sessions/{name}/session.db"
        known = 1 if name == "second" else int(end)
        wait_until(lambda path=path, known=known: path.exists() and len(read(path)) > known + 5)
        os.kill(life.pid, signal.SIGKILL)
        life.communicate()
        done = orchestrate(place, "resume", name)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "util/text.py" not in git(place, "diff", "--name-only", "main", f"research/{name}")
        assert "EXPANSION = 1" in git(place, "show", f"research/{name}:model/layers.py")
        assert orchestrate(place, "replay", name, "--verify").returncode == 0


def read(path):
    with closing(Session(path, read_only=True)) as session:
        return session.records
