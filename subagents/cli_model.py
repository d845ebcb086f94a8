"""Ask a program on this machine in place of a server: Claude Code with the user's own login, or any other agent.

The program is started once for each reply, has no tools of its own, reads the conversation from standard input, and
prints calls of our tools as one JSON object. Claude Code puts that object into an envelope with tokens and dollars.
"""

import asyncio
import json
import os
import re
import shlex
import signal
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, Field, ValidationError

from subagents.agent import Json, Reply, Request, count_tokens
from subagents.prices import MOST_USD
from subagents.prompts import JINJA, PREFIX
from subagents.tools import describe_faults

CLAUDE = shlex.split(  # with these options Claude Code only answers: no tools, servers, settings, hooks or files
    "-p --output-format json --tools '' --strict-mcp-config --setting-sources '' --disable-slash-commands "
    "--no-session-persistence"
)
MAX_PRINTED = 1 << 20  # bytes that a program may print
PATIENCE = 10.0  # seconds for a killed program to end, for the output of one that has ended, and to remove its folder
MAX_WORD = 120_000  # bytes of a word of a command: Linux takes 128 KiB
BRACE, MAX_FAULTS = re.compile(r'\{\s*["}]'), 50  # where an object may begin, and how often none does
OURS = ("ANTHROPIC_", "NIGHTSHIFT_", "HF_TOKEN", "CLAUDECODE")  # variables that a program does not get, by beginning
TEMPLATE = JINJA.from_string((Path(__file__).parent / "templates/cli_prompt.txt").read_text(encoding="utf-8"))


class Call(BaseModel):
    tool: str
    input: Json


class Turn(BaseModel):
    calls: list[Call] = Field(min_length=1)


class Envelope(BaseModel):
    """What Claude Code prints of its work."""

    result: str = ""
    subtype: str = ""
    is_error: bool = False
    stop_reason: str | None = None
    structured_output: Json | None = None
    usage: Json = {}
    total_cost_usd: float | None = Field(default=None, ge=0, le=MOST_USD, allow_inf_nan=False)


class ProgramError(ChildProcessError):
    """A program says that it failed, and what that has cost in dollars."""

    def __init__(self, words: str, usd: float | None) -> None:
        super().__init__(words)
        self.usd = usd or 0.0


async def ask_program(request: Request, seconds: float) -> Reply:
    """Return a program's reply; kill it if it is cancelled or takes too long, and then ask no more. Raises OSError."""
    words, prompt = write_command(request)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    async with _make_folder() as folder:
        how: dict[str, Any] = {"cwd": folder, "env": environment, "start_new_session": True}
        transport, program = await asyncio.get_running_loop().subprocess_exec(_Program, *words, **how)
        try:
            async with asyncio.timeout(seconds):
                stdin = cast("asyncio.WriteTransport", transport.get_pipe_transport(0))
                stdin.write(prompt.encode("utf-8", "replace"))
                stdin.write_eof()  # one that has not read all of it by its end does no harm
                await program.ended.wait()
            await _wait_a_little(program.closed)  # a process of its own may hold its output open
        except TimeoutError:  # what that cost is not known
            return replace(Reply.from_error("failed", f"{words[0]} gave no answer in {seconds:.0f} s"), usd=None)
        finally:
            program.kill()
            await _wait_a_little(program.ended)
            transport.close()
    printed, errors, code = program.printed[1], program.printed[2], transport.get_returncode()
    if max(len(printed), len(errors)) > MAX_PRINTED:
        raise ChildProcessError(f"it printed more than {MAX_PRINTED >> 20} MiB")
    text = printed.decode("utf-8", "replace")
    if code and _find_object(text).get("type") != "result":
        raise ChildProcessError(f"exit code {code}: {(errors.decode('utf-8', 'replace') or text)[-250:]}")
    return read_reply(request, text)


