"""The command that checks everything a night needs, and says what to do about each problem."""

import asyncio
import os
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

import psutil
import typer
from rich.console import Console
from rich.markup import escape

from orchestrator.cli import options as opt
from orchestrator.cli.preflight import CheckResult, Preflight
from orchestrator.cli.start import describe_ground, invent_name
from orchestrator.core.events import Aborted, Crashed, Granted, Outcome, Point, Scored
from orchestrator.core.source import compute_digest
from orchestrator.lab.slots import list_slots
from prepare.machine import THREADS, list_gpus

TRIAL_SECONDS = 20.0
"""Seconds that the script may take to its first step; then it is only known not to have failed at once."""
NEEDED = {"git", "scores", "data", "slots", "sandbox"}  # checks without which the script cannot be run
BUSY = 50.0  # percent of the cores in use above which runs take longer than expected
MARKS = {"good": "[green]✓[/green]", "warn": "[yellow]![/yellow]", "bad": "[red]✗[/red]"}


def doctor(context: typer.Context) -> None:
    """Check everything that a night needs.

    Runs the checks that a night with these options begins with, also checks the data's hashes and the machine, and then
    runs the script until its first step. Exit code 3 if something would spoil the night.
    """
    chosen: opt.Options = context.obj
    crew, name = opt.choose_crew(context, chosen.crew, offline=chosen.offline), invent_name(chosen)
    night = Preflight(chosen, name, crew, verify=True)
    console, bad = Console(highlight=False), set[str]()
    script = (check_script(night) for _ in [night] if not bad & NEEDED)  # as soon as the others are known
    with console.status("checking…"):
        for result in chain(night.check(), check_machine(), script):
            words = f"{MARKS[result.state]} {escape(f'{result.subject:<9}')} {escape(result.message)}"
            console.print(words, soft_wrap=True)  # no table, which would break the commands that it names
            console.file.flush()
            bad |= {result.subject} if result.state == "bad" else set()
    if bad:
        raise SystemExit(opt.ExitCode.UNHEALTHY)


def check_script(night: Preflight) -> CheckResult:
    """Run the script as a night would, until its first progress line, its end, or TRIAL_SECONDS without a crash."""
    from orchestrator.lab.reported import build_runner

    began, steps = time.monotonic(), list[Point]()
    source = night.fit(night.source)
    with tempfile.TemporaryDirectory() as folder:
        slot = replace(list_slots(1, Path(folder), THREADS, night.list_gpus())[0], patience=2.0)
        parts = {"folder": Path(folder), "slots": [slot], "sandbox": night.sandbox, "put": compute_digest}
        runner = build_runner(describe_ground(night), night.tree, 1, night.options.data, **parts)

        async def run() -> Outcome | None:
            task = asyncio.ensure_future(runner.run(Granted(experiment=0, run=1, slot=0, seed=0), source))

            def stop(_granted: Granted, point: Point, _rate: float) -> None:
                steps.append(point)
                task.cancel()

            runner.on_point = stop
            with suppress(TimeoutError, asyncio.CancelledError):
                return await asyncio.wait_for(task, TRIAL_SECONDS)

        outcome = asyncio.run(run())
    after = f"after {time.monotonic() - began:.1f} s"
    match outcome:
        case Crashed(message=message):
            return CheckResult("script", "bad", f"it failed {after}: {message}")
        case Aborted(reason=reason):
            return CheckResult("script", "warn", f"it could not be tried: {reason}")
        case Scored(val_bpb=score):
            return CheckResult("script", "good", f"it ended {after}: {night.task.metric.format_score(score)}")
        case _:
            words = "came to a step" if steps else "printed no step, and had not failed"
            return CheckResult("script", "good", f"it {words} {after}")


def check_machine() -> Iterator[CheckResult]:
    """Check cores, memory, GPUs, and the compiler that a GPU needs."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    busy = psutil.cpu_percent(interval=0.5)
    memory = psutil.virtual_memory().available / (1 << 30)
    words = f"{cores} cores, {busy:.0f} % busy; {memory:.0f} GiB of memory free"
    hint = ": stop other programs, or runs take longer than expected" * (busy > BUSY)
    yield CheckResult("machine", "warn" if hint or memory <= 2 else "good", words + hint)
    yield CheckResult("terminal", "good", "a night goes on without it; tmux, nohup or systemd-run let you come back")
    gpus = list_gpus()
    if not gpus:
        yield CheckResult("gpu", "good", "none; runs use the CPU")
        return
    for gpu in gpus:
        state = "warn" if gpu.used > gpu.memory // 4 else "good"
        yield CheckResult("gpu", state, f"{gpu.name}, {gpu.used >> 20} of {gpu.memory >> 20} MiB in use")
    yield check_compiler(Path(sysconfig.get_path("include")), os.environ.get("PATH", os.defpath))


def check_compiler(headers: Path, path: str) -> CheckResult:
    """Check for what torch.compile needs on a GPU: a C compiler on the path, and Python's headers."""
    found = shutil.which("gcc", path=path) or shutil.which("clang", path=path)
    lacking = ["C compiler"] * (not found) + [str(headers / "Python.h")] * (not (headers / "Python.h").exists())
    if lacking:
        words = f"no {' and no '.join(lacking)}: every run would fail (on Debian: apt install gcc python3-dev)"
        return CheckResult("compiler", "bad", words)
    return CheckResult("compiler", "good", f"{found}, which torch needs for a GPU")
