"""Measure how small a lie the audit finds: claims of zero for some tokens, worth 0.5 to 3 σ of the cpu profile.

The reference and the liar's honest claims differ as two trained models do, by 0.3 nats a token.
"""

from pathlib import Path

import numpy as np

from orchestrator.lab.scoring.claims import TOLERANCE, Scorer
from prepare.manifest import BudgetAmount, Manifest

SIGMA, BYTES_PER_TOKEN = 0.008, 3
ROWS, LENGTH, TRIALS = 256, 256, 200


def make_scorer() -> Scorer:
    budget = BudgetAmount("work", 1.0, 1.0)
    manifest = Manifest("cpu", "drawn", "", LENGTH, 2, ROWS * LENGTH, budget, {}, {}, {})
    rows = np.ones((ROWS, LENGTH + 1), dtype="<u2")
    return Scorer(Path(), rows, rows, np.array([0, BYTES_PER_TOKEN], dtype=np.int32), manifest)


def audit_finds(scorer: Scorer, worth: float, *, reference: bool, rng: np.random.Generator) -> bool:
    """Return True if one audit finds a lie worth so many bits per byte."""
    truth = rng.exponential(4.5, size=scorer.shape).astype(np.float32)
    other = np.clip(truth + rng.normal(0, 0.3, size=scorer.shape), 0, None).astype(np.float32)
    order = rng.permutation(truth.size)
    nats = worth * np.log(2) * BYTES_PER_TOKEN * truth.size
    lies = order[: 1 + int(np.searchsorted(np.cumsum(truth.ravel()[order]), nats))]
    claims = truth.copy()
    claims.ravel()[lies] = 0.0
    positions = scorer.plan_audit(claims, other if reference else None, rng, alone=0)
    rows = np.arange(ROWS)
    return bool((truth[rows, positions.at] - claims[rows, positions.at] > TOLERANCE["work"]).any())


def main() -> None:
    scorer, rng = make_scorer(), np.random.default_rng(0)
    print("| the lie is worth | places drawn evenly | with a reference |\n|---|---|---|")
    for sigmas in (0.5, 1, 2, 3):
        shares = [
            np.mean([audit_finds(scorer, sigmas * SIGMA, reference=reference, rng=rng) for _ in range(TRIALS)])
            for reference in (False, True)
        ]
        print(f"| {sigmas:g}σ | {shares[0]:.0%} found | {shares[1]:.0%} found |")
