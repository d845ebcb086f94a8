"""A corpus is documents, split for training, validation and confirmation, and streamed in the same order each time."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar

import numpy as np

from prepare.manifest import DataError

SPLITS = ("train", "val", "confirm")
BATCH = 128  # documents at a time, as upstream reads them
_DUPLICATE = 255
Read = Callable[[], Iterator[str]]
Item = TypeVar("Item")
Progress = Callable[[str, float], None]  # is told the name of a stage and the share of it that is done


@dataclass(frozen=True)
class Corpus:
    """Documents in three splits; no document is in two of them."""

    name: str  # name in the manifest
    fingerprint: str  # hex digest that changes with any of the text
    counts: Mapping[str, int]  # documents, by split
    read_batches: Callable[[str], Iterator[list[str]]]  # yields the documents of a split, a few at a time
    shuffled: bool = False  # true if the documents come in random order, so that they may be packed as they come


def split_documents(name: str, read: Read, held_out: Read | None = None) -> Corpus:
    """Return documents without splits as a corpus: a hash of the content assigns each, and duplicates count once.

    Of `held_out` documents none is trained on, and all others are. All are read once to hash them. Raises DataError
    where there are too few for three splits.
    """
    reads, whole = [read, held_out] if held_out else [read], hashlib.sha256()
    hashes = [
        np.fromiter((_hash_document(text, whole.update) for text in filter(None, each())), np.uint64) for each in reads
    ]
    if held_out:
        splits = [np.zeros_like(hashes[0]), 1 + hashes[1] % 2]
    else:  # 2 in 64 for validation, 2 for confirmation
        splits = [np.select([hashes[0] % 64 < 2, hashes[0] % 64 < 4], [1, 2], 0)]
    _, first = np.unique(everything := np.concatenate(hashes), return_index=True)
    chosen = np.full(len(everything), _DUPLICATE, dtype=np.uint8)
    chosen[first] = np.concatenate(splits)[first]
    counts = {split: int((chosen == number).sum()) for number, split in enumerate(SPLITS)}
    if missing := [split for split, count in counts.items() if not count]:
        found = f"{len(first)} document{'s' * (len(first) != 1)}"
        raise DataError(f"too little text in {name}: {found} to split, and none for {', '.join(missing)}")

    def read_batches(split: str) -> Iterator[list[str]]:
        wanted, texts = SPLITS.index(split), filter(None, chain.from_iterable(each() for each in reads))
        return make_batches(text for text, at in zip(texts, chosen.tobytes(), strict=False) if at == wanted)

    return Corpus(name, whole.hexdigest(), counts, read_batches)


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
