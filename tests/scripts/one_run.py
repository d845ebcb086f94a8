"""An orchestrator reduced to one run: FOLDER SCRIPT. Prints the log and the outcome."""

import asyncio
import sys
from pathlib import Path

from orchestrator.core.events import Granted
from orchestrator.core.source import compute_digest
from orchestrator.lab.monitor import RunLimits
from orchestrator.lab.runner import Runner
from orchestrator.lab.slots import Slot


def put(log):
    print(log)
    return compute_digest(log)


folder, script = Path(sys.argv[1]), Path(sys.argv[2])
runner = Runner(folder, folder / "data", [Slot(folder / "slot.lock", threads=2)], RunLimits(wall=600, cpu=600), put)
print(asyncio.run(runner.run(Granted(experiment=7, run=2, slot=0, seed=123), script.read_text())).kind)
