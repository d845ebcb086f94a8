"""Our side of the blind audit: a fresh process with the handed-over model is shown the past and asked what follows."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.lab.failures import Fault
from orchestrator.lab.monitor import RunMonitor
from orchestrator.lab.process import Ending, MachineError, RunningProcess, call_from_thread, run_guarded, run_in_thread
from orchestrator.lab.sandbox.base import Command
from orchestrator.lab.scoring.claims import AuditPositions, Disqualified, Scorer
from orchestrator.lab.scoring.connection import Connection
from orchestrator.lab.scoring.server import InferenceSettings, Submission
from prepare.atomic import open_replacement

MODULE = "prepare.audit"


class Auditor:
    """The blind process, started beside the training so that its imports are done when it is wanted; it serves once.

    Until it is heard it has seen nothing but `prepare`.
    """

    def __init__(self, command: Command, ours: Connection, watch: RunMonitor, lock: int) -> None:
        """Starts it; `lock` as for guarded."""
        self.line, self.watch = ours, watch
        self.interview: asyncio.Future[AuditSession] = asyncio.get_running_loop().create_future()
        self.process = asyncio.create_task(run_guarded(command, watch, lock, self._listen))

    async def hear(self, interview: "AuditSession") -> tuple[Fault | None, Ending]:
        """Hold the interview to its end. Raises MachineTrouble."""
        self.watch.started = self.watch.clock()
        if not self.interview.done():
            self.interview.set_result(interview)
        found = await self.process
        if not interview.began:
            words = self.watch.transcript.log.text.rpartition("\n")[2]
            raise MachineError(f"the process that was to audit did not begin: {words or 'it said nothing'}")
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

    async def _listen(self, running: RunningProcess) -> None:
        interview = await self.interview
        interview.seal = partial(call_from_thread, running.seal, asyncio.get_running_loop())
        await run_in_thread(partial(interview.hold, self.line), self.line.hang_up)


@dataclass
class AuditSession:
    """One audit; `answers` is complete when `done`."""

    exam: Scorer
    settings: InferenceSettings
    model: Path
    places: AuditPositions
    rng: np.random.Generator
    seal: Callable[[], None] = lambda: None
    """Called before validation text is shown."""
    answers: list[NDArray[np.float64]] = field(default_factory=list[NDArray[np.float64]])
    objection: str = ""
    began: bool = False
    """The process is there; from then on, what goes wrong is the model's fault."""
    done: bool = False

    def hold(self, line: Connection) -> None:
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
            count, batch = self.exam.shape[0], self.settings.batch_size
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
        autocast = None if self.settings.dtype == "float32" else self.settings.dtype
        return {"autocast": autocast, "precision": self.settings.precision, "threads": self.settings.threads}

    def _ask(self, line: Connection, first: int, last: int) -> NDArray[np.float64]:
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


def draw_positions(
    exam: Scorer, delivery: Submission, folder: Path, against: int
) -> tuple[AuditPositions, np.random.Generator]:
    """Secret places, drawn anew for each audit; in `folder` are earlier claims, of that experiment perhaps."""
    rng = np.random.default_rng()
    assert delivery.claims is not None
    return exam.places(delivery.claims, _load_claims(folder, against, exam.shape), rng), rng


def store_claims(delivery: Submission, folder: Path, experiment: int, against: int) -> None:
    """Keep claims that proved true, since later ones may have to be compared with them; drop those of the overcome."""
    assert delivery.claims is not None
    folder.mkdir(exist_ok=True)
    with open_replacement(_get_claims_path(folder, experiment)) as part, part.open("wb") as file:
        np.save(file, delivery.claims)
    for path in folder.glob("claims-*.npy"):
        if int(path.stem.removeprefix("claims-")) < min(against, experiment):
            path.unlink(missing_ok=True)


def _load_claims(folder: Path, experiment: int, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    try:
        claims: NDArray[np.float32] = np.load(_get_claims_path(folder, experiment), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # it never was, or is damaged: places are drawn evenly then
    return claims if claims.shape == shape else None


def _get_claims_path(folder: Path, experiment: int) -> Path:
    return folder / f"claims-{experiment}.npy"
