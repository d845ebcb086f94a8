"""Fit models to short real runs: what each of train.py's constants does to the score, for a tournament of searchers.

`surfaces.csv` holds runs of a small model and of the cpu profile, with their losses on the way; `python -m benchmarks
surfaces` says how well a fit predicts runs that it has not seen. With --collect, trains what the table lacks, on one
core in four minutes for the small model and half an hour for the profile; with --nights FILE.db …, adds the runs of
recorded nights. `--surfaces NAME …` chooses which.
"""

import argparse
import csv
import io
import math
import os
import subprocess
import sys
from ast import literal_eval
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise, permutations, product
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.description import get_recent_loss
from orchestrator.optimizer.families import find_family
from orchestrator.optimizer.search import SearchState, Trial
from orchestrator.optimizer.space import list_tunable, take_step
from orchestrator.policy.thresholds import CHECKPOINTS, SAME_SHAPE
from orchestrator.session.store import Session
from prepare import manifest, profiles
from prepare.build import calibration
from prepare.constants import Choices, Constant, Value, format_literal, read_values, with_constants
from prepare.manifest import BudgetAmount

TABLE = Path(__file__).with_name("surfaces.csv")
COLUMNS = "surface", "seed", "changes", "val_bpb", "loss 40 %", "loss 60 %", "loss 80 %", "steps"
SMALL, NIGHTS = "one layer", "cpu profile"
"""The latter also has the runs of recorded nights, each at its night's own budget."""
SURFACES: dict[str, dict[str, Value]] = {
    SMALL: {"DEPTH": 1, "MODEL_DIM": 96, "TOTAL_BATCH_SIZE": 1024, "MLP_RATIO": 2},
    NIGHTS: {},
}
"""What differs from the cpu profile in the baselines."""
DATA = {SMALL: ("vocab_size=1024", "seq_len=128", "eval_tokens=16384"), NIGHTS: ()}
WORK = {SMALL: 2.0e11, NIGHTS: 1.37e12}
"""The budget of a run: about a second of one core, 17 steps; and that of two of the recorded nights, 35 steps."""
SEEDS = {SMALL: (1, 2, 3, 4), NIGHTS: (602854055, 500950146, 1652830359, 611173977)}
"""Those of the baseline's runs; all but the last are those of the designs, too."""
JOINT, MOST = {SMALL: 50, NIGHTS: 16}, {SMALL: 8, NIGHTS: 6}
"""Joint draws, and how many constants they change at most."""
AGAIN = 5
"""Designs of the small model that run at two more seeds."""
CENTERS: dict[str, tuple[dict[str, Value], ...]] = {SMALL: ({},), NIGHTS: ({}, {"DEPTH": 1, "MODEL_DIM": 64})}
"""Where joint draws begin: at the baseline and, of the cpu profile, also where its recorded nights soon were."""
EXPLORED = {SMALL: (), NIGHTS: (("factorial", 8), ("tpe", 10), ("tpe again", 6))}
"""How many runs each way to search chooses by its own results, from the baseline on; again: by all of them."""
MEAN = ", mean"
SPREAD = 0.35
"""Standard deviation of a joint draw, as a share of each constant's space."""


def make_script(name: str) -> str:
    """Return the train.py of a surface: the baseline with its profile's constants."""
    return profiles.apply_to_script(
        calibration.read_baseline(), profiles.with_constants(profiles.CPU, SURFACES.get(name, {}))
    )


@cache
def list_constants(name: str) -> dict[str, Constant]:
    return list_tunable(make_script(name))


