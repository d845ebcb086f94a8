"""Runs train.py once: in a slot, a fresh folder and a sandbox, served and monitored, and evaluated at the end."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from orchestrator.core import events as ev
from orchestrator.lab import guardian
from orchestrator.lab.evaluation import STRICT_PLAN, Observation, RunFacts, evaluate
from orchestrator.lab.launcher import Launcher
from orchestrator.lab.limits import RunLimits
from orchestrator.lab.monitor import RunMonitor
from orchestrator.lab.process import MachineError, RunningProcess, run_guarded, run_in_thread
from orchestrator.lab.sandbox.base import TRUSTED, Sandbox
from orchestrator.lab.scoring.audit import MODULE, Auditor, ClaimsArchive
from orchestrator.lab.scoring.claims import Scorer
from orchestrator.lab.scoring.connection import Connection, open_pair
from orchestrator.lab.scoring.server import EvaluationServer, Submission
from orchestrator.lab.slots import Slot, SlotBusy, hold_slot

OnPoint = Callable[[ev.Granted, ev.Point, float], None]
"""Called with each progress line as it comes: the point, and tokens per second."""


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
        on_point: OnPoint = lambda _granted, _point, _rate: None,
    ) -> None:
        """Work in the session's `folder`; `put` stores a log."""
        self.runs, self.archive = folder.resolve() / "runs", ClaimsArchive(folder.resolve() / "claims")
        self.slots, self.limits, self.scorer, self.sandbox = slots, limits, scorer, sandbox
        self.put, self.on_point = put, on_point

    def reap(self) -> int:
        """End the runs that an earlier life of this session left, and remove their folders; return their processes."""
        left = len(guardian.find_tagged(f"{self.runs}/"))
        guardian.kill_all(lambda: guardian.find_tagged(f"{self.runs}/"))
        _remove(self.runs)
        return left

    async def run(self, granted: ev.Granted, source: str) -> ev.Outcome:
        """Train once. A failure of the machine is an Aborted; cancelling ends every process of the run."""
        folder, slot = self.runs / f"{granted.experiment}-{granted.run}", self.slots[granted.slot]
        launcher = Launcher(slot, self.sandbox)
        try:
            self._check_disk()
            async with (
                hold_slot(slot) as lock,
                _make_folder(folder),
                self._start_auditor(granted, launcher, folder / "audit", lock) as auditor,
            ):
                run = await self._train(granted, source, folder, launcher, lock)
                return await evaluate(run, self.scorer, auditor, self.archive)
        except (OSError, SlotBusy, MachineError) as error:
            return ev.Aborted(experiment=granted.experiment, run=granted.run, reason=_explain(error))

    async def _train(
        self, granted: ev.Granted, source: str, folder: Path, launcher: Launcher, lock: int
    ) -> Observation:
        """Run the training to its end and return what was observed. Raises MachineError, OSError."""
        plan, slot, work = granted.plan or STRICT_PLAN, launcher.slot, folder / "work"
        submission = Submission(folder / "model")
        monitor = RunMonitor(
            self.limits,
            on_point=lambda point, rate: self.on_point(granted, point, rate),
            get_free_disk=lambda: shutil.disk_usage(self.runs).free,
            plan=plan,
        )
        env = {"NIGHTSHIFT_SEED": str(granted.seed), "NIGHTSHIFT_DATA": str(self._lay_out(work, source))}
        ours, theirs = open_pair()
        command = launcher.build_command(["train.py"], work, theirs, env)
        serve = partial(self._serve, ours, submission, plan)
        stopped, ending = await run_guarded(command, monitor, lock, serve)
        log = _strip_paths(monitor.transcript.log.text, work)
        facts = RunFacts(
            experiment=granted.experiment,
            run=granted.run,
            metrics=monitor.summarize(None if slot.devices else ending.peak_mb),
            curve=monitor.curve.points,
            log=self.put(log),
            tier=self.sandbox.tier,
        )
        return Observation(plan, facts, slot, monitor, log, submission, stopped, ending)

    def _lay_out(self, work: Path, source: str) -> Path:
        """Make the working folder, and return its data folder."""
        (work / "tmp").mkdir(parents=True)
        (work / "train.py").write_text(source, encoding="utf-8")
        return self.scorer.lay_out(work / "data")

    async def _serve(
        self, connection: Connection, submission: Submission, plan: ev.EvaluationPlan, running: RunningProcess
    ) -> None:
        server = EvaluationServer(
            connection,
            self.scorer,
            running.monitor.clock,
            submission,
            count_cpu_seconds=running.count_cpu_seconds,
            seal=running.seal,
            is_heldout_due=lambda val_bpb: plan.confirmed and plan.needs_audit(val_bpb),
        )
        await run_in_thread(server.serve, connection.shutdown)

    @asynccontextmanager
    async def _start_auditor(
        self, granted: ev.Granted, launcher: Launcher, folder: Path, lock: int
    ) -> AsyncGenerator[Auditor | None]:
        """Start the blind process, if the plan may need it."""
        if not (granted.plan or STRICT_PLAN).needs_audit(0.0):
            yield None
            return
        (folder / "tmp").mkdir(parents=True)
        ours, theirs = open_pair()
        command = launcher.build_command(["-m", MODULE], folder, theirs, {})
        auditor = Auditor(command, ours, RunMonitor(self.limits), lock)
        try:
            await asyncio.sleep(0)  # from now on the descriptors are the auditor's
            yield auditor
        finally:
            await auditor.close()

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self.runs.parent).free
        if free < self.limits.free_disk:
            raise MachineError(f"a run needs {self.limits.free_disk >> 20} MB of disk; {free >> 20} MB are free")


def _strip_paths(text: str, work: Path) -> str:
    """Remove this machine's folders from tracebacks: sessions are mailed."""
    for path, name in {f"{work}/": "", sys.prefix: "python", f"{TRUSTED.parent}/": ""}.items():
        text = text.replace(path, name)
    return text


def _explain(error: Exception) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)


@asynccontextmanager
async def _make_folder(folder: Path) -> AsyncGenerator[None]:
    """Make an empty folder, and remove it at the end."""
    await asyncio.to_thread(_empty, folder)
    try:
        yield
    finally:
        await asyncio.to_thread(_remove, folder)


def _empty(folder: Path) -> None:
    _remove(folder)
    folder.mkdir(parents=True)


def _remove(folder: Path) -> None:
    """Remove a folder that hostile code has filled: of any depth, and without permissions."""
    if folder.exists():
        subprocess.run(["chmod", "-R", "u+rwx", "--", folder], check=False, capture_output=True)
        subprocess.run(["rm", "-rf", "--", folder], check=False, capture_output=True)
