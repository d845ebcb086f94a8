"""Read nightshift.toml, and find out how a script's runs are scored: examined, or reported by the script itself."""

import ast
import shlex
import tomllib
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from orchestrator.cli.options import UsageError
from orchestrator.core.task import Task, TaskFile
from subagents.files import list_imports

NAME = "nightshift.toml"
PROGRAM_CHARACTERS = 12_000
"""Characters of program.md that are read."""
CACHE = "~/.cache/autoresearch"
"""Where autoresearch's prepare.py puts its data."""


def find_task(script: Path) -> Task:
    """Return the task in the script's folder. Raises UsageError."""
    folder = script.parent
    given = read_task_file(folder / NAME)
    editable = given.editable or (script.name,)
    if not given.model_fields_set and not (folder / "prepare.py").is_file() and _has_protocol(script):
        return Task()
    python = f"python {shlex.quote(editable[0])}" if editable[0].endswith(".py") else ""
    if not (command := given.command or python):
        raise UsageError(f"{folder / NAME}: command is missing, and {editable[0]} is no Python script")
    data = given.data or (CACHE,) * Path(CACHE).expanduser().is_dir()
    for name in data:
        if not (folder / Path(name).expanduser()).is_dir():
            raise UsageError(f"{folder / NAME}: data: {name} is not a folder")
    chosen = given.model_copy(update={"editable": editable, "command": command, "data": data})
    return Task(**dict(chosen), form="reported", program=_read_program(folder / "program.md"))


def read_task_file(path: Path) -> TaskFile:
    """Return the content of nightshift.toml; the defaults where there is none. Raises UsageError."""
    try:
        given = TaskFile(**tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return TaskFile()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        what = f"unknown key {key}" if fault["type"] == "extra_forbidden" else f"{key}: {fault['msg']}"
        raise UsageError(f"{path}: {what}") from error
    if len(given.editable) > 1:
        raise UsageError(f"{path}: editable names {len(given.editable)} files, and only one can be edited so far")
    for name in given.editable:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or set(name) & set("*?["):
            raise UsageError(f"{path}: editable: {name} is not the path of a file in its folder")
    return given


def _read_program(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[:PROGRAM_CHARACTERS] if path.is_file() else ""


def _has_protocol(script: Path) -> bool:
    """Return whether a script imports `prepare`; True where it cannot be read, which is said elsewhere."""
    try:
        tree = ast.parse(script.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return True
    return any(name.partition(".")[0] == "prepare" for node in ast.walk(tree) for name in list_imports(node))
