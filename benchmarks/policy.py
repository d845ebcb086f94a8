"""Compare keep rules on simulated nights: the gain that each finds, and the share of its keeps that is not better.

A night is a stream of ideas with hidden effects and a number of runs. A score is the hidden level plus luck; at equal
seeds a candidate inherits part of its parent's luck (common random numbers). Effects are drawn as in published nights.
A rule sees scores only. The alternatives know σ and what luck is shared; ours estimates both from its own runs, as the
product does, decides by `orchestrator.policy.belief`, prunes and spends its last runs on a certificate. With --ours,
plays more nights of the product's rule and upstream's alone, and prints every figure with its standard error and what
is short of its line. With --check, also exits with 1 if something is. With --pruning, compares it with and without.
"""

import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, reduce

import numpy as np
from numpy.typing import NDArray

from benchmarks.surfaces import Step, list_steps
from orchestrator.core.events import SeedLuck
from orchestrator.core.state import PooledVariance
from orchestrator.policy import belief, pruning, thresholds
from orchestrator.policy.certification import compute_half_width

NIGHTS = 80
LENGTHS = (20, 35, 90, 300)
OURS = 8_000
"""Runs of each rule in a cell of --ours: 400 nights of 20 runs, 26 of 300."""
CERTIFICATES = 20
"""Certificates drawn for each night: where they miss is mostly the luck of their own runs."""
LINES = {"gain": (1.0, math.inf), "not better": (0.0, 0.05), "holds": (0.87, 0.93), "claimed": (0.98, 1.02)}
"""What each figure of our rule must be: gain over upstream's, share of keeps, coverage of 90 % intervals, and claimed
over true gain. One is short of it by more than two standard errors."""
WEAK_FALSE = 0.10
"""Largest share of keeps that may not be better with a weak researcher."""
FRESH = 1_000
"""First of the seeds that are used only once."""


@dataclass(frozen=True)
class Landscape:
    """How the k-th idea of a night turns out; scores are in bits per byte.

    It helps with probability `helps`, by an exponential of mean first·exp(−k/decay) + later; otherwise it hurts, by an
    exponential of mean `slight` (a share of `slightly`) or `harm`.
    """

    name: str
    helps: float
    first: float
    decay: float
    later: float
    slight: float
    harm: float
    slightly: float
    sigma: float
    weak: bool = False
    """The researcher is weak: one keep in ten may be false."""
    own: float = 0.45
    """Standard deviation, in σ, of the luck that a changed constant does not inherit at equal seeds."""
    own_shape: float = 0.95
    """The same for a changed shape."""
    shapes: float = 0.4
    """Share of ideas that change a shape."""
    heavy: bool = False
    """Luck is Student's t with 3 degrees of freedom instead of normal."""
    uneven: bool = False
    """σ differs by candidate, by a factor of e^±0.5."""
    drift: float = 0.0
    """σ by which the machine's scores rise over the night."""
    crowding: float = 0.0
    """Share of an idea's effect that is lost when half of `cap` has been gained: ideas overlap."""
    deceptive: float = 0.0
    """Probability that an idea that helps now spoils the next four."""
    late: float = 0.0
    """Share of ideas that are further behind on the way than their ends tell, by a half-normal amount of LATE σ."""
    blind: bool = False
    """Curves tell nothing: gaps on the way are of 6σ, whatever the effect."""


STRONG = Landscape("strong", 0.54, 0.0061, 7, 8e-5, 0.0006, 0.0031, 0.58, 0.0007)
FLAT = Landscape("flat", 0.35, 0.002, 30, 2e-4, 0.0006, 0.0031, 0.58, 0.0007)
LANDSCAPES = (
    STRONG,
    FLAT,
    Landscape("laptop", 0.45, 0.045, 5, 0.003, 0.004, 0.035, 0.35, 0.008),
    Landscape("weak researcher", 0.10, 0.020, 20, 0.002, 0.0004, 0.020, 0.80, 0.008, weak=True),
    replace(STRONG, name="interacting", crowding=0.6),
    replace(STRONG, name="deceptive", deceptive=0.3),
    replace(FLAT, name="heavy tails", heavy=True),
    replace(FLAT, name="uneven noise", uneven=True),
    replace(FLAT, name="drift", drift=1.0),
)


