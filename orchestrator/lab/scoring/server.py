"""What a run says of itself on its own line to us: JSON, one object a line, on the descriptor $NIGHTSHIFT_FD.

What it prints is for people; only what is said here starts the clock and counts as a score.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from orchestrator.lab.scoring.claims import Disqualified, Nats, Scorer
from orchestrator.lab.scoring.connection import Connection

MAX_REPORT_LINE = 4_096
"""Bytes of a line; longer ones are ignored."""


class SelfReport:
    """`{"event": "ready"}` starts the clock, `{"event": "score", "val_bpb": 1.23}` stops it; the first of each counts.

    The score is the code's own claim, for now.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.ready_at: float | None = None
        self.scored_at: float | None = None
        self.val_bpb: float | None = None
        """As it was said: perhaps not even finite."""
        self.open = b""

    def feed(self, data: bytes) -> None:
        """Take in what was said."""
        *lines, rest = (self.open + data).split(b"\n")
        self.open = rest[: MAX_REPORT_LINE + 1]
        for line in lines:
            if len(line) <= MAX_REPORT_LINE:
                self._hear(line)

    @property
    def train_seconds(self) -> float:
        """Seconds between ready and score by our own clock; until now while there is no score."""
        if self.ready_at is None:
            return 0.0
        return (self.scored_at if self.scored_at is not None else self.clock()) - self.ready_at

    @property
    def score(self) -> float | None:
        """A number that can be a score: finite and positive."""
        return self.val_bpb if self.val_bpb is not None and isfinite(self.val_bpb) and self.val_bpb > 0 else None

    def _hear(self, line: bytes) -> None:
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            return
        match said:
            case {"event": "ready"} if self.ready_at is None:
                self.ready_at = self.clock()
            case {"event": "score", "val_bpb": float() | int() as value} if self.scored_at is None:
                self.scored_at, self.val_bpb = self.clock(), _to_float(value)
            case _:
                pass


def _to_float(value: float) -> float:
    """Also of an integer with a thousand digits."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")


LARGEST_MODEL = 8 << 30
BATCHES = 4096
PRECISIONS = ("highest", "high", "medium")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """How a model was run: hints for the audit, of no other consequence."""

    batch_size: int
    dtype: str
    precision: str
    threads: int


@dataclass
class Submission:
    """What a run has handed over."""

    model: Path
    """A file outside of the sandbox: the model as it was when the clock stopped."""
    settings: InferenceSettings | None = None
    claims: Nats | None = None
    val_bpb: float = 0.0
    """What the claims add up to."""
    objection: str = ""
    """Why it is disqualified."""
    cpu_seconds: float = 0.0
    """From ready to handed over."""
    evaluation: float = 0.0
    """Seconds from the first validation row to the last claim."""
    confirmed: float | None = None
    """val_bpb on the confirmation text, if it was asked for it: not audited, since it can only lose by it."""


@dataclass(frozen=True, slots=True)
class EvaluationServer:
    """The keeper of one run's line."""

    line: Connection
    exam: Scorer
    said: SelfReport
    delivery: Submission
    cpu: Callable[[], float]
    """CPU seconds of the run so far."""
    seal: Callable[[], None]
    """Called before validation text is shown: what is printed from then on may have it."""
    again: Callable[[float], Scorer | None] = lambda _val_bpb: None
    """What else a model with that score is to be examined on."""

    def keep(self) -> None:
        """Listen until the other end falls silent."""
        began = 0.0
        try:
            while (event := self.line.hear()) is not None:
                match event:
                    case {"event": "ready"} if self.said.ready_at is None:
                        with self.exam.training.open("rb") as file:
                            began = self.cpu()
                            self.said.ready_at = self.said.clock()
                            self.line.say({"event": "rows", "split": "train"}, show=[file])
                    case {"event": "model", "bytes": int(size)} if self.delivery.settings is None:
                        self._receive(size, event)
                        self.delivery.cpu_seconds = self.cpu() - began
                        self.seal()
                        self._show(self.exam)
                    case {"event": "claims", "bytes": int(size)} if self.delivery.settings:
                        self._believe(size)
                        if more := self.again(self.delivery.val_bpb):
                            self._confirm(more)
                        self.line.say({"event": "thanks"})
                        return
                    case _:
                        pass
        except Disqualified as reason:
            self.delivery.objection = str(reason)
        except OSError:
            pass  # it has gone, which others notice, too
        finally:
            self.line.close()

    def _receive(self, size: int, header: dict[str, object]) -> None:
        """Store the model; the clock stops with its last byte. Raises Disqualified."""
        if not 0 < size <= LARGEST_MODEL:
            raise Disqualified(f"its model has {size:,} bytes")
        with self.delivery.model.open("xb") as file:
            whole = self.line.save(size, file)
        if not whole:
            raise ConnectionError
        self.said.scored_at = self.said.clock()
        self.delivery.settings = _read_settings(header)

    def _show(self, exam: Scorer) -> None:
        with exam.shard.open("rb") as file:
            self.line.say({"event": "rows", "split": exam.split}, show=[file])

    def _believe(self, size: int) -> None:
        """Take the claims, for now. Raises Disqualified."""
        self.delivery.claims, self.delivery.val_bpb = self._claims(self.exam, size)
        self.delivery.evaluation = self.said.clock() - (self.said.scored_at or 0.0)
        self.said.val_bpb = self.delivery.val_bpb

    def _confirm(self, exam: Scorer) -> None:
        """Ask for claims on other text. Raises Disqualified."""
        self._show(exam)
        match self.line.hear():
            case {"event": "claims", "bytes": int(size)}:
                _, self.delivery.confirmed = self._claims(exam, size)
            case _:
                pass  # it was not confirmed

    def _claims(self, exam: Scorer, size: int) -> tuple[Nats, float]:
        """The claims, and the bits per byte that they add up to. Raises Disqualified."""
        if size != exam.claim_bytes:
            raise Disqualified(f"it claimed {size:,} bytes, and {exam.claim_bytes:,} were to be claimed")
        claims = exam.claims(self.line.take(size))
        if (bpb := exam.bpb(claims)) <= 0:
            raise Disqualified("it claims that nothing ever surprises it")
        return claims, bpb


def _read_settings(header: dict[str, object]) -> InferenceSettings:
    """Raises Disqualified where it makes no sense."""
    match header:
        case {
            "batch_size": int(batch_size),
            "autocast": str() | None as autocast,
            "precision": str(precision),
            "threads": int(threads),
        } if (
            0 < batch_size <= BATCHES
            and 0 < threads <= BATCHES
            and precision in PRECISIONS
            and (autocast is None or autocast in DTYPES)
        ):
            return InferenceSettings(batch_size, autocast or "float32", precision, threads)
        case _:
            raise Disqualified("it does not say how its model is to be run")
