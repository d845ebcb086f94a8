"""A command under a guardian: started shut in, watched until it ends or must end, and nothing of it left afterwards."""

import asyncio
import fcntl
import json
import os
import sys
import termios
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.lab import guardian
from orchestrator.lab.failures import Fault
from orchestrator.lab.monitor import RunMonitor
from orchestrator.lab.sandbox.base import Command

TICK = 0.1
"""Seconds between two looks at a run."""
DRAIN = 5.0
"""Seconds for what is still in the pipes when everything has ended."""
PATIENCE = 60.0
"""Seconds that a thread waits for the loop, which may be writing a large file to a slow disk."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The guardian's report; all empty if it was killed."""

    status: int | None = None
    cpu: float = 0.0
    peak_mb: float = 0.0
    left: int = 0
    error: str = ""


class MachineError(Exception):
    """No fault of the candidate's."""


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """A command that was started, for those who listen to it."""

    process: Process
    watch: RunMonitor
    output: int
    reading: "list[asyncio.Task[None]]"

    def cpu(self) -> float:
        """CPU seconds of everything that runs in it, so far."""
        total = 0.0
        for process in _list_descendants(self.process):
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system + times.children_user + times.children_system
        return total

    async def seal(self) -> None:
        """What was printed until now is taken in; what comes later is not to be shown."""
        for _ in range(100):
            if self.reading[0].done() or not _has_input(self.output):
                break
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)  # what was read is on its way
        self.watch.seal()


Listen = Callable[[RunningProcess], Awaitable[None]]


async def run_guarded(command: Command, watch: RunMonitor, lock: int, listen: Listen) -> tuple[Fault | None, Ending]:
    """Run the command to its end; why it had to be ended, and how it did. The command's descriptors are closed.

    `lock` is inherited by the guardian; `listen` ends when the command does. Raises MachineTrouble.
    """
    output, printed = os.pipe()
    with ExitStack() as unread, ExitStack() as theirs:
        unread.callback(os.close, output)
        for descriptor in (printed, *command.fds):
            theirs.callback(os.close, descriptor)
        process = await _spawn(command, watch, printed, lock)
        unread.pop_all()
    reading: list[asyncio.Task[None]] = []
    running = RunningProcess(process, watch, output, reading)
    reading.append(asyncio.create_task(pump(output, watch.output)))
    reading.append(asyncio.ensure_future(_listen(listen, running)))
    try:
        fault = await _attend(process, watch, reading)
        ending = await _read_report(process, command.env[guardian.TAG])
        await asyncio.wait(reading, timeout=DRAIN)
    finally:
        try:
            await _finish(process)
        finally:
            for task in reading:
                task.cancel()
    watch.close()
    return fault or watch.broken, ending


async def pump(descriptor: int, feed: Callable[[bytes], None]) -> None:
    """Read the descriptor to its end, and close it."""
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


async def run_in_thread(work: Callable[[], None], stop: Callable[[], None]) -> None:
    """Blocking work in a thread of its own; `stop` makes it end, however this is left."""
    pool = ThreadPoolExecutor(1)
    try:
        await asyncio.get_running_loop().run_in_executor(pool, work)
    finally:
        stop()
        pool.shutdown(wait=False)


def call_from_thread(work: Callable[[], Awaitable[None]], loop: asyncio.AbstractEventLoop) -> None:
    """Do it in the loop and wait for it. Raises ConnectionError where the loop has other worries."""
    try:
        asyncio.run_coroutine_threadsafe(_await(work), loop).result(PATIENCE)
    except (RuntimeError, asyncio.CancelledError, TimeoutError) as error:
        raise ConnectionError("nobody listens any more") from error


async def _await(work: Callable[[], Awaitable[None]]) -> None:
    await work()


async def _listen(listen: Listen, running: RunningProcess) -> None:
    await listen(running)


async def _spawn(command: Command, watch: RunMonitor, printed: int, lock: int) -> Process:
    """A guardian with that command. Its environment is the command's, since the command can read it."""
    limits = watch.limits
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
    """How it ended, once nothing of the run is left. Raises MachineTrouble where something is, or none began."""
    assert process.stdout
    report = await process.stdout.read()
    ending = Ending(**json.loads(report)) if report else Ending()
    left = ending.left
    if ending.status is None or sys.platform != "linux":
        # Its guardian was killed, or could not adopt: they are found by their tag.
        left = len(await asyncio.to_thread(guardian.kill_all, lambda: guardian.find_tagged(tag)))
    if ending.error:
        raise MachineError(f"the run could not be started: {ending.error}")
    if left:
        raise MachineError(f"{left} processes of the run do not end")
    return ending


async def _attend(process: Process, watch: RunMonitor, reading: "Sequence[asyncio.Task[None]]") -> Fault | None:
    """Wait for the end; ask for it as soon as something is wrong, and return what."""
    assert process.stdin
    ended, tasks = asyncio.ensure_future(process.wait()), _count_tasks()
    while not ended.done():
        for task in reading:
            if task.done():
                task.result()
        if fault := watch.fault or _check_processes(process, watch.limits.processes, tasks):
            process.stdin.write(b"t")
            await ended
            return fault
        await asyncio.wait({ended}, timeout=TICK)
    return None


def _check_processes(process: Process, most: int, before: int) -> Fault | None:
    """It multiplies. Counting is slow, so it is done only when the whole machine has become crowded."""
    if _count_tasks() - before <= most or len(_list_descendants(process)) <= most:
        return None
    return Fault("other", f"it started more than {most:,} processes")


def _list_descendants(process: Process) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return []  # it has just ended


def _count_tasks() -> int:
    """Processes and threads of the machine; 0 where it does not say."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    except OSError:
        return 0


async def _finish(process: Process) -> None:
    """The guardian ends everything when its input closes; even a second cancelling does not keep it from that."""
    assert process.stdin
    process.stdin.close()
    await asyncio.shield(process.wait())


def _has_input(pipe: int) -> bool:
    """Whether there is something to be read."""
    try:
        return any(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    except OSError:
        return False
