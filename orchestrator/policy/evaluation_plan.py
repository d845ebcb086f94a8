import hashlib

from orchestrator.core import events as ev
from orchestrator.core.state import Candidate, Incumbent, State
from orchestrator.policy.pruning import compute_thresholds
from orchestrator.policy.thresholds import CONTROL_RUN_EVERY


def plan_evaluation(state: State, experiment: int, run: int) -> ev.EvaluationPlan:
    """How a run is to be examined.

    Scores below the mark are audited: they would help towards a keep, or make one look better than it is. The run that
    can decide on a keep, never the first, is examined on the confirmation text, too. Of the baseline, which is the
    user's own code, the first run is: as the reference for what follows.
    """
    best, stage = state.incumbent, state.open.get(experiment)
    fresh = isinstance(stage, Candidate) and not stage.scores
    if best is None or experiment == 0:
        return ev.EvaluationPlan(
            audited_below=None if fresh else 0.0, confirmed=fresh, incumbent=0, baseline_error=None
        )
    return ev.EvaluationPlan(
        audited_below=best.score_to_beat,
        confirmed=not fresh,
        incumbent=best.experiment,
        baseline_error=_get_baseline_error(state, best),
        pruning_thresholds=compute_thresholds(state, best) if fresh else (),
        control_run=fresh and draw_seed(state, experiment, run) % CONTROL_RUN_EVERY == 0,
    )


def _get_baseline_error(state: State, best: Incumbent) -> float:
    """Nats by which honest claims are off at most, as the audit of the user's own code has shown."""
    closed = [score for result in state.results if result.experiment == 0 for score in result.scores]
    runs = best.scores if best.experiment == 0 else closed
    return max((abs(score.audit.worst) for score in runs if score.audit), default=0.0)


def draw_seed(state: State, experiment: int, run: int) -> int:
    """A seed that nobody has chosen: drawn from the session's, the experiment's number and the run's."""
    digest = hashlib.sha256(f"{state.session.seed}/{experiment}/{run}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1
