"""Say in a few words what an event is, or show on a page everything about it."""

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

from orchestrator.core import events as ev
from orchestrator.core.text import format_signed, shorten
from orchestrator.session.store import EventLog
from orchestrator.views.output import make_printable
from orchestrator.views.summary import describe_certificate

TALK = ev.ConversationOpened | ev.ModelReplied | ev.ToolUsed
"""Events of a conversation with an agent: they change nothing that a view shows."""
WORDS = 100
"""Characters of a summary."""
LONGEST = 200_000
"""Characters of one text on a page about an event."""


def write_line(record: ev.Record) -> str:
    """Return a line for a walk through the session: number, time, task, kind, summary."""
    event = record.event
    return f"{record.seq:5}  {format_clock(record.at)}  {record.task_id:18}  {event.kind:11} {summarize(event)}"


def summarize(event: ev.Event) -> str:
    """Return what happened on one line, in a few words; of an event without a case of its own, its reason."""
    return make_printable(shorten(_describe(event), WORDS))


def _describe(event: ev.Event) -> str:
    match event:
        case ev.Started(name=name, crew=crew, limits=limits):
            return f"{name}: {limits.hours:g} hours, crew {crew}"
        case ev.Forked(parent=parent, style=style, crew=crew):
            return f"from {parent}, crew {crew} {style}"
        case ev.Proposed(proposal=proposal):
            return f"{proposal.title} ({proposal.family})"
        case ev.Committed(commit=commit, added=added, removed=removed, how=how):
            return f"{commit[:10]} {how} (+{added} −{removed})"
        case ev.BaselineCommitted(commit=commit) | ev.Promoted(commit=commit):
            return commit[:10]
        case ev.Granted(run=run, slot=slot, seed=seed):
            return f"run {run} in slot {slot}, seed {seed}"
        case ev.Scored(run=run, val_bpb=val_bpb, metrics=metrics):
            return f"run {run}, val_bpb {val_bpb:.6f}, {metrics.total_seconds:.0f} s"
        case ev.Crashed(failure=failure, message=message):
            return f"{failure}: {message}"
        case (ev.Kept() | ev.Discarded()) as verdict:
            change = f" ({format_signed(-verdict.gain)} ± {verdict.error:.4f})" * (verdict.probability is None)
            return f"{verdict.mean:.4f}{change}: {verdict.reason}"
        case ev.Certified() as found:
            return describe_certificate(found)
        case ev.ConversationOpened(agent=agent, model=model):
            return f"{agent} on {model}"
        case ev.ModelReplied(agent=agent, tokens=tokens, message=message):
            calls = ", ".join(b["name"] for b in message.get("content", []) if b.get("type") == "tool_use")
            return f"{agent}: {tokens.output} tokens, {calls or message.get('stop_reason')}"
        case ev.ToolUsed(tool=tool, result=result):
            return f"{tool}: {result}"
        case ev.Reflected(postmortem=ev.Postmortem(implemented="no", happened=happened)):
            return f"not tested: {happened}"
        case ev.Reflected(postmortem=postmortem):
            return f"{postmortem.verdict}: {postmortem.lesson}"
        case ev.GuidanceChanged(text=text):
            return text
        case ev.Waiting(until=until, reason=reason):
            return f"until {format_clock(until)}: {reason}"
        case _:
            return getattr(event, "reason", "")


def write_page(log: EventLog, records: Sequence[ev.Record], number: int) -> str:
    """Return everything about one event; of a conversation, all that the agent saw and said up to it."""
    record = records[number]
    if isinstance(record.event, TALK):
        parts = _write_conversation(log.get, [r for r in records[: number + 1] if r.task_id == record.task_id])
    else:
        parts = _write_fields(log.get, record.event)
    return make_printable("\n\n".join([write_line(record), *parts]))


def _write_conversation(read: Callable[[str], str], records: Sequence[ev.Record]) -> Iterator[str]:
    """Yield what was said since the task's latest opening."""
    start = max((i for i, record in enumerate(records) if isinstance(record.event, ev.ConversationOpened)), default=0)
    for record in records[start:]:
        match record.event:
            case ev.ConversationOpened(agent=agent, model=model, system=system, opening=opening):
                yield _write_section(f"{agent} on {model} is told", read(system))
                yield _write_section("and asked", read(opening))
            case ev.ModelReplied(message=message, agent=agent):
                for block in message.get("content", []):
                    yield _write_block(agent, block)
                yield f"({message.get('stop_reason')})"
            case ev.ToolUsed(tool=tool, result=result, is_error=wrong):
                yield _write_section(f"{tool} {'refuses' if wrong else 'answers'}", result)
            case other:
                yield summarize(other)


def _write_block(agent: str, block: dict[str, Any]) -> str:
    match block:
        case {"type": "text", "text": str() as text}:
            return _write_section(f"{agent} says", text)
        case {"type": "thinking", "thinking": str() as text}:
            return _write_section(f"{agent} thinks", text or "(not disclosed)")
        case {"type": "tool_use", "name": str() as name, "input": arguments}:
            return _write_section(f"{agent} calls {name}", _write_json(arguments))
        case _:
            return _write_section(f"{agent}: {block.get('type')}", _write_json(block))


def _write_fields(read: Callable[[str], str], event: ev.Event) -> Iterator[str]:
    """Yield all fields, with stored texts written out."""
    for name, value in event.model_dump(mode="json", exclude={"kind"}).items():
        if name in {"source", "log"} and isinstance(value, str) and value:
            yield _write_section(name, read(value))
        elif isinstance(value, str) and len(value) <= 60:
            yield f"{name}: {value}"
        else:
            yield _write_section(name, value if isinstance(value, str) else _write_json(value))


def _write_section(title: str, text: str) -> str:
    cut = f"\n… {len(text) - LONGEST:,} more characters" if len(text) > LONGEST else ""
    return f"── {shorten(title, WORDS)} ".ljust(80, "─") + f"\n{text[:LONGEST].rstrip()}{cut}"


def _write_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1)


def format_clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at).astimezone():%H:%M:%S}"
