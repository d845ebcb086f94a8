"""Runs a sandboxed command under a guardian: monitored until it ends or must end, and then nothing of it is left."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import psutil

from orchestrator.lab import guardian
from orchestrator.lab.failures import Fault, MachineError, Prune
from orchestrator.lab.monitor import RunMonitor
from orchestrator.lab.sandbox.base import Command

TICK = 0.1
"""Seconds between two checks of a run."""
DRAIN = 5.0
"""Seconds for the pipes to drain when every process has ended."""
OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
"""Signals that come from outside: a user, a shutdown, the system when memory runs out."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended."""

    stopped: Fault | Prune | None
    """The reason it was stopped for."""
    status: int | None
    """Exit code; negative: a signal. None if its guardian was killed."""
    peak_mb: float

    @property
    def was_killed(self) -> bool:
        """True where a signal from outside ended it, or its guardian."""
        return self.status is None or self.status in {number for sent in OUTSIDE for number in (-sent, 128 + sent)}


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """A started command, for the task that talks to it."""

    process: Process
    monitor: RunMonitor
    output: int

    def count_cpu_seconds(self) -> float:
        """Return the CPU seconds that its whole process tree has used so far."""
        total = 0.0
        for process in _list_descendants(self.process):
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def read_output(self) -> bool:
        """Feed the monitor what has been printed up to now; return False at the end."""
        try:
            data = os.read(self.output, 1 << 20)  # all that a pipe can hold
        except BlockingIOError:
            return True
        self.monitor.feed(data)
        return bool(data)

    def seal(self) -> None:
        """Seal the log after the output up to now."""
        self.read_output()
        self.monitor.transcript.sealed = True


async def run_guarded(
    command: Command, monitor: RunMonitor, lock: int, listen: Callable[[RunningProcess], Awaitable[None]]
) -> Ending:
    """Run the command to its end, and close its descriptors.

    The guardian inherits `lock`; `listen` ends when the command does. Raises MachineError, and what `listen` raises.
    """
    output, printed = os.pipe()
    os.set_blocking(output, False)
    with ExitStack() as ours:
        ours.callback(os.close, output)
        with ExitStack() as theirs:
            for descriptor in (printed, *command.fds):
                theirs.callback(os.close, descriptor)
            process = await _spawn(command, monitor, printed, lock)
        ours.callback(asyncio.get_running_loop().remove_reader, output)
        running = RunningProcess(process, monitor, output)
        tasks = (asyncio.ensure_future(_read_all(running)), asyncio.ensure_future(listen(running)))
        for task in tasks:
            ours.callback(task.cancel)
        try:
            stopped = await _attend(process, monitor, tasks)
            report = await _read_report(process, command.env[guardian.TAG])
            await asyncio.wait(tasks, timeout=DRAIN)
            _raise_errors(tasks)
        finally:
            # The guardian ends everything when its input closes; a second cancellation does not interrupt that.
            assert process.stdin
            process.stdin.close()
            await asyncio.shield(process.wait())
    monitor.feed(b"", last=True)
    return Ending(stopped or monitor.found, report.get("status"), report.get("peak_mb", 0.0))


async def _read_all(running: RunningProcess) -> None:
    ready, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(running.output, ready.set)
    while running.read_output():
        ready.clear()
        await ready.wait()
    loop.remove_reader(running.output)


async def _spawn(command: Command, monitor: RunMonitor, printed: int, lock: int) -> Process:
    """Start a guardian with the command; its environment is the command's, which could read it anyway."""
    limits = monitor.limits
    caps = {"CPU": round(limits.cpu), "CORE": 0, "FSIZE": limits.file, "DATA": limits.memory}
    given = {k: v for k, v in caps.items() if v is not None}
    options = {"fds": command.fds, "grace": limits.grace, "limits": given, "cpus": command.cpus}
    argv = (sys.executable, "-I", str(guardian.PROGRAM), json.dumps(options), *command.argv)
    return await asyncio.create_subprocess_exec(
        *argv,
        stdin=PIPE,
        stdout=PIPE,
        stderr=printed,
        cwd=command.folder,
        env=command.env,
        pass_fds=(*command.fds, lock),
        start_new_session=True,
    )


async def _read_report(process: Process, tag: str) -> dict[str, Any]:
    """Return the guardian's report, once nothing of the run is left; empty if the guardian was killed.

    Raises MachineError where something is left, or nothing started.
    """
    assert process.stdout
    report = json.loads(await process.stdout.read() or b"{}")
    left = report.get("left", 0)
    if "status" not in report or sys.platform != "linux":
        # The guardian was killed, or could not adopt: the processes are found by their tag.
        left = len(await asyncio.to_thread(guardian.kill_all, lambda: guardian.find_tagged(tag)))
    if "error" in report:
        raise MachineError(f"the run could not be started: {report['error']}")
    if left:
        raise MachineError(f"{left} processes of the run do not end")
    return report


async def _attend(
    process: Process, monitor: RunMonitor, tasks: "Sequence[asyncio.Future[None]]"
) -> Fault | Prune | None:
    """Wait for the end; ask for it as soon as there is a reason to stop, and return the reason."""
    assert process.stdin
    ended, before, most = asyncio.ensure_future(process.wait()), len(psutil.pids()), monitor.limits.processes
    while not ended.done():
        _raise_errors(tasks)
        reason = monitor.stop_reason
        # Its processes are counted, which is slow, only when the whole machine has become crowded.
        if not reason and len(psutil.pids()) - before > most and len(_list_descendants(process)) > most:
            reason = Fault("other", f"it started more than {most:,} processes")
        if reason:
            process.stdin.write(b"t")
            await ended
            return reason
        await asyncio.wait({ended}, timeout=TICK)
    return None


def _raise_errors(tasks: "Sequence[asyncio.Future[None]]") -> None:
    for task in tasks:
        if task.done():
            task.result()


def _list_descendants(process: Process) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return []  # it has just ended
