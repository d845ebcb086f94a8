"""Measure what each sandbox adds to the start of a Python program, and what its self-check costs."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from orchestrator.lab.sandbox import select
from orchestrator.lab.sandbox.base import Command, NoSandbox, Sandbox
from orchestrator.lab.sandbox.bubblewrap import Bubblewrap
from orchestrator.lab.sandbox.landlock import Landlock

STARTS = 40


def start(sandbox: Sandbox) -> float:
    """Return the seconds to run a program that does nothing."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "tmp").mkdir()
        began = time.perf_counter()
        command = sandbox.wrap(
            Command((sys.executable, "-S", "-c", ""), {"PATH": os.environ["PATH"]}, folder, (), grants="run")
        )
        subprocess.run(command.argv, env=command.env, cwd=folder, pass_fds=command.fds, check=True)
        took = time.perf_counter() - began
        for descriptor in (*command.fds, *command.reports):
            os.close(descriptor)
    return took


def main() -> None:
    plain = statistics.median(start(NoSandbox()) for _ in range(STARTS))
    print("| sandbox | start, ms over plain | self-check, ms |\n|---|---|---|")
    for sandbox in (Bubblewrap(), Landlock()):
        began = time.perf_counter()
        if weakness := select.self_check(sandbox):
            print(f"| {sandbox.tier} | not here: {weakness} | |")
            continue
        test = time.perf_counter() - began
        over = statistics.median(start(sandbox) for _ in range(STARTS)) - plain
        print(f"| {sandbox.tier} | {1000 * over:.0f} | {1000 * test:.0f} |")
