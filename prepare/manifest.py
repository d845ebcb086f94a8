"""manifest.json says what a data folder holds. It is written last, so a folder with a manifest is whole.

Reading it checks sizes, which is cheap; `verify=True` checks every hash. Never imports torch.
"""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

FORMAT = 2
"""1 was of before the embedded corpus validated on text that a sandbox can hide, and work was FLOPs alone."""
MANIFEST_FILE = "manifest.json"
COMMAND = "python -m prepare"


Constant = int | float | str


class DataError(Exception):
    """The data folder cannot be used; the message is one line that says what to do."""


@dataclass(frozen=True)
class BudgetAmount:
    """What one run may spend: FLOPs' worth where `kind` is "work", else seconds of wall time.

    `seconds` is the time that the amount takes the baseline on the machine that prepared the data.
    """

    kind: Literal["work", "time"]
    amount: float
    seconds: float


@dataclass(frozen=True)
class StoredFile:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    profile: str
    corpus: str
    corpus_sha256: str
    seq_len: int
    vocab_size: int
    eval_tokens: int
    budget: BudgetAmount
    rows: dict[str, int]
    files: dict[str, StoredFile]
    versions: dict[str, str]
    constants: dict[str, Constant] = field(default_factory=dict)
    """Of the training script, where this machine wants others than its profile."""
    format: int = field(default=FORMAT)

    @property
    def digest(self) -> str:
        """Hex sha256 of all of it: two runs may be compared only where this is the same."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        raw = dataclasses.asdict(self)
        if not self.constants:
            del raw["constants"]
        return json.dumps(raw, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Raises ValueError (KeyError, TypeError) where the text is not a manifest of this format."""
        raw = json.loads(text)
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']}, not {FORMAT}")
        files = {name: StoredFile(**entry) for name, entry in raw.pop("files").items()}
        return cls(budget=BudgetAmount(**raw.pop("budget")), files=files, **raw)


def get_data_dir() -> Path:
    return Path(os.environ.get("NIGHTSHIFT_DATA") or "data")


def load(folder: Path | None = None, *, verify: bool = False) -> Manifest:
    """The manifest of `folder` (default: $NIGHTSHIFT_DATA, else ./data). Raises DataError."""
    folder = get_data_dir() if folder is None else Path(folder)
    try:
        manifest = Manifest.from_json((folder / MANIFEST_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"no data in {folder}: run `{COMMAND}` first") from None
    except OSError as error:
        raise DataError(f"{folder / MANIFEST_FILE} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise find_damage(folder, MANIFEST_FILE, "is not a manifest of this version") from None
    for name, stored in manifest.files.items():
        check_manifest(folder, name, stored, verify=verify)
    return manifest


def check_manifest(folder: Path, name: str, stored: StoredFile, *, verify: bool) -> None:
    """Raises DataError unless the file is there in its size, and with `verify` in its very bytes."""
    path = folder / name
    if not path.is_file():
        raise find_damage(folder, name, "is missing")
    if path.stat().st_size != stored.bytes:
        raise find_damage(folder, name, f"has {path.stat().st_size:,} bytes instead of {stored.bytes:,}")
    if verify and compute_sha256(path) != stored.sha256:
        raise find_damage(folder, name, "has changed since it was prepared")


def find_damage(folder: Path, name: str, how: str) -> DataError:
    return DataError(f"{folder} is damaged ({name} {how}): delete the folder and run `{COMMAND}` again")


def compute_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