LATE = (6.0, 4.0, 2.0)
CURVES = (*LANDSCAPES, replace(FLAT, name="late bloomers", late=0.3), replace(FLAT, name="blind curves", blind=True))
"""What pruning is tried on: the last two have curves that mislead, or tell nothing."""
NEAREST = 8
"""Real steps of about the same final difference, one of which an idea has its curve from."""


@dataclass
class Idea:
    """A candidate; rules may read only `link`."""

    effect: float
    level: float
    """Hidden gain over the baseline that it would have if kept."""
    link: float
    """Correlation of its luck with its parent's at equal seeds."""
    sigma: float
    parent: "Idea | None" = None
    parts: "Sequence[Idea]" = ()
    """The ideas that it combines."""
    luck: dict[int, float] = field(default_factory=dict[int, float])

    def get_luck(self, seed: int, draw: Callable[[], float]) -> float:
        if seed not in self.luck:
            inherited = self.link * self.parent.get_luck(seed, draw) if self.parent else 0.0
            own = math.sqrt(1 - self.link**2) if self.parent else 1.0
            self.luck[seed] = inherited + own * draw()
        return self.luck[seed]


@dataclass
class Night:
    """A simulated night."""

    land: Landscape
    runs: int
    seed: int
    used: float = 0
    ideas: int = 0
    kept: list[Idea] = field(default_factory=list[Idea])
    spoiled: int = 0
    claimed: float | None = None
    """Gain that the rule's certificate states; None without one."""
    covered: float = 0.0
    """Share of its certificates whose interval contains the true gain."""
    prunes: bool = True
    """Whether runs may end early, which only our rule does."""
    pruned: list[Idea] = field(default_factory=list[Idea])
    saved: float = 0.0
    finished: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """Of each finished idea, its gap at the first checkpoint and its final deficit, in σ."""

    def __post_init__(self) -> None:
        self.watch = np.random.default_rng((self.seed, self.runs, 1))  # apart, so that other rules meet the same night
        self.dice = np.random.default_rng((self.seed, self.runs))
        self.thoughts = np.random.default_rng(self.seed)  # every rule meets the same ideas
        self.baseline = self.head = Idea(0.0, 0.0, 0.0, self.land.sigma)
        self.next_seed = FRESH

    @property
    def left(self) -> int:
        return math.floor(self.runs - self.used + 1e-9)

    @property
    def gain(self) -> float:
        return self.head.level

    def draw(self) -> float:
        return self.dice.standard_t(3) / math.sqrt(3) if self.land.heavy else self.dice.normal()

    def think(self) -> Idea:
        """Draw the next idea, to be measured against the head of the branch."""
        land, k = self.land, self.ideas
        self.ideas += 1
        if self.thoughts.random() < land.helps:
            effect = self.thoughts.exponential(land.first * math.exp(-k / land.decay) + land.later)
            effect *= 1 - land.crowding * min(self.gain / (0.1 * land.first * 40), 1)
        else:
            effect = -self.thoughts.exponential(land.slight if self.thoughts.random() < land.slightly else land.harm)
        if self.spoiled:
            self.spoiled, effect = self.spoiled - 1, effect - 0.5 * abs(effect)
        own = land.own_shape if self.thoughts.random() < land.shapes else land.own
        sigma = land.sigma * (math.exp(self.thoughts.normal(0, 0.5)) if land.uneven else 1)
        return Idea(effect, self.head.level + effect, math.sqrt(1 - own**2), sigma, self.head)

    def run(self, idea: Idea, seed: int) -> float:
        """Return a score, lower is better."""
        self.used += 1
        drift = self.land.drift * self.land.sigma * self.used / self.runs
        return -idea.level + idea.sigma * idea.get_luck(seed, self.draw) + drift

    def run_fresh(self, idea: Idea) -> float:
        """Return a score on an unused seed."""
        self.next_seed += 1
        return self.run(idea, self.next_seed)

    def follow(self, deficit: float) -> tuple[bool, list[float]]:
        """Return whether an idea is about a schedule, and its gaps at the checkpoints for its final deficit, in σ."""
        steps, ends, weights = load_curves()
        near = np.argsort(np.abs(ends - math.asinh(deficit)))[:NEAREST]
        step = steps[self.watch.choice(near, p=weights[near] / weights[near].sum())]
        late = abs(self.watch.normal()) * (self.watch.random() < self.land.late)
        gaps = [gap + deficit - step.deficit + late * more for gap, more in zip(step.gaps, LATE, strict=True)]
        return step.is_schedule, [*self.watch.normal(0, LATE[0], 3)] if self.land.blind else gaps

    def prune(self, idea: Idea, share: float) -> None:
        """End the run under way at a share of its budget."""
        self.used, self.saved = self.used - (1 - share), self.saved + 1 - share
        self.pruned.append(idea)

    def keep(self, idea: Idea) -> None:
        self.head = idea
        self.kept.append(idea)
        if idea.effect > 0 and self.dice.random() < self.land.deceptive:
            self.spoiled = 4

    def combine(self, ideas: Sequence[Idea]) -> Idea | None:
        """Return one candidate with the changes of several, whose effects add up; None if they do not fit together."""
        effect, link = math.fsum(idea.effect for idea in ideas), math.prod(idea.link for idea in ideas)
        return Idea(effect, self.head.level + effect, link, ideas[0].sigma, self.head, parts=ideas)

    def learn(self, idea: Idea, gain: float, error: float, scores: Sequence[float], *, kept: bool) -> None:
        """Tell the researcher how an idea was judged, in σ; these learn nothing from it."""


