"""Decide how a run is evaluated: what is audited, what is scored on held-out text, where it is pruned."""

import hashlib

from orchestrator.core.events import EvaluationPlan
from orchestrator.core.state import Candidate, Incumbent, State
from orchestrator.policy.pruning import compute_thresholds
from orchestrator.policy.thresholds import CONTROL_RUN_EVERY, SIMPLER_LINES


def plan_evaluation(state: State, experiment: int, run: int) -> EvaluationPlan:
    """Return how a run is to be evaluated.

    Audited are all runs of which a mean is taken, since claims and corrected scores are two scales: those of the
    incumbent, the second and later ones of a candidate, and its first one below the score to beat, or where it may be
    kept for fewer lines. A run that can decide on a keep, never the first, is scored on the held-out text, too. Of the
    baseline the first run is: as the reference for what follows.
    """
    best, stage = state.incumbent, state.open.get(experiment)
    first = isinstance(stage, Candidate) and not stage.scores
    if best is None or experiment == 0:
        return EvaluationPlan(audit="always", confirmed=first, incumbent=0, baseline_error="unmeasured")
    simpler = isinstance(stage, Candidate) and stage.commit.removed - stage.commit.added >= SIMPLER_LINES
    return EvaluationPlan(
        audit=best.score_to_beat if first and not simpler else "always",
        confirmed=not first,
        incumbent=best.experiment,
        baseline_error=_get_baseline_error(state, best),
        pruning_thresholds=compute_thresholds(state, best) if first else (),
        control_run=first and draw_seed(state, experiment, run) % CONTROL_RUN_EVERY == 0,
    )


def draw_seed(state: State, experiment: int, run: int) -> int:
    """Return a seed drawn from the session's seed, the experiment's number and the run's."""
    digest = hashlib.sha256(f"{state.session.seed}/{experiment}/{run}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


def _get_baseline_error(state: State, best: Incumbent) -> float:
    """Return the nats by which honest claims are off at most, as the audit of the user's own code has shown."""
    closed = [score for result in state.results if result.experiment == 0 for score in result.scores]
    runs = best.scores if best.experiment == 0 else closed
    return max((score.audit.worst for score in runs if score.audit and score.audit.worst > 0), default=0.0)
