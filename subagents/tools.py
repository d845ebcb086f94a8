"""A tool is a plain function with a docstring; its schema, its checks and the cap on what it returns come from here."""

import inspect
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError, validate_call

RESULT_BYTES = 12_000
"""About 3,500 tokens; who needs more asks again, and more narrowly."""


class ToolError(Exception):
    """A tool cannot do what it was asked; the message tells the model what to do about it."""


@dataclass(frozen=True)
class ToolCall:
    id: str
    name: str
    input: dict[str, Any]


@dataclass(frozen=True)
class ToolResult:
    text: str
    is_error: bool = False


@dataclass(frozen=True)
class Tool:
    """A function that a model may call."""

    name: str
    description: str
    call: Callable[..., str | Awaitable[str]]
    pure: bool = True
    """It depends on nothing but the conversation: a replay runs it again. Else the replay takes the recorded result."""
    schema: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)

    @classmethod
    def of(cls, function: Callable[..., str | Awaitable[str]], *, pure: bool = True) -> "Tool":
        """The tool that a function is: its name, its docstring, its annotated parameters."""
        name, description = function.__name__, inspect.getdoc(function) or ""
        arguments = TypeAdapter[Any](cast("Any", function)).json_schema()
        schema = {"name": name, "description": description, "input_schema": arguments}
        return cls(name, description, validate_call(function), pure, schema)

    async def run(self, call: ToolCall) -> ToolResult:
        """Call it; wrong arguments and refusals are told to the model, everything else is a bug and is raised."""
        try:
            said = self.call(**call.input)
            text = said if isinstance(said, str) else await said
        except ValidationError as error:
            return ToolResult(f"Wrong arguments: {describe_faults(error)}", is_error=True)
        except ToolError as error:
            return ToolResult(cap(str(error)), is_error=True)
        return ToolResult(cap(text) or "(nothing)")


def cap(text: str, limit: int = RESULT_BYTES) -> str:
    """The text in at most `limit` bytes of UTF-8, and a word where something was cut."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode()
    note = f"\n… ({len(data):,} bytes in all; ask for less at a time)"
    return data[: limit - len(note.encode())].decode("utf-8", "ignore") + note


def unquote(value: object) -> object:
    """The value that smaller models have put into a string of JSON where an object or a list was wanted."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        with suppress(ValueError):
            return json.loads(value)
    return value


def describe_faults(error: ValidationError) -> str:
    """What was wrong with arguments, a few words for each fault; without the values, which may be long."""
    found = error.errors(include_input=False, include_url=False)[:8]
    return "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}" for fault in found)
