"""Run a sandboxed command under a guardian, monitored until it ends or must be stopped; no process of it is left."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from io import RawIOBase
from typing import Any

import psutil

from orchestrator.lab import guardian
from orchestrator.lab.failures import Fault, MachineError, Prune
from orchestrator.lab.monitor import RunMonitor
from orchestrator.lab.sandbox.base import Command

TICK = 0.1
"""Seconds between two checks of a run."""
DRAIN = WAKE = 5.0
"""Seconds to drain the pipes once every process has ended, and between two attempts to wake up a guardian."""
_SENT = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
FROM_OUTSIDE = {*(-number for number in _SENT), *(128 + number for number in _SENT)}
"""How a command ends by signals that a user sends, a batch system, a shutdown, or the system out of memory."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended."""

    stopped: Fault | Prune | None
    """The reason why it was stopped; None if it ended by itself."""
    status: int | None
    """Exit code, or a signal's number negated; None if the guardian was killed."""
    peak_mb: float

    def check(self) -> None:
        """Raise Prune or Fault where it was stopped, or it or its guardian was killed or suspended from outside."""
        if self.stopped:
            raise self.stopped
        if self.status is None or self.status in FROM_OUTSIDE:
            is_small = 2 * self.peak_mb < psutil.virtual_memory().total >> 20
            excuse = f"{'its guardian' if self.status is None else 'it'} was killed or suspended from outside"
            where = f"it was killed from outside at {self.peak_mb:,.0f} MB"
            message = f"{where}, as happens when the system runs out of memory"
            raise Fault("out of host memory", message, excuse * is_small)


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """A started command, as the task sees that serves its connection."""

    process: Process
    monitor: RunMonitor

    def list_descendants(self, *, with_guardian: bool = False) -> list[psutil.Process]:
        """Return its whole process tree, children before their parents; nothing if it has just ended."""
        with suppress(psutil.Error):
            guard = psutil.Process(self.process.pid)
            return [*reversed(guard.children(recursive=True)), *[guard] * with_guardian]
        return []

    def count_cpu_seconds(self) -> float:
        """Return the CPU seconds that its whole process tree has used so far, with what the guardian has reaped.

        Parents come last: the time of a child that ends meanwhile is theirs.
        """
        total = 0.0
        for process in self.list_descendants(with_guardian=True):
            with suppress(psutil.Error):
                total += sum(process.cpu_times()[:4])  # its own and its children's, in the program and in the kernel
        return total


Listener = Callable[[RunningProcess], Coroutine[Any, Any, None]]
"""Serves the connection of a command; it must return once the command has ended."""


async def run_guarded(command: Command, monitor: RunMonitor, lock: int, listen: Listener) -> Ending:
    """Run the command to its end, and close its descriptors; the guardian inherits `lock`.

    Raises MachineError, and what `listen` raises.
    """
    output, printed = os.pipe()
    with os.fdopen(output, "rb", buffering=0) as pipe:
        with ExitStack() as theirs:
            for descriptor in (printed, *command.fds):
                theirs.callback(os.close, descriptor)
            process = await _spawn(command, monitor, printed, lock)
        running = RunningProcess(process, monitor)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_read_all(pipe, monitor)), group.create_task(listen(running))]
                stopped = await _attend(running)
                report = await _read_report(process, command.env[guardian.TAG])
                await asyncio.wait(tasks, timeout=DRAIN)
                for task in tasks:
                    task.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others were cancelled because of it
        finally:
            # The guardian kills everything when its input closes; a second cancellation must not interrupt that.
            assert process.stdin
            process.stdin.close()
            await asyncio.shield(_wait(process))
            if process.returncode:  # it was killed, or failed, and cannot have ended its processes
                find = partial(guardian.find_tagged, command.env[guardian.TAG])
                await asyncio.shield(asyncio.to_thread(guardian.kill_all, find))
    monitor.feed(b"", last=True)
    return Ending(stopped or monitor.cause, report.get("status"), report.get("peak_mb", 0.0))


async def _read_all(pipe: RawIOBase, monitor: RunMonitor) -> None:
    reader = asyncio.StreamReader()
    make = partial(asyncio.StreamReaderProtocol, reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(make, pipe)
    with closing(transport):
        while data := await reader.read(1 << 20):
            monitor.feed(data)


async def _spawn(command: Command, monitor: RunMonitor, printed: int, lock: int) -> Process:
    """Start a guardian with the command. It gets the command's own environment, since the command can read it."""
    limits = monitor.limits
    caps = {"CORE": 0, "FSIZE": limits.file} | ({"DATA": limits.memory} if limits.memory else {})
    options = {"fds": command.fds, "grace": limits.grace, "limits": caps, "cpus": command.cpus}
    argv = (sys.executable, "-I", "-S", guardian.PROGRAM, json.dumps(options), *command.argv)
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
    """Return the guardian's report, empty if it was killed. Raises MachineError if nothing started or ended."""
    assert process.stdout
    report = json.loads(await process.stdout.read() or b"{}")
    left = report.get("left", 0)
    if "status" not in report or sys.platform != "linux":
        # The guardian was killed, or could not adopt: the processes are found by their tag.
        left = len(await asyncio.to_thread(guardian.kill_all, partial(guardian.find_tagged, tag)))
    if "error" in report:
        raise MachineError(f"the run could not be started: {report['error']}")
    if left:
        raise MachineError(f"{left} processes of the run cannot be killed")
    return report


async def _attend(running: RunningProcess) -> Fault | Prune | None:
    """Wait for the end; ask for it as soon as there is a reason to stop, and return that reason."""
    process, limit, before = running.process, running.monitor.limits.processes, len(psutil.pids())
    assert process.stdin
    ended = asyncio.ensure_future(_wait(process))
    while not ended.done():
        reason = running.monitor.stop_reason
        # Counting its own processes is slow, so those of the whole machine are counted first.
        if not reason and len(psutil.pids()) - before > limit and len(running.list_descendants()) > limit:
            reason = Fault("other", f"it started more than {limit:,} processes")
        if reason:
            suspended = any(map(_is_suspended, running.list_descendants()))
            process.stdin.write(b"t")
            await ended
            return None if suspended else reason
        await asyncio.wait({ended}, timeout=TICK)
    return None


async def _wait(process: Process) -> None:
    """Wait for the end of a guardian, and wake it up: if it is suspended, it holds the slot for ever."""
    while process.returncode is None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), WAKE)


def _is_suspended(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.status() == psutil.STATUS_STOPPED
    return False
