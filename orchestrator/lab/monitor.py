"""Monitors one run from outside, by its output and our own clock, and finds the reason to stop it: mostly a limit."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import psutil

from orchestrator.core.description import get_recent_loss
from orchestrator.core.events import EvaluationPlan, Point, PruningThreshold, RunMetrics, SessionProfile
from orchestrator.lab.failures import Fault, Prune
from orchestrator.lab.log import ProgressLine, Transcript

EXPLODED = 3.0
"""Times the first loss; no model that learns ever gets there."""
ABSURD_LOSS = 1e6
"""A larger loss is as good as infinite, and sums of a few stay finite."""
NEARLY_DONE = 0.9
"""Share of the budget after which the next line may be the summary, and evaluation is silent."""
POINTS = 60
"""Points of a loss curve at most: enough to draw it and to compare it with another."""
STANDSTILL = 5.0
"""Seconds between two looks at the clock that count at most. There are ten a second, so what is longer is an
orchestrator that stood still: Ctrl-Z, a paused container, a machine that does not answer."""


@dataclass(frozen=True, slots=True)
class RunLimits:
    """Limits of one run, in seconds and bytes."""

    wall: float
    cpu: float
    """CPU seconds of one process; they do not grow on a busy machine."""
    quiet: float = 60.0
    """Seconds without output that are always allowed."""
    quiet_steps: float = 10.0
    """The same in median steps; the longer of the two counts."""
    grace: float = 10.0
    """Seconds between SIGTERM and SIGKILL."""
    output: int = 32 << 20
    free_disk: int = 512 << 20
    """Bytes of disk that must be free before a run starts."""
    patience: float = 120.0
    """Seconds to wait for them."""
    pause: float = 10.0
    """Seconds to wait after a run that the machine ended, for each such run in a row."""
    reserve: int = 256 << 20
    """Bytes of disk that a run must leave free."""
    file: int = 4 << 30
    """Bytes of the largest file."""
    processes: int = 2_000
    """More concurrent processes than any data loader needs."""
    memory: int | None = None
    """Bytes of one process; None on a GPU, whose driver reserves more than it uses."""


def set_limits(profile: SessionProfile, threads: int, slots: int = 1) -> RunLimits:
    """Return limits that let a candidate be four times slower than expected, plus a minute for imports.

    With a work budget the machine may be busy with other things, so the wall clock is more generous than CPU time.
    """
    seconds = 60 + 4 * profile.expected_seconds
    busy = 2 if profile.budget_kind == "work" else 1
    memory = int(0.8 * psutil.virtual_memory().total / slots) if profile.name == "cpu" else None
    quiet = max(60.0, 0.05 * profile.expected_seconds)  # a progress line comes with every hundredth
    return RunLimits(wall=busy * seconds, cpu=max(threads, 1) * seconds, quiet=quiet, memory=memory)


class RunMonitor:
    """The knowledge about a run while it goes on."""

    def __init__(
        self,
        limits: RunLimits,
        clock: Callable[[], float] = time.monotonic,
        on_point: Callable[[Point, float], None] = lambda _point, _rate: None,
        fills_disk: Callable[[], bool] = lambda: False,
        plan: EvaluationPlan | None = None,
    ) -> None:
        """Start the wall clock; `fills_disk` tells whether the run leaves too little room on the disk."""
        self.limits, self.on_point, self.fills_disk = limits, on_point, fills_disk
        self.clock, self.read_at, self.lost = clock, clock(), 0.0
        """A monotonic clock, which no change of the wall clock moves, and its seconds in which we stood still."""
        self.pruning_thresholds = list(plan.pruning_thresholds) if plan else []
        self.control_run = plan is not None and plan.control_run
        self.would_prune_at: float | None = None
        """Share of the budget at which it fell behind a pruning threshold."""
        self.transcript, self.points = Transcript(), dict[int, Point]()
        """The output, and the newest point in each of POINTS equal parts of the budget."""
        self.launched = self.heard_at = self.last_at = self.read_clock()
        self.training_began: float | None = None
        """When the first batch was handed out, by our own clock."""
        self.training_ended: float | None = None
        """When the model was handed over."""
        self.first: ProgressLine | None = None
        self.last: ProgressLine | None = None
        self.paces: deque[float] = deque(maxlen=101)
        self.found: Fault | Prune | None = None
        """The first reason to stop that its output has given."""

    def read_clock(self) -> float:
        """Return the time, in seconds in which this process was awake."""
        before, self.read_at = self.read_at, self.clock()
        self.lost += max(0.0, self.read_at - before - STANDSTILL)
        return self.read_at - self.lost

    @property
    def train_seconds(self) -> float:
        """Seconds of training so far; 0 before it starts."""
        if self.training_began is None:
            return 0.0
        return (self.read_clock() if self.training_ended is None else self.training_ended) - self.training_began

    def feed(self, data: bytes, *, last: bool = False) -> None:
        """Read output. Any is a sign of life, since a script may tell of its progress in its own words."""
        self.heard_at = self.read_clock()
        for step in self.transcript.feed(data, last=last):
            self._follow(step)

    @property
    def stop_reason(self) -> Fault | Prune | None:
        """The reason to stop the run now."""
        if self.found:
            return self.found
        if self.read_clock() - self.launched > self.limits.wall:
            return Fault("timeout", f"it was not done after {self.limits.wall:.0f} s")
        if self.transcript.bytes > self.limits.output:
            return Fault("other", f"it printed more than {self.limits.output >> 20} MB")
        return Fault("disk full", "it filled the disk") if self.fills_disk() else self._find_hang()

    def summarize(self, peak_mb: float | None) -> RunMetrics:
        """Return the run in numbers; `peak_mb` is its largest process's memory, None on a GPU: its summary counts."""
        summary = self.transcript.summary or {}
        return RunMetrics(
            train_seconds=self.train_seconds,
            total_seconds=self.read_clock() - self.launched,
            steps=int(summary.get("num_steps", self.last.number if self.last else 0)),
            tokens=int(1e6 * summary.get("total_tokens_M", 0.0)),
            parameters=int(1e6 * summary.get("num_params_M", 0.0)),
            memory_mb=summary.get("peak_vram_mb", 0.0) if peak_mb is None else peak_mb,
        )

    def _find_hang(self) -> Fault | None:
        """Return a hang where training has been silent; compilation and evaluation print nothing."""
        began = self.training_began
        if began is None or self.training_ended is not None or (self.last and self.last.progress >= NEARLY_DONE):
            return None
        quiet = max(self.limits.quiet, self.limits.quiet_steps * median(self.paces or [0.0]))
        if self.read_clock() - max(self.heard_at, began) <= quiet:
            return None
        where = f"after step {self.last.number}" if self.last else "since training began"
        awaited = "a line such as `step 00012 (3.4%) | loss: 5.678` is awaited, or any other"
        return Fault("hang", f"it printed nothing for {quiet:.0f} s {where}; {awaited}")

    def _follow(self, step: ProgressLine) -> None:
        now = self.read_clock()
        if self.last:
            self.paces.append(now - self.last_at)
        self.first, self.last, self.last_at = self.first or step, step, now
        if not abs(step.loss) <= ABSURD_LOSS:
            self.found = self.found or Fault("NaN", f"the loss became {step.loss:g} at step {step.number}")
            return
        point = Point(seconds=self.train_seconds, progress=step.progress, loss=step.loss)
        self.points[math.ceil((POINTS - 1) * step.progress)] = point
        self.on_point(point, step.tokens_per_second)
        while self.pruning_thresholds and point.progress >= self.pruning_thresholds[0].progress:
            self._compare(self.pruning_thresholds.pop(0))
        if step.loss > EXPLODED * abs(self.first.loss) + 1:
            self.found = self.found or Fault("NaN", f"the loss exploded to {step.loss:.3g} at step {step.number}")

    def _compare(self, threshold: PruningThreshold) -> None:
        loss = get_recent_loss([*self.points.values()], threshold.progress)
        if self.would_prune_at is not None or loss is None or loss <= threshold.loss:
            return
        self.would_prune_at = threshold.progress
        if not self.control_run:
            where = f"after {threshold.progress:.0%} of its budget its loss was {loss:.3f}"
            why = f"{where}; from {threshold.loss:.3f} on no run of this session came back to the best"
            self.found = self.found or Prune(why)
