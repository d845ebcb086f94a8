"""The lab of one session: candidates become commits, runs become outcomes, what is kept moves the branch."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.events import Digest, Fitted, Granted, Outcome, Profile
from orchestrator.lab.repo import Repo
from orchestrator.lab.runner import Runner
from orchestrator.source import fingerprint
from prepare import profiles
from prepare.manifest import Manifest

STARTUP = {"work": 15.0, "time": 60.0}
"""Seconds for imports, warm-up and evaluation, on top of a run's training; on a GPU everything is compiled, too."""


def profile(manifest: Manifest) -> Profile:
    """What the session needs to know of the prepared data."""
    budget = manifest.budget
    return Profile(
        name=manifest.profile,
        budget_kind=budget.kind,
        budget=budget.amount,
        expected_seconds=STARTUP[budget.kind] + 1.25 * budget.seconds,
        data_hash=manifest.digest,
        seq_len=manifest.seq_len,
        vocab_size=manifest.vocab_size,
        sigma=profiles.PROFILES[manifest.profile].sigma,
    )


@dataclass(frozen=True, slots=True)
class Bench:
    """Git and the runner behind the loop's port. Git works in a thread, so that a slow disk never stops the clock."""

    repo: Repo
    runner: Runner
    put: Callable[[str], Digest]
    profile: profiles.Profile

    async def fit(self) -> Fitted:
        """Commit the baseline and begin the branch. Raises RepoError."""
        commit, source = await asyncio.to_thread(self._fit)
        return Fitted(commit=commit, source=self.put(source), fingerprint=fingerprint(source))

    async def commit(self, experiment: int, parent: str, source: str, message: str) -> str:
        return await asyncio.to_thread(self.repo.commit, experiment, parent, source, message)

    async def train(self, granted: Granted, source: str) -> Outcome:
        return await self.runner.run(granted, source)

    async def promote(self, experiment: int, parent: str, source: str, message: str) -> str:  # noqa: ARG002 - the port's
        return await asyncio.to_thread(self.repo.promote, parent, source, message)

    def _fit(self) -> tuple[str, str]:
        head, found = self.repo.head(), self.repo.baseline()
        source = profiles.fit(found, self.profile)
        note = f"fit the baseline to the {self.profile.name} profile\n\nExperiment: 0\n"
        commit = self.repo.commit(0, head, source, note)
        self.repo.begin(commit)
        return commit, source
