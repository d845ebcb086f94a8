"""One run: train.py in a fresh folder with a clean environment, shut in and guarded; and what came of it."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.core import events as ev
from orchestrator.lab import failures, guardian
from orchestrator.lab.failures import Fault
from orchestrator.lab.monitor import RunLimits, RunMonitor
from orchestrator.lab.process import (
    Ending,
    MachineError,
    RunningProcess,
    call_from_thread,
    pump,
    run_guarded,
    run_in_thread,
)
from orchestrator.lab.sandbox.base import KERNELS, TRUSTED, Command, NoSandbox, Sandbox
from orchestrator.lab.scoring import audit, connection
from orchestrator.lab.scoring.claims import Disqualified, Scorer, get_tolerance
from orchestrator.lab.scoring.server import EvaluationServer, Submission
from orchestrator.lab.slots import Slot, SlotBusy, hold_slot

OnPoint = Callable[[ev.Granted, ev.Point, float], None]
"""Called with each progress line as it comes: the point, and tokens per second."""
STRICT = ev.EvaluationPlan(audit="always", confirmed=False, incumbent=0)
"""Where nobody has said on what terms a run is made."""


class Runner:
    """Trains candidates of one session, one at a time in each slot."""

    def __init__(
        self,
        folder: Path,
        data: Path,
        slots: Sequence[Slot],
        limits: RunLimits,
        put: Callable[[str], ev.Digest],
        *,
        sandbox: Sandbox | None = None,
        exam: Scorer | None = None,
        second: Scorer | None = None,
        on_point: OnPoint = lambda _granted, _point, _rate: None,
    ) -> None:
        """`folder` is the session's, `put` stores a log.

        Without an `exam` a run reads `data` itself and its word counts: for data folders without validation rows, which
        only tests make. `second` is an exam on text that no decision has used.
        """
        self.runs, self.data, self.slots, self.limits, self.put = folder.resolve() / "runs", data, slots, limits, put
        self.sandbox: Sandbox = sandbox or NoSandbox()
        self.exam, self.second, self.on_point = exam, second, on_point
        self.claims = folder.resolve() / "claims"

    def reap(self) -> int:
        """End what an earlier life of this session left running, and remove its folders; how many processes it was."""
        left = len(guardian.find_tagged(f"{self.runs}/"))
        guardian.kill_all(lambda: guardian.find_tagged(f"{self.runs}/"))
        _remove(self.runs)
        return left

    async def run(self, granted: ev.Granted, source: str) -> ev.Outcome:
        """Train once. Whatever is the machine's fault is an Aborted; cancelling ends every process of the run."""
        place = self.runs / f"{granted.experiment}-{granted.run}"
        try:
            self._check_disk()
            async with hold_slot(self.slots[granted.slot]) as lock, _make_folder(place) as folder:
                delivery = Submission(folder / "model")
                async with self._auditor(granted, folder / "audit", lock) as auditor:
                    outcome = await self._train(granted, source, folder / "work", delivery, lock)
                    if isinstance(outcome, ev.Scored) and auditor and _needs_audit(granted, outcome.val_bpb):
                        return await self._audited(granted, outcome, delivery, auditor)
                    return outcome
        except (OSError, SlotBusy, MachineError) as error:
            return ev.Aborted(experiment=granted.experiment, run=granted.run, reason=_explain(error))

    async def _train(
        self, granted: ev.Granted, source: str, folder: Path, delivery: Submission, lock: int
    ) -> ev.Outcome:
        (folder / "tmp").mkdir(parents=True)
        (folder / "train.py").write_text(source, encoding="utf-8")
        watch = RunMonitor(
            self.limits,
            on_point=lambda point, rate: self.on_point(granted, point, rate),
            free=lambda: shutil.disk_usage(self.runs).free,
            plan=granted.plan,
        )
        environment = {"NIGHTSHIFT_SEED": str(granted.seed)}
        if self.exam:
            data = self.exam.lay_out(folder / "data")
            ours, theirs = connection.open_pair()
            again = partial(self._more, granted)
            listen = partial(self._keep_gate, ours, self.exam, delivery, again)
        else:
            data = self.data.resolve()
            said, theirs = os.pipe()
            listen = partial(_read_self_report, said)
        command = self._command(("train.py",), granted, folder, theirs, environment | {"NIGHTSHIFT_DATA": str(data)})
        fault, ending = await run_guarded(command, watch, lock, listen)
        outcome = self._outcome(granted, watch, fault or self._doubt(granted, watch, delivery), ending)
        return (
            outcome.model_copy(update={"confirmed": delivery.confirmed}) if isinstance(outcome, ev.Scored) else outcome
        )

    async def _keep_gate(
        self,
        ours: connection.Connection,
        exam: Scorer,
        delivery: Submission,
        again: Callable[[float], Scorer | None],
        running: RunningProcess,
    ) -> None:
        seal = partial(call_from_thread, running.seal, asyncio.get_running_loop())
        gate = EvaluationServer(ours, exam, running.watch.said, delivery, running.cpu, seal, again)
        await run_in_thread(gate.keep, ours.hang_up)

    def _more(self, granted: ev.Granted, val_bpb: float) -> Scorer | None:
        """The second exam, where it is due."""
        confirmed = granted.plan is not None and granted.plan.confirmed
        return self.second if confirmed and _needs_audit(granted, val_bpb) else None

    @asynccontextmanager
    async def _auditor(self, granted: ev.Granted, folder: Path, lock: int) -> AsyncGenerator[audit.Auditor | None]:
        """The blind process, if one may be wanted."""
        if not self.exam or not _needs_audit(granted, 0.0):
            yield None
            return
        (folder / "tmp").mkdir(parents=True)
        ours, theirs = connection.open_pair()
        command = self._command(("-m", audit.MODULE), granted, folder, theirs, {})
        auditor = audit.Auditor(command, ours, RunMonitor(self.limits), lock)
        try:
            await asyncio.sleep(0)  # from now on the descriptors are its own
            yield auditor
        finally:
            await auditor.dismiss()

    def _doubt(self, granted: ev.Granted, watch: RunMonitor, delivery: Submission) -> Fault | None:
        """Why a score is not to be believed before it is even audited."""
        if delivery.objection:
            return Fault("disqualified", delivery.objection)
        if not self.exam or not delivery.settings:
            return None
        threads = self.slots[granted.slot].threads or os.cpu_count() or 1
        late = self.exam.overtime(watch.said.train_seconds, delivery.cpu_seconds, threads)
        return Fault("disqualified", late) if late else None

    async def _audited(
        self, granted: ev.Granted, score: ev.Scored, delivery: Submission, auditor: audit.Auditor
    ) -> ev.Outcome:
        """The score as a second, blind process finds it."""
        assert self.exam
        assert delivery.settings
        assert delivery.claims is not None
        began, plan = time.monotonic(), granted.plan or STRICT
        places, rng = await asyncio.to_thread(audit.draw_positions, self.exam, delivery, self.claims, plan.incumbent)
        interview = audit.AuditSession(self.exam, delivery.settings, delivery.model, places, rng)
        fault, ending = await auditor.hear(interview)
        facts = _share_fields(score)
        if fault := fault or _explain_silence(interview, auditor.watch, ending):
            return ev.Crashed(failure=fault.kind, message=fault.message, **facts)
        try:
            blind = np.concatenate(interview.answers)
            allowed = get_tolerance(delivery.settings.dtype, plan.baseline_error)
            found = self.exam.corrected(delivery.claims, blind, places, allowed)
        except Disqualified as reason:
            return ev.Crashed(failure="disqualified", message=str(reason), **facts)
        audit.store_claims(delivery, self.claims, granted.experiment, plan.incumbent)
        seconds = time.monotonic() - began
        shown = ev.Audit(
            claimed=score.val_bpb,
            error=found.error,
            worst=found.worst,
            looks=len(blind),
            seconds=seconds,
            evaluation=delivery.evaluation,
        )
        return score.model_copy(update={"val_bpb": found.val_bpb, "audit": shown})

    def _command(
        self, words: tuple[str, ...], granted: ev.Granted, folder: Path, line: int, more: dict[str, str]
    ) -> Command:
        slot = self.slots[granted.slot]
        env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(folder),
            "TMPDIR": str(folder / "tmp"),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(TRUSTED.parent),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",  # the order of a set is no part of an experiment
            "OMP_WAIT_POLICY": "passive",
            "MKL_CBWR": "AUTO,STRICT",  # the same sums in the same order in every process
            # Never shared: a compiler's cache is code.
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "tmp/inductor"),
            "TRITON_CACHE_DIR": str(folder / "tmp/triton"),
            "CUDA_CACHE_PATH": str(folder / "tmp/cuda"),
            "CUDA_VISIBLE_DEVICES": slot.devices,
            "NIGHTSHIFT_FD": str(line),
            guardian.TAG: f"{folder}/",
        }
        if slot.threads:
            env["OMP_NUM_THREADS"] = str(slot.threads)
        if slot.devices:
            # Where containers keep the driver, and where fetched kernels are; nothing is fetched in a sandbox.
            places = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
            env["LD_LIBRARY_PATH"] = os.pathsep.join(place for place in places if place.startswith("/"))
            env |= {KERNELS: str(Path(os.environ.get(KERNELS, "/nowhere")).resolve()), "HF_HUB_OFFLINE": "1"}
        return self.sandbox.wrap(Command((sys.executable, *words), env | more, folder, (line,), slot.nodes))

    def _outcome(self, granted: ev.Granted, watch: RunMonitor, fault: Fault | None, ending: Ending) -> ev.Outcome:
        log = self._without_places(watch.transcript.log.text, granted)
        fault = fault or _find_fault(watch, ending.status, log)
        score = ev.Scored(
            experiment=granted.experiment,
            run=granted.run,
            val_bpb=watch.said.score or 0.0,
            metrics=watch.metrics(None if self.slots[granted.slot].devices else ending.peak_mb),
            curve=watch.curve.points,
            log=self.put(log),
            tier=self.sandbox.tier,
            would_prune_at=watch.would_prune_at,
        )
        if watch.pruned:
            return ev.Pruned(reason=watch.pruned, **_share_fields(score))
        return score if fault is None else ev.Crashed(failure=fault.kind, message=fault.message, **_share_fields(score))

    def _without_places(self, text: str, granted: ev.Granted) -> str:
        """A traceback need not say where this machine keeps its folders: sessions are mailed."""
        work = f"{self.runs}/{granted.experiment}-{granted.run}/work/"
        places = {work: "", sys.prefix: "python", f"{TRUSTED.parent}/": ""}
        for place, name in places.items():
            text = text.replace(place, name)
        return text

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self.runs.parent).free
        if free < self.limits.free_disk:
            raise MachineError(f"a run needs {self.limits.free_disk >> 20} MB of disk; {free >> 20} MB are free")


