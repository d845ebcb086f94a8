"""Call Anthropic's API, or any server that speaks it (ANTHROPIC_BASE_URL).

Replies are streamed. A transient failure is retried from the start of the turn, for a while; a permanent one (a
wrong key, a spending limit, a bad request) becomes a reply with the error. Tools run only once a turn is complete.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import anthropic
import httpx2
import tenacity
from anthropic.lib.streaming import AsyncMessageStream

from subagents import prices
from subagents.agent import OURS, Json, OnWait, Reply, Request, count_tokens
from subagents.cli_model import ProgramError, ask_program
from subagents.prompts import PREFIX

READ_TIMEOUT = 180.0  # seconds without a byte after which a connection counts as dead; Claude sends pings more often
TURN_TIMEOUT = 1800.0  # seconds after which a turn is abandoned although bytes still arrive
ATTEMPTS = 14  # attempts at a turn; with pauses that grow to MAX_PAUSE they last a quarter of an hour or more
HURRY = tenacity.stop_before_delay(60.0)  # seconds after which another model takes over, if there is one
MAX_PAUSE = 300.0  # seconds between two attempts, unless the server asks for more
LONG_PAUSE = 60.0  # seconds of a pause above which the user is told
MAX_RETRY_AFTER = 86_400.0  # longest pause in seconds that a server can ask for
CHECK_TIMEOUT, CHECK_TOKENS = 120.0, 2_000  # of the one small request before a night
TRANSIENT_CODES = {408, 409, 429}
TRANSIENT_TYPES = {"overloaded_error", "api_error", "timeout_error", "rate_limit_error"}
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
OVERFLOW = re.compile(r"is too (long|large)|too many tokens|context.{0,10}(length|window|size|limit)", re.IGNORECASE)
MOST = re.compile(r"max_tokens\b.{,80}?(?:> |at most |\[\d, )([1-9]\d{,8})\b", re.DOTALL)
"""How a server says how many tokens a model can write at most."""
CUT = {"max_tokens", "refusal", "model_context_window_exceeded"}  # stops that may come in the middle of a tool call
FAILURES = (anthropic.AnthropicError, httpx2.HTTPError, OSError)  # of an attempt, by a server or a program
SPENT = (anthropic.EnforcedSpendLimitReachedError, anthropic.ContractSpendLimitReachedError)
TEXTS = {"text": ("text",), "thinking": ("thinking",), "tool_use": ("id", "name")}  # what is a text, by type of block
HOUR = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}  # an experiment takes longer than five minutes
MINUTES = {"cache_control": {"type": "ephemeral"}}


def credentials_error() -> str:
    """Return what the user must set before a model can be reached, in one line; empty if nothing."""
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        if re.search(r"""[^!-~]|["'`]""", os.environ.get(name, "")):
            return f"{name} contains a space, a line break, a quote or a character that no key has: set it again"
    if (base := os.environ.get("ANTHROPIC_BASE_URL")) and not re.match("https?://[^/]", base):
        return "ANTHROPIC_BASE_URL is not an address: write it as in http://localhost:8080"
    try:
        httpx2.AsyncClient(base_url=os.environ.get("ANTHROPIC_BASE_URL", ""))  # the SDK's own leaves a traceback
        client = anthropic.AsyncAnthropic()
    except anthropic.AnthropicError as error:
        return f"the credentials for Claude cannot be used: {error}"
    except (ImportError, OSError, ValueError, httpx2.InvalidURL) as error:
        return f"no connection can be made: {error} (see ANTHROPIC_BASE_URL, SSL_CERT_FILE and {', '.join(PROXIES)})"
    if client.api_key or client.auth_token or client.credentials or os.environ.get("ANTHROPIC_BASE_URL"):
        return ""
    return (
        "no model can be reached: set ANTHROPIC_API_KEY, or ANTHROPIC_BASE_URL for a server of your own "
        "(--model cli:claude and --offline need neither)"
    )


def connect(
    *, base_url: str | None = None, api_key: str | None = None, stall: float = READ_TIMEOUT
) -> anthropic.AsyncAnthropic:
    """Return a client, with settings from the environment unless given; `stall` is its read timeout in seconds.

    The SDK's own retries are off: they end once a stream has begun, and do not report how long they sleep.
    """
    timeout = httpx2.Timeout(stall, connect=min(20.0, stall))
    client = anthropic.AsyncAnthropic(base_url=base_url, api_key=api_key, max_retries=0, timeout=timeout)
    if not (client.api_key or client.auth_token or client.credentials):
        return client.copy(api_key="none")  # the SDK insists on a key, even where the server does not
    return client


