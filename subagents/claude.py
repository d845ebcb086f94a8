"""The only place that talks to Anthropic's API, or to any server that speaks it (ANTHROPIC_BASE_URL).

Always streamed. A turn that fails on the way is taken again from its start, for an hour or two; what no repetition
can mend (a wrong key, spent money, a bad request) becomes a reply that says so. No tool has run before a turn is whole.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import anthropic
import httpx2
from anthropic.lib.streaming import AsyncMessageStream
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from subagents import prices
from subagents.agent import Json, Reply, Request, TokenCounts

OFFICIAL = "https://api.anthropic.com"
STALL = 180.0
"""Seconds without a byte after which a connection is dead; Claude sends a ping far more often."""
TURN = 1800.0
"""Seconds after which a turn is dead although bytes still come."""
ATTEMPTS = 30
"""With pauses that grow to PAUSE, about an hour and a half: an outage of that length does not cost the night."""
PAUSE = 300.0
LONG = 60.0
"""A longer pause is worth telling the user."""
DAY = 86_400.0
"""No server's word makes us wait longer."""
PASSING = {408, 409, 429}
PASSING_TYPES = {"overloaded_error", "api_error", "timeout_error", "rate_limit_error"}
OVERFLOW = re.compile(r"too (long|large|many tokens)|context.{0,10}(length|window|size)", re.IGNORECASE)
SPENT = (anthropic.EnforcedSpendLimitReachedError, anthropic.ContractSpendLimitReachedError)
HOUR = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
"""An experiment outlives the usual five minutes."""
MINUTES = {"cache_control": {"type": "ephemeral"}}

OnWait = Callable[[float, str], Awaitable[None]]
"""Told until when (seconds since the epoch) we wait, and why."""


class IncompleteStream(Exception):  # noqa: N818 - what became of a stream
    """A stream ended early, or with something in it that is no message."""


def credentials_error() -> str:
    """What the user must set before a model can be reached, in one line; empty if nothing."""
    try:
        client = anthropic.AsyncAnthropic()
    except anthropic.AnthropicError as error:
        return f"the credentials for Claude cannot be used: {error}"
    if client.api_key or client.auth_token or client.credentials or os.environ.get("ANTHROPIC_BASE_URL"):
        return ""
    return (
        "no model can be reached: set ANTHROPIC_API_KEY, or ANTHROPIC_BASE_URL for a server of your own "
        "(--offline needs neither)"
    )


def connect(
    *, base_url: str | None = None, api_key: str | None = None, stall: float = STALL
) -> anthropic.AsyncAnthropic:
    """A client, by the environment's settings where nothing else is said.

    Retries are ours alone: the SDK's own end where a stream begins, and sleep through any retry-after unseen.
    """
    timeout = httpx2.Timeout(stall, connect=min(20.0, stall))
    client = anthropic.AsyncAnthropic(base_url=base_url, api_key=api_key, max_retries=0, timeout=timeout)
    if not (client.api_key or client.auth_token or client.credentials):
        return client.copy(api_key="none")  # a server of one's own asks for none, but the SDK does
    return client


async def check_model(client: anthropic.AsyncAnthropic, model: str) -> str:
    """What stands in the way of asking this model, in one line; empty if nothing is known to. Closes the client."""
    try:
        async with client:  # left open, it would be closed by chance, in an event loop that is over
            await client.models.retrieve(model)
    except (anthropic.AuthenticationError, anthropic.PermissionDeniedError):
        return f"{client.base_url} refuses the key"
    except anthropic.NotFoundError:
        # A server of one's own may list no models at all.
        return f"there is no model {model!r}" if str(client.base_url).startswith(OFFICIAL) else ""
    except anthropic.APIConnectionError:
        return f"no server answers at {client.base_url}"
    except anthropic.APIStatusError:
        return ""  # it may pass
    return ""


