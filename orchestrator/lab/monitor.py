"""Watches one run from outside, through what it prints and says, and knows when it has to be ended."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite
from statistics import median

import psutil

from orchestrator.core.curves import get_recent_loss
from orchestrator.core.events import EvaluationPlan, Point, PruningThreshold, RunMetrics, SessionProfile
from orchestrator.lab.failures import Fault
from orchestrator.lab.log import CurveRecorder, ProgressLine, Transcript
from orchestrator.lab.scoring.server import SelfReport

EXPLODED = 3.0
"""Times the first loss: no model that learns ever gets there."""
NEARLY_DONE = 0.9
"""Of the budget: after that the next line may be the summary, and evaluation is silent."""


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What a run may take. Seconds and bytes."""

    wall: float
    cpu: float
    """Of one process; does not grow on a busy machine."""
    quiet: float = 60.0
    """Between one progress line and the next, at least."""
    quiet_steps: float = 10.0
    """The same in median steps; the larger one counts."""
    grace: float = 10.0
    """Between asking a run to end and killing it."""
    output: int = 32 << 20
    free_disk: int = 512 << 20
    """What must be there before a run starts."""
    reserve: int = 256 << 20
    """What a run must leave of it."""
    file: int = 4 << 30
    """The largest file."""
    processes: int = 2_000
    """More than this at a time are no data loader."""
    memory: int | None = None
    """Of one process; not on a GPU, whose driver reserves more than it uses."""


def set_limits(profile: SessionProfile, threads: int) -> RunLimits:
    """A candidate may be four times slower than expected, and a minute for imports, before it is a hang.

    Where the budget is work the machine may be busy with other things meanwhile: then it is the CPU time that counts.
    """
    busy = 2 if profile.budget_kind == "work" else 1
    seconds = 60 + 4 * profile.expected_seconds
    memory = int(0.8 * psutil.virtual_memory().total) if profile.name == "cpu" else None
    quiet = max(60.0, 0.05 * profile.expected_seconds)  # a line comes with every hundredth
    return RunLimits(wall=busy * seconds, cpu=max(threads, 1) * seconds, quiet=quiet, memory=memory)


class RunMonitor:
    """All that is known of a run while it goes on."""

    def __init__(
        self,
        limits: RunLimits,
        clock: Callable[[], float] = time.monotonic,
        on_point: Callable[[Point, float], None] = lambda _point, _rate: None,
        free: Callable[[], float] = lambda: inf,
        plan: EvaluationPlan | None = None,
    ) -> None:
        """`free`: bytes of disk that are left."""
        self.limits, self.clock, self.on_point, self.free = limits, clock, on_point, free
        self.pruning_thresholds = list(plan.pruning_thresholds) if plan else []
        self.control_run = plan is not None and plan.control_run
        self.would_prune_at: float | None = None
        """The share of the budget at which it was found hopeless."""
        self.transcript, self.curve, self.said = Transcript(), CurveRecorder(), SelfReport(clock)
        self.started = clock()
        self.last: ProgressLine | None = None
        self.last_at = self.started
        self.first_loss: float | None = None
        self.paces: deque[float] = deque(maxlen=101)
        self.broken: Fault | None = None
        self.pruned = ""
        """Why the run is pruned; empty while it is not."""

    def output(self, data: bytes) -> None:
        """Something was printed."""
        for step in self.transcript.feed(data):
            self._step(step)

    def seal(self) -> None:
        """What is printed from now on may quote the validation text: only the summary's numbers are still read."""
        self.transcript.sealed = True

    def close(self) -> None:
        """Nothing more will be printed."""
        for step in self.transcript.close():
            self._step(step)

    @property
    def fault(self) -> Fault | None:
        """Why the run has to be ended now."""
        now = self.clock()
        if self.broken:
            return self.broken
        if self.pruned:
            return Fault("other", self.pruned)
        if now - self.started > self.limits.wall:
            return Fault("timeout", f"it was not done after {self.limits.wall:.0f} s")
        if self.transcript.bytes > self.limits.output:
            return Fault("other", f"it printed more than {self.limits.output >> 20} MB")
        if self.free() < self.limits.reserve:
            return Fault("disk full", "it filled the disk")
        silent = self.said.ready_at is None or self.said.scored_at is not None
        if silent or (self.last and self.last.progress >= NEARLY_DONE):
            return None
        quiet = max(self.limits.quiet, self.limits.quiet_steps * median(self.paces or [0.0]))
        if now - max(self.last_at, self.said.ready_at or 0.0) > quiet:
            return Fault("hang", f"no step for {quiet:.0f} s after step {self.last.number if self.last else 0}")
        return None

    def metrics(self, peak_mb: float | None) -> RunMetrics:
        """The run in numbers; `peak_mb` is the memory of its largest process, None on a GPU: there its word must do."""
        summary = self.transcript.summary or {}
        return RunMetrics(
            train_seconds=self.said.train_seconds,
            total_seconds=self.clock() - self.started,
            steps=int(summary.get("num_steps", self.last.number if self.last else 0)),
            tokens=int(1e6 * summary.get("total_tokens_M", 0.0)),
            parameters=int(1e6 * summary.get("num_params_M", 0.0)),
            memory_mb=summary.get("peak_vram_mb", 0.0) if peak_mb is None else peak_mb,
        )

    def _compare(self, bound: PruningThreshold) -> None:
        """End it where it is hopeless, unless it is reprieved."""
        loss = get_recent_loss(self.curve.points, bound.progress)
        if self.would_prune_at is not None or loss is None or loss <= bound.loss:
            return
        self.would_prune_at = bound.progress
        if not self.control_run:
            where = f"after {bound.progress:.0%} of its budget its loss was {loss:.3f}"
            why = f"{where}; from {bound.loss:.3f} on no run of this session came back to the best"
            self.pruned = self.pruned or why

    def _step(self, step: ProgressLine) -> None:
        now = self.clock()
        if self.last:
            self.paces.append(now - self.last_at)
        self.last, self.last_at = step, now
        if not isfinite(step.loss):
            self.broken = self.broken or Fault("NaN", f"the loss became {step.loss} at step {step.number}")
            return
        self.first_loss = step.loss if self.first_loss is None else self.first_loss
        point = Point(seconds=self.said.train_seconds, progress=step.progress, loss=step.loss)
        self.curve.add(point)
        self.on_point(point, step.tokens_per_second)
        while self.pruning_thresholds and point.progress >= self.pruning_thresholds[0].progress:
            self._compare(self.pruning_thresholds.pop(0))
        if step.loss > EXPLODED * abs(self.first_loss) + 1:
            self.broken = self.broken or Fault("NaN", f"the loss exploded to {step.loss:.3g} at step {step.number}")
