"""Decide how a run is evaluated: whether it is audited or scored on held-out text, and where it is pruned."""

from typing import Any

from orchestrator.core.events import EvaluationPlan
from orchestrator.core.state import Candidate, Incumbent, State
from orchestrator.policy.noise import estimate_sigma
from orchestrator.policy.pruning import compute_thresholds
from orchestrator.policy.seeds import draw
from orchestrator.policy.thresholds import CONTROL_RUN_EVERY, SIMPLER_LINES

REPORTED_PLAN = EvaluationPlan(audit="never", confirmed=False, incumbent=0)


def plan_evaluation(state: State, experiment: int, run: int, seed: int) -> EvaluationPlan:
    """Return how a run is to be evaluated.

    Every run that enters a mean is audited, because claims and corrected scores are on different scales. A candidate's
    first run is audited unless it is clearly worse than the incumbent at that seed. The held-out text is reserved for
    the certificate; the baseline's first run is scored on it, too, but no decision uses that score.
    """
    best, stage = state.incumbent, state.open.get(experiment)
    first = isinstance(stage, Candidate) and not stage.scores
    if state.session.task.is_reported:
        thresholds = compute_thresholds(state, best) if best and first else ()
        control = first and draw(state, experiment, run) % CONTROL_RUN_EVERY == 0
        return REPORTED_PLAN.model_copy(update={"pruning_thresholds": thresholds, "control_run": control})
    if best is None or experiment == 0:
        return EvaluationPlan(audit="always", confirmed=first, incumbent=0, baseline_error="unmeasured")
    simpler = isinstance(stage, Candidate) and stage.commit.removed - stage.commit.added >= SIMPLER_LINES
    theirs = [score.val_bpb for at, score in zip(best.seeds, best.scores, strict=False) if at == seed]
    border = max([*theirs, best.score_to_beat]) + estimate_sigma(state)
    return EvaluationPlan(
        audit=border if first and not simpler else "always",
        confirmed=False,
        incumbent=best.experiment,
        **_describe_baseline(state, best),
        pruning_thresholds=compute_thresholds(state, best) if first else (),
        control_run=first and draw(state, experiment, run) % CONTROL_RUN_EVERY == 0,
    )


def plan_certification(state: State) -> EvaluationPlan:
    """Return how a run of the certificate is evaluated: audited, and scored on the held-out text."""
    if state.session.task.is_reported:
        return REPORTED_PLAN.model_copy(update={"certifies": True})
    assert state.incumbent
    measured = _describe_baseline(state, state.incumbent)
    return EvaluationPlan(audit="always", confirmed=True, incumbent=0, certifies=True, **measured)


def _describe_baseline(state: State, best: Incumbent) -> dict[str, Any]:
    """Return what the user's own code showed: the worst error of its claims, and the seconds to its first batch."""
    closed = [score for result in state.results if result.experiment == 0 for score in result.scores]
    runs = best.scores if best.experiment == 0 else closed
    return {
        "baseline_error": max((run.audit.worst for run in runs if run.audit and run.audit.worst > 0), default=0.0),
        "startup": max((run.metrics.startup for run in runs), default=0.0) or None,
    }
