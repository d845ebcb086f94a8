"""The kernel of every agent: a prompt, a few tools and an answer type; `ask` is the only loop that talks to a model.

An answer is a call of the tool `submit` that validates. All else that a model may do is bounded: turns, bad answers,
the length of what a tool returns. A model that fails is a reply that says so, so that a replay needs no exceptions.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from subagents import traces
from subagents.prompts import Prompt
from subagents.tools import Tool, ToolCall, ToolResult, describe_faults

T = TypeVar("T", bound=BaseModel)
Json = dict[str, Any]

SUBMIT = "submit"
BAD_ANSWERS = 2
"""So many times a conversation goes on after something that was no answer; a model that errs thrice will err again."""
CACHE = "<!-- cache -->"
"""Stands in an opening behind what stays the same from one experiment to the next."""
STUB = "(left out for want of room; call the tool again if you need it)"


class NoAnswer(Exception):  # noqa: N818 - it is an answer of sorts, not an error
    """An agent came to no usable answer; the step is given up, never the session."""


def accept_any(answer: BaseModel) -> str:
    """What is wrong with an answer beyond its shape: nothing."""
    del answer
    return ""


@dataclass(frozen=True)
class Agent(Generic[T]):
    """A prompt, a few tools and an answer type."""

    name: str
    prompt: Prompt
    answer: type[T]
    tools: tuple[Tool, ...] = ()
    accept: Callable[[T], str] = accept_any
    """Says what is wrong with an answer of the right shape; empty where nothing is."""

    @property
    def schemas(self) -> tuple[Json, ...]:
        """Its tools as the model is told of them; the answer is one of them."""
        answer = {
            "name": SUBMIT,
            "description": "Hand in your answer. It ends the conversation.",
            "input_schema": self.answer.model_json_schema(),
        }
        return (*(tool.schema for tool in self.tools), answer)


@dataclass(frozen=True)
class Request:
    """Everything that is sent to a model for one reply."""

    agent: str
    model: str
    effort: str
    max_tokens: int
    system: str
    tools: tuple[Json, ...]
    messages: tuple[Json, ...]

    @property
    def digest(self) -> str:
        """Names the request: the first 16 hexadecimal digits of the SHA-256 of its canonical JSON."""
        canonical = json.dumps(vars(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TokenCounts:
    """Of one request, as the provider counts them; `input` without what the cache took."""

    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0


@dataclass(frozen=True)
class Reply:
    """A model's whole message as it came, thinking and signatures included; or the fault that came instead."""

    message: Json
    tokens: TokenCounts = TokenCounts()
    usd: float | None = None

    @classmethod
    def fault(cls, stop_reason: str, reason: str) -> "Reply":
        """No message came: `failed`, or `unaffordable`, or the context was full. It costs nothing."""
        return cls({"content": [], "stop_reason": stop_reason, "error": reason}, usd=0.0)

    @property
    def stop_reason(self) -> str:
        return self.message["stop_reason"]

    @property
    def content(self) -> list[Json]:
        return self.message["content"]

    @property
    def calls(self) -> list[ToolCall]:
        blocks = (block for block in self.content if block["type"] == "tool_use")
        return [ToolCall(block["id"], block["name"], block["input"]) for block in blocks]


class Environment(Protocol):
    """All that an agent can reach: a model that replies, and tools that act."""

    async def opened(self, agent: str, model: str, system: str, opening: str) -> None:
        """A conversation begins."""
        ...

    async def reply(self, request: Request) -> Reply:
        """The model's next message; a fault is a reply, too."""
        ...

    async def use(self, tool: Tool, call: ToolCall) -> ToolResult:
        """What a tool says; its failure is a result, too."""
        ...


async def ask(agent: Agent[T], world: Environment, opening: str) -> T:
    """Hold a conversation until the agent hands in a valid answer. Raises NoAnswer."""
    prompt = agent.prompt
    with traces.trace_agent(agent.name, prompt.model):
        await world.opened(agent.name, prompt.model, prompt.system, opening)
        talk = _Conversation(agent, prompt.max_tokens, [_make_opening(opening)])
        for left in reversed(range(prompt.max_turns)):
            reply = await world.reply(talk.request)
            match reply.stop_reason:
                case "tool_use" if reply.calls:
                    if answer := await talk.act(reply, world):
                        return answer
                    if left == 1:
                        talk.tell(f"One turn is left: call `{SUBMIT}` now.")
                case "max_tokens":
                    talk.cut_off()
                case "model_context_window_exceeded":
                    talk.shorten()
                case "failed" | "unaffordable":
                    raise NoAnswer(str(reply.message.get("error", reply.stop_reason)))
                case "refusal":
                    raise NoAnswer(f"the {agent.name}'s model refused to answer")
                case _:
                    talk.spoken(reply)
    raise NoAnswer(f"the {agent.name} gave no answer in {prompt.max_turns} turns")


