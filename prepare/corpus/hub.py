"""Files from the Hugging Face hub, checked and kept in its own cache. The one place that knows the hub.

HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE count, as huggingface_hub reads them.
"""

import logging
import re
from collections.abc import Callable, Generator, Sequence
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
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential
from tenacity.wait import wait_base

from prepare.manifest import DataError, compute_sha256
from prepare.progress import Progress, track

ATTEMPTS = 5
WAIT = wait_exponential(0.5, max=30)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BUSY = {408, 429, 500, 502, 503, 504}


class DamagedFileError(OSError):
    """The content of a file is not what the hub promised."""


class HubFile(NamedTuple):
    """A file in the cache and the SHA-256 of its content."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class HubDataset:
    """A data set on the hub; `inspect` raises ValueError for a file that is of no use."""

    repo: str
    inspect: Callable[[Path], object]
    cache: Path | None = None
    """Folder of the cache, huggingface_hub's own if None."""
    endpoint: str | None = None
    wait: wait_base = WAIT

    def fetch(self, names: Sequence[str], progress: Progress) -> list[HubFile]:
        """Return the files, after fetching those that are missing or damaged. Raises DataError."""
        disable_progress_bars()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        retrying = Retrying(
            stop=stop_after_attempt(ATTEMPTS), wait=self.wait, retry=retry_if_exception(_is_transient), reraise=True
        )
        with self._translate_errors():
            files = track(names, len(names), f"fetching {len(names)} shards", progress)
            return [retrying(self._load_file, name) for name in files]

    def _load_file(self, name: str) -> HubFile:
        """Return a file that passes all checks. Removes one that does not, and raises DamagedFileError."""
        cached = hub.try_to_load_from_cache(self.repo, name, cache_dir=self.cache, repo_type="dataset")
        path = Path(cached if isinstance(cached, str) else self._download(name)).resolve()
        found = HubFile(path, compute_sha256(path))
        try:
            self._check(found)
        except ValueError as error:
            path.unlink()
            raise DamagedFileError(str(error)) from error
        return found

    def _check(self, found: HubFile) -> None:
        """Raise ValueError if the content is wrong; the cache names large files by their SHA-256."""
        if _SHA256.fullmatch(found.path.name) and found.path.name != found.sha256:
            raise ValueError("its checksum is wrong")
        self.inspect(found.path)

    def _download(self, name: str) -> str:
        url = hub.hf_hub_url(self.repo, name, repo_type="dataset", endpoint=self.endpoint)
        # Asked for first, because hf_hub_download hides why it cannot reach the hub.
        hub.get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT, endpoint=self.endpoint)
        return hub.hf_hub_download(self.repo, name, repo_type="dataset", cache_dir=self.cache, endpoint=self.endpoint)

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
            said = f"{host} answers {error.response.status_code} for {self.repo}"
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
