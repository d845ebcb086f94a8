"""A tournament of keep rules on simulated nights: what each finds, and how much of what it keeps is not better.

A night is a stream of ideas with hidden effects and a number of runs. A score is the hidden level plus the luck of its
seed, part of which all experiments share at one seed (common random numbers), plus luck of its own. Effects are drawn
as in published nights. A rule sees scores only. With --check, exits 1 where the posterior rule falls short of upstream.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

NIGHTS = 80
LENGTHS = (20, 35, 90, 300)
SEEDS = 1_000
"""Seeds of a session; rules that draw fresh seeds take them from here, too."""


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
    """The researcher is weak: one keep in ten may be no better."""
    own: float = 0.35
    """Standard deviation of a run's own luck, in σ, for changes of a constant; the rest is shared at equal seeds."""
    own_shape: float = 0.95
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


@dataclass(frozen=True)
class Idea:
    """A candidate as the simulation knows it; rules may look at `is_shape` only."""

    effect: float
    level: float
    """Hidden gain over the baseline that it would have if kept."""
    is_shape: bool
    own: float
    sigma: float


@dataclass
class Night:
    """One simulated night; `keep` moves the branch."""

    land: Landscape
    runs: int
    seed: int
    used: int = 0
    ideas: int = 0
    effects: list[float] = field(default_factory=list)
    spoiled: int = 0

    def __post_init__(self) -> None:
        self.luck = np.random.default_rng((self.seed, self.runs))
        self.thoughts = np.random.default_rng(self.seed)  # every rule meets the same ideas
        self.shared = self.draw(SEEDS)
        self.head = Idea(0.0, 0.0, False, self.land.own, self.land.sigma)
        self.next_seed = SEEDS // 2

    @property
    def left(self) -> int:
        return self.runs - self.used

    @property
    def gain(self) -> float:
        return sum(self.effects)

    def draw(self, count: int) -> np.ndarray:
        return self.luck.standard_t(3, count) / math.sqrt(3) if self.land.heavy else self.luck.normal(size=count)

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
        is_shape = bool(self.thoughts.random() < land.shapes)
        own = land.own_shape if is_shape else land.own
        sigma = land.sigma * (math.exp(self.thoughts.normal(0, 0.5)) if land.uneven else 1)
        return Idea(effect, self.head.level + effect, is_shape, own, sigma)

    def run(self, idea: Idea, seed: int) -> float:
        """Return a score, lower is better."""
        self.used += 1
        common = math.sqrt(1 - idea.own**2) * self.shared[seed]
        noise = idea.sigma * (common + idea.own * self.draw(1)[0])
        return -idea.level + noise + self.land.drift * self.land.sigma * self.used / self.runs

    def run_fresh(self, idea: Idea) -> float:
        """Return a score on a seed that was not used before."""
        self.next_seed += 1
        return self.run(idea, SEEDS // 2 + self.next_seed % (SEEDS // 2))

    def keep(self, idea: Idea) -> None:
        self.head = idea
        self.effects.append(idea.effect)
        if idea.effect > 0 and self.luck.random() < self.land.deceptive:
            self.spoiled = 4


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
    _compare_in_pairs(night, _PairedTest())


def posterior(night: Night) -> None:
    """Keep by the posterior of the difference at equal seeds, at a false discovery rate of 10 %."""
    _compare_in_pairs(night, _Posterior(night.land.sigma))


def _compare_in_pairs(night: Night, test: "_PairedTest | _Posterior") -> None:
    """Run r of every idea uses seed r; the test says after each run: keep, drop, or run once more."""
    best = [night.run(night.head, seed) for seed in range(2)]
    while night.left > 0:
        idea, runs = night.think(), list[float]()
        decision, difference, error = "more", 0.0, 1.0
        while night.left > 0 and decision == "more":
            if len(runs) == len(best):
                best.append(night.run(night.head, len(best)))
                if night.left == 0:
                    break
            runs.append(night.run(idea, len(runs)))
            difference = float(np.mean(np.array(best[: len(runs)]) - runs))
            own = night.land.own_shape if idea.is_shape else night.land.own
            error = math.sqrt(2 / len(runs)) * own * night.land.sigma
            decision = test.decide(difference, error, len(runs), 1 if len(runs) < len(best) else 2)
        if runs:
            test.learn(difference, error)
        if decision == "keep":
            best = runs
            night.keep(idea)


class _PairedTest:
    def decide(self, difference: float, error: float, runs: int, cost: int) -> str:
        del cost
        if runs >= 2 and difference > 1.5 * error:
            return "keep"
        return "drop" if runs >= 4 or difference < 0.3 * error else "more"

    def learn(self, difference: float, error: float) -> None:
        """Learn nothing."""


class _Posterior:
    """The prior over effects is a histogram: published nights weigh as much as ten ideas, the night's own add to it.

    An idea is kept when it is better with a probability of 0.7 at least, while at most one keep in ten is expected not
    to be; it is dropped when one more run of it promises less than half of what a new idea's run does.
    """

    RATE, LEAST, RATIO, STRENGTH, MOST = 0.1, 0.7, 0.5, 10, 8
    FADING = 0.97
    """Weight that an idea keeps with each one after it: late ideas are worse."""

    def __init__(self, sigma: float) -> None:
        grid = np.concatenate([-np.geomspace(200, 0.005, 36), np.geomspace(0.005, 60, 32)])
        width = np.abs(np.gradient(grid))
        helps = (grid > 0) * (0.3 * np.exp(-grid / 2) + 0.8 * np.exp(-grid / 0.5)) * width
        nothing = (grid < 0) * np.exp(-0.5 * ((grid + 0.03) / 0.03) ** 2)
        hurts = (grid < 0) * (0.7 * np.exp(grid / 0.7) + 0.125 * np.exp(grid / 4)) * width
        shares = ((0.3, helps), (0.3, nothing), (0.4, hurts))
        self.grid = grid * sigma
        self.published = np.sum([share * part / part.sum() for share, part in shares], axis=0)
        self.prior, self.own, self.count = self.published, np.zeros_like(grid), 0.0
        self.kept, self.expected_false = 0, 0.0

    def infer(self, difference: float, error: float) -> np.ndarray:
        likelihood = np.exp(-0.5 * ((difference - self.grid) / error) ** 2) * self.prior
        total = likelihood.sum()
        return likelihood / total if total > 0 else self.prior

    def decide(self, difference: float, error: float, runs: int, cost: int) -> str:
        belief = self.infer(difference, error)
        false = 1 - float(belief[self.grid > 0].sum())
        if false <= 1 - self.LEAST and (self.expected_false + false) / (self.kept + 1) <= self.RATE:
            self.kept, self.expected_false = self.kept + 1, self.expected_false + false
            return "keep"
        gains = np.maximum(self.grid, 0)
        promise, elsewhere = float((belief * gains).sum()) / cost, float((self.prior * gains).sum())
        return "drop" if runs >= self.MOST or promise < self.RATIO * elsewhere else "more"

    def learn(self, difference: float, error: float) -> None:
        self.own = self.FADING * self.own + self.infer(difference, error)
        self.count = self.FADING * self.count + 1
        self.prior = (self.STRENGTH * self.published + self.own) / (self.STRENGTH + self.count)


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


def play(rule: Rule, land: Landscape, runs: int, nights: int = NIGHTS) -> Outcome:
    """Play the same nights, by seed, with every rule."""
    played = [Night(land, runs, seed) for seed in range(nights)]
    for night in played:
        rule(night)
    gains = [night.gain for night in played]
    effects = [effect for night in played for effect in night.effects]
    false = sum(effect <= 0 for effect in effects) / max(len(effects), 1)
    ideas = sum(night.ideas for night in played) / sum(night.used for night in played)
    return Outcome(float(np.mean(gains)), float(np.std(gains)) / math.sqrt(nights), false, ideas)


def main() -> None:
    names = [rule.__name__.replace("_", " ") for rule in RULES]
    print("True gain of a night in σ of one run (share of keeps that are not better).\n")
    print(f"| landscape | runs | {' | '.join(names)} |")
    print(f"|---|--:|{'---|' * len(names)}")
    short: list[str] = []
    for land in LANDSCAPES:
        for runs in LENGTHS:
            found = {rule: play(rule, land, runs) for rule in RULES}
            cells = [f"{o.gain / land.sigma:.1f} ({o.false:.0%})" for o in found.values()]
            print(f"| {land.name} | {runs} | {' | '.join(cells)} |", flush=True)
            short += [f"{land.name}, {runs} runs: {words}" for words in find_shortfalls(land, found)]
    print("\n" + "\n".join(short or ["The posterior rule holds every line."]))
    if "--check" in sys.argv and short:
        raise SystemExit(1)


def find_shortfalls(land: Landscape, found: dict[Rule, Outcome]) -> list[str]:
    """Return where the posterior rule finds less than upstream's does, or keeps too much that is not better."""
    ours, theirs = found[posterior], found[upstream]
    most = 0.10 if land.weak else 0.05
    less = ours.gain < theirs.gain - math.hypot(ours.error, theirs.error)
    return [f"it finds {ours.gain / theirs.gain:.0%} of upstream's gain"] * less + [
        f"{ours.false:.0%} of its keeps are not better"
    ] * (ours.false > most)


if __name__ == "__main__":
    main()
