"""Runs train.py once: in a slot, a fresh folder and a sandbox, served and monitored, and evaluated at the end."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from orchestrator.core import events as ev
from orchestrator.lab import guardian
from orchestrator.lab.evaluation import MAX_EXCUSES, ExcusedError, Observation, evaluate
from orchestrator.lab.failures import DEVICE_FAULT, MachineError
from orchestrator.lab.monitor import RunLimits, RunMonitor
from orchestrator.lab.process import run_guarded
from orchestrator.lab.sandbox.base import TRUSTED, Sandbox
from orchestrator.lab.scoring.claims import Scorer
from orchestrator.lab.scoring.connection import open_pair
from orchestrator.lab.scoring.server import EvaluationServer
from orchestrator.lab.slots import Slot, hold_slot

STRICT_PLAN = ev.EvaluationPlan(audit="always", confirmed=False, incumbent=0)
"""For a run that was granted without a plan."""
MAX_DEVICE_FAULTS = 3
"""Faults of a GPU without a run that ended well between them, after which nothing is started there."""


class Runner:
    """Trains candidates of one session, one at a time in each slot."""

    def __init__(
        self,
        folder: Path,
        slots: Sequence[Slot],
        limits: RunLimits,
        scorer: Scorer,
        sandbox: Sandbox,
        put: Callable[[str], ev.Digest],
        on_point: Callable[[ev.Granted, ev.Point, float], None] = lambda _granted, _point, _rate: None,
    ) -> None:
        """Work in the session's `folder`; `put` stores a log, `on_point` is told of progress and tokens per second."""
        self.runs, self.archive = folder.resolve() / "runs", folder.resolve() / "claims"
        self.slots, self.limits, self.scorer, self.sandbox = slots, limits, scorer, sandbox
        self.put, self.on_point = put, on_point
        self.aborted, self.excuses = 0, Counter[int]()
        """Runs in a row that the machine ended, and those of each experiment that may have been its own fault."""
        self.faults = Counter[int]()
        """Faults of the GPU, by slot."""

    def reap(self) -> int:
        """End the runs that an earlier life of this session left, and remove their folders; return their processes."""
        left = len(guardian.find_tagged(f"{self.runs}/"))
        guardian.kill_all(lambda: guardian.find_tagged(f"{self.runs}/"))
        _remove(self.runs)
        return left

    async def run(self, granted: ev.Granted, source: str) -> ev.Outcome:
        """Train once. A failure of the machine is an Aborted; cancelling ends every process of the run."""
        folder, slot = self.runs / f"{granted.experiment}-{granted.run}", self.slots[granted.slot]
        try:
            await asyncio.sleep(self.limits.pause * min(self.aborted, 10))
            await self._wait_for_disk()
            async with hold_slot(slot) as lock:
                await asyncio.to_thread(_remove, folder)
                try:
                    run = await self._train(granted, source, folder, lock)
                    outcome = await evaluate(run, self.archive)
                    excusable = slot.devices and self.excuses[granted.experiment] < MAX_EXCUSES
                    if excusable and isinstance(outcome, ev.Crashed) and DEVICE_FAULT.search(outcome.message):
                        raise ExcusedError(outcome.message)
                finally:
                    await asyncio.to_thread(_remove, folder)
        except (OSError, MachineError) as error:
            self.aborted += 1
            self.excuses[granted.experiment] += isinstance(error, ExcusedError)
            reason = (
                f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
            )
            self.faults[granted.slot] += bool(slot.devices and DEVICE_FAULT.search(reason))
            if is_sick := self.faults[granted.slot] >= MAX_DEVICE_FAULTS:
                reason = f"{slot.devices} is sick, and is not used any more: {reason}"
            return ev.Aborted(experiment=granted.experiment, run=granted.run, reason=reason, quarantined=is_sick)
        self.aborted = self.excuses[granted.experiment] = 0
        self.faults[granted.slot] *= isinstance(outcome, ev.Crashed)
        return outcome

    async def _train(self, granted: ev.Granted, source: str, folder: Path, lock: int) -> Observation:
        plan, slot, work = granted.plan or STRICT_PLAN, self.slots[granted.slot], folder / "work"
        work.mkdir(parents=True)
        (work / "train.py").write_text(source, encoding="utf-8")
        tell, fills_disk = partial(self.on_point, granted), partial(self._is_filling_disk, folder)
        monitor = RunMonitor(self.limits, on_point=tell, fills_disk=fills_disk, plan=plan)
        env = {"NIGHTSHIFT_SEED": str(granted.seed), "NIGHTSHIFT_DATA": str(self.scorer.lay_out(work / "data"))}
        ours, theirs = await open_pair()
        command = slot.build_command(self.sandbox, ["train.py"], work, theirs, **env)
        server = EvaluationServer(ours, self.scorer, plan, slot.threads or os.cpu_count() or 1, folder / "model")
        ending = await run_guarded(command, monitor, lock, server.serve)
        log = _strip_paths(monitor.transcript.log, work)
        result = ev.RunResult(
            experiment=granted.experiment,
            run=granted.run,
            metrics=monitor.summarize(None if slot.devices else ending.peak_mb),
            curve=tuple(monitor.points.values()),
            log=self.put(log),
            tier=self.sandbox.tier,
        )
        disk, excusable = await asyncio.to_thread(_measure, folder), self.excuses[granted.experiment] < MAX_EXCUSES
        audit = partial(slot.build_command, self.sandbox, ["-m", "prepare.audit"], folder / "audit")
        return Observation(result, log, monitor, server, ending, disk, excusable, audit, lock)

    async def _wait_for_disk(self) -> None:
        """Wait for room on the disk, which another program may fill for a moment. Raises MachineError."""
        deadline = time.monotonic() + self.limits.patience
        while (free := shutil.disk_usage(self.runs.parent).free) < self.limits.free_disk:
            if time.monotonic() > deadline:
                raise MachineError(f"a run needs {self.limits.free_disk >> 20} MB of disk; {free >> 20} MB are free")
            await asyncio.sleep(1)

    def _is_filling_disk(self, folder: Path) -> bool:
        free = shutil.disk_usage(self.runs).free
        return free < self.limits.reserve <= free + _measure(folder)


def _strip_paths(text: str, work: Path) -> str:
    """Remove this machine's folders from tracebacks: sessions are mailed."""
    for path, name in {f"{work}/": "", sys.prefix: "python", f"{TRUSTED.parent}/": ""}.items():
        text = text.replace(path, name)
    return text


def _remove(folder: Path) -> None:
    """Remove a folder that hostile code has filled: of any depth, and without permissions."""
    if folder.exists():
        subprocess.run(["chmod", "-R", "u+rwx", "--", folder], check=False, capture_output=True)
        subprocess.run(["rm", "-rf", "--", folder], check=False, capture_output=True)


def _measure(folder: Path) -> int:
    """Return the bytes of disk that its files take, of any depth; those without permissions do not count."""
    done = subprocess.run(["du", "-sk", "--", folder], check=False, capture_output=True)
    return int((done.stdout.split() or [b"0"])[0]) << 10
