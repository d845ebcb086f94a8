from math import sqrt

from orchestrator.core import events as ev
from orchestrator.core.state import PooledVariance, State
from orchestrator.policy.thresholds import PRIOR_DOF, SIGMA_FLOOR, T_CRITICAL


def pool_variance(state: State, scores: tuple[ev.Scored, ...] = ()) -> PooledVariance:
    """All that is known of the spread of val_bpb over seeds, with these further runs of one candidate."""
    spread, prior = state.variance.plus(scores), state.session.profile.sigma
    dof = PRIOR_DOF if prior else 0
    return PooledVariance(spread.squares + dof * prior**2, spread.dof + dof)


def compute_sigma(spread: PooledVariance) -> float:
    """Standard deviation of one run's val_bpb. Never 0: runs that agree to the bit did not differ by their seeds."""
    return max(sqrt(spread.squares / max(spread.dof, 1)), SIGMA_FLOOR)


def t_critical(dof: int) -> float:
    """The standard errors that a keep needs when σ has so many degrees of freedom."""
    return T_CRITICAL[max((known for known in T_CRITICAL if known <= dof), default=1)]
