"""Decide the outcome of a run that has ended: a score, audited where it could lead to a keep, or a failure.

A failure that may be the machine's fault is a MachineError, and the run is granted again. A candidate could cause such
failures on purpose, so it is excused at most MAX_EXCUSES times in a row.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
import psutil

from orchestrator.core import events as ev
from orchestrator.lab.failures import Fault, MachineError, Prune, classify_failure
from orchestrator.lab.monitor import RunMonitor
from orchestrator.lab.process import Ending
from orchestrator.lab.sandbox.base import Command
from orchestrator.lab.sandbox.bubblewrap import Bubblewrap
from orchestrator.lab.scoring.audit import Auditor, load_claims, save_claims
from orchestrator.lab.scoring.claims import WALL_SLACK, Disqualified
from orchestrator.lab.scoring.connection import open_pair
from orchestrator.lab.scoring.server import EvaluationServer

MAX_EXCUSES = 2
"""Runs of one experiment in a row whose failure may be attributed to the machine. Without a limit, a candidate that
takes too much memory would be run, and killed, until the session gives up."""


class ExcusedError(MachineError):
    """A failure that the candidate may have caused, attributed to the machine for now."""


@dataclass(frozen=True, slots=True)
class EndedRun:
    """A run that has ended and is yet to be evaluated."""

    result: ev.RunResult
    log: str
    monitor: RunMonitor
    ending: Ending
    disk: int
    """Bytes of disk that the run's files take."""
    may_be_excused: bool
    """False once MAX_EXCUSES runs of the experiment in a row have been excused."""


@dataclass(frozen=True, slots=True)
class Observation:
    """An ended run that was served, and may be audited."""

    ended: EndedRun
    server: EvaluationServer
    build_audit: Callable[[int], Command]
    """Builds the command of the auditing process, given the descriptor of its connection."""
    lock: int
    """Descriptor of the slot's lock, which the auditing process inherits."""


async def evaluate(result: ev.RunResult, score: Awaitable[ev.Scored]) -> ev.Scored | ev.Crashed | ev.Pruned:
    """Return the run's score or failure. Raises MachineError where the machine is at fault, and OSError."""
    try:
        return await score
    except Prune as reason:
        return ev.Pruned(reason=str(reason), **vars(result))
    except Fault as fault:
        return ev.Crashed(failure=fault.kind, message=fault.message, **vars(result))


async def score_claims(run: Observation, archive: Path) -> ev.Scored:
    """Return the score that the run claims, audited where that matters. Raises Prune, Fault, MachineError, OSError."""
    claimed, server = _find_claimed(run), run.server
    own = {"confirmed": server.confirmed, "would_prune_at": run.ended.monitor.would_prune_at}
    score = ev.Scored(val_bpb=claimed, **own, **vars(run.ended.result))
    return await _audit_score(score, run, archive) if server.plan.needs_audit(claimed) else score


def _find_claimed(run: Observation) -> float:
    """Return the score that the run claims. Raises Prune, Fault or MachineError where no score counts."""
    ending, transcript = run.ended.ending, run.ended.monitor.transcript
    if run.server.objection and not ending.stopped:
        raise Disqualified(run.server.objection)
    if ending.status and transcript.sealed and not ending.stopped and not ending.was_killed:
        # Its last lines may quote the validation text, so they only serve to classify the failure.
        kind = classify_failure(ending.status, "\n".join(transcript.withheld)).kind
        raise Fault(kind, f"it failed while it was evaluated, with exit code {ending.status}")
    budget = run.server.scorer.manifest.budget
    check_ending(run.ended, budget.amount if budget.kind == "time" else inf)
    if run.server.val_bpb is None:
        raise Fault("other", "it ended without a score")
    return run.server.val_bpb


def check_ending(run: EndedRun, budget: float) -> None:
    """Raise Prune, Fault or MachineError where a run did not end well; `budget` is in seconds of wall time."""
    if run.ending.stopped:
        raise run.ending.stopped
    _check_kill(run, run.ending)
    if run.ending.status:
        fault, is_small = classify_failure(run.ending.status, run.log), run.disk < run.monitor.limits.reserve
        if fault.kind == "disk full" and is_small and run.result.tier != Bubblewrap.tier and run.may_be_excused:
            raise ExcusedError(f"the disk is full, and its own files take {run.disk >> 20} MB ({fault.message})")
        raise fault
    if (suspended := run.monitor.suspended) > (WALL_SLACK - 1) * budget:
        raise MachineError(f"this process was suspended for {suspended:.0f} s, so the training may have lost time")


async def _audit_score(score: ev.Scored, run: Observation, archive: Path) -> ev.Scored:
    """Return the score, corrected by the blind audit. Raises Fault, MachineError."""
    server, began, rng = run.server, time.monotonic(), np.random.default_rng()
    scorer, claims, incumbent = server.scorer, server.claims, server.plan.incumbent
    assert claims is not None
    reference = load_claims(archive, incumbent, scorer.shape)
    positions = await asyncio.to_thread(scorer.draw_positions, claims, reference, rng)
    connection, theirs = await open_pair()
    auditor = Auditor(server, positions, rng, RunMonitor(run.ended.monitor.limits), connection)
    ending = await auditor.examine(run.build_audit(theirs), run.lock)
    if ending.stopped:
        raise ending.stopped
    _check_kill(run.ended, ending)
    allowed = scorer.get_tolerance(server.plan.baseline_error)
    val_bpb, error, worst = scorer.correct(claims, auditor.get_answers(ending), positions, allowed)
    save_claims(archive, score.experiment, claims, incumbent)
    times = {"seconds": time.monotonic() - began, "evaluation": server.evaluation}
    record = ev.Audit(claimed=score.val_bpb, error=error, worst=worst, looks=len(claims), **times)
    return score.model_copy(update={"val_bpb": val_bpb, "audit": record})


def _check_kill(run: EndedRun, ending: Ending) -> None:
    """Raise ExcusedError if the process was killed from outside, Fault if it was large or excused too often."""
    if not ending.was_killed:
        return
    if 2 * ending.peak_mb < psutil.virtual_memory().total >> 20 and run.may_be_excused:
        raise ExcusedError(f"{'its guardian' if ending.status is None else 'it'} was killed or suspended from outside")
    where = f"it was killed from outside at {ending.peak_mb:,.0f} MB"
    raise Fault("out of host memory", f"{where}, as happens when the system runs out of memory")
