"""Compare our loader with upstream's, which tokenizes and packs on the fly; measure packing and cropping.

The text is synthetic: documents of made-up words whose lengths are those of a web corpus (median 626 tokens).
"""

import os
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from prepare import profiles
from prepare.build.folder import build_folder
from prepare.build.packing import pack
from prepare.corpus import SPLITS, Corpus, make_batches
from prepare.loader import make_dataloader
from prepare.shards import open_rows
from prepare.tokenizer import Tokenizer

SHAPES = ((128, 2048), (8, 256))
DOCUMENTS = 12_000
Batch = tuple[torch.Tensor, torch.Tensor, int]


def write_corpus(path: Path, documents: int, seed: int = 0) -> None:
    """Write words with a Zipf-like frequency, in row groups of 1,024 documents, as in climbmix."""
    luck, lengths = random.Random(seed), np.random.default_rng(seed).lognormal(6.4, 0.9, documents)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = [f" {''.join(luck.choices(letters, range(26, 0, -1), k=luck.randint(2, 10)))}" for _ in range(20_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    texts = ["".join(luck.choices(words, weights, k=max(1, int(0.7 * length)))) for length in lengths]
    parquet.write_table(pa.table({"text": texts}), path, row_group_size=1024)


def open_shards(folder: Path) -> Corpus:
    """Return a corpus of one Parquet file for each split."""
    paths = {split: folder / f"{split}.parquet" for split in SPLITS}

    def read_batches(split: str) -> Iterator[list[str]]:
        file = parquet.ParquetFile(paths[split])
        for group in range(file.num_row_groups):
            yield from make_batches(file.read_row_group(group).column("text").to_pylist())

    counts = {split: parquet.read_metadata(path).num_rows for split, path in paths.items()}
    return Corpus("synthetic", "", counts, read_batches, shuffled=True)


def load_like_upstream(corpus: Corpus, tokenizer: Tokenizer, B: int, T: int) -> Iterator[Batch]:
    """Tokenize batches of 128 documents when the buffer falls below 1,000, and scan it for the best fit."""
    texts = (batch for _ in iter(int, 1) for batch in corpus.read_batches("train"))
    waiting: list[list[int]] = []
    rows = torch.empty((B, T + 1), dtype=torch.long)
    while True:
        for row in rows:
            end = 0
            while end < T + 1:
                while len(waiting) < 1000:
                    encoded = tokenizer.encode(next(texts), prepend=tokenizer.get_bos_token_id())
                    waiting.extend(cast("list[list[int]]", encoded))
                room = T + 1 - end
                best, length = -1, 0
                for i, document in enumerate(waiting):
                    if length < len(document) <= room:
                        best, length = i, len(document)
                if best < 0:
                    best = min(range(len(waiting)), key=lambda i: len(waiting[i]))
                piece = waiting.pop(best)[:room]
                row[end : end + len(piece)] = torch.tensor(piece, dtype=torch.long)
                end += len(piece)
        yield rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), 1


def measure_rate(batches: Iterator[Batch], tokens: int, seconds: float, repeats: int = 5) -> float:
    """Return tokens per second: the median of `repeats` measurements that take about `seconds` in total."""
    next(batches)
    rates = []
    for _ in range(repeats):
        began, count = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < seconds / repeats or not count:
            next(batches)
            count += 1
        rates.append(count * tokens / spent)
    return float(np.median(rates))


def pack_data(folder: Path, corpus: Corpus, T: int, *, chunk: bool) -> Path:
    data = folder / f"data-{T}-{chunk}"
    data.mkdir()
    profile = replace(profiles.H100, seq_len=T, chunk=chunk, eval_tokens=T * 64)
    build_folder(data, corpus, profile)
    return data


def measure_cropped(lengths: np.ndarray, T: int, *, chunk: bool) -> float:
    if chunk:
        whole, rest = np.divmod(lengths - 1, T)
        lengths = np.concatenate([np.full(int(whole.sum()), T + 1), rest[rest > 0] + 1])
        lengths = np.random.default_rng(0).permutation(lengths)
    used = int(pack(lengths, T + 1)[1].sum())
    return 1 - used / int(lengths.sum())


def compare_loaders(folder: Path) -> None:
    for split in SPLITS:
        write_corpus(folder / f"{split}.parquet", DOCUMENTS if split == "train" else 1024, SPLITS.index(split))
    corpus = open_shards(folder)
    print("| B × T | upstream's design, tokens/s | ours | ratio |")
    print("|---|---|---|---|")
    for B, T in SHAPES:
        os.environ["NIGHTSHIFT_DATA"] = str(pack_data(folder, corpus, T, chunk=T < 2048))
        tokenizer = Tokenizer.from_directory()
        plain = measure_rate(load_like_upstream(corpus, tokenizer, B, T), B * T, seconds=8)
        ours = measure_rate(make_dataloader(tokenizer, B, T, "train"), B * T, seconds=3)
        print(f"| {B} × {T} | {plain / 1e6:.2f} M | {ours / 1e6:.0f} M | {ours / plain:,.0f} |")


def measure_packing() -> None:
    lengths = np.random.default_rng(0).lognormal(6.4, 0.9, 300_000).astype(np.int64) + 2
    print("\n| T | documents | packing, tokens/s | cropped |")
    print("|---|---|---|---|")
    for T, chunk in ((2048, False), (2048, True), (256, False), (256, True)):
        began = time.perf_counter()
        share = measure_cropped(lengths, T, chunk=chunk)
        speed = lengths.sum() / (time.perf_counter() - began)
        kind = "cut to rows" if chunk else "whole, as upstream"
        print(f"| {T} | {kind} | {speed / 1e6:.0f} M | {100 * share:.1f} % |")


def compare_rows(folder: Path) -> None:
    """Print whether our rows are identical to upstream's, over several batches."""
    os.environ["NIGHTSHIFT_DATA"] = str(folder / "data-2048-False")
    tokenizer, corpus = Tokenizer.from_directory(), open_shards(folder)
    theirs = torch.cat([x for x, _, _ in islice(load_like_upstream(corpus, tokenizer, 16, 2048), 8)]).numpy()
    same = np.array_equal(theirs, open_rows("train")[: len(theirs), :-1])
    print(f"\nFirst {len(theirs)} rows at T = 2048 identical to upstream's: {'yes' if same else 'NO'}")


def main() -> None:
    saved = os.environ.get("NIGHTSHIFT_DATA")
    with tempfile.TemporaryDirectory() as folder:
        compare_loaders(Path(folder))
        compare_rows(Path(folder))
    measure_packing()
    os.environ.pop("NIGHTSHIFT_DATA") if saved is None else os.environ.update(NIGHTSHIFT_DATA=saved)
