"""A data folder of a few kilobytes, made in a moment: a token is a byte."""

from pathlib import Path

import numpy as np

from prepare import manifest
from prepare.manifest import BudgetAmount, Manifest, StoredFile
from prepare.tokenizer import Tokenizer

LENGTH = 32
COUNTS = {"train": 512, "val": 64, "confirm": 64}


def small_data(folder: Path, budget: BudgetAmount | None = None, make_rows=None) -> Path:
    """Rows of nothing but the letter a, where no other are made."""
    folder.mkdir(parents=True)
    for split, count in COUNTS.items():
        rows = make_rows(count) if make_rows else np.full((count, LENGTH + 1), ord("a"))
        rows.astype("<u2").tofile(folder / f"{split}.bin")
    (folder / "tokenizer.json").write_text(Tokenizer([bytes([byte]) for byte in range(256)]).to_json())
    files = {path.name: StoredFile(path.stat().st_size, manifest.compute_sha256(path)) for path in folder.iterdir()}
    found = Manifest(
        profile="cpu",
        corpus="made up",
        corpus_sha256="0" * 64,
        seq_len=LENGTH,
        vocab_size=260,
        eval_tokens=LENGTH * COUNTS["val"],
        budget=budget or BudgetAmount(kind="work", amount=1.0, seconds=0.2),
        rows=COUNTS,
        files=files,
        versions={},
    )
    (folder / manifest.MANIFEST_FILE).write_text(found.to_json())
    return folder
