"""The corpus of the big GPUs: shards of climbmix as upstream takes them, the pinned validation shard among them."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from pyarrow import ArrowInvalid, parquet

from prepare.corpus.base import make_batches
from prepare.corpus.hub import Dataset
from prepare.manifest import DataError
from prepare.progress import Progress

REPO = "karpathy/climbmix-400b-shuffle"
VALIDATION, CONFIRMATION = 6542, 6541
"""Numbers of shards; the ones below them are for training."""


class Climbmix:
    """`shards` of it to train on; batches and their order are upstream's, so that packed rows are, too."""

    name, mixed = "climbmix", True

    def __init__(self, shards: int, progress: Progress) -> None:
        """Fetches what is not here yet. Raises DataError."""
        if not 1 <= shards <= CONFIRMATION:
            raise DataError(f"climbmix has 1 to {CONFIRMATION} shards to train on, not {shards}")
        folder = get_cache() / "climbmix"
        numbers = {"train": range(shards), "val": [VALIDATION], "confirm": [CONFIRMATION]}
        self._files = {split: [folder / name_shard(number) for number in of] for split, of in numbers.items()}
        names = [path.name for files in self._files.values() for path in files]
        stored = Dataset(REPO, folder, inspect_shard).fetch(names, progress)
        self.fingerprint = hashlib.sha256("".join(file.sha256 for file in stored).encode()).hexdigest()

    def count(self, split: str) -> int:
        return sum(parquet.read_metadata(path).num_rows for path in self._files[split])

    def batches(self, split: str) -> Iterator[list[str]]:
        for path in self._files[split]:
            with parquet.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    yield from make_batches(file.read_row_group(group, columns=["text"]).column(0).to_pylist())


def name_shard(number: int) -> str:
    return f"shard_{number:05d}.parquet"


def get_cache() -> Path:
    """Where shards are kept for all data folders."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nightshift"


def inspect_shard(path: Path) -> None:
    """Raises ValueError unless the file is Parquet with some text."""
    try:
        metadata = parquet.read_metadata(path)
    except ArrowInvalid as error:
        raise ValueError(f"not Parquet: {error}") from None
    if "text" not in metadata.schema.to_arrow_schema().names or not metadata.num_rows:
        raise ValueError("no text in it")
