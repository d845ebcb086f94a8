"""Run a candidate once, in a slot, a fresh folder and a sandbox; serve, monitor and evaluate it."""

import asyncio
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from orchestrator.core import events as ev
from orchestrator.lab import guardian
from orchestrator.lab.evaluation import MAX_EXCUSES, EndedRun, ExcusedError, HandedOver, evaluate, score_model
from orchestrator.lab.failures import DEVICE_FAULT, MachineError
from orchestrator.lab.monitor import RunLimits, RunMonitor
from orchestrator.lab.process import Ending, run_guarded
from orchestrator.lab.sandbox.base import TRUSTED, Command, Sandbox
from orchestrator.lab.scoring.claims import Scorer
from orchestrator.lab.scoring.connection import open_pair
from orchestrator.lab.scoring.server import TrainingServer
from orchestrator.lab.slots import Slot, hold_slot

S = TypeVar("S")
STRICT_PLAN = ev.EvaluationPlan(audit="always", confirmed=False, incumbent=0)
"""The plan of a run that was granted without one."""
MAX_DEVICE_FAULTS = 3
"""Faults of a GPU without a run that ended well between them, after which nothing is started there."""


class BaseRunner(ABC, Generic[S]):
    """Runs candidates of one session, one at a time in each slot."""

    def __init__(
        self,
        folder: Path,
        slots: Sequence[Slot],
        limits: RunLimits,
        scorer: S,
        sandbox: Sandbox,
        put: Callable[[str], ev.Digest],
        on_point: Callable[[ev.Granted, ev.Point, float], None] = lambda _granted, _point, _rate: None,
    ) -> None:
        """Work in the session's `folder`; `put` stores a log, `on_point` gets each point and tokens per second."""
        self.runs, self.archive = folder.resolve() / "runs", folder.resolve() / "claims"
        self.slots, self.limits, self.scorer, self.sandbox = slots, limits, scorer, sandbox
        self.put, self.on_point = put, on_point
        self.aborted, self.excuses = 0, Counter[int]()
        """Runs in a row that the machine ended, and by experiment those that were excused."""
        self.faults = Counter[int]()
        """Faults of the GPU, by slot."""

    def reap(self) -> int:
        """Kill what earlier runs of this session left, and remove their folders; return the number of processes."""
        find = partial(guardian.find_tagged, f"{self.runs}/")
        left = len(find())
        guardian.kill_all(find)
        _remove(self.runs)
        return left

    async def run(self, granted: ev.Granted, source: str) -> ev.Outcome:
        """Train once. A failure of the machine is returned as Aborted; cancelling kills every process of the run."""
        folder, slot = self.runs / f"{granted.experiment}-{granted.run}", self.slots[granted.slot]
        try:
            await asyncio.sleep(self.limits.pause * (2**self.aborted - 1))
            async with hold_slot(slot) as lock:
                await asyncio.to_thread(_remove, folder)
                try:
                    if (free := shutil.disk_usage(self.runs.parent).free) < self.limits.free_disk:
                        needed = f"a run needs {self.limits.free_disk >> 20} MB of disk"
                        raise MachineError(f"{needed}; {free >> 20} MB are free")
                    outcome = await self._attempt(granted, source, folder, lock)
                    if isinstance(outcome, ev.Crashed) and not folder.exists():
                        raise MachineError("the folder of the run was deleted")
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

    @abstractmethod
    async def _attempt(self, granted: ev.Granted, source: str, folder: Path, lock: int) -> ev.Outcome:
        """Run the source once in an empty folder; `lock` is the slot's. Raises MachineError, OSError."""

    def _make_monitor(self, granted: ev.Granted, folder: Path) -> RunMonitor:
        tell, fills_disk = partial(self.on_point, granted), partial(self._is_filling_disk, folder)
        return RunMonitor(self.limits, on_point=tell, fills_disk=fills_disk, plan=granted.plan or STRICT_PLAN)

    async def _summarize(self, granted: ev.Granted, monitor: RunMonitor, ending: Ending, folder: Path) -> EndedRun:
        """Store the log of a run in the folder, and return all that was observed of it."""
        log = _strip_paths(monitor.transcript.log, folder / "work")
        result = ev.RunResult(
            experiment=granted.experiment,
            run=granted.run,
            metrics=monitor.summarize(None if self.slots[granted.slot].devices else ending.peak_mb),
            curve=tuple(monitor.points.values()),
            log=self.put(log),
            tier=self.sandbox.tier,
        )
        disk, excusable = await asyncio.to_thread(_measure, folder), self.excuses[granted.experiment] < MAX_EXCUSES
        return EndedRun(result, log, monitor, ending, disk, excusable)

    def _is_filling_disk(self, folder: Path) -> bool:
        free = shutil.disk_usage(self.runs).free
        return free < self.limits.reserve <= free + _measure(folder)


class Runner(BaseRunner[Scorer]):
    """Trains scripts that use the protocol of `prepare`, and evaluates the models that they hand over."""

    async def _attempt(self, granted: ev.Granted, source: str, folder: Path, lock: int) -> ev.Outcome:
        plan, slot, work = granted.plan or STRICT_PLAN, self.slots[granted.slot], folder / "work"
        work.mkdir(parents=True)
        (work / "train.py").write_text(source, encoding="utf-8")
        monitor = self._make_monitor(granted, folder)
        env = {"NIGHTSHIFT_SEED": str(granted.seed), "NIGHTSHIFT_DATA": str(self.scorer.lay_out(work / "data"))}
        ours, theirs = await open_pair()
        command = slot.build_command(self.sandbox, ["train.py"], work, theirs, **env)
        threads = slot.threads or os.cpu_count() or 1
        server = TrainingServer(ours, self.scorer, threads, plan.startup, folder / "model")
        ending = await run_guarded(command, monitor, lock, server.serve)
        ended = await self._summarize(granted, monitor, ending, folder)

        def build_evaluator(connection: int) -> Command:
            for left in (work, folder / "evaluator"):
                _remove(left)  # what a process wrote could tell the next one something, be it by its size
            return slot.build_command(self.sandbox, ["-m", "prepare.evaluator"], folder / "evaluator", connection)

        run = HandedOver(ended, server, plan, build_evaluator, lock)
        return await evaluate(ended.result, score_model(run, self.archive))


def _strip_paths(text: str, work: Path) -> str:
    """Remove this machine's folders from tracebacks, since sessions are shared."""
    for path, name in {f"{work}/": "", sys.prefix: "python", f"{TRUSTED.parent}/": ""}.items():
        text = text.replace(path, name)
    return text


def _remove(folder: Path) -> None:
    """Remove a folder that hostile code has filled, whatever its depth and permissions."""
    if folder.exists():
        subprocess.run(["chmod", "-R", "u+rwx", "--", folder], check=False, capture_output=True)
        subprocess.run(["rm", "-rf", "--", folder], check=False, capture_output=True)


def _measure(folder: Path) -> int:
    """Return the bytes of disk that the readable files in a folder take, at any depth."""
    done = subprocess.run(["du", "-sk", "--", folder], check=False, capture_output=True)
    return int((done.stdout.split() or [b"0"])[0]) << 10
