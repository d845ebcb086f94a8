"""How small a lie the audit still finds: claims of zero for a few tokens, worth one, two or three σ of the cpu profile.

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
    commit = Manifest("cpu", "drawn", "", LENGTH, 2, ROWS * LENGTH, budget, {}, {}, {})
    rows = np.ones((ROWS, LENGTH + 1), dtype="<u2")
    return Scorer(Path(), rows, rows, np.array([0, BYTES_PER_TOKEN], dtype=np.int32), commit)


def found(scorer: Scorer, worth: float, *, reference: bool, luck: np.random.Generator) -> bool:
    """Whether one audit finds a lie worth so many bits per byte."""
    truth = luck.exponential(4.5, size=scorer.shape).astype(np.float32)
    other = np.clip(truth + luck.normal(0, 0.3, size=scorer.shape), 0, None).astype(np.float32)
    order = luck.permutation(truth.size)
    nats = worth * np.log(2) * BYTES_PER_TOKEN * truth.size
    lies = order[: 1 + int(np.searchsorted(np.cumsum(truth.ravel()[order]), nats))]
    claims = truth.copy()
    claims.ravel()[lies] = 0.0
    positions = scorer.draw_positions(claims, other if reference else None, luck)
    rows = np.arange(ROWS)
    return bool((truth[rows, positions.at] - claims[rows, positions.at] > TOLERANCE["work"]).any())


def main() -> None:
    scorer, luck = make_scorer(), np.random.default_rng(0)
    print("| the lie is worth | places drawn evenly | with a reference |\n|---|---|---|")
    for sigmas in (0.5, 1, 2, 3):
        shares = [
            np.mean([found(scorer, sigmas * SIGMA, reference=reference, luck=luck) for _ in range(TRIALS)])
            for reference in (False, True)
        ]
        print(f"| {sigmas:g}σ | {shares[0]:.0%} found | {shares[1]:.0%} found |")
