"""File locks between processes: held while the descriptor is open, here or in a child that inherits it."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


class LockedError(Exception):
    """Another process holds the lock."""


@contextmanager
def hold_lock(path: Path) -> Generator[int]:
    """Hold the lock and yield its descriptor. Raises LockedError at once where it is taken, OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"{path} is locked by another process") from None
        yield descriptor
    finally:
        os.close(descriptor)
