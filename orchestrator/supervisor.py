"""Run the loop and record external events: the deadline, changes of guidance.md, Ctrl-C, what the inbox holds."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import cache
from pathlib import Path
from stat import S_ISREG
from typing import Any

from orchestrator.core.events import Continued, Ended, GuidanceChanged, Paused, StopAsked, VetoAsked
from orchestrator.core.state import State
from orchestrator.loop import run
from orchestrator.policy.certification import certify
from orchestrator.policy.limits import explain_deadline
from orchestrator.policy.schedule import find_due
from orchestrator.policy.steps import Append
from orchestrator.ports import Crew, Executor
from orchestrator.session.inbox import take_controls
from orchestrator.session.store import Session, SessionError
from prepare.files import read_written

ASKED, PAUSED = "you asked to stop", "you asked for a pause"
STALLED = "you asked to stop, and a model was silent"
LOOK_SECONDS = 1.0  # seconds between two checks of guidance.md and of the inbox
STALL, SILENCE = 60.0, 120.0
"""Seconds without an event or a run after which a model has stalled: once you asked to stop, and after the deadline."""
GUIDANCE_CHARACTERS = 8_000  # characters of guidance.md that are read


async def supervise(session: Session, crew: Crew, lab: Executor, guidance: Path) -> None:
    """Run the loop to its end. Raises what it or a task beside it raises, and KeyboardInterrupt on the second Ctrl-C.

    That of a stop at once for any other reason says why.
    Returns nothing, since asyncio writes out the result of its main task, however long, to restore a signal's handler.
    """
    outside, failures, over = list[asyncio.Future[None]](), list[BaseException](), asyncio.Event()

    def start_beside(work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        outside.append(task := asyncio.ensure_future(work))
        task.add_done_callback(end_with)
        return task

    def end_with(task: asyncio.Future[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            failures.append(error)
            research.cancel()

    start_beside(_watch_guidance(session, guidance))  # before the first proposal
    start_beside(_stop_at_deadline(session))
    session.watchers.append(lambda: over.set() if session.state.ended else None)
    research = asyncio.ensure_future(run(session, crew, lab, over.wait))
    asked, stopped = False, list[KeyboardInterrupt]()

    def stop_now(*why: str) -> None:
        stopped.append(KeyboardInterrupt(*why))
        research.cancel()

    def request_stop() -> None:
        """Finish the current runs at the first Ctrl-C, stop at once at the second. Nothing is lost either way."""
        nonlocal asked
        if asked or session.state.ended:
            stop_now()
            return
        asked = True
        session.say("Stopping: the current runs finish and are recorded first. Press Ctrl-C again to stop at once.")
        if not session.state.stopping:
            start_beside(session.append("", StopAsked(reason=ASKED)))
        stalled = start_beside(_wait_for_stall(session, STALL))
        stalled.add_done_callback(lambda task: None if task.cancelled() else stop_now(STALLED))

    start_beside(_watch_inbox(session, lambda: asked or request_stop()))
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, request_stop)
    loop.add_signal_handler(signal.SIGTERM, stop_now, "another program ended it (SIGTERM)")
    try:
        await research
    except asyncio.CancelledError as error:
        raise (*stopped, *failures, error)[0] from None
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # only the message how to resume is left
        for task in outside:
            task.cancel()
            with suppress(asyncio.CancelledError, SessionError):  # which is raised already
                await task


async def _stop_at_deadline(session: Session) -> None:
    """Record a request to stop when the time is up, and the end itself once what is still awaited is silent."""
    await asyncio.sleep(max(0.0, session.state.deadline - session.clock()))
    reason = explain_deadline(session.state.session.limits)
    if not session.state.stopping:
        await session.append("", StopAsked(reason=reason))
    awaited = [f"train {run.granted.experiment}.{run.granted.run}" for run in session.state.running]
    awaited += [step.task_id for step in find_due(session.state) if not isinstance(step, Append)]
    if awaited:
        session.say(f"The time is up. Awaited: {', '.join(awaited)}; a silent model for two minutes at most.")
    await _wait_for_stall(session, SILENCE)
    measured = [found for found in (certify(session.state),) if found and found != session.state.certificate]
    await session.append("", *measured, Ended(reason=reason))


async def _wait_for_stall(session: Session, seconds: float) -> None:
    """Return as soon as nothing trains and no step has done anything for so long: a model or git holds up the end."""
    begun = session.clock()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        last = next((record.at for record in reversed(session.records) if record.task_id), begun)  # not guidance
        if session.clock() > max(begun, last) + seconds and not session.state.running:
            return


async def _watch_inbox(session: Session, request_stop: Callable[[], object]) -> None:
    """Record what other processes ask of this night, unless it would change nothing, and say once what is refused."""

    @cache
    def refuse(path: Path) -> None:
        session.say(f"{path} cannot be taken as a request: misspelt, or of another account; it has no effect")

    while True:
        await asyncio.sleep(LOOK_SECONDS)
        for control in take_controls(session.path.parent, refuse):
            match control.action, session.state:
                case "stop", State(stopping="", ended=""):
                    request_stop()
                case "pause", State(paused="", stopping=""):
                    await session.append("", Paused(reason=PAUSED))
                case "continue", State(paused=str(reason)) if reason:
                    await session.append("", Continued())
                case "veto", state if state.is_vetoable(control.experiment):
                    await session.append("", VetoAsked(experiment=control.experiment))
                case _:
                    pass


async def _watch_guidance(session: Session, path: Path) -> None:
    """Record a change of guidance.md that two looks have found the same, and say so where nobody reads it."""
    before = _read_guidance(path)
    while True:
        text = _read_guidance(path)
        if text is not None and text == before and text != session.state.guidance:
            await session.append("", GuidanceChanged(text=text))
            if text and session.state.is_automatic:
                session.say("guidance.md is not followed: the optimizer proposes, and it reads no text")
            elif len(text) == GUIDANCE_CHARACTERS:
                session.say(f"{GUIDANCE_CHARACTERS:,} characters of guidance.md are read, and no more")
        before = text
        await asyncio.sleep(LOOK_SECONDS)


def _read_guidance(path: Path) -> str | None:
    """Return the beginning of the text, empty where there is none; None where it cannot be read."""
    try:
        if not S_ISREG(path.stat().st_mode):  # reading a named pipe would wait for a writer
            return ""
        return read_written(path, "replace", 4 * GUIDANCE_CHARACTERS)[:GUIDANCE_CHARACTERS]
    except FileNotFoundError:
        return ""
    except OSError:
        return None
