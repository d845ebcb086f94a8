"""The sandbox port: a sandbox turns a command into one that runs confined. Also what a confined program may see."""

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import prepare
from prepare.corpus.docstrings import HELD_OUT

TRUSTED = Path(prepare.__file__).parent
"""The package `prepare`, which training code imports."""
KERNELS = "KERNELS_CACHE"
"""Environment variable that names the folder of GPU kernels that the user has downloaded."""


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run, with all of its environment and descriptors."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    folder: Path
    """Working folder, the only place where it may write."""
    fds: tuple[int, ...]
    nodes: tuple[str, ...] = ()
    """Device files that it may use."""
    shown: tuple[Path, ...] = ()
    """Places that it may read beside those of every Python program."""
    hides: bool = True
    """Whether packages are hidden whose text a score is measured on."""

    @property
    def hidden(self) -> frozenset[Path]:
        return list_hidden() if self.hides else frozenset()


class Sandbox(Protocol):
    @property
    def tier(self) -> str: ...
    def wrap(self, command: Command) -> Command:
        """Return the command, confined. The caller closes descriptors that are added."""
        ...


class NoSandbox:
    """No confinement beyond a clean environment and a fresh folder."""

    tier = "none"

    def wrap(self, command: Command) -> Command:
        return command


_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store")
_FROM_ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "nsswitch.conf", "passwd")


def list_readable(nodes: Collection[str] = ()) -> Iterator[Path]:
    """Yield what a Python program needs of this machine: libraries, the interpreter, `prepare`. No home, no data.

    On a GPU, which has `nodes`, also the one kernel that train.py knows; tokens and data may lie beside it.
    """
    yield from (Path(place) for place in _SYSTEM)
    yield from (Path("/etc", name) for name in _FROM_ETC)
    yield from dict.fromkeys((Path(sys.base_prefix), Path(sys.base_prefix).resolve(), Path(sys.prefix), TRUSTED))
    if nodes and (folder := os.environ.get(KERNELS)):
        yield from Path(folder).resolve().glob("*--kernels-community--flash-attn3")


_LIBRARIES = ("lib*/*/*-packages", "*/lib*/*/*-packages", "*/*/lib*/*/*-packages", "*/*/*-packages")
"""Package folders of an interpreter, of those beside it, and of conda's environments and package cache."""


@cache
def list_hidden() -> frozenset[Path]:
    """Return the folders in or beside the readable ones to hide: packages whose text a score is measured on."""
    libraries = [
        folder for place in {*map(Path.resolve, list_readable())} for at in _LIBRARIES for folder in place.glob(at)
    ]
    found = (Path(folder, name) for folder in (*sys.path, *libraries) for name in HELD_OUT)
    return frozenset(path.resolve() for path in found if path.is_dir())
