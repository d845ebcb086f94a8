"""An event as a person reads it: one line in a list, or a page with everything that an agent saw and said."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from orchestrator.core import events as ev
from orchestrator.session.store import EventLog


def write_line(record: ev.Record) -> str:
    """Number, time, lane, what happened."""
    clock = f"{datetime.fromtimestamp(record.at).astimezone():%H:%M:%S}"
    return f"{record.seq:5}  {clock}  {record.task_id:18}  {record.event.kind:11} {summarize(record.event)}"


def summarize(event: ev.Event) -> str:
    """What happened, in a few words."""
    match event:
        case ev.Started(name=name, crew=crew, limits=limits):
            return f"{name}: {limits.hours:g} hours, crew {crew}"
        case ev.Forked(parent=parent, style=style, crew=crew):
            return f"from {parent}, crew {crew} {style}".rstrip()
        case ev.Proposed(proposal=proposal):
            return proposal.title
        case ev.Committed(commit=commit, added=added, removed=removed):
            return f"{commit[:10]} (+{added} −{removed})"
        case ev.BaselineCommitted(commit=commit) | ev.Promoted(commit=commit):
            return commit[:10]
        case ev.Granted(run=run, slot=slot, seed=seed):
            return f"run {run} in slot {slot}, seed {seed}"
        case ev.Scored(val_bpb=val_bpb):
            return f"val_bpb {val_bpb:.6f}"
        case ev.Crashed(failure=failure, message=message):
            return f"{failure}: {message}"
        case ev.ConversationOpened(agent=agent, model=model):
            return f"{agent} on {model}"
        case ev.ModelReplied(agent=agent, tokens=tokens, message=message):
            calls = ", ".join(b["name"] for b in message.get("content", []) if b.get("type") == "tool_use")
            return f"{agent}: {tokens.output} tokens, {calls or message.get('stop_reason')}"
        case ev.ToolUsed(tool=tool, result=result):
            return f"{tool}: {_shorten(result)}"
        case ev.Reflected(postmortem=postmortem):
            return f"{postmortem.verdict}: {_shorten(postmortem.lesson)}"
        case ev.GuidanceChanged(text=text):
            return _shorten(text)
        case (
            ev.Kept(reason=reason)
            | ev.Discarded(reason=reason)
            | ev.Failed(reason=reason)
            | ev.Pruned(reason=reason)
            | ev.Refused(reason=reason)
        ):
            return reason
        case (
            ev.Abandoned(reason=reason)
            | ev.Aborted(reason=reason)
            | ev.ReflectionSkipped(reason=reason)
            | ev.Ended(reason=reason)
        ):
            return reason
        case ev.StopAsked(reason=reason) | ev.Unanswered(reason=reason) | ev.Waiting(reason=reason):
            return reason
        case _:
            return ""


def write_page(log: EventLog, records: Sequence[ev.Record], number: int) -> str:
    """Everything about one event; of a conversation, all that the agent saw and said up to it."""
    record = records[number]
    parts = [write_line(record)]
    if isinstance(record.event, ev.ConversationOpened | ev.ModelReplied | ev.ToolUsed):
        parts += _write_conversation(log, [r for r in records[: number + 1] if r.task_id == record.task_id])
    else:
        parts += list(_write_fields(log, record.event))
    return "\n\n".join(parts)


def _write_conversation(log: EventLog, records: Sequence[ev.Record]) -> Iterator[str]:
    """From the latest opening of the lane."""
    start = max((i for i, record in enumerate(records) if isinstance(record.event, ev.ConversationOpened)), default=0)
    for record in records[start:]:
        match record.event:
            case ev.ConversationOpened(agent=agent, model=model, system=system, opening=opening):
                yield _write_section(f"{agent} on {model} is told", log.get(system))
                yield _write_section("and asked", log.get(opening))
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
            return _write_section(f"{agent} thinks", text or "(kept to itself)")
        case {"type": "tool_use", "name": str() as name, "input": arguments}:
            return _write_section(f"{agent} calls {name}", json.dumps(arguments, indent=2, ensure_ascii=False))
        case _:
            return _write_section(f"{agent}: {block.get('type')}", json.dumps(block, ensure_ascii=False)[:400])


def _write_fields(log: EventLog, event: ev.Event) -> Iterator[str]:
    """All fields; a stored text is written out."""
    for name, value in event.model_dump(mode="json", exclude={"kind"}).items():
        if name in {"source", "log"} and isinstance(value, str) and value:
            yield _write_section(name, log.get(value))
        elif isinstance(value, str) and len(value) > 60:
            yield _write_section(name, value)
        else:
            yield f"{name}: {json.dumps(value, ensure_ascii=False, indent=1) if isinstance(value, dict) else value}"


def _write_section(title: str, text: str) -> str:
    return f"── {title} " + "─" * max(4, 76 - len(title)) + f"\n{text.rstrip()}"


def _shorten(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 100 else flat[:99] + "…"
