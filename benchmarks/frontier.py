"""Compare one incumbent with a frontier of K lines, by slots: the true gain of simulated nights with waves of runs.

A train.py is a row of sites, each in one of a few settings; an idea sets one site. Its effect depends on the landscape:
*additive*; *interacting*, where each pair of neighbouring sites has an effect of its own; *deceptive*, where in each
group the setting that helps at once spoils what would help most. Candidates are judged at equal seeds by the product's
posterior, by the rule that sessions record, except that nothing is stacked. With K lines the parent of an idea is drawn
by Thompson sampling over their levels, what is kept in one line is tried in the best, and after a stall the night goes
back to an earlier line. The certified line is the best one's.
"""

import math
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np

from orchestrator.core.events import SeedLuck
from orchestrator.policy import belief, thresholds

NIGHTS = 24
SLOTS = (1, 4, 16)
LINES = (1, 2, 3)
ROUNDS = 88
"""Runs of one slot in a night of 8 hours with runs of 326 s."""
GROUPS, SETTINGS = 24, 4
"""Groups of three sites, and the settings of a site; 0 is the baseline's."""
LINK = 0.8
"""Correlation of the luck of parent and child at equal seeds."""
Genome = tuple[int, ...]


class Landscape:
    """Effects in σ of one run, the same for every K and number of slots at one seed."""

    def __init__(self, kind: str, seed: int) -> None:
        dice, sites = np.random.default_rng(seed), 3 * GROUPS
        helps = dice.random((sites, SETTINGS)) < 0.2
        effects = np.where(helps, dice.exponential(1.5, helps.shape), -dice.exponential(3, helps.shape))
        self.alone = effects * (np.arange(SETTINGS) > 0)
        scale = {"additive": 0.0, "interacting": 1.5, "deceptive": 0.0}[kind]
        self.pairs = dice.normal(0, scale, (sites, SETTINGS, SETTINGS))
        self.pairs[:, 0, 0] = 0
        self.deceptive = kind == "deceptive"
        if self.deceptive:  # setting 1 helps at once, setting 2 a little
            self.alone[::3, 1:3] = 2.0, 1.0

    def measure(self, genome: Genome) -> float:
        """Return the true gain over the baseline, in σ."""
        sites = np.arange(len(genome))
        gain = float(self.alone[sites, genome].sum() + self.pairs[sites, genome, np.roll(genome, -1)].sum())
        if self.deceptive:  # the followers of a head help much under setting 2 and hurt under setting 1
            heads = np.array(genome).reshape(-1, 3)
            followers = (heads[:, 1:] > 0).sum(axis=1)
            gain += float(((heads[:, 0] == 2) * 3.0 * followers - (heads[:, 0] == 1) * 3.0 * followers).sum())
        return gain


@dataclass(eq=False)
class Line:
    """A kept candidate as the product sees it, and its hidden luck by seed."""

    genome: Genome
    parent: "Line | None" = None
    expected: float = 0.0
    """Level over the baseline by the posteriors of its keeps, in σ."""
    variance: float = 0.0
    scores: dict[int, float] = field(default_factory=dict[int, float])
    lucks: dict[int, SeedLuck] = field(default_factory=dict[int, SeedLuck])
    hidden: dict[int, float] = field(default_factory=dict[int, float])

    def draw_luck(self, seed: int, dice: np.random.Generator) -> float:
        if seed not in self.hidden:
            inherited = LINK * self.parent.draw_luck(seed, dice) if self.parent else 0.0
            self.hidden[seed] = inherited + math.sqrt(1 - LINK**2 if self.parent else 1.0) * dice.normal()
        return self.hidden[seed]


@dataclass
class Candidate:
    change: tuple[int, int]
    line: Line
    parent: Line
    earlier: tuple[tuple[float, float, int], ...] = ()
    """Gain, error and runs on earlier parents, in σ."""


