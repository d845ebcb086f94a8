"""The first choice, bubblewrap: an almost empty file system, a process namespace of its own, and no network."""

import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from orchestrator.lab.sandbox import seccomp
from orchestrator.lab.sandbox.base import Command

NOBODY = "65534"  # user and group inside, where root has started it
MANY, MOST_WORDS = 300, 8_980
"""Entries from which on a folder is bound as a whole, since each takes a mount of its own; fewer where all of them
would take more words than these: bwrap takes 9,000."""


class Bubblewrap:
    """Runs a command in a working folder in memory, which is limited in size and vanishes with the run."""

    tier = "bubblewrap"

    def __init__(self, size: int = 2 << 30) -> None:
        """Limit each writable place to `size` bytes."""
        self.tmpfs = ("--size", str(size), "--tmpfs")

    def wrap(self, command: Command) -> Command:
        """Return the command, confined, with the seccomp filter as one more descriptor."""
        is_own = command.grants == "task" and os.getuid() > 0  # root owns the devices that are shown, and their modes
        instructions = seccomp.build_filter(sockets=True, grants="own" if is_own else command.calls)
        argv = ["bwrap", "--unshare-all", "--die-with-parent", "--cap-drop", "ALL"]
        argv += [] if os.getuid() else ["--unshare-user", "--uid", NOBODY, "--gid", NOBODY]
        argv += [*self.tmpfs, "/tmp"]  # noqa: S108 - before any mounts below it
        argv += ["--proc", "/proc", *_mount_facts([*command.list_facts()])]
        argv += ["--dev", "/dev", *self.tmpfs, "/dev/shm"]  # noqa: S108 - its own
        shown = [*dict.fromkeys(command.list_readable())]
        whole = {path for path in shown if not path.is_symlink()}
        for path in shown:
            if path in whole or whole.isdisjoint(path.parents):  # a link in such a folder is there, and cannot be made
                argv += _bind(path, command.hidden)
        for node in command.nodes:
            argv += ["--dev-bind-try", node, node]
        argv += ["--remount-ro", "/dev"]
        place, tmp = str(command.folder), command.folder / "tmp"
        kept = command.protected and {at for path in command.protected for at in (path, *path.parents)}
        many, room = MANY, MOST_WORDS - len(argv) - len(command.argv)
        while len(laid := [*self._lay(command.folder, kept, many)]) > room and many > 1:
            many //= 2
        if len(laid) > room:  # too much lies side by side: it is bound as a whole, except its `tmp`
            argv += ["--ro-bind", place, place, *self.tmpfs, str(tmp), *self._lay(tmp, kept, many)]
        else:
            argv += [*self.tmpfs, place, *laid]
        (code, writable), (report, told) = os.pipe(), os.pipe()  # after all that may fail
        os.write(writable, instructions)
        os.close(writable)
        argv += ["--seccomp", str(code), "--json-status-fd", str(told)]
        argv += ["--remount-ro", "/", "--chdir", place, "--", *command.argv]
        return replace(command, argv=tuple(argv), fds=(*command.fds, code, told), reports=(report,))

    def _lay(self, folder: Path, kept: Collection[Path] | None, many: int) -> Iterator[str]:
        """Yield what binds the files that were laid out, read-only if `kept`, in folders that can be written to.

        A folder of `many` entries is bound read-only as a whole. One that is `kept`, since protected files lie in it,
        is a mount of its own: any other could be renamed, with all mounts in it, and made anew.
        """
        for entry in sorted(folder.iterdir()):
            if entry.is_symlink():
                yield from ("--symlink", str(entry.readlink()), str(entry))
            elif entry.is_dir() and len(list(islice(entry.rglob("*"), many))) < many:
                yield from self.tmpfs if kept and entry in kept else ("--dir",)
                yield from (str(entry), *self._lay(entry, kept, many))
            else:
                is_free = kept is not None and entry.is_file() and entry not in kept
                yield from ("--bind" if is_free else "--ro-bind", str(entry), str(entry))


def _mount_facts(facts: Collection[Path]) -> Iterator[str]:
    """Yield what shows these files of /proc and /sys read-only and no others; root may write without any capability."""
    for path in Path("/proc").iterdir():
        if path.is_symlink() or path.name.isdecimal() or path in facts or not os.access(path, os.R_OK):
            continue
        yield from ("--tmpfs", str(path)) if path.is_dir() else ("--ro-bind", os.devnull, str(path))
    for path in facts:
        yield from ("--ro-bind-try", str(path), str(path))
    yield from ("--remount-ro", "/proc/sys")


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
