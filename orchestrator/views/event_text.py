"""Describe an event in one line (`event.txt`), or in full on a page (`event_page.txt`)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from orchestrator.core import events as ev
from orchestrator.core.source import diff
from orchestrator.core.task import EXAMINED, Task
from orchestrator.core.text import UNPRINTABLE, make_printable, shorten
from orchestrator.ports import Log
from orchestrator.views.render import format_local, render_template

TALK = ev.ConversationOpened | ev.Reserved | ev.ModelReplied | ev.ModelReplaced | ev.ToolUsed
"""Events of a conversation with an agent, which change nothing that a view shows."""
BREAKS = ev.Resumed | ev.Forked | ev.Ended  # between lives; a task id is unique within one only
LONGEST = 200_000  # characters of one text on an event's page
CODE = re.compile(r"^```\w+\n(?s:.*?)^```$", re.MULTILINE)
HEAD, TAIL = 12, 3  # lines of a long text that remain when it is folded


def write_line(record: ev.Record, task: Task = EXAMINED, pattern: str = "%H:%M:%S") -> str:
    """Return a line of `replay` or log.txt: number, time in that pattern, task, kind, summary."""
    event, clock = record.event, format_local(record.at, pattern)
    lane = shorten(record.task_id, 40)
    return make_printable(f"{record.seq:5}  {clock}  {lane:18}  {event.kind:11} {summarize(event, task)}")


def write_json(record: ev.Record) -> str:
    """Return a record as one line of JSON, in which what would control a terminal is escaped."""
    return UNPRINTABLE.sub(lambda character: f"\\u{ord(character[0]):04x}", record.model_dump_json())


def summarize(event: ev.Event, task: Task = EXAMINED) -> str:
    """Return a few words on one line; for an event without a case in the template, its reason."""
    return make_printable(shorten(render_template("event.txt", event=event, task=task), 100))


@dataclass
class Conversation:
    """A conversation with an agent."""

    opened: ev.Record
    last: int  # number of its latest event, whose page shows all of it
    is_open: bool = True


def list_conversations(records: Sequence[ev.Record]) -> list[Conversation]:
    """Return all conversations in the order in which they began."""
    found, current = list[Conversation](), dict[str, Conversation]()
    for record in records:
        if isinstance(record.event, ev.ConversationOpened):
            current[record.task_id] = Conversation(record, record.seq)
            found.append(current[record.task_id])
        elif isinstance(record.event, BREAKS):
            found = [replace(talk, is_open=False) for talk in found]
            current.clear()
        elif talk := current.get(record.task_id):
            talk.last = record.seq if isinstance(record.event, TALK) else talk.last
            is_note = isinstance(record.event, ev.Noted) and not record.event.reason  # beside a proposal
            talk.is_open &= is_note or isinstance(record.event, TALK | ev.Waiting)
    return found


def write_page(log: Log, number: int, *, full: bool = True) -> str:
    """Return everything about one event; in a conversation, all that the agent saw and said up to it, and its outcome.

    Unless in full, prompts, code and results are folded.
    """
    records, record = log.records, log.records[number]
    talk, related = list[ev.Event](), _list_causes(records, number)
    if isinstance(record.event, TALK):
        talk = [r.event for r in records[: number + 1] if r.task_id == record.task_id]
        later = (r for r in records[number + 1 :] if r.task_id == record.task_id or isinstance(r.event, BREAKS))
        then = next(later, record)
        related = [] if isinstance(then.event, TALK | ev.Waiting | BREAKS) else [then]
    openings = (i for i, event in enumerate(talk) if isinstance(event, ev.ConversationOpened))
    facts = {"talk": talk[max(openings, default=0) :], "read": log.get, "summarize": summarize, "longest": LONGEST}
    fold_code = partial(CODE.sub, lambda block: _fold(block[0]))
    facts |= {"diff": diff, "fold": str if full else _fold, "fold_code": str if full else fold_code, "full": full}
    line, *lines = (write_line(each, log.state.session.task) for each in (record, *related))
    fields = {} if talk else record.event.model_dump(mode="json", exclude={"kind"})
    return render_template("event_page.txt", line=line, related=lines, fields=fields, **facts)


def _list_causes(records: Sequence[ev.Record], number: int) -> list[ev.Record]:
    """Return what led to an event: what happened to its experiment before, and the conversations, each by its end."""
    record, before = records[number], records[:number]
    about = getattr(record.event, "experiment", -1)
    life = list_conversations(before[_find_life(records, number) :])
    talks = {talk.last for talk in life if talk.opened.task_id == record.task_id}
    talks |= set(find_conversations(records[: number + 1], about))
    own = (r.seq for r in before if getattr(r.event, "experiment", None) == about and not isinstance(r.event, TALK))
    return [records[seq] for seq in sorted({*own, *talks})]


def find_conversations(records: Sequence[ev.Record], experiment: int, agent: str = "") -> list[int]:
    """Return the number of the last event of each conversation that led to an experiment or was about it."""
    origin = (r for r in records if isinstance(r.event, ev.Proposed) and r.event.experiment == experiment)
    proposed = {r.task_id: r.seq for r in origin}
    begun = _find_life(records, max(proposed.values(), default=0))  # what was cut off before led to nothing
    return [
        talk.last
        for talk in list_conversations(records[begun:])
        if isinstance(opened := talk.opened.event, ev.ConversationOpened)
        and agent in ("", opened.agent)
        and (opened.experiment == experiment or talk.last < proposed.get(talk.opened.task_id, 0))
    ]


def _find_life(records: Sequence[ev.Record], number: int) -> int:
    """Return the number of the event after which the life of that event began."""
    return max((r.seq for r in records[:number] if isinstance(r.event, BREAKS)), default=0)


def _fold(text: str) -> str:
    lines = text.splitlines()
    if (hidden := len(lines) - HEAD - TAIL) < HEAD:
        return text
    return "\n".join([*lines[:HEAD], f"… {hidden} more lines (--full shows them)", *lines[-TAIL:]])
