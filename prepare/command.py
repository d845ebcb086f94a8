"""Tell the user what is wrong, in one line, and which command to paste."""

import os
import shlex
import shutil
import sys


class UserError(Exception):
    """A problem that the user can fix; the message is one line that says what to do."""


def write_command(*words: str) -> str:
    """Return a command that can be pasted into the shell: with the name that this process was called by."""
    called, found = sys.argv[0], shutil.which("nightshift")
    names = [sys.orig_argv[0], "-m", "orchestrator"] if not called.endswith("nightshift") else [called]
    is_known = called == found and "UV" not in os.environ  # uvx and `uv run` put it on the path of their command alone
    return shlex.join([*(["nightshift"] if is_known else names), *words])