@dataclass(frozen=True)
class Claude:
    """Models that are asked over the network, or as programs on this machine."""

    client: anthropic.AsyncAnthropic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.time
    patience: float = TURN_TIMEOUT
    replaceable: frozenset[tuple[str, str]] = frozenset()  # agent and model for which another takes over, and sooner
    refused: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])  # models, with the effort
    most: dict[str, int] = field(default_factory=dict[str, int])  # tokens that a model said it can write

    def at_most(self, request: Request) -> float | None:
        """Return the most dollars that the request may cost; None if the price is unknown."""
        characters = len(request.system) + len(json.dumps([request.tools, request.messages]))
        return prices.estimate_most(request.model, characters, self._limit(request).max_tokens)

    def _limit(self, request: Request) -> Request:
        """Return the request with no more tokens than its model said it can write."""
        most = self.most.get(request.model, request.max_tokens)
        return replace(request, max_tokens=min(request.max_tokens, most))

    async def reply(self, request: Request, on_wait: OnWait) -> Reply:
        """Return the model's message, or a reply that states the error; retry transient failures.

        It costs what all attempts may have cost; a price is unknown only where `at_most` knows none.
        """

        async def before_sleep(state: tenacity.RetryCallState) -> None:
            pause = state.upcoming_sleep
            if pause > LONG_PAUSE:
                await on_wait(self.clock() + pause, self._reason(state.outcome and state.outcome.exception()))

        async def attempt() -> Reply:
            try:
                return await self._turn(request)
            except FAILURES as error:
                lost.append(error.usd if isinstance(error, ProgramError) else (most or 0.0) * is_billable(error))
                raise

        most, lost = self.at_most(request), list[float]()
        patience = tenacity.stop_after_attempt(ATTEMPTS)
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(is_transient),
            wait=_choose_pause,
            stop=HURRY | patience if (request.agent, request.model) in self.replaceable else patience,
            before_sleep=before_sleep,
            sleep=self.sleep,
            reraise=True,
        )
        try:
            reply: Reply = await retrying(attempt)
        except FAILURES as error:
            stop = "model_context_window_exceeded" if is_too_long(error) else "failed"
            reply = Reply.from_error(stop, self._reason(error))
        usd = most if reply.usd is None else reply.usd
        return replace(reply, usd=usd if not sum(lost) else (usd or 0.0) + sum(lost))

    async def check(self, model: str, effort: str = "") -> tuple[bool, str]:
        """Have a model call a small tool; return whether a night may begin, and what went wrong; empty if nothing."""
        ask = {"role": "user", "content": [{"type": "text", "text": "Call the tool `ready` now, and say nothing."}]}
        tool = {"name": "ready", "description": "Says that you can call tools.", "input_schema": {"type": "object"}}
        request = Request("doctor", model, effort, CHECK_TOKENS, "This is a check before a night.", (tool,), (ask,))
        url = self.client.base_url
        try:
            async with self.client, asyncio.timeout(CHECK_TIMEOUT):
                reply = await self._turn(request)  # one attempt, without the patience of a night
        except (anthropic.AuthenticationError, anthropic.PermissionDeniedError):
            return False, f"{url} refuses the key"
        except anthropic.NotFoundError:
            return False, f"{url} has no model {model!r}, or is not the address of a Messages API (404)"
        except anthropic.APIConnectionError:
            proxies = [name for name in PROXIES if os.environ.get(name) or os.environ.get(name.lower())]
            return False, f"no server answers at {url}" + f", by way of {' or '.join(proxies)}" * bool(proxies)
        except httpx2.RemoteProtocolError:
            return False, f"{url} is no Messages API, but perhaps a web page: see ANTHROPIC_BASE_URL"
        except (anthropic.AnthropicError, httpx2.HTTPError, TimeoutError) as error:
            wait = is_transient(error)
            hint = "; a night would wait for it" * wait
            return wait, f"{model} does not answer now: {self._reason(error)}{hint}"
        except (OSError, ValueError) as error:
            return False, f"{model} does not answer: {self._reason(error)}"
        if not reply.calls:
            return False, f"{model} answers, but called no tool when told to: agents need a model that uses tools"
        return True, ""

    async def _turn(self, request: Request, *, told: bool = False) -> Reply:
        """Ask, and again with what the model can do where it says that; `told` if it has said how much it can write."""
        if request.model.startswith(PREFIX):
            return await ask_program(request, self.patience)
        effort = request.effort if (request.model, request.effort) not in self.refused else ""
        request = self._limit(request)
        try:
            async with (
                asyncio.timeout(self.patience),
                self.client.messages.stream(**make_arguments(request, effort)) as stream,
            ):
                message = await _read_message(stream)
        except anthropic.BadRequestError as error:
            if not told and (found := MOST.search(str(error))) and int(found[1]) < request.max_tokens:
                self.most[request.model], told = int(found[1]), True
            elif effort and re.search(r"effort|output_config", str(error)):
                self.refused.add((request.model, effort))
            else:
                raise
            return await self._turn(request, told=told)
        except TimeoutError:  # a further attempt would take as long, and cost as much
            return replace(Reply.from_error("failed", f"it gave no answer in {self.patience:g} s"), usd=None)
        usd = prices.compute_usd(message)
        usd = prices.compute_usd(message | {"model": request.model}) if usd is None else usd  # a gateway's own name
        return Reply(message, count_tokens(message.get("usage") or {}), usd)

    def _reason(self, error: BaseException | None) -> str:
        """Return the error in one line, without the key, which a server may echo."""
        match error:
            case anthropic.APIStatusError(status_code=status, body={"error": {"message": str(words)}}):
                text = f"{words} ({status})"
            case FileNotFoundError() | PermissionError():
                text = f"{error.strerror}: {error.filename}"
            case _:
                text = f"{type(error).__name__}: {error}"
        for secret in (self.client.api_key, self.client.auth_token):
            text = text.replace(secret, "…") if secret else text
        return " ".join(text.split())[:300]


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed later."""
    if not isinstance(error, anthropic.APIStatusError):
        is_permanent = is_too_long(error) or isinstance(error, (FileNotFoundError, PermissionError))  # of a program
        return isinstance(error, (anthropic.APIConnectionError, httpx2.HTTPError, OSError)) and not is_permanent
    if error.status_code == 200:  # an error event inside a stream
        return error.type in TRANSIENT_TYPES
    return not isinstance(error, SPENT) and (error.status_code in TRANSIENT_CODES or error.status_code >= 500)


def is_too_long(error: BaseException) -> bool:
    """Return whether the conversation does not fit into the model's context."""
    if isinstance(error, anthropic.APIStatusError):
        return error.status_code == 413 or (error.status_code == 400 and bool(OVERFLOW.search(str(error))))
    return isinstance(error, ProgramError) and bool(OVERFLOW.search(str(error)))


