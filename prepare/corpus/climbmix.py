# pyright: basic
# (pyarrow has no types)
"""Open the corpus for large GPUs: the shards of climbmix that upstream uses, with its pinned validation shard.

HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE have their usual effect.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub as hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] - of httpx, in one of its versions
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import disable_progress_bars
from pyarrow import parquet
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential
from tenacity.wait import wait_base

from prepare.corpus import Corpus, make_batches, track
from prepare.manifest import DataError, compute_sha256

REPO = "karpathy/climbmix-400b-shuffle"
VALIDATION, CONFIRMATION = 6542, 6541  # numbers of shards; lower ones are for training
ATTEMPTS = 5
WAIT = wait_exponential(0.5, max=30)
_BUSY = {408, 429, 500, 502, 503, 504}


def open_climbmix(shards: int) -> Corpus:
    """Return the corpus with `shards` to train on, after fetching those not cached. Raises DataError.

    Batches and their order are upstream's, and hence the packed rows, too.
    """
    numbers = [*range(shards), VALIDATION, CONFIRMATION]
    files = Hub().fetch([f"shard_{number:05d}.parquet" for number in numbers])
    paths = [path for path, _ in files]
    splits = {"train": paths[:shards], "val": [paths[shards]], "confirm": [paths[shards + 1]]}

    def read_batches(split: str) -> Iterator[list[str]]:
        for path in splits[split]:  # no batch crosses a row group
            with parquet.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    yield from make_batches(file.read_row_group(group, columns=["text"]).column(0).to_pylist())

    fingerprint = hashlib.sha256("".join(sha256 for _, sha256 in files).encode()).hexdigest()
    counts = {split: sum(parquet.read_metadata(path).num_rows for path in paths) for split, paths in splits.items()}
    return Corpus("climbmix", fingerprint, counts, read_batches, shuffled=True)


@dataclass(frozen=True)
class Hub:
    """The data set on the Hugging Face hub; its files are checked, and cached by huggingface_hub."""

    cache: Path | None = None  # folder of the cache; huggingface_hub's default if None
    endpoint: str | None = None
    wait: wait_base = WAIT

    def fetch(self, names: Sequence[str]) -> list[tuple[Path, str]]:
        """Return the files and their SHA-256; fetch those that are missing or damaged. Raises DataError."""
        disable_progress_bars()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        retrying = Retrying(
            stop=stop_after_attempt(ATTEMPTS), wait=self.wait, retry=retry_if_exception(_is_transient), reraise=True
        )
        host = self.endpoint or constants.ENDPOINT
        try:
            files = track(names, len(names), f"fetching {len(names)} shards")
            return [retrying(self._load_file, name) for name in files]
        except OfflineModeIsEnabled:
            cache = self.cache or constants.HF_HUB_CACHE
            problem = f"not all shards are in {cache} and HF_HUB_OFFLINE is set: unset it"
        except HfHubHTTPError as error:
            advice = "set HF_TOKEN" if (status := error.response.status_code) in {401, 403} else "try again later"
            problem = f"{host} answers {status} for {REPO}: {advice}, or set HF_ENDPOINT to a mirror"
        except HTTPError as error:
            reason = type(error).__name__
            problem = f"{host} cannot be reached ({reason}): check the network, or set HF_ENDPOINT to a mirror"
        except OSError as error:
            if error.errno is not None:  # an error of this machine
                raise
            problem = f"{host} keeps sending a damaged shard ({str(error).splitlines()[0]}): try again later"
        raise DataError(f"{problem}; `--corpus docstrings` needs no network")

    def _load_file(self, name: str) -> tuple[Path, str]:
        """Return a file and its SHA-256. Deletes one that fails a check, and raises OSError without an errno."""
        found = hub.try_to_load_from_cache(REPO, name, cache_dir=self.cache, repo_type="dataset")
        if not isinstance(found, str):
            url = hub.hf_hub_url(REPO, name, repo_type="dataset", endpoint=self.endpoint)
            # Requested first, because hf_hub_download hides why it cannot reach the hub.
            hub.get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT, endpoint=self.endpoint)
            found = hub.hf_hub_download(REPO, name, repo_type="dataset", cache_dir=self.cache, endpoint=self.endpoint)
        path = Path(found).resolve()
        try:
            return path, _check(path)
        except ValueError as error:
            path.unlink()
            raise OSError(str(error)) from error


def _check(path: Path) -> str:
    """Return the SHA-256, a large file's name in the cache. Raises ValueError unless it is Parquet with text."""
    sha256 = compute_sha256(path)
    if len(path.name) == len(sha256) and path.name != sha256:
        raise ValueError("its checksum is wrong")
    metadata = parquet.read_metadata(path)  # pyarrow's errors are ValueErrors, too
    if "text" not in metadata.schema.to_arrow_schema().names or not metadata.num_rows:
        raise ValueError("no text in it")
    return sha256


def _is_transient(error: BaseException) -> bool:
    match error:
        case HfHubHTTPError():
            return error.response.status_code in _BUSY
        case OSError():  # without an errno: from huggingface_hub, as for a wrong size, or our own
            return error.errno is None and not isinstance(error, OfflineModeIsEnabled)
        case _:
            return isinstance(error, HTTPError)