def _needs_audit(granted: ev.Granted, val_bpb: float) -> bool:
    """Whether a score as low as that is to be audited."""
    return (granted.plan or STRICT).needs_audit(val_bpb)


def _share_fields(score: ev.Scored) -> dict[str, Any]:
    """What a run that was scored and one that failed have in common."""
    return {name: value for name, value in score if name in ev.Crashed.model_fields and name != "kind"}


async def _read_self_report(said: int, running: RunningProcess) -> None:
    await pump(said, running.watch.said.feed)


def _find_fault(watch: RunMonitor, status: int | None, log: str) -> Fault | None:
    """What was wrong with a run that has ended by itself."""
    if status is None:
        return Fault("other", "it killed its guardian")
    if status and watch.transcript.sealed:
        # What it says now may quote the validation text.
        kind = failures.classify_failure(status, "\n".join(watch.transcript.unseen)).kind
        return Fault(kind, f"it failed while it was evaluated, with exit code {status}")
    if status:
        return failures.classify_failure(status, log)
    if watch.said.val_bpb is None:
        return Fault("other", "it ended without a score")
    if watch.said.score is None:
        return Fault("NaN", f"val_bpb is {watch.said.val_bpb}")
    return None


def _explain_silence(interview: audit.AuditSession, watch: RunMonitor, ending: Ending) -> Fault | None:
    """Why the blind process gave no answers."""
    if interview.objection:
        return Fault("disqualified", interview.objection)
    if interview.done:
        return None
    if watch.transcript.sealed:
        return Fault("disqualified", "the model that it handed over does not give logits by itself: `model(x)` must")
    why = failures.classify_failure(ending.status or 0, watch.transcript.log.text)
    return replace(why, kind="disqualified", message=f"the model that it handed over cannot be loaded: {why.message}")


def _explain(error: Exception) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)


@asynccontextmanager
async def _make_folder(folder: Path) -> AsyncGenerator[Path]:
    """An empty folder, removed in the end."""
    await asyncio.to_thread(_empty, folder)
    try:
        yield folder
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