@cache
def load_curves() -> tuple[list[Step], NDArray[np.float64], NDArray[np.float64]]:
    """Return the real steps, their final deficits on a scale that grows as the logarithm, and their weights."""
    steps = list_steps()
    return steps, np.arcsinh([step.deficit for step in steps]), np.array([step.weight for step in steps])


Rule = Callable[[Night], None]


def upstream(night: Night) -> None:
    """Keep whatever is lower, on one run: autoresearch's rule."""
    best = night.run_fresh(night.head)
    while night.left > 0:
        idea = night.think()
        if (score := night.run_fresh(idea)) < best:
            best = score
            night.keep(idea)


def noise_floor(night: Night) -> None:
    """Keep what is lower by 1.5 times the noise floor, on one run."""
    best = float(np.mean([night.run_fresh(night.head) for _ in range(3)]))
    while night.left > 0:
        idea = night.think()
        if (score := night.run_fresh(idea)) < best - 1.5 * night.land.sigma:
            best = score
            night.keep(idea)


def first_edition(night: Night) -> None:
    """Keep at 1 in 5,000 after up to eight runs on independent seeds, remeasuring the incumbent: our first rule."""
    futile, sure = (0.8, 1.4, 1.8, 2.1, 2.4, 2.6, 2.8), 4.2
    best = [night.run_fresh(night.head) for _ in range(3)]
    while night.left > 0:
        idea, runs = night.think(), list[float]()
        while night.left > 0:
            runs.append(night.run_fresh(idea))
            error = night.land.sigma * math.sqrt(1 / len(runs) + 1 / len(best))
            gain = float(np.mean(best) - np.mean(runs))
            if len(runs) >= 2 and gain > sure * error:
                best = runs
                night.keep(idea)
                break
            if len(runs) > 7 or gain < futile[len(runs) - 1] * error:
                break
            if len(best) < len(runs) and night.left > 0:
                best.append(night.run_fresh(night.head))


def two_runs(night: Night) -> None:
    """Keep what is lower on one run and in the mean of two."""
    best = float(np.mean([night.run_fresh(night.head) for _ in range(2)]))
    while night.left > 1:
        idea = night.think()
        if (first := night.run_fresh(idea)) < best:
            mean = (first + night.run_fresh(idea)) / 2
            if mean < best:
                best = mean
                night.keep(idea)


