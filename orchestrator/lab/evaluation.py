"""Decide the outcome of a run that has ended: a score, audited where it could lead to a keep, or a failure.

A failure that may be the machine's fault is a MachineError, and the run is granted again. A candidate could cause such
failures on purpose, so it is excused at most MAX_EXCUSES times in a row.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil

from orchestrator.core import events as ev
from orchestrator.lab.failures import Fault, MachineError, Prune, classify_failure
from orchestrator.lab.monitor import RunMonitor
from orchestrator.lab.process import Ending, RunningProcess, run_guarded
from orchestrator.lab.sandbox.base import Command
from orchestrator.lab.sandbox.bubblewrap import Bubblewrap
from orchestrator.lab.scoring.claims import WALL_SLACK, Disqualified, Nats, Scorer
from orchestrator.lab.scoring.connection import open_pair
from orchestrator.lab.scoring.evaluator import Evaluator, load_claims, save_claims
from orchestrator.lab.scoring.server import TrainingServer

T = TypeVar("T")

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
class HandedOver:
    """An ended run that may have handed over a model, and what it takes to evaluate that."""

    ended: EndedRun
    server: TrainingServer
    plan: ev.EvaluationPlan
    build_evaluator: Callable[[int], Command]
    """Builds the command of an evaluating process, given the descriptor of its connection."""
    lock: int
    """Descriptor of the slot's lock, which that process inherits."""


async def evaluate(result: ev.RunResult, score: Awaitable[ev.Scored]) -> ev.Scored | ev.Crashed | ev.Pruned:
    """Return the run's score or failure. Raises MachineError where the machine is at fault, and OSError."""
    try:
        return await score
    except Prune as reason:
        return ev.Pruned(reason=str(reason), **vars(result))
    except Fault as fault:
        return ev.Crashed(failure=fault.kind, message=fault.message, **vars(result))


async def score_model(run: HandedOver, archive: Path) -> ev.Scored:
    """Return the score of the model that a run handed over, audited where that matters.

    No process that sees validation text exists while the run does. Raises Prune, Fault, MachineError, OSError.
    """
    scorer, began = run.server.scorer, time.monotonic()
    if run.server.objection and not run.ended.ending.stopped:
        raise Disqualified(run.server.objection)
    check_ending(run.ended, scorer.manifest.budget.amount if scorer.manifest.budget.kind == "time" else inf)
    if run.server.settings is None:
        raise Fault("other", "it ended without handing over a model: `evaluate_bpb` does")
    claims, confirmed = await _evaluate(run, partial(_compute_claims, scorer, run.plan))
    score = ev.Scored(
        val_bpb=scorer.compute_bpb(claims),
        confirmed=confirmed,
        would_prune_at=run.ended.monitor.would_prune_at,
        **vars(run.ended.result),
    )
    if not run.plan.needs_audit(score.val_bpb):
        return score
    return await _audit_score(score, claims, time.monotonic() - began, run, archive)


async def _compute_claims(scorer: Scorer, plan: ev.EvaluationPlan, evaluator: Evaluator) -> tuple[Nats, float | None]:
    """Return the model's losses on validation text and, where the plan asks for it, its val_bpb on held-out text."""
    claims, heldout = await evaluator.compute_claims(scorer), scorer.heldout
    if not (heldout and plan.confirmed and plan.needs_audit(scorer.compute_bpb(claims))):
        return claims, None
    return claims, heldout.compute_bpb(await evaluator.compute_claims(heldout))


async def _evaluate(run: HandedOver, ask: Callable[[Evaluator], Awaitable[T]]) -> T:
    """Return what a fresh process with the model answers. Raises Fault, MachineError, OSError."""
    assert run.server.settings
    connection, theirs = await open_pair()
    evaluator, monitor = Evaluator(connection, run.server.settings), RunMonitor(run.ended.monitor.limits)
    answers: list[T] = []

    async def listen(_: RunningProcess) -> None:
        try:
            await evaluator.load(run.server.model)
            answers.append(await ask(evaluator))
            await connection.send({"event": "thanks"})
        except ConnectionError:
            pass  # the process has ended; its guardian reports how
        finally:
            connection.close()

    ending = await run_guarded(run.build_evaluator(theirs), monitor, run.lock, listen)
    if answers:
        return answers[0]
    if ending.stopped:
        raise ending.stopped
    _check_kill(run.ended, ending)
    raise evaluator.explain_silence(ending, monitor.transcript.log)


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


async def _audit_score(score: ev.Scored, claims: Nats, seconds: float, run: HandedOver, archive: Path) -> ev.Scored:
    """Return the score, corrected by the blind audit; `seconds` took the evaluation. Raises Fault, MachineError."""
    scorer, plan, began, rng = run.server.scorer, run.plan, time.monotonic(), np.random.default_rng()
    reference = load_claims(archive, plan.incumbent, scorer.shape)
    positions = await asyncio.to_thread(scorer.draw_positions, claims, reference, rng)
    blind = await _evaluate(run, lambda evaluator: evaluator.predict_blind(scorer, positions, rng))
    val_bpb, error, worst = scorer.correct(claims, blind, positions, scorer.get_tolerance(plan.baseline_error))
    save_claims(archive, score.experiment, claims, plan.incumbent)
    times = {"seconds": time.monotonic() - began, "evaluation": seconds}
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
