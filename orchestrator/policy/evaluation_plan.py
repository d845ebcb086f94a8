"""Plan a run: its seed, whether it is audited or scored on held-out text, and where it is pruned."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

from orchestrator.core.events import EvaluationPlan, Scored
from orchestrator.core.state import Candidate, State
from orchestrator.policy.evidence import estimate_sigma
from orchestrator.policy.pruning import compute_thresholds
from orchestrator.policy.thresholds import CONTROL_RUN_EVERY, GAINFUL_CONTROL_EVERY, SIMPLER_LINES

_OF_TRAINING = ("startup_cpu", "startup_seconds", "uncounted", "train_cpu", "rest_cpu")
_OF_EVALUATION = ("evaluation", "evaluation_cpu")
"""What the baseline takes, by the same names in its metrics and audits and in a plan."""


def draw_seed(state: State, run: int) -> int:
    """Return the seed of the n-th scored run, from 1: every experiment has the same ones (common random numbers)."""
    return _draw(state.session.seed, "run", run)


def draw_fresh_seed(state: State, pair: int) -> int:
    """Return the fresh seed of the certificate's n-th pair, which no decision has used."""
    return _draw(state.session.seed, "certificate", pair)


@lru_cache(maxsize=256)
def _draw(*what: object) -> int:
    """Return 31 pseudorandom bits for a session's seed and a purpose, the same in every replay."""
    digest = hashlib.sha256("/".join(map(str, what)).encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


def plan_evaluation(state: State, experiment: int, run: int, seed: int) -> EvaluationPlan:
    """Return how a run is to be evaluated.

    Every run that enters a mean is audited, because claims and corrected scores are on different scales. A candidate's
    first run is audited unless it is clearly worse than the incumbent at that seed. The held-out text is reserved for
    the certificate; the baseline's first run is scored on it, too, but no decision uses that score.
    """
    best, stage, is_reported = state.incumbent, state.open.get(experiment), state.session.task.is_reported
    first = stage if isinstance(stage, Candidate) and not stage.scores else None
    if not is_reported and (best is None or experiment == 0):
        return EvaluationPlan(audit="always", confirmed=first is not None, incumbent=0, baseline_error="unmeasured")
    every = GAINFUL_CONTROL_EVERY if state.session.rule.prunes_by_gain else CONTROL_RUN_EVERY
    plan = partial(
        EvaluationPlan,
        confirmed=False,
        pruning_thresholds=compute_thresholds(state, best, first, seed) if best and first else (),
        control_run=first is not None and _draw(state.session.seed, experiment, run) % every == 0,
    )
    if is_reported or best is None:
        return plan(audit="never", incumbent=0)
    simpler = isinstance(stage, Candidate) and stage.commit.removed - stage.commit.added >= SIMPLER_LINES
    theirs = [score.val_bpb for score in best.scores if score.seed == seed]
    border = max([*theirs, best.score_to_beat]) + estimate_sigma(state)
    audit = border if first and not simpler else "always"
    return plan(audit=audit, incumbent=best.experiment, **_describe_baseline(state))


def plan_certification(state: State) -> EvaluationPlan:
    """Return how a run of the certificate is evaluated: audited, and scored on the held-out text, if it is examined."""
    examined = not state.session.task.is_reported
    audit = "always" if examined else "never"
    measured = _describe_baseline(state)
    return EvaluationPlan(audit=audit, confirmed=examined, incumbent=0, certifies=True, **measured)


def _describe_baseline(state: State) -> dict[str, Any]:
    baselines = [side for side in (*state.results, state.incumbent) if side and side.experiment == 0]
    return describe_runs([score for side in baselines for score in side.scores])


def describe_runs(runs: Sequence[Scored]) -> dict[str, Any]:
    """Return what the user's own code showed: the worst error of its claims, and its seconds beside training."""
    audits, metrics = [run.audit for run in runs if run.audit], [run.metrics for run in runs]
    return {
        "baseline_error": max([0.0, *(audit.worst for audit in audits)]),
        **{name: max([0.0, *(getattr(one, name) for one in metrics)]) or None for name in _OF_TRAINING},
        **{name: max([0.0, *(getattr(one, name) for one in audits)]) or None for name in _OF_EVALUATION},
    }
