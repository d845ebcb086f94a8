"""Shards: documents, packed once into a file of equal rows that every run maps into memory. No torch."""

import os
from pathlib import Path

import numpy as np

from prepare import channel, manifest
from prepare.packing import materialise, pack
from prepare.spool import Spool, row_dtype


def open_rows(split: str, folder: Path | None = None) -> np.ndarray:
    """The packed rows of a split, mapped read-only: [rows, MAX_SEQ_LEN + 1] token ids.

    Under an orchestrator these are what it has handed out, and nothing else. Raises ValueError.
    """
    stored = manifest.load(folder)
    if split not in stored.rows:
        raise ValueError(f"no split {split!r}: one of {', '.join(sorted(stored.rows))}")
    if folder is None and channel.answers():
        if (descriptor := channel.shard(split)) is None:
            raise ValueError(f"the rows of {split!r} are not handed out now")
        file = os.fdopen(descriptor, "rb", closefd=False)
    else:
        file = (folder or manifest.data_dir()) / f"{split}.bin"
    flat = np.memmap(file, dtype=row_dtype(stored.vocab_size), mode="r")
    return flat.reshape(-1, stored.seq_len + 1)


def write_rows(path: Path, spool: Spool, seq_len: int, *, shuffle: bool, limit: int | None, block: int = 4096) -> None:
    """Packs at most `limit` rows of seq_len + 1 tokens, `block` rows in memory; no row gives an empty file.

    With `shuffle`, the documents are packed in another order, the same one every time.
    """
    capacity, lengths = seq_len + 1, spool.lengths()
    order = np.random.default_rng(0).permutation(len(lengths)) if shuffle else np.arange(len(lengths))
    documents, takes = pack(lengths[order], capacity, refills=None if shuffle else spool.batches())
    ends, starts = np.cumsum(takes), np.cumsum(lengths, dtype=np.int64) - lengths
    rows = int(takes.sum()) // capacity
    with path.open("wb") as file:
        for first in range(0, rows if limit is None else min(rows, limit), block):
            last = min(first + block, rows if limit is None else min(rows, limit))
            some = slice(*np.searchsorted(ends, [first * capacity, last * capacity], side="right"))
            out = np.empty((last - first) * capacity, dtype=spool.dtype)
            materialise(spool.tokens(), starts, order[documents[some]], takes[some], out)
            out.tofile(file)
