"""Ask a program on this machine in place of a server: Claude Code with the user's own login, or any other agent.

The program is started once for each reply, has no tools of its own, reads the conversation from standard input, and
prints calls of our tools as one JSON object. Claude Code puts that object into an envelope with tokens and dollars.
"""

import asyncio
import ctypes
import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, Field, ValidationError

from subagents.agent import CHECK_TIMEOUT, Json, Model, OnWait, Reply, Request, count_tokens, make_check
from subagents.prompts import JINJA, PREFIX
from subagents.tools import describe_faults

CLAUDE = shlex.split(  # with these options Claude Code only answers: no tools, servers, settings, hooks or files
    "-p --output-format json --tools '' --strict-mcp-config --setting-sources '' --disable-slash-commands "
    "--no-session-persistence"
)
OURS = ("ANTHROPIC_", "NIGHTSHIFT_", "HF_TOKEN", "CLAUDECODE")  # variables that a program does not get, by beginning
TURN_TIMEOUT = 1800.0  # seconds after which a program that has not answered is killed
PAUSES = (5.0, 60.0, 300.0, 600.0)  # seconds before further attempts; only the first, if another model can take over
PR_SET_PDEATHSIG = 1
TEMPLATE = JINJA.from_string((Path(__file__).parent / "templates/cli_prompt.txt").read_text(encoding="utf-8"))


class Call(BaseModel):
    tool: str
    input: Json


class Turn(BaseModel):
    calls: list[Call] = Field(min_length=1)


@dataclass(frozen=True)
class Models:
    """All models by their names: programs as `cli:PROGRAM ARGS`, all others on a server."""

    server: Model
    replaceable: frozenset[str] = frozenset()  # those for which another takes over
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.time

    def at_most(self, request: Request) -> float | None:
        """Return the most dollars that the request may cost; None for a program, which says only what it has cost."""
        return None if request.model.startswith(PREFIX) else self.server.at_most(request)

    async def reply(self, request: Request, on_wait: OnWait) -> Reply:
        """Return the model's message, or a reply that states the error; try again after growing pauses."""
        if not request.model.startswith(PREFIX):
            return await self.server.reply(request, on_wait)
        pauses = iter(PAUSES[: 1 if request.model in self.replaceable else None])
        while True:
            try:
                return await _ask(request, TURN_TIMEOUT)
            except OSError as error:
                reason = f"{request.model.split()[0]}: {error}"
            if (pause := next(pauses, None)) is None:
                return Reply.from_error("failed", reason)
            await on_wait(self.clock() + pause, reason)
            await self.sleep(pause)


async def check_program(model: str, effort: str = "") -> tuple[bool, str]:
    """Have a program call one small tool, as agents do; return False, and what went wrong in one line, or ""."""
    try:
        reply = await _ask(make_check(model, effort), CHECK_TIMEOUT)
    except (OSError, ValueError) as error:
        return False, f"{model} does not answer: {error}"
    return False, "" if reply.calls else f"{model} answers, but not with a call of a tool as JSON"


def write_command(request: Request) -> tuple[list[str], str]:
    """Return the words of the command, and its standard input. Raises ValueError for a name that is no command."""
    program, *words = shlex.split(request.model.removeprefix(PREFIX)) or [""]
    if is_claude := Path(program).name == "claude":
        effort, schema = ["--effort", request.effort] if request.effort else [], json.dumps(Turn.model_json_schema())
        words = [*CLAUDE, "--json-schema", schema, "--system-prompt", request.system, *effort, *words]
    return [program, *words], TEMPLATE.render(request=request, is_whole=not is_claude, write=json.dumps)


def read_reply(request: Request, printed: str) -> Reply:
    """Return what a program printed as a reply, without calls if it holds none. Raises ChildProcessError."""
    answer, stop, usd, usage = _find_object(printed), "", None, Json()
    if answer.get("type") == "result":  # Claude Code's envelope
        printed = str(answer.get("result") or answer.get("errors") or answer.get("subtype"))
        if answer.get("is_error") and answer.get("subtype") != "error_max_structured_output_retries":
            raise ChildProcessError(_shorten(printed))
        usage, usd, stop = answer.get("usage") or usage, answer.get("total_cost_usd"), answer.get("stop_reason")
        answer = answer.get("structured_output") or _find_object(printed)
    try:
        calls = list(enumerate(Turn.model_validate(answer).calls, 100 * len(request.messages)))
        content = [{"type": "tool_use", "id": f"call_{i}", "name": call.tool, "input": call.input} for i, call in calls]
        stop = "tool_use"
    except ValidationError as error:
        content = [{"type": "text", "text": f"{printed[:2000]}\n\n(not read: {describe_faults(error)})"}]
        stop = "refusal" if stop == "refusal" else "end_turn"
    message = {"role": "assistant", "model": request.model, "content": content, "stop_reason": stop}
    return Reply(message, count_tokens(usage), float(usd) if isinstance(usd, int | float) else None)


def _find_object(text: str) -> Json:
    """Return the JSON object in a text, whatever stands around it; an empty one if there is none."""
    with suppress(ValueError, RecursionError):
        found = json.loads(text[text.find("{") : text.rfind("}") + 1])
        return cast("Json", found) if isinstance(found, dict) else {}
    return {}


async def _ask(request: Request, seconds: float) -> Reply:
    """Run the program for one reply. Kills it if it takes too long or is cancelled. Raises OSError."""
    words, prompt = write_command(request)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE)
    with tempfile.TemporaryDirectory(prefix="nightshift-") as folder:
        where: dict[str, Any] = {"cwd": folder, "env": environment, "start_new_session": True, **pipes}
        process = await asyncio.create_subprocess_exec(*words, preexec_fn=_bind_to_parent, **where)
        try:
            async with asyncio.timeout(seconds):
                printed, errors = await process.communicate(prompt.encode("utf-8", "replace"))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    text = printed.decode("utf-8", "replace")
    if process.returncode and not _find_object(text):
        words = _shorten(errors.decode("utf-8", "replace") or text)
        raise ChildProcessError(f"exit code {process.returncode}: {words}")
    return read_reply(request, text)


def _bind_to_parent() -> None:
    """Have the kernel kill this process when the orchestrator dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _shorten(text: str) -> str:
    return " ".join(text.split())[-300:]
