"""Tokens of documents into rows of equal length by best fit: every row begins with a document, none is padded.

Row for row what upstream's loader does on the fly (of some waiting documents the longest that fits goes in, else the
shortest is cropped), but these are kept sorted, so that a document costs O(log n) and not a scan.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from prepare.shards import choose_row_dtype
from prepare.tokenizer import Tokenizer

Ints = NDArray[np.int64]
BUFFER = 1000
REFILL = 128
_SHIFT = 36  # a waiting document is one int64, length << _SHIFT | index: sorted by length, the earliest first
_INDEX = (1 << _SHIFT) - 1


class TokenStore:
    """Tokens in a file, with the lengths of the documents and how many of them came in each batch."""

    def __init__(
        self, file: BinaryIO, batches: Iterable[list[str]], tokenizer: Tokenizer, max_length: int | None = None
    ) -> None:
        """Tokenize the batches into `file`; documents longer than `max_length` become several, each with a BOS."""
        dtype, lengths, self.batch_sizes = choose_row_dtype(tokenizer.get_vocab_size()), array("q"), array("q")
        for documents in tokenizer.encode_batches(batches):
            count, pieces = len(lengths), list[NDArray[np.uint32]]()
            for ids in documents:
                starts = np.arange(0, len(ids) or 1, max_length or len(ids) or 1)
                pieces.append(np.insert(ids, starts, tokenizer.get_bos_token_id()))
                lengths.extend((1 + np.diff(starts, append=len(ids))).tolist())
            np.concatenate(pieces).astype(dtype).tofile(file)
            self.batch_sizes.append(len(lengths) - count)
        file.flush()
        self.tokens: NDArray[Any] = np.memmap(file, dtype=dtype, mode="r")
        self.lengths: NDArray[np.int64] = np.array(lengths, dtype=np.int64)


def pack(
    lengths: Ints, capacity: int, *, buffer: int = BUFFER, refills: Iterable[int] | None = None
) -> tuple[Ints, Ints]:
    """Pack documents of `lengths` tokens into rows of `capacity`; return (documents, takes), equally long.

    Row after row, `takes[i]` tokens from the start of `documents[i]`; a last incomplete row is dropped.
    """
    documents, takes = array("q"), array("q")
    waiting: list[int] = []
    batches = repeat(REFILL) if refills is None else iter(refills)
    keys = np.asarray(lengths, dtype=np.int64) << _SHIFT | np.arange(len(lengths))
    seen, room, whole = 0, capacity, 0
    while True:
        while len(waiting) < buffer and seen < len(keys):
            fresh = keys[seen : seen + next(batches)].tolist()
            waiting = sorted(waiting + fresh)  # nearly sorted already, which timsort likes
            seen += len(fresh)
        if not waiting:
            break
        place = bisect_left(waiting, room + 1 << _SHIFT)
        if place:  # the longest that fits; of equals, the earliest
            place = bisect_left(waiting, waiting[place - 1] >> _SHIFT << _SHIFT)
        chosen = waiting.pop(place)
        documents.append(chosen & _INDEX)
        takes.append(min(chosen >> _SHIFT, room))
        room -= takes[-1]
        if room == 0:
            room, whole = capacity, len(takes)
    return np.array(documents[:whole], dtype=np.int64), np.array(takes[:whole], dtype=np.int64)


def write_rows(
    path: Path, store: TokenStore, seq_len: int, *, shuffle: bool, limit: int | None, block: int = 1024
) -> None:
    """Pack at most `limit` rows of seq_len + 1 tokens into a file, `block` in memory; shuffles the same every time."""
    capacity, lengths = seq_len + 1, store.lengths
    order = np.random.default_rng(0).permutation(len(lengths)) if shuffle else np.arange(len(lengths))
    documents, takes = pack(lengths[order], capacity, refills=None if shuffle else store.batch_sizes)
    ends, starts = np.cumsum(takes), np.cumsum(lengths, dtype=np.int64) - lengths
    shifts = starts[order[documents]] - (ends - takes)  # from a token's place in the rows to its place in the store
    rows = int(takes.sum()) // capacity
    rows = rows if limit is None else min(rows, limit)
    with path.open("wb") as file:
        for first in range(0, rows, block):
            last = min(first + block, rows)
            some = slice(*np.searchsorted(ends, [first * capacity, last * capacity], side="right"))
            places = np.repeat(shifts[some], takes[some]) + np.arange(first * capacity, last * capacity)
            store.tokens[places].tofile(file)