def successive_halving(night: Night) -> None:
    """Screen eight ideas with one run each, four with two more, keep the best of two with four more if it is lower."""
    best = [night.run_fresh(night.head) for _ in range(4)]
    while night.left >= 8:
        entries = [(idea, [night.run_fresh(idea)]) for idea in (night.think() for _ in range(8))]
        for survivors, more in ((4, 2), (2, 4)):
            entries = sorted(entries, key=lambda entry: float(np.mean(entry[1])))[:survivors]
            for idea, runs in entries:
                runs.extend(night.run_fresh(idea) for _ in range(min(more, night.left)))
        idea, runs = min(entries, key=lambda entry: float(np.mean(entry[1])))
        if np.mean(best) - np.mean(runs) > night.land.sigma * math.sqrt(1 / len(runs) + 1 / len(best)):
            best = runs
            night.keep(idea)


def alpha_investing(night: Night) -> None:
    """Spend a wealth of 0.05 on tests of two runs each, earn 0.05 with each keep (Foster and Stine 2008)."""
    wealth = 0.05
    best = [night.run_fresh(night.head) for _ in range(3)]
    while night.left > 1:
        idea, alpha = night.think(), wealth / 2
        runs = [night.run_fresh(idea) for _ in range(2)]
        error = night.land.sigma * math.sqrt(1 / len(runs) + 1 / len(best))
        p = 0.5 * math.erfc((float(np.mean(best) - np.mean(runs)) / error) / math.sqrt(2))
        if p < alpha:
            wealth += 0.05
            best = runs
            night.keep(idea)
        else:
            wealth = max(wealth - alpha / (1 - alpha) / 10, 1e-4)


def paired(night: Night) -> None:
    """Keep at 1.5 standard errors of the difference at equal seeds, after two to four runs."""
    best = [night.run(night.head, seed) for seed in range(2)]
    while night.left > 0:
        idea, runs = night.think(), list[float]()
        while night.left > 0:
            if len(runs) == len(best):
                best.append(night.run(night.head, len(best)))
                continue
            runs.append(night.run(idea, len(runs)))
            ratio = float(np.mean(np.subtract(best[: len(runs)], runs)))
            ratio /= math.sqrt(2 * (1 - idea.link) / len(runs)) * night.land.sigma
            if len(runs) >= 2 and ratio > 1.5:
                best = runs
                night.keep(idea)
                break
            if len(runs) >= 4 or ratio < 0.3:
                break


@dataclass
class Scatter:
    """Squared deviations from each group's own mean, and their degrees of freedom, beginning with a prior."""

    squares: float
    dof: int

    def add(self, values: Sequence[float], sign: int = 1) -> None:
        """Include a group; with a sign of -1, leave it out again."""
        mean = math.fsum(values) / max(len(values), 1)
        self.squares += sign * math.fsum((value - mean) ** 2 for value in values)
        self.dof += sign * max(len(values) - 1, 0)

    @property
    def variance(self) -> float:
        return self.squares / self.dof


