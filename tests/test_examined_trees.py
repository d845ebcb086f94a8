"""Candidates of several files in examined form: what travels, what evaluates them, and whole nights."""

import asyncio
import dataclasses
import os
import shutil

import pytest

from orchestrator.cli.options import Paths
from orchestrator.cli.preflight import Preflight
from orchestrator.core.events import EvaluationPlan, Granted
from orchestrator.core.task import EXAMINED, Task
from orchestrator.lab.failures import MachineError
from orchestrator.lab.monitor import RunLimits
from orchestrator.lab.runner import Runner
from orchestrator.lab.scoring.claims import Scorer
from orchestrator.lab.slots import Slot
from orchestrator.lab.tree import ScriptTree, find_modules
from prepare.constants import read_values, with_originals
from prepare.profiles import CPU, apply_to_script
from prepare.tree import join_files, split_files
from subagents.files import StartedTree
from subagents.tools import ToolCall
from tests.hostile.test_enemies import SANDBOXES, TIERS
from tests.scripted import _call, _opening, served
from tests.small import small_data
from tests.test_reported import ground, opened, research
from tests.test_trees import Builder, assert_replays, used
from tests.workplace import SCRIPTS, begun, git, orchestrate

TRAIN = """import os
import pickle
import random

from prepare import channel
from prepare.evaluator import LoadedFiles

from model.net import Net
from util.text import describe

MATRIX_LR = 0.04  # 0.005..0.4 log – best at 0.08

luck = random.Random(int(os.environ.get("NIGHTSHIFT_SEED", "42")))
channel.ready()
for step in range(20):
    print(describe(step, 5 * step, 8 * 0.97**step), flush=True)
score = 2.0 + abs(MATRIX_LR - 0.08) + luck.gauss(0, 0.001)
files = LoadedFiles()
files.places = [os.getcwd()]
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
    "util/text.py": 'def describe(step, share, loss):\n    return f"step {step:05d} ({share:.1f}%) | loss: {loss:.4f}"\n',
    "other.py": "KNOWN = 1\n",
}
TREE = {path: text for path, text in FILES.items() if path == "train.py" or path.startswith("model/")}
TASK = Task(editable=("train.py", "model/*.py"), command="python train.py")
MODULES = {path: text for path, text in FILES.items() if path not in TREE}
OFFLINE = ("--offline", "--hours", "1", "--session", "night", "--seed", "3")


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


# Runs


def runner_of(folder, tier):
    return Runner(
        folder,
        [Slot(folder / "slot.lock", threads=1)],
        RunLimits(wall=150.0, cpu=60.0, quiet=100.0, free_disk=1 << 20, pause=0.0),
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


async def test_a_fault_in_another_file_is_told_by_its_place(tmp_path):
    runner = runner_of(tmp_path.resolve(), TIERS[0].values[0])
    broken = join_files(TREE | {"model/layers.py": "EXPANSION = 2\nEXPANSION.shape\n"})

    found = await runner.measure_step(broken)

    assert "model/layers.py, line 2, in <module>: EXPANSION.shape" in found
    assert "'int' object has no attribute 'shape'" in found
    tree = StartedTree(TREE, TASK.is_editable, join_files, runner.measure_step)
    tree.files["model/layers.py"] = "EXPANSION = 1\nEXPANSION.shape\n"
    told = (await tree.tools[-1].run(ToolCall("1", "check", {}))).text
    assert "It fails before its training begins" in told
    assert "| model/layers.py, line 2" in told
