"""A user's folder: a git repository with a tiny train.py, and small data."""

import os
import subprocess
import sys
from pathlib import Path

from tests import preloaded
from tests.small import small_data

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "tests/scripts"
TINY = "".join((SCRIPTS / name).read_text() for name in ("protocol.py", "tiny_train.py"))
REPORTED = "".join(line for line in (SCRIPTS / "tiny_train.py").open() if "F821" not in line)
"""The same without the protocol: it reports its score itself, and a run of it costs a fraction of the CPU time."""


def at_best(script: str) -> str:
    """Make its constants the best already: a night of one experiment takes two runs and no certificate."""
    for name, optimum, has in (("DEPTH", 2, 3), ("MATRIX_LR", 0.08, 0.04), ("UNEMBEDDING_LR", 0.016, 0.004)):
        script = script.replace(f"abs({name} - {optimum})", f"9 * abs({name} - {has})")  # 3 is what the profile sets
    return script


BEST, REPORTED_BEST = at_best(TINY), at_best(REPORTED)


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=somebody", "-c", "user.email=somebody@localhost")
    done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def workplace(folder: Path, source: str = TINY) -> Path:
    """The folder, made: train.py committed, data/ and sessions/ ignored."""
    folder.mkdir()
    (folder / "train.py").write_text(source)
    (folder / ".gitignore").write_text("/data/\n/sessions/\n/musings/\n")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "begin")
    small_data(folder / "data")
    return folder


def save(folder: Path, source: str) -> None:
    """Write and commit another train.py."""
    (folder / "train.py").write_text(source)
    git(folder, "commit", "-qam", "another script")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", *words]


def environment(**values: str) -> dict[str, str]:
    """Return ours without what a user's machine would not have."""
    ours = ("NIGHTSHIFT_", "ANTHROPIC_", "PYTHONUTF8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"PYTHONPATH": str(ROOT)} | values


def orchestrate(folder: Path, *words: str, **values: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in the folder."""
    return preloaded.run(words, folder, environment(**values))


def begun(folder: Path, *words: str, **values: str) -> "subprocess.Popen[str]":
    """Start a command and leave it running; a hangup ends it as in a terminal, also where `nohup` started the tests."""
    return subprocess.Popen(
        ["env", "--default-signal=HUP", *command(*words)],
        cwd=folder,
        env=environment(**values),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def status(folder: Path) -> str:
    return git(folder, "status", "--porcelain")
