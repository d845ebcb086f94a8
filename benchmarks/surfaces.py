"""Fit models to short real runs: what each of train.py's constants does to the score, for a tournament of searchers.

`surfaces.csv` holds the runs of a small model and of recorded nights, with their losses on the way; `python -m
benchmarks surfaces` says how well a fit predicts runs that it has not seen. With --collect, trains the small model, on
one core in about four minutes; with --nights FILE.db …, adds the runs of recorded nights.
"""

import argparse
import csv
import io
import math
import os
import subprocess
import sys
import tempfile
from ast import literal_eval
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.description import get_recent_loss
from orchestrator.optimizer.space import list_tunable, take_step
from orchestrator.policy.thresholds import CHECKPOINTS, SAME_SHAPE
from orchestrator.session.store import Session
from prepare import manifest, profiles
from prepare.build import calibration
from prepare.constants import Choices, Constant, Value, format_literal, read_values, with_constants
from prepare.manifest import BudgetAmount

TABLE = Path(__file__).with_name("surfaces.csv")
COLUMNS = "surface", "seed", "changes", "val_bpb", "loss 40 %", "loss 60 %", "loss 80 %", "steps"
DATA = ("vocab_size=1024", "seq_len=128", "eval_tokens=16384")
SURFACES: dict[str, dict[str, Value]] = {
    "one layer": {"DEPTH": 1, "MODEL_DIM": 96, "TOTAL_BATCH_SIZE": 1024, "MLP_RATIO": 2},
}
"""What differs from the cpu profile, in the data and in the baselines."""
NIGHTS = "cpu profile"
"""The surface of the runs of recorded nights, each at its night's own budget."""
WORK = {"one layer": 2.0e11}
"""The budget of a run: about a second of one core, 17 steps."""
BASELINES, JOINT, AGAIN = 4, 50, 5
"""Runs of the baseline; of joint draws; and designs that run at two more seeds."""
SEEDS = 1, 2, 3
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
    """Return seed and changes of each run: single steps as coordinate search takes them, joint draws, replicates."""
    constants, dice = list_constants(name), np.random.default_rng(sum(map(ord, name)))
    steps = [(c.name, take_step(c, way, 1.0)) for c in constants.values() for way in ("up", "down")]
    single = [{name: new} for name, new in steps if new is not None]
    single += [{c.name: other} for c in constants.values() for other in list_others(c)]
    joint = [draw_jointly(constants, dice) for _ in range(JOINT)]
    designs = [(SEEDS[i % 3], changes) for i, changes in enumerate([*single, *joint])]
    chosen = [designs[i] for i in dice.permutation(len(designs))]
    again = [(seed, changes) for first, changes in chosen[:AGAIN] for seed in SEEDS if seed != first]
    return [*((seed, {}) for seed in range(1, BASELINES + 1)), *again, *chosen]


def list_others(constant: Constant) -> list[Value]:
    """Return the other values of a constant whose values have no order."""
    space = constant.space
    return [v for v in space.options if v != constant.value] if isinstance(space, Choices) and not space.ordered else []


def draw_jointly(constants: Mapping[str, Constant], dice: np.random.Generator) -> dict[str, Value]:
    """Return changes to two to eight constants."""
    found = dict[str, Value]()
    for name in dice.choice([*constants], dice.integers(2, 9), replace=False):
        constant = constants[str(name)]
        if isinstance(constant.space, Choices):
            found[constant.name] = constant.space.options[dice.integers(len(constant.space.options))]
        else:
            at = to_unit(constant, constant.value) + SPREAD * dice.normal()
            found[constant.name] = constant.space.from_unit(at)
    return {name: value for name, value in found.items() if value != constants[name].value}


