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


def copy_data(target: Path, share: int) -> manifest.Manifest:
    """Copy the prepared data, with that part of the budget; return their manifest."""
    source = manifest.get_data_dir()
    found = manifest.load(source)
    shutil.copytree(source, target)
    budget = dataclasses.replace(found.budget, amount=found.budget.amount / share)
    (target / manifest.MANIFEST_FILE).write_text(dataclasses.replace(found, budget=budget).to_json())
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = copy_data(folder / "data", SHARE)
        runner = Runner(
            folder,
            list_slots(1, folder, os.cpu_count() or 1),
            RunLimits(wall=600),
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