class Night:
    """A night with `slots` runs at a time: when one ends, its verdict is passed and the next starts."""

    def __init__(self, land: Landscape, slots: int, lines: int, seed: int) -> None:
        self.land, self.slots, self.limit, self.dice = land, slots, lines, np.random.default_rng((seed, slots))
        self.best = Line((0,) * (3 * GROUPS))
        self.frontier, self.former = [self.best], list[Line]()
        self.queue = list[Candidate]()
        """Candidates that run before new ideas: those to be repeated, rebased, or tried in the best line."""
        self.seen, self.stalled = list[tuple[float, float]](), 0

    def play(self) -> float:
        """Return the true gain of the best line at the end."""
        self.run(self.best, 0)
        runs, ends, count = ROUNDS * self.slots - 1, list[tuple[float, int, Candidate]](), 0
        while runs or ends:
            while runs and len(ends) < self.slots:
                candidate = self.queue.pop(0) if self.queue else self.think()
                start = ends[0][0] if ends else 0.0
                heappush(ends, (start + self.dice.uniform(0.95, 1.05), count, candidate))
                count, runs = count + 1, runs - 1
            runs -= self.judge(heappop(ends)[2], runs)
        return self.land.measure(self.best.genome)

    def run(self, line: Line, seed: int) -> None:
        line.scores[seed] = -self.land.measure(line.genome) + line.draw_luck(seed, self.dice)
        line.lucks.setdefault(seed, SeedLuck(seed=seed))

    def think(self) -> Candidate:
        if self.limit > 1 and self.stalled > 3 * thresholds.STALL * self.slots and self.former:
            self.stalled = 0
            self.frontier[-1] = self.former[self.dice.integers(len(self.former))]
        draws = [self.dice.normal(line.expected, math.sqrt(line.variance)) for line in self.frontier]
        parent = self.frontier[int(np.argmax(draws))]
        site, setting = int(self.dice.integers(len(parent.genome))), int(self.dice.integers(SETTINGS - 1))
        return self.edit((site, setting + (setting >= parent.genome[site])), parent)

    def edit(self, change: tuple[int, int], parent: Line, *earlier: tuple[float, float, int]) -> Candidate:
        genome = (*parent.genome[: change[0]], change[1], *parent.genome[change[0] + 1 :])
        return Candidate(change, Line(genome, parent), parent, earlier)

    def judge(self, candidate: Candidate, left: int) -> int:
        """Run the candidate once more, and decide; return how many further runs that took."""
        line, parent = candidate.line, candidate.parent
        seed, further = len(line.scores), 0
        if seed not in parent.scores:
            self.run(parent, seed)
            further = min(1, left)
        self.run(line, seed)
        seen = tuple(self.seen[-thresholds.PRIOR_WINDOW :])
        outlook = belief.learn_outlook(seen, ROUNDS * self.slots, left=left)
        prior, runs = outlook.prior, len(line.scores)
        for old_gain, old_error, old_runs in candidate.earlier:
            prior, runs = belief.infer(prior, old_gain, math.hypot(old_error, thresholds.INTERACTION)), runs + old_runs
        differences = [parent.scores[seed] - score for seed, score in line.scores.items()]
        gain, error = belief.compare(differences, [parent.lucks[seed] for seed in line.scores], LINK)
        posterior = belief.infer(prior, gain, error)
        decision = belief.decide(outlook, posterior, runs, 1 + (seed + 1 not in parent.scores))
        is_overtaken = parent not in self.frontier
        if decision == "again" and not is_overtaken:
            self.queue.append(candidate)
            return further
        if decision != "discard" and is_overtaken:  # merged onto the best, and run again
            if self.best.genome[candidate.change[0]] != candidate.change[1]:
                shown = (*candidate.earlier, (gain, error, len(line.scores)))
                self.queue.append(self.edit(candidate.change, self.best, *shown))
            return further
        self.seen.append((gain, error))
        kept, self.stalled = decision == "keep", self.stalled + 1
        for each, difference in zip(line.scores, differences, strict=True):
            luck = belief.update_luck(parent.lucks[each], difference, LINK, posterior, kept=kept)
            (line if kept else parent).lucks[each] = luck
        if kept:
            self.keep(candidate, posterior)
        return further

    def keep(self, candidate: Candidate, posterior: belief.Belief) -> None:
        line, parent, self.stalled = candidate.line, candidate.parent, 0
        line.expected = parent.expected + posterior.mean
        line.variance = parent.variance + float(posterior.weights @ (belief.GRID - posterior.mean) ** 2)
        if parent is not self.best and self.best.genome[candidate.change[0]] != candidate.change[1]:
            self.queue.append(self.edit(candidate.change, self.best))
        rivals = sorted([*self.frontier, line], key=lambda each: -each.expected)
        if self.limit == 1:
            rivals = [line]
        self.former += [each for each in self.frontier if each not in rivals[: self.limit]]
        self.frontier, self.best = rivals[: self.limit], rivals[0]


def main() -> None:
    print(f"| landscape | slots |{'|'.join(f' K = {lines} ' for lines in LINES)}|")
    print(f"|---|--:|{'---|' * len(LINES)}")
    for kind in ("additive", "interacting", "deceptive"):
        for slots in SLOTS:
            gains = [[Night(Landscape(kind, n), slots, lines, n).play() for n in range(NIGHTS)] for lines in LINES]
            cells = [f"{np.mean(row):.1f} ± {np.std(row) / math.sqrt(NIGHTS):.1f}" for row in gains]
            print(f"| {kind} | {slots} | {' | '.join(cells)} |", flush=True)