def is_billable(error: BaseException) -> bool:
    """Return whether a request that failed so had begun a stream, or was given up while its server may have worked."""
    if isinstance(error, anthropic.APIStatusError):
        return error.status_code == 200  # inside a stream
    is_late = isinstance(error, anthropic.APITimeoutError) and not isinstance(error.__cause__, httpx2.ConnectTimeout)
    return is_late or isinstance(error, httpx2.HTTPError)  # before a stream the SDK has its own errors


async def _read_message(stream: AsyncMessageStream[None]) -> Json:
    """Return the message of a stream. Raises httpx2.RemoteProtocolError if it is malformed or incomplete."""
    arguments: dict[int, str] = {}
    try:
        async for event in stream:
            if event.type == "content_block_delta" and event.delta.type == "input_json_delta":
                arguments[event.index] = arguments.get(event.index, "") + event.delta.partial_json
        message: Json = stream.current_message_snapshot.to_dict(mode="json", warnings=False)
        for text in arguments.values() if message.get("stop_reason") not in CUT else ():
            json.loads(text or "{}")  # the SDK accepts truncated JSON
        fault = _find_fault(message)
        message["content"] = [part for part in message["content"] if part["type"] != "text" or part["text"].strip()]
    except (AssertionError, AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        # The SDK, or the code above, raises any of these for malformed events.
        raise httpx2.RemoteProtocolError(f"the stream is malformed: {type(error).__name__}: {error}") from error
    if fault:
        raise httpx2.RemoteProtocolError(fault)
    message.pop("error", None)  # which is ours
    # A lone surrogate is legal in JSON but cannot be encoded as UTF-8.
    return json.loads(json.dumps(message, ensure_ascii=False).encode("utf-8", "replace"))


def _find_fault(message: Json) -> str:
    """Return what is wrong with what is read of a message; empty if nothing. Raises LookupError or TypeError."""
    blocks, stop = message["content"], message.get("stop_reason")
    texts = [block[name] for block in blocks for name in ("type", *TEXTS.get(block["type"], ()))]
    calls = [block for block in blocks if block["type"] == "tool_use"]
    if not stop:
        return "the stream ended early"
    if not all(isinstance(text, str) for text in (*texts, stop)) or not isinstance(message.get("usage") or {}, dict):
        return "the stream is malformed: a field is of another type"
    if stop in OURS:
        return f"the stream is malformed: it stops for {stop!r}"
    whole = all(call["id"] and call["name"] and isinstance(call["input"], dict) for call in calls)
    return "" if whole else "a tool was called without a name or arguments"


def make_arguments(request: Request, effort: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_tokens,
        "system": [{"type": "text", "text": request.system, **HOUR}],
        "tools": list(request.tools),
        "messages": _mark_cache(request.messages),
    }
    return arguments | ({"output_config": {"effort": effort}} if effort else {})


def _mark_cache(messages: tuple[Json, ...]) -> list[Json]:
    """Mark for the next experiment the opening's first part and the last but one, and for the next turn all of it.

    With the system prompt these are the four marks that the API allows. What an earlier request stored is found up to
    twenty blocks before a mark, so parts may have been added in front of one since.
    """
    marked = [message | {"content": list(message["content"])} for message in messages]
    opening = marked[0]["content"]
    for at in {0, len(opening) - 2} & set(range(len(opening) - 1)):
        opening[at] = opening[at] | HOUR
    marked[-1]["content"][-1] = marked[-1]["content"][-1] | MINUTES
    return marked


def _choose_pause(state: tenacity.RetryCallState) -> float:
    error, pause = state.outcome and state.outcome.exception(), tenacity.wait_random_exponential(max=MAX_PAUSE)(state)
    if isinstance(error, anthropic.APIStatusError):
        with suppress(KeyError, ValueError):
            return max(pause, min(float(error.response.headers["retry-after"]), MAX_RETRY_AFTER))
    return pause