class Head:
    """The head of the branch as the product sees it: scores by seed, beliefs about their luck, and the noise so far."""

    def __init__(self, night: Night) -> None:
        variance = night.land.sigma**2
        self.night, self.scores, self.lucks = night, dict[int, float](), dict[int, SeedLuck]()
        self.baseline = self.scores
        self.runs = Scatter(thresholds.PRIOR_DOF * variance, thresholds.PRIOR_DOF)
        priors, dof = {True: thresholds.SAME_SHAPE, False: thresholds.OTHER_SHAPE}, thresholds.PAIRING_DOF
        self.pairs = {same: Scatter(dof * prior * variance, dof) for same, prior in priors.items()}

    def estimate_link(self, idea: Idea) -> float:
        scatter = self.pairs[has_same_shape(self.night, idea)]
        return min(max(1 - scatter.variance / (2 * self.runs.variance), 0.0), 0.98)

    def compare(self, idea: Idea, scores: dict[int, float]) -> tuple[list[float], float, float, float]:
        """Return the differences in σ at the seeds of `scores`, the gain, its error and the correlation of luck.

        The scatter of these runs counts, too.
        """
        raw = [self.scores[seed] - score for seed, score in scores.items()]
        self.runs.add([*scores.values()])
        self.pairs[has_same_shape(self.night, idea)].add(raw)
        differences, link = [each / math.sqrt(self.runs.variance) for each in raw], self.estimate_link(idea)
        self.runs.add([*scores.values()], -1)
        self.pairs[has_same_shape(self.night, idea)].add(raw, -1)
        return differences, *belief.compare(differences, [self.lucks[seed] for seed in scores], link), link

    def count(self, idea: Idea, scores: dict[int, float]) -> None:
        """Learn from a judged idea how much scores and differences scatter."""
        self.runs.add([*scores.values()])
        self.pairs[has_same_shape(self.night, idea)].add([self.scores[seed] - score for seed, score in scores.items()])

    def measure_at(self, seed: int) -> bool:
        """Run the head with a seed unless it has; return True if it ran."""
        if seed in self.scores:
            return False
        self.runs.add([*self.scores.values()], -1)
        self.scores[seed], self.lucks[seed] = self.night.run(self.night.head, seed), SeedLuck(seed=seed)
        self.runs.add([*self.scores.values()])
        return True


def has_same_shape(night: Night, idea: Idea) -> bool:
    """Return whether ideas change constants only: what the product reads from parameters and steps."""
    return idea.link > math.sqrt(1 - night.land.own**2) ** (thresholds.MAX_COMBINED + 0.5)


