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
from math import exp, inf, log1p, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.core import events as ev
from orchestrator.policy import thresholds as th

Array = NDArray[np.float64]

_SIDE = np.geomspace(0.02, 100, 40)
GRID: Array = np.concatenate([-_SIDE[::-1], _SIDE])  # grid of effects, in σ of one run
FAR = 20.0  # difference in σ above which the grid is too coarse to say anything about a seed's luck
_WIDTH = np.abs(np.gradient(GRID))
_BETTER = GRID > 0
_SUMS: Array = np.clip(np.add.outer(GRID, GRID), GRID[0], GRID[-1]).ravel()
_ABOVE = np.searchsorted(GRID, _SUMS).clip(1, len(GRID) - 1)
_SHARE = (_SUMS - GRID[_ABOVE - 1]) / (GRID[_ABOVE] - GRID[_ABOVE - 1])  # of a sum that goes to the point above it
_GAINS = np.maximum(GRID, 0)

HELPING = ((0.05, 1.0), (0.1, 1.0), (0.2, 1.0), (0.35, 1.0), (0.5, 1.0), (0.65, 0.5))
"""Shares of ideas that help, each with the regime's weight: 0.1 for a weak researcher, 0.5 in the best nights."""
SIZES = (0.3, 1.0, 3.0, 9.0)  # mean gains of ideas that help, in σ: from the end of a night to its beginning
FADES = (6.0, 25.0, inf)  # ideas after which a mean gain has faded to 1/e, in published nights; at best never
REST = 0.07  # share of a mean gain that does not fade
OLD = 99  # number of ideas from which on gains fade no more
HARMS = ((0.4, 0.7, 0.5, 1.0), (0.75, 0.1, 3.0, 0.1), (0.75, 0.7, 0.5, 1.0))
"""Ideas that do not help: share that hurts slightly, its mean loss in σ, and the regime's weight for a weak and for a
strong researcher. Only a weak one proposes mostly changes without an effect."""
HOPELESS = -50.0  # a loss in σ; larger ones say no more than it
HARM = 4.0  # mean loss of an idea that hurts, in σ


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

    def add(self, other: "Belief") -> "Belief":
        """Return the belief in both changes together, if their effects add up."""
        both = np.outer(self.weights, other.weights).ravel()
        below, above = both * (1 - _SHARE), both * _SHARE
        total: Array = np.bincount(np.append(_ABOVE - 1, _ABOVE), np.append(below, above)).astype(np.float64)
        return Belief(total)

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
    risk: float = 0.0
    """Expected gain that a keep needs, in σ for a whole probability of not being better; 0: the bar alone decides."""
    price: float = 0.0  # what one more run must promise, in σ

    def is_met(self, belief: Belief) -> bool:
        """Return whether an idea is likely enough to be better, in however many runs."""
        return belief.mean > 0 and belief.probability >= self._find_bar(belief)

    def explain(self, belief: Belief | None = None) -> str:
        """Return what a keep needs, `0.80 in 2 runs`, or what this one lacks, in words."""
        if belief and self.risk and belief.mean <= 0:
            return "a loss is to be expected"
        bar = self._find_bar(belief) if belief else self.bar
        least = f"{'needed: ' * bool(belief)}{bar:.2f}" + f" in {self.seeds} runs" * (self.seeds > 1)
        by_gain = self.risk and belief is None
        return f"{least}, or 1 − {1 / self.risk:.2f} × its expected gain in σ if that is more" if by_gain else least

    def _find_bar(self, belief: Belief) -> float:
        """Return the probability that an idea needs: the less gain is expected, the less may be luck."""
        return min(max(self.bar, 1 - max(belief.mean, 0) / self.risk), 1.0) if self.risk else self.bar


@cache
def _list_regimes(age: int | None) -> tuple[Array, Array]:
    """Return regimes as rows over the grid, and log prior weights, after `age` ideas; None where gains do not fade."""
    rows: list[Array] = []
    weights: list[float] = []
    gains = SIZES if age is None else [size * (REST + (1 - REST) * exp(-age / t)) for size in SIZES for t in FADES]
    for (share, weight), gain, (slightly, slight, weak, strong) in product(HELPING, gains, HARMS):
        harm = slightly * _make_exponential(-slight) + (1 - slightly) * _make_exponential(-HARM)
        rows.append(share * _make_exponential(gain) + (1 - share) * harm)
        weights.append(weight * (weak if share <= 0.2 else strong))
    return np.array(rows), np.log(np.array(weights) / sum(weights))


@cache
def _make_exponential(mean: float) -> Array:
    """Return an exponential distribution over the effects that have the sign of its mean, in σ."""
    density = np.where(np.sign(GRID) == np.sign(mean), np.exp(-np.abs(GRID / mean)), 0.0) * _WIDTH
    return density / density.sum()


@lru_cache(maxsize=64)
def learn_outlook(
    seen: tuple[tuple[float, float], ...], runs: float = 0, rule: ev.KeepRule = th.KEEP_RULE, left: float = 0
) -> Outlook:
    """Return the outlook on the next idea, given gain and error in σ of those measured so far, oldest first.

    `runs` are those of the whole night, and `left` those that remain for ideas. Most nights begin with large gains and
    end with small: either gains fade, or recent ideas weigh most.
    """
    fades, first = rule.risk is not None, OLD * (len(seen) >= th.PRIOR_WINDOW)
    ages = [min(first + n, OLD) if fades else None for n in range(len(seen) + 1)]
    rows, log_weights = _list_regimes(ages[-1])
    if seen:
        fading = (1.0 if fades else th.FADING) ** np.arange(len(seen))[::-1]
        log_weights = log_weights + fading @ np.array([_weigh_regimes(*it) for it in zip(seen, ages, strict=False)])
    weights = np.exp(log_weights - log_weights.max())
    prior = Belief(weights @ rows / weights.sum())
    weakness, rise = max(0.0, th.TYPICAL_SHARE - prior.probability), log1p(len(seen) / th.BAR_IDEAS)
    is_long = rule.two_seeds is not None and runs >= rule.two_seeds
    if rule.risk is None:
        bar = min(rule.bars[is_long] + rule.slope * weakness + th.BAR_RISE * rise, th.MAX_BAR)
        return Outlook(prior, bar, 1 + is_long, price=th.WORTHWHILE * prior.promise)
    risk = rule.risk[is_long] * (1 + rule.slope * weakness) * (1 + th.RISK_RISE * rise)
    last = Belief(weights @ _list_regimes(min(first + len(seen) + round(left), OLD))[0] / weights.sum())
    return Outlook(prior, rule.bars[is_long], 1 + is_long, risk, th.LAST_WORTH * last.promise)


@lru_cache(maxsize=4096)
def _weigh_regimes(measured: tuple[float, float], age: int | None) -> Array:
    """Return the log-likelihood of a measured gain, given with its error, under each regime."""
    return np.log(_list_regimes(age)[0] @ compute_likelihood(*measured))


@lru_cache(maxsize=4096)
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


def is_near_miss(belief: Belief) -> bool:
    """Return whether a discarded idea is more likely better than not, and expected to gain."""
    return belief.probability > 0.5 and belief.mean > 0


def decide(outlook: Outlook, belief: Belief, runs: int, cost: int) -> Literal["keep", "discard", "again"]:
    """Return what to do with an idea after `runs` runs, where the next comparison costs 1 or 2 runs."""
    if outlook.is_met(belief):
        return "keep" if runs >= outlook.seeds else "again"
    if runs >= th.MAX_RUNS or belief.promise / cost < outlook.price:
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
