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
from orchestrator.lab.scoring.server import EvaluationServer, InferenceSettings
from prepare.atomic import open_replacement

MODULE = "prepare.audit"


class ClaimsArchive:
    """Claims that proved true, since later ones may have to be compared with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, experiment: int, shape: tuple[int, int]) -> Nats | None:
        """Return an experiment's claims; None where there are none of that shape."""
        try:
            claims: Nats = np.load(self._get_path(experiment), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return claims if claims.shape == shape else None

    def save(self, experiment: int, claims: Nats, incumbent: int) -> None:
        """Save an experiment's claims; drop those from before the incumbent's."""
        self.folder.mkdir(exist_ok=True)
        with open_replacement(self._get_path(experiment)) as part, part.open("wb") as file:
            np.save(file, claims)
        for path in self.folder.glob("claims-*.npy"):
            if int(path.stem.removeprefix("claims-")) < min(incumbent, experiment):
                path.unlink(missing_ok=True)

    def _get_path(self, experiment: int) -> Path:
        return self.folder / f"claims-{experiment}.npy"


class Auditor:
    """The blind process. It starts beside the training, so that its imports are done when it is needed; it serves once.

    Until then it has seen nothing but `prepare`.
    """

    def __init__(
        self, scorer: Scorer, command: Command, connection: Connection, monitor: RunMonitor, lock: int
    ) -> None:
        """Start it; `lock` as for run_guarded."""
        self.scorer, self.connection, self.monitor, self.has_started = scorer, connection, monitor, False
        self.answers: list[NDArray[np.float64]] = []
        """−log p of the true tokens, batch by batch."""
        self.question: asyncio.Future[tuple[EvaluationServer, AuditPositions, np.random.Generator]]
        self.question = asyncio.get_running_loop().create_future()
        self.process = asyncio.create_task(run_guarded(command, monitor, lock, self._listen))

    async def examine(self, run: EvaluationServer, positions: AuditPositions, rng: np.random.Generator) -> Ending:
        """Ask the run's model about one position in each row; return how the process ended.

        Raises Disqualified, and MachineError where it could not even start: what goes wrong later may be the model's
        fault.
        """
        self.monitor.launched = self.monitor.now()
        if not self.question.done():
            self.question.set_result((run, positions, rng))
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
            await asyncio.wait({self.process})
        finally:
            self.connection.close()
        if not self.process.cancelled():
            self.process.exception()  # retrieved, so that asyncio does not complain; `examine` has raised it

    async def _listen(self, running: RunningProcess) -> None:
        run, positions, rng = await self.question
        assert run.settings
        batch, rows = run.settings.batch_size, self.scorer.shape[0]
        try:
            self.has_started = await self.connection.receive() == {"event": "ready"}
            if self.has_started and await self._send_model(run.model, run.settings):
                running.seal()
                for first in range(0, rows, batch):
                    self.answers.append(await self._ask(first, min(first + batch, rows), positions, rng))
                await self.connection.send({"event": "thanks"})
        except ConnectionError:
            pass  # the process has ended, which its guardian reports
        finally:
            self.connection.close()

    async def _send_model(self, model: Path, settings: InferenceSettings) -> bool:
        how = settings.model_dump(include={"precision", "threads"})
        how["autocast"] = None if settings.autocast == "float32" else settings.autocast
        with model.open("rb") as file:
            await self.connection.send({"event": "model", "split": "model", **how}, files=[file])
        return await self.connection.receive() == {"event": "loaded"}

    async def _ask(
        self, first: int, last: int, positions: AuditPositions, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Ask about a batch of rows. Raises Disqualified, ConnectionError."""
        x, at = self.scorer.mask(first, last, positions, rng), positions.at[first:last]
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
