"""Limits of a run: time, output, disk, memory, processes."""

from dataclasses import dataclass

import psutil

from orchestrator.core.events import SessionProfile


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


def set_limits(profile: SessionProfile, threads: int) -> RunLimits:
    """Return limits that let a candidate be four times slower than expected, plus a minute for imports.

    With a work budget the machine may be busy with other things, so the wall clock is more generous than CPU time.
    """
    seconds = 60 + 4 * profile.expected_seconds
    busy = 2 if profile.budget_kind == "work" else 1
    memory = int(0.8 * psutil.virtual_memory().total) if profile.name == "cpu" else None
    quiet = max(60.0, 0.05 * profile.expected_seconds)  # a progress line comes with every hundredth
    return RunLimits(wall=busy * seconds, cpu=max(threads, 1) * seconds, quiet=quiet, memory=memory)
