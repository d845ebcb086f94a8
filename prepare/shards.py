"""Shards: texts, tokenised and packed once into a file of equal rows that every run maps into memory. No torch."""

import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from prepare import channel, manifest
from prepare.packing import materialise, pack
from prepare.tokenizer import Tokenizer


def row_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


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


def write_rows(
    path: Path, texts: Iterable[str], tokenizer: Tokenizer, seq_len: int, *, chunk: bool, limit: int | None
) -> None:
    """Writes at most `limit` rows of seq_len + 1 tokens; the file is empty where the texts fill no row.

    With `chunk`, no document is longer than a row and their order is shuffled, the same way every time.
    """
    dtype, capacity = row_dtype(tokenizer.get_vocab_size()), seq_len + 1
    spool = path.with_name(f"{path.name}.tokens")
    lengths = array("q")
    with spool.open("wb") as file:
        for piece in _pieces(texts, tokenizer, seq_len if chunk else None):
            lengths.append(len(piece))
            piece.astype(dtype).tofile(file)
    documents, takes = _packed(np.array(lengths, dtype=np.int64), capacity, shuffle=chunk, limit=limit)
    path.write_bytes(b"")
    if len(takes):
        starts = np.cumsum(lengths) - lengths
        out = np.memmap(path, dtype=dtype, mode="w+", shape=(int(takes.sum()),))
        materialise(np.memmap(spool, dtype=dtype, mode="r"), starts, documents, takes, out)
        out.flush()
    spool.unlink()


def _pieces(texts: Iterable[str], tokenizer: Tokenizer, longest: int | None) -> Iterator[np.ndarray]:
    """Each document with its BOS in front, or several pieces of it with at most `longest` tokens after each BOS."""
    bos = [tokenizer.get_bos_token_id()]
    for ids in tokenizer.arrays(texts):
        for first in range(0, len(ids), longest or len(ids) or 1):
            yield np.concatenate([bos, ids[first : first + (longest or len(ids))]])


def _packed(lengths: np.ndarray, capacity: int, *, shuffle: bool, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(0).permutation(len(lengths)) if shuffle else np.arange(len(lengths))
    documents, takes = pack(lengths[order].tolist(), capacity)
    if limit is not None:
        end = np.searchsorted(np.cumsum(takes), limit * capacity, side="right")
        documents, takes = documents[:end], takes[:end]
    return order[documents], takes
