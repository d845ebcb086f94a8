"""Runs a sandboxed command under a guardian: monitored until it ends or must end, and then nothing of it is left."""

import asyncio
import fcntl
import json
import os
import signal
import sys
import termios
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import psutil

from orchestrator.lab import guardian
from orchestrator.lab.failures import Fault, Prune
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
    """The guardian's report; empty if it was killed."""

    status: int | None = None
    """Exit code; negative: a signal."""
    peak_mb: float = 0.0
    left: int = 0
    """Processes that could not be killed."""
    error: str = ""

    @property
    def was_killed(self) -> bool:
        """True where a signal from outside ended it, or its guardian."""
        return self.status is None or self.status in {number for sent in OUTSIDE for number in (-sent, 128 + sent)}


class MachineError(Exception):
    """A failure that is not the candidate's fault."""


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """A started command, for the task that talks to it."""

    process: Process
    monitor: RunMonitor
    output: int
    reader: "asyncio.Task[None]"

    def count_cpu_seconds(self) -> float:
        """Return the CPU seconds that its whole process tree has used so far."""
        total = 0.0
        for process in _list_descendants(self.process):
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system + times.children_user + times.children_system
        return total

    async def seal(self) -> None:
        """Seal the log after the output up to now."""
        for _ in range(100):
            if self.reader.done() or not _has_input(self.output):
                break
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)  # what was read is on its way to the monitor
        self.monitor.seal()


Listen = Callable[[RunningProcess], Awaitable[None]]


async def run_guarded(
    command: Command, monitor: RunMonitor, lock: int, listen: Listen
) -> tuple[Fault | Prune | None, Ending]:
    """Run the command to its end; return the reason it was stopped for, if any, and its ending. Closes its descriptors.

    The guardian inherits `lock`; `listen` ends when the command does. Raises MachineError, and what `listen` raises.
    """
    output, printed = os.pipe()
    with ExitStack() as unread, ExitStack() as theirs:
        unread.callback(os.close, output)
        for descriptor in (printed, *command.fds):
            theirs.callback(os.close, descriptor)
        process = await _spawn(command, monitor, printed, lock)
        unread.pop_all()
    reader = asyncio.create_task(_pump(output, monitor.feed))
    tasks = (reader, asyncio.ensure_future(listen(RunningProcess(process, monitor, output, reader))))
    try:
        reason = await _attend(process, monitor, tasks)
        ending = await _read_report(process, command.env[guardian.TAG])
        await _wait_for_readers(monitor, tasks)
    finally:
        try:
            # The guardian ends everything when its input closes; a second cancellation does not interrupt that.
            assert process.stdin
            process.stdin.close()
            await asyncio.shield(process.wait())
        finally:
            for task in tasks:
                task.cancel()
    monitor.close()
    return reason or monitor.found, ending


async def _pump(descriptor: int, feed: Callable[[bytes], None]) -> None:
    reader = asyncio.StreamReader()
    pipe = os.fdopen(descriptor, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        while data := await reader.read(1 << 16):
            feed(data)
    finally:
        transport.close()


async def _spawn(command: Command, monitor: RunMonitor, printed: int, lock: int) -> Process:
    """Start a guardian with the command; its environment is the command's, which could read it anyway."""
    limits = monitor.limits
    caps = {"CPU": round(limits.cpu), "CORE": 0, "FSIZE": limits.file, "DATA": limits.memory}
    options = {"fds": command.fds, "grace": limits.grace, "limits": {k: v for k, v in caps.items() if v is not None}}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        str(guardian.PROGRAM),
        json.dumps(options),
        *command.argv,
        stdin=PIPE,
        stdout=PIPE,
        stderr=printed,
        cwd=command.folder,
        env=command.env,
        pass_fds=(*command.fds, lock),
        start_new_session=True,
    )


async def _read_report(process: Process, tag: str) -> Ending:
    """Return the ending, once nothing of the run is left. Raises MachineError where something is, or none started."""
    assert process.stdout
    report = await process.stdout.read()
    ending = Ending(**json.loads(report)) if report else Ending()
    left = ending.left
    if ending.status is None or sys.platform != "linux":
        # The guardian was killed, or could not adopt: the processes are found by their tag.
        left = len(await asyncio.to_thread(guardian.kill_all, lambda: guardian.find_tagged(tag)))
    if ending.error:
        raise MachineError(f"the run could not be started: {ending.error}")
    if left:
        raise MachineError(f"{left} processes of the run do not end")
    return ending


async def _attend(
    process: Process, monitor: RunMonitor, tasks: "Sequence[asyncio.Future[None]]"
) -> Fault | Prune | None:
    """Wait for the end; ask for it as soon as there is a reason to stop, and return the reason."""
    assert process.stdin
    ended, before = asyncio.ensure_future(process.wait()), len(psutil.pids())
    while not ended.done():
        _raise_errors(tasks)
        if reason := monitor.stop_reason or _check_processes(process, monitor.limits.processes, before):
            process.stdin.write(b"t")
            await ended
            return reason
        await asyncio.wait({ended}, timeout=TICK)
    return None


async def _wait_for_readers(monitor: RunMonitor, tasks: "Sequence[asyncio.Future[None]]") -> None:
    deadline = monitor.now() + DRAIN
    while monitor.now() < deadline and not all(task.done() for task in tasks):
        await asyncio.wait(tasks, timeout=TICK)
    _raise_errors(tasks)


def _raise_errors(tasks: "Sequence[asyncio.Future[None]]") -> None:
    for task in tasks:
        if task.done():
            task.result()


def _check_processes(process: Process, most: int, before: int) -> Fault | None:
    """Count its processes, which is slow, only when the whole machine has become crowded."""
    if len(psutil.pids()) - before <= most or len(_list_descendants(process)) <= most:
        return None
    return Fault("other", f"it started more than {most:,} processes")


def _list_descendants(process: Process) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return []  # it has just ended


def _has_input(pipe: int) -> bool:
    try:
        return any(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    except OSError:
        return False
