"""Measure how well counted work predicts a step's time, on variants of the cpu profile's baseline."""

import dataclasses

import numpy as np

from prepare import manifest, profiles
from prepare.build import calibration
from prepare.constants import Value

VARIANTS: tuple[dict[str, Value], ...] = (
    {},
    {"TOTAL_BATCH_SIZE": 1024},
    {"TOTAL_BATCH_SIZE": 4096},
    {"DEVICE_BATCH_SIZE": 4},
    {"DEPTH": 1},
    {"DEPTH": 5},
    {"MODEL_DIM": 64},
    {"MODEL_DIM": 160},
    {"MLP_RATIO": 1},
    {"HEAD_DIM": 16},
    {"MODEL_DIM": 64, "MLP_RATIO": 2, "TOTAL_BATCH_SIZE": 1024},
    {"DEPTH": 2, "MLP_RATIO": 2, "TOTAL_BATCH_SIZE": 1024},
)
SHARE = 4
"""Divisor of the budget."""


def main() -> None:
    found = manifest.load()
    shorter = dataclasses.replace(found.budget, amount=found.budget.amount / SHARE)
    paces: list[float] = []
    print("| variant | work of a step | ms | work per second, over the baseline's |\n|---|---|---|---|")
    short = dataclasses.replace(found, budget=shorter)
    for variant in VARIANTS:
        work, seconds = calibration.measure_step(
            manifest.get_data_dir(), short, profiles.with_constants(profiles.CPU, variant)
        )
        paces.append(work / seconds)
        words = ", ".join(f"{constant} {value}" for constant, value in variant.items()) or "baseline"
        print(f"| {words} | {work:.3g} | {1000 * seconds:.0f} | {paces[-1] / paces[0]:.2f} |", flush=True)
    print(f"\nσ of the last column: {np.std(np.array(paces) / np.mean(paces)):.1%}")
