"""Pack documents into rows of equal length by best fit: every row begins with a document, none is padded.

The rows are those of upstream's loader, which packs on the fly: of the waiting documents it takes the longest that
fits, else it crops the shortest. Here they are kept sorted, so that a document costs O(log n) instead of a scan.
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
_SHIFT = 36  # a waiting document is an int64, length << _SHIFT | index, and so sorted by length, then by age
_INDEX = (1 << _SHIFT) - 1


class TokenStore:
    """Tokens in a file, with the lengths of the documents and the number of documents in each batch."""

    def __init__(
        self, file: BinaryIO, batches: Iterable[list[str]], tokenizer: Tokenizer, max_length: int | None = None
    ) -> None:
        """Tokenize the batches into `file`; split documents longer than `max_length` tokens, each part with a BOS."""
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
    """Pack documents of `lengths` tokens into rows of `capacity` tokens; return (documents, takes), equally long.

    Row after row holds the first `takes[i]` tokens of document `documents[i]`. An incomplete last row is dropped.
    """
    documents, takes = array("q"), array("q")
    waiting: list[int] = []
    batches = repeat(REFILL) if refills is None else iter(refills)
    keys = np.asarray(lengths, dtype=np.int64) << _SHIFT | np.arange(len(lengths))
    seen, room, complete = 0, capacity, 0
    while True:
        while len(waiting) < buffer and seen < len(keys):
            fresh = keys[seen : seen + next(batches)].tolist()
            waiting = sorted(waiting + fresh)  # nearly sorted already, so timsort is fast
            seen += len(fresh)
        if not waiting:
            break
        index = bisect_left(waiting, room + 1 << _SHIFT)
        if index:  # the longest that fits; among equals, the earliest
            index = bisect_left(waiting, waiting[index - 1] >> _SHIFT << _SHIFT)
        chosen = waiting.pop(index)
        documents.append(chosen & _INDEX)
        takes.append(min(chosen >> _SHIFT, room))
        room -= takes[-1]
        if room == 0:
            room, complete = capacity, len(takes)
    return np.array(documents[:complete], dtype=np.int64), np.array(takes[:complete], dtype=np.int64)


def write_rows(
    path: Path, store: TokenStore, seq_len: int, *, shuffle: bool, limit: int | None, block: int = 1024
) -> None:
    """Pack at most `limit` rows of seq_len + 1 tokens into a file, `block` at a time; shuffle with a fixed seed."""
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
