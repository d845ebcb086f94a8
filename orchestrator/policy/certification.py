"""Certify the night's gain: baseline and best on fresh seeds and held-out text, which no decision has used."""

from itertools import accumulate
from math import prod, sqrt
from operator import attrgetter
from statistics import fmean

from orchestrator.core import events as ev
from orchestrator.core.state import State
from orchestrator.policy.evaluation_plan import draw_fresh_seed
from orchestrator.policy.evidence import estimate_link, estimate_sigma, get_t_90, pool_variance
from orchestrator.policy.judge import NeededRun
from orchestrator.policy.limits import count_certificate_pairs, has_time_for
from orchestrator.policy.thresholds import MAX_ABORTED


def list_certificate_runs(state: State) -> list[NeededRun]:
    """Return the runs that the certificate still needs and that can be finished, pair by pair.

    Empty if too many of them have failed.
    """
    if not state.best or not has_time_for(state, 1) or state.lost_fresh >= MAX_ABORTED:
        return []
    under_way = {(run.granted.experiment, run.granted.seed) for run in state.reruns.values()}
    seeds = [draw_fresh_seed(state, pair) for pair in range(1, count_certificate_pairs(state) + 1)]
    needed = [[NeededRun(n, seed) for n in (0, state.best) if seed not in state.fresh.get(n, {})] for seed in seeds]
    pairs = [[run for run in pair if run not in under_way] for pair in needed]
    if not has_time_for(state, 2):  # one of a pair alone would be a wasted run
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
    gain = fmean(gains)
    sigma, spread = estimate_sigma(state), pool_variance(state)
    keeps = (result.verdict for result in state.tried if isinstance(result.verdict, ev.Kept))
    links = prod(estimate_link(state, verdict.same_shape, (), sigma) for verdict in keeps)
    squares = spread.dof * 2 * max(1 - links, 0.05) * sigma**2 + sum((each - gain) ** 2 for each in gains)
    dof = max(spread.dof + len(gains) - 1, 1)
    error = sqrt(squares / dof / len(gains))
    margin = get_t_90(dof) * error
    return ev.Certified(
        experiment=state.best,
        gain=gain,
        low=gain - margin,
        high=gain + margin,
        pairs=len(gains),
        heldout=heldout,
    )
