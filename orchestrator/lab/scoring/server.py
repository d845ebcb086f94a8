"""Serves one run over its socket, $NIGHTSHIFT_FD: hands out shards when they are due, receives model and claims.

Only what happens here starts and stops the clock and makes a score; what a run prints is for people.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.lab.monitor import TrainingClock
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

    @property
    def dtype(self) -> str:
        return self.autocast or "float32"


@dataclass
class Submission:
    """A run's model and its claims."""

    model: Path
    """File outside the sandbox: the model as it was when the clock stopped."""
    settings: InferenceSettings | None = None
    """None until the model is handed over."""
    claims: Nats | None = None
    val_bpb: float | None = None
    """Bits per byte that the claims add up to; may be infinite."""
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
    clock: TrainingClock
    submission: Submission
    count_cpu_seconds: Callable[[], float]
    """Returns the CPU seconds of the run so far."""
    seal: Callable[[], None]
    """Called before validation text is sent: output from then on may contain it."""
    is_heldout_due: Callable[[float], bool] = lambda _val_bpb: False
    """Tells whether a model with that val_bpb must make claims on held-out text, too."""

    def serve(self) -> None:
        """Answer until the other end closes, makes its claims, or is disqualified."""
        try:
            while (event := self.connection.receive()) is not None:
                if self._answer(event):
                    return
        except Disqualified as reason:
            self.submission.objection = str(reason)
        except OSError:
            pass  # the run has ended, which its guardian reports
        finally:
            self.connection.close()

    def _answer(self, event: dict[str, object]) -> bool:
        """Answer one event; return whether it was the last. Events that are not due are ignored."""
        match event:
            case {"event": "ready"} if self.clock.started_at is None:
                with self.scorer.train_file.open("rb") as file:
                    self.submission.cpu_before = self.count_cpu_seconds()
                    self.clock.start()
                    self.connection.send({"event": "rows", "split": "train"}, files=[file])
            case {"event": "model", "bytes": int(size)} if self.submission.settings is None:
                self._receive_model(size, event)
                self.submission.cpu_seconds = self.count_cpu_seconds() - self.submission.cpu_before
                self.seal()
                self._send_rows(self.scorer)
            case {"event": "claims", "bytes": int(size)} if self.submission.settings:
                self._accept_claims(size)
                self.connection.send({"event": "thanks"})
                return True
            case _:
                pass
        return False

    def _receive_model(self, size: int, header: dict[str, object]) -> None:
        """Store the model; the clock stops with its last byte. Raises Disqualified."""
        if not 0 < size <= MAX_MODEL:
            raise Disqualified(f"its model has {size:,} bytes")
        with self.submission.model.open("xb") as file:
            self.connection.copy_to(file, size)
        self.clock.stop()
        try:
            self.submission.settings = InferenceSettings.model_validate(header)
        except ValidationError:
            raise Disqualified("it does not say how its model is to be run") from None

    def _send_rows(self, scorer: Scorer) -> None:
        with scorer.rows_file.open("rb") as file:
            self.connection.send({"event": "rows", "split": scorer.split}, files=[file])

    def _accept_claims(self, size: int) -> None:
        """Receive the claims and, where they matter, those on held-out text. Raises Disqualified."""
        claims, val_bpb = self._receive_claims(self.scorer, size)
        self.submission.claims, self.submission.val_bpb = claims, val_bpb
        self.submission.evaluation = self.clock.now() - (self.clock.stopped_at or 0.0)
        if self.scorer.heldout and self.is_heldout_due(val_bpb):
            self.submission.confirmed = self._request_heldout(self.scorer.heldout)

    def _request_heldout(self, scorer: Scorer) -> float | None:
        """Ask for claims on held-out text; return their bits per byte, None where none come. Raises Disqualified."""
        self._send_rows(scorer)
        match self.connection.receive():
            case {"event": "claims", "bytes": int(size)}:
                return self._receive_claims(scorer, size)[1]
            case _:
                return None

    def _receive_claims(self, scorer: Scorer, size: int) -> tuple[Nats, float]:
        """Return the claims and the bits per byte that they add up to. Raises Disqualified."""
        if size != scorer.claim_bytes:
            raise Disqualified(f"it claimed {size:,} bytes, and {scorer.claim_bytes:,} were to be claimed")
        claims = scorer.parse_claims(self.connection.read_exactly(size))
        if (bpb := scorer.compute_bpb(claims)) <= 0:
            raise Disqualified("it claims that nothing ever surprises it")
        return claims, bpb
