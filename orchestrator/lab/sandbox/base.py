"""The sandbox port, which turns a command into a confined one; and the paths that a confined program may read."""

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

import prepare
from orchestrator.lab.sandbox import seccomp
from prepare.corpus.docstrings import HELD_OUT

TRUSTED = Path(prepare.__file__).parent  # the package `prepare`, which training code imports
KERNELS = "KERNELS_CACHE"  # environment variable with the folder of the user's downloaded GPU kernels
_PREFIXES = tuple(
    dict.fromkeys(path for name in (sys.base_prefix, sys.prefix) for path in (Path(name), Path(name).resolve()))
)
_PARTS = (
    *("bin", "sbin", "lib", "lib32", "lib64", "libexec", "include", "pyvenv.cfg"),
    *("compiler_compat", "*-linux-gnu"),  # conda's compilers
)
"""What is shown of the interpreter's prefixes and of /usr: not projects or archives that may lie there, too."""
_DRIVERS = ("cuda*", "nvidia*", "share/nvidia*")  # the same for a GPU
_BESIDE = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store")
_FROM_ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "nsswitch.conf", "passwd")
_FACTS = (
    *("proc/cpuinfo", "proc/filesystems", "proc/version", "proc/sys/kernel/osrelease", "proc/sys/vm/overcommit_memory"),
    *("sys/devices/system/cpu", "sys/kernel/mm/transparent_hugepage"),
)
"""What is shown of /proc and /sys: no counters, by which a process could tell a later one something."""
_MORE_FACTS = ("proc/devices", "proc/driver", "proc/modules", "proc/stat", "proc/sys", "sys")
"""The same for the user's own program, and for a GPU's driver."""
_LIBRARIES = ("lib*/*/*-packages", "*/lib*/*/*-packages", "*/*/lib*/*/*-packages", "*/*/*-packages")
"""Package folders of this interpreter, of others beside it, and of conda's environments and package cache."""


@cache
def list_hidden() -> frozenset[Path]:
    """Return the folders to hide, in or beside the readable ones: packages whose text scores are measured on."""
    places = {*map(Path.resolve, (*_PREFIXES, Path("/usr"), *map(Path, _BESIDE)))}
    libraries = [folder for place in places for at in _LIBRARIES for folder in place.glob(at)]
    found = (Path(folder, name) for folder in (*sys.path, *libraries) for name in HELD_OUT)
    return frozenset(path.resolve() for path in found if path.is_dir())


def list_parts(prefix: Path) -> list[Path]:
    """Return what a task may read of an interpreter's prefix, perhaps a home: all of it in /usr and of conda's only."""
    if prefix.is_relative_to("/usr") or (prefix / "conda-meta").is_dir():
        return [prefix]
    parts = (*_PARTS, "openssl", *["share"] * (prefix / "pyvenv.cfg").is_file())  # that of ~/.local holds keys
    return [path for part in parts for path in prefix.glob(part)]


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run, with its whole environment and all inherited descriptors."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    folder: Path  # working folder, the only one that it may write to
    fds: tuple[int, ...]
    nodes: tuple[str, ...] = ()
    cpus: tuple[int, ...] = ()  # logical CPUs that it may use; empty for all
    shown: tuple[Path, ...] = ()  # paths that it may read besides those of every Python program
    grants: seccomp.Grants = "task"  # what it is for, and so what it may see and do
    hidden: frozenset[Path] = field(default_factory=list_hidden)
    """Folders within the readable ones that it may not read."""
    protected: Collection[Path] | None = None
    """Files in its folder that it may not change; None for all that are there before it starts."""
    reports: tuple[int, ...] = ()
    """Where a launcher says confine.BEGUN once it has become this program, which does not inherit it."""

    @property
    def calls(self) -> seccomp.Grants:
        """The system calls and facts of the kernel that it may use: a GPU's driver needs more than is known of it."""
        return "task" if self.nodes else self.grants

    def list_readable(self) -> Iterator[Path]:
        """Yield what it may read: libraries, the interpreter, `prepare` and `shown`, but no home and no data.

        The user's own task may need anything in /usr. On a GPU the downloaded kernels for attention are
        needed; its folder may hold other files.
        """
        if self.grants == "task":
            yield from (Path("/usr"), *(path for prefix in _PREFIXES for path in list_parts(prefix)))
        else:
            parts = _PARTS + _DRIVERS * bool(self.nodes)
            prefixes = (*_PREFIXES, Path("/usr"), Path("/usr/local"))
            yield from dict.fromkeys(path for prefix in prefixes for part in parts for path in prefix.glob(part))
        yield from (Path(place) for place in (*_BESIDE, *(f"/etc/{name}" for name in _FROM_ETC), TRUSTED, *self.shown))
        driver = self.env.get("LD_LIBRARY_PATH", "") if self.nodes else ""
        yield from (Path(place) for place in driver.split(os.pathsep) if place.startswith("/usr/"))
        if self.nodes and (folder := os.environ.get(KERNELS)):
            yield from Path(folder).resolve().glob("*--*--flash-att*3")

    def list_facts(self) -> Iterator[Path]:
        """Yield what it may read of /proc and /sys, besides its own processes."""
        more = _MORE_FACTS if self.calls == "task" else ()
        memory = () if self.calls == "model" else ("proc/meminfo",)
        yield from (path for pattern in (*_FACTS, *memory, *more) for path in Path("/").glob(pattern))


class Sandbox(Protocol):
    tier: str

    def wrap(self, command: Command) -> Command:
        """Return the command, confined. The caller closes `reports`, and what is added to `fds`."""
        ...


class NoSandbox:
    """No confinement beyond a clean environment and a fresh folder."""

    tier = "none"

    def wrap(self, command: Command) -> Command:
        return command
