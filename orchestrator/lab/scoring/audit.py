"""Our side of the blind audit: a fresh process with the handed-over model sees only the past and says what follows."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.lab.failures import Fault, classify_failure
from orchestrator.lab.monitor import RunMonitor
from orchestrator.lab.process import Ending, MachineError, RunningProcess, run_guarded, run_in_thread
from orchestrator.lab.sandbox.base import Command
from orchestrator.lab.scoring.claims import AuditPositions, CorrectedScore, Disqualified, Nats, Scorer, get_tolerance
from orchestrator.lab.scoring.connection import Connection
from orchestrator.lab.scoring.server import InferenceSettings, Submission
from prepare.atomic import open_replacement

MODULE = "prepare.audit"


class ClaimsArchive:
    """Claims that proved true, since later ones may have to be compared with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, experiment: int, shape: tuple[int, int]) -> Nats | None:
        """Return an experiment's claims; None where there are none of that shape."""
        try:
            claims: Nats = np.load(self._get_path(experiment), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return claims if claims.shape == shape else None

    def save(self, experiment: int, claims: Nats, incumbent: int) -> None:
        """Save an experiment's claims; drop those from before the incumbent's."""
        self.folder.mkdir(exist_ok=True)
        with open_replacement(self._get_path(experiment)) as part, part.open("wb") as file:
            np.save(file, claims)
        for path in self.folder.glob("claims-*.npy"):
            if int(path.stem.removeprefix("claims-")) < min(incumbent, experiment):
                path.unlink(missing_ok=True)

    def _get_path(self, experiment: int) -> Path:
        return self.folder / f"claims-{experiment}.npy"


@dataclass
class AuditSession:
    """The questions to one model; `answers` is complete when `done`."""

    scorer: Scorer
    settings: InferenceSettings
    model: Path
    positions: AuditPositions
    rng: np.random.Generator
    answers: list[NDArray[np.float64]] = field(default_factory=list[NDArray[np.float64]])
    objection: str = ""
    began: bool = False
    """The process has started; what goes wrong from then on is the model's fault."""
    done: bool = False

    def hold(self, connection: Connection, seal: Callable[[], None]) -> None:
        """Ask about every row, a batch at a time; `seal` is called before validation text is sent."""
        try:
            self.began = connection.receive() == {"event": "ready"}
            if self.began and self._send_model(connection):
                seal()
                self._ask_all(connection)
        except Disqualified as reason:
            self.objection = str(reason)
        except OSError:
            pass  # the process has ended, which its guardian reports
        finally:
            connection.close()

    def _send_model(self, connection: Connection) -> bool:
        """Send the model; return whether it could be loaded. Raises OSError."""
        autocast = None if self.settings.dtype == "float32" else self.settings.dtype
        how = {"autocast": autocast, "precision": self.settings.precision, "threads": self.settings.threads}
        with self.model.open("rb") as file:
            connection.send({"event": "model", "split": "model", **how}, files=[file])
        return connection.receive() == {"event": "loaded"}

    def _ask_all(self, connection: Connection) -> None:
        """Ask about every row. Raises Disqualified, OSError."""
        count, batch = self.scorer.shape[0], self.settings.batch_size
        for first in range(0, count, batch):
            self.answers.append(self._ask(connection, first, min(first + batch, count)))
        self.done = True
        connection.send({"event": "thanks"})

    def _ask(self, connection: Connection, first: int, last: int) -> NDArray[np.float64]:
        """Return the model's −log p in each of these rows. Raises Disqualified, OSError."""
        x, at = self.scorer.mask(first, last, self.positions, self.rng), self.positions.at[first:last]
        connection.send({"event": "rows", "rows": last - first, "length": x.shape[1]}, data=[x.tobytes(), at.tobytes()])
        size = 4 * (last - first) * len(self.scorer.lengths)
        match connection.receive():
            case {"event": "logits", "bytes": int(given)} if given == size:
                logits = np.frombuffer(connection.read_exactly(size), dtype=np.float32).reshape(last - first, -1)
                return self.scorer.score_blind(logits, first, self.positions)
            case {"event": "logits"}:
                raise Disqualified("its logits are not for the vocabulary")
            case _:
                raise ConnectionError("no answer")


class Auditor:
    """The blind process. It starts beside the training, so that its imports are done when it is needed; it serves once.

    Until then it has seen nothing but `prepare`.
    """

    def __init__(self, command: Command, connection: Connection, monitor: RunMonitor, lock: int) -> None:
        """Start it; `lock` as for run_guarded."""
        self.connection, self.monitor = connection, monitor
        self.session: asyncio.Future[AuditSession] = asyncio.get_running_loop().create_future()
        self.process = asyncio.create_task(run_guarded(command, monitor, lock, self._listen))

    async def examine(self, session: AuditSession) -> Fault | None:
        """Hold the session; return why it gave no answers. Raises MachineError."""
        self.monitor.launched = self.monitor.now()
        if not self.session.done():
            self.session.set_result(session)
        reason, ending = await self.process
        if not session.began:
            words = self.monitor.transcript.log.text.rpartition("\n")[2]
            raise MachineError(f"the auditing process did not start: {words or 'it printed nothing'}")
        return reason if isinstance(reason, Fault) else self._explain_silence(session, ending)

    async def close(self) -> None:
        """End the process, needed or not."""
        self.process.cancel()
        try:
            await asyncio.wait({self.process})
        finally:
            self.connection.close()
        if not self.process.cancelled():
            self.process.exception()  # retrieved, so that asyncio does not complain; `examine` has raised it

    async def _listen(self, running: RunningProcess) -> None:
        session = await self.session
        await run_in_thread(partial(session.hold, self.connection, running.seal), self.connection.shutdown)

    def _explain_silence(self, session: AuditSession, ending: Ending) -> Fault | None:
        """Return why the process that ended by itself gave no answers."""
        if session.objection:
            return Fault("disqualified", session.objection)
        if session.done:
            return None
        transcript = self.monitor.transcript
        if transcript.sealed:
            return Fault(
                "disqualified", "the model that it handed over does not give logits by itself: `model(x)` must"
            )
        why = classify_failure(ending.status or 0, transcript.log.text).message
        return Fault("disqualified", f"the model that it handed over cannot be loaded: {why}")


async def audit(
    auditor: Auditor,
    scorer: Scorer,
    submission: Submission,
    reference: Nats | None,
    baseline_error: float | Literal["unmeasured"],
) -> CorrectedScore | Fault:
    """Return the corrected score, or why there is none. Raises MachineError.

    `reference` are the incumbent's claims, `baseline_error` is as for get_tolerance.
    """
    assert submission.settings
    assert submission.claims is not None
    rng = np.random.default_rng()
    positions = await asyncio.to_thread(scorer.draw_positions, submission.claims, reference, rng)
    session = AuditSession(scorer, submission.settings, submission.model, positions, rng)
    if fault := await auditor.examine(session):
        return fault
    allowed = get_tolerance(submission.settings.dtype, baseline_error)
    try:
        return scorer.correct(submission.claims, np.concatenate(session.answers), positions, allowed)
    except Disqualified as reason:
        return Fault("disqualified", str(reason))
