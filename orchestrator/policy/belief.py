"""Infer the posterior of an idea's gain over the incumbent, under a prior that is learned during the night.

Effects are in units of σ, the standard deviation of one run; positive is better. The prior is a mixture of regimes,
each a way in which a researcher's ideas turn out: how often they help, by how much, and how badly they hurt. The
regimes cover the published nights. Each measured idea shifts weight between them, so a weak researcher faces a higher
bar than a strong one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from math import log1p, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.core import events as ev
from orchestrator.policy import thresholds as th

Array = NDArray[np.float64]

_SIDE = np.geomspace(0.02, 100, 40)
GRID: Array = np.concatenate([-_SIDE[::-1], _SIDE])
"""Grid of effects, in σ of one run."""
FAR = 20.0
"""Difference in σ above which the grid is too coarse to say anything about a seed's luck."""
_WIDTH = np.abs(np.gradient(GRID))
_BETTER = GRID > 0
_GAINS = np.maximum(GRID, 0)

HELPING = ((0.05, 1.0), (0.1, 1.0), (0.2, 1.0), (0.35, 1.0), (0.5, 1.0), (0.65, 0.5))
"""Shares of ideas that help, each with the regime's weight: 0.1 for a weak researcher, 0.5 in the best nights."""
SIZES = (0.3, 1.0, 3.0, 9.0)
"""Mean gains of ideas that help, in σ: from the end of a night to its beginning."""
HARMS = ((0.4, 0.7, 0.5, 1.0), (0.75, 0.1, 3.0, 0.1), (0.75, 0.7, 0.5, 1.0))
"""Ideas that do not help: share that hurts slightly, its mean loss in σ, and the regime's weight for a weak and for a
strong researcher. Only a weak one proposes mostly changes without an effect."""
HOPELESS = -50.0
"""A loss in σ; larger ones say no more than it."""
HARM = 4.0
"""Mean loss of an idea that hurts, in σ."""


@dataclass(frozen=True, slots=True)
class Belief:
    """A distribution over effects."""

    weights: Array

    @property
    def probability(self) -> float:
        """Return the probability that the idea is better."""
        return float(self.weights[_BETTER].sum())

    @property
    def mean(self) -> float:
        return float(self.weights @ GRID)

    @property
    def promise(self) -> float:
        """Return the expected improvement, E[max(effect, 0)]."""
        return float(self.weights @ _GAINS)

    def mirror(self) -> "Belief":
        """Return the belief in reverting the idea: the same effects with the opposite sign."""
        return Belief(self.weights[::-1])

    def shift(self, price: float) -> "Belief":
        """Return the belief in the effect less a price in σ, on the same grid."""
        if not price:
            return self
        moved = np.interp(GRID + price, GRID, self.weights / _WIDTH, left=0, right=0) * _WIDTH
        return Belief(moved / moved.sum()) if moved.sum() > 0 else self


@dataclass(frozen=True, slots=True)
class Outlook:
    """The prior of the next idea; the probability of being better and the seeds that a keep needs."""

    prior: Belief
    bar: float
    seeds: int = 1

    def is_met(self, belief: Belief) -> bool:
        """Return whether an idea is likely enough to be better, in however many runs."""
        return belief.mean > 0 and belief.probability >= self.bar

    @property
    def need(self) -> str:
        """Return what a keep needs, in words: `0.80 in 2 runs`."""
        return f"{self.bar:.2f}" + f" in {self.seeds} runs" * (self.seeds > 1)


@cache
def _list_regimes() -> tuple[Array, Array]:
    """Return the regimes as rows of probabilities over the grid, and the logarithms of their prior weights."""
    rows: list[Array] = []
    weights: list[float] = []
    for (share, weight), size, (slightly, slight, weak, strong) in product(HELPING, SIZES, HARMS):
        harm = slightly * _make_exponential(-slight) + (1 - slightly) * _make_exponential(-HARM)
        rows.append(share * _make_exponential(size) + (1 - share) * harm)
        weights.append(weight * (weak if share <= 0.2 else strong))
    return np.array(rows), np.log(np.array(weights) / sum(weights))


def _make_exponential(mean: float) -> Array:
    """Return an exponential distribution over the effects that have the sign of its mean, in σ."""
    density = np.where(np.sign(GRID) == np.sign(mean), np.exp(-np.abs(GRID / mean)), 0.0) * _WIDTH
    return density / density.sum()


