"""Estimate the variance of val_bpb over seeds; look up quantiles of Student's t."""

from math import sqrt
from statistics import NormalDist

from orchestrator.core import events as ev
from orchestrator.core.state import PooledVariance, State
from orchestrator.policy.thresholds import PRIOR_DOF, SIGMA_FLOOR, T_90, T_CRITICAL


def pool_variance(state: State, scores: tuple[ev.Scored, ...] = ()) -> PooledVariance:
    """Return the pooled variance over seeds, including the profile's prior and these further runs of a candidate."""
    variance, prior = state.variance.add(scores), state.session.profile.sigma
    dof = PRIOR_DOF if prior else 0
    return PooledVariance(variance.squares + dof * prior**2, variance.dof + dof)


def calibrate_noise(profile: ev.SessionProfile, earlier: PooledVariance) -> ev.SessionProfile:
    """Return the profile with the σ that earlier sessions on this machine measured, where they say enough."""
    if earlier.dof < PRIOR_DOF:
        return profile
    prior = PooledVariance(PRIOR_DOF * profile.sigma**2, PRIOR_DOF * bool(profile.sigma))
    total = earlier.pool(prior)
    return profile.model_copy(update={"sigma": sqrt(total.squares / total.dof)})


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


def compute_visible_difference(pairs: int) -> float:
    """Return the difference of two arms that this many paired nights see with 80 % power, in σ of one night's gain.

    It is the sum of Student's quantiles for the 90 % interval and for the power, the latter by the first terms of its
    expansion about the normal quantile; nights of equal seeds are taken as independent, the worst case.
    """
    dof, z = pairs - 1, NormalDist().inv_cdf(0.8)
    power = z + (z**3 + z) / (4 * dof) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * dof**2)
    return (get_t_90(dof) + power) * sqrt(2 / pairs)


def t_critical(dof: int) -> float:
    """Return the one-sided quantile of Student's t at 1 in 5,000."""
    return T_CRITICAL[max((known for known in T_CRITICAL if known <= dof), default=1)]
