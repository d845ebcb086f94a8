"""The second choice, where namespaces are unavailable (containers, hardened desktops): Landlock with seccomp.

A program sees the names in the machine's file tree, but may open only a few paths, no sockets and no other processes.
"""

import base64
import json
import sys
from dataclasses import replace
from pathlib import Path

from orchestrator.lab.sandbox import confine, seccomp
from orchestrator.lab.sandbox.base import TRUSTED, Command, list_readable

DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom"))
_NAMES = ("cpuinfo", "devices", "driver", "meminfo", "modules", "mounts", "stat", "sys", "version")
SYSTEM_FILES = tuple(f"/proc/{name}" for name in _NAMES)
"""Nothing of other processes; the command's own /proc/self is that of the launcher."""


class Landlock:
    """Runs a command without shared memory (/dev/shm), in which one run could leave data for the next."""

    tier = "landlock"

    def wrap(self, command: Command) -> Command:
        shown = sorted({str(place.resolve()) for place in (*list_readable(command.nodes), *command.shown)})
        options = {
            "read": [*shown, *SYSTEM_FILES, "/sys"],
            "hide": sorted(map(str, command.hidden)),
            "write": [str(command.folder), "/proc/self"],  # where CUDA names its threads
            "use": [*DEVICES, *command.nodes],
            "filter": base64.b64encode(seccomp.build_filter(sockets=False, counted=command.counted)).decode(),
        }
        trusted = command.folder / "tmp/trusted"
        trusted.mkdir()
        # A folder on the import path must be readable, and that of `prepare` holds more than it.
        (trusted / TRUSTED.name).symlink_to(TRUSTED)
        launcher = (sys.executable, "-I", "-S", str(Path(confine.__file__)), json.dumps(options))
        # Otherwise torch compiles in a pool of processes, whose locks need shared memory.
        path = {"PYTHONPATH": str(trusted)} if "PYTHONPATH" in command.env else {}
        env = {**command.env, **path, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        return replace(command, argv=(*launcher, *command.argv), env=env)
