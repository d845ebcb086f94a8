"""Open the text to train on: documents in splits for training, validation and confirmation, in a fixed order."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar

import numpy as np
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from prepare.manifest import DataError

SPLITS = ("train", "val", "confirm")
BATCH = 128  # documents in a batch, as in upstream's loader
_DUPLICATE = 255
Item = TypeVar("Item")
bars = Progress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())  # one a stage


@dataclass(frozen=True)
class Corpus:
    """Documents in three disjoint splits."""

    name: str  # name in the manifest
    fingerprint: str  # hex digest that changes with the text
    counts: Mapping[str, int]  # documents, by split
    read_batches: Callable[[str], Iterator[list[str]]]  # yields a split's documents in batches
    shuffled: bool = False  # True if the documents are in random order already, so that packing need not shuffle them
    shards: int | None = None  # shards to train on, where the corpus has them


def open_corpus(source: str, shards: int) -> Corpus:
    """Return the corpus "docstrings", `shards` of "climbmix", or the text at a path. Raises DataError."""
    if source == "climbmix":
        from prepare.corpus.climbmix import open_climbmix

        return open_climbmix(shards)
    if source == "docstrings":
        from prepare.corpus.docstrings import harvest

        known, held_out = harvest()
        return split_documents(source, lambda: chain(known, held_out), len(held_out))
    from prepare.corpus.text import read_texts

    return split_documents(canonicalize(source), lambda: read_texts(source))


def canonicalize(source: str) -> str:
    """Return the corpus's name in a manifest: as given, or an absolute path."""
    return source if source in {"docstrings", "climbmix"} else os.path.realpath(source)


def split_documents(name: str, read: Callable[[], Iterator[str]], held_out: int | None = None) -> Corpus:
    """Return documents as a corpus: a hash of its content assigns each to a split, and duplicates count once.

    With `held_out`, only the last `held_out` documents, none of them empty, are validated on, and all others are
    trained on. Reads all documents once. Raises DataError if there are too few for three splits, and at the end of
    each split if they are others by then: its documents could have been another split's.
    """
    digest = hashlib.sha256()
    hashes = np.fromiter((_hash_document(text, digest.update) for text in filter(None, read())), np.uint64)
    if held_out is None:  # 2 in 64 for validation, 2 for confirmation
        splits = np.select([hashes % 64 < 2, hashes % 64 < 4], [1, 2], 0)
    else:
        splits = np.where(np.arange(len(hashes)) < len(hashes) - held_out, 0, 1 + hashes % 2)
    _, first = np.unique(hashes, return_index=True)
    chosen = np.full(len(hashes), _DUPLICATE, dtype=np.uint8)
    chosen[first] = splits[first]
    few = {1, 2}.difference(chosen[first].tolist()) if held_out is None else ()  # such as those of one book
    for split, at in zip(few, first[chosen[first] == 0], strict=False):
        chosen[at] = split
    counts = {split: int((chosen == number).sum()) for number, split in enumerate(SPLITS)}
    if missing := [split for split, count in counts.items() if not count]:
        found = f"{len(first)} document{'s' * (len(first) != 1)}"
        raise DataError(f"too little text in {name}: {found} to split, and none for {', '.join(missing)}")

    def read_split(split: str) -> Iterator[str]:
        again, wanted = hashlib.sha256(), SPLITS.index(split)
        for text, at in zip(filter(None, read()), chosen.tobytes(), strict=False):
            _hash_document(text, again.update)
            if at == wanted:
                yield text
        if again.digest() != digest.digest():
            raise DataError(f"{name} has changed while it was read: run the command again once nothing writes to it")

    def read_batches(split: str) -> Iterator[list[str]]:
        return make_batches(read_split(split))

    return Corpus(name, digest.hexdigest(), counts, read_batches)


def track(items: Iterable[Item], total: int, stage: str) -> Iterator[Item]:
    """Yield the items, and show the share of `total` that is done, where a command displays `bars`."""
    known = next((task.id for task in bars.tasks if task.description == stage), None)
    task = bars.add_task(stage, total=total) if known is None else known
    bars.update(task, total=total)
    for item in items:  # rich's own `track` has a thread, and waits for it for ever if it is collected at a bad moment
        yield item
        bars.advance(task)


def make_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield lists of BATCH texts; the last may be shorter."""
    left = iter(texts)
    while batch := list(islice(left, BATCH)):
        yield batch


def compute_digest(text: str) -> bytes:
    """Return the SHA-256 of a text, which may hold lone surrogates."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _hash_document(text: str, update: Callable[[bytes], None]) -> int:
    digest = compute_digest(text)
    update(digest)
    return int.from_bytes(digest[-8:], "big")
