"""The kernel of every agent: a prompt, a few tools and an answer type; `ask` is the only loop that talks to a model.

An answer is a valid call of the tool `submit`. Turns, invalid answers and the length of tool results are bounded. An
error of the model is a reply, too, so a replay needs no exceptions.
"""

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from subagents.prompts import Prompt
from subagents.tools import Tool, ToolCall, ToolError, ToolResult, cap, describe_faults, shorten_schema

T = TypeVar("T", bound=BaseModel)
Json = dict[str, Any]
OnWait = Callable[[float, str], Awaitable[None]]  # takes the end of a pause, in seconds since the epoch, and why

SUBMIT = "submit"
MOST_TOKENS = 10**9  # that a request can have
MAX_BAD_ANSWERS = 2  # a model that fails three times will fail again
OURS = ("capped", "failed", "unaffordable")  # reasons to stop that no server gives, with the error in the message
CACHE = "<!-- cache -->"  # a line of an opening that ends a part, which changes less often than the next
MOST_RESULTS = 100_000  # characters of all results of a message after which no further call is run
TOO_MUCH = ToolResult("Not run: the results above fill the message. Ask for less at a time.", is_error=True)
STUB = "(left out to save room; call the tool again if you need it)"
TOKENS = {
    "input": "input_tokens",  # without the cached ones
    "cache_read": "cache_read_input_tokens",
    "cache_write": "cache_creation_input_tokens",
    "output": "output_tokens",
}


class NoAnswer(Exception):  # noqa: N818 - an expected outcome, not an error
    """An agent gave no usable answer. Only the step fails, never the session."""


class Outage(NoAnswer):
    """Its model refused or was out, so that nothing is said about the task."""


@dataclass(frozen=True)
class Agent(Generic[T]):
    name: str
    prompt: Prompt
    answer: type[T]
    tools: tuple[Tool, ...] = ()
    accept: Callable[[T], str | Awaitable[str]] = lambda _: ""  # returns why a well-formed answer is refused, or ""
    used: list[str] = field(default_factory=list[str])  # the names of the tools called so far

    @property
    def schemas(self) -> tuple[Json, ...]:
        """The schemas of the tools as sent to the model; the last one takes the answer."""
        answer = {
            "name": SUBMIT,
            "description": "Hand in your answer. It ends the conversation.",
            "input_schema": shorten_schema(self.answer.model_json_schema() | {"description": False}),
        }
        return (*(tool.schema for tool in self.tools), answer)


