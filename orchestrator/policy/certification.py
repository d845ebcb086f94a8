"""Certify the night's gain: baseline and best on fresh seeds and held-out text, which no decision has used."""

from itertools import accumulate
from math import prod, sqrt
from operator import attrgetter
from statistics import fmean

from orchestrator.core import events as ev
from orchestrator.core.state import PooledVariance, State
from orchestrator.policy import thresholds as th
from orchestrator.policy.evaluation_plan import draw_fresh_seed
from orchestrator.policy.evidence import compute_t, estimate_link, estimate_sigma, get_t_90, pool_variance
from orchestrator.policy.judge import NeededRun
from orchestrator.policy.limits import count_certificate_pairs, explain_aborted, has_time_for


def list_certificate_runs(state: State) -> list[NeededRun]:
    """Return the runs that the certificate still needs and that can be finished, pair by pair.

    Empty if too many of them have failed. One slow run before them does not cost the night its certificate.
    """
    too_many = state.lost_fresh >= th.MAX_ABORTED or explain_aborted(state)
    if not state.best or not has_time_for(state, 1, usual=True) or too_many:
        return []
    under_way = {(run.granted.experiment, run.granted.seed) for run in state.reruns.values()}
    seeds = [draw_fresh_seed(state, pair) for pair in range(1, count_certificate_pairs(state) + 1)]
    needed = [[NeededRun(n, seed) for n in (0, state.best) if seed not in state.fresh.get(n, {})] for seed in seeds]
    pairs = [[run for run in pair if run not in under_way] for pair in needed]
    if not has_time_for(state, 2, usual=True):  # one of a pair alone would be a wasted run
        sizes, free = accumulate(map(len, pairs)), len(state.slots) - len(state.running)
        pairs = [pair for pair, size in zip(pairs, sizes, strict=True) if size <= free]
    return [run for pair in pairs for run in pair]


def certify(state: State) -> ev.Certified | None:
    """Return the night's gain, from the pairs of fresh runs so far; None if there are none."""
    before, now = state.fresh.get(0, {}), state.fresh.get(state.best, {})
    pairs = [(before[seed], now[seed]) for seed in before if seed in now]
    if not state.best or not pairs:
        return None
    heldout = all(score.confirmed is not None for pair in pairs for score in pair)
    scores = attrgetter("confirmed" if heldout else "val_bpb")
    gains = [scores(old) - scores(new) for old, new in pairs]
    gain, margin = fmean(gains), _compute_margin(state, gains)
    return ev.Certified(
        experiment=state.best, gain=gain, low=gain - margin, high=gain + margin, pairs=len(gains), heldout=heldout
    )


def _compute_margin(state: State, gains: list[float]) -> float:
    """Return the half-width of the 90 % interval of the mean of these gains."""
    sigma, spread = estimate_sigma(state), pool_variance(state)
    keeps = (result.verdict for result in state.settled if result.experiment and isinstance(result.verdict, ev.Kept))
    links = prod(estimate_link(state, verdict.same_shape, (), sigma) for verdict in keeps)
    if state.session.rule.own_noise and state.incumbent:
        dof, sides = state.session.rule.own_dof, (state.former[0], state.incumbent)
        prior = PooledVariance(dof * sigma**2, dof)
        old, new = (prior.add((*side.scores, *state.fresh[side.experiment].values())) for side in sides)
        width = state.session.rule.width ** (1 / len(gains))
        return width * compute_half_width(old, new, links) / sqrt(len(gains))
    mean = fmean(gains)
    squares = spread.dof * 2 * max(1 - links, 0.05) * sigma**2 + sum((each - mean) ** 2 for each in gains)
    dof = max(spread.dof + len(gains) - 1, 1)
    return get_t_90(dof) * sqrt(squares / dof / len(gains))


def compute_half_width(before: PooledVariance, now: PooledVariance, link: float) -> float:
    """Return the half-width of the 90 % interval of a difference at one seed, after Welch and Satterthwaite.

    Each side has a variance of its own: what was kept is noisier than most where noise differs, since a noisy candidate
    is lucky more often.
    """
    (a, b), (m, n) = (before.squares / before.dof, now.squares / now.dof), (before.dof, now.dof)
    variance = a + b - 2 * min(link, 0.95) * sqrt(a * b)
    return compute_t(0.95, (a + b) ** 2 / (a * a / m + b * b / n)) * sqrt(variance)
