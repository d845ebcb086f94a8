"""Executes a session on this machine: candidates become commits, runs become outcomes, keeps move the branch."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.core.events import BaselineCommitted, Digest, Granted, Outcome
from orchestrator.core.source import compute_fingerprint
from orchestrator.lab.repo import Repo, RepoError
from orchestrator.lab.runner import Runner
from prepare import profiles


@dataclass(frozen=True, slots=True)
class LocalExecutor:
    """Git and the runner behind the loop's port. Git works in a thread, so that a slow disk never stops the clock."""

    repo: Repo
    runner: Runner
    put: Callable[[str], Digest]
    profile: profiles.Profile
    say: Callable[[str], None] = print
    """Tells the user why git waits, or why the branch stays behind."""
    is_stopping: Callable[[], bool] = lambda: False
    """Tells whether the night ends, so that git is no longer waited for."""
    patience: int = 40
    """Attempts, two a second, before either: a lock is held, `git gc` moves objects."""

    async def commit_baseline(self) -> BaselineCommitted:
        """Commit the baseline and create the branch. Raises RepoError."""
        head = await self._attempt(self.repo.get_head)
        source = profiles.apply_to_script(await asyncio.to_thread(self.repo.read_baseline), self.profile)
        message = f"fit the baseline to the {self.profile.name} profile\n\nExperiment: 0\n"
        commit = await self.commit(0, head, source, message)
        await self._attempt(self.repo.begin_branch, commit)
        return BaselineCommitted(commit=commit, source=self.put(source), fingerprint=compute_fingerprint(source))

    async def commit(self, experiment: int, parent: str, source: str, message: str) -> str:
        return await self._attempt(self.repo.commit, experiment, parent, source, message)

    async def train(self, granted: Granted, source: str) -> Outcome:
        return await self.runner.run(granted, source)

    async def promote(self, experiment: int, parent: str, source: str, message: str) -> str:  # noqa: ARG002 - the port's
        head = await self._attempt(self.repo.promote, parent, source, message)
        if self.repo.trouble:
            self.say(self.repo.trouble)
        return head

    async def _attempt(self, write: Callable[..., str], *words: object) -> str:
        """Return what git has written, however long the repository cannot be used. Raises RepoError."""
        attempts = 0
        while True:
            try:
                return await asyncio.to_thread(write, *words)
            except RepoError as error:
                attempts += 1
                if attempts > self.patience and self.is_stopping():
                    raise
                if attempts == self.patience:
                    self.say(f"{error}. It is tried again until it works; training goes on")
                await asyncio.sleep(0.5)
