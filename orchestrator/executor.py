"""Execute the steps of a session: commit candidates, have them trained, and move the branch to what is kept."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any, Protocol, TypeVar

from orchestrator.core.events import BaselineCommitted, Digest, Granted, Origin, Outcome
from orchestrator.core.seeds import with_literal_seed
from orchestrator.core.source import compute_fingerprint
from orchestrator.policy.thresholds import MAX_ABORTED
from orchestrator.repo import Repo, RepoError
from prepare.constants import with_originals

T = TypeVar("T")
STALE = 10.0
"""Seconds after which a lock on a ref of the session is left over, as when `.git` was moved away while git held it."""


class Trainer(Protocol):
    """Runs candidates: the lab's runner on this machine, or a cluster's."""

    async def run(self, granted: Granted, source: str, /) -> Outcome: ...


@dataclass(slots=True)
class LocalExecutor:
    """The loop's port, by git and a runner. Git runs in a thread, so that a slow disk never blocks the loop.

    Runs get the fitted constants and seeds; the branch has the user's, and so holds the gains only.
    """

    repo: Repo
    runner: Trainer
    put: Callable[[str], Digest]
    fit: Callable[[str], str] = str  # returns the user's script as it is trained
    say: Callable[[str], None] = print  # tells the user why git waits, or why the branch was not moved
    is_stopping: Callable[[], bool] = lambda: False
    """Returns whether the night ends, so that git is no longer waited for."""
    patience: float = 20.0
    """Seconds after the first failure before the user is told: a lock is held, `git gc` moves objects."""
    fitted: str = ""
    own: str = ""  # the baseline as it is trained, and as the user has it
    origin: tuple[Origin, str] | None = None
    """What the night begins with in place of the user's script, and its text as it is trained."""
    pause: float = 10.0
    """Seconds to wait after a run that the machine ended; more than doubled for each further one in a row."""
    aborted: Counter[int] = field(default_factory=Counter[int])
    """Runs in a row that the machine ended, by slot."""

    async def commit_baseline(self) -> BaselineCommitted:
        """Create the branch at the user's commit; a baseline that is fitted lies beside it. Raises RepoError."""
        commit = await self._attempt(self.repo.get_start)
        own = await self._attempt(self.repo.read_source, commit)
        fitted = await self._attempt(self.fit, own)
        if self.origin:
            origin, best = self.origin
            message = f"begin with experiment {origin.experiment} of {origin.session}\n\nExperiment: 0\n"
            self.own, self.fitted = own, fitted
            own = self._restore(with_literal_seed(best))
            commit = await self._attempt(self.repo.begin_with, origin.commit, own, message)
            own, fitted = await self._attempt(self.repo.read_source, commit), best
        if fitted != own:
            await self.commit(0, commit, fitted, "the baseline as it is trained\n\nExperiment: 0\n")
        self.own, self.fitted = own, fitted
        await self._attempt(self.repo.advance_branch, commit)
        return BaselineCommitted(commit=commit, source=self.put(fitted), fingerprint=compute_fingerprint(fitted))

    async def commit(self, experiment: int, parent: str, source: str, message: str) -> str:
        return await self._attempt(self.repo.commit, experiment, parent, self._restore(source), message)

    async def train(self, granted: Granted, source: str) -> Outcome:
        """Train once, after a pause where the machine ended the slot's last run."""
        slot = granted.slot
        await asyncio.sleep(self.pause * (2 ** min(self.aborted[slot], MAX_ABORTED - 1) - 1))
        outcome = await self._attempt(self.runner.run, granted, source)  # git lays out a reported run
        self.aborted[slot] = self.aborted[slot] + 1 if outcome.kind == "aborted" else 0
        return outcome

    async def promote(self, experiment: int, parent: str, source: str, message: str) -> str:  # noqa: ARG002 - the port's
        head = await self._attempt(self.repo.promote, parent, self._restore(source), message)
        if self.repo.trouble:
            self.say(self.repo.trouble)
        return head

    def _restore(self, source: str) -> str:
        """Return a candidate with the user's seeds and constants, except those that it changes itself."""
        if self.fitted == self.own:
            return source
        source, fitted = with_literal_seed(source), with_literal_seed(self.fitted)
        return source if fitted == self.own else with_originals(source, fitted, self.own)

    async def _attempt(self, work: Callable[..., T | Awaitable[T]], *words: object) -> T:
        """Return what needs git, however long the repository cannot be used. Raises RepoError."""
        late, told = 0.0, False
        while True:
            try:
                done: Any = await asyncio.to_thread(work, *words)
                return await done if isawaitable(done) else done
            except RepoError as error:
                await asyncio.to_thread(self.repo.unlock, STALE)
                late = late or time.monotonic() + self.patience
                if time.monotonic() > late and self.is_stopping():
                    raise
                if time.monotonic() > late and not told:
                    told = True
                    self.say(f"{error}. It is tried again until it works; training goes on")
                await asyncio.sleep(0.5)
