# pyright: basic
# (pyarrow has no types)
"""The corpus of the big GPUs: shards of climbmix as upstream takes them, the pinned validation shard among them.

HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE count, as huggingface_hub reads them.
"""

import hashlib
import logging
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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

from prepare.corpus.base import make_batches
from prepare.manifest import DataError, compute_sha256
from prepare.progress import Progress, track

REPO = "karpathy/climbmix-400b-shuffle"
VALIDATION, CONFIRMATION = 6542, 6541
"""Numbers of shards; the ones below them are for training."""
ATTEMPTS = 5
WAIT = wait_exponential(0.5, max=30)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BUSY = {408, 429, 500, 502, 503, 504}


class Climbmix:
    """`shards` of it to train on; batches and their order are upstream's, so that packed rows are, too."""

    name, shuffled = "climbmix", True

    def __init__(self, shards: int, progress: Progress) -> None:
        """Fetch the shards that are not cached. Raises DataError."""
        numbers = [*range(shards), VALIDATION, CONFIRMATION]
        files = Hub().fetch([f"shard_{number:05d}.parquet" for number in numbers], progress)
        paths = [file.path for file in files]
        self._paths = {"train": paths[:shards], "val": [paths[shards]], "confirm": [paths[shards + 1]]}
        self.fingerprint = hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()

    def count(self, split: str) -> int:
        return sum(parquet.read_metadata(path).num_rows for path in self._paths[split])

    def read_batches(self, split: str) -> Iterator[list[str]]:
        for path in self._paths[split]:  # no batch crosses a row group
            with parquet.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    yield from make_batches(file.read_row_group(group, columns=["text"]).column(0).to_pylist())


class Shard(NamedTuple):
    """A file in the cache and the SHA-256 of its content."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Hub:
    """The data set on the Hugging Face hub; its files are checked, and kept in the hub's own cache."""

    cache: Path | None = None
    """Folder of the cache, huggingface_hub's own if None."""
    endpoint: str | None = None
    wait: wait_base = WAIT

    def fetch(self, names: Sequence[str], progress: Progress) -> list[Shard]:
        """Return the files, after fetching those that are missing or damaged. Raises DataError."""
        disable_progress_bars()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        retrying = Retrying(
            stop=stop_after_attempt(ATTEMPTS), wait=self.wait, retry=retry_if_exception(_is_transient), reraise=True
        )
        with self._translate_errors():
            files = track(names, len(names), f"fetching {len(names)} shards", progress)
            return [retrying(self._load_file, name) for name in files]

    def _load_file(self, name: str) -> Shard:
        """Return a file that passes all checks. Removes one that does not, and raises OSError without a number."""
        cached = hub.try_to_load_from_cache(REPO, name, cache_dir=self.cache, repo_type="dataset")
        path = Path(cached if isinstance(cached, str) else self._download(name)).resolve()
        found = Shard(path, compute_sha256(path))
        try:
            _check(found)
        except ValueError as error:
            path.unlink()
            raise OSError(str(error)) from error
        return found

    def _download(self, name: str) -> str:
        url = hub.hf_hub_url(REPO, name, repo_type="dataset", endpoint=self.endpoint)
        # Asked for first, because hf_hub_download hides why it cannot reach the hub.
        hub.get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT, endpoint=self.endpoint)
        return hub.hf_hub_download(REPO, name, repo_type="dataset", cache_dir=self.cache, endpoint=self.endpoint)

    @contextmanager
    def _translate_errors(self) -> Generator[None]:
        """Raise DataError, one line that says what to do, for everything that can go wrong with the hub."""
        host, instead = self.endpoint or constants.ENDPOINT, "`--corpus docstrings` needs no network"
        try:
            yield
        except OfflineModeIsEnabled:
            raise DataError(
                f"not all shards are in {self.cache or constants.HF_HUB_CACHE} and HF_HUB_OFFLINE is set: "
                f"unset it; {instead}"
            ) from None
        except HfHubHTTPError as error:
            said = f"{host} answers {error.response.status_code} for {REPO}"
            what = "set HF_TOKEN" if error.response.status_code in {401, 403} else "try again later"
            raise DataError(f"{said}: {what}, or set HF_ENDPOINT to a mirror; {instead}") from None
        except HTTPError as error:
            said = f"{host} cannot be reached ({type(error).__name__})"
            raise DataError(f"{said}: check the network, or set HF_ENDPOINT to a mirror; {instead}") from None
        except OSError as error:
            if error.errno is not None:  # of this machine
                raise
            first, *_ = str(error).splitlines()
            raise DataError(f"{host} keeps sending a damaged shard ({first}): try again later; {instead}") from None


def _check(found: Shard) -> None:
    """Raise ValueError unless it is Parquet with some text; the cache names large files by their SHA-256."""
    if _SHA256.fullmatch(found.path.name) and found.path.name != found.sha256:
        raise ValueError("its checksum is wrong")
    try:
        metadata = parquet.read_metadata(found.path)
    except ValueError as error:  # as all of pyarrow's errors are
        raise ValueError(f"not Parquet: {error}") from None
    if "text" not in metadata.schema.to_arrow_schema().names or not metadata.num_rows:
        raise ValueError("no text in it")


def _is_transient(error: BaseException) -> bool:
    """Return True if another attempt can help."""
    match error:
        case HfHubHTTPError():
            return error.response.status_code in _BUSY
        case OfflineModeIsEnabled():
            return False
        case OSError():  # without a number: of huggingface_hub, as for a wrong size, or our own
            return error.errno is None
        case _:
            return isinstance(error, HTTPError)
