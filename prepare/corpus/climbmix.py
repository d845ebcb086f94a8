# pyright: basic
# (pyarrow has no types)
"""The corpus of the big GPUs: shards of climbmix as upstream takes them, the pinned validation shard among them."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from pyarrow import parquet

from prepare.corpus.base import make_batches
from prepare.corpus.hub import HubDataset
from prepare.manifest import DataError
from prepare.progress import Progress

REPO = "karpathy/climbmix-400b-shuffle"
VALIDATION, CONFIRMATION = 6542, 6541
"""Numbers of shards; the ones below them are for training."""


class Climbmix:
    """`shards` of it to train on; batches and their order are upstream's, so that packed rows are, too."""

    name, shuffled = "climbmix", True

    def __init__(self, shards: int, progress: Progress) -> None:
        """Fetch the shards that are not cached. Raises DataError."""
        if not 1 <= shards <= CONFIRMATION:
            raise DataError(f"climbmix has 1 to {CONFIRMATION} shards to train on, not {shards}")
        numbers = [*range(shards), VALIDATION, CONFIRMATION]
        files = HubDataset(REPO, inspect_shard).fetch([f"shard_{number:05d}.parquet" for number in numbers], progress)
        paths = [file.path for file in files]
        self._paths = {"train": paths[:shards], "val": [paths[shards]], "confirm": [paths[shards + 1]]}
        self.fingerprint = hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()

    def count(self, split: str) -> int:
        """Count the documents of a split."""
        return sum(parquet.read_metadata(path).num_rows for path in self._paths[split])

    def read_batches(self, split: str) -> Iterator[list[str]]:
        """Yield the documents of a split, a few at a time; no batch crosses a row group."""
        for path in self._paths[split]:
            with parquet.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    yield from make_batches(file.read_row_group(group, columns=["text"]).column(0).to_pylist())


def inspect_shard(path: Path) -> None:
    """Raise ValueError unless the file is Parquet with some text."""
    try:
        metadata = parquet.read_metadata(path)
    except ValueError as error:  # as all of pyarrow's errors are
        raise ValueError(f"not Parquet: {error}") from None
    if "text" not in metadata.schema.to_arrow_schema().names or not metadata.num_rows:
        raise ValueError("no text in it")
