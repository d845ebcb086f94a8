"""Measure what the blind audit costs, and how well an honest model agrees with itself, on a short run."""

import asyncio
import dataclasses
import os
import shutil
import tempfile
from pathlib import Path

from orchestrator.core.events import Granted, Scored
from orchestrator.lab.monitor import RunLimits
from orchestrator.lab.runner import Runner
from orchestrator.lab.sandbox import select
from orchestrator.lab.scoring.claims import Scorer
from orchestrator.lab.slots import list_slots
from prepare import manifest, profiles

RUNS = 3
SHARE = 20
"""Divisor of the budget: the model need not be good."""


def main() -> None:
    source = manifest.get_data_dir()
    found = manifest.load(source)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(source, folder / "data")
        budget = dataclasses.replace(found.budget, amount=found.budget.amount / SHARE)
        shorter = dataclasses.replace(found, budget=budget)
        (folder / "data" / manifest.MANIFEST_FILE).write_text(shorter.to_json())
        runner = Runner(
            folder,
            list_slots(1, folder, os.cpu_count() or 1),
            RunLimits(wall=600, cpu=6000),
            Scorer.load(folder / "data"),
            select.select_sandbox(),
            lambda _log: "",
        )
        code = profiles.apply_to_script(Path("train.py").read_text(), profiles.PROFILES[found.profile])
        print(
            "| seed | claimed | audited − claimed | worst token, nats | evaluation, s | audit, s |\n" + "|---" * 6 + "|"
        )
        for seed in range(1, RUNS + 1):
            outcome = asyncio.run(runner.run(Granted(experiment=1, run=seed, slot=0, seed=seed), code))
            assert isinstance(outcome, Scored), outcome
            assert outcome.audit, outcome
            audit = outcome.audit
            row = f"| {seed} | {audit.claimed:.5f} | {outcome.val_bpb - audit.claimed:+.1e} | {audit.worst:.1e}"
            print(f"{row} | {audit.evaluation:.1f} | {audit.seconds:.1f} |")
