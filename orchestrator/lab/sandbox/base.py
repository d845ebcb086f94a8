"""What the training code may see: a sandbox turns the command of a run into one that shuts it in."""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import prepare
from prepare.corpus.docstrings import HELD_OUT

TRUSTED = Path(prepare.__file__).parent
"""The `prepare` that training code imports."""
KERNELS = "KERNELS_CACHE"
"""Names the folder with kernels for GPUs that the user has fetched."""


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run: nothing of our environment, no descriptors but these."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    folder: Path
    """Its working folder: the only place where it may write."""
    fds: tuple[int, ...]
    nodes: tuple[str, ...] = ()
    """The devices that it may use."""


class Sandbox(Protocol):
    @property
    def tier(self) -> str: ...
    def wrap(self, command: Command) -> Command:
        """The command, shut in. Descriptors that are added are the caller's to close."""
        ...


class NoSandbox:
    """Nothing but a clean environment and a fresh folder."""

    tier = "none"

    def wrap(self, command: Command) -> Command:
        return command


_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store")
_FROM_ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "nsswitch.conf", "passwd")


def list_readable() -> Iterator[Path]:
    """What a Python program needs to see of this machine: libraries, the interpreter, `prepare`. No home, no data."""
    yield from (Path(place) for place in _SYSTEM)
    yield from (Path("/etc", name) for name in _FROM_ETC)
    yield from dict.fromkeys((Path(sys.base_prefix), Path(sys.base_prefix).resolve(), Path(sys.prefix), TRUSTED))


def list_kernels(command: Command) -> Iterator[Path]:
    """The one kernel that train.py knows, for a run on a GPU; beside it may lie tokens and data."""
    if command.nodes and (folder := os.environ.get(KERNELS)):
        yield from Path(folder).resolve().glob("*--kernels-community--flash-attn3")


_LIBRARIES = ("lib*/*/*-packages", "*/lib*/*/*-packages", "*/*/lib*/*/*-packages", "*/*/*-packages")
"""Of an interpreter, of those beside it, and of a conda's environments and stored packages."""


@cache
def list_hidden() -> frozenset[Path]:
    """Folders, in or beside what is readable, that must not be: the packages whose text a score is measured on."""
    libraries = [
        folder for place in {*map(Path.resolve, list_readable())} for at in _LIBRARIES for folder in place.glob(at)
    ]
    found = (Path(folder, name) for folder in (*sys.path, *libraries) for name in HELD_OUT)
    return frozenset(path.resolve() for path in found if path.is_dir())
