"""Measure which share of a run's CPU time goes into watching its model, on the cpu profile's baseline."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

from prepare import manifest, profiles

RUNS = 3
CLOCK = """
class Clocked:
    spent = 0.0

    def __init__(self, watched):
        self.watched = watched

    def __enter__(self):
        began = time.process_time()
        self.watched.__enter__()
        Clocked.spent += time.process_time() - began

    def __exit__(self, *words):
        began = time.process_time()
        self.watched.__exit__(*words)
        Clocked.spent += time.process_time() - began


def train_step("""
END = """
print("WATCHED", Clocked.spent, time.process_time() - cpu_start, step, flush=True)
sys.exit()
"""


def main() -> None:
    found = manifest.load()
    root = Path(__file__).parent.parent
    source = profiles.apply_to_script((root / "train.py").read_text(), profiles.from_manifest(found))
    for old, new in (
        ("def train_step(", CLOCK.lstrip()),
        ("with budget.watch(raw_model)", "with Clocked(budget.watch(raw_model))"),
        ("while not budget.done:", "Clocked.spent, cpu_start = 0.0, time.process_time()\nwhile not budget.done:"),
        ("\ntraining_seconds = ", f"{END}training_seconds = "),
    ):
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    data = str(manifest.get_data_dir().resolve())
    env = os.environ | {"PYTHONPATH": str(root), "NIGHTSHIFT_DATA": data, "OMP_WAIT_POLICY": "passive"}
    shares = list[float]()
    print("| steps | training, s of CPU | of it watching, s | share |\n|---|---|---|---|")
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "train.py").write_text(source)
            printed = subprocess.check_output([sys.executable, "train.py"], cwd=folder, env=env, text=True)
        spent, whole, steps = printed.rpartition("WATCHED ")[2].split()
        shares.append(float(spent) / float(whole))
        print(f"| {steps} | {float(whole):.1f} | {float(spent):.3f} | {shares[-1]:.2%} |", flush=True)
    print(f"\nmean: {mean(shares):.2%}")
