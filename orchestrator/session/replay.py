"""Run the production loop over a recorded session, and report every event that it would write differently today.

The tape answers for models and machines. Each task waits until the next record is its own, so overlapping steps
are replayed in exactly the recorded order. A life is the time from a start or restart of the session to the next.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isclose
from typing import NoReturn, TypeVar, cast

from orchestrator.core import events as ev
from orchestrator.core.source import diff
from orchestrator.ports import Log
from prepare.command import UserError
from subagents.agent import Reply
from subagents.tools import Tool, ToolCall, ToolResult

E = TypeVar("E", bound=ev.Event)
RESTARTS = ev.Resumed | ev.Forked


@dataclass(frozen=True, slots=True)
class Divergence:
    """A recorded event (-) that the loop would write differently (+)."""

    seq: int
    difference: str


class _Stuck(Exception):  # noqa: N818 - a finding, not a fault
    """The loop cannot follow the recording any further."""


class Tape(Log):
    """A recorded session played back: the log, the executor, and the models and tools of a verification.

    If the loop would write a different event, the recorded one is used, so that the verification can continue.
    """

    def __init__(self, log: Log, until: int | None = None) -> None:
        """Play this log back; the tape ends after `until` records (default: all)."""
        super().__init__()
        self.recorded, self.read = log.records[:until], log.get
        self.divergences: list[Divergence] = []
        self.moved = asyncio.Event()
        self.life_over = asyncio.Event()

    def get(self, name: ev.Digest) -> str:
        """Return a text of this replay, or of the recording. Raises KeyError."""
        return self.texts[name] if name in self.texts else self.read(name)

    @property
    def upcoming(self) -> ev.Record | None:
        return self.recorded[len(self.records)] if len(self.records) < len(self.recorded) else None

    async def append(self, task_id: str, *events: ev.Event, last: bool = False) -> None:
        """Wait for the task's turn, compare each event with the recorded one, and fold the recorded one."""
        for event in events:
            record = await self._wait_for_turn(task_id)
            if not _is_same(record.event, event):
                self.divergences.append(Divergence(record.seq, _diff(record.event, event, self)))
            self.fold(record)
        self.finished |= {task_id} if last else set()
        self.tell()
        self.take_outside()
        self.moved.set()
        self.moved = asyncio.Event()
        if (task := asyncio.current_task()) and task.cancelling():  # by what was just taken
            await asyncio.sleep(0)

    def take_outside(self, kinds: type[ev.Frozen] = ev.Frozen) -> None:
        """Fold the external events that are next: the user's, the clock's. A restart ends this life instead."""
        while (record := self.upcoming) and not record.task_id and not isinstance(record.event, RESTARTS):
            if not isinstance(record.event, kinds):
                return
            self.fold(record)
            self.tell()
        if record is None or not record.task_id:
            self.life_over.set()

    async def _wait_for_turn(self, task_id: str) -> ev.Record:
        """Return the next record once it is this task's. Raises _Stuck if it belongs to no running task."""
        while (record := self.upcoming) is None or record.task_id != task_id:
            if record is None or isinstance(record.event, RESTARTS):
                self.life_over.set()  # the record may be cut off between two events of one step
            elif record.task_id and record.task_id not in {task.get_name() for task in asyncio.all_tasks()}:
                self.stop(record, f"{task_id} is next; the other is not due")
            await self.moved.wait()
        return record

    def stop(self, record: ev.Record, instead: str) -> NoReturn:
        """End the verification at this record. Raises _Stuck."""
        if not self.divergences or self.divergences[-1].seq != record.seq:  # several tasks may find it at once
            difference = f"- {record.task_id}: {record.event.kind}\n+ {instead}"
            self.divergences.append(Divergence(record.seq, difference))
        raise _Stuck

    async def expect(self, *kinds: type[E]) -> E:
        """Return the next event of the current task, which must be of these kinds. Raises _Stuck."""
        record = await self._wait_for_turn(_get_task_id())
        if not isinstance(record.event, kinds):
            self.stop(record, f"{record.task_id}: {' or '.join(kind.__name__ for kind in kinds)} is due")
        return record.event

    # The executor. Its arguments are compared when the event that follows is appended.

    async def commit_baseline(self) -> ev.BaselineCommitted:
        return await self.expect(ev.BaselineCommitted)

    async def commit(self, *_: object, **__: object) -> str:
        return (await self.expect(ev.Committed)).commit

    async def train(self, *_: object, **__: object) -> ev.Outcome:
        return await self.expect(ev.Scored, ev.Crashed, ev.Pruned, ev.Aborted)

    async def promote(self, *_: object, **__: object) -> str:
        return (await self.expect(ev.Promoted)).commit

    # Models and tools. Only pure tools, which depend on the conversation alone, are run.

    async def pause(self, *_: object) -> None:
        """Return once all is known that was recorded during the pause."""
        await self._wait_for_turn(_get_task_id())

    async def reply(self, *_: object) -> Reply:
        """Return the recorded reply. The request is compared when the reply is appended."""
        event = await self.expect(ev.ModelReplied, ev.Waiting, ev.Reserved)
        while not isinstance(event, ev.ModelReplied):
            await self.append(_get_task_id(), event)
            event = await self.expect(ev.ModelReplied, ev.Waiting, ev.Reserved)
        return Reply(event.message, event.tokens.model_dump(), event.usd)

    async def use(self, tool: Tool, call: ToolCall) -> ToolResult:
        if tool.pure:
            return await tool.run(call)
        used = await self.expect(ev.ToolUsed)
        return ToolResult(used.result, used.is_error)


