"""What a run gets, and when: training rows once it is ready, validation rows once its model is out of its hands.

In between runs our own clock. Whatever the run says of time or score is for people.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.lab.exam import Disqualified, Exam, Nats
from orchestrator.lab.line import Line
from orchestrator.lab.scoring import Statement

LARGEST_MODEL = 8 << 30
BATCHES = 4096
PRECISIONS = ("highest", "high", "medium")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Manner:
    """How a model was run: hints for the audit, of no other consequence."""

    batch_size: int
    dtype: str
    precision: str
    threads: int


@dataclass
class Delivery:
    """What a run has handed over."""

    model: Path
    """A file outside of the sandbox: the model as it was when the clock stopped."""
    manner: Manner | None = None
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
class Gate:
    """The keeper of one run's line."""

    line: Line
    exam: Exam
    said: Statement
    delivery: Delivery
    cpu: Callable[[], float]
    """CPU seconds of the run so far."""
    seal: Callable[[], None]
    """Called before validation text is shown: what is printed from then on may have it."""
    again: Callable[[float], Exam | None] = lambda _val_bpb: None
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
                    case {"event": "model", "bytes": int(size)} if self.delivery.manner is None:
                        self._receive(size, event)
                        self.delivery.cpu_seconds = self.cpu() - began
                        self.seal()
                        self._show(self.exam)
                    case {"event": "claims", "bytes": int(size)} if self.delivery.manner:
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
        self.delivery.manner = _manner(header)

    def _show(self, exam: Exam) -> None:
        with exam.shard.open("rb") as file:
            self.line.say({"event": "rows", "split": exam.split}, show=[file])

    def _believe(self, size: int) -> None:
        """Take the claims, for now. Raises Disqualified."""
        self.delivery.claims, self.delivery.val_bpb = self._claims(self.exam, size)
        self.delivery.evaluation = self.said.clock() - (self.said.scored_at or 0.0)
        self.said.val_bpb = self.delivery.val_bpb

    def _confirm(self, exam: Exam) -> None:
        """Ask for claims on other text. Raises Disqualified."""
        self._show(exam)
        match self.line.hear():
            case {"event": "claims", "bytes": int(size)}:
                _, self.delivery.confirmed = self._claims(exam, size)
            case _:
                pass  # it was not confirmed

    def _claims(self, exam: Exam, size: int) -> tuple[Nats, float]:
        """The claims, and the bits per byte that they add up to. Raises Disqualified."""
        if size != exam.claim_bytes:
            raise Disqualified(f"it claimed {size:,} bytes, and {exam.claim_bytes:,} were to be claimed")
        claims = exam.claims(self.line.take(size))
        if (bpb := exam.bpb(claims)) <= 0:
            raise Disqualified("it claims that nothing ever surprises it")
        return claims, bpb


def _manner(header: dict[str, object]) -> Manner:
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
            return Manner(batch_size, autocast or "float32", precision, threads)
        case _:
            raise Disqualified("it does not say how its model is to be run")
