"""A small corpus and a data folder made of it, by the real command."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from tests import preloaded

ROOT = Path(__file__).resolve().parent.parent
SYLLABLES = ["ka", "ro", "mi", "ten", "sul", "ve", "nor", "da", "pi", "lim", "qua", "set", "ur", "bo"]


def small_corpus(folder: Path, documents: int = 400) -> Path:
    """Text files of made-up words, always the same."""
    luck = random.Random(0)
    words = ["".join(luck.choices(SYLLABLES, k=luck.randint(1, 4))) for _ in range(1500)]
    folder.mkdir()
    for i in range(documents):
        lines = (" ".join(luck.choices(words, k=12)) for _ in range(luck.randint(2, 40)))
        (folder / f"{i:03}.txt").write_text(".\n".join(lines) + f"\nNº {i} — ende\n")
    return folder


def environment(**values: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTSHIFT_")}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive", **values}


def prepare_command(data: Path, corpus: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "prepare", "--data", str(data), "--corpus", str(corpus), "--profile", "cpu", *more]


def prepare(data: Path, corpus: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = prepare_command(data, corpus, *more)
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=120)


def train(source: str, data: Path, folder: Path, **more: str) -> tuple[subprocess.CompletedProcess[str], list[dict]]:
    """Runs a training script in `folder`: the finished process, and its reports to an orchestrator."""
    (folder / "train.py").write_text(source)
    reading, writing = os.pipe()
    env = environment(NIGHTSHIFT_DATA=str(data), OMP_NUM_THREADS="2", **more)
    done = preloaded.run_script("train.py", folder, env, writing)
    os.close(writing)
    with os.fdopen(reading) as reports:
        return done, [json.loads(line) for line in reports]
