"""Watch one run from outside, by its output and our own clock, and find a reason to stop it."""

import math
import re
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import psutil

from orchestrator.core.description import SERIES, get_recent_loss
from orchestrator.core.events import EvaluationPlan, Point, PruningThreshold, RunMetrics, SessionProfile
from orchestrator.lab.failures import Fault, Prune
from orchestrator.lab.log import ProgressLine, Transcript

ABSURD_LOSS, ABSURD_NUMBER = 1e6, 1e30
"""Larger losses count as infinite, so that their sums are finite; larger numbers are neither reported nor a score."""
PAUSES = 5.0
"""Multiple of the longest pause between steps that a silence may last, where it is more than is always allowed."""
MAX_NUMBER = 1e9
"""Larger numbers in a summary are capped at this, which exceeds any real count of steps, megatokens or MB."""
NEARLY_DONE = 0.9
"""Share of the budget after which silence is normal: evaluation prints nothing before the summary."""
AFTERMATH = 10.0
"""Seconds after a model was handed over in which lines of progress may tell of steps before, so that they end no run.
Later ones tell that it goes on: some scripts evaluate in between."""
POINTS = 60  # most points of a loss curve: enough to draw it and to compare it with another
REPORTED = re.compile(r"(?!position/)[A-Za-z0-9_.]{1,16}/[A-Za-z0-9_.]{1,48}")
"""Names that a script may give to what it reports of itself; `position` is measured."""
_SENT = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
FROM_OUTSIDE = {*(-number for number in _SENT), *(128 + number for number in _SENT)}
"""How a command ends by signals that a user sends, a batch system, a shutdown, or the system out of memory."""
HANDED_OVER = "it has handed its model over: a thread or process of its own may keep it from ending"
STANDSTILL = 5.0
"""Most seconds that count between two readings of the clock. It is read ten times a second, so a longer gap means that
the orchestrator was suspended: Ctrl-Z, a paused container, an unresponsive machine."""


@dataclass(frozen=True, slots=True)
class RunLimits:
    """Limits of one run, in seconds and bytes."""

    wall: float
    quiet: float = 60.0  # seconds without output that are always allowed in training
    output: int = 32 << 20
    free_disk: int = 512 << 20  # bytes of disk that must be free before a run starts
    reserve: int = 256 << 20  # bytes of disk that a run must leave free
    file: int = 4 << 30  # bytes of the largest file
    files: int = 20_000  # files for which a run must leave room on the disk
    processes: int = 2_000  # more concurrent processes than any data loader needs
    loss: float = ABSURD_LOSS  # larger ones end a run
    memory: int | None = None
    """Bytes of one process; None on a GPU, whose driver reserves far more than it uses."""


def set_limits(profile: SessionProfile, slots: int = 1) -> RunLimits:
    """Return limits that allow four times the expected seconds, plus a minute for imports.

    With a work budget the machine may be busy with other programs, so twice as much is allowed.
    """
    seconds = 60 + 4 * profile.expected_seconds
    busy = 2 if profile.budget_kind == "work" else 1
    memory = int(0.8 * psutil.virtual_memory().total / slots) if profile.name == "cpu" else None
    quiet = max(60.0, 0.05 * profile.expected_seconds)  # a progress line is printed at every percent
    return RunLimits(wall=busy * seconds, quiet=quiet, memory=memory)


