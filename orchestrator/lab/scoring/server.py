"""Serves one run over its socket, $NIGHTSHIFT_FD: hands out shards when they are due, receives model and claims.

Only what happens here starts and stops the clock and makes a score; what a run prints is for people.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.core.events import EvaluationPlan
from orchestrator.lab.process import RunningProcess
from orchestrator.lab.scoring.claims import Disqualified, Nats, Scorer
from orchestrator.lab.scoring.connection import Connection

MAX_MODEL = 8 << 30
"""Bytes of a model."""
MAX_BATCH = 4096
"""Rows of a batch, and threads."""


class InferenceSettings(BaseModel):
    """How a model was run: hints for the audit, of no other consequence."""

    model_config = ConfigDict(frozen=True, strict=True)
    batch_size: int = Field(gt=0, le=MAX_BATCH)
    autocast: Literal["float32", "bfloat16", "float16"] | None
    precision: Literal["highest", "high", "medium"]
    threads: int = Field(gt=0, le=MAX_BATCH)


@dataclass
class Submission:
    """A run's model and its claims."""

    model: Path
    """File outside the sandbox: the model as it was when the clock stopped."""
    settings: InferenceSettings | None = None
    """None until the model is handed over."""
    claims: Nats | None = None
    val_bpb: float | None = None
    """Bits per byte that the claims add up to."""
    objection: str = ""
    """Reason for a disqualification."""
    cpu_before: float = 0.0
    """CPU seconds of the run when training began."""
    cpu_seconds: float = 0.0
    """CPU seconds of the training."""
    evaluation: float = 0.0
    """Seconds from the first validation row to the last claim."""
    confirmed: float | None = None
    """val_bpb on the held-out text, where it was asked for; not audited, since a run can only lose by it."""


@dataclass(frozen=True, slots=True)
class EvaluationServer:
    """The orchestrator's side of one run's protocol."""

    connection: Connection
    scorer: Scorer
    running: RunningProcess
    submission: Submission
    plan: EvaluationPlan

    async def serve(self) -> None:
        """Answer until the other end closes, makes its claims, or is disqualified. Raises OSError of our own files."""
        try:
            while (event := await self.connection.receive()) is not None:
                if await self._answer(event):
                    return
        except Disqualified as reason:
            self.submission.objection = str(reason)
        except ConnectionError:
            pass  # the run has ended, which its guardian reports
        finally:
            self.connection.close()

    async def _answer(self, event: dict[str, object]) -> bool:
        """Answer one event; return whether it was the last. Events that are not due are ignored."""
        clock = self.running.monitor.clock
        match event:
            case {"event": "ready"} if clock.started_at is None:
                self.submission.cpu_before = self.running.count_cpu_seconds()
                clock.start()
                await self._send_rows("train", self.scorer.train_file)
            case {"event": "model", "bytes": int(size)} if self.submission.settings is None:
                await self._receive_model(size, event)
                self.submission.cpu_seconds = self.running.count_cpu_seconds() - self.submission.cpu_before
                await self.running.seal()
                await self._send_rows(self.scorer.split, self.scorer.rows_file)
            case {"event": "claims", "bytes": int(size)} if self.submission.settings:
                await self._accept_claims(size)
                await self.connection.send({"event": "thanks"})
                return True
            case _:
                pass
        return False

    async def _receive_model(self, size: int, header: dict[str, object]) -> None:
        """Store the model; the clock stops with its last byte. Raises Disqualified."""
        if not 0 < size <= MAX_MODEL:
            raise Disqualified(f"its model has {size:,} bytes")
        with self.submission.model.open("xb") as file:
            await self.connection.copy_to(file, size)
        self.running.monitor.clock.stop()
        try:
            self.submission.settings = InferenceSettings.model_validate(header)
        except ValidationError:
            raise Disqualified("it does not say how its model is to be run") from None

    async def _send_rows(self, split: str, shard: Path) -> None:
        with shard.open("rb") as file:
            await self.connection.send({"event": "rows", "split": split}, files=[file])

    async def _accept_claims(self, size: int) -> None:
        """Receive the claims and, where they matter, those on held-out text. Raises Disqualified."""
        clock, heldout = self.running.monitor.clock, self.scorer.heldout
        claims, val_bpb = await self._receive_claims(self.scorer, size)
        self.submission.claims, self.submission.val_bpb = claims, val_bpb
        self.submission.evaluation = clock.now() - (clock.stopped_at or 0.0)
        if heldout and self.plan.confirmed and self.plan.needs_audit(val_bpb):
            await self._send_rows(heldout.split, heldout.rows_file)
            match await self.connection.receive():
                case {"event": "claims", "bytes": int(size)}:
                    self.submission.confirmed = (await self._receive_claims(heldout, size))[1]
                case _:
                    pass

    async def _receive_claims(self, scorer: Scorer, size: int) -> tuple[Nats, float]:
        if size != scorer.claim_bytes:
            raise Disqualified(f"it claimed {size:,} bytes, and {scorer.claim_bytes:,} were to be claimed")
        claims = scorer.parse_claims(await self.connection.read_exactly(size))
        if (bpb := scorer.compute_bpb(claims)) <= 0:
            raise Disqualified("it claims that nothing ever surprises it")
        return claims, bpb
