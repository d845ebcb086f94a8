"""Our side of the blind audit: a fresh process with the handed-over model is shown the past and asked what follows."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.lab.exam import Disqualified, Exam, Places
from orchestrator.lab.failures import Fault
from orchestrator.lab.gate import Delivery, Manner
from orchestrator.lab.guarded import Ending, MachineTrouble, Running, from_thread, guarded, in_thread
from orchestrator.lab.line import Line
from orchestrator.lab.sandbox import Command
from orchestrator.lab.watch import Watch
from prepare.atomic import replacing

MODULE = "prepare.audit"


class Auditor:
    """The blind process, started beside the training so that its imports are done when it is wanted; it serves once.

    Until it is heard it has seen nothing but `prepare`.
    """

    def __init__(self, command: Command, ours: Line, watch: Watch, lock: int) -> None:
        """Starts it; `lock` as for guarded."""
        self.line, self.watch = ours, watch
        self.interview: asyncio.Future[Interview] = asyncio.get_running_loop().create_future()
        self.process = asyncio.create_task(guarded(command, watch, lock, self._listen))

    async def hear(self, interview: "Interview") -> tuple[Fault | None, Ending]:
        """Hold the interview to its end. Raises MachineTrouble."""
        self.watch.started = self.watch.clock()
        if not self.interview.done():
            self.interview.set_result(interview)
        found = await self.process
        if not interview.began:
            words = self.watch.transcript.log.text.rpartition("\n")[2]
            raise MachineTrouble(f"the process that was to audit did not begin: {words or 'it said nothing'}")
        return found

    async def dismiss(self) -> None:
        """End it, wanted or not."""
        self.process.cancel()
        try:
            await asyncio.wait({self.process})
        finally:
            self.line.close()
        if not self.process.cancelled():
            self.process.exception()  # it was told already, or nobody wanted to know

    async def _listen(self, running: Running) -> None:
        interview = await self.interview
        interview.seal = partial(from_thread, running.seal, asyncio.get_running_loop())
        await in_thread(partial(interview.hold, self.line), self.line.hang_up)


@dataclass
class Interview:
    """One audit; `answers` is complete when `done`."""

    exam: Exam
    manner: Manner
    model: Path
    places: Places
    rng: np.random.Generator
    seal: Callable[[], None] = lambda: None
    """Called before validation text is shown."""
    answers: list[NDArray[np.float64]] = field(default_factory=list[NDArray[np.float64]])
    objection: str = ""
    began: bool = False
    """The process is there; from then on, what goes wrong is the model's fault."""
    done: bool = False

    def hold(self, line: Line) -> None:
        """Ask about every row, a batch at a time."""
        try:
            self.began = line.hear() == {"event": "ready"}
            if not self.began:
                return
            with self.model.open("rb") as file:
                line.say({"event": "model", "split": "model", **self._how()}, show=[file])
            if line.hear() != {"event": "loaded"}:
                return
            self.seal()
            count, batch = self.exam.shape[0], self.manner.batch_size
            for first in range(0, count, batch):
                self.answers.append(self._ask(line, first, min(first + batch, count)))
            self.done = True
            line.say({"event": "thanks"})
        except Disqualified as reason:
            self.objection = str(reason)
        except OSError:
            pass  # it has gone, which others notice, too
        finally:
            line.close()

    def _how(self) -> dict[str, object]:
        autocast = None if self.manner.dtype == "float32" else self.manner.dtype
        return {"autocast": autocast, "precision": self.manner.precision, "threads": self.manner.threads}

    def _ask(self, line: Line, first: int, last: int) -> NDArray[np.float64]:
        """What the model expects in each of these rows. Raises Disqualified, OSError."""
        x, at = self.exam.masked(first, last, self.places, self.rng), self.places.at[first:last]
        shape = {"rows": last - first, "length": x.shape[1]}
        line.say({"event": "rows", **shape}, data=[x.tobytes(), at.tobytes()])
        size = 4 * (last - first) * len(self.exam.lengths)
        match line.hear():
            case {"event": "logits", "bytes": int(given)} if given == size:
                data = line.take(size)
            case {"event": "logits"}:
                raise Disqualified("its logits are not for the vocabulary")
            case _:
                raise ConnectionError
        if len(data) != size:
            raise ConnectionError
        return self.exam.blind(np.frombuffer(data, dtype=np.float32).reshape(last - first, -1), first, self.places)


def drawn(exam: Exam, delivery: Delivery, folder: Path, against: int) -> tuple[Places, np.random.Generator]:
    """Secret places, drawn anew for each audit; in `folder` are earlier claims, of that experiment perhaps."""
    rng = np.random.default_rng()
    assert delivery.claims is not None
    return exam.places(delivery.claims, _remembered(folder, against, exam.shape), rng), rng


def remember(delivery: Delivery, folder: Path, experiment: int, against: int) -> None:
    """Keep claims that proved true, since later ones may have to be compared with them; drop those of the overcome."""
    assert delivery.claims is not None
    folder.mkdir(exist_ok=True)
    with replacing(_place(folder, experiment)) as part, part.open("wb") as file:
        np.save(file, delivery.claims)
    for path in folder.glob("claims-*.npy"):
        if int(path.stem.removeprefix("claims-")) < min(against, experiment):
            path.unlink(missing_ok=True)


def _remembered(folder: Path, experiment: int, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    try:
        claims: NDArray[np.float32] = np.load(_place(folder, experiment), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # it never was, or is damaged: places are drawn evenly then
    return claims if claims.shape == shape else None


def _place(folder: Path, experiment: int) -> Path:
    return folder / f"claims-{experiment}.npy"
