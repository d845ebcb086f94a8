"""Describe a data folder in manifest.json, which is written last: a folder that has it is complete. No torch."""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Literal

from prepare.command import UserError, write_command
from prepare.constants import Value

FORMAT = 2  # in format 1, work was FLOPs alone, and the built-in corpus validated on text that no sandbox could hide
MANIFEST_FILE = "manifest.json"


class DataError(UserError):
    """The data folder cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class BudgetAmount:
    """What one run may spend: FLOP equivalents if `kind` is "work", else seconds of wall time."""

    kind: Literal["work", "time"]
    amount: float
    seconds: float  # that the baseline takes for it on the machine that prepared the data


@dataclass(frozen=True)
class StoredFile:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The description of a data folder."""

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
    constants: dict[str, Value] = field(default_factory=dict[str, Value])  # those that differ from the profile's
    format: int = field(default=FORMAT)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the whole manifest; only runs with the same digest are comparable."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the content of manifest.json."""
        raw = dataclasses.asdict(self)
        if not self.constants:
            del raw["constants"]
        return json.dumps(raw, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Parse manifest.json. Raises ValueError, KeyError or TypeError if it is not of this format."""
        raw = json.loads(text)
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']}, not {FORMAT}")
        files = {name: StoredFile(**entry) for name, entry in raw.pop("files").items()}
        made = cls(budget=BudgetAmount(**raw.pop("budget")), files=files, **raw)
        hashes, sizes = [stored.sha256 for stored in files.values()], [stored.bytes for stored in files.values()]
        names = *made.versions.values(), *made.constants.keys()
        texts: list[object] = [made.profile, made.corpus, made.corpus_sha256, *hashes, *names]
        counts = made.seq_len, made.vocab_size, made.eval_tokens, *sizes, *made.rows.values()
        amounts, kinds = (made.budget.amount, made.budget.seconds), {"work", "time"}
        is_sound = all(isinstance(text, str) for text in texts) and all(type(n) is int and n > 0 for n in counts)
        if not (is_sound and all(0 < amount < inf for amount in amounts) and made.budget.kind in kinds):
            raise ValueError("a field does not hold what it should")
        return made


def get_data_dir() -> Path:
    """Return the data folder: $NIGHTSHIFT_DATA, else ./data."""
    return Path(os.environ.get("NIGHTSHIFT_DATA") or "data")


def load(folder: Path | None = None, *, verify: bool = False) -> Manifest:
    """Return a folder's manifest; check its files' sizes, and the hash of the tokenizer, with `verify` of all.

    Raises DataError.
    """
    folder = get_data_dir() if folder is None else Path(folder)
    try:
        manifest = Manifest.from_json((folder / MANIFEST_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"no data in {folder}: run `{suggest_command(folder)}` first") from None
    except OSError as error:
        raise DataError(f"{folder / MANIFEST_FILE} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _make_damage_error(folder, MANIFEST_FILE, "is not a manifest of this version") from None
    for name, stored in manifest.files.items():
        if not (path := folder / name).is_file():
            raise _make_damage_error(folder, name, "is missing")
        if path.stat().st_size != stored.bytes:
            raise _make_damage_error(folder, name, f"has {path.stat().st_size:,} bytes instead of {stored.bytes:,}")
        if (verify or path.suffix == ".json") and compute_sha256(path) != stored.sha256:
            raise _make_damage_error(folder, name, "has changed since it was prepared")
    return manifest


def _make_damage_error(folder: Path, name: str, how: str) -> DataError:
    return DataError(f"{folder} is damaged ({name} {how}): delete the folder and run `{suggest_command(folder)}` again")


def compute_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def suggest_command(folder: Path) -> str:
    """Return the command that fills the folder, to be pasted into a shell."""
    return write_command("prepare", *([] if folder == Path("data") else ["--data", str(folder)]))
