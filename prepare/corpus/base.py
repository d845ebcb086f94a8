"""A corpus is text in documents, split for training, validation and confirmation, and always read in the same order.

Reading is streaming: a corpus may be far larger than memory.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Protocol

import numpy as np

from prepare.manifest import DataError

SPLITS = ("train", "val", "confirm")
BATCH = 128
"""Documents at a time, as upstream reads them."""
_AGAIN = 255
Read = Callable[[], Iterator[str]]


class Corpus(Protocol):
    name: str
    """By which a manifest knows it."""
    fingerprint: str
    """Hex; another one when any of the text changes."""
    mixed: bool
    """Whether the order of the documents is already random, so that they may be packed as they come."""

    def count(self, split: str) -> int:
        """How many documents a split has."""
        ...

    def batches(self, split: str) -> Iterator[list[str]]:
        """The documents of a split, a few at a time; no document is in two splits."""
        ...


class Documents:
    """Documents that nobody has split yet: the content alone decides where one belongs, and each counts once.

    With some that are held out, training gets all others, and none of these. They are read once to look, and once more
    each time that they are wanted.
    """

    mixed = False

    def __init__(self, name: str, read: Read, held_out: Read | None = None) -> None:
        """Raises DataError where there are too few for three splits."""
        self.name, self._reads = name, [read, held_out] if held_out else [read]
        whole = hashlib.sha256()
        drawn = [
            np.fromiter((_draw_lot(text, whole) for text in filter(None, read())), np.uint64) for read in self._reads
        ]
        self.fingerprint = whole.hexdigest()
        parts = [np.zeros_like(drawn[0]), 1 + drawn[1] % 2] if held_out else [_assign_split(drawn[0])]
        _, first = np.unique(lots := np.concatenate(drawn), return_index=True)
        self._parts = np.full(len(lots), _AGAIN, dtype=np.uint8)
        self._parts[first] = np.concatenate(parts)[first]
        if missing := [split for split in SPLITS if not self.count(split)]:
            raise DataError(f"too little text in {name}: {len(first)} documents leave none for {', '.join(missing)}")

    def count(self, split: str) -> int:
        return int((self._parts == SPLITS.index(split)).sum())

    def batches(self, split: str) -> Iterator[list[str]]:
        wanted, places = SPLITS.index(split), self._parts.tobytes()
        texts = filter(None, chain.from_iterable(read() for read in self._reads))
        return make_batches(text for text, part in zip(texts, places, strict=False) if part == wanted)


def make_batches(texts: Iterable[str], size: int = BATCH) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def compute_digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _draw_lot(text: str, whole: "hashlib._Hash") -> int:
    drawn = compute_digest(text)
    whole.update(drawn)
    return int.from_bytes(drawn[-8:], "big")


def _assign_split(lots: np.ndarray) -> np.ndarray:
    """About 2 in 64 documents for validation, 2 for confirmation, the rest for training: the index of the split."""
    return np.select([lots % 64 < 2, lots % 64 < 4], [1, 2], 0).astype(np.uint8)