@asynccontextmanager
async def _make_folder() -> AsyncGenerator[str]:
    """Make a folder that is removed afterwards, as far as that can be done in ten seconds beside the night's work."""
    folder = tempfile.mkdtemp(prefix="nightshift-")
    try:
        yield folder
    finally:
        with suppress(OSError):  # no room for a process, or no end: the answer counts all the same
            words = ("rm", "-rf", "--", folder)  # a process, since what the program left may fill the folder for ever
            how: dict[str, Any] = {"stderr": asyncio.subprocess.DEVNULL, "start_new_session": True}  # Ctrl-C is ours
            removal = await asyncio.create_subprocess_exec(*words, **how)
            try:
                async with asyncio.timeout(PATIENCE):
                    await removal.wait()
            finally:
                with suppress(ProcessLookupError):
                    removal.kill()


class _Program(asyncio.SubprocessProtocol):
    """A process: what it prints, of output and errors no more than a byte too much each, and how far it is."""

    def __init__(self) -> None:
        self.printed, self.ended, self.closed = {1: b"", 2: b""}, asyncio.Event(), asyncio.Event()
        self.open = {1, 2}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.pid = cast("asyncio.SubprocessTransport", transport).get_pid()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.printed[fd] += data[: MAX_PRINTED + 1 - len(self.printed[fd])]
        if len(self.printed[fd]) > MAX_PRINTED:
            self.kill()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002
        self.open.discard(fd)
        if not self.open:
            self.closed.set()

    def process_exited(self) -> None:
        self.ended.set()

    def kill(self) -> None:
        """End it, and all processes of its group."""
        with suppress(OSError):  # gone, or another user's
            os.killpg(self.pid, signal.SIGKILL)


async def _wait_a_little(event: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            await event.wait()


def write_command(request: Request) -> tuple[list[str], str]:
    """Return the words of the command, and its standard input. Raises ValueError for a name without a command."""
    program, *words = shlex.split(request.model.removeprefix(PREFIX)) or [""]
    is_claude = Path(program).name == "claude"
    fits = is_claude and len(request.system.encode("utf-8", "replace")) < MAX_WORD
    if is_claude:
        effort, schema = ["--effort", request.effort] if request.effort else [], json.dumps(Turn.model_json_schema())
        system = request.system if fits else "Your instructions are at the beginning of the message."
        words = [*CLAUDE, "--json-schema", schema, "--system-prompt", system, *effort, *words]
    return [program, *words], TEMPLATE.render(request=request, is_whole=not fits, write=json.dumps)


def read_reply(request: Request, printed: str) -> Reply:
    """Return what a program printed as a reply, without calls if it holds none. Raises ChildProcessError."""
    answer, envelope = _find_object(printed), Envelope()
    try:
        if answer.get("type") == "result":
            envelope = Envelope.model_validate(answer)
            printed = envelope.result or envelope.subtype
            if envelope.is_error and envelope.subtype != "error_max_structured_output_retries":
                raise ProgramError(printed[-250:], envelope.total_cost_usd)
            answer = envelope.structured_output or _find_object(printed)
        calls = list(enumerate(Turn.model_validate(answer).calls, 100 * len(request.messages)))
        content = [{"type": "tool_use", "id": f"call_{i}", "name": call.tool, "input": call.input} for i, call in calls]
        stop = "tool_use"
    except ValidationError as error:
        fault = describe_faults(error) if answer else "it holds no JSON object" if printed.strip() else "it is empty"
        content = [{"type": "text", "text": f"{printed[:2000]}\n\n(not read: {fault})".lstrip()}]
        stop = "refusal" if envelope.stop_reason == "refusal" else "end_turn"
    message = {"role": "assistant", "model": request.model, "content": content, "stop_reason": stop}
    return Reply(message, count_tokens(envelope.usage), envelope.total_cost_usd)


def _find_object(text: str) -> Json:
    """Return the last JSON object in a text that has calls or is a result, else the last one; an empty one if none."""
    found, decoder, end, faults = list[Json](), json.JSONDecoder(), 0, 0
    for brace in BRACE.finditer(text):
        if brace.start() >= end and faults < MAX_FAULTS:
            try:
                value, end = decoder.raw_decode(text, brace.start())
                found.append(cast("Json", value))
            except (ValueError, RecursionError):  # a brace in prose or code
                faults += 1
    chosen = [each for each in found if "calls" in each or each.get("type") == "result"] or found
    text = json.dumps(chosen[-1] if chosen else {}, ensure_ascii=False)  # NaN, and 1e999, cannot be stored either
    return json.loads(text.encode("utf-8", "replace"), parse_constant=lambda _: None)
