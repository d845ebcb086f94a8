"""Serve one run over its socket, $NIGHTSHIFT_FD: hand out each shard when it is due, receive the model and claims.

Only these messages start and stop the clock and make a score; what a run prints is for people.
"""

import asyncio
import math
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.core.events import EvaluationPlan
from orchestrator.lab.process import RunningProcess
from orchestrator.lab.scoring.claims import Disqualified, Nats, Scorer
from orchestrator.lab.scoring.connection import Connection

MAX_MODEL, CHUNK = 8 << 30, 1 << 20
"""Bytes of a model, and of a chunk in which it is received and written."""
MAX_BATCH = 4096
"""Largest number of rows in a batch, and of threads."""


class InferenceSettings(BaseModel):
    """How the run evaluated its model: hints for the audit, which affect nothing else."""

    model_config = ConfigDict(frozen=True, strict=True)
    batch_size: int = Field(gt=0, le=MAX_BATCH)
    autocast: Literal["float32", "bfloat16", "float16"] | None
    precision: Literal["highest", "high", "medium"]
    threads: int = Field(gt=0, le=MAX_BATCH)


@dataclass(slots=True)
class EvaluationServer:
    """The orchestrator's side of one run's protocol, and what the run has submitted so far."""

    connection: Connection
    scorer: Scorer
    plan: EvaluationPlan
    threads: int
    """Threads for arithmetic in the run."""
    model: Path
    """File outside the sandbox for the model as submitted when the clock stops."""
    settings: InferenceSettings | None = None
    """None until the model is submitted."""
    claims: Nats | None = None
    val_bpb: float | None = None
    """Bits per byte according to the claims."""
    objection: str = ""
    """Reason for a disqualification; empty if there is none."""
    evaluation: float = 0.0
    """Seconds from the first validation row to the last claim."""
    confirmed: float | None = None
    """val_bpb on the held-out text, if asked for; not audited, since a run can only lose by it."""

    async def serve(self, running: RunningProcess) -> None:
        """Answer until the run has ended, made its claims, or is disqualified. Raises OSError for our own files."""
        with suppress(ConnectionError), closing(self.connection):  # at its end the guardian reports how it ended
            try:
                await self._receive_model(running)
                running.seal()
                await self._send_rows(self.scorer.split)
                await self._receive_claims(running)
                await self.connection.send({"event": "thanks"})
            except Disqualified as reason:
                self.objection = str(reason)

    async def _receive_model(self, running: RunningProcess) -> None:
        """Hand out the training rows, store the model, and stop the clock at its last byte. Raises Disqualified."""
        monitor, cpu_before = running.monitor, 0.0
        event = await self._wait_for("ready", "model")
        if event["event"] == "ready":
            cpu_before, monitor.training_began = running.count_cpu_seconds(), monitor.read_clock()
            await self._send_rows("train")
            event = await self._wait_for("model")
        if not 0 < (size := event["bytes"]) <= MAX_MODEL:
            raise Disqualified(f"its model has {size:,} bytes")
        with self.model.open("xb") as file:
            for first in range(0, size, CHUNK):
                chunk = await self.connection.read_exactly(min(CHUNK, size - first))
                await asyncio.to_thread(file.write, chunk)
        monitor.training_ended = monitor.read_clock()
        cpu_seconds = running.count_cpu_seconds() - cpu_before
        try:
            self.settings = InferenceSettings.model_validate(event)
        except ValidationError:
            raise Disqualified("it does not say how its model is to be run") from None
        self.objection = self.scorer.explain_overtime(monitor.train_seconds, cpu_seconds, self.threads)

    async def _receive_claims(self, running: RunningProcess) -> None:
        """Receive the claims and, where the plan asks for it, those on held-out text. Raises Disqualified."""
        monitor, heldout = running.monitor, self.scorer.heldout
        event = await self._wait_for("claims")
        self.claims, self.val_bpb = await self._read_claims(self.scorer, event["bytes"])
        self.evaluation = monitor.read_clock() - (monitor.training_ended or 0.0)
        if heldout and self.plan.confirmed and self.plan.needs_audit(self.val_bpb):
            await self._send_rows(heldout.split)
            event = await self._wait_for("claims")
            self.confirmed = (await self._read_claims(heldout, event["bytes"]))[1]

    async def _read_claims(self, scorer: Scorer, size: int) -> tuple[Nats, float]:
        if size != (due := 4 * math.prod(scorer.shape)):
            raise Disqualified(f"it claimed {size:,} bytes instead of {due:,}")
        claims = scorer.parse_claims(await self.connection.read_exactly(size))
        if (bpb := scorer.compute_bpb(claims)) <= 0:
            raise Disqualified("it claims a loss of zero")
        return claims, bpb

    async def _send_rows(self, split: str) -> None:
        with (self.scorer.folder / f"{split}.bin").open("rb") as file:
            await self.connection.send({"event": "rows", "split": split}, file=file)

    async def _wait_for(self, *names: str) -> dict[str, Any]:
        """Return the next of these events, all but `ready` with a size in bytes. Raises ConnectionError at the end."""
        while (event := await self.connection.receive()) is not None:
            name = event.get("event")
            if name in names and (name == "ready" or isinstance(event.get("bytes"), int)):
                return event
        raise ConnectionError("the run has ended")
