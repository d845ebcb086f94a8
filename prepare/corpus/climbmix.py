# pyright: basic, reportPrivateImportUsage=false
# (pyarrow has no types; HTTPError is httpx's, in one of its versions)
"""Open the corpus for large GPUs: the shards of climbmix that upstream uses, with its pinned validation shard.

HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE have their usual effect.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import huggingface_hub as hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
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
    """Return upstream's batches, with `shards` to train on, after fetching those not cached. Raises DataError."""
    numbers = [*range(shards), VALIDATION, CONFIRMATION]
    files = fetch([f"shard_{number:05d}.parquet" for number in numbers])
    paths = [path for path, _ in files]
    splits = {"train": paths[:shards], "val": [paths[shards]], "confirm": [paths[shards + 1]]}

    def read_batches(split: str) -> Iterator[list[str]]:
        for path in splits[split]:  # no batch crosses a row group
            with parquet.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    yield from make_batches(file.read_row_group(group, columns=["text"]).column(0).to_pylist())

    fingerprint = hashlib.sha256("".join(sha256 for _, sha256 in files).encode()).hexdigest()
    counts = {split: sum(parquet.read_metadata(path).num_rows for path in paths) for split, paths in splits.items()}
    return Corpus("climbmix", fingerprint, counts, read_batches, shuffled=True, shards=shards)


def fetch(
    names: Sequence[str], cache: Path | None = None, endpoint: str | None = None, wait: wait_base = WAIT
) -> list[tuple[Path, str]]:
    """Return shards and their SHA-256 from the cache; fetch those missing or damaged there. Raises DataError."""
    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    stop, again = stop_after_attempt(ATTEMPTS), retry_if_exception(_is_transient)
    retrying, host = Retrying(stop=stop, wait=wait, retry=again, reraise=True), endpoint or constants.ENDPOINT
    try:
        files = track(names, len(names), f"fetching {len(names)} shards")
        return [retrying(_load_file, name, cache, endpoint) for name in files]
    except OfflineModeIsEnabled:
        problem = f"not all shards are in {cache or constants.HF_HUB_CACHE} and HF_HUB_OFFLINE is set: unset it"
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


def _load_file(name: str, cache: Path | None, endpoint: str | None) -> tuple[Path, str]:
    """Return a file and its SHA-256. Deletes one that fails a check, and raises OSError without an errno."""
    found = hub.try_to_load_from_cache(REPO, name, cache_dir=cache, repo_type="dataset")
    if not isinstance(found, str):
        url = hub.hf_hub_url(REPO, name, repo_type="dataset", endpoint=endpoint)
        # Requested first, because hf_hub_download hides why it cannot reach the hub.
        hub.get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT, endpoint=endpoint)
        found = hub.hf_hub_download(REPO, name, repo_type="dataset", cache_dir=cache, endpoint=endpoint)
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
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _BUSY
    if isinstance(error, OSError):  # without an errno: from huggingface_hub, as for a wrong size, or our own
        return error.errno is None and not isinstance(error, OfflineModeIsEnabled)
    return isinstance(error, HTTPError)
