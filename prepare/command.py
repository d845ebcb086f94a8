"""Write the commands that people are told to paste, with the program's name as this process was called."""

import shlex
import shutil
import sys


def write_command(*words: str) -> str:
    """Return a command of ours that can be pasted into the shell that started this process."""
    called, found = sys.argv[0], shutil.which("nightshift")
    names = [sys.orig_argv[0], "-m", "orchestrator"] if not called.endswith("nightshift") else [called]
    return shlex.join([*(["nightshift"] if called == found else names), *words])
