"""Compare ways to search train.py's constants: the gain of simulated nights on surfaces fitted to real runs.

Each night draws a surface that is as likely as any to be the true one (`surfaces.py`), or has the mean of them all: a
draw is rougher than the truth, so that a way that goes far finds too much on it, and the mean is smoother. Steps are
chosen by the product's own code from the trials so far, and judged by its keep rule, as in `policy.py`. `--nights
COUNT`, `--ways NAME …` and `--lengths RUNS …` choose how many nights are played, of which ways and lengths.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import NDArray

from benchmarks import surfaces
from benchmarks.policy import Idea, Landscape, Night, posterior
from orchestrator.optimizer.crew import choose_step
from orchestrator.optimizer.search import SearchState, SearchStep, Trial, rank_steps, stack_near_misses
from orchestrator.optimizer.space import explain_unsearchable, take_step
from prepare.constants import Value

LENGTHS = 20, 35
Way = Callable[[SearchState, int, str], SearchStep | None]


@dataclass
class Change(Idea):
    """An idea that sets constants."""

    changes: dict[str, Value] = field(default_factory=dict[str, Value])
    before: dict[str, Value] = field(default_factory=dict[str, Value])


class SearchNight(Night):
    """A night of one way to search on one draw of a surface."""

    def __init__(self, surface: surfaces.Surface, way: Way, runs: int, seed: int, prunes: bool = False) -> None:
        land = Landscape(surface.name, 0, 0, 1, 0, 0, 0, 0, surface.sigma, own=surface.own)
        super().__init__(land, runs, seed, prunes=prunes)
        self.surface, self.way, self.measure = surface, way, surface.draw(seed)
        self.values, self.level = {name: c.value for name, c in surface.constants.items()}, 0.0
        self.trials = [Trial("experiment 0", {}, self.values, "kept", val_bpb=self.score(self.baseline))]

    def score(self, idea: Idea) -> float:
        """Return the score of an idea at the session's first seed."""
        return -idea.level + idea.sigma * idea.get_luck(0, self.draw)

    def think(self) -> Change:
        """Return the next step as the way to search chooses it; a random one where it has none."""
        self.ideas += 1
        constants = {name: replace(c, value=self.values[name]) for name, c in self.surface.constants.items()}
        search = SearchState(constants, tuple(self.trials), self.land.sigma)
        step = self.way(search, self.ideas, f"{self.seed}/{self.ideas}") or choose_at_random(search, self.ideas, "")
        return self.make(dict(step.changes))

    def combine(self, ideas: Sequence[Idea]) -> Change | None:
        """Return the step that takes several steps at once; None if two are on one constant, or a value has changed."""
        steps = [idea for idea in ideas if isinstance(idea, Change)]
        changes = {name: value for step in steps for name, value in step.changes.items()}
        fit = len(changes) == sum(len(step.changes) for step in steps)
        stale = any(self.values[name] != value for step in steps for name, value in step.before.items())
        return self.make(changes) if fit and not stale else None

    def make(self, changes: dict[str, Value]) -> Change:
        """Return the candidate with these constants."""
        before, level = {name: self.values[name] for name in changes}, -self.measure(self.values | changes)
        shapes = {"DEPTH", "MODEL_DIM", "MLP_RATIO", "HEAD_DIM", "TOTAL_BATCH_SIZE"} & changes.keys()
        link = math.sqrt(1 - (self.land.own_shape if shapes else self.land.own) ** 2)
        return Change(level - self.head.level, level, link, self.land.sigma, self.head, changes=changes, before=before)

    def prune(self, idea: Idea, share: float) -> None:
        super().prune(idea, share)
        changes = idea.changes if isinstance(idea, Change) else {}
        self.trials.append(Trial(f"experiment {self.ideas}", changes, self.values, "failed"))

    def learn(self, idea: Idea, gain: float, error: float, scores: Sequence[float], *, kept: bool) -> None:
        """Add the trial of a judged idea."""
        if isinstance(idea, Change):
            verdict, sigma = "kept" if kept else "discarded", self.land.sigma
            name, before = f"experiment {self.ideas}", self.values
            mean = float(np.mean(scores))
            self.trials.append(Trial(name, idea.changes, before, verdict, gain * sigma, error * sigma, mean))
            self.values = self.values | idea.changes if kept else self.values


def choose_at_random(search: SearchState, number: int, seed: str) -> SearchStep:
    """Return a step on one or two constants, drawn at random."""
    dice = np.random.default_rng([number, *map(ord, seed)])
    while True:
        changes = dict[str, Value]()
        for name in dice.choice([*search.constants], dice.integers(1, 3), replace=False):
            constant = search.constants[str(name)]
            others = surfaces.list_others(constant)
            steps = [take_step(constant, way, size) for way in ("up", "down") for size in (0.5, 1.0)]
            found = others or [new for new in steps if new is not None]
            if found:
                changes[constant.name] = found[dice.integers(len(found))]
        if changes and search.is_new(changes):
            return SearchStep(changes, 0.0, 0.0, "")


HADAMARD = np.array([[(-1) ** (row & column).bit_count() for column in range(8)] for row in range(8)])