class Claude:
    """A model that replies."""

    def __init__(
        self,
        client: anthropic.AsyncAnthropic,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.client, self.sleep, self.clock = client, sleep, clock
        self.effortless: set[str] = set()
        """Models that turned out not to know the setting."""

    def at_most(self, request: Request) -> float | None:
        """Dollars that the request may come to; None where prices are unknown."""
        characters = len(request.system) + len(json.dumps([request.tools, request.messages]))
        return prices.estimate_most(request.model, characters, request.max_tokens)

    async def reply(self, request: Request, on_wait: OnWait) -> Reply:
        """The model's message, however often it takes; or a fault that no repetition mends."""

        async def before_sleep(state: RetryCallState) -> None:
            pause = state.upcoming_sleep
            if pause > LONG:
                await on_wait(self.clock() + pause, self._reason(_get_error(state)))

        retrying = AsyncRetrying(
            retry=retry_if_exception(is_transient),
            wait=_choose_pause,
            stop=stop_after_attempt(ATTEMPTS),
            before_sleep=before_sleep,
            sleep=self.sleep,
            reraise=True,
        )
        try:
            return await retrying(self._turn, request)
        except (anthropic.AnthropicError, httpx2.HTTPError, IncompleteStream, TimeoutError) as error:
            if isinstance(error, anthropic.APIStatusError) and _is_overflow(error):
                return Reply.fault("model_context_window_exceeded", self._reason(error))
            return Reply.fault("failed", self._reason(error))

    async def _turn(self, request: Request) -> Reply:
        """One attempt."""
        effort = request.effort if request.model not in self.effortless else ""
        try:
            async with asyncio.timeout(TURN), self.client.messages.stream(**_make_arguments(request, effort)) as stream:
                message = await _read_message(stream)
        except anthropic.BadRequestError as error:
            if not effort or not re.search(r"effort|output_config", str(error)):
                raise
            self.effortless.add(request.model)
            return await self._turn(request)
        usage: Json = message.get("usage") or {}
        tokens = TokenCounts(
            usage.get("input_tokens") or 0,
            usage.get("cache_read_input_tokens") or 0,
            usage.get("cache_creation_input_tokens") or 0,
            usage.get("output_tokens") or 0,
        )
        return Reply(message, tokens, prices.compute_usd(message))

    def _reason(self, error: BaseException) -> str:
        """One line of what went wrong, without the key, whoever echoes it."""
        text = f"{type(error).__name__}: {error}"
        for secret in (self.client.api_key, self.client.auth_token):
            text = text.replace(secret, "…") if secret else text
        return " ".join(text.split())[:300]


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed later."""
    match error:
        case anthropic.APIStatusError() if isinstance(error, SPENT):
            return False
        case anthropic.APIStatusError(status_code=200):  # an error event inside a stream
            return error.type in PASSING_TYPES
        case anthropic.APIStatusError(status_code=code):
            return code in PASSING or code >= 500
        case _:
            return isinstance(error, (anthropic.APIConnectionError, httpx2.HTTPError, IncompleteStream, TimeoutError))


async def _read_message(stream: AsyncMessageStream[None]) -> Json:
    """The message of a stream, as JSON. Raises Torn where something is missing or is no message."""
    arguments: dict[int, str] = {}
    try:
        async for event in stream:
            if event.type == "content_block_delta" and event.delta.type == "input_json_delta":
                arguments[event.index] = arguments.get(event.index, "") + event.delta.partial_json
        for text in arguments.values():
            json.loads(text or "{}")  # the SDK is content with half of it
        return _check_message(stream.current_message_snapshot.to_dict(mode="json", warnings=False))
    except (AssertionError, AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        # What the SDK and we raise over nonsense, depending on where it comes.
        raise IncompleteStream(f"the stream made no sense: {type(error).__name__}: {error}") from error


def _check_message(message: Mapping[str, Any]) -> Json:
    """The message, if it is whole. Raises Torn, or KeyError where a part of it is missing."""
    if not message.get("stop_reason"):
        raise IncompleteStream("the stream ended early")
    for block in message["content"]:
        if block["type"] == "tool_use" and not (block["id"] and block["name"] and isinstance(block["input"], dict)):
            raise IncompleteStream("a tool was called without a name or arguments")
    # Half of a surrogate pair is legal JSON but no text.
    return json.loads(json.dumps(message, ensure_ascii=False).encode("utf-8", "replace"))


def _make_arguments(request: Request, effort: str) -> dict[str, Any]:
    """The request on the wire; what stays the same comes first, and is cached."""
    arguments: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_tokens,
        "system": [{"type": "text", "text": request.system, **HOUR}],
        "tools": list(request.tools),
        "messages": _mark_cache(request.messages),
    }
    return arguments | ({"output_config": {"effort": effort}} if effort else {})


def _mark_cache(messages: tuple[Json, ...]) -> list[Json]:
    """Breakpoints behind the opening's stable part, for the next experiment, and at the end, for the next turn."""
    marked = [message | {"content": list(message["content"])} for message in messages]
    if len(opening := marked[0]["content"]) > 1:
        opening[0] = opening[0] | HOUR
    marked[-1]["content"][-1] = marked[-1]["content"][-1] | MINUTES
    return marked


def _is_overflow(error: anthropic.APIStatusError) -> bool:
    return error.status_code == 413 or (error.status_code == 400 and bool(OVERFLOW.search(str(error))))


def _get_error(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None
    return error


def _choose_pause(state: RetryCallState) -> float:
    """Seconds to the next attempt: what the server asks for, else longer each time, with chance in it."""
    error = _get_error(state)
    asked = _read_retry_after(error.response.headers) if isinstance(error, anthropic.APIStatusError) else None
    return asked if asked is not None else wait_random_exponential(multiplier=1, max=PAUSE)(state)


def _read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds by `retry-after-ms`, or by `retry-after` as a number or a date."""
    with suppress(KeyError, ValueError):
        return min(max(float(headers["retry-after-ms"]) / 1000, 0.0), DAY)
    with suppress(KeyError, ValueError):
        return min(max(float(headers["retry-after"]), 0.0), DAY)
    with suppress(KeyError, ValueError):
        until = parsedate_to_datetime(headers["retry-after"])
        return min(max((until - datetime.now(UTC)).total_seconds(), 0.0), DAY)
    return None
