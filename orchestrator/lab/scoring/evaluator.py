"""Our side of an evaluation: a fresh process runs the submitted model, for its losses or, blind, for its logits."""

import asyncio
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.lab.failures import DEVICE_FAULT, Fault, MachineError, classify_failure, find_message
from orchestrator.lab.monitor import RunMonitor
from orchestrator.lab.scoring.claims import Disqualified, Exam, Nats
from orchestrator.lab.scoring.connection import Connection
from orchestrator.lab.scoring.server import InferenceSettings
from prepare.files import open_replacement

MISFITS = {
    "losses": "the losses of its model are not one loss per token",
    "logits": "the logits of its model are not for the vocabulary",
}
"""What is wrong with an answer of another size."""


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
class Evaluator:
    """A process that runs a submitted model and has not trained it. Its methods raise ConnectionError at its end."""

    connection: Connection
    settings: InferenceSettings
    monitor: RunMonitor
    said: str = ""  # the last of "ready", "open" and "loaded" that it has said
    began: float = inf  # time of the monitor's clock when it was sent the model
    has_rows: bool = False  # whether it was sent rows, so that it knows some of the text that is scored

    async def start(self) -> None:
        """Wait until it has imported what it needs; nothing of the model is there yet."""
        await self.connection.send({"event": "settings", **self.settings.model_dump(exclude={"batch_size"})})
        await self._wait_for("ready")

    async def load(self, model: Path) -> None:
        """Send the model, and wait until it is loaded."""
        self.began = self.monitor.read_clock()
        with model.open("rb") as file:
            await self.connection.send({"event": "model", "split": "model"}, file=file)
        await self._wait_for("open")
        await self._wait_for("loaded")

    async def _wait_for(self, event: str) -> None:
        if await self.connection.receive() != {"event": event}:
            raise ConnectionError(f"it is not {event}")
        self.said = event

    async def compute_losses(self, rows: NDArray[np.unsignedinteger], size: int = 0) -> Nats:
        """Return the model's losses, [rows, tokens to predict], `size` rows at a time. Raises Disqualified."""
        size = size or self.settings.batch_size
        losses = np.empty((rows.shape[0], rows.shape[1] - 1), dtype=np.float32)
        for first in range(0, len(rows), size):
            some = rows[first : first + size].astype(np.int64)
            answer = await self._ask("losses", some[:, :-1], some[:, 1:], some[:, 1:].size)
            losses[first : first + size] = answer.reshape(len(some), -1)
        return losses

    async def predict_blind(self, exam: Exam, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return −log p of the true token at one position in each row, which the process does not see.

        The rows come in an order of their own, so that an answer can depend on no other row. Raises Disqualified.
        """
        order = rng.permutation(len(exam.at))
        answers = np.empty(len(order))
        for first in range(0, len(order), self.settings.batch_size):
            chosen = order[first : first + self.settings.batch_size]
            size = len(chosen) * len(exam.scorer.lengths)
            logits = await self._ask("logits", exam.mask(chosen, rng), exam.at[chosen], size)
            answers[chosen] = await asyncio.to_thread(exam.score_blind, logits.reshape(len(chosen), -1), chosen)
        return answers

    async def _ask(self, what: str, x: NDArray[np.int64], more: NDArray[np.int64], size: int) -> NDArray[np.float32]:
        """Return `size` numbers about the rows `x`. Raises Disqualified for any other answer."""
        rows, length = x.shape
        request, self.has_rows = {"event": what, "rows": rows, "length": length}, True
        await self.connection.send(request, data=x.tobytes() + more.tobytes())
        answer = await self.connection.receive() or {}
        if answer.get("event") != what:
            raise ConnectionError("no answer")
        if answer.get("bytes") != 4 * size:
            raise Disqualified(MISFITS[what])
        return np.frombuffer(await self.connection.read_exactly(4 * size), dtype=np.float32)

    def explain_silence(self, log: str, *, quotes: bool, on_gpu: bool, is_full: bool) -> Fault | MachineError:
        """Return why the process ended without the answers; `is_full` tells whether others have filled the disk.

        Its log is quoted only where no process of this run had rows yet: one can leave notes of the text to the next.
        Nor is the run repeated from then on because the log tells of a sick GPU: its model could wait for better luck.
        """
        if self.said in ("", "ready"):  # the model is not open yet
            return MachineError(f"the evaluator did not start: {find_message(log) or 'it printed nothing'}")
        failure = classify_failure(self.monitor.status or 0, log)
        if is_full and failure.kind == "disk full":
            return MachineError("the disk is full")
        if on_gpu and DEVICE_FAULT.search(failure.message):
            why = failure.message if quotes else "the GPU failed"
            return Fault("other", f"the model that it handed over could not be evaluated: {why}", excuse=why)
        if self.said == "open":
            why = f": {failure.message}" if quotes else " again, after it was loaded once"
            return Disqualified(f"the model that it handed over cannot be loaded{why}")
        return Fault(failure.kind, "the model that it handed over fails by itself: `model(x)` or its losses")
