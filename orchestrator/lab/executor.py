"""Executes a session on this machine: candidates become commits, runs become outcomes, keeps move the branch."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.core.events import BaselineCommitted, Digest, Granted, Outcome
from orchestrator.core.source import compute_fingerprint
from orchestrator.lab.repo import Repo
from orchestrator.lab.runner import BaseRunner
from prepare import profiles


@dataclass(frozen=True, slots=True)
class LocalExecutor:
    """Git and the runner behind the loop's port. Git works in a thread, so that a slow disk never stops the clock."""

    repo: Repo
    runner: BaseRunner[Any]
    put: Callable[[str], Digest]
    profile: profiles.Profile | None
    """None where the script is not fitted to one: its scores are reported."""
    say: Callable[[str], None] = print
    """Tells the user why the branch stays behind."""

    async def commit_baseline(self) -> BaselineCommitted:
        """Commit the baseline and create the branch. Raises RepoError."""
        head = await asyncio.to_thread(self.repo.get_head)
        source, message = await asyncio.to_thread(self.repo.read_baseline), "begin with the script as it is"
        if self.profile:
            source = profiles.apply_to_script(source, self.profile)
            message = f"fit the baseline to the {self.profile.name} profile"
        commit = await self.commit(0, head, source, f"{message}\n\nExperiment: 0\n")
        await asyncio.to_thread(self.repo.begin_branch, commit)
        return BaselineCommitted(commit=commit, source=self.put(source), fingerprint=compute_fingerprint(source))

    async def commit(self, experiment: int, parent: str, source: str, message: str) -> str:
        return await asyncio.to_thread(self.repo.commit, experiment, parent, source, message)

    async def train(self, granted: Granted, source: str) -> Outcome:
        return await self.runner.run(granted, source)

    async def promote(self, experiment: int, parent: str, source: str, message: str) -> str:  # noqa: ARG002 - the port's
        head = await asyncio.to_thread(self.repo.promote, parent, source, message)
        if self.repo.trouble:
            self.say(self.repo.trouble)
        return head
