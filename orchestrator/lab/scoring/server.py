"""Serve one run over its socket, $NIGHTSHIFT_FD: hand out the training rows when they are due, receive the model.

Only these messages start and stop the clock; what a run prints is for people. A run never sees validation text.
"""

import asyncio
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.core.events import EvaluationPlan
from orchestrator.lab.monitor import RunMonitor
from orchestrator.lab.scoring.claims import Disqualified, Scorer
from orchestrator.lab.scoring.connection import Connection

MAX_MODEL, CHUNK = 8 << 30, 1 << 20  # bytes of a model, and of a chunk in which it is received and written
MAX_BATCH = 4096  # largest number of rows in a batch, and of threads
WALL_SLACK, WALL_GRACE = 1.03, 10.0
"""Factor and seconds allowed beyond a time budget: for the step in progress, and to write the model."""
WORK_SLACK = 2.0
"""Multiple of the expected CPU seconds that is allowed. Work cannot be counted from outside, and its CPU time varies by
15 % either way between honest models, and by half again on a busy machine."""
BASELINE_SLACK, BASELINE_GRACE = 1.75, 2.0
"""Multiple of the CPU seconds that the baseline took in this session, once they are known, and seconds beyond it."""
SLACK, START_GRACE, EVALUATION_SLACK = 1.5, 60.0, 3.0
"""Multiple of what the baseline takes until its first batch, and for an evaluation, that is free; in wall time so are
these seconds. What exceeds them counts as training. On a work budget no evaluation may exceed the last multiple and
REST_GRACE."""

