"""Nightshift as a user installs it: the wheel, away from the repository, in a folder whose names clash with ours."""

import os
import shutil
import subprocess
import sys
import tomllib
from zipfile import ZipFile

import pytest

from tests.ground import small_corpus
from tests.small import small_data
from tests.workplace import BEST, ROOT, git

TRAP = "raise SystemExit('a module of the folder was imported')\n"
CLASHING = ("orchestrator.py", "prepare.py", "subagents.py", "tokenize.py", "torch.py", "random.py", "code.py")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder of packages with our wheel in it; everything else comes from the environment of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in [name for name in tracked if name and (ROOT / name).is_file()]:
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source"]
    subprocess.run(wheel, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-index", "--no-deps", "--target", folder / "site", built], check=True)
    return folder / "site"


@pytest.fixture
def place(tmp_path):
    """A folder in which nothing that we import may come from where we stand."""
    for name in CLASHING:
        (tmp_path / name).write_text(TRAP)
    return tmp_path


@pytest.fixture
def run(installed, place):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NIGHTSHIFT_", "ANTHROPIC_"))}
    path = f"{installed / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def run(*words, program=("nightshift",), **more):
        env = kept | {"PYTHONPATH": str(installed), "PATH": path, "NO_COLOR": "1", **more}
        return subprocess.run([*program, *words], cwd=place, env=env, capture_output=True, text=True, check=False)

    return run


def commit(place, *names):
    git(place, "init", "-q")
    git(place, "add", *names)
    git(place, "commit", "-qm", "begin")


def test_a_wheel_holds_the_script_every_style_and_every_template(installed):
    (wheel,) = installed.parent.glob("*.whl")
    names = set(ZipFile(wheel).namelist())
    styles = {f"orchestrator/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "prompts").rglob("*.md")}
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "orchestrator").rglob("templates/*")}
    assert {"prepare/build/train.py", *styles, *templates} <= names
    assert "orchestrator/agents/templates/briefing.txt" in templates
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "train.py", "prompts"))]


def test_a_command_imports_nothing_from_the_folder_it_is_called_in(run, place):
    assert run("--version").stdout.startswith("nightshift ")
    assert run("--help").stdout.startswith("Usage: nightshift ")
    completed = run(_NIGHTSHIFT_COMPLETE="complete_bash", COMP_WORDS="nightshift res", COMP_CWORD="1")
    assert completed.stdout.split() == ["resume"]
    checked = run("doctor")
    assert checked.returncode == 3
    assert "reported by the script" in checked.stdout, "a prepare.py of its own makes it a task of its own"
    (place / "orchestrator.py").unlink()
    by_module = run("doctor", program=(sys.executable, "-m", "orchestrator"))
    assert by_module.returncode == 3
    assert "reported by the script" in by_module.stdout


def test_a_users_own_prepare_is_not_replaced(run, place):
    """A script that imports it runs with it, in reported form; a script of ours cannot be begun beside it."""
    (place / "train.py").write_text("import prepare\nRATE = 0.3\nprint('METRIC val_bpb=%.4f' % prepare.score(RATE))\n")
    (place / "prepare.py").write_text("def score(rate):\n    return 1 + (rate - 0.5) ** 2\n")
    commit(place, "train.py", "prepare.py")

    done = run("--offline", "--max-experiments", "1", "--session", "own")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "val_bpb 1.04" in done.stdout

    refused = run("init", "--script", "other.py")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "prepare" in line


def test_init_replaces_nothing(run, place):
    for name in CLASHING:
        (place / name).unlink(missing_ok=True)
    (place / ".gitignore").write_text("*.pyc\ndata/")

    begun = run("init")

    assert begun.returncode == 0, begun.stderr
    assert (place / ".gitignore").read_text() == "*.pyc\ndata/\n/sessions/\n"
    script = (place / "train.py").read_text()
    assert "evaluate_bpb" in script
    again = run("init")
    assert again.returncode == 2
    assert "train.py is there already" in again.stderr
    assert (place / "train.py").read_text() == script
    assert tomllib.loads((place / "nightshift.toml").read_text()) == {"editable": ["train.py"]}


@pytest.mark.parametrize(
    ("source", "count"),
    [(BEST, 1), pytest.param((ROOT / "train.py").read_text(), 3, marks=pytest.mark.soak)],
    ids=["tiny", "ours"],
)
def test_a_night_in_a_folder_that_clashes(run, place, source, count):
    for name in ("prepare.py", "torch.py", "random.py"):  # which the scripts import
        (place / name).unlink()
    (place / "train.py").write_text(source)
    commit(place, "train.py")
    if source == BEST:
        small_data(place / "data")
    else:
        small_corpus(place / "text")
        filled = run("prepare", "--corpus", "text", "--profile", "cpu", "--work", "1e11")
        assert filled.returncode == 0, filled.stderr

    done = run("--offline", "--hours", "1", "--max-experiments", str(count), "--session", "first")

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"tried     {count} experiment" in done.stdout
    assert run("doctor", "--offline").returncode == 0
    assert run("report", "first").returncode == 0
