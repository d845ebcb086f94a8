"""A user's folder: a git repository with a tiny train.py, and prepared data that nobody reads."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from prepare.manifest import MANIFEST_FILE, BudgetAmount, Manifest

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "tests/scripts/tiny_train.py"


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=somebody", "-c", "user.email=somebody@localhost")
    done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def workplace(folder: Path, script: Path = TINY) -> Path:
    """The folder, made: train.py committed, data/ and sessions/ ignored."""
    folder.mkdir()
    shutil.copy(script, folder / "train.py")
    (folder / ".gitignore").write_text("/data/\n/sessions/\n/musings/\n")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "begin")
    (folder / "data").mkdir()
    manifest = Manifest(
        profile="cpu",
        corpus="none",
        corpus_sha256="0" * 64,
        seq_len=8,
        vocab_size=16,
        eval_tokens=8,
        budget=BudgetAmount(kind="work", amount=1.0, seconds=0.2),
        rows={},
        files={},
        versions={},
    )
    (folder / "data" / MANIFEST_FILE).write_text(manifest.to_json())
    return folder


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", *words]


def environment(**values: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NIGHTSHIFT_", "ANTHROPIC_"))}
    return kept | {"PYTHONPATH": str(ROOT)} | values


def orchestrate(folder: Path, *words: str, **values: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in the folder."""
    return subprocess.run(
        command(*words), cwd=folder, env=environment(**values), capture_output=True, text=True, check=False, timeout=200
    )


def begun(folder: Path, *words: str) -> "subprocess.Popen[str]":
    """Start a command and leave it running."""
    return subprocess.Popen(
        command(*words),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def status(folder: Path) -> str:
    return git(folder, "status", "--porcelain")
