"""Decides what came of a run that has ended: a score, audited where it matters, or the candidate's failure."""

import os
import time
from dataclasses import dataclass
from math import isfinite

from orchestrator.core import events as ev
from orchestrator.lab.failures import Fault, Prune, classify_failure
from orchestrator.lab.monitor import RunMonitor
from orchestrator.lab.process import Ending
from orchestrator.lab.scoring.audit import Auditor, ClaimsArchive, audit
from orchestrator.lab.scoring.claims import Scorer
from orchestrator.lab.scoring.server import Submission
from orchestrator.lab.slots import Slot

STRICT_PLAN = ev.EvaluationPlan(audit="always", confirmed=False, incumbent=0)
"""For a run that was granted without a plan."""


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


async def evaluate(
    run: Observation, scorer: Scorer, auditor: Auditor | None, archive: ClaimsArchive
) -> ev.Scored | ev.Crashed | ev.Pruned:
    """Return the run's score, or its failure. Raises MachineError where the audit cannot be held, OSError."""
    facts, submission = run.facts, run.submission
    if isinstance(run.stopped, Prune):
        return ev.Pruned(reason=run.stopped.message, **vars(facts))
    if fault := run.stopped or _find_objection(run, scorer) or _find_failure(run):
        return facts.fail(fault)
    assert submission.val_bpb is not None
    score = ev.Scored(
        val_bpb=submission.val_bpb,
        confirmed=submission.confirmed,
        would_prune_at=run.monitor.would_prune_at,
        **vars(facts),
    )
    if auditor is None or not run.plan.needs_audit(submission.val_bpb):
        return score
    return await _audit_score(score, run, scorer, auditor, archive)


async def _audit_score(
    score: ev.Scored, run: Observation, scorer: Scorer, auditor: Auditor, archive: ClaimsArchive
) -> ev.Scored | ev.Crashed:
    began, claims, incumbent = time.monotonic(), run.submission.claims, run.plan.incumbent
    assert claims is not None
    reference = archive.load(incumbent, scorer.shape)
    found = await audit(auditor, scorer, run.submission, reference, run.plan.baseline_error)
    if isinstance(found, Fault):
        return run.facts.fail(found)
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
    """Return the reason not to believe a score that has not even been audited."""
    submission = run.submission
    if submission.objection:
        return Fault("disqualified", submission.objection)
    if not submission.settings:
        return None
    threads = run.slot.threads or os.cpu_count() or 1
    late = scorer.explain_overtime(run.monitor.clock.seconds, submission.cpu_seconds, threads)
    return Fault("disqualified", late) if late else None


def _find_failure(run: Observation) -> Fault | None:
    """Return what was wrong with a run that ended by itself."""
    status, transcript = run.ending.status, run.monitor.transcript
    if status is None:
        return Fault("other", "it killed its guardian")
    if status and transcript.sealed:
        # Its own words may quote the validation text.
        kind = classify_failure(status, "\n".join(transcript.withheld)).kind
        return Fault(kind, f"it failed while it was evaluated, with exit code {status}")
    if status:
        return classify_failure(status, run.log)
    if run.submission.val_bpb is None:
        return Fault("other", "it ended without a score")
    if not isfinite(run.submission.val_bpb):
        return Fault("NaN", f"val_bpb is {run.submission.val_bpb}")
    return None
