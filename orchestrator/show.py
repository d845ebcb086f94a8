"""An event as a person reads it: one line in a list, or a page with everything that an agent saw and said."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from orchestrator.events import (
    Abandoned,
    Aborted,
    Closed,
    Committed,
    Crashed,
    Discarded,
    Ended,
    Event,
    Failed,
    Fitted,
    Forked,
    Granted,
    Guided,
    Kept,
    Opened,
    Promoted,
    Proposed,
    Record,
    Reflected,
    Refused,
    Replied,
    Scored,
    Started,
    StopAsked,
    Unanswered,
    Used,
    Waiting,
)
from orchestrator.session import Log


def line(record: Record) -> str:
    """Number, time, lane, what happened."""
    clock = f"{datetime.fromtimestamp(record.at).astimezone():%H:%M:%S}"
    return f"{record.seq:5}  {clock}  {record.lane:18}  {record.event.kind:11} {gist(record.event)}"


def gist(event: Event) -> str:
    """What happened, in a few words."""
    match event:
        case Started(name=name, crew=crew, limits=limits):
            return f"{name}: {limits.hours:g} hours, crew {crew}"
        case Forked(parent=parent, style=style, crew=crew):
            return f"from {parent}, crew {crew} {style}".rstrip()
        case Proposed(proposal=proposal):
            return proposal.title
        case Committed(commit=commit, added=added, removed=removed):
            return f"{commit[:10]} (+{added} −{removed})"
        case Fitted(commit=commit) | Promoted(commit=commit):
            return commit[:10]
        case Granted(run=run, slot=slot, seed=seed):
            return f"run {run} in slot {slot}, seed {seed}"
        case Scored(val_bpb=val_bpb):
            return f"val_bpb {val_bpb:.6f}"
        case Crashed(failure=failure, message=message):
            return f"{failure}: {message}"
        case Opened(agent=agent, model=model):
            return f"{agent} on {model}"
        case Replied(agent=agent, tokens=tokens, message=message):
            calls = ", ".join(b["name"] for b in message.get("content", []) if b.get("type") == "tool_use")
            return f"{agent}: {tokens.output} tokens, {calls or message.get('stop_reason')}"
        case Used(tool=tool, result=result):
            return f"{tool}: {_short(result)}"
        case Reflected(postmortem=postmortem):
            return f"{postmortem.verdict}: {_short(postmortem.lesson)}"
        case Guided(text=text):
            return _short(text)
        case Kept(reason=reason) | Discarded(reason=reason) | Failed(reason=reason) | Refused(reason=reason):
            return reason
        case Abandoned(reason=reason) | Aborted(reason=reason) | Closed(reason=reason) | Ended(reason=reason):
            return reason
        case StopAsked(reason=reason) | Unanswered(reason=reason) | Waiting(reason=reason):
            return reason
        case _:
            return ""


def page(log: Log, records: Sequence[Record], number: int) -> str:
    """Everything about one event; of a conversation, all that the agent saw and said up to it."""
    record = records[number]
    parts = [line(record)]
    if isinstance(record.event, Opened | Replied | Used):
        parts += _conversation(log, [r for r in records[: number + 1] if r.lane == record.lane])
    else:
        parts += list(_fields(log, record.event))
    return "\n\n".join(parts)


def _conversation(log: Log, records: Sequence[Record]) -> Iterator[str]:
    """From the latest opening of the lane."""
    start = max((i for i, record in enumerate(records) if isinstance(record.event, Opened)), default=0)
    for record in records[start:]:
        match record.event:
            case Opened(agent=agent, model=model, system=system, opening=opening):
                yield _titled(f"{agent} on {model} is told", log.get(system))
                yield _titled("and asked", log.get(opening))
            case Replied(message=message, agent=agent):
                for block in message.get("content", []):
                    yield _block(agent, block)
                yield f"({message.get('stop_reason')})"
            case Used(tool=tool, result=result, is_error=wrong):
                yield _titled(f"{tool} {'refuses' if wrong else 'answers'}", result)
            case other:
                yield gist(other)


def _block(agent: str, block: dict[str, Any]) -> str:
    match block:
        case {"type": "text", "text": str() as text}:
            return _titled(f"{agent} says", text)
        case {"type": "thinking", "thinking": str() as text}:
            return _titled(f"{agent} thinks", text or "(kept to itself)")
        case {"type": "tool_use", "name": str() as name, "input": arguments}:
            return _titled(f"{agent} calls {name}", json.dumps(arguments, indent=2, ensure_ascii=False))
        case _:
            return _titled(f"{agent}: {block.get('type')}", json.dumps(block, ensure_ascii=False)[:400])


def _fields(log: Log, event: Event) -> Iterator[str]:
    """All fields; a stored text is written out."""
    for name, value in event.model_dump(mode="json", exclude={"kind"}).items():
        if name in {"source", "log"} and isinstance(value, str) and value:
            yield _titled(name, log.get(value))
        elif isinstance(value, str) and len(value) > 60:
            yield _titled(name, value)
        else:
            yield f"{name}: {json.dumps(value, ensure_ascii=False, indent=1) if isinstance(value, dict) else value}"


def _titled(title: str, text: str) -> str:
    return f"── {title} " + "─" * max(4, 76 - len(title)) + f"\n{text.rstrip()}"


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 100 else flat[:99] + "…"
