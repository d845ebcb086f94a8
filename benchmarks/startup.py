"""Measure the CPU seconds until a command has answered: the median of several processes, in an empty folder."""

import os
import subprocess
import sys
import tempfile
from statistics import median

RUNS = 9
COMMANDS = {
    "--help": ["--help"],
    "sessions": ["sessions"],
    "musings search": ["musings", "search", "depth"],
    "replay --show": ["replay", "tests/golden/agents-1.db", "--show", "5"],
    "doctor --help": ["doctor", "--help"],
}


def measure(words: list[str]) -> float:
    """Return the CPU seconds of one process, its children included."""
    child = subprocess.Popen([sys.executable, "-m", "orchestrator", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{' '.join(words)} failed")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    print("| command | CPU, s |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, words in COMMANDS.items():
            command = ["--sessions", folder, "--musings", folder, *words]
            print(f"| `{name}` | {median(measure(command) for _ in range(RUNS)):.2f} |")
