"""Our side of the blind audit, in which a fresh process runs the submitted model without seeing what it predicts."""

import asyncio
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.lab.failures import MachineError, classify_failure
from orchestrator.lab.monitor import RunMonitor
from orchestrator.lab.process import RunningProcess, run_guarded
from orchestrator.lab.sandbox.base import Command
from orchestrator.lab.scoring.claims import AuditPositions, Disqualified, Nats
from orchestrator.lab.scoring.connection import Connection
from orchestrator.lab.scoring.server import EvaluationServer
from prepare.files import open_replacement


def load_claims(archive: Path, experiment: int, shape: tuple[int, int]) -> Nats | None:
    """Return an experiment's audited claims; None if there are none of that shape."""
    try:
        claims: Nats = np.load(archive / f"claims-{experiment}.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return claims if claims.shape == shape else None


def save_claims(archive: Path, experiment: int, claims: Nats, incumbent: int) -> None:
    """Save an experiment's claims as a reference for later audits; delete those older than the incumbent's."""
    archive.mkdir(exist_ok=True)
    with open_replacement(archive / f"claims-{experiment}.npy") as part, part.open("wb") as file:
        np.save(file, claims)
    for path in archive.glob("claims-*.npy"):
        if int(path.stem.removeprefix("claims-")) < min(incumbent, experiment):
            path.unlink(missing_ok=True)


@dataclass(slots=True)
class Auditor:
    """Queries the model of one run, in a process that has seen neither the training nor the answers."""

    run: EvaluationServer
    positions: AuditPositions
    rng: np.random.Generator
    monitor: RunMonitor
    connection: Connection
    has_started: bool = False
    answers: list[NDArray[np.float64]] = field(default_factory=list[NDArray[np.float64]])
    """−log p of the true tokens, batch by batch."""

    async def examine(self, command: Command, lock: int) -> NDArray[np.float64]:
        """Run the process by run_guarded; return −log p of the true token at one position in each row.

        Raises MachineError if it did not start; a later failure may be the model's fault, and is a Fault.
        """
        ending = await run_guarded(command, self.monitor, lock, self._listen)
        log = self.monitor.transcript.log
        if not self.has_started:
            last_line = log.rpartition("\n")[2]
            raise MachineError(f"the auditing process did not start: {last_line or 'it printed nothing'}")
        ending.check()
        if sum(map(len, self.answers)) == self.run.scorer.shape[0]:
            return np.concatenate(self.answers)
        if self.monitor.transcript.sealed:
            raise Disqualified("the model that it handed over does not give logits by itself: `model(x)` must")
        why = classify_failure(ending.status or 0, log).message
        raise Disqualified(f"the model that it handed over cannot be loaded: {why}")

    async def _listen(self, running: RunningProcess) -> None:
        assert self.run.settings
        settings, rows = self.run.settings, self.run.scorer.shape[0]
        with suppress(ConnectionError), closing(self.connection):  # at its end the guardian reports how it ended
            self.has_started = await self.connection.receive() == {"event": "ready"}
            if not self.has_started:
                return
            how = settings.model_dump(exclude={"batch_size"})
            with self.run.model.open("rb") as file:
                await self.connection.send({"event": "model", "split": "model", **how}, file=file)
            if await self.connection.receive() == {"event": "loaded"}:
                running.seal()
                for first in range(0, rows, settings.batch_size):
                    self.answers.append(await self._ask(first, min(first + settings.batch_size, rows)))
                await self.connection.send({"event": "thanks"})

    async def _ask(self, first: int, last: int) -> NDArray[np.float64]:
        """Query a batch of rows; return −log p of their true tokens. Raises Disqualified, ConnectionError."""
        scorer, positions = self.run.scorer, self.positions
        x, at = scorer.mask(first, last, positions, self.rng), positions.at[first:last]
        event = {"event": "rows", "rows": last - first, "length": x.shape[1]}
        await self.connection.send(event, data=x.tobytes() + at.tobytes())
        size = 4 * (last - first) * len(scorer.lengths)
        answer = await self.connection.receive() or {}
        if answer.get("event") != "logits":
            raise ConnectionError("no answer")
        if answer.get("bytes") != size:
            raise Disqualified("its logits are not for the vocabulary")
        logits = np.frombuffer(await self.connection.read_exactly(size), dtype=np.float32).reshape(last - first, -1)
        return await asyncio.to_thread(scorer.score_blind, logits, first, positions)
