"""Tell the user what is wrong, in one line, and which command to paste."""

import os
import shlex
import shutil
import sys


class UserError(Exception):
    """A problem that the user can fix; the message is one line that says what to do."""


def write_command(*words: str) -> str:
    """Return a command that can be pasted into a shell: by the name, or under uv by the path, of this process."""
    called, found = sys.argv[0], shutil.which("nightshift") if "UV" not in os.environ else None
    names = [sys.orig_argv[0], "-m", "orchestrator"] if not called.endswith("nightshift") else [called]
    return shlex.join([*(["nightshift"] if called == found else names), *words])
