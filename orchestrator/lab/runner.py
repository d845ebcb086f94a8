"""Run a candidate once, in a slot, a fresh folder and a sandbox; serve, monitor and evaluate it."""

import asyncio
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from orchestrator.core import events as ev
from orchestrator.core.text import shorten
from orchestrator.lab import guardian
from orchestrator.lab.failures import DEVICE_FAULT, MAX_MESSAGE, Fault, MachineError, Prune, classify_failure
from orchestrator.lab.monitor import RunLimits, RunMonitor
from orchestrator.lab.process import Listener, run_guarded
from orchestrator.lab.sandbox.base import TRUSTED, Command, Sandbox
from orchestrator.lab.sandbox.bubblewrap import Bubblewrap
from orchestrator.lab.scoring.claims import Exam, Nats, Scorer
from orchestrator.lab.scoring.connection import open_pair
from orchestrator.lab.scoring.evaluator import Evaluator, load_claims, save_claims
from orchestrator.lab.scoring.server import WALL_SLACK, TrainingServer
from orchestrator.lab.slots import Slot, hold_slot
from orchestrator.lab.tree import ScriptTree
from prepare.tree import split_files
from subagents.logs import extract_frames, split_lines

S = TypeVar("S")
T = TypeVar("T")
Question = Callable[[Evaluator], Coroutine[Any, Any, T]]
Exams = asyncio.Future[Sequence[Exam]]
STRICT_PLAN = ev.EvaluationPlan(audit="always", confirmed=False, incumbent=0)
"""The plan of a run that was granted without one."""
MAX_EXCUSES = 2
"""Runs of one experiment in a row whose failure may be attributed to the machine. Without a limit, a candidate that
takes too much memory would be run, and killed, until the session gives up."""
DRAFT = -1  # stands for an experiment in the run of a source that is not trained, and ends where its training begins
BAD_NAMES = {errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
"""What is wrong where files cannot lie in one folder by their names."""
REST = 20.0  # multiple of the seconds that it takes to measure a folder, before it is measured again
MAX_DEVICE_FAULTS = 3
"""Experiments that a GPU's faults ended, without a run that ended well between them, after which nothing is started
there. One script could print such a message each time. A GPU that is not free counts each time: no script says so."""


@dataclass(slots=True)
class Attempt:
    """One run of a candidate: where it trains, and once it has ended, how."""

    granted: ev.Granted
    source: str
    slot: Slot
    lock: int  # descriptor of the slot's lock, which the processes of the run inherit
    folder: Path
    monitor: RunMonitor = field(init=False)
    server: TrainingServer = field(init=False)  # of an examined run, with the model that it has handed over
    result: ev.RunResult = field(init=False)
    free: int = 0  # bytes of disk that were free when it began
    laid: dict[str, int] = field(default_factory=dict[str, int])  # what its folder measured then, by unit
    measure_at: float = 0.0  # time of the monotonic clock from which on its folder may be measured again
    has_shown: bool = False  # whether a process that evaluates its model was sent rows

    @property
    def plan(self) -> ev.EvaluationPlan:
        return self.granted.plan or STRICT_PLAN

    @property
    def work(self) -> Path:
        """The folder that the training code sees."""
        return self.folder / "work"

    @property
    def whole(self) -> Path:
        """A file that is missing once the folder was deleted, also where a part of it was made again."""
        return self.folder / "whole"

    @property
    def log(self) -> str:
        """What was printed, without this machine's folders."""
        return shorten_places(self.monitor.transcript.log, self.work)

    def check_ending(self, budget: float) -> None:
        """Raise Prune, Fault or MachineError where it did not end well; `budget` is in seconds of wall time."""
        try:
            self.monitor.check_ending()
            if status := self.monitor.status:
                raise classify_failure(status, self.log)
        except Fault as fault:
            if fault.kind == "disk full" and self.result.tier != Bubblewrap.tier:
                own, gone = self.measure_growth() << 10, self.free - shutil.disk_usage(self.folder).free
                is_small = 2 * own < gone if self.monitor.cause else own < self.monitor.limits.reserve
                fault.excuse = f"the disk is full, and its own files take {own >> 20} MB ({fault.message})" * is_small
            raise
        if (suspended := self.monitor.suspended) > (WALL_SLACK - 1) * budget:
            raise MachineError(f"this process was suspended for {suspended:.0f} s, so the training may have lost time")

    def measure_growth(self, unit: str = "-k") -> int:
        """Return what its folder measures beyond what was laid out there."""
        return _measure(self.folder, unit) - self.laid.get(unit, 0)


@dataclass
class BaseRunner(ABC, Generic[S]):
    """Runs candidates of one session, one at a time in each slot.

    A failure that may be the machine's fault is excused, and the run is granted again. A candidate could cause such
    failures on purpose, so it is excused at most MAX_EXCUSES times in a row.
    """

    folder: Path
    slots: Sequence[Slot]
    limits: RunLimits
    scorer: S
    sandbox: Sandbox
    put: Callable[[str], ev.Digest]  # stores a log
    on_point: Callable[[ev.Granted, ev.Point, float], None] = lambda _granted, _point, _rate: None
    """Gets each point, and tokens per second."""
    excuses: Counter[int] = field(default_factory=Counter[int])
    """Runs in a row that were excused, by experiment."""
    faults: defaultdict[int, set[object]] = field(default_factory=lambda: defaultdict(set))
    """By slot, the experiments that faults of its GPU ended, and an object for each fault that no script caused."""

    @property
    def runs(self) -> Path:
        return self.folder.resolve() / "runs"

    def reap(self) -> None:
        """Kill what earlier runs of this session left, and remove their folders."""
        guardian.kill_all(partial(guardian.find_tagged, f"{self.runs}/"))
        remove_folder(self.runs)

    async def run(self, granted: ev.Granted, source: str) -> ev.Outcome:
        """Train once. A failure of the machine is returned as Aborted; cancelling kills every process of the run."""
        folder, slot = self.runs / f"{granted.experiment}-{granted.run}", self.slots[granted.slot]
        try:
            async with hold_slot(slot) as lock:
                outcome = await self._evaluate(Attempt(granted, source, slot, lock, folder))
        except (OSError, MachineError) as error:
            reason = (
                f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
            )
            reason = shorten_places(reason, self.folder.resolve())
            if slot.devices and DEVICE_FAULT.search(reason):
                self.faults[granted.slot].add(granted.experiment if isinstance(error.__cause__, Fault) else object())
            if is_sick := len(self.faults[granted.slot]) >= MAX_DEVICE_FAULTS:
                reason = f"{slot.devices} is sick, and is not used any more: {reason}"
            return ev.Aborted(experiment=granted.experiment, run=granted.run, reason=reason, quarantined=is_sick)
        self.excuses[granted.experiment] = 0
        if not isinstance(outcome, ev.Crashed):
            self.faults[granted.slot].clear()
        return outcome

    async def _evaluate(self, run: Attempt) -> ev.Scored | ev.Crashed | ev.Pruned:
        """Return the run's score or failure. Raises MachineError where the machine is at fault, and OSError."""
        await asyncio.to_thread(remove_folder, run.folder)
        try:
            if (free := shutil.disk_usage(self.folder).free) < self.limits.free_disk:
                needed = f"a run needs {self.limits.free_disk >> 20} MB of disk"
                raise MachineError(f"{needed}; {free >> 20} MB are free")
            tell, fills_disk = partial(self.on_point, run.granted), partial(self._is_filling_disk, run)
            draft = run.granted.experiment == DRAFT
            run.monitor = RunMonitor(self.limits, time.monotonic, tell, fills_disk, run.plan, only_starts=draft)
            return await self._score(run)
        except Prune as reason:
            return ev.Pruned(reason=str(reason), deficit=reason.deficit, **vars(run.result))
        except Fault as fault:
            if not run.whole.exists():
                raise MachineError("the folder of the run was deleted") from fault
            is_device = run.slot.devices and DEVICE_FAULT.search(fault.message)
            excuse, experiment = fault.excuse or (fault.message if is_device else ""), run.granted.experiment
            if experiment == 0 and run.granted.run > 1 and not self.excuses[0]:  # the night would end with it
                excuse = excuse or f"the baseline, which is run once more, failed: {fault.message}"
            if excuse and self.excuses[experiment] < MAX_EXCUSES:
                self.excuses[experiment] += 1
                raise MachineError(excuse) from fault
            return ev.Crashed(failure=fault.kind, message=fault.message[:MAX_MESSAGE], **vars(run.result))
        finally:
            await asyncio.to_thread(remove_folder, run.folder)

    @abstractmethod
    async def _score(self, run: Attempt) -> ev.Scored:
        """Run the source once in an empty folder. Raises Prune, Fault, MachineError, OSError."""

    async def _train(self, run: Attempt, command: Command, listen: Listener) -> None:
        """Run the command to its end in the sandbox."""
        run.laid = {unit: await asyncio.to_thread(_measure, run.folder, unit) for unit in ("-k", "--inodes")}
        run.free = shutil.disk_usage(run.folder).free
        await run_guarded(self.sandbox.wrap(command), run.monitor, run.lock, listen)
        self._save_result(run)

    @contextmanager
    def _check_names(self, run: Attempt) -> Generator[None]:
        """Raise Fault for an OSError that the names of a candidate's files cause where its folder is filled."""
        run.work.mkdir(parents=True)
        run.whole.touch()
        try:
            yield
            (run.work / "tmp").mkdir(exist_ok=True)
        except OSError as error:
            if error.errno not in BAD_NAMES:
                raise
            self._save_result(run)
            name = shorten(str(error.filename).removeprefix(f"{run.work}/"), MAX_MESSAGE // 2)
            raise Fault("other", f"its files cannot lie in one folder: {name}: {error.strerror}") from error

    def _save_result(self, run: Attempt) -> None:
        """Store the run's log, and what was measured."""
        run.result = ev.RunResult(
            experiment=run.granted.experiment,
            run=run.granted.run,
            metrics=run.monitor.summarize(on_gpu=bool(run.slot.devices)),
            curve=tuple(run.monitor.points.values()),
            log=self.put(run.log),
            tier=self.sandbox.tier,
            telemetry={name: tuple(series) for name, series in run.monitor.telemetry.items()},
        )

    def _is_filling_disk(self, run: Attempt) -> bool:
        """Return whether its files leave too little room, or too few further files, as far as it is looked at now."""
        disk, limits, began = os.statvfs(self.runs), self.limits, time.monotonic()
        room, files = disk.f_bavail * disk.f_frsize, disk.f_favail
        if began < run.measure_at:
            return False
        found = room < limits.reserve <= room + (run.measure_growth() << 10)
        found = found or 0 < files < limits.files <= files + run.measure_growth("--inodes")  # 0: it counts none
        run.measure_at = began + REST * (time.monotonic() - began)
        return found


@dataclass
class Runner(BaseRunner[Scorer]):
    """Trains scripts that use the protocol of `prepare`, and evaluates the models that they hand over."""

    tree: ScriptTree = field(default_factory=ScriptTree)

    async def measure_step(self, source: str) -> ev.Telemetry | str:
        """Return what a source reports before its training would begin, or why it fails and where in its files.

        Nothing if the machine is at fault. It takes no slot: counted work does not depend on what runs beside it.
        """
        granted, slot = ev.Granted(experiment=DRAFT, run=0, slot=0, seed=0), self.slots[0]
        self.excuses[DRAFT] = 0
        try:
            async with hold_slot(replace(slot, lock=self.folder / "step.lock")) as lock:
                run = Attempt(granted, source, slot, lock, self.runs / "step")
                outcome = await self._evaluate(run)
        except (MachineError, OSError):
            return {}
        if not isinstance(outcome, ev.Crashed):
            return outcome.telemetry
        frames = extract_frames(split_lines(run.log), split_files(source))[:-1]
        return "\n".join([outcome.message, *frames])

    async def _serve(self, run: Attempt) -> None:
        """Run the source to its end. Raises MachineError, OSError."""
        run.monitor.transcript.scored_elsewhere = True
        with self._check_names(run):
            self.tree.lay_out(run.work, run.source)
            data = self.scorer.lay_out(run.work / "data")
        env = {"NIGHTSHIFT_SEED": str(run.granted.seed), "NIGHTSHIFT_DATA": str(data)}
        ours, theirs = await open_pair()
        command = run.slot.build_command([self.tree.script], run.work, theirs, **env)
        threads = run.slot.threads or os.cpu_count() or 1
        run.server = TrainingServer(ours, self.scorer, threads, run.plan, run.monitor, run.folder / "model")
        await self._train(run, command, run.server.serve)

    async def _score(self, run: Attempt) -> ev.Scored:
        await self._serve(run)
        budget = self.scorer.manifest.budget
        run.check_ending(budget.amount if budget.kind == "time" else inf)
        if run.monitor.only_starts:
            raise Fault("other", "it ended before its training")
        if run.server.settings is None:
            raise Fault("other", "it ended without handing over a model: `evaluate_bpb` does")
        run.server.check_rest()
        await asyncio.to_thread(remove_folder, run.work)  # the size of a file could tell the next process something
        known: Exams = asyncio.get_running_loop().create_future()
        audit = asyncio.create_task(self._ask(run, partial(self._audit, run, known)))  # it waits for its turn
        try:
            return await self._score_model(run, known, audit)
        finally:
            audit.cancel()
            await asyncio.gather(audit, return_exceptions=True)

    async def _score_model(self, run: Attempt, known: Exams, audit: asyncio.Task[Any]) -> ev.Scored:
        """Return the score of the model; let the audit know its exams once the process that claims has gone."""
        began = time.monotonic()
        claims, heldout = await self._ask(run, partial(self._compute_claims, run))
        val_bpb = self.scorer.compute_bpb(claims)
        telemetry = run.result.telemetry | {"position": self.scorer.compute_by_position(claims)}
        run.result = run.result.model_copy(update={"telemetry": telemetry})
        score = ev.Scored(val_bpb=val_bpb, would_prune_at=run.monitor.would_prune_at, **vars(run.result))
        if not run.plan.needs_audit(val_bpb):
            return score
        spent, began = time.monotonic() - began, time.monotonic()
        archive, incumbent = self.folder.resolve() / "claims", run.plan.incumbent
        reference, rng = load_claims(archive, incumbent, self.scorer.shape), np.random.default_rng()
        exams = [await asyncio.to_thread(self.scorer.plan_audit, claims, reference, rng)]
        if self.scorer.heldout and heldout is not None:
            exams.append(self.scorer.heldout.plan_audit(heldout, None, rng))
        known.set_result(exams)
        (corrected, error, worst), *rest = await audit
        save_claims(archive, score.experiment, claims, incumbent)
        times = {"seconds": time.monotonic() - began, "evaluation": spent, "evaluation_cpu": run.server.evaluation_cpu}
        record = ev.Audit(claimed=val_bpb, error=error, worst=worst, looks=len(claims), **times)
        confirmed = rest[0][0] if rest else None
        return score.model_copy(update={"val_bpb": corrected, "confirmed": confirmed, "audit": record})

    async def _compute_claims(self, run: Attempt, evaluator: Evaluator) -> tuple[Nats, Nats | None]:
        """Return the losses on validation text and, where the plan asks for it, on held-out text."""
        await evaluator.load(run.server.model)
        claims = self.scorer.check_claims(await evaluator.compute_losses(self.scorer.rows))
        if not (run.plan.confirmed and run.plan.needs_audit(self.scorer.compute_bpb(claims)) and self.scorer.heldout):
            return claims, None
        return claims, self.scorer.heldout.check_claims(await evaluator.compute_losses(self.scorer.heldout.rows))

    async def _audit(self, run: Attempt, known: Exams, evaluator: Evaluator) -> list[tuple[float, float, float]]:
        """Return each exam's score corrected by a blind process, with the correction's error and the worst gap."""
        rng, tolerance = np.random.default_rng(), self.scorer.get_tolerance(run.plan.baseline_error)
        exams = await asyncio.shield(known)  # a later process of this audit waits for the same
        await evaluator.load(run.server.model)
        for exam in exams:  # before the process has seen more
            exam.check_company(await evaluator.compute_losses(exam.scorer.rows[exam.alone], 1), tolerance)
        return [exam.correct(await evaluator.predict_blind(exam, rng), tolerance) for exam in exams]

    async def _ask(self, run: Attempt, question: Question[T]) -> T:
        """Return what a fresh process answers, which the question sends the model. Raises Fault, MachineError, OSError.

        One that the machine may have ended is replaced MAX_EXCUSES times; the run is not, or its model could try again.
        """
        left = MAX_EXCUSES
        while True:
            folder = Path(tempfile.mkdtemp(dir=run.folder))
            try:
                return await self._ask_once(run, question, folder)
            except Fault as fault:
                if not (fault.excuse and left):
                    fault.excuse = ""
                    raise
                left -= 1
            finally:
                await asyncio.to_thread(remove_folder, folder)

    async def _ask_once(self, run: Attempt, question: Question[T], folder: Path) -> T:
        self.tree.lay_out(folder, run.source)  # the model may need its modules
        assert run.server.settings
        connection, theirs = await open_pair()
        words = ["-P", "-m", "prepare.evaluator"]  # which finds nothing in its folder before it is ready
        more = {} if run.slot.nodes else {"TORCHINDUCTOR_CACHE_DIR": str(folder / "tmp")}  # no new folder can be made
        command = run.slot.build_command(words, folder, theirs, "model", **more)
        monitor, answers = RunMonitor(self.limits, only_answers=True), list[T]()
        evaluator = Evaluator(connection, run.server.settings, monitor)

        async def listen() -> None:
            with suppress(ConnectionError), closing(connection):  # at its end the guardian reports how it ended
                await evaluator.start()
                answer = await question(evaluator)
                run.server.check_evaluation(monitor.read_clock() - evaluator.began, monitor.count_cpu_seconds())
                answers.append(answer)
                monitor.cause = Prune("it has answered")  # so it is ended if it does not end
                await connection.send({"event": "thanks"})

        await run_guarded(self.sandbox.wrap(command), monitor, run.lock, listen)
        run.has_shown = run.has_shown or evaluator.has_rows
        if answers:
            return answers[0]
        monitor.check_ending()
        reserve, log = self.limits.reserve, shorten_places(monitor.transcript.log, folder)
        is_full = shutil.disk_usage(folder).free < reserve and run.measure_growth() << 10 < reserve
        raise evaluator.explain_silence(log, quotes=not run.has_shown, on_gpu=bool(run.slot.devices), is_full=is_full)


def shorten_places(text: str, folder: Path) -> str:
    """Return the text without this folder and those of the machine, since sessions are shared."""
    for path, name in {f"{folder}/": "", sys.prefix: "python", f"{TRUSTED.parent}/": ""}.items():
        text = text.replace(path, name)
    return text


def remove_folder(folder: Path) -> None:
    """Remove a folder that hostile code has filled, whatever its depth and permissions.

    Files keep theirs, since they may have other links, unless `find` is not here or does not reach all folders.
    """
    repair = ("find", folder, "-type", "d", "!", "-perm", "-700", "-exec", "chmod", "u+rwx", "{}", "+")
    for command in (*[repair] * 3, ("chmod", "-R", "u+rwx", "--", folder)):  # it enters a folder before it is repaired
        if folder.exists():
            with suppress(FileNotFoundError):
                _run_command(*command)
            _run_command("rm", "-rf", "--", folder)


def _measure(folder: Path, unit: str = "-k") -> int:
    """Return the KiB of disk that the readable files in a folder take, at any depth, or with --inodes their number."""
    return int((_run_command("du", "-s", unit, "--", folder).split() or [b"0"])[0])


def _run_command(*words: str | Path) -> bytes:
    """Run a command and return what it prints. It is in a group of its own, so that Ctrl-C does not reach it."""
    return subprocess.run(words, check=False, capture_output=True, process_group=0).stdout
