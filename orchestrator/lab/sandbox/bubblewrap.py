"""The first choice, bubblewrap: an almost empty file system, a process namespace of its own, and no network."""

import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from orchestrator.lab.sandbox import seccomp
from orchestrator.lab.sandbox.base import Command, list_readable

MANY = 300
"""Entries from which on a folder is bound as a whole: each takes a mount of its own."""


class Bubblewrap:
    """Runs a command in a working folder in memory, which is limited in size and vanishes with the run."""

    tier = "bubblewrap"

    def __init__(self, size: int = 2 << 30) -> None:
        """Limit each writable place to `size` bytes."""
        self.tmpfs = ("--size", str(size), "--tmpfs")

    def wrap(self, command: Command) -> Command:
        """Return the command, confined, with the seccomp filter as one more descriptor."""
        instructions = seccomp.build_filter(sockets=True, counted=command.counted)
        code, writable = os.pipe()
        os.write(writable, instructions)
        os.close(writable)
        argv = ["bwrap", "--unshare-all", "--die-with-parent", "--cap-drop", "ALL", "--seccomp", str(code)]
        argv += [*self.tmpfs, "/tmp"]  # noqa: S108 - before any mounts below it
        argv += ["--proc", "/proc"]
        for setting in ("/proc/sys", "/proc/sysrq-trigger"):  # root may write to them without any capability
            argv += ["--ro-bind-try", setting, setting]
        argv += ["--dev", "/dev", *self.tmpfs, "/dev/shm", "--ro-bind-try", "/sys", "/sys"]  # noqa: S108 - its own
        for place in (*list_readable(command.nodes), *command.shown):
            argv += _bind(place, command.hidden)
        for node in command.nodes:
            argv += ["--dev-bind-try", node, node]
        argv += [*self.tmpfs, str(command.folder)]
        argv += _lay(command.folder)
        argv += ["--remount-ro", "/", "--chdir", str(command.folder), "--", *command.argv]
        return replace(command, argv=tuple(argv), fds=(*command.fds, code))


def _lay(folder: Path) -> Iterator[str]:
    """Yield what binds the files that were laid out read-only, in folders that can be written unless they hold many."""
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink():
            yield from ("--symlink", str(entry.readlink()), str(entry))
        elif entry.is_dir() and len(list(islice(entry.rglob("*"), MANY))) < MANY:
            yield from ("--dir", str(entry), *_lay(entry))
        else:
            yield from ("--ro-bind", str(entry), str(entry))


def _bind(place: Path, hidden: Collection[Path]) -> list[str]:
    if place.is_symlink():
        return ["--symlink", str(place.readlink()), str(place)]
    if not place.exists():
        return []
    options, target = ["--ro-bind", str(place), str(place)], place.resolve()
    for path in hidden:
        if path.is_relative_to(target):
            empty = str(place / path.relative_to(target))
            options += ["--tmpfs", empty, "--remount-ro", empty]
    return options