REST_GRACE = 2.0
"""CPU seconds that are free once the model was handed over, beside SLACK times the larger of an evaluation and what the
baseline took: honest code evaluates four rows and ends, which took 0.13 to 0.22 s in short runs of the cpu profile,
whose evaluation took 1.7 s."""


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
    threads: int  # threads for arithmetic in the run
    plan: EvaluationPlan
    monitor: RunMonitor
    model: Path  # file outside the sandbox for the model as submitted when the clock stops
    settings: InferenceSettings | None = None  # None until the model is submitted
    wall: float = 0.0
    cpu: float = 0.0  # seconds that the training took
    evaluation_cpu: float = 0.0  # CPU seconds that the longest process took that has evaluated the model

    async def serve(self) -> None:
        """Answer until the run has ended, or must end; the last model counts. Raises OSError for our own files."""
        with suppress(ConnectionError), closing(self.connection):  # at its end the guardian reports how it ended
            try:
                while (event := await self.connection.receive()) is not None:
                    self.monitor.take_report(event)
                    match event:
                        case {"event": "ready"}:  # each process of a run asks once, as one that loads its batches
                            if self.monitor.training_began is None:
                                self.monitor.begin_training()
                            with (self.scorer.folder / "train.bin").open("rb") as file:
                                await self.connection.send({"event": "rows", "split": "train"}, file=file)
                        case {"event": "model", "bytes": int()}:
                            await self._receive_model(event)
                            await self.connection.send({"event": "thanks"})
                        case _:
                            pass
            except Disqualified as reason:
                self.monitor.cause = self.monitor.cause or reason

    async def _receive_model(self, event: dict[str, Any]) -> None:
        """Store the model, and stop the clock at its last byte. Raises Disqualified."""
        monitor = self.monitor
        if not 0 < (size := event["bytes"]) <= MAX_MODEL:
            raise Disqualified(f"its model has {size:,} bytes")
        part = self.model.with_suffix(".part")  # half of a later model must not replace one whose clock has stopped
        with part.open("wb") as file:
            for first in range(0, size, CHUNK):
                chunk = await self.connection.read_exactly(min(CHUNK, size - first))
                await asyncio.to_thread(file.write, chunk)
        part.chmod(0o444)  # otherwise who evaluates it could reopen its descriptor for writing, and tell the audit
        part.replace(self.model)
        monitor.training_ended = monitor.read_clock()
        if monitor.training_began is None:  # it was never ready, so all of it counts
            monitor.training_began = monitor.launched
        monitor.train_cpu = monitor.count_cpu_seconds() - monitor.startup_cpu
        early = _count_excess(monitor.startup_seconds, self.plan.startup_seconds, START_GRACE)
        self.wall = monitor.train_seconds - self._grant_uncounted() + early
        self.cpu = monitor.train_cpu + _count_excess(monitor.startup_cpu, self.plan.startup_cpu)
        try:
            self.settings = InferenceSettings.model_validate(event)
        except ValidationError as error:
            wrong = error.errors()[0]
            raise Disqualified(
                f"it does not say how its model is to be run: {wrong['loc'][0]}: {wrong['msg']}"
            ) from None
        self._check_time(self.wall, self.cpu)

    def _grant_uncounted(self) -> float:
        """Return the seconds of first steps that are free, and say so: the baseline's, of others SLACK times these."""
        granted, usual = self.monitor.uncounted, SLACK * (self.plan.uncounted or 0.0)
        granted = granted if self.plan.baseline_error == "unmeasured" else min(granted, usual)
        if granted >= 1 and not self.settings and self.scorer.manifest.budget.kind == "time":
            note = f"\nNightshift: the first {granted:.0f} s do not count, as by the script's clock\n"
            self.monitor.feed(note.encode())
        return granted

    def check_rest(self) -> None:
        """Count what the ended run used beyond what was seen when its model came. Raises Disqualified."""
        usual = self._usual_cpu and max(self._usual_cpu, self.plan.rest_cpu or 0.0)
        self.cpu += _count_excess(self.monitor.rest_cpu, usual, REST_GRACE)
        self._check_time(self.wall, self.cpu, "with what it did besides, ")

    @property
    def _usual_cpu(self) -> float | None:
        """CPU seconds that the baseline's evaluation took; None if they are not known."""
        return self.plan.evaluation_cpu or (self.plan.evaluation and self.plan.evaluation * self.threads)

    def check_evaluation(self, wall: float, cpu: float) -> None:
        """Count an evaluation's seconds beyond the usual: a model could go on training in it. Raises Disqualified."""
        usual, usual_cpu, self.evaluation_cpu = self.plan.evaluation, self._usual_cpu, max(self.evaluation_cpu, cpu)
        is_work = self.scorer.manifest.budget.kind == "work"
        if is_work and usual_cpu and cpu > EVALUATION_SLACK * usual_cpu + REST_GRACE:
            raise Disqualified(
                f"the evaluation of its model took {cpu:.0f} s of CPU time, the baseline's {usual_cpu:.0f}"
            )
        more = _count_excess(wall, usual, START_GRACE), _count_excess(cpu, usual_cpu)
        self._check_time(self.wall + more[0], self.cpu + more[1], "with the evaluation of its model, ")

    def _check_time(self, wall: float, cpu: float, how: str = "") -> None:
        """Raise Disqualified if a training of so many seconds, by our own clocks, was too long."""
        budget, usual = self.scorer.manifest.budget, self.plan.train_cpu
        if budget.kind == "time" and wall > WALL_SLACK * budget.amount + WALL_GRACE:
            raise Disqualified(f"{how}it trained for {wall:.0f} s of {budget.amount:g}")
        limit = WORK_SLACK * budget.seconds * self.threads + WALL_GRACE
        limit = min(limit, BASELINE_SLACK * usual + BASELINE_GRACE) if usual else limit
        if budget.kind == "work" and cpu > limit:
            raise Disqualified(f"{how}it trained for {cpu:.0f} s of CPU time, more than {limit:.0f}")


def _count_excess(seconds: float, usual: float | None, grace: float = 0.0) -> float:
    """Return the seconds beyond SLACK times the usual ones and a grace; 0 if the usual ones are unknown."""
    return max(0.0, seconds - SLACK * usual - grace) if usual else 0.0
