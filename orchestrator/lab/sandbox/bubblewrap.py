"""The first choice, bubblewrap: an almost empty file system, a process namespace of its own, and no network."""

import os
from dataclasses import replace
from pathlib import Path

from orchestrator.lab.sandbox import seccomp
from orchestrator.lab.sandbox.base import Command, list_hidden, list_readable


class Bubblewrap:
    """Runs a command in a working folder in memory, which is limited in size and vanishes with the run."""

    tier = "bubblewrap"

    def __init__(self, size: int = 2 << 30) -> None:
        """Limit each writable place to `size` bytes."""
        self.tmpfs = ("--size", str(size), "--tmpfs")

    def wrap(self, command: Command) -> Command:
        """Return the command, confined, with the seccomp filter as one more descriptor."""
        instructions = seccomp.build_filter(sockets=True)
        code, writable = os.pipe()
        os.write(writable, instructions)
        os.close(writable)
        argv = ["bwrap", "--unshare-all", "--die-with-parent", "--cap-drop", "ALL", "--seccomp", str(code)]
        argv += [*self.tmpfs, "/tmp"]  # noqa: S108 - before any mounts below it
        for place in list_readable(command.nodes):
            argv += _bind(place)
        argv += ["--proc", "/proc", "--dev", "/dev", *self.tmpfs, "/dev/shm", "--ro-bind-try", "/sys", "/sys"]  # noqa: S108 - its own
        for node in command.nodes:
            argv += ["--dev-bind-try", node, node]
        argv += [*self.tmpfs, str(command.folder)]
        for entry in sorted(command.folder.rglob("*")):
            # Files that were put here before are read-only; their folders are writable.
            argv += ["--dir", str(entry)] if entry.is_dir() else ["--ro-bind", str(entry), str(entry)]
        argv += ["--remount-ro", "/", "--chdir", str(command.folder), "--", *command.argv]
        return replace(command, argv=tuple(argv), fds=(*command.fds, code))


def _bind(place: Path) -> list[str]:
    if place.is_symlink():
        return ["--symlink", str(place.readlink()), str(place)]
    if not place.exists():
        return []
    options, target = ["--ro-bind", str(place), str(place)], place.resolve()
    for path in list_hidden():
        if path.is_relative_to(target):
            empty = str(place / path.relative_to(target))
            options += ["--tmpfs", empty, "--remount-ro", empty]
    return options
