"""The sandbox port, which turns a command into a confined one; and the paths that a confined program may read."""

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

import prepare
from prepare.corpus.docstrings import HELD_OUT

TRUSTED = Path(prepare.__file__).parent
"""The package `prepare`, which training code imports."""
KERNELS = "KERNELS_CACHE"
"""Environment variable with the folder of the user's downloaded GPU kernels."""


_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store")
_FROM_ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "nsswitch.conf", "passwd")


def list_readable(nodes: Collection[str] = ()) -> Iterator[Path]:
    """Yield the paths that a Python program needs: libraries, the interpreter and `prepare`, but no home and no data.

    With `nodes`, those of a GPU, also the one downloaded kernel that train.py uses; its folder may hold other files.
    """
    yield from (Path(place) for place in _SYSTEM)
    yield from (Path("/etc", name) for name in _FROM_ETC)
    prefixes = (Path(sys.base_prefix), Path(sys.prefix))
    yield from dict.fromkeys((*prefixes, *map(Path.resolve, prefixes), TRUSTED))
    if nodes and (folder := os.environ.get(KERNELS)):
        yield from Path(folder).resolve().glob("*--kernels-community--flash-attn3")


_LIBRARIES = ("lib*/*/*-packages", "*/lib*/*/*-packages", "*/*/lib*/*/*-packages", "*/*/*-packages")
"""Package folders of this interpreter, of others beside it, and of conda's environments and package cache."""


@cache
def list_hidden() -> frozenset[Path]:
    """Return the folders to hide, in or beside the readable ones: packages whose text scores are measured on."""
    libraries = [
        folder for place in {*map(Path.resolve, list_readable())} for at in _LIBRARIES for folder in place.glob(at)
    ]
    found = (Path(folder, name) for folder in (*sys.path, *libraries) for name in HELD_OUT)
    return frozenset(path.resolve() for path in found if path.is_dir())


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run, with its whole environment and all inherited descriptors."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    folder: Path
    """Working folder, the only one that it may write to."""
    fds: tuple[int, ...]
    nodes: tuple[str, ...] = ()
    """Device files that it may use."""
    cpus: tuple[int, ...] = ()
    """Logical CPUs that it may use; empty for all."""
    shown: tuple[Path, ...] = ()
    """Paths that it may read besides those of every Python program."""
    counted: bool = False
    """Whether its CPU time counts, so that no process may discard that of its children."""
    hidden: frozenset[Path] = field(default_factory=list_hidden)
    """Folders within the readable ones that it may not read."""


class Sandbox(Protocol):
    tier: str

    def wrap(self, command: Command) -> Command:
        """Return the command, confined. The caller closes any descriptors added to `fds`."""
        ...


class NoSandbox:
    """No confinement beyond a clean environment and a fresh folder."""

    tier = "none"

    def wrap(self, command: Command) -> Command:
        return command