def posterior(night: Night) -> None:
    """Keep by the posterior of differences at equal seeds, combine, ablate and certify: the product's rule."""
    seen, head, keeps = list[tuple[float, float]](), Head(night), list[tuple[Idea, float, float]]()
    misses = list[tuple[Idea, float, float]]()
    last = 2 * math.ceil(thresholds.CERTIFICATE_SHARE * night.runs / 2)
    ablations = int(thresholds.ABLATION_SHARE * night.runs)
    for seed in range(thresholds.BASELINE_RUNS):
        head.measure_at(seed)
    while night.left > (last + ablations) * bool(night.kept):
        left = max(night.left - last - ablations, 0)
        outlook = belief.learn_outlook(tuple(seen), night.runs, left=left)
        is_late = left <= max(int(thresholds.COMBINE_SHARE * night.runs), 1)
        idea, prior = (is_late and combine(night, misses, outlook.prior)) or (None, outlook.prior)
        found = measure(night, head, idea or night.think(), prior, outlook, 0, last + ablations)
        if found is None:
            continue
        if found[3]:
            night.keep(found[0])
        if idea is None:
            seen.append(found[1:3])
            (keeps if found[3] else misses).append(found[:3])
    outlook, asked = belief.learn_outlook(tuple(seen), night.runs), set[int]()
    while night.left > last and night.kept:
        doubts = {n: belief.infer(outlook.prior, *keep[1:]) for n, keep in enumerate(keeps) if n not in asked}
        number = min(doubts, key=lambda n: doubts[n].probability, default=None)
        if number is None or doubts[number].probability >= thresholds.ABLATE_BELOW:
            break
        asked.add(number)
        undone = keeps[number][0]
        without = Idea(-undone.effect, night.head.level - undone.effect, undone.link, undone.sigma, night.head)
        bar = replace(outlook, bar=thresholds.REVERT_BAR, seeds=1, risk=0.0)
        found = measure(night, head, without, doubts[number].mirror(), bar, 1, last)
        if found and found[3]:
            night.head = without
            night.kept.remove(undone)
    if night.kept:
        certify(night, head, last // 2)


def combine(
    night: Night, misses: list[tuple[Idea, float, float]], prior: belief.Belief
) -> tuple[Idea, belief.Belief] | None:
    """Return the combination of the best near-misses, if it promises more than a new idea, and the belief in it.

    It takes them out of `misses`. What each has shown counts for less together, as in `evidence.expect`.
    """
    beliefs = [(belief.infer(prior, gain, error), n) for n, (_, gain, error) in enumerate(misses)]
    likely = [(found, n) for found, n in beliefs if belief.is_near_miss(found)]
    best = sorted(likely, key=lambda pair: -pair[0].mean)[: thresholds.MAX_COMBINED]
    total = reduce(belief.Belief.add, [found for found, _ in best]) if len(best) > 1 else None
    if total is None or total.promise <= prior.promise:
        return None
    taken = [misses.pop(n) for n in sorted((n for _, n in best), reverse=True)]
    idea = night.combine([each for each, _, _ in taken])
    shown = [belief.infer(prior, gain, math.hypot(error, thresholds.INTERACTION)) for _, gain, error in taken]
    return idea and (idea, reduce(belief.Belief.add, shown))


def measure(
    night: Night, head: Head, idea: Idea, prior: belief.Belief, outlook: belief.Outlook, first: int, reserve: int
) -> tuple[Idea, float, float, bool] | None:
    """Run an idea from seed `first` on until decided; return idea, gain, error and True if kept; None without a score.

    The first run of a new idea is pruned as the product does it.
    """
    scores, decision, found = dict[int, float](), "again", None
    while decision == "again" and night.left > reserve * bool(night.kept):
        seed = first + len(scores)
        if head.measure_at(seed):
            continue
        scores[seed] = night.run(idea, seed)
        is_new = night.prunes and prior is outlook.prior and len(scores) == 1
        if is_new and (share := find_prune(night, outlook, scores[seed] - head.scores[seed])):
            night.prune(idea, share)
            return None
        differences, gain, error, link = head.compare(idea, scores)
        posterior = belief.infer(prior, gain, error)
        cost = 1 if seed + 1 in head.scores else 2
        decision = belief.decide(outlook, posterior, len(scores), cost)
        found = differences, gain, error, posterior, link
    if found is None:
        return None
    differences, gain, error, posterior, link = found
    kept = decision == "keep"
    head.count(idea, scores)
    night.learn(idea, gain, error, [*scores.values()], kept=kept)
    for seed, difference in zip(scores, differences, strict=True):
        head.lucks[seed] = belief.update_luck(head.lucks[seed], difference, link, posterior, kept=kept)
    if kept:
        head.scores, head.lucks = scores, {seed: head.lucks[seed] for seed in scores}
    return idea, gain, error, kept


def find_prune(night: Night, outlook: belief.Outlook, deficit: float) -> float:
    """Return the share of its budget at which a run that would end behind by this much is pruned; 0 if it finishes."""
    deficit /= night.land.sigma
    is_schedule, gaps = night.follow(deficit)
    misled = pruning.estimate_misled(outlook.prior, night.finished)
    last, is_control = thresholds.CHECKPOINTS[-1], night.watch.random() < 1 / thresholds.GAINFUL_CONTROL_EVERY
    for share, gap in zip(thresholds.CHECKPOINTS, gaps, strict=True):
        is_seen = not is_control and (share == last or not is_schedule)
        if is_seen and pruning.is_hopeless(outlook, misled, share, gap):
            return share
    night.finished += [(gaps[0], deficit)] * (not is_schedule)
    return 0.0


def certify(night: Night, head: Head, pairs: int) -> None:
    """State the gain by pairs of runs on fresh seeds, with a 90 % interval, as `certification.certify` does."""
    link, dof = math.prod(head.estimate_link(idea) for idea in night.kept), thresholds.KEEP_RULE.own_dof
    sides, runs = (night.baseline, night.head), ([*head.baseline.values()], [*head.scores.values()])
    claims, held, used = list[float](), 0, night.used
    for certificate in range(CERTIFICATES):
        night.used = used
        seeds = (FRESH * (9 + certificate) + n for n in range(pairs))
        fresh = [[night.run(side, seed) for side in sides] for seed in seeds]
        claims.append(float(np.mean([old - new for old, new in fresh])))
        noise = [Scatter(dof * head.runs.variance, dof) for _ in sides]
        for scatter, decisive, last in zip(noise, runs, zip(*fresh, strict=True), strict=True):
            scatter.add([*decisive, *last])
        before, now = (PooledVariance(scatter.squares, scatter.dof) for scatter in noise)
        half = thresholds.KEEP_RULE.width ** (1 / pairs) * compute_half_width(before, now, link) / math.sqrt(pairs)
        held += abs(claims[-1] - night.gain) <= half
    night.claimed, night.covered = float(np.mean(claims)), held / CERTIFICATES


RULES: tuple[Rule, ...] = (
    upstream,
    noise_floor,
    first_edition,
    two_runs,
    successive_halving,
    alpha_investing,
    paired,
    posterior,
)


@dataclass(frozen=True)
class Outcome:
    """Means over nights."""

    gain: float
    error: float
    """Standard error of the gain."""
    false: float
    """Share of keeps that are not better."""
    ideas: float
    """Ideas per run."""
    covered: float
    """Share of certificates whose 90 % interval contains the true gain."""
    claimed: float
    """Claimed gain as a multiple of the true one."""


def play(rule: Rule, land: Landscape, runs: int, nights: int = NIGHTS) -> Outcome:
    """Play nights with a rule; nights of equal seeds are the same for every rule."""
    played = [Night(land, runs, seed) for seed in range(nights)]
    for night in played:
        rule(night)
    gains = [night.gain for night in played]
    kept = [idea.effect for night in played for idea in night.kept]
    certified = [night for night in played if night.claimed is not None]
    claims, truths = sum(night.claimed or 0.0 for night in certified), sum(night.gain for night in certified)
    return Outcome(
        gain=float(np.mean(gains)),
        error=float(np.std(gains)) / math.sqrt(nights),
        false=sum(effect <= 0 for effect in kept) / max(len(kept), 1),
        ideas=sum(night.ideas for night in played) / sum(night.used for night in played),
        covered=sum(night.covered for night in certified) / max(len(certified), 1),
        claimed=claims / truths if truths else 1.0,
    )


def main() -> None:
    if "--pruning" in sys.argv:
        compare_pruning()
        return
    if {"--ours", "--check"} & set(sys.argv):
        if (short := compare_with_upstream()) and "--check" in sys.argv:
            raise SystemExit(short)
        return
    names = [rule.__name__.replace("_", " ") for rule in RULES]
    print("True gain of a night in σ of one run (share of keeps that are not better).\n")
    print(f"| landscape | runs | {' | '.join(names)} | ideas per run | interval holds | claimed / true |")
    print(f"|---|--:|{'---|' * (len(names) + 3)}")
    for land in LANDSCAPES:
        for runs in LENGTHS:
            found = {rule: play(rule, land, runs) for rule in RULES}
            cells = [f"{o.gain / land.sigma:.1f} ({o.false:.0%})" for o in found.values()]
            ours = found[posterior]
            cells += [f"{ours.ideas:.2f}", f"{ours.covered:.0%}", f"{ours.claimed:.2f}"]
            print(f"| {land.name} | {runs} | {' | '.join(cells)} |", flush=True)


def compare_pruning() -> None:
    """Print what pruning gains and costs, night by night on the same ideas."""
    print(
        "| landscape | runs | gain without, of upstream's | with | difference | prunes | runs saved | better, their σ |"
    )
    print("|---|--:|---|---|---|--:|--:|---|")
    cells = [(land, runs) for land in CURVES for runs in LENGTHS[:3]]
    with ProcessPoolExecutor() as pool:
        for (land, runs), words in zip(cells, pool.map(measure_pruning, *zip(*cells, strict=True)), strict=True):
            print(f"| {land.name} | {runs} | {words} |", flush=True)


def measure_pruning(land: Landscape, runs: int) -> str:
    without, ours, theirs = (
        [Night(land, runs, seed, prunes=prunes) for seed in range(OURS // runs)] for prunes in (False, True, False)
    )
    for night, other, rival in zip(without, ours, theirs, strict=True):
        posterior(night)
        posterior(other)
        upstream(rival)
    gains = np.array([[night.gain for night in nights] for nights in (without, ours, ours, theirs)])
    gains[2] -= gains[0]
    shares = [estimate_ratio([*zip(row, gains[3], strict=True)]) for row in gains[:3]]
    pruned = [idea.effect / land.sigma for night in ours for idea in night.pruned]
    better, count = [effect for effect in pruned if effect > 0], len(ours)
    figures = [f"{100 * share:.1f} ± {100 * error:.1f} %" for share, error in shares]
    figures += [f"{len(pruned) / count:.1f}", f"{sum(night.saved for night in ours) / count:.1f}"]
    return " | ".join([*figures, f"{len(better) / max(len(pruned), 1):.0%}, {sum(better) / count:.2f}"])


def compare_with_upstream() -> bool:
    """Print gain over upstream's, false keeps and the certificate of our rule with standard errors, and what is short.

    Return whether something is short of its line.
    """
    print(
        "| landscape | runs | nights | gain, of upstream's | keeps not better | single changes | interval holds "
        "| claimed / true |"
    )
    print("|---|--:|--:|---|---|---|---|---|")
    cells, short = [(land, runs) for land in LANDSCAPES for runs in LENGTHS], list[str]()
    with ProcessPoolExecutor() as pool:
        for (land, runs), found in zip(cells, pool.map(measure_cell, *zip(*cells, strict=True)), strict=True):
            figures = " | ".join(f"{100 * ratio:.1f} ± {100 * error:.1f} %" for ratio, error in found.values())
            print(f"| {land.name} | {runs} | {OURS // runs} | {figures} |", flush=True)
            short += [f"{land.name}, {runs} runs: {words}" for words in find_shortfalls(land, found)]
    print("\n" + "\n".join(short or ["The posterior rule meets all requirements."]))
    return bool(short)


def measure_cell(land: Landscape, runs: int) -> dict[str, tuple[float, float]]:
    """Return the figures of LINES, each with its standard error; and false single changes, of combinations, too."""
    theirs, ours = ([Night(land, runs, seed) for seed in range(OURS // runs)] for _ in range(2))
    for other, night in zip(theirs, ours, strict=True):
        upstream(other)
        posterior(night)
    certified = [night for night in ours if night.claimed is not None]
    false = [(sum(idea.effect <= 0 for idea in night.kept), len(night.kept)) for night in ours]
    single = [[part for idea in night.kept for part in idea.parts or [idea]] for night in ours]
    return {
        "gain": estimate_ratio([(night.gain, other.gain) for night, other in zip(ours, theirs, strict=True)]),
        "not better": estimate_ratio(false),
        "single": estimate_ratio([(sum(part.effect <= 0 for part in parts), len(parts)) for parts in single]),
        "holds": estimate_ratio([(night.covered, 1) for night in certified]),
        "claimed": estimate_ratio([(night.claimed or 0.0, night.gain) for night in certified]),
    }


def estimate_ratio(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the ratio of two sums over nights, and its standard error."""
    above, below = np.array(pairs, float).T
    ratio = above.sum() / below.sum()
    return float(ratio), float(np.std(above - ratio * below)) * math.sqrt(len(above)) / float(below.sum())


def find_shortfalls(land: Landscape, found: dict[str, tuple[float, float]]) -> list[str]:
    """Return which figures are off their lines by more than two standard errors."""
    lines = {**LINES, "not better": (0.0, WEAK_FALSE)} if land.weak else LINES
    edges = {name: (ratio - 2 * error, ratio + 2 * error) for name, (ratio, error) in found.items()}
    return [
        f"{name} {found[name][0]:.1%} ± {found[name][1]:.1%}"
        for name, (least, most) in lines.items()
        if edges[name][1] < least or edges[name][0] > most
    ]


if __name__ == "__main__":
    main()