@dataclass
class RunMonitor:
    """Follows a run from its start: processes, log, loss curve, the first reason to stop it, and how it ended."""

    limits: RunLimits
    clock: Callable[[], float] = time.monotonic
    on_point: Callable[[Point, float], None] = lambda _point, _rate: None
    fills_disk: Callable[[], bool] = lambda: False
    plan: EvaluationPlan | None = None
    only_starts: bool = False  # end the run where its training begins
    only_answers: bool = False  # it trains nothing, so what it prints is no progress
    suspended: float = 0.0  # seconds in which this process was suspended
    training_began: float | None = None  # time of `read_clock` when the first batch was handed out
    startup_cpu: float = 0.0  # CPU seconds until then
    startup_seconds: float = 0.0
    train_cpu: float = 0.0  # CPU seconds from then on, until the model was submitted
    total_cpu: float = 0.0  # CPU seconds of all that the guardian has reaped, known at the end
    training_ended: float | None = None  # time of `read_clock` when the model had been submitted
    would_prune_at: float | None = None  # share of the budget at which it fell behind a pruning threshold
    cause: Fault | Prune | None = None  # the first reason for which it was stopped, or is to be
    guardian: int = 0  # process id; 0 before it is started
    status: int | None = None
    """Exit code, or a signal's number negated; None before the end, and if the guardian was killed."""
    peak_mb: float = 0.0
    last: ProgressLine | None = None
    transcript: Transcript = field(default_factory=Transcript)
    points: dict[int, Point] = field(default_factory=dict[int, Point])
    """The newest point in each of POINTS equal parts of the budget."""
    pause: float = 0.0  # longest time in seconds between two progress lines
    uncounted: float = 0.0
    """Seconds from the first batch to the last line before anything was spent: first steps, in which it compiles."""
    telemetry: dict[str, list[float | None]] = field(default_factory=dict[str, list[float | None]])

    def __post_init__(self) -> None:
        self.read_at = self.launched = self.last_output_at = self.last_step_at = self.clock()
        self.pruning_thresholds = list(self.plan.pruning_thresholds) if self.plan else []

    def read_clock(self) -> float:
        """Return the time in seconds, those in which this process was suspended not counted."""
        before, self.read_at = self.read_at, self.clock()
        self.suspended += max(0.0, self.read_at - before - STANDSTILL)
        return self.read_at - self.suspended

    def begin(self) -> None:
        """Start the clock of the run: its folder may have taken long to fill, and no one read the clock meanwhile."""
        self.read_at = self.clock()
        self.launched = self.read_clock()

    def begin_training(self) -> None:
        """Start the clock of the training."""
        self.startup_cpu, self.training_began = self.count_cpu_seconds(), self.read_clock()
        self.startup_seconds = self.training_began - self.launched
        self.cause = Prune("it has started") if self.only_starts else self.cause

    @property
    def train_seconds(self) -> float:
        """Seconds of training so far; 0 before it starts."""
        if self.training_began is None:
            return 0.0
        return (self.read_clock() if self.training_ended is None else self.training_ended) - self.training_began

    @property
    def rest_cpu(self) -> float:
        """CPU seconds that the ended run used beyond what was seen when its model came.

        What the guardian reaps cannot hide from it, except what is still running where a namespace of bubblewrap ends.
        """
        return max(0.0, self.total_cpu - self.startup_cpu - self.train_cpu)

    def list_processes(self, *, with_guardian: bool = False) -> list[psutil.Process]:
        """Return its whole process tree, children before their parents; nothing if it has just ended.

        Parents, also those that adopt, are older than their children, and are asked for theirs before them: so a
        process that ends meanwhile hides none below it.
        """
        everyone, children = dict[int, psutil.Process](), defaultdict[int, list[int]](list)
        for number in psutil.pids():
            with suppress(psutil.Error):
                process = psutil.Process(number)
                process.create_time()  # it is kept
                everyone[number] = process
        for process in sorted(everyone.values(), key=lambda process: (process.create_time(), process.pid)):
            with suppress(psutil.Error):
                children[process.ppid()].append(process.pid)
        tree = [self.guardian] * (self.guardian > 0)
        for number in tree:  # it grows meanwhile
            tree += children.pop(number, [])
        return [everyone[number] for number in reversed(tree[not with_guardian :]) if number in everyone]

    def count_cpu_seconds(self) -> float:
        """Return the CPU seconds that its whole process tree has used so far, with what the guardian has reaped.

        Parents come last: the time of a child that ends meanwhile is theirs.
        """
        total = 0.0
        for process in self.list_processes(with_guardian=True):
            with suppress(psutil.Error):
                total += sum(process.cpu_times()[:4])  # its own and its children's, in the program and in the kernel
        return total

    def check_ending(self) -> None:
        """Raise Prune or Fault where it was stopped, or it or its guardian was killed or suspended from outside."""
        if self.cause:
            raise self.cause
        if self.status is None or self.status in FROM_OUTSIDE:
            is_small = 2 * self.peak_mb < psutil.virtual_memory().total >> 20
            excuse = f"{'its guardian' if self.status is None else 'it'} was killed or suspended from outside"
            where = f"it was killed from outside at {self.peak_mb:,.0f} MB"
            message = f"{where}, as happens when the system runs out of memory"
            raise Fault("out of host memory", message, excuse * is_small)

    def feed(self, data: bytes, *, last: bool = False) -> None:
        """Read output. Any output is a sign of life, since a script may print its progress in a format of its own."""
        self.last_output_at = self.read_clock()
        for step in self.transcript.feed(data, last=last):
            if not self.only_answers:
                self._follow(step)

    def take_report(self, message: Mapping[str, Any]) -> None:
        """Keep the first number of each of SERIES names in each tenth of the budget; ignore what is out of bounds."""
        share, values = message.get("progress"), message.get("values")
        if not (isinstance(share, int | float) and 0 <= share <= 1 and isinstance(values, dict)):
            return
        for name, value in cast("dict[str, object]", values).items():
            if not isinstance(value, int | float) or not abs(value) <= ABSURD_NUMBER:
                continue
            if REPORTED.fullmatch(name) and (name in self.telemetry or len(self.telemetry) < SERIES):
                series, tenth = self.telemetry.setdefault(name, []), int(10 * share)
                series += [None] * (tenth - len(series)) + [float(value)] * (len(series) <= tenth)

    @property
    def stop_reason(self) -> Fault | Prune | None:
        """The reason to stop the run now; None where there is none."""
        if self.cause:
            return self.cause
        if self.read_clock() - self.launched > self.limits.wall:
            over = f"; {HANDED_OVER}" * (self.training_ended is not None)
            return Fault("timeout", f"it was not done after {self.limits.wall:.0f} s{over}")
        if self.transcript.reader.fault:
            return Fault("other", self.transcript.reader.fault)
        if self.transcript.bytes > self.limits.output:
            return Fault("other", f"it printed more than {self.limits.output >> 20} MB")
        return Fault("disk full", "it filled the disk") if self.fills_disk() else self._find_hang()

    def summarize(self, *, on_gpu: bool) -> RunMetrics:
        """Return the run's metrics; the memory is its largest process's, of a whole run, or a GPU's by its summary."""
        summary = {n: max(0.0, min(value, MAX_NUMBER)) for n, value in self.transcript.reader.numbers.items()}
        return RunMetrics(
            startup_cpu=self.startup_cpu,
            startup_seconds=self.startup_seconds,
            uncounted=self.uncounted,
            train_cpu=self.train_cpu,
            rest_cpu=self.rest_cpu if self.training_ended else 0.0,
            train_seconds=self.train_seconds,
            total_seconds=self.read_clock() - self.launched,
            steps=int(summary.get("num_steps", self.last.number if self.last else 0)),
            tokens=int(1e6 * summary.get("total_tokens_M", 0.0)),
            parameters=int(1e6 * summary.get("num_params_M", 0.0)),
            mfu=min(summary.get("mfu_percent", 0.0), 100.0) * on_gpu,
            memory_mb=summary.get("peak_vram_mb", 0.0) if on_gpu else self.peak_mb * (not self.cause),  # or bwrap's own
        )

    @property
    def _is_over(self) -> bool:
        """True if a model was handed over, and no step is known to have come after it."""
        return self.training_ended is not None and self.last_step_at - self.training_ended < AFTERMATH

    def _find_hang(self) -> Fault | None:
        """Return a hang if training is silent too long, after its first step, which may compile, before evaluation.

        Once its model was handed over it may be silent for longer, by what it has trained, in which it may save files.
        """
        began, last, over = self.training_ended or self.training_began, self.last, self._is_over
        if began is None or last is None or (last.progress >= NEARLY_DONE and not over):
            return None
        quiet = max(self.limits.quiet, PAUSES * self.pause)  # a script may print every tenth of a long budget
        quiet += self.train_seconds * over
        if self.read_clock() - max(self.last_output_at, began) <= quiet:
            return None
        if over:
            return Fault("hang", f"it printed nothing for {quiet:.0f} s; {HANDED_OVER}")
        expected = "print lines such as `step 00012 (3.4%) | loss: 5.678`, or any others, more often"
        return Fault("hang", f"it printed nothing for {quiet:.0f} s after step {last.number}: {expected}")

    def _follow(self, step: ProgressLine) -> None:
        self.pause = max(self.pause, self.last_output_at - self.last_step_at) if self.last else 0.0
        self.last, self.last_step_at = step, self.last_output_at
        if not abs(step.loss) <= self.limits.loss:
            if not self._is_over:
                self.cause = self.cause or Fault("NaN", f"the loss became {step.loss:g} at step {step.number}")
            return
        if not (step.progress or any(self.points) or self._is_over):
            self.uncounted = self.train_seconds
        point = Point(seconds=self.train_seconds, progress=step.progress, loss=step.loss)
        self.points[math.ceil((POINTS - 1) * step.progress)] = point
        if not self.only_starts:
            self.on_point(point, step.tokens_per_second)
        while not self._is_over and self.pruning_thresholds and point.progress >= self.pruning_thresholds[0].progress:
            self._compare(self.pruning_thresholds.pop(0))

    def _compare(self, threshold: PruningThreshold) -> None:
        loss = get_recent_loss([*self.points.values()], threshold.progress)
        if self.would_prune_at is not None or loss is None or loss <= threshold.loss:
            return
        self.would_prune_at = threshold.progress
        if not (self.plan and self.plan.control_run):
            why, deficit = f"after {100 * threshold.progress:.0f} % of its budget its loss was {loss:.3f}", None
            if threshold.usual is None:
                why += f"; no run of this session with over {threshold.loss:.3f} there caught up with the best"
            else:
                behind = f"{loss - threshold.usual:.3f} more than the best's, which predicts that it ends"
                deficit = threshold.scale * (loss - threshold.usual)
                why += f", {behind} behind by {deficit:.4f}; the rest of the run is worth more to another idea"
            self.cause = self.cause or Prune(why, deficit)
