"""An orchestrator reduced to one run: FOLDER SCRIPT. Prints the log and the outcome."""

import asyncio
import sys
from pathlib import Path

from orchestrator.core.events import EvaluationPlan, Granted
from orchestrator.core.source import compute_digest
from orchestrator.lab.monitor import RunLimits
from orchestrator.lab.runner import Runner
from orchestrator.lab.sandbox.base import NoSandbox
from orchestrator.lab.scoring.claims import Scorer
from orchestrator.lab.slots import Slot


def put(log):
    print(log)
    return compute_digest(log)


folder, script = Path(sys.argv[1]), Path(sys.argv[2])
slot, limits, scorer = Slot(folder / "slot.lock", threads=2), RunLimits(wall=600), Scorer.load(folder / "data")
runner = Runner(folder, [slot], limits, scorer, NoSandbox(), put)
unaudited = EvaluationPlan(audited_below=0.0, confirmed=False, incumbent=0)
granted = Granted(experiment=7, run=2, slot=0, seed=123, plan=unaudited)
print(asyncio.run(runner.run(granted, script.read_text())).kind)