@lru_cache(maxsize=64)
def learn_outlook(seen: tuple[tuple[float, float], ...], runs: float = 0, rule: ev.KeepRule = th.KEEP_RULE) -> Outlook:
    """Return the outlook on the next idea, given gain and error in σ of those measured so far, oldest first.

    `runs` are those of the whole night. Recent ideas weigh most: most nights begin with large gains and end with small.
    """
    rows, log_weights = _list_regimes()
    if seen:
        age = np.arange(len(seen))[::-1]
        log_weights = log_weights + th.FADING**age @ np.array([_weigh_regimes(gain, error) for gain, error in seen])
    weights = np.exp(log_weights - log_weights.max())
    prior = Belief(weights @ rows / weights.sum())
    weakness = max(0.0, th.TYPICAL_SHARE - prior.probability)
    is_long = rule.two_seeds is not None and runs >= rule.two_seeds
    bar = rule.bars[is_long] + rule.slope * weakness + th.BAR_RISE * log1p(len(seen) / th.BAR_IDEAS)
    return Outlook(prior, min(bar, th.MAX_BAR), 1 + is_long)


@lru_cache(maxsize=4096)
def _weigh_regimes(gain: float, error: float) -> Array:
    """Return the log-likelihood of a measured gain under each regime."""
    return np.log(_list_regimes()[0] @ compute_likelihood(gain, error))


def compute_likelihood(gain: float, error: float) -> Array:
    """Return the likelihood of a measured gain for each effect of GRID; a small share of gains are outliers."""
    # Else no effect would explain a gain beyond the regimes or between two points of the grid, and the prior decide.
    gain = min(max(gain, HOPELESS), GRID[-1])
    squares = ((gain - GRID) / max(error, np.abs(gain - GRID).min())) ** 2
    wide, rare = 2.2, th.OUTLIERS
    return (1 - rare) * np.exp(-0.5 * squares) + rare / wide * np.exp(-0.5 * squares / wide**2) + 1e-9


def infer(prior: Belief, gain: float, error: float) -> Belief:
    """Return the posterior after a measured gain and its standard error, both in σ."""
    weights = prior.weights * compute_likelihood(gain, error)
    return Belief(weights / weights.sum())


def decide(outlook: Outlook, belief: Belief, runs: int, cost: int) -> Literal["keep", "discard", "again"]:
    """Return what to do with an idea after `runs` runs, where the next comparison costs 1 or 2 runs."""
    if outlook.is_met(belief):
        return "keep" if runs >= outlook.seeds else "again"
    if runs >= th.MAX_RUNS or belief.promise / cost < th.WORTHWHILE * outlook.prior.promise:
        return "discard"
    return "again"


def compare(differences: Sequence[float], lucks: Sequence[ev.SeedLuck], link: float) -> tuple[float, float]:
    """Return the gain over the incumbent and its standard error, from differences at equal seeds, all in σ.

    `link` is the correlation of the two sides' luck at one seed. An incumbent was selected partly for its luck; the
    part that the candidate does not share is subtracted.
    """
    own, left = 1 - link**2, 1 - link
    weights = [1 / (own + left**2 * luck.variance) for luck in lucks]
    pairs = zip(differences, lucks, weights, strict=True)
    total = sum(weights)
    return sum(weight * (d - left * luck.mean) for d, luck, weight in pairs) / total, 1 / sqrt(total)


def update_luck(luck: ev.SeedLuck, difference: float, link: float, belief: Belief, *, kept: bool) -> ev.SeedLuck:
    """Return the incumbent's luck at a seed after an idea was measured there; the new incumbent's if `kept`."""
    if abs(difference) > FAR:
        return ev.SeedLuck(seed=luck.seed) if kept else luck
    own, left = 1 - link**2, 1 - link
    gain = -left * luck.variance / (own + left**2 * luck.variance)
    surprise = GRID - difference
    means = luck.mean + gain * (surprise + left * luck.mean) + (surprise if kept else 0.0)
    mean = float(belief.weights @ means)
    spread = float(belief.weights @ (means - mean) ** 2)
    variance = min(luck.variance * own / (own + left**2 * luck.variance) + spread, 1.0)
    return ev.SeedLuck(seed=luck.seed, mean=mean, variance=variance)