@dataclass(frozen=True)
class Request:
    """What is sent to a model for one reply."""

    agent: str
    model: str
    effort: str
    max_tokens: int
    system: str
    tools: tuple[Json, ...]
    messages: tuple[Json, ...]

    @property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the request's canonical JSON."""
        canonical = json.dumps(vars(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Reply:
    """A model's whole message, thinking and signatures included; or the error that came instead."""

    message: Json
    tokens: Mapping[str, int] = field(default_factory=dict[str, int])  # as the provider counts, by names in TOKENS
    usd: float | None = None  # None if the model's price is unknown

    @classmethod
    def from_error(cls, stop_reason: str, error: str) -> "Reply":
        """Return a reply without a message, at no cost, for one of the reasons that `ask` knows."""
        return cls({"content": [], "stop_reason": stop_reason, "error": error}, usd=0.0)

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
    """What an agent can reach: a model that replies, and tools that act."""

    async def begin(self, agent: Agent[Any], opening: str) -> None:
        """Begin a conversation."""

    async def replace_model(self, reason: str) -> None:
        """Tell the user that another model takes over the conversation, and why."""

    async def pause(self, seconds: float, until: float, reason: str) -> None:
        """Wait that many seconds; tell the user why, and until when, in seconds since the epoch."""

    async def reply(self, request: Request) -> Reply:
        """Return the model's next message; an error is a reply, too."""
        ...

    async def use(self, tool: Tool, call: ToolCall) -> ToolResult:
        """Return the result of a tool call; a failure is a result, too."""
        ...


def split_opening(opening: str) -> list[str]:
    """Return the parts of an opening. A mark inside a line, such as one in a script, ends none."""
    return re.split(f"^{CACHE}$", opening, flags=re.MULTILINE)


def count_tokens(usage: Json) -> dict[str, int]:
    """Return the tokens of a Reply from a message's usage; a count that cannot be one is 0."""
    counts = {name: usage.get(field) for name, field in TOKENS.items()}
    return {name: n if isinstance(n, int) and 0 <= n <= MOST_TOKENS else 0 for name, n in counts.items()}


async def ask(agent: Agent[T], environment: Environment, opening: str) -> T:
    """Hold a conversation until the agent hands in a valid answer. Raises NoAnswer."""
    prompt = agent.prompt
    await environment.begin(agent, opening)
    parts = [{"type": "text", "text": part} for text in split_opening(opening) if (part := text.strip())]
    conversation = _Conversation(agent, prompt.model, prompt.max_tokens, [{"role": "user", "content": parts}])
    spent = 0
    for turns_left in reversed(range(prompt.max_turns)):
        if spent >= prompt.max_spent:
            raise NoAnswer(f"the {agent.name} gave no answer in {spent:,} tokens")
        reply = await environment.reply(conversation.request)
        spent += sum(reply.tokens.values())
        match reply.stop_reason:
            case "tool_use" if reply.calls:
                if answer := await conversation.run_calls(reply, environment):
                    return answer
                if turns_left == 1:
                    conversation.append_text(f"One turn is left: call `{SUBMIT}` now.")
            case "max_tokens":
                conversation.drop_truncated()
            case "model_context_window_exceeded":
                conversation.drop_results()
            case "capped":
                raise NoAnswer(str(reply.message["error"]))
            case "failed" | "unaffordable" | "refusal":
                why = str(reply.message.get("error") or f"the {agent.name}'s model refused to answer")
                if reply.stop_reason == "unaffordable" or not turns_left or prompt.fallback in ("", conversation.model):
                    raise Outage(why)
                await environment.replace_model(f"{prompt.fallback} takes over: {why}")
                conversation.replace_model(prompt.fallback)
            case _:
                conversation.reject_text(reply)
    raise NoAnswer(f"the {agent.name} gave no answer in {prompt.max_turns} turns")


@dataclass
class _Conversation(Generic[T]):
    agent: Agent[T]
    model: str
    max_tokens: int
    messages: list[Json]
    bad_answers: int = 0
    last_calls: list[tuple[str, Json]] = field(default_factory=list[tuple[str, Json]])

    @property
    def request(self) -> Request:
        name, prompt, schemas = self.agent.name, self.agent.prompt, self.agent.schemas
        messages = tuple(self.messages)
        return Request(name, self.model, prompt.effort, self.max_tokens, prompt.system, schemas, messages)

    def replace_model(self, model: str) -> None:
        """Go on with another model, which cannot verify the thoughts of the first."""
        self.model = model
        for i, message in enumerate(self.messages):
            spoken = [part for part in message["content"] if "thinking" not in part["type"]]
            self.messages[i] = message | {"content": spoken or [{"type": "text", "text": "…"}]}

    async def run_calls(self, reply: Reply, environment: Environment) -> T | None:
        """Run the calls of a message in order; return the answer if one of them submits it."""
        results: list[Json] = []
        failed, answers = "", [call.input for call in reply.calls if call.name == SUBMIT]
        if several := any(answer != answers[0] for answer in answers):
            self.count_bad_answer("it handed in several answers in one message")
        for call in sorted(reply.calls, key=lambda call: call.name == SUBMIT):  # the answer ends the conversation
            try:
                if call.name == SUBMIT and not several:
                    return await self.check_answer(call, failed)
                is_full = sum(len(each["content"]) for each in results) > MOST_RESULTS
                result = TOO_MUCH if is_full else await self.use_tool(call, environment)
            except ToolError as error:
                result = ToolResult(cap(str(error)), is_error=True)
            if result.is_error and call.name != SUBMIT:
                failed = failed or call.name
            results.append(_make_result_block(call, result))
        calls = [(call.name, call.input) for call in reply.calls]
        if failed and calls == self.last_calls:
            self.count_bad_answer(f"it repeated a call of `{failed}` that had failed")
        self.last_calls = calls
        self.messages += [{"role": "assistant", "content": reply.content}, {"role": "user", "content": results}]
        return None

    async def use_tool(self, call: ToolCall, environment: Environment) -> ToolResult:
        tools = {tool.name: tool for tool in self.agent.tools}
        if call.name == SUBMIT:
            raise ToolError(f"Not handed in: call `{SUBMIT}` once, with everything in it.")
        if call.name not in tools:
            names = ", ".join([*tools, SUBMIT])
            raise ToolError(f"No tool is called {call.name!r}; the tools are {names}.")
        self.agent.used.append(call.name)
        return await environment.use(tools[call.name], call)

    async def check_answer(self, call: ToolCall, failed: str) -> T:
        """Return the answer. Raises ToolError if it is not valid, NoAnswer after too many such answers."""
        if failed:
            # It does not count as a bad answer: the model could not know yet that a call had failed.
            raise ToolError(f"Not handed in, because `{failed}` failed in the same message: mend or drop that call.")
        try:
            answer = self.agent.answer.model_validate(call.input)
            verdict = self.agent.accept(answer)
            if not (reason := verdict if isinstance(verdict, str) else await verdict):
                return answer
        except ValidationError as error:
            reason = describe_faults(error)
        self.count_bad_answer(f"its answer was not valid: {reason}")
        raise ToolError(f"Not accepted: {reason}")

    def count_bad_answer(self, reason: str) -> None:
        self.bad_answers += 1
        if self.bad_answers > MAX_BAD_ANSWERS:
            raise NoAnswer(f"the {self.agent.name} came to no answer: {cap(reason)}")

    def append_text(self, text: str) -> None:
        last = self.messages[-1]  # the user's
        self.messages[-1] = last | {"content": [*last["content"], {"type": "text", "text": text}]}

    def reject_text(self, reply: Reply) -> None:
        """Ask for a tool call after a message that ended otherwise, and run none of the calls in it."""
        self.count_bad_answer(f"it ended with {reply.stop_reason!r} instead of a call of `{SUBMIT}`")
        if reply.content:
            not_run = ToolResult("Not run: the message had already ended.", is_error=True)
            results = [_make_result_block(call, not_run) for call in reply.calls]
            self.messages += [{"role": "assistant", "content": reply.content}, {"role": "user", "content": results}]
        self.append_text(
            f"Text is not read. Call a tool, or hand in your answer as the arguments of a call of `{SUBMIT}`."
        )

    def drop_truncated(self) -> None:
        """Drop a truncated message, whose last call may be incomplete, and allow twice the tokens."""
        self.count_bad_answer(f"it was cut off at {self.max_tokens} tokens")
        self.append_text(f"Your last message was cut off at {self.max_tokens} tokens and is lost. Be briefer.")
        self.max_tokens *= 2

    def drop_results(self) -> None:
        """Replace all tool results so far by a stub, to fit the model's context window."""
        self.count_bad_answer("the conversation does not fit into the model's context")
        for i, message in enumerate(self.messages):
            parts = [part | {"content": STUB} if part["type"] == "tool_result" else part for part in message["content"]]
            self.messages[i] = message | {"content": parts}


def _make_result_block(call: ToolCall, result: ToolResult) -> Json:
    return {"type": "tool_result", "tool_use_id": call.id, "content": result.text, "is_error": result.is_error}
