"""Execute a session on this machine: commit candidates, train them, and move the branch to what is kept."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.core.events import BaselineCommitted, Digest, Granted, Outcome
from orchestrator.core.source import compute_fingerprint
from orchestrator.lab.repo import Repo
from orchestrator.lab.runner import Runner
from prepare import profiles


@dataclass(frozen=True, slots=True)
class LocalExecutor:
    """The loop's port, by git and the runner. Git runs in a thread, so that a slow disk never blocks the loop."""

    repo: Repo
    runner: Runner
    put: Callable[[str], Digest]
    profile: profiles.Profile
    say: Callable[[str], None] = print
    """Tells the user why the branch was not moved."""

    async def commit_baseline(self) -> BaselineCommitted:
        """Commit the baseline and create the branch. Raises RepoError."""
        head = await asyncio.to_thread(self.repo.get_head)
        source = profiles.apply_to_script(await asyncio.to_thread(self.repo.read_baseline), self.profile)
        message = f"fit the baseline to the {self.profile.name} profile\n\nExperiment: 0\n"
        commit = await self.commit(0, head, source, message)
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
