"""Estimate the noise: the variance of val_bpb over seeds, and quantiles of Student's t."""

from math import sqrt

from orchestrator.core import events as ev
from orchestrator.core.state import PooledVariance, State
from orchestrator.policy.thresholds import PRIOR_DOF, SIGMA_FLOOR, T_90, T_CRITICAL


def pool_variance(state: State, scores: tuple[ev.Scored, ...] = ()) -> PooledVariance:
    """Return the pooled variance over seeds, including the profile's prior and these further runs of one candidate."""
    variance, prior = state.variance.add(scores), state.session.profile.sigma
    dof = PRIOR_DOF if prior else 0
    return PooledVariance(variance.squares + dof * prior**2, variance.dof + dof)


def estimate_sigma(state: State, scores: tuple[ev.Scored, ...] = ()) -> float:
    """Return the standard deviation of one run's score as the session and further runs of one candidate show it.

    It is never 0: runs that agree to the last digit did not differ by their seeds.
    """
    variance, scale, base = pool_variance(state, scores), 1.0, state.baseline_bpb
    if not state.session.task.metric.is_bpb:
        scale = abs((scores[0].val_bpb if scores else 0.0) if base is None else base) or 1.0
    return max(sqrt(variance.squares / max(variance.dof, 1)), SIGMA_FLOOR * scale)


def get_t_90(dof: int) -> float:
    """Return the half-width of a 90 % interval, in standard errors, by Student's t."""
    return T_90[max((known for known in T_90 if known <= dof), default=1)]


def t_critical(dof: int) -> float:
    """Return the one-sided quantile of Student's t at 1 in 5,000."""
    return T_CRITICAL[max((known for known in T_CRITICAL if known <= dof), default=1)]
