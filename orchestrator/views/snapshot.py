"""Read a log at one moment: views render from this, on any thread."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.core.events import Digest, Record
from orchestrator.core.state import State


class LogReader(Protocol):
    """The part of a log that views read."""

    @property
    def state(self) -> State: ...
    @property
    def records(self) -> Sequence[Record]: ...
    @property
    def get(self) -> Callable[[Digest], str]:
        """Return the stored text of that name. Raises KeyError."""
        ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A log as it stood at one moment."""

    state: State
    records: Sequence[Record]
    get: Callable[[Digest], str]