@dataclass
class _Conversation(Generic[T]):
    """A conversation under way."""

    agent: Agent[T]
    max_tokens: int
    messages: list[Json]
    bad: int = 0
    last: list[tuple[str, Json]] = field(default_factory=list[tuple[str, Json]])
    """What the message before called."""

    @property
    def request(self) -> Request:
        prompt = self.agent.prompt
        messages = tuple(self.messages)
        return Request(
            self.agent.name, prompt.model, prompt.effort, self.max_tokens, prompt.system, self.agent.schemas, messages
        )

    async def act(self, reply: Reply, world: Environment) -> T | None:
        """Do what the message asks, in its order; an answer ends it."""
        results: list[Json] = []
        failed = ""
        for call in reply.calls:
            if call.name == SUBMIT:
                answer, result = self.judge(call, failed)
                if answer is not None:
                    return answer
            else:
                result = await self.use(call, world)
                failed = failed or (call.name if result.is_error else "")
            results.append(_make_result_block(call, result))
        called = [(call.name, call.input) for call in reply.calls]
        if failed and called == self.last:
            self.strike(f"it repeated a call of `{failed}` that had failed")
        self.last = called
        self.messages += [_make_assistant_message(reply), _make_user_message(results)]
        return None

    async def use(self, call: ToolCall, world: Environment) -> ToolResult:
        tools = {tool.name: tool for tool in self.agent.tools}
        if call.name not in tools:
            return ToolResult(
                f"There is no tool {call.name!r}; there are {', '.join([*tools, SUBMIT])}.", is_error=True
            )
        with traces.trace_tool(call.name, call.id):
            return await world.use(tools[call.name], call)

    def judge(self, call: ToolCall, failed: str) -> tuple[T | None, ToolResult]:
        """The answer, if it is one; else what to tell the model. Raises NoAnswer at the third bad one."""
        if failed:
            # Not a bad answer: it was given before the model could see that a call had failed.
            reason = f"Not handed in, because `{failed}` failed in the same message. Mend that first."
            return None, ToolResult(reason, is_error=True)
        try:
            answer = self.agent.answer.model_validate(call.input)
        except ValidationError as error:
            reason = describe_faults(error)
        else:
            if not (reason := self.agent.accept(answer)):
                return answer, ToolResult("")
        self.strike(f"its answer was not valid: {reason}")
        return None, ToolResult(f"Not accepted: {reason}", is_error=True)

    def strike(self, reason: str) -> None:
        self.bad += 1
        if self.bad > BAD_ANSWERS:
            raise NoAnswer(f"the {self.agent.name} came to no answer: {reason}")

    def tell(self, text: str) -> None:
        """Add to what the model hears next."""
        last = self.messages[-1]
        self.messages[-1] = last | {"content": [*last["content"], {"type": "text", "text": text}]}

    def spoken(self, reply: Reply) -> None:
        """It talked, or stopped for a reason unknown; tools of such a message are not run."""
        self.strike(f"it ended with {reply.stop_reason!r} instead of a call of `{SUBMIT}`")
        if reply.content:
            unrun = ToolResult("Not run: the message had already ended.", is_error=True)
            self.messages += [
                _make_assistant_message(reply),
                _make_user_message([_make_result_block(call, unrun) for call in reply.calls]),
            ]
        self.tell(f"Text is not read. Call a tool, or hand in your answer as the arguments of a call of `{SUBMIT}`.")

    def cut_off(self) -> None:
        """The message is dropped: whatever its last call says may be half of what was meant."""
        self.strike(f"it was cut off at {self.max_tokens} tokens")
        self.tell(f"Your last message was cut off at {self.max_tokens} tokens and is lost. Be briefer.")
        self.max_tokens *= 2

    def shorten(self) -> None:
        """Forget what tools have said so far."""
        self.strike("the conversation does not fit into the model's context")
        self.messages = [
            message | {"content": [_stub_block(block) for block in message["content"]]} for message in self.messages
        ]


def _make_opening(text: str) -> Json:
    return _make_user_message([{"type": "text", "text": part.strip()} for part in text.split(CACHE, 1)])


def _make_user_message(content: Sequence[Json]) -> Json:
    return {"role": "user", "content": list(content)}


def _make_assistant_message(reply: Reply) -> Json:
    return {"role": "assistant", "content": reply.content}


def _make_result_block(call: ToolCall, result: ToolResult) -> Json:
    return {"type": "tool_result", "tool_use_id": call.id, "content": result.text, "is_error": result.is_error}


def _stub_block(block: Mapping[str, Any]) -> Json:
    return {**block, "content": STUB} if block["type"] == "tool_result" else {**block}
