"""A corpus is documents, split for training, validation and confirmation, and streamed in the same order each time."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Protocol, TypeVar

import numpy as np

from prepare.manifest import DataError

SPLITS = ("train", "val", "confirm")
BATCH = 128  # documents at a time, as upstream reads them
_DUPLICATE = 255
Read = Callable[[], Iterator[str]]
Item = TypeVar("Item")
Progress = Callable[[str, float], None]  # is told the name of a stage and the share of it that is done


class Corpus(Protocol):
    """Documents in three splits; no document is in two of them."""

    name: str  # name in the manifest
    fingerprint: str  # hex digest that changes with any of the text
    shuffled: bool  # true if the documents come in random order, so that they may be packed as they come

    def count(self, split: str) -> int:
        """Count the documents of a split."""
        ...

    def read_batches(self, split: str) -> Iterator[list[str]]:
        """Yield the documents of a split, a few at a time."""
        ...


class Documents:
    """Documents without splits: a hash of the content assigns each to one, and duplicates count once.

    Of `held_out` documents none is trained on, and all others are. All are read once to count them.
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
        if held_out:
            splits = [np.zeros_like(hashes[0]), 1 + hashes[1] % 2]
        else:  # 2 in 64 for validation, 2 for confirmation
            splits = [np.select([hashes[0] % 64 < 2, hashes[0] % 64 < 4], [1, 2], 0)]
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


def track(items: Iterable[Item], total: int, stage: str, progress: Progress) -> Iterator[Item]:
    """Yield the items and report after each how many of `total` have passed."""
    progress(stage, 0.0)
    for done, item in enumerate(items, 1):
        yield item
        progress(stage, done / max(total, done))


def make_batches(texts: Iterable[str], size: int = BATCH) -> Iterator[list[str]]:
    """Yield lists of `size` texts; the last may be shorter."""
    left = iter(texts)
    while batch := list(islice(left, size)):
        yield batch


def compute_digest(text: str) -> bytes:
    """Return the SHA-256 of a text, half surrogate pairs included."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _hash_document(text: str, update: Callable[[bytes], None]) -> int:
    digest = compute_digest(text)
    update(digest)
    return int.from_bytes(digest[-8:], "big")
