"""An orchestrator reduced to one run: FOLDER SCRIPT. Prints the log and the outcome."""

import asyncio
import sys
from pathlib import Path

from orchestrator.events import Granted
from orchestrator.lab.runner import Runner
from orchestrator.lab.slots import Slot
from orchestrator.lab.watch import Limits
from orchestrator.source import digest


def put(log):
    print(log)
    return digest(log)


folder, script = Path(sys.argv[1]), Path(sys.argv[2])
runner = Runner(folder, folder / "data", [Slot(folder / "slot.lock", threads=2)], Limits(wall=600, cpu=600), put)
print(asyncio.run(runner.run(Granted(experiment=7, run=2, slot=0, seed=123), script.read_text())).kind)
