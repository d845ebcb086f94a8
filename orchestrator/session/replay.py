"""A tape is a recorded session that answers for models and machines, and compares every event with what was recorded.

The production loop runs over it. Each lane waits until the next record is its own, so a night that overlapped
steps is replayed in exactly the order in which it happened.
"""

import asyncio
import difflib
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

from orchestrator.core import events as ev
from orchestrator.session.store import EventLog

E = TypeVar("E", bound=ev.Event)
T = TypeVar("T")
Reader = Callable[[ev.Digest], str]


class Diverged(Exception):  # noqa: N818 - it is a finding, not a fault
    """The session went another way than the recording; the message names the first event that differs, and how."""

    def __init__(self, seq: int, difference: str) -> None:
        super().__init__(f"event {seq} differs\n{difference}")
        self.seq, self.difference = seq, difference


class Tape(EventLog):
    """A recorded session played back: a log that knows what comes next, and a lab that has it ready."""

    def __init__(self, recorded: Sequence[ev.Record], read: Reader, until: int | None = None) -> None:
        """`read` gives the recorded texts; the tape ends after `until` records (default: all)."""
        super().__init__()
        self.recorded = recorded[:until]
        self.read = read
        self.moved = asyncio.Event()
        self.life_over = asyncio.Event()

    def get(self, name: ev.Digest) -> str:
        """A text of this replay, or of the recording. Raises KeyError."""
        return self.texts[name] if name in self.texts else self.read(name)

    @property
    def upcoming(self) -> ev.Record | None:
        return self.recorded[len(self.records)] if len(self.records) < len(self.recorded) else None

    async def append(self, task_id: str, *events: ev.Event, last: bool = False) -> None:
        """Wait for the lane's turn; compare each event with the recorded one; take it in. Raises Diverged."""
        for event in events:
            record = await self.turn(task_id)
            if not _is_same(record.event, event):
                raise Diverged(record.seq, self._difference(record.event, event))
            self.fold(record)
        self.finished |= {task_id} if last else set()
        self.tell()
        self.outside()
        self.moved.set()
        self.moved = asyncio.Event()

    def outside(self) -> None:
        """Take in what came from outside: the user, the clock. A restart ends this life instead."""
        while (record := self.upcoming) and not record.task_id and not isinstance(record.event, ev.Resumed | ev.Forked):
            self.fold(record)
            self.tell()
        if record is None or not record.task_id:
            self.life_over.set()

    async def turn(self, task_id: str) -> ev.Record:
        """The next record, once it is this lane's. Raises Diverged when it is nobody's who is at work."""
        while True:
            record = self.upcoming
            if record and record.task_id == task_id:
                return record
            if record and record.task_id and not any(_is_running(task, record.task_id) for task in asyncio.all_tasks()):
                raise Diverged(
                    record.seq, f"- {record.task_id}: {record.event.kind}\n+ {task_id} is next; the other is not due"
                )
            await self.moved.wait()

    async def expect(self, *kinds: type[E]) -> E:
        """The next event of the current lane, which must be of these kinds. Raises Diverged."""
        record = await self.turn(_get_task_id())
        if not isinstance(record.event, kinds):
            due = " or ".join(kind.__name__ for kind in kinds)
            raise Diverged(record.seq, f"- {record.task_id}: {record.event.kind}\n+ {record.task_id}: {due} is due")
        return record.event

    # What the lab did.

    async def commit_baseline(self) -> ev.BaselineCommitted:
        return await self.expect(ev.BaselineCommitted)

    async def commit(self, experiment: int, parent: str, source: str, message: str) -> str:
        del experiment, parent, source, message  # told by the event that is compared next
        return (await self.expect(ev.Committed)).commit

    async def train(self, granted: ev.Granted, source: str) -> ev.Outcome:
        del granted, source
        return await self.expect(ev.Scored, ev.Crashed, ev.Pruned, ev.Aborted)

    async def promote(self, experiment: int, parent: str, source: str, message: str) -> str:
        del experiment, parent, source, message
        return (await self.expect(ev.Promoted)).commit

    # What models and tools said.

    async def reply(self, request: ev.Digest) -> ev.ModelReplied:
        """The recorded reply; the request must be the recorded one to the letter."""
        while isinstance(waiting := await self.expect(ev.ModelReplied, ev.Waiting), ev.Waiting):
            await self.append(_get_task_id(), waiting)
        if waiting.request != request:
            raise Diverged(len(self.records), f"- request {waiting.request}\n+ request {request}")
        return waiting

    async def used(self) -> ev.ToolUsed:
        return await self.expect(ev.ToolUsed)

    def _difference(self, old: ev.Event, new: ev.Event) -> str:
        """A line-by-line diff of two events, with the texts that they name written out where those differ."""
        before, after = _write_lines(old, self.get), _write_lines(new, self.get)
        return "\n".join(list(difflib.unified_diff(before, after, "recorded", "now", lineterm="", n=1)))


async def replay(tape: Tape, live: Callable[[Tape], Awaitable[T]]) -> None:
    """Live every life of the recorded session again. Raises Diverged.

    `live` runs the production loop over the tape; it is called once for each life.
    """
    while (record := tape.upcoming) is not None:
        tape.watchers.clear()
        tape.finished.clear()
        tape.life_over.clear()
        tape.fold(record)
        tape.outside()
        life = asyncio.ensure_future(live(tape))
        over = asyncio.ensure_future(tape.life_over.wait())
        await asyncio.wait({life, over}, return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        if not life.done() and tape.state.ended:
            await asyncio.wait({life})
        if not life.done():
            life.cancel()
        with suppress(asyncio.CancelledError):
            await life
        if (rest := tape.upcoming) and rest.task_id:
            raise Diverged(rest.seq, f"- {rest.task_id}: {rest.event.kind}\n+ nothing more is due")


def _is_same(recorded: ev.Event, now: ev.Event) -> bool:
    """Whether they agree in everything that the version which recorded it knew of."""
    return type(recorded) is type(now) and _is_within(recorded.model_dump(exclude_unset=True), now.model_dump())


def _is_within(old: Any, new: Any) -> bool:
    if isinstance(old, dict) and isinstance(new, dict):
        fields, others = cast("dict[str, Any]", old), cast("dict[str, Any]", new)
        return all(name in others and _is_within(value, others[name]) for name, value in fields.items())
    if isinstance(old, tuple | list) and isinstance(new, tuple | list):
        items, those = cast("list[Any]", old), cast("list[Any]", new)
        return len(items) == len(those) and all(map(_is_within, items, those))
    return old == new


def _get_task_id() -> str:
    """The lane of the running task: the loop names its tasks by it."""
    task = asyncio.current_task()
    assert task is not None
    return task.get_name()


def _is_running(task: "asyncio.Task[object]", task_id: str) -> bool:
    return task.get_name() == task_id and not task.done()


def _write_lines(event: ev.Event, read: Reader) -> list[str]:
    fields = event.model_dump(mode="json")
    for name in ("system", "opening", "source", "log"):
        if isinstance(event, ev.ConversationOpened | ev.Committed) and name in fields:
            with suppress(KeyError):
                fields[name] = read(fields[name]).splitlines()
    return json.dumps(fields, indent=1, ensure_ascii=False, sort_keys=True).splitlines()
