"""Serve one run over its socket, $NIGHTSHIFT_FD: hand out the training rows when they are due, receive the model.

Only these messages start and stop the clock; what a run prints is for people. A run never sees validation text.
"""

import asyncio
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.lab.monitor import RunMonitor
from orchestrator.lab.process import RunningProcess
from orchestrator.lab.scoring.claims import EVALUATION_GRACE, SLACK, Disqualified, Scorer
from orchestrator.lab.scoring.connection import Connection

MAX_MODEL, CHUNK = 8 << 30, 1 << 20
"""Bytes of a model, and of a chunk in which it is received and written."""
MAX_BATCH = 4096
"""Largest number of rows in a batch, and of threads."""


class InferenceSettings(BaseModel):
    """How the submitted model is to be run."""

    model_config = ConfigDict(frozen=True, strict=True)
    batch_size: int = Field(gt=0, le=MAX_BATCH)
    autocast: Literal["float32", "bfloat16", "float16"] | None
    precision: Literal["highest", "high", "medium"] | None
    """Of torch's matrix products; None for a model without torch, which is called with numpy arrays."""
    threads: int = Field(gt=0, le=MAX_BATCH)


@dataclass(slots=True)
class TrainingServer:
    """The orchestrator's side of one run's protocol, and what the run has submitted so far."""

    connection: Connection
    scorer: Scorer
    threads: int
    """Threads for arithmetic in the run."""
    startup: float | None
    """CPU seconds that the baseline takes until its first batch; None if they are not known yet."""
    usual_evaluation: float | None
    """Seconds that an evaluation of the baseline takes; None if they are not known yet."""
    model: Path
    """File outside the sandbox for the model as submitted when the clock stops."""
    settings: InferenceSettings | None = None
    """None until the model is submitted."""
    objection: str = ""
    """Reason for a disqualification; empty if there is none."""
    wall: float = 0.0
    cpu: float = 0.0
    """Seconds that the training took."""

    async def serve(self, running: RunningProcess) -> None:
        """Answer until the model is handed over, or the run has ended. Raises OSError for our own files."""
        with suppress(ConnectionError), closing(self.connection):  # at its end the guardian reports how it ended
            try:
                event = await self._wait_for(running.monitor, "ready", "model")
                if event["event"] == "ready":
                    running.monitor.begin_training(running.count_cpu_seconds())
                    with (self.scorer.folder / "train.bin").open("rb") as file:
                        await self.connection.send({"event": "rows", "split": "train"}, file=file)
                    event = await self._wait_for(running.monitor, "model")
                await self._receive_model(event, running)
                running.seal()
                await self.connection.send({"event": "thanks"})
            except Disqualified as reason:
                self.objection = str(reason)

    async def _receive_model(self, event: dict[str, Any], running: RunningProcess) -> None:
        """Store the model, and stop the clock at its last byte. Raises Disqualified."""
        monitor = running.monitor
        if not 0 < (size := event["bytes"]) <= MAX_MODEL:
            raise Disqualified(f"its model has {size:,} bytes")
        with self.model.open("xb") as file:
            for first in range(0, size, CHUNK):
                chunk = await self.connection.read_exactly(min(CHUNK, size - first))
                await asyncio.to_thread(file.write, chunk)
        monitor.training_ended = monitor.read_clock()
        early = 0.0 if self.startup is None else max(0.0, monitor.startup - SLACK * self.startup)
        self.wall, self.cpu = monitor.train_seconds, running.count_cpu_seconds() - monitor.startup + early
        try:
            self.settings = InferenceSettings.model_validate(event)
        except ValidationError:
            raise Disqualified("it does not say how its model is to be run") from None
        self.objection = self.scorer.explain_overtime(self.wall, self.cpu, self.threads)

    def check_evaluation(self, wall: float, cpu: float) -> None:
        """Count as training what an evaluation takes beyond the usual: a model could go on training in it.

        `wall` and `cpu` are seconds. Raises Disqualified.
        """
        if self.usual_evaluation is None:
            return  # it is the baseline's own
        wall -= SLACK * self.usual_evaluation + EVALUATION_GRACE
        cpu -= SLACK * self.usual_evaluation * self.threads
        if why := self.scorer.explain_overtime(self.wall + max(0.0, wall), self.cpu + max(0.0, cpu), self.threads):
            raise Disqualified(f"with the evaluation of its model, {why}")

    async def _wait_for(self, monitor: RunMonitor, *names: str) -> dict[str, Any]:
        """Return the next of these events; that of a model has its size in bytes. Raises ConnectionError at the end."""
        while (event := await self.connection.receive()) is not None:
            name = event.get("event")
            monitor.take_report(event)
            if name in names and (name == "ready" or isinstance(event.get("bytes"), int)):
                return event
        raise ConnectionError("the run has ended")
