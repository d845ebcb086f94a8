"""The second choice, where namespaces are unavailable (containers, hardened desktops): Landlock with seccomp.

A program sees the names in the machine's file tree, but may open only a few paths, no sockets and no other processes.
"""

import base64
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from orchestrator.lab.sandbox import confine, seccomp
from orchestrator.lab.sandbox.base import TRUSTED, Command

DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom"))
_OWN = ("cgroup", "cmdline", "comm", "exe", "fd", "fdinfo", "limits", "maps", "mountinfo", "mounts", "smaps", "stat")
OWN_FILES = tuple(f"/proc/self/{name}" for name in (*_OWN, "statm", "status"))
"""What a command may read of itself: its /proc/self is the launcher's, and also shows the machine's network."""


class Landlock:
    """Runs a command without shared memory (/dev/shm), in which one run could leave data for the next."""

    tier = "landlock"

    def wrap(self, command: Command) -> Command:
        shown = {*map(str, command.list_facts()), *(str(place.resolve()) for place in command.list_readable())}
        trusted = Path(tempfile.mkdtemp(dir=command.folder / "tmp"))
        # A folder on the import path must be readable, and that of `prepare` holds more than it.
        (trusted / TRUSTED.name).symlink_to(TRUSTED)
        report, told = os.pipe()  # after all that may fail
        # CUDA names its threads in /proc/self.
        write = {"task": [str(command.folder), "/proc/self"], "run": [str(command.folder)], "model": []}
        options = {
            "read": sorted({*shown, *OWN_FILES, str(command.folder)}),
            "hide": sorted(map(str, command.hidden)),
            "write": write[command.calls],
            "use": [*DEVICES, *command.nodes],
            "tell": told,
            "filter": base64.b64encode(seccomp.build_filter(sockets=False, grants=command.calls)).decode(),
        }
        launcher = (sys.executable, "-I", "-S", str(Path(confine.__file__)), json.dumps(options))
        # Otherwise torch compiles in a pool of processes, whose locks need shared memory.
        path = {"PYTHONPATH": str(trusted)} if "PYTHONPATH" in command.env else {}
        env = {**command.env, **path, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        words, fds = (*launcher, *command.argv), (*command.fds, told)
        return replace(command, argv=words, env=env, fds=fds, reports=(report,))
