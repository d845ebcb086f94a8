"""Measure the cpu profile's baseline on the local data over a few seeds, and the effect of two of its settings."""

import os
from statistics import mean, stdev

from prepare import manifest, profiles
from prepare.build import calibration

SEEDS = range(1, 5)
VARIANTS = {
    "as it is": {},
    "logits squeezed (upstream's)": {"LOGIT_SOFTCAP": 15.0},
    "logits squeezed, momentum over 0.3 of the run": {"LOGIT_SOFTCAP": 15.0, "MOMENTUM_WARMUP": 14},
}


def main() -> None:
    found, base = manifest.load(), list[float]()
    print("| baseline | steps | seeds | val_bpb ± se | difference at the same seeds ± se |" + "\n|---|---|---|---|---|")
    for words, changes in VARIANTS.items():
        profile = profiles.with_constants(profiles.from_manifest(found), changes)
        scores, printed = list[float](), ""
        for seed in SEEDS:
            os.environ["NIGHTSHIFT_SEED"] = str(seed)
            printed, events = calibration.train_baseline(manifest.get_data_dir(), found, profile)
            scores.append(next(event["val_bpb"] for event in events if event["event"] == "score"))
        base = base or scores
        steps = printed.rpartition("num_steps:")[2].split()[0]
        apart = [score - other for score, other in zip(scores, base, strict=True)]
        print(f"| {words} | {steps} | {len(scores)} | {_describe(scores, '')} | {_describe(apart, '+')} |", flush=True)


def _describe(values: list[float], sign: str) -> str:
    return f"{mean(values):{sign}.4f} ± {stdev(values) / len(values) ** 0.5:.4f}"
