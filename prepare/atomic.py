"""Files for people: there is always a whole one, the old or the new."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, text: str | bytes) -> bool:
    """Replace the file's content at once, unless it is the same already; says whether it changed. Raises OSError."""
    data = text.encode() if isinstance(text, str) else text
    if path.is_file() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_bytes(data)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return True


@contextmanager
def open_replacement(path: Path) -> Iterator[Path]:
    """Gives a name beside `path` to write to; when the body ends well, that file is on disk under `path`."""
    part = path.with_name(f".{path.name}.part")
    yield part
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
