"""Our side of the blind audit: a fresh process with the handed-over model is shown the past and asked what follows."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.lab.exam import Disqualified, Exam, Places
from orchestrator.lab.gate import Delivery, Manner
from orchestrator.lab.line import Line

MODULE = "prepare.audit"


@dataclass
class Interview:
    """One audit; `answers` is complete when `done`."""

    line: Line
    exam: Exam
    manner: Manner
    model: Path
    places: Places
    rng: np.random.Generator
    seal: Callable[[], None] = lambda: None
    """Called before validation text is shown."""
    answers: list[NDArray[np.float64]] = field(default_factory=list[NDArray[np.float64]])
    objection: str = ""
    done: bool = False

    def hold(self) -> None:
        """Ask about every row, a batch at a time."""
        try:
            with self.model.open("rb") as file:
                self.line.say({"event": "model", "split": "model", **self._how()}, show=[file])
            if self.line.hear() != {"event": "loaded"}:
                return
            self.seal()
            count, batch = self.exam.shape[0], self.manner.batch_size
            for first in range(0, count, batch):
                self.answers.append(self._ask(first, min(first + batch, count)))
            self.done = True
            self.line.say({"event": "thanks"})
        except Disqualified as reason:
            self.objection = str(reason)
        except OSError:
            pass  # it has gone, which others notice, too
        finally:
            self.line.close()

    def _how(self) -> dict[str, object]:
        autocast = None if self.manner.dtype == "float32" else self.manner.dtype
        return {"autocast": autocast, "precision": self.manner.precision, "threads": self.manner.threads}

    def _ask(self, first: int, last: int) -> NDArray[np.float64]:
        """What the model expects in each of these rows. Raises Disqualified, OSError."""
        x, at = self.exam.masked(first, last, self.places, self.rng), self.places.at[first:last]
        shape = {"rows": last - first, "length": x.shape[1]}
        self.line.say({"event": "rows", **shape}, data=[x.tobytes(), at.tobytes()])
        size = 4 * (last - first) * len(self.exam.lengths)
        match self.line.hear():
            case {"event": "logits", "bytes": int(given)} if given == size:
                data = self.line.take(size)
            case {"event": "logits"}:
                raise Disqualified("its logits are not for the vocabulary")
            case _:
                raise ConnectionError
        if len(data) != size:
            raise ConnectionError
        return self.exam.blind(np.frombuffer(data, dtype=np.float32).reshape(last - first, -1), first, self.places)


def drawn(exam: Exam, delivery: Delivery, reference: Path) -> tuple[Places, np.random.Generator]:
    """Secret places, drawn anew for each audit. `reference` is a file with earlier claims, if there is one."""
    rng = np.random.default_rng()
    assert delivery.claims is not None
    return exam.places(delivery.claims, _reference(reference, exam.shape), rng), rng


def remember(delivery: Delivery, reference: Path) -> None:
    """The first claims that proved true are what later ones are compared with."""
    if not reference.exists() and delivery.claims is not None:
        np.save(reference, delivery.claims)


def _reference(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    if not path.exists():
        return None
    claims: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    return claims if claims.shape == shape else None
