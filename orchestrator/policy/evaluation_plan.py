"""Decide how a run is evaluated: what is audited, what is scored on held-out text, where it is pruned."""

from orchestrator.core.events import EvaluationPlan
from orchestrator.core.state import Candidate, Incumbent, State
from orchestrator.policy.noise import estimate_sigma
from orchestrator.policy.pruning import compute_thresholds
from orchestrator.policy.seeds import draw
from orchestrator.policy.thresholds import CONTROL_RUN_EVERY


def plan_evaluation(state: State, experiment: int, run: int, seed: int) -> EvaluationPlan:
    """Return how a run is to be evaluated.

    Scores are audited that could help towards a keep: those not clearly worse than the incumbent's at the same seed. No
    decision looks at the held-out text, which is kept for the certificate. Of the baseline, which is the user's own
    code, the first run is audited: as the reference for what follows.
    """
    best, stage = state.incumbent, state.open.get(experiment)
    first = isinstance(stage, Candidate) and not stage.scores
    if best is None or experiment == 0:
        audit = "always" if first else "never"
        return EvaluationPlan(audit=audit, confirmed=first, incumbent=0, baseline_error="unmeasured")
    theirs = [score.val_bpb for at, score in zip(best.seeds, best.scores, strict=False) if at == seed]
    return EvaluationPlan(
        audit=max([*theirs, best.score_to_beat]) + estimate_sigma(state),
        confirmed=False,
        incumbent=best.experiment,
        baseline_error=_get_baseline_error(state, best),
        pruning_thresholds=compute_thresholds(state, best) if first else (),
        control_run=first and draw(state, experiment, run) % CONTROL_RUN_EVERY == 0,
    )


def plan_certification(state: State, best: Incumbent) -> EvaluationPlan:
    """Return how a run of the certificate is evaluated: audited, and on the held-out text."""
    error = _get_baseline_error(state, best)
    return EvaluationPlan(audit="always", confirmed=True, incumbent=0, baseline_error=error, certifies=True)


def _get_baseline_error(state: State, best: Incumbent) -> float:
    """Return the nats by which honest claims are off at most, as the audit of the user's own code has shown."""
    closed = [score for result in state.results if result.experiment == 0 for score in result.scores]
    runs = best.scores if best.experiment == 0 else closed
    return max((abs(score.audit.worst) for score in runs if score.audit), default=0.0)
