"""Run a sandboxed command under a guardian, monitored until it ends or must be stopped; no process of it is left."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, closing, suppress
from functools import partial
from io import RawIOBase
from math import inf
from typing import Any

import psutil

from orchestrator.lab import guardian
from orchestrator.lab.failures import Fault, MachineError, find_message
from orchestrator.lab.monitor import RunMonitor
from orchestrator.lab.sandbox.base import Command
from orchestrator.lab.sandbox.confine import BEGUN

TICK = 0.1  # seconds between two checks of a run
DRAIN = WAKE = 5.0
"""Seconds to drain the pipes once every process has ended, and between two attempts to wake up a guardian."""
WAKES = 12
"""Attempts after which a guardian whose input has closed is killed: it gives up itself after guardian.KILL_PATIENCE."""
Listener = Callable[[], Coroutine[Any, Any, None]]
"""Serves the connection of a command; it must return once the command has ended."""


async def run_guarded(command: Command, monitor: RunMonitor, lock: int, listen: Listener) -> None:
    """Run the command to its end, of which the monitor knows then; the guardian inherits `lock`.

    Closes the command's descriptors. Raises MachineError, and what `listen` raises.
    """
    output, printed = os.pipe()
    with os.fdopen(output, "rb", buffering=0) as pipe, ExitStack() as ours:
        reports = [ours.enter_context(os.fdopen(descriptor, "rb")) for descriptor in command.reports]
        with ExitStack() as theirs:
            for descriptor in (printed, *command.fds):
                theirs.callback(os.close, descriptor)
            process = await _spawn(command, monitor, printed, lock)
        assert process.stdin
        assert process.stdout
        monitor.guardian, tag = process.pid, command.env[guardian.TAG]
        monitor.begin()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_read_all(pipe, monitor)), group.create_task(listen())]
                await _attend(process, monitor)
                process.stdin.close()
                left = await _clean_up(process, tag)
                await asyncio.wait(tasks, timeout=DRAIN)
                for task in tasks:
                    task.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others were cancelled because of it
        finally:
            # The guardian kills everything when its input closes; a second cancellation must not interrupt that.
            process.stdin.close()
            await asyncio.shield(_clean_up(process, tag))
        report = json.loads(await process.stdout.read() or b"{}")
        if "error" in report:
            raise MachineError(f"the run could not be started: {report['error']}")
        if left := left or report.get("left", 0):
            raise MachineError(f"{left} processes of the run cannot be killed")
        monitor.status, monitor.peak_mb = report.get("status"), report.get("peak_mb", 0.0)
        monitor.total_cpu = report.get("cpu", 0.0)
        monitor.feed(b"", last=True)
        if monitor.status and monitor.status > 0 and not all(BEGUN in file.read() for file in reports):
            raise MachineError(f"the sandbox could not start the run: {find_message(monitor.transcript.log)}")


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
    options = {"fds": command.fds, "limits": caps, "cpus": command.cpus}
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


async def _clean_up(process: Process, tag: str, wakes: int = WAKES) -> int:
    """Wait for the guardian's end, or kill it; return how many processes are left that it could not kill, nor we."""
    await _wait(process, wakes)
    if process.returncode == 0 and sys.platform == "linux":
        return 0
    if process.returncode is None:  # busy with a run that forks faster than its guardian can end it
        process.kill()
        await _wait(process, wakes)
    # It was killed, or failed, or could not adopt: the processes are found by their tag.
    return len(await asyncio.to_thread(guardian.kill_all, partial(guardian.find_tagged, tag)))


async def _attend(process: Process, monitor: RunMonitor) -> None:
    """Wait for the end, or for a reason to bring it about."""
    limit, before = monitor.limits.processes, len(psutil.pids())
    ended = asyncio.ensure_future(_wait(process))
    while not (await asyncio.wait({ended}, timeout=TICK))[0]:
        reason = monitor.stop_reason
        # Counting its own processes is slow, so those of the whole machine are counted first.
        if not reason and len(psutil.pids()) - before > limit and len(monitor.list_processes()) > limit:
            reason = Fault("other", f"it started more than {limit:,} processes")
        if reason:
            if not monitor.cause and isinstance(reason, Fault) and any(map(_is_suspended, monitor.list_processes())):
                reason.excuse = f"one of its processes was suspended from outside, or by another: {reason}"
            monitor.cause = reason
            return


async def _wait(process: Process, wakes: float = inf) -> None:
    """Wait for the end of a guardian, and wake it up at most so often: if suspended, it holds the slot for ever."""
    while process.returncode is None and (wakes := wakes - 1) >= 0:
        with suppress(OSError):
            os.kill(process.pid, signal.SIGCONT)  # send_signal would look whether it has ended, and lose its exit code
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), WAKE)


def _is_suspended(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.status() == psutil.STATUS_STOPPED
    return False
