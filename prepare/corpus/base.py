"""A corpus is text in documents, split for training, validation and confirmation, and always read in the same order.

Reading is streaming: a corpus may be far larger than memory.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prepare.manifest import DataError

SPLITS = ("train", "val", "confirm")
BATCH = 128
"""Documents at a time, as upstream reads them."""
_DUPLICATE = 255
Read = Callable[[], Iterator[str]]


class Corpus(Protocol):
    """Documents in three splits; no document is in two of them."""

    name: str
    """Name in the manifest."""
    fingerprint: str
    """Hex digest that changes with any of the text."""
    shuffled: bool
    """True if the documents come in random order, so that they may be packed as they come."""

    def count(self, split: str) -> int:
        """Count the documents of a split."""
        ...

    def read_batches(self, split: str) -> Iterator[list[str]]:
        """Yield the documents of a split, a few at a time."""
        ...


class Documents:
    """Documents without splits: a hash of the content assigns each to one, and duplicates count once.

    Of `held_out` documents none is trained on, and all others are. Everything is read once to count it, and again
    each time that it is wanted.
    """

    shuffled = False

    def __init__(self, name: str, read: Read, held_out: Read | None = None) -> None:
        """Hash all documents. Raises DataError where there are too few for three splits."""
        self.name, self._reads = name, [read, held_out] if held_out else [read]
        whole = hashlib.sha256()
        hashes = [
            np.fromiter((_hash_document(text, whole.update) for text in filter(None, read())), np.uint64)
            for read in self._reads
        ]
        self.fingerprint = whole.hexdigest()
        splits = [np.zeros_like(hashes[0]), 1 + hashes[1] % 2] if held_out else [_assign_splits(hashes[0])]
        _, first = np.unique(everything := np.concatenate(hashes), return_index=True)
        self._splits = np.full(len(everything), _DUPLICATE, dtype=np.uint8)
        self._splits[first] = np.concatenate(splits)[first]
        if missing := [split for split in SPLITS if not self.count(split)]:
            found = f"{len(first)} document{'s' * (len(first) != 1)}"
            raise DataError(f"too little text in {name}: {found} to split, and none for {', '.join(missing)}")

    def count(self, split: str) -> int:
        return int((self._splits == SPLITS.index(split)).sum())

    def read_batches(self, split: str) -> Iterator[list[str]]:
        wanted, splits = SPLITS.index(split), self._splits.tobytes()
        texts = filter(None, chain.from_iterable(read() for read in self._reads))
        return make_batches(text for text, found in zip(texts, splits, strict=False) if found == wanted)


def make_batches(texts: Iterable[str], size: int = BATCH) -> Iterator[list[str]]:
    """Yield lists of `size` texts; the last may be shorter."""
    left = iter(texts)
    while batch := list(islice(left, size)):
        yield batch


def compute_digest(text: str) -> bytes:
    """Return the SHA-256 of a text, half surrogate pairs included."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _hash_document(text: str, update: Callable[[bytes], None]) -> int:
    """Return 64 bits of a text's digest, and update the corpus's with it."""
    digest = compute_digest(text)
    update(digest)
    return int.from_bytes(digest[-8:], "big")


def _assign_splits(hashes: NDArray[np.uint64]) -> NDArray[Any]:
    """Return the index of each document's split: about 2 in 64 for validation, 2 for confirmation."""
    return np.select([hashes % 64 < 2, hashes % 64 < 4], [1, 2], 0).astype(np.uint8)
