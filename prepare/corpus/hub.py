"""Files from the Hugging Face hub: each is there whole and checked, or not at all. The one place that knows the hub.

HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE count, as huggingface_hub reads them. A download that was cut off, by the
network or by a kill, goes on where it stopped.
"""

import io
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import HfFileMetadata, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, disable_progress_bars
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential
from tenacity.wait import wait_base

from prepare.atomic import open_replacement
from prepare.manifest import DataError, StoredFile, compute_sha256
from prepare.progress import Progress

PARALLEL = 8
ATTEMPTS = 5
LONGEST_WAIT = 300.0
PATIENCE = wait_exponential(0.5, max=30)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BUSY = {408, 429, 500, 502, 503, 504}


class Damaged(Exception):
    """What has arrived is not the file."""


@dataclass(frozen=True)
class Dataset:
    """A data set on the hub, and the folder here that holds some of its files.

    `check` gets a file that has arrived and raises ValueError where it is of no use.
    """

    repo: str
    folder: Path
    check: Callable[[Path], object]
    endpoint: str | None = None
    patience: wait_base = PATIENCE

    def fetch(self, names: Sequence[str], progress: Progress) -> list[StoredFile]:
        """Brings the files here that are missing or damaged. Raises DataError, one line that says what to do."""
        self.folder.mkdir(parents=True, exist_ok=True)
        disable_progress_bars()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        stage, shares = f"fetching {len(names)} shards", dict.fromkeys(names, 0.0)
        stop = threading.Event()

        def report(name: str, share: float) -> None:
            if stop.is_set():
                raise InterruptedError
            shares[name] = share
            progress(stage, sum(shares.values()) / len(shares))

        with self._plainly(), ThreadPoolExecutor(PARALLEL) as pool:
            try:
                return list(pool.map(lambda name: self._one(name, lambda share: report(name, share)), names))
            finally:
                stop.set()  # the others need not go on when one has failed
                pool.shutdown(wait=False, cancel_futures=True)

    def _one(self, name: str, report: Callable[[float], None]) -> StoredFile:
        """The file as it was checked once, if it still is that; else it is fetched."""
        path, record = self.folder / name, self._record(name)
        if path.exists() and record.exists():
            known = StoredFile(**json.loads(record.read_text()))
            if path.stat().st_size == known.bytes and compute_sha256(path) == known.sha256:
                report(1.0)
                return known
            path.unlink()
        if path.exists():
            path.replace(self._part(name))  # nobody vouches for it: perhaps it is whole, perhaps half of it
        retrying = Retrying(
            stop=stop_after_attempt(ATTEMPTS), wait=self._wait, retry=retry_if_exception(_is_transient), reraise=True
        )
        return retrying(self._attempt, name, report)

    def _wait(self, state: RetryCallState) -> float:
        """Seconds; as long as the hub asks for, if it does."""
        error = state.outcome.exception() if state.outcome else None
        asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
        return min(float(asked), LONGEST_WAIT) if asked.isdigit() else self.patience(state)

    def _attempt(self, name: str, report: Callable[[float], None]) -> StoredFile:
        part = self._part(name)
        described = self._described(name)
        if part.exists() and described.size is not None and part.stat().st_size > described.size:
            part.unlink()
        self._download(part, described, report)
        try:
            found = self._checked(part, described)
        except Damaged:
            part.unlink()
            raise
        part.replace(self.folder / name)
        with open_replacement(self._record(name)) as record:
            record.write_text(json.dumps(asdict(found)))
        report(1.0)
        return found

    def _described(self, name: str) -> HfFileMetadata:
        url = hf_hub_url(self.repo, name, repo_type="dataset", endpoint=self.endpoint)
        return get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT, endpoint=self.endpoint)

    def _download(self, part: Path, described: HfFileMetadata, report: Callable[[float], None]) -> None:
        base = self.endpoint or constants.ENDPOINT
        headers = build_hf_headers(token=None if described.location.startswith(base) else False)
        with _ProgressFile(part, described.size, report) as file:
            try:
                http_get(
                    described.location, file, resume_size=file.tell(), headers=headers, expected_size=described.size
                )
            except OSError as error:
                if error.errno is None and not isinstance(error, HTTPError | InterruptedError):
                    raise Damaged(str(error)) from error  # the library's word for a wrong size
                raise

    def _checked(self, part: Path, described: HfFileMetadata) -> StoredFile:
        """Size, checksum, and what the caller wants to see in it."""
        found = StoredFile(bytes=part.stat().st_size, sha256=compute_sha256(part))
        if described.size not in {None, found.bytes}:
            raise Damaged(f"{found.bytes:,} bytes instead of {described.size:,}")
        if described.etag and _SHA256.fullmatch(described.etag) and described.etag != found.sha256:
            raise Damaged("its checksum is wrong")
        try:
            self.check(part)
        except ValueError as error:
            raise Damaged(str(error)) from error
        return found

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """Whatever goes wrong is said in one line."""
        hub, instead = self.endpoint or constants.ENDPOINT, "`--corpus docstrings` needs no network"
        try:
            yield
        except OfflineModeIsEnabled:
            raise DataError(
                f"not all shards are in {self.folder} and HF_HUB_OFFLINE is set: unset it; {instead}"
            ) from None
        except HfHubHTTPError as error:
            said = f"{hub} answers {error.response.status_code} for {self.repo}"
            what = "set HF_TOKEN" if error.response.status_code in {401, 403} else "try again later"
            raise DataError(f"{said}: {what}, or set HF_ENDPOINT to a mirror; {instead}") from None
        except HTTPError as error:
            said = f"{hub} cannot be reached ({type(error).__name__})"
            raise DataError(f"{said}: check the network, or set HF_ENDPOINT to a mirror; {instead}") from None
        except Damaged as error:
            raise DataError(f"{hub} keeps sending a damaged shard ({error}): try again later; {instead}") from None

    def _part(self, name: str) -> Path:
        return self.folder / f".{name}.part"

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.json"


class _ProgressFile(io.FileIO):
    """A file that grows at its end and says how far it has come."""

    def __init__(self, path: Path, size: int | None, report: Callable[[float], None]) -> None:
        path.touch()
        super().__init__(path, "r+")
        self.seek(0, io.SEEK_END)
        self._size, self._report = size, report

    def write(self, data: bytes) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        written = super().write(data)
        if self._size:
            self._report(min(self.tell() / self._size, 1.0))
        return written


def _is_transient(error: BaseException) -> bool:
    """Whether another attempt can help."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _BUSY
    return isinstance(error, HTTPError | Damaged)
