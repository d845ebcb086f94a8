"""The three interfaces of the loop: a log that stores, a crew that thinks, an executor that trains."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.core import events as ev
from orchestrator.core.source import compute_digest
from orchestrator.core.state import Broken, Decided, State, apply
from orchestrator.policy import steps

StepMeter = Callable[[str], Awaitable[ev.Telemetry | str]]
"""Returns what a step of a source costs, nothing if it cannot be measured, or the fault of the source."""


@dataclass(frozen=True, slots=True)
class Revision:
    """An edited train.py, and what its editor says about it."""

    source: str
    summary: str = ""
    deviations: str = ""


class Log:
    """Stores events and texts, and folds the state: a session's file, or a tape of one."""

    def __init__(self) -> None:
        self.records: list[ev.Record] = []
        self.state = State()
        self.watchers: list[Callable[[], None]] = []  # called after every append
        self.texts: dict[ev.Digest, str] = {}
        self.finished: set[str] = set()  # tasks that have appended their last event in this life

    async def append(self, task_id: str, *events: ev.Event, last: bool = False) -> None:
        """Store events, fold them and call the watchers; `last` marks the task as finished."""
        raise NotImplementedError

    def put(self, text: str) -> ev.Digest:
        """Store a text, once, and return its name."""
        name = compute_digest(text)
        self.texts[name] = text
        return name

    def get(self, name: ev.Digest) -> str:
        """Return the text of that name. Raises KeyError."""
        return self.texts[name]

    def fold(self, *records: ev.Record) -> None:
        """Fold records that are already stored. Raises ValueError if an event cannot follow the state."""
        for record in records:
            self.state = apply(self.state, record)
            self.records.append(record)

    def tell(self) -> None:
        """Call the watchers."""
        for watcher in self.watchers:
            watcher()


class Crew(Protocol):
    """Thinks: three agents, an optimizer, or both. Each method raises NoAnswer when nothing usable comes back."""

    async def propose(self, state: State, step: steps.Propose) -> Sequence[ev.Proposal]:
        """Return up to `step.count` proposals, best first; what goes beyond them is kept for later."""
        ...

    async def implement(self, state: State, step: steps.Edit, proposal: ev.Proposal, source: str) -> Revision:
        """Return the source with a proposal carried out that changes more than constants; the loop sets those."""
        ...

    async def repair(self, state: State, step: steps.Edit, broken: Broken, source: str) -> Revision:
        """Return the source of a crashed candidate, repaired."""
        ...

    async def reflect(self, state: State, step: steps.Reflect, decided: Decided) -> ev.Postmortem:
        """Return the post-mortem of a judged experiment."""
        ...


class Executor(Protocol):
    """Changes and trains code. A broken machine raises; a failed experiment is an Outcome."""

    async def commit_baseline(self) -> ev.BaselineCommitted:
        """Commit the user's script, fitted to the profile, and begin the research branch."""
        ...

    async def commit(self, experiment: int, parent: str, source: str, message: str) -> str:
        """Commit a candidate under a ref of its own and return the commit."""
        ...

    async def train(self, granted: ev.Granted, source: str) -> ev.Outcome:
        """Run the source once; cancelling ends every process of the run."""
        ...

    async def promote(self, experiment: int, parent: str, source: str, message: str) -> str:
        """Move the research branch from the parent to a new commit and return it."""
        ...