def collect(names: Iterable[str] = SURFACES, place: str = "") -> None:
    """Train whatever the table lacks, each run in a fork of this process, which has torch imported."""
    import torch

    import prepare

    prepare.THREADS, done = 1, {tuple(row[:3]) for row in read_rows()}
    if not TABLE.is_file():
        TABLE.write_text(",".join(COLUMNS) + "\n", "utf-8")
    with tempfile.TemporaryDirectory() as other:
        data, settings = f"{place or other}/data", [word for setting in DATA for word in ("--set", setting)]
        command = [sys.executable, "-m", "prepare", "--profile", "cpu", "--work", "1e12", "--data", data]
        subprocess.run([*command, *settings], check=True)
        prepare.Tokenizer, prepare.evaluate_bpb, prepare.make_dataloader  # noqa: B018 - imports them
        with prepare.Budget(BudgetAmount("work", 1e12, 0)).measure():  # torch imports much for its first count
            torch.ones(2, 2).add(1)
        for name in names:
            folder, built = Path(f"{place or other}/{name}"), manifest.load(Path(data))
            folder.mkdir(exist_ok=True)
            for stored in built.files:
                (folder / stored).unlink(missing_ok=True)
                (folder / stored).symlink_to(Path(data, stored).resolve())
            budget = replace(built.budget, amount=WORK[name])
            (folder / manifest.MANIFEST_FILE).write_text(replace(built, budget=budget).to_json())
            for seed, changes in list_designs(name):
                words = "; ".join(f"{constant}={format_literal(value)}" for constant, value in changes.items())
                if (name, str(seed), words) not in done:
                    if (child := os.fork()) == 0:
                        train(name, seed, changes, words, str(folder))
                    os.waitpid(child, 0)


def train(name: str, seed: int, changes: Mapping[str, Value], words: str, data: str) -> None:
    """Train once, append a row to the table, and end this process."""
    import prepare

    os.environ["NIGHTSHIFT_DATA"], prepare.SEED, said = data, seed, io.StringIO()
    source = with_constants(make_script(name), changes)
    try:
        with redirect_stdout(said), redirect_stderr(said):
            exec(compile(source, "train.py", "exec"), {"__name__": "__main__"})
    finally:
        row = [name, str(seed), words, *read_outcome(said.getvalue())]
        with TABLE.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row)
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
                words = [f"{n}={format_literal(v)}" for n, v in values.items() if n in base and v != base[n]]
                for score in result.scores:
                    seed = f"{began.profile.data_hash[:4]}-{began.seed}/{score.seed}"
                    losses = [get_recent_loss(score.curve, share) for share in CHECKPOINTS]
                    figures = [score.val_bpb, *losses, score.metrics.steps]
                    written = ["" if figure is None else f"{figure:.6g}" for figure in figures]
                    csv.writer(table, lineterminator="\n").writerow([NIGHTS, seed, "; ".join(words), *written])


def read_rows() -> list[list[str]]:
    return [*csv.reader(TABLE.read_text("utf-8").splitlines())][1:] if TABLE.is_file() else []


Point = Mapping[str, Value]
GROUPS = ("each constant", "its square", "pairs", "the rest")
WAVES, REACH = 150, 0.8
"""Random Fourier features of what a quadratic leaves, and the distance over which it changes, in shares of a space."""
TRIES = 300
"""Draws of the prior variances, of which the likeliest counts."""
FOLDS = 8


@dataclass(frozen=True)
class Fit:
    """A Bayesian regression: quadratic, with all pairs of constants, and smooth features for the rest."""

    mean: NDArray[np.float64]
    root: NDArray[np.float64]
    """A square root of the posterior covariance of the weights."""
    variances: tuple[float, ...]
    """Prior variance of the effects of each of GROUPS, then that of the noise."""


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
    points: NDArray[np.float64]
    """Of each run, how far each constant was from the baseline's value."""
    gaps: NDArray[np.float64]
    """Of each run, the difference in loss at 40, 60 and 80 % of the budget, and then the final one in val_bpb."""

    def draw(self, seed: int) -> "Callable[[Point], float]":
        """Return a function that is as likely as any to be the true one: a point's loss against the baseline."""
        dice = np.random.default_rng(seed)
        weights = self.fit.mean + self.fit.root @ dice.normal(size=len(self.fit.mean))
        return lambda point: float((self.encode(point)[None] @ weights)[0])

    def encode(self, point: Point) -> NDArray[np.float64]:
        return make_features(locate(self.constants, point)[None])[0]


def locate(constants: Mapping[str, Constant], point: Point) -> NDArray[np.float64]:
    """Return how far a point is from the constants' values, in shares of their spaces."""
    return np.array([to_unit(c, point.get(name, c.value)) - to_unit(c, c.value) for name, c in constants.items()])


