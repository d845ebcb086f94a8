"""Describe an event in one line (`event.txt`), or in full on a page (`event_page.txt`)."""

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile

from orchestrator.core import events as ev
from orchestrator.core.source import diff
from orchestrator.core.task import EXAMINED, Task
from orchestrator.core.text import shorten
from orchestrator.ports import Log
from orchestrator.views.output import make_printable
from orchestrator.views.render import format_local, render_template

TALK = ev.ConversationOpened | ev.ModelReplied | ev.ModelReplaced | ev.ToolUsed
"""Events of a conversation with an agent, which change nothing that a view shows."""
LONGEST = 200_000
"""Characters of one text on an event's page."""
CODE = re.compile(r"^```\w+\n(?s:.*?)^```$", re.MULTILINE)
HEAD, TAIL = 12, 3
"""Lines of a long text that remain when it is folded."""


def write_line(record: ev.Record, task: Task = EXAMINED) -> str:
    """Return a line of `replay`: number, time, task, kind, summary."""
    event, clock = record.event, format_local(record.at, "%H:%M:%S")
    return f"{record.seq:5}  {clock}  {record.task_id:18}  {event.kind:11} {summarize(event, task)}"


def summarize(event: ev.Event, task: Task = EXAMINED) -> str:
    """Return a few words on one line; for an event without a case in the template, its reason."""
    return make_printable(shorten(render_template("event.txt", event=event, task=task), 100))


def write_page(log: Log, records: Sequence[ev.Record], number: int, *, full: bool = True) -> str:
    """Return everything about one event; in a conversation, all that the agent saw and said up to it.

    Unless in full, prompts, code and results are folded.
    """
    record, talk = records[number], list[ev.Event]()
    if isinstance(record.event, TALK):
        talk = [r.event for r in records[: number + 1] if r.task_id == record.task_id]
    openings = (i for i, event in enumerate(talk) if isinstance(event, ev.ConversationOpened))
    facts = {"talk": talk[max(openings, default=0) :], "read": log.get, "summarize": summarize, "longest": LONGEST}
    facts |= {"diff": diff, "fold": str if full else _fold, "fold_code": str if full else _fold_code}
    fields = {} if talk else record.event.model_dump(mode="json", exclude={"kind"})
    return render_template("event_page.txt", line=write_line(record, log.state.session.task), fields=fields, **facts)


def list_conversations(records: Sequence[ev.Record], experiment: int, agent: str = "") -> Iterator[int]:
    """Yield the number of the last event of each conversation that led to an experiment or was about it."""
    proposed = {r.task_id for r in records if isinstance(r.event, ev.Proposed) and r.event.experiment == experiment}
    for first in records:
        if not isinstance(opened := first.event, ev.ConversationOpened) or agent not in ("", opened.agent):
            continue
        if opened.experiment == experiment or first.task_id in proposed:
            later = (r for r in records[first.seq + 1 :] if r.task_id == first.task_id and isinstance(r.event, TALK))
            yield max([first.seq, *(r.seq for r in takewhile(lambda r: r.event.kind != "opened", later))])


def _fold(text: str) -> str:
    lines = text.splitlines()
    if (hidden := len(lines) - HEAD - TAIL) < HEAD:
        return text
    return "\n".join([*lines[:HEAD], f"… {hidden} more lines (--full shows them)", *lines[-TAIL:]])


def _fold_code(text: str) -> str:
    return CODE.sub(lambda block: _fold(block[0]), text)
