"""Measure the speed and memory of `python -m prepare` on two corpora, the larger of 2 GB."""

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

from pyarrow import parquet

from benchmarks.loader import write_corpus

SIZES = (200_000_000, 2_000_000_000)


def write_lines(path: Path, size: int) -> None:
    """Write `size` bytes of JSON lines, all documents different."""
    base = path.with_suffix(".base")
    write_corpus(base, 4_000)
    texts = parquet.read_table(base).column("text").to_pylist()
    with path.open("w") as file:
        for number in count():
            file.write(json.dumps({"text": f"{number}{texts[number % len(texts)]}"}) + "\n")
            if file.tell() >= size:
                return


def prepare(folder: Path, corpus: Path) -> tuple[float, int]:
    """Return seconds, and peak memory in bytes."""
    command = [sys.executable, "-m", "prepare", "--data", str(folder), "--corpus", str(corpus)]
    began = time.perf_counter()
    child = subprocess.Popen([*command, "--profile", "gpu12", "--set", "seconds=300"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit("prepare failed")
    return time.perf_counter() - began, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    print("| corpus | tokens to train on | seconds | MB/s | peak memory |")
    print("|---|---|---|---|---|")
    for size in SIZES:
        with tempfile.TemporaryDirectory() as name:
            corpus, data = Path(name, "text.jsonl"), Path(name, "data")
            write_lines(corpus, size)
            seconds, memory = prepare(data, corpus)
            tokens = (data / "train.bin").stat().st_size // 2
        print(
            f"| {size / 1e9:.1f} GB | {tokens / 1e6:.0f} M | {seconds:.0f} | {size / 1e6 / seconds:.1f} | "
            f"{memory / 1e9:.2f} GB |",
            flush=True,
        )