def to_unit(constant: Constant, value: Value) -> float:
    space = constant.space
    if isinstance(space, Choices):
        return space.options.index(value) / (len(space.options) - 1)
    return space.to_unit(cast("float", value))


def make_features(at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return features [points, features] of points [points, constants]; all are 0 at the baseline."""
    dice, size = np.random.default_rng(0), at.shape[1]
    first, second = np.triu_indices(size, 1)
    directions, phases = dice.normal(size=(size, WAVES)) / REACH, dice.uniform(0, 2 * np.pi, WAVES)
    waves = np.sqrt(2 / WAVES) * (np.cos(at @ directions + phases) - np.cos(phases))
    return np.hstack([at, at**2, at[:, first] * at[:, second], waves])


def regress(at: NDArray[np.float64], losses: NDArray[np.float64]) -> Fit:
    """Return the fit with the likeliest prior variances of TRIES random ones."""
    features, size, dice = make_features(at), at.shape[1], np.random.default_rng(0)
    sizes = [size, size, size * (size - 1) // 2, WAVES]
    parts = np.split(features, np.cumsum(sizes)[:-1], axis=1)
    grams, scale = [part @ part.T for part in parts], float(np.var(losses))
    best, found = -np.inf, ()
    for _ in range(TRIES):
        variances = scale * 10.0 ** dice.uniform((-2, -2, -3, -3, -4), (1, 1, 0.5, 0.5, -0.5))
        covariance = sum(v * gram for v, gram in zip(variances, grams, strict=False)) + variances[-1] * np.eye(len(at))
        root = np.linalg.cholesky(covariance)
        likelihood = -0.5 * np.sum(np.linalg.solve(root, losses) ** 2) - np.sum(np.log(np.diag(root)))
        if likelihood > best:
            best, found = likelihood, tuple(map(float, variances))
    prior = np.repeat(found[:-1], sizes)
    precision = features.T @ features / found[-1] + np.diag(1 / prior)
    root = np.linalg.inv(np.linalg.cholesky(precision)).T
    return Fit(root @ (root.T @ features.T @ losses) / found[-1], root, found)


@cache
def load_surface(name: str) -> Surface:
    """Fit the surface of that name to its runs."""
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
    link = np.clip(1 - (scatter / sigma) ** 2 / 2, 0.0, 0.98)
    return Surface(name, constants, regress(at, gaps[:, 3]), sigma, float(np.sqrt(1 - link**2)), at, gaps)


def read_point(words: str) -> dict[str, Value]:
    pairs = (setting.split("=") for setting in words.split("; "))
    return {name: cast("Value", literal_eval(value)) for name, value in pairs}


def pool(groups: Iterable[Sequence[float]], otherwise: float = math.nan) -> float:
    """Return the pooled standard deviation within groups; `otherwise` if each is of one."""
    found = [(len(group) - 1, float(np.var(group, ddof=1))) for group in groups if len(group) > 1]
    total = sum(dof for dof, _ in found)
    return math.sqrt(sum(dof * variance for dof, variance in found) / total) if total else otherwise


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--collect", action="store_true", help="train what the table lacks")
    parser.add_argument("--nights", nargs="*", default=(), metavar="FILE.db", help="add the runs of these sessions")
    chosen, _ = parser.parse_known_args()
    if chosen.collect:
        collect()
    recall(chosen.nights)
    print("| surface | runs | σ of a run | of a difference | RMS of effects | error on runs not seen | explained |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name in (*SURFACES, NIGHTS):
        surface = load_surface(name)
        at, losses, guessed = surface.points, surface.gaps[:, 3], np.zeros(len(surface.gaps))
        fold = np.random.default_rng(1).permutation(len(at)) % FOLDS
        for each in range(FOLDS):
            fit = regress(at[fold != each], losses[fold != each])
            guessed[fold == each] = make_features(at[fold == each]) @ fit.mean
        rms, error = (float(np.sqrt(np.mean(values**2))) for values in (losses, guessed - losses))
        figures = surface.sigma, surface.sigma * np.sqrt(2 * (1 - np.sqrt(1 - surface.own**2))), rms, error
        print(f"| {name} | {len(at)} | {' | '.join(f'{f:.4f}' for f in figures)} | {1 - (error / rms) ** 2:.0%} |")
