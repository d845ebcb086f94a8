# pyright: basic
# (pyarrow has no types)
"""Read the user's own text: files, folders and glob patterns of any size, in a stream."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from pyarrow import ArrowException, parquet

from prepare.corpus import track
from prepare.manifest import DataError

SUFFIXES = {".txt", ".md", ".rst", ".py", ".jsonl", ".parquet"}
SPLIT_AFTER = 1 << 15  # characters after which an empty line ends a document, so that a book becomes many
MAX_LENGTH = 1 << 20  # characters of a document, except for the rest of its last line
SEPARATOR = "<|endoftext|>"
NOT_TEXT = "it is not text in UTF-8: unpack it, convert it (as with iconv -t UTF-8), or leave it out"


def read_texts(source: str) -> Iterator[str]:
    """Yield the documents of all files below `source`, sorted by name. Raises DataError."""
    found = list_files(source)
    for file in track(found, len(found), f"reading {source}"):
        try:
            if file.suffix == ".parquet":
                yield from _read_parquet(file)
                continue
            with file.open(encoding="utf-8-sig") as opened:
                yield from _read_jsonl(opened) if file.suffix == ".jsonl" else _read_text(opened)
        except (OSError, ValueError, IndexError, ArrowException) as error:  # of Parquet that is damaged, any of these
            fault = (error.strerror if isinstance(error, OSError) else "") or " ".join(str(error).split())
            fault = NOT_TEXT if isinstance(error, UnicodeDecodeError) else fault
            raise DataError(f"cannot read {file}: {fault}") from None


def list_files(source: str) -> list[Path]:
    """Return a file, every text file below a folder, or the matches of a pattern. Raises DataError if none."""
    path = Path(source)
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file()]
    elif path.is_file():
        found = [path] if path.suffix in SUFFIXES else []
    elif set(source) & set("*?["):
        try:
            found = [file for file in Path(path.anchor).glob(source.removeprefix(path.anchor)) if file.is_file()]
        except (ValueError, NotImplementedError) as error:
            raise DataError(f"no corpus {source}: {error}") from None
    else:
        raise DataError(f"no corpus {source}: give docstrings, climbmix, or a file or folder that exists")
    if not found:
        raise DataError(f"no text in {source}: give .txt, .md, .py, .jsonl or .parquet")
    return sorted(found)


def _read_parquet(path: Path) -> Iterator[str]:
    with parquet.ParquetFile(path) as file:
        if "text" not in file.schema_arrow.names:
            raise ValueError("it has no column text")
        for batch in file.iter_batches(batch_size=1024, columns=["text"]):
            texts = batch.column(0).to_pylist()
            if not all(isinstance(text, str | None) for text in texts):
                raise ValueError(f"its column text holds {batch.column(0).type}")
            yield from filter(None, texts)


def _read_jsonl(lines: TextIO) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError, RecursionError):
                text = None
            if not isinstance(text, str):
                raise ValueError(f"line {number} is not an object with a text")
            yield text.encode("utf-8", "replace").decode()  # a lone surrogate is not a character


def _read_text(file: TextIO, split_after: int = SPLIT_AFTER, max_length: int = MAX_LENGTH) -> Iterator[str]:
    """Yield a short file whole, a long one in documents that end at empty lines; SEPARATOR always ends one."""
    parts: list[str] = []
    length = 0
    while line := file.readline(max_length):
        if "\0" in line:
            raise ValueError(NOT_TEXT)
        ends = line.strip() == SEPARATOR
        if not ends:
            parts.append(line)
            length += len(line)
        if ends or length >= max_length or (length >= split_after and not line.strip()):
            yield "".join(parts)
            parts, length = [], 0
    yield "".join(parts)
