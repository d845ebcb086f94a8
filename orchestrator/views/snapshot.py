"""Freeze a log at one moment, so that views can render from it in any thread."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.events import Digest, Record
from orchestrator.core.state import State
from orchestrator.ports import Log


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A log as it stood at one moment."""

    state: State
    records: Sequence[Record]
    get: Callable[[Digest], str]


LogReader = Log | Snapshot
File = tuple[Path, object, Callable[[], str | bytes]]
"""Path, content key and renderer of a file, which is rendered again only when its key has changed."""