def list_designs(name: str) -> list[tuple[int, dict[str, Value]]]:
    """Return seed and changes of each run that is fixed beforehand, those of the centers first.

    The others are joint draws and, of the small model, single steps as coordinate search takes them, and replicates:
    the cpu profile's single steps are those of recorded nights.
    """
    constants, dice, seeds = list_constants(name), np.random.default_rng(sum(map(ord, name))), SEEDS[name][:3]
    base = [(seed, center) for center in CENTERS[name] for seed in SEEDS[name]]
    if name == NIGHTS:
        return [*base, *((seeds[i // 2 % 3], changes) for i, changes in enumerate(draw_designs(name, dice)))]
    steps = [(c.name, take_step(c, way, 1.0)) for c in constants.values() for way in ("up", "down")]
    single = [{name: new} for name, new in steps if new is not None]
    single += [{c.name: other} for c in constants.values() for other in list_others(c)]
    designs = [(seeds[i % 3], changes) for i, changes in enumerate([*single, *draw_designs(name, dice)])]
    chosen = [designs[i] for i in dice.permutation(len(designs))]
    again = [(seed, changes) for first, changes in chosen[:AGAIN] for seed in seeds if seed != first]
    return [*base, *again, *chosen]


def count_centers(name: str) -> int:
    """Return how many runs the centers take."""
    return len(CENTERS[name]) * len(SEEDS[name])


def list_others(constant: Constant) -> list[Value]:
    """Return the other values of a constant whose values have no order."""
    space = constant.space
    return [v for v in space.options if v != constant.value] if isinstance(space, Choices) and not space.ordered else []


def draw_designs(name: str, dice: np.random.Generator) -> list[dict[str, Value]]:
    """Return joint draws of a surface, around each of its centers in turn."""
    rounds = range(JOINT[name] // len(CENTERS[name]))
    return [center | draw_jointly(list_constants(name), dice, MOST[name]) for _ in rounds for center in CENTERS[name]]


def draw_jointly(constants: Mapping[str, Constant], dice: np.random.Generator, most: int) -> dict[str, Value]:
    """Return changes to two constants or more."""
    found = dict[str, Value]()
    for name in dice.choice([*constants], dice.integers(2, most + 1), replace=False):
        constant = constants[str(name)]
        if isinstance(constant.space, Choices):
            found[constant.name] = constant.space.options[dice.integers(len(constant.space.options))]
        else:
            at = to_unit(constant, constant.value) + SPREAD * dice.normal()
            found[constant.name] = constant.space.from_unit(at)
    return {name: value for name, value in found.items() if value != constants[name].value}


def collect(name: str, place: str) -> None:
    """Train whatever the table lacks of a surface, each run in a fork of this process, which has torch imported.

    `place` is a folder for the data, which is kept.
    """
    folder, settings = f"{place}/{name}", [word for setting in DATA[name] for word in ("--set", setting)]
    command = [sys.executable, "-m", "prepare", "--profile", "cpu", "--work", str(WORK[name]), "--data", folder]
    subprocess.run([*command, *settings], check=True)
    os.environ |= {"NIGHTSHIFT_DATA": folder, "MKL_CBWR": "AUTO,STRICT", "OMP_NUM_THREADS": "1"}
    import torch

    import prepare

    setattr(prepare, "THREADS", 1)  # noqa: B010 - it has no such name until somebody asks
    _ = prepare.Tokenizer, prepare.evaluate_bpb, prepare.make_dataloader  # imports them
    with prepare.Budget(BudgetAmount("work", 1e12, 0)).measure():  # torch imports much for its first count
        torch.ones(2, 2).add(1)
    night = f"{manifest.load(Path(folder)).digest[:4]}/" if name == NIGHTS else ""
    for number, (seed, changes) in enumerate(list_designs(name)):
        measure(name, night, seed, changes)
        for way, count in EXPLORED[name] if number + 1 == count_centers(name) else ():
            explore(name, night, way, count)


def explore(name: str, night: str, way: str, count: int) -> None:
    """Train what a way to search chooses, step by step, by its results so far; nothing is kept."""
    from benchmarks.search import WAYS  # which imports this module

    constants, seed = list_constants(name), SEEDS[name][0]
    base = {constant.name: constant.value for constant in constants.values()}
    known = [row for row in read_rows() if row[0] == name and row[1].startswith(night)]
    before = count_centers(name) + sum(runs for _, runs in EXPLORED[name][:-1])
    rows = known[:before] if way.endswith("again") else known[:1]
    for number in range(len(rows), len(rows) + count):
        trials = [
            Trial(row[1], changes, base, "discarded" if changes else "kept", val_bpb=float(row[3]) if row[3] else None)
            for row in rows
            for changes in [read_point(row[2])]
        ]
        search = SearchState(constants, trials, profiles.CPU.sigma)
        step = WAYS[way.removesuffix(" again")](search, number, f"{way}/{number}")
        if step is None:
            return
        rows.append(measure(name, night, seed, step.changes))


def measure(name: str, night: str, seed: int, changes: Mapping[str, Value]) -> list[str]:
    """Return the row of a run; train it in a fork if the table lacks it."""
    wanted = [name, f"{night}{seed}", write_point(changes)]
    if not (found := [row for row in read_rows() if row[:3] == wanted]):
        if (child := os.fork()) == 0:
            train(wanted, seed, with_constants(make_script(name), changes))
        os.waitpid(child, 0)
        found = [row for row in read_rows() if row[:3] == wanted]
    return found[0]


def train(wanted: Sequence[str], seed: int, source: str) -> None:
    """Train once, append a row to the table, and end this process."""
    os.environ["NIGHTSHIFT_SEED"], said = str(seed), io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            exec(compile(source, "train.py", "exec"), {"__name__": "__main__"})
    finally:
        with TABLE.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow([*wanted, *read_outcome(said.getvalue())])
        os._exit(0)


def read_outcome(printed: str) -> list[str]:
    """Return score, losses at three shares of the budget, and steps, as printed; empty where a run has none."""
    lines = [line.split() for line in printed.splitlines()]
    points = [(float(w[2].strip("(%)")), float(w[5])) for w in lines if len(w) > 5 and w[0] == "step"]
    summary = {words[0]: words[1] for words in lines if len(words) == 2}
    losses = [[loss for at, loss in points if share - 10 < at <= share] for share in (40, 60, 80)]
    means = [f"{np.mean(each):.4f}" if each else "" for each in losses]
    return [summary.get("val_bpb:", ""), *means, summary.get("num_steps:", "")]


def recall(files: Iterable[str]) -> None:
    """Add the runs of recorded nights on the cpu profile's baseline to the table."""
    base = {name: constant.value for name, constant in list_constants(NIGHTS).items()}
    for file in files:
        with closing(Session(Path(file), read_only=True)) as session, TABLE.open("a", encoding="utf-8") as table:
            began = session.state.session
            for result in session.state.results:
                values = read_values(session.get(result.commit.source)) if result.commit else {}
                words = write_point({n: v for n, v in values.items() if n in base and v != base[n]})
                for score in result.scores:
                    seed = f"{began.profile.data_hash[:4]}-{began.seed}/{score.seed}"
                    losses = [get_recent_loss(score.curve, share) for share in CHECKPOINTS]
                    figures = [score.val_bpb, *losses, score.metrics.steps]
                    written = ["" if figure is None else f"{figure:.6g}" for figure in figures]
                    csv.writer(table, lineterminator="\n").writerow([NIGHTS, seed, words, *written])


def read_rows() -> list[list[str]]:
    return [*csv.reader(TABLE.read_text("utf-8").splitlines())][1:] if TABLE.is_file() else []


Point = Mapping[str, Value]
GROUPS = ("each constant", "its square", "all squares at once", "pairs", "the rest")
WAVES, REACH = 150, 0.8
"""Random Fourier features of what a quadratic leaves, and the distance over which it changes, in shares of a space."""
ROOM = {SMALL: 1.0, NIGHTS: 1.0}
"""Bits per byte below the baseline that gains approach: about the likeliest for what is left out (`main`)."""
TRIES = 150
"""Draws of the prior variances, half of them near the likeliest so far."""
FOLDS = 8
DRAWN = 200
UNBOUNDED = 100.0
"""A room with which there is as good as no end to gains."""
FORMS: tuple[tuple[float, tuple[str, ...]], ...] = (
    (UNBOUNDED, ("all squares at once",)),
    *((room, ()) for room in (UNBOUNDED, 2.0, 1.0, 0.5, 0.35)),
    (1.0, ("pairs",)),
    (1.0, ("the rest",)),
)
"""Rooms and left-out GROUPS that `main` compares; the first is the earlier form."""


@dataclass(frozen=True)
class Fit:
    """A Bayesian regression of ln(1 + loss / room), so that gains saturate and losses compound.

    It is quadratic, with all pairs of constants, and smooth features for the rest. The squares have a common part: away
    from a tuned baseline most points are worse.
    """

    mean: NDArray[np.float64]
    root: NDArray[np.float64]
    """A square root of the posterior covariance of the weights."""
    variances: tuple[float, ...]
    """Prior variance of the effects of each of GROUPS, then that of the noise."""
    room: float

    def draw(self, dice: np.random.Generator) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
        """Return a function that is as likely as any to be the true one: losses of points against the baseline."""
        weights = self.mean + self.root @ dice.normal(size=len(self.mean))
        return lambda at: self.room * np.expm1(make_features(at) @ weights)

    def compare(self, at: NDArray[np.float64], losses: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Return the medians that it predicts for runs at these points, and the log likelihood of each run's loss."""
        features, targets = make_features(at), np.log1p(losses / self.room)
        center, variance = features @ self.mean, np.sum((features @ self.root) ** 2, axis=1) + self.variances[-1]
        squares = np.log(2 * np.pi * variance) + (targets - center) ** 2 / variance
        return self.room * np.expm1(center), -0.5 * squares - np.log(self.room + losses)


@dataclass(frozen=True, eq=False)
class Surface:
    """What is known of the runs of a small model, as differences to its baseline at the same seed."""

    name: str
    constants: Mapping[str, Constant]
    fit: Fit
    sigma: float
    """Standard deviation of one run's score over seeds."""
    own: float
    """That of the luck which a changed script does not share with its baseline, in σ."""
    designs: list[tuple[str, str]]
    """Of each run, what it changes, and \"recorded\" if a night chose it."""
    points: NDArray[np.float64]
    """Of each run, how far each constant was from the baseline's value."""
    gaps: NDArray[np.float64]
    """Of each run, the difference in loss at 40, 60 and 80 % of the budget, and then the final one in val_bpb."""

    def draw(self, seed: int) -> Callable[[Point], float]:
        """Return a function that is as likely as any to be the true one: a point's loss against the baseline."""
        measure = self.fit.draw(np.random.default_rng(seed))
        return lambda point: float(measure(locate(self.constants, point)[None])[0])


def locate(constants: Mapping[str, Constant], point: Point) -> NDArray[np.float64]:
    """Return how far a point is from the constants' values, in shares of their spaces."""
    return np.array([to_unit(c, point.get(name, c.value)) - to_unit(c, c.value) for name, c in constants.items()])


def to_unit(constant: Constant, value: Value) -> float:
    space = constant.space
    if isinstance(space, Choices):
        return space.options.index(value) / (len(space.options) - 1)
    return space.to_unit(cast("float", value))


def make_groups(at: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return the features of each of GROUPS, [points, features], of points [points, constants]; 0 at the baseline."""
    dice, size = np.random.default_rng(0), at.shape[1]
    first, second = np.triu_indices(size, 1)
    directions, phases = dice.normal(size=(size, WAVES)) / REACH, dice.uniform(0, 2 * np.pi, WAVES)
    waves = np.sqrt(2 / WAVES) * (np.cos(at @ directions + phases) - np.cos(phases))
    return [at, at**2, np.sum(at**2, axis=1, keepdims=True), at[:, first] * at[:, second], waves]


def make_features(at: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.hstack(make_groups(at))


def regress(at: NDArray[np.float64], losses: NDArray[np.float64], room: float, without: Sequence[str] = ()) -> Fit:
    """Return the fit with the likeliest prior variances of TRIES random ones; `without` some of GROUPS."""
    parts, targets, dice = make_groups(at), np.log1p(losses / room), np.random.default_rng(0)
    grams, used = [part @ part.T for part in parts], [group not in without for group in GROUPS]
    low, high, scale = (-2, -2, -3, -3, -3, -4), (1, 1, 1, 0.5, 0.5, -0.5), float(np.var(targets))
    best, powers = -np.inf, np.zeros(len(low))
    for number in range(TRIES):
        tried = dice.uniform(low, high) if number < TRIES / 2 else powers + dice.normal(0, 0.3, len(low))
        variances = scale * 10.0**tried * [*used, True]
        covariance = sum(v * gram for v, gram in zip(variances, grams, strict=False)) + variances[-1] * np.eye(len(at))
        root = np.linalg.cholesky(covariance)
        likelihood = -0.5 * np.sum(np.linalg.solve(root, targets) ** 2) - np.sum(np.log(np.diag(root)))
        if likelihood > best:
            best, powers = likelihood, tried
    found, features = scale * 10.0**powers * [*used, True], np.hstack(parts)
    prior = np.repeat(np.maximum(found[:-1], 1e-12), [part.shape[1] for part in parts])
    precision = features.T @ features / found[-1] + np.diag(1 / prior)
    root = np.linalg.inv(np.linalg.cholesky(precision)).T
    return Fit(root @ (root.T @ features.T @ targets) / found[-1], root, tuple(map(float, found)), room)


@cache
def load_surface(name: str) -> Surface:
    """Fit the surface of that name to its runs; with MEAN after it, each of whose draws is the mean of all."""
    if name.endswith(MEAN):
        drawn = load_surface(name.removesuffix(MEAN))
        return replace(drawn, fit=replace(drawn.fit, root=np.zeros_like(drawn.fit.root)))
    constants, rows = list_constants(name), [row for row in read_rows() if row[0] == name and row[3]]
    figures = {(row[1], row[2]): np.array([float(row[i] or "nan") for i in (4, 5, 6, 3)]) for row in rows}
    bases = {seed: values for (seed, words), values in figures.items() if not words}
    runs = [(seed, words) for seed, words in figures if words and seed in bases]
    gaps = np.array([figures[run] - bases[run[0]] for run in runs])
    at = np.array([locate(constants, read_point(words)) for _, words in runs])
    groups, apart = defaultdict[tuple[str, str], list[float]](list), defaultdict[tuple[str, str], list[float]](list)
    for (seed, words), values in figures.items():
        groups[seed.rpartition("/")[0], words].append(values[3])  # each night has a baseline of its own
    for (seed, words), gap in zip(runs, gaps, strict=True):
        apart[seed.rpartition("/")[0], words].append(gap[3])
    sigma = pool(groups.values())
    scatter = pool(apart.values(), sigma * math.sqrt(SAME_SHAPE))
    own = float(np.sqrt(1 - np.clip(1 - (scatter / sigma) ** 2 / 2, 0.0, 0.98) ** 2))
    designs = [(words, "recorded" if "-" in seed else "") for seed, words in runs]
    return Surface(name, constants, regress(at, gaps[:, 3], ROOM[name]), sigma, own, designs, at, gaps)


@dataclass(frozen=True)
class Step:
    """A real run less another one at the same seed, from which it differs in one constant."""

    changed: str
    gaps: tuple[float, ...]
    """Differences in loss at 40, 60 and 80 % of the budget, in σ of the score that it is worth at 80 %."""
    deficit: float
    """Difference in val_bpb at the end, in σ."""
    weight: float
    """One over the number of steps to this value on this surface."""

    @property
    def is_schedule(self) -> bool:
        return find_family(self.changed).family == "schedule" or self.changed == "MOMENTUM_WARMUP"


@cache
def list_steps() -> list[Step]:
    runs, found = defaultdict[tuple[str, str], dict[str, NDArray[np.float64]]](dict), list[tuple[str, str, Step]]()
    scatter = defaultdict[str, defaultdict[tuple[str, str], list[float]]](lambda: defaultdict(list))
    for name, seed, words, *figures in (row[:7] for row in read_rows() if row[3]):
        score, *losses = (float(figure or "nan") for figure in figures)
        runs[name, seed][words] = np.array([*losses, score])
        scatter[name][seed.rpartition("/")[0], words].append(score)
    for (name, _), each in runs.items():
        points, sigma = {words: read_point(words) for words in each}, pool(scatter[name].values())
        for old, new in permutations(each, 2):
            before, now = points[old], points[new]
            changed = {key for key in before | now if before.get(key) != now.get(key)}
            if len(changed) == 1 and (len(now), new) > (len(before), old):
                gaps = (each[new] - each[old]) / sigma
                scaled = tuple(map(float, gaps[:3] * each[old][3] / each[old][2]))
                constant = changed.pop()
                if not any(map(math.isnan, scaled)):
                    found.append((name, f"{constant}={now.get(constant)}", Step(constant, scaled, float(gaps[3]), 1.0)))
    count = Counter((name, value) for name, value, _ in found)
    return [replace(step, weight=1 / count[name, value]) for name, value, step in found]


def write_point(changes: Point) -> str:
    return "; ".join(f"{name}={format_literal(value)}" for name, value in changes.items())


def read_point(words: str) -> dict[str, Value]:
    pairs = (setting.split("=") for setting in words.split("; ") if setting)
    return {name: cast("Value", literal_eval(value)) for name, value in pairs}


def pool(groups: Iterable[Sequence[float]], otherwise: float = math.nan) -> float:
    """Return the pooled standard deviation within groups; `otherwise` if each is of one."""
    found = [(len(group) - 1, float(np.var(group, ddof=1))) for group in groups if len(group) > 1]
    total = sum(dof for dof, _ in found)
    return math.sqrt(sum(dof * variance for dof, variance in found) / total) if total else otherwise


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--collect", metavar="FOLDER", help="train what the table lacks; the data go there")
    parser.add_argument("--surfaces", nargs="*", default=[*SURFACES])
    parser.add_argument("--nights", nargs="*", default=(), metavar="FILE.db", help="add the runs of these sessions")
    chosen, _ = parser.parse_known_args()
    for name in chosen.surfaces if chosen.collect else ():
        collect(name, chosen.collect)
    recall(chosen.nights)
    print("| surface | runs | joint draws | σ of a run | of a difference | RMS of effects | of joint draws |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name in chosen.surfaces:
        surface = load_surface(name)
        losses, joint = surface.gaps[:, 3], find_joint(surface)
        apart = surface.sigma * math.sqrt(2 * (1 - math.sqrt(1 - surface.own**2)))
        figures = surface.sigma, apart, *(float(np.sqrt(np.mean(each**2))) for each in (losses, losses[joint]))
        print(f"| {name} | {len(losses)} | {joint.sum()} | {' | '.join(f'{figure:.4f}' for figure in figures)} |")
    print("\nJoint draws against their center: real ones, and as many on each of DRAWN surfaces.\n")
    print("| surface | center | draws | better by σ/2 | on surfaces | mean | on surfaces | best | on surfaces |")
    print("|---|---|--:|--:|---|--:|---|--:|---|")
    for name in chosen.surfaces:
        compare_draws(load_surface(name))
    print_forecasts()
    print("\nOf designs left out: error, and log likelihood per joint draw.\n")
    print("| surface | room | without | error, single steps | joint draws | mean | log likelihood |")
    print("|---|--:|---|--:|--:|--:|--:|")
    for name, (room, without) in product(chosen.surfaces, FORMS):
        surface = load_surface(name)
        losses, joint = surface.gaps[:, 3], find_joint(surface)
        if room + losses.min() > 0:
            guessed, likelihoods = predict(surface, room, without)
            errors = [np.sqrt(np.mean((guessed - losses)[which] ** 2)) for which in (~joint, joint)]
            figures = " | ".join(f"{figure:.4f}" for figure in (*errors, np.mean((losses - guessed)[joint])))
            likelihood, words = likelihoods[joint].mean(), ", ".join(without)
            print(f"| {name} | {room:g} | {words} | {figures} | {likelihood:.2f} |", flush=True)


def print_forecasts() -> None:
    """Print how steps end that are behind at a share of the budget."""
    print("\nSteps of one constant that are behind at a share of the budget, and how they end, in σ.\n")
    print("| steps | behind at | by | steps | end ahead | mean deficit | smallest |\n|---|--:|---|--:|--:|--:|--:|")
    edges = (0.3, 1.0, 2.0, 4.0, 12.0, math.inf)
    for late, (n, share) in product((False, True), enumerate(CHECKPOINTS)):
        for low, high in pairwise(edges):
            steps = [s for s in list_steps() if s.is_schedule == late and low < s.gaps[n] <= high]
            if deficits := [step.deficit for step in steps]:
                ahead = sum(deficit < 0 for deficit in deficits)
                cells = f"{len(steps)} | {ahead} | {np.mean(deficits):.1f} | {min(deficits):.1f}"
                print(f"| {'schedules' if late else 'others'} | {share:.0%} | {low:g} to {high:g} | {cells} |")


def compare_draws(surface: Surface) -> None:
    """Print what joint draws do to the score around each center, in real runs and on surfaces."""
    name, count = surface.name, len(CENTERS[surface.name])
    runs = defaultdict[str, list[float]](list)
    for (words, night), gap in zip(surface.designs, surface.gaps[:, 3], strict=True):
        runs[words] += [gap] if night != "recorded" else []
    designs = [changes for _, changes in list_designs(name)[count_centers(name) :]]
    for number, center in enumerate(CENTERS[name]):
        start = np.mean(runs[write_point(center)] or [0.0])
        drawn = dict.fromkeys(map(write_point, designs[number::count] if name == NIGHTS else designs))
        real = np.array([np.mean(runs[words]) for words in drawn if ";" in words and runs[words]]) - start
        found = list[NDArray[np.float64]]()
        for seed in range(DRAWN):
            measure, dice = surface.draw(seed), np.random.default_rng((seed, number))
            points = draw_designs(name, dice)[number::count][: len(real)]
            found.append(sum_up(np.array([measure(center | point) for point in points]) - measure(center), surface))
        means, spread = np.mean(found, axis=0), np.std(found, axis=0)
        cells = [f"{r:.2f} | {m:.2f} ± {s:.2f}" for r, m, s in zip(sum_up(real, surface), means, spread, strict=True)]
        print(f"| {name} | {write_point(center) or 'baseline'} | {len(real)} | {' | '.join(cells)} |", flush=True)


def sum_up(losses: NDArray[np.float64], surface: Surface) -> NDArray[np.float64]:
    """Return the share of losses that are gains of σ/2, their mean, and the lowest."""
    return np.array([np.mean(losses < -surface.sigma / 2), np.mean(losses), np.min(losses)], float)


def find_joint(surface: Surface) -> NDArray[np.bool_]:
    """Return which runs are joint draws: several constants at once, and not step by step, as in a recorded night."""
    return np.array([";" in words and night != "recorded" for words, night in surface.designs])


def predict(surface: Surface, room: float, without: Sequence[str]) -> tuple[NDArray[np.float64], ...]:
    """Return the loss predicted of each run, and the log likelihood of its own, with its design left out."""
    at, losses, designs = surface.points, surface.gaps[:, 3], sorted({words for words, _ in surface.designs})
    folds = dict(zip(designs, np.random.default_rng(1).permutation(len(designs)) % FOLDS, strict=True))
    fold, guessed, likelihoods = np.array([folds[words] for words, _ in surface.designs]), *np.zeros((2, len(at)))
    for each in range(FOLDS):
        fit, out = regress(at[fold != each], losses[fold != each], room, without), fold == each
        guessed[out], likelihoods[out] = fit.compare(at[out], losses[out])
    return guessed, likelihoods


if __name__ == "__main__":
    main()