async def replay(tape: Tape, live: Callable[[Tape], Awaitable[object]]) -> Sequence[Divergence]:
    """Run every life of the recorded session again, and return all divergences.

    `live` runs the production loop over the tape; it is called once for each life. Where the loop cannot follow
    the recording, the last divergence says why, and `tape.upcoming` is the first event that was not verified.
    """
    with suppress(_Stuck):
        while first := tape.upcoming:
            for past in (tape.watchers, tape.finished, tape.life_over):
                past.clear()
            tape.fold(first)
            tape.take_outside(ev.GuidanceChanged)  # known before anything begins
            life = asyncio.ensure_future(live(tape))
            over = asyncio.ensure_future(tape.life_over.wait())
            await asyncio.sleep(0)
            tape.take_outside()
            await asyncio.wait({life, over}, return_when=asyncio.FIRST_COMPLETED)
            over.cancel()
            if not tape.state.ended:
                life.cancel()
            with suppress(asyncio.CancelledError):
                await life
            if (rest := tape.upcoming) and rest.task_id:
                tape.stop(rest, "nothing more is due")
    return tape.divergences


def _is_same(recorded: object, now: object) -> bool:
    """Return whether they agree in all fields that existed in the version that recorded the session."""
    if isinstance(recorded, ev.Frozen):
        known = recorded.model_fields_set
        return type(recorded) is type(now) and all(_is_same(getattr(recorded, n), getattr(now, n)) for n in known)
    if isinstance(recorded, float) and isinstance(now, float):  # sums of arrays round differently on another processor
        return isclose(recorded, now, rel_tol=1e-9, abs_tol=1e-9)
    if isinstance(recorded, tuple) and isinstance(now, tuple):
        old, new = cast("tuple[object, ...]", recorded), cast("tuple[object, ...]", now)
        return len(old) == len(new) and all(map(_is_same, old, new))
    return recorded == now


def _get_task_id() -> str:
    """Return the id of the running task: the loop names its asyncio tasks by it."""
    task = asyncio.current_task()
    assert task is not None
    return task.get_name()


def _diff(recorded: ev.Event, now: ev.Event, log: Log) -> str:
    """Return a line-by-line diff of two events, with the texts that they name written out."""

    def write(event: ev.Event) -> str:
        fields = event.model_dump(mode="json")
        for name in {"system", "opening", "source", "tools"} & fields.keys():
            with suppress(KeyError, UserError):
                fields[name] = log.get(fields[name]).splitlines()
        return json.dumps(fields, indent=1, ensure_ascii=False, sort_keys=True)

    return f"--- recorded\n+++ now\n{diff(write(recorded), write(now), context=1)}"
