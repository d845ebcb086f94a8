"""The commands that people are told to paste, with the program's name as this process was called."""

import shlex
import shutil
import sys
from pathlib import Path

NAME = "nightshift"


def write_command(*words: str) -> str:
    """Return a command of ours that can be pasted into the shell that started this process."""
    called = sys.argv[0]
    if Path(called).name == NAME:
        return shlex.join([NAME if shutil.which(NAME) == called else called, *words])
    return shlex.join([sys.orig_argv[0], "-m", "orchestrator", *words])
