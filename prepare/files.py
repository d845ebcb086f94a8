"""Replace files atomically, so that a reader finds either the old content or the new, and lock them."""

import fcntl
import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Generator, Iterable
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path


class LockedError(Exception):
    """Another process holds the lock."""


def read_written(path: Path, errors: str = "strict", most: int = -1) -> str:
    r"""Return a person's text, UTF-8 or marked UTF-16, its lines ended by \n. Raises OSError, UnicodeDecodeError.

    Of more than `most` bytes it is the beginning.
    """
    with path.open("rb") as file:
        data = file.read(most)
    text = data.decode("utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig", errors)
    return text.replace("\r\n", "\n")


def resolve_home(name: str) -> Path:
    """Return a path with the home of ~ or ~user in it; as it is, where Path would raise RuntimeError: there is none."""
    return Path(os.path.expanduser(name))  # noqa: PTH111


def list_by_age(paths: Iterable[Path]) -> list[Path]:
    """Return the files, oldest first, without those that were deleted since they were listed."""
    found = list[tuple[float, Path]]()
    for path in paths:
        with suppress(OSError):
            found.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(found)]


@contextmanager
def open_replacement(path: Path) -> Generator[Path]:
    """Yield a path to write to, and replace `path` by that file if the body succeeds. Raises OSError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        with suppress(OSError):  # there may be none; who may read what is replaced may read this, and no other
            part.chmod(path.stat().st_mode & 0o777 | 0o600)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: Path, text: str | bytes | Iterable[str]) -> None:
    """Replace a file's content; do nothing if it is the same already, and given as a whole. Raises OSError."""
    parts = [text] if isinstance(text, str | bytes) else text
    data = (part.encode() if isinstance(part, str) else part for part in parts)
    if isinstance(text, str | bytes):
        data = [*data]
        if path.is_file() and path.read_bytes() == data[0]:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    keeps = path.is_char_device() or path.is_fifo()  # root could replace it
    with nullcontext(path) if keeps else open_replacement(path) as target, target.open("wb") as file:
        file.writelines(data)


@contextmanager
def hold_lock(path: Path) -> Generator[int]:
    """Hold the lock while the descriptor is open, here or in a child. Raises LockedError if it is taken, OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"{path} is locked by another process") from None
        yield file.fileno()
