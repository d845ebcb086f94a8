"""The second choice, where no namespaces are to be had (containers, hardened desktops): Landlock and seccomp.

It sees the machine's own file tree, but may open only a few places in it, cannot open sockets or reach other processes.
"""

import base64
import json
import sys
from dataclasses import replace
from pathlib import Path

from orchestrator.lab.sandbox import confine, seccomp
from orchestrator.lab.sandbox.base import TRUSTED, Command, list_hidden, list_kernels, list_readable

DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom"))
_NAMES = ("cpuinfo", "devices", "driver", "meminfo", "modules", "mounts", "stat", "sys", "version")
OF_THE_SYSTEM = tuple(f"/proc/{name}" for name in _NAMES)
"""No other process's folder. Its own is found as /proc/self by the launcher, which becomes the command."""


class Landlock:
    """Shared memory (/dev/shm) is refused: what one run leaves there, the next would find."""

    tier = "landlock"

    def wrap(self, command: Command) -> Command:
        shown = sorted({str(place.resolve()) for place in (*list_readable(), *list_kernels(command))})
        options = {
            "read": [*shown, *OF_THE_SYSTEM, "/sys"],
            "hide": sorted(map(str, list_hidden())),
            # CUDA names its threads there.
            "write": [str(command.folder), "/proc/self"],
            "use": [*DEVICES, *command.nodes],
            "filter": base64.b64encode(seccomp.build_filter(sockets=False)).decode(),
        }
        trusted = command.folder / "tmp/trusted"
        trusted.mkdir()
        # A folder on the import path must be listed, and around `prepare` there is more than is to be known.
        (trusted / TRUSTED.name).symlink_to(TRUSTED)
        launcher = (sys.executable, "-I", "-S", str(Path(confine.__file__)), json.dumps(options))
        # torch's compilers are a pool of processes otherwise, whose locks lie in shared memory.
        env = {**command.env, "PYTHONPATH": str(trusted), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        return replace(command, argv=(*launcher, *command.argv), env=env)
