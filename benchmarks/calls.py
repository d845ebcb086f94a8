"""Trace which system calls honest runs and evaluations on a CPU use, and what of it the sandboxes' table lacks.

It needs strace. Run it on each architecture and with each new version of Python and torch, and add what is missing to
orchestrator/lab/sandbox/calls.txt.
"""

import asyncio
import dataclasses
import platform
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.audit import copy_data
from orchestrator.core.events import Granted
from orchestrator.lab.monitor import RunLimits
from orchestrator.lab.runner import Runner
from orchestrator.lab.sandbox import seccomp
from orchestrator.lab.sandbox.base import Command
from orchestrator.lab.scoring.claims import Scorer
from orchestrator.lab.slots import list_slots
from prepare import profiles
from prepare.machine import THREADS

SHARE = 2
"""Divisor of the budget: the model need not be good."""
WORKERS = """
from torch.utils.data import DataLoader
print(sum(len(batch) for batch in DataLoader(range(64), num_workers=2)))
import subprocess, tempfile, threading, multiprocessing as mp
print(subprocess.run(["uname"], capture_output=True).stdout, tempfile.mkdtemp())
with mp.get_context("fork").Pool(2) as pool:
    print(pool.map(abs, [-1, 2]))
"""
COMPILED = "maybe_compile = torch.compile(dynamic=False)"


class Strace:
    """Runs a command without confinement, and keeps the names of its system calls."""

    tier = "strace"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[seccomp.Grants, set[str]] = {"model": set(), "run": set()}
        self.files = list[tuple[seccomp.Grants, Path]]()

    def wrap(self, command: Command) -> Command:
        path = self.folder / f"trace-{len(self.files)}"
        self.files.append((command.grants, path))
        trace = ("strace", "-f", "-qq", "-e", "signal=none", "-o", str(path))
        return dataclasses.replace(command, argv=(*trace, *command.argv))

    def read(self) -> dict[seccomp.Grants, set[str]]:
        """Return the names by what was traced."""
        for grants, path in self.files:
            text = path.read_text("utf-8", "replace")
            self.found[grants] |= {*re.findall(r"^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed)", text, re.MULTILINE)}
        return self.found


def list_variants() -> Mapping[str, str]:
    """Return honest training scripts."""
    plain = profiles.apply_to_script(Path("train.py").read_text(), profiles.PROFILES["cpu"])
    ends = "tokenizer = Tokenizer.from_directory()\n"
    half = 'autocast = torch.autocast("cpu", torch.bfloat16)'
    return {
        "plain": plain,
        "workers": plain.replace(ends, ends + WORKERS, 1),
        "autocast": re.sub(r"^autocast = .*$", half, plain, count=1, flags=re.MULTILINE),
        "compiled": re.sub(r"^maybe_compile = .*$", COMPILED, plain, count=1, flags=re.MULTILINE),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_data(folder / "data", SHARE)
        limits, strace, logs = RunLimits(wall=1200, quiet=600), Strace(folder), list[str]()
        slots = list_slots(1, folder, THREADS)
        runner = Runner(folder, slots, limits, Scorer.load(folder / "data"), strace, lambda log: logs.append(log) or "")
        for number, (variant, code) in enumerate(list_variants().items(), 1):
            outcome = asyncio.run(runner.run(Granted(experiment=number, run=1, slot=0, seed=1), code))
            print(f"{variant}: {outcome.kind} {getattr(outcome, 'message', '')}")
        table = seccomp.list_calls(platform.machine())
        for grants, names in strace.read().items():
            known = {*seccomp.ANSWERS, *seccomp.LEVELS[: seccomp.LEVELS.index(grants) + 1]}
            missing = {name for name in names if name not in table or table[name][1] not in known}
            print(f"\n{grants}: {' '.join(sorted(names))}\nnot in the table: {' '.join(sorted(missing)) or 'nothing'}")
