"""Make tools of plain functions with docstrings: their schemas, their checks, and the cap on their results."""

import inspect
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from pydantic import BaseModel, TypeAdapter, ValidationError, validate_call

RESULT_BYTES = 12_000  # bytes of a result: about 3,500 tokens


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
    call: Callable[..., str | Awaitable[str]]
    pure: bool  # depends on the conversation alone, so a replay runs it again instead of using its recorded result
    schema: dict[str, Any] = field(repr=False)

    @classmethod
    def from_function(cls, function: Callable[..., str | Awaitable[str]], *, pure: bool = True) -> "Tool":
        """Return a function, or a partial of one, as a tool with its name, docstring and annotated parameters."""
        arguments, named = TypeAdapter[Any](cast("Any", function)).json_schema(), getattr(function, "func", function)
        description = inspect.getdoc(named) or ""
        schema = {"name": named.__name__, "description": description, "input_schema": shorten_schema(arguments)}
        return cls(named.__name__, validate_call(function), pure, schema)

    async def run(self, call: ToolCall) -> ToolResult:
        """Call the function. Wrong arguments and ToolErrors become results; any other exception is a bug."""
        try:
            result = self.call(**call.input)
            text = result if isinstance(result, str) else await result
        except ValidationError as error:
            return ToolResult(cap(f"Wrong arguments: {describe_faults(error)}"), is_error=True)
        except ToolError as error:
            return ToolResult(cap(str(error)), is_error=True)
        return ToolResult(cap(text) or "(nothing)")


def cap(text: str, limit: int = RESULT_BYTES) -> str:
    """Return the text in at most `limit` bytes of UTF-8, with a note where it was cut."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode()
    note = f"\n… ({len(data):,} bytes in all; ask for less at a time)"
    return data[: limit - len(note.encode())].decode("utf-8", "ignore") + note


def shorten_schema(value: Any) -> Any:
    """Return a JSON schema without titles, which repeat the names, and without saying that nothing else is allowed."""
    if not isinstance(value, dict):
        return [shorten_schema(item) for item in cast("list[Any]", value)] if isinstance(value, list) else value
    items = cast("dict[str, Any]", value).items()
    return {k: shorten_schema(v) for k, v in items if not (k == "title" and isinstance(v, str)) and v is not False}


def unquote(value: object) -> object:
    """Return the object or list that a smaller model has quoted as JSON; any other value unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        with suppress(ValueError, RecursionError):
            found = json.loads(value)  # half a surrogate pair is legal in JSON, but cannot be stored
            return json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
    return value


def find_overlong(answer: BaseModel) -> str:
    """Return which fields exceed the `maxLength` in their `json_schema_extra`, which older files may exceed."""
    fields = type(answer).model_fields.items()
    limits = {name: cast("dict[str, int]", info.json_schema_extra or {}).get("maxLength", 0) for name, info in fields}
    overlong = {name: most for name, most in limits.items() if most and len(getattr(answer, name)) > most}
    return "; ".join(f"{name}: at most {most} characters" for name, most in overlong.items())


def describe_faults(error: ValidationError) -> str:
    """Return the first faults in a few words each, without the values, which may be long."""
    found = error.errors(include_input=False, include_url=False)[:8]
    return "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}" for fault in found)
