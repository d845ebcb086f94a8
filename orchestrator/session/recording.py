"""Record what passes between agents, models and tools. In a verification the tape answers instead."""

import asyncio
import json
from dataclasses import replace
from typing import Any, Protocol, cast

from orchestrator.core import events as ev
from orchestrator.policy.limits import explain_cap
from orchestrator.ports import Log
from orchestrator.session.replay import Tape
from subagents.agent import Agent, Json, OnWait, Reply, Request
from subagents.tools import Tool, ToolCall, ToolResult

MOST_LEVELS = 200  # levels of lists and objects of a model's message; an event cannot hold many more
MOST_BYTES = 8 << 20  # of a model's message as JSON: two million tokens; what is written of it must be read again


class Model(Protocol):
    """Replies over the network, or as a program."""

    def at_most(self, request: Request) -> float | None: ...
    async def reply(self, request: Request, on_wait: OnWait) -> Reply: ...


class Live:
    """Models and tools that act. The highest possible cost of pending requests counts as spent."""

    def __init__(self, model: Model, log: Log) -> None:
        """Take the limit and the dollars spent so far from the state of the log, which must have a first event."""
        self.model, self.log = model, log
        self.limit = log.state.session.limits.usd
        self.spent = log.state.usd
        self.reserved: list[float] = []
        self.settled = asyncio.Condition()

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def reply(self, request: Request, on_wait: OnWait, experiment: int, task_id: str) -> Reply:
        if cap := explain_cap(self.log.state, experiment):
            return Reply.from_error("capped", cap)
        most = self.model.at_most(request) or 0.0
        if not await self._reserve(most):
            reason = f"the next request could exceed ${self.limit:g}"
            await self.log.append("", ev.StopAsked(reason=reason))
            return Reply.from_error("unaffordable", reason)
        usd = most  # one that is cancelled may still be billed
        try:
            if self.limit is not None and most:
                await self.log.append(task_id, ev.Reserved(experiment=experiment, agent=request.agent, usd=most))
            reply = await self.model.reply(request, on_wait)
            usd = reply.usd or 0.0
            fault = _find_fault(reply.message)
            message = Reply.from_error("failed", fault).message if fault else _rename_calls(reply.message, request)
            return replace(reply, message=message)
        finally:
            async with self.settled:
                self.spent += usd
                self.reserved.remove(most)
                self.settled.notify_all()

    async def use(self, tool: Tool, call: ToolCall) -> ToolResult:
        return await tool.run(call)

    async def _reserve(self, most: float) -> bool:
        """Return whether the limit allows the cost, after waiting for requests that may cost less than was reserved."""

        def fits() -> bool:
            return self.limit is None or self.spent + sum(self.reserved) + most <= self.limit

        async with self.settled:
            await self.settled.wait_for(lambda: fits() or not self.reserved)
            if affordable := fits():
                self.reserved.append(most)
            return affordable


def _rename_calls(message: Json, request: Request) -> Json:
    """Return a message whose calls have ids of their own: some servers count anew in each message."""
    said = [part for each in request.messages for part in each.get("content", ())]
    known, content = {part.get("tool_use_id") for part in said}, list[Json]()
    for i, block in enumerate(message["content"]):
        is_call = block["type"] == "tool_use"
        content.append(block | {"id": f"{len(request.messages)}_{i}"} if is_call and block["id"] in known else block)
        known |= {block["id"]} if is_call else set()
    return message | {"content": content}


def _find_fault(message: Json) -> str:
    """Return why no event can hold a model's message; empty if one can."""
    if _is_deeper(message, MOST_LEVELS):
        return f"the answer is nested in more than {MOST_LEVELS} levels"
    is_long = len(json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")) > MOST_BYTES
    return f"the answer is longer than {MOST_BYTES >> 20} MiB" * is_long


def _is_deeper(value: object, levels: int) -> bool:
    """Return whether a JSON value has more levels."""
    found = [*cast("dict[str, object]", value).values()] if isinstance(value, dict) else value
    inner = cast("list[object]", found) if isinstance(found, list) else []
    return not levels or any(_is_deeper(item, levels - 1) for item in inner)


class Recording:
    """The environment of one conversation (a subagents.agent.Environment): forwards everything and logs it."""

    def __init__(self, outside: Live | Tape, log: Log, task_id: str, experiment: int) -> None:
        self.outside, self.log, self.task_id, self.experiment = outside, log, task_id, experiment
        self.used = set[str]()  # calls whose results are events of their own
        self.known = 0  # how much of what was said beside these the conversation's events hold

    async def begin(self, agent: Agent[Any], opening: str) -> None:
        prompt, put = agent.prompt, self.log.put
        opened = ev.ConversationOpened(
            experiment=self.experiment,
            agent=agent.name,
            model=prompt.model,
            system=put(prompt.system),
            opening=put(opening),
            tools=put("\n".join(json.dumps(schema, ensure_ascii=False) for schema in agent.schemas)),
            effort=prompt.effort,
            limits={name: getattr(prompt, name) for name in ("max_turns", "max_tokens", "max_spent")},
        )
        await self.log.append(self.task_id, opened)

    async def replace_model(self, reason: str) -> None:
        await self.log.append(self.task_id, ev.ModelReplaced(experiment=self.experiment, reason=reason))

    async def pause(self, seconds: float, until: float, reason: str) -> None:
        await self._wait(until, reason)
        await self.outside.pause(seconds)

    async def reply(self, request: Request) -> Reply:
        reply = await self.outside.reply(request, self._wait, self.experiment, self.task_id)
        parts = [part for said in request.messages if said.get("role") == "user" for part in said["content"]]
        words = [part.get("text", part.get("content")) for part in parts if part.get("tool_use_id") not in self.used]
        told, self.known = words[self.known or len(words) :], len(words)
        replied = ev.ModelReplied(
            agent=request.agent,
            experiment=self.experiment,
            request=request.digest,
            told=tuple(told),
            message=reply.message,
            tokens=ev.Tokens(**reply.tokens),
            usd=reply.usd,
        )
        await self.log.append(self.task_id, replied)
        return reply

    async def use(self, tool: Tool, call: ToolCall) -> ToolResult:
        result = await self.outside.use(tool, call)
        self.used.add(call.id)
        used = ev.ToolUsed(tool=tool.name, call=call.id, result=result.text, is_error=result.is_error)
        await self.log.append(self.task_id, used)
        return result

    async def _wait(self, until: float, reason: str) -> None:
        await self.log.append(self.task_id, ev.Waiting(until=until, reason=reason))
