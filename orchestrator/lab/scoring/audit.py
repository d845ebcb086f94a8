"""Our side of the blind audit: a fresh process with the handed-over model sees only the past and says what follows."""

import asyncio
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.lab.failures import MachineError, classify_failure
from orchestrator.lab.monitor import RunMonitor
from orchestrator.lab.process import Ending, RunningProcess, run_guarded
from orchestrator.lab.sandbox.base import Command
from orchestrator.lab.scoring.claims import AuditPositions, Disqualified, Nats, Scorer
from orchestrator.lab.scoring.connection import Connection
from orchestrator.lab.scoring.server import EvaluationServer
from prepare.files import open_replacement


def load_claims(archive: Path, experiment: int, shape: tuple[int, int]) -> Nats | None:
    """Return an experiment's claims, which proved true; None where there are none of that shape."""
    try:
        claims: Nats = np.load(archive / f"claims-{experiment}.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return claims if claims.shape == shape else None


def save_claims(archive: Path, experiment: int, claims: Nats, incumbent: int) -> None:
    """Save an experiment's claims, to compare later ones with; drop those from before the incumbent's."""
    archive.mkdir(exist_ok=True)
    with open_replacement(archive / f"claims-{experiment}.npy") as part, part.open("wb") as file:
        np.save(file, claims)
    for path in archive.glob("claims-*.npy"):
        if int(path.stem.removeprefix("claims-")) < min(incumbent, experiment):
            path.unlink(missing_ok=True)


class Auditor:
    """The blind process. It starts beside the training, so that its imports are done when it is needed; it serves once.

    Until then it has seen nothing but `prepare`.
    """

    def __init__(
        self, scorer: Scorer, command: Command, connection: Connection, monitor: RunMonitor, lock: int
    ) -> None:
        """Start it; `lock` as for run_guarded."""
        self.scorer, self.connection, self.monitor, self.has_started = scorer, connection, monitor, False
        self.rng = np.random.default_rng()
        self.answers: list[NDArray[np.float64]] = []
        """−log p of the true tokens, batch by batch."""
        self.question: asyncio.Future[tuple[EvaluationServer, AuditPositions]] = asyncio.Future()
        self.process = asyncio.create_task(run_guarded(command, monitor, lock, self._listen))

    async def examine(self, run: EvaluationServer, positions: AuditPositions) -> Ending:
        """Ask the run's model about one position in each row; return how the process ended.

        Raises Disqualified, and MachineError where it could not even start: what goes wrong later may be the model's
        fault.
        """
        self.monitor.launched = self.monitor.now()
        if not self.question.done():
            self.question.set_result((run, positions))
        ending = await self.process
        if not self.has_started:
            words = self.monitor.transcript.log.text.rpartition("\n")[2]
            raise MachineError(f"the auditing process did not start: {words or 'it printed nothing'}")
        return ending

    def get_answers(self, ending: Ending) -> NDArray[np.float64]:
        """Return −log p of the true token in each row. Raises Disqualified where it ended by itself without them."""
        if sum(map(len, self.answers)) == self.scorer.shape[0]:
            return np.concatenate(self.answers)
        if self.monitor.transcript.sealed:
            raise Disqualified("the model that it handed over does not give logits by itself: `model(x)` must")
        why = classify_failure(ending.status or 0, self.monitor.transcript.log.text).message
        raise Disqualified(f"the model that it handed over cannot be loaded: {why}")

    async def close(self) -> None:
        """End the process, needed or not."""
        self.process.cancel()
        try:
            await asyncio.gather(self.process, return_exceptions=True)  # `examine` has raised what there is to raise
        finally:
            self.connection.close()

    async def _listen(self, running: RunningProcess) -> None:
        run, positions = await self.question
        assert run.settings
        batch, rows = run.settings.batch_size, self.scorer.shape[0]
        try:
            self.has_started = await self.connection.receive() == {"event": "ready"}
            if not self.has_started:
                return
            autocast = None if run.settings.autocast == "float32" else run.settings.autocast
            how = run.settings.model_dump(include={"precision", "threads"}) | {"autocast": autocast}
            with run.model.open("rb") as file:
                await self.connection.send({"event": "model", "split": "model", **how}, files=[file])
            if await self.connection.receive() == {"event": "loaded"}:
                running.seal()
                for first in range(0, rows, batch):
                    self.answers.append(await self._ask(first, min(first + batch, rows), positions))
                await self.connection.send({"event": "thanks"})
        except ConnectionError:
            pass  # the process has ended, which its guardian reports
        finally:
            self.connection.close()

    async def _ask(self, first: int, last: int, positions: AuditPositions) -> NDArray[np.float64]:
        """Ask about a batch of rows. Raises Disqualified, ConnectionError."""
        x, at = self.scorer.mask(first, last, positions, self.rng), positions.at[first:last]
        event = {"event": "rows", "rows": last - first, "length": x.shape[1]}
        await self.connection.send(event, data=[x.tobytes(), at.tobytes()])
        size = 4 * (last - first) * len(self.scorer.lengths)
        answer = await self.connection.receive() or {}
        if answer.get("event") != "logits":
            raise ConnectionError("no answer")
        if answer.get("bytes") != size:
            raise Disqualified("its logits are not for the vocabulary")
        logits = np.frombuffer(await self.connection.read_exactly(size), dtype=np.float32).reshape(last - first, -1)
        return await asyncio.to_thread(self.scorer.score_blind, logits, first, positions)
