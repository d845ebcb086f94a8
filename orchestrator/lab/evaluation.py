"""Decides what came of a run that has ended: a score, audited where it matters, or the candidate's failure.

What may be the machine's fault is an exception, and the run is granted again. A candidate that brings it about itself
is excused MAX_EXCUSES times.
"""

import asyncio
import os
import time
from dataclasses import dataclass

import numpy as np
import psutil

from orchestrator.core import events as ev
from orchestrator.lab.failures import Fault, Prune, classify_failure
from orchestrator.lab.monitor import RunMonitor
from orchestrator.lab.process import Ending, MachineError
from orchestrator.lab.sandbox.bubblewrap import Bubblewrap
from orchestrator.lab.scoring.audit import Auditor, ClaimsArchive, Questions
from orchestrator.lab.scoring.claims import WALL_SLACK, Disqualified, Scorer
from orchestrator.lab.scoring.server import Submission
from orchestrator.lab.slots import Slot

MAX_EXCUSES = 2
"""Runs of one experiment that the machine may seem to have ended, before it is the candidate's fault: one that takes
too much memory would otherwise be run, and killed, until the session gives up."""


class ExcusedError(MachineError):
    """A failure that the candidate may have brought about, and that is put down to the machine for now."""


@dataclass(frozen=True)
class RunFacts:
    """What a run that was scored and one that failed have in common."""

    experiment: int
    run: int
    metrics: ev.RunMetrics
    curve: tuple[ev.Point, ...]
    log: ev.Digest
    tier: str

    def fail(self, fault: Fault) -> ev.Crashed:
        """Return the failure as an event."""
        return ev.Crashed(failure=fault.kind, message=fault.message, **vars(self))


@dataclass(frozen=True, slots=True)
class Observation:
    """A run that has ended, before it is evaluated."""

    plan: ev.EvaluationPlan
    facts: RunFacts
    slot: Slot
    monitor: RunMonitor
    log: str
    submission: Submission
    stopped: Fault | Prune | None
    """The reason it was stopped for."""
    ending: Ending
    disk: int
    """Bytes of disk that its files take."""
    excuses: int
    """Earlier runs of the experiment that were excused."""


async def evaluate(
    run: Observation, scorer: Scorer, auditor: Auditor | None, archive: ClaimsArchive
) -> ev.Scored | ev.Crashed | ev.Pruned:
    """Return the run's score, or its failure. Raises MachineError where the machine is at fault, OSError."""
    facts, submission = run.facts, run.submission
    if isinstance(run.stopped, Prune):
        return ev.Pruned(reason=run.stopped.message, **vars(facts))
    if fault := run.stopped or _find_objection(run, scorer) or _find_failure(run):
        return facts.fail(fault)
    budget, lost = scorer.manifest.budget, run.monitor.now.lost
    if budget.kind == "time" and lost > (WALL_SLACK - 1) * budget.amount:
        raise MachineError(f"this process stood still for {lost:.0f} s, which the training may have lost")
    assert submission.val_bpb is not None
    score = ev.Scored(
        val_bpb=submission.val_bpb,
        confirmed=submission.confirmed,
        would_prune_at=run.monitor.would_prune_at,
        **vars(facts),
    )
    if auditor is None or not run.plan.needs_audit(submission.val_bpb):
        return score
    try:
        return await _audit_score(score, run, scorer, auditor, archive)
    except Disqualified as reason:
        return facts.fail(Fault("disqualified", str(reason)))


async def _audit_score(
    score: ev.Scored, run: Observation, scorer: Scorer, auditor: Auditor, archive: ClaimsArchive
) -> ev.Scored | ev.Crashed:
    began, claims, incumbent = time.monotonic(), run.submission.claims, run.plan.incumbent
    assert claims is not None
    rng, reference = np.random.default_rng(), archive.load(incumbent, scorer.shape)
    positions = await asyncio.to_thread(scorer.draw_positions, claims, reference, rng)
    questions = Questions(scorer, run.submission, positions, rng)
    stopped, ending = await auditor.examine(questions)
    if fault := stopped or _find_kill(run, ending):
        return run.facts.fail(fault)
    if not questions.are_answered:
        raise Disqualified(auditor.explain_silence(ending))
    allowed = scorer.get_tolerance(run.plan.baseline_error)
    found = scorer.correct(claims, np.concatenate(questions.answers), positions, allowed)
    archive.save(score.experiment, claims, incumbent)
    record = ev.Audit(
        claimed=score.val_bpb,
        error=found.error,
        worst=found.worst,
        looks=len(claims),
        seconds=time.monotonic() - began,
        evaluation=run.submission.evaluation,
    )
    return score.model_copy(update={"val_bpb": found.val_bpb, "audit": record})


def _find_objection(run: Observation, scorer: Scorer) -> Fault | None:
    submission = run.submission
    if submission.objection:
        return Fault("disqualified", submission.objection)
    if not submission.settings:
        return None
    threads = run.slot.threads or os.cpu_count() or 1
    late = scorer.explain_overtime(run.monitor.clock.seconds, submission.cpu_seconds, threads)
    return Fault("disqualified", late) if late else None


def _find_failure(run: Observation) -> Fault | None:
    """Return what was wrong with a run that ended by itself. Raises ExcusedError."""
    if fault := _find_kill(run, run.ending):
        return fault
    status, transcript = run.ending.status or 0, run.monitor.transcript
    if status and transcript.sealed:
        # Its own words may quote the validation text.
        kind = classify_failure(status, "\n".join(transcript.withheld)).kind
        return Fault(kind, f"it failed while it was evaluated, with exit code {status}")
    if status:
        fault, shared = classify_failure(status, run.log), run.facts.tier != Bubblewrap.tier
        if fault.kind == "disk full" and shared and run.disk < run.monitor.limits.reserve:
            _excuse(run, f"the disk is full, and its own files take {run.disk >> 20} MB ({fault.message})")
        return fault
    if run.submission.val_bpb is None:
        return Fault("other", "it ended without a score")
    return None


def _find_kill(run: Observation, ending: Ending) -> Fault | None:
    """Return the fault of a process that was killed for its size, or too often. Raises ExcusedError for others."""
    if not ending.was_killed:
        return None
    if 2 * ending.peak_mb < psutil.virtual_memory().total >> 20:
        _excuse(run, f"{'its guardian' if ending.status is None else 'it'} was killed from outside")
    size = f"using {ending.peak_mb:,.0f} MB"
    return Fault("out of host memory", f"it was killed from outside, {size}, as the system does when memory runs out")


def _excuse(run: Observation, message: str) -> None:
    if run.excuses < MAX_EXCUSES:
        raise ExcusedError(message)
