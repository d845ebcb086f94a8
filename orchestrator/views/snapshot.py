"""Read a log at one moment: views render from this, on any thread."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.events import Digest, Record
from orchestrator.core.state import State
from orchestrator.session.store import EventLog


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A log as it stood at one moment."""

    state: State
    records: Sequence[Record]
    get: Callable[[Digest], str]


LogReader = EventLog | Snapshot
File = tuple[Path, object, Callable[[], str | bytes]]
"""Where it lies, what it shows, and what renders it: it is written again when it would show something else."""