def screen(search: SearchState, number: int, seed: str) -> SearchStep | None:
    """Screen seven constants in seven runs with a two-level design, stack those with a good effect, then go on.

    A run takes a step on four of them at once; with the baseline, that gives the main effect of each (Plackett and
    Burman 1946).
    """
    base = search.trials[0].before
    start = {name: replace(constant, value=base[name]) for name, constant in search.constants.items()}
    steps = rank_steps(SearchState(start, search.trials[:1], search.sigma))
    levels = {name: value for step in reversed(steps) for name, value in step.changes.items()}
    names = [*dict.fromkeys(name for step in steps for name in step.changes)][:7]
    tried = len(search.trials) - 1
    if tried < 7:
        wanted = {name: levels[name] if HADAMARD[tried + 1][i + 1] < 0 else base[name] for i, name in enumerate(names)}
    elif tried == 7:
        scores = np.array([trial.val_bpb for trial in search.trials])
        good = [name for i, name in enumerate(names) if scores @ HADAMARD[:, i + 1] / 4 > search.sigma / 2]
        wanted = {name: levels[name] if name in good else base[name] for name in names}
    else:
        return choose_step("coordinate", search, number, seed)
    changes = {name: value for name, value in wanted.items() if value != search.values[name]}
    return SearchStep(changes, 0.0, 0.0, "") if search.is_new(changes) else choose_at_random(search, number, seed)


def stack_often(search: SearchState, number: int, seed: str) -> SearchStep | None:
    """Return a stack of near-misses every third time, where today it is every sixth."""
    if number % 3 == 0 and (stack := stack_near_misses(search)) is not None:
        return stack
    return choose_step("coordinate", search, number, seed)


WAYS: dict[str, Way] = {
    "coordinate": partial(choose_step, "coordinate"),
    "coordinate, stacks twice as often": stack_often,
    "factorial": screen,
    "random": choose_at_random,
    "tpe": partial(choose_step, "tpe"),
    "gp": partial(choose_step, "gp"),
}


def play(name: str, way: str, runs: int, seed: int) -> tuple[float, int, int]:
    """Play a night; return its true gain in σ, its keeps, and how many of these are not better."""
    surface = surfaces.load_surface(name)
    night = SearchNight(surface, WAYS[way], runs, seed)
    posterior(night)
    return night.gain / surface.sigma, len(night.kept), sum(idea.effect <= 0 for idea in night.kept)


def play_pruned(name: str, runs: int, seed: int) -> list[tuple[float, ...]]:
    """Play a night unpruned, calibrated by itself, and by an earlier night, too.

    Return for each its gain in σ, and the runs saved, prunes, prunes of what would have been better, and that in σ.
    """
    surface, found, past = surfaces.load_surface(name), list[tuple[float, ...]](), list[tuple[float, float]]()
    measure = surface.draw(seed)
    for number, prunes, known in ((seed + 10_000, True, ()), (seed, False, ()), (seed, True, ()), (seed, True, past)):
        night = SearchNight(surface, WAYS["coordinate"], runs, number, prunes)
        night.measure = measure
        night.finished.extend(known)
        posterior(night)
        past += () if past else night.finished
        better = [idea.effect / surface.sigma for idea in night.pruned if idea.effect > 0]
        found.append((night.gain / surface.sigma, night.saved, len(night.pruned), len(better), sum(better)))
    return found[1:]


def compare_pruning(nights: int, lengths: Sequence[int]) -> None:
    print("\nPruning: coordinate search without, calibrated by its own night, and by an earlier night, too.\n")
    print("| surface | runs | pruning | gain | more than without | runs saved | prunes | of these better, their σ |")
    print("|---|--:|---|---|---|---|--:|---|")
    with ProcessPoolExecutor() as pool:
        for name, runs in product(surfaces.SURFACES, lengths):
            found = np.array([*pool.map(partial(play_pruned, name, runs), range(nights))])
            for each, words in enumerate(("none", "own night", "earlier night")):
                gains, saved, prunes, better, lost = found[:, each].T
                cells = describe(gains), describe(gains - found[:, 0, 0]), describe(saved, 2), f"{prunes.mean():.2f}"
                false = f"{better.sum() / max(prunes.sum(), 1):.0%}, {describe(lost, 3)}"
                print(f"| {name} | {runs} | {words} | {' | '.join(cells)} | {false} |", flush=True)


def describe(values: NDArray[np.float64], digits: int = 1) -> str:
    """Return the mean over nights and its standard error."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values) / math.sqrt(len(values)):.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nights", type=int, default=20)
    parser.add_argument("--ways", nargs="*", default=[way for way in WAYS if not explain_unsearchable(way)])
    parser.add_argument("--lengths", nargs="*", type=int, default=LENGTHS)
    chosen, _ = parser.parse_known_args()
    print("True gain of a night in σ of one run (share of keeps that are not better; difference from the first way on")
    print("the same surfaces), each ± its standard error.\n")
    print(f"| surface | runs | {' | '.join(chosen.ways)} |\n|---|--:|{'---|' * len(chosen.ways)}")
    with ProcessPoolExecutor() as pool:
        names = [name + kind for name in surfaces.SURFACES for kind in ("", surfaces.MEAN)]
        lengths: list[int] = chosen.lengths
        for name, runs in product(names, lengths):
            cells, first = list[str](), None
            for way in chosen.ways:
                gains, kept, false = np.array([*pool.map(partial(play, name, way, runs), range(chosen.nights))]).T
                apart = "" if first is None else f"; {describe(gains - first)}"
                cells.append(f"{describe(gains)} ({false.sum() / max(kept.sum(), 1):.0%}{apart})")
                first = gains if first is None else first
            print(f"| {name} | {runs} | {' | '.join(cells)} |", flush=True)
    compare_pruning(chosen.nights, chosen.lengths)


if __name__ == "__main__":
    main()
