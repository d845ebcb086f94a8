"""Read nightshift.toml, and find out how a script's runs are scored: examined, or reported by the script itself."""

import ast
import os
import re
import shlex
import subprocess
import tomllib
from itertools import chain
from pathlib import Path
from posixpath import normpath

from pydantic import ValidationError

from orchestrator.cli.options import Paths, UsageError
from orchestrator.core.task import Task
from orchestrator.lab.log import parse_pattern
from orchestrator.lab.sandbox.base import TRUSTED
from prepare.files import read_written, resolve_home
from prepare.tree import NOT_PYTHON
from subagents.files import list_imports

NAME, KEYS = "nightshift.toml", Task.model_fields.keys() - {"form", "program", "fixed", "is_repeated"}
CACHE, PROGRAM_CHARACTERS = "~/.cache/autoresearch", 12_000
"""Where autoresearch's prepare.py puts its data; what is read of program.md."""
_SHELL = r"(?<![.\w-])([bd]?a|m?k|z|fi|t?c)?sh\s+(([-+]\w*[oO]|--\S*file)\s+[^\s+-]\S*\s+|[-+]\S+\s+)*-(\w*c|-command)"
"""A shell and its options up to the one whose word it runs, which has no arguments itself."""
_DEEP = re.compile(r"(\*\*/)+(?=\*)")  # any folder or none, as a * that crosses folders stands for by itself


def find_task(script: Path) -> Task:
    """Return the task in the script's folder. Raises UsageError."""
    folder, given = script.parent, read_task(script)
    editable, main = given.editable or (script.name,), find_main(script, given)
    python = f"python {shlex.quote(main)}" if main.endswith(".py") else ""
    is_script = bool(python) or not given.editable
    if is_script and given.model_fields_set <= {"editable", "protected"} and _has_protocol(folder, main, given):
        return Task() if editable == (script.name,) else given.model_copy(update={"command": python})
    if not (command := given.command or python):
        raise UsageError(f"{folder / NAME}: command is missing, and {main} is not a Python script")
    usual = (CACHE,) * ("data" not in given.model_fields_set and resolve_home(CACHE).is_dir())
    data, program = given.data or usual, folder / "program.md"
    for name in data:
        if not (folder / resolve_home(name)).exists():
            raise UsageError(f"{folder / NAME}: data: {name} is not a folder or file that is here")
        if not name.startswith(("~/", "/")) and (why := _find_misplacement(folder.resolve(), name)):
            raise UsageError(f"{folder / NAME}: data: {name} {why}")
        if held := _find_editable(folder.resolve(), name, (main, *given.named), given):
            words = f"{name} holds {held}, which a run has from git: name what else it needs"
            raise UsageError(f"{folder / NAME}: data: {words}")
    text = _read(program) if program.is_file() else ""
    found = {"editable": editable, "command": command, "data": data, "program": text[:PROGRAM_CHARACTERS]}
    return given.model_copy(update={"form": "reported", **found})


def find_main(script: Path, given: Task) -> str:
    """Return the name of the script that a run starts: that, or what nightshift.toml names. Raises UsageError."""
    if not given.named or script.name in given.named:
        return script.name
    if script.name != Paths.script.name and not given.command:
        other = script.parent / given.named[0]
        words = f"names {given.named[0]}, not {script.name}: add it to editable, or give --script {other}"
        raise UsageError(f"{script.parent / NAME} {words}")
    return given.named[0]


def _find_misplacement(folder: Path, name: str) -> str:
    """Return why no run can have this data by its path in the folder of the script; empty if one can."""
    top = next((at for at in (folder, *folder.parents) if (at / ".git").exists()), folder)
    path = os.path.relpath(folder / name, top)
    if path.split("/")[0] == "..":
        return "leads out of the repository: write it from / or ~/ on"
    return "is where a run has files of its own: name what lies in it" * (path == "tmp")


def _find_editable(here: Path, name: str, named: tuple[str, ...], task: Task) -> str:
    """Return a file in data that candidates may change; empty if there is none, as patterns leave data of here out."""
    place = (here / resolve_home(name)).resolve()
    walked = place.rglob("*") if name[0] in "/~" and place.is_relative_to(here) else ()
    inside = (path for path in chain((here / at for at in named), walked) if path.is_relative_to(place))
    paths = (path.relative_to(here).as_posix() for path in inside)
    return next((path for path in paths if path in named or task.is_editable(path)), "")


def read_task(script: Path) -> Task:
    """Return what nightshift.toml beside a script says; the defaults where there is none. Raises UsageError."""
    path = script.parent / NAME
    if not path.is_file() and (path.is_symlink() or path.exists()):
        raise UsageError(f"{path} is not a file, or a link to none")
    try:
        table = tomllib.loads(_read(path)) if path.is_file() else {}
        if unknown := table.keys() - KEYS:
            raise UsageError(f"{path}: unknown key {min(unknown)}")
        given = Task(**table)
        if given.editable or given.protected:
            editable, names = ([_DEEP.sub("", at) for at in each] for each in (given.editable, given.protected))
            names = [f"{name}/*" if (path.parent / name).is_dir() else name for name in map(normpath, names)]
            given = given.model_copy(update={"editable": (*editable,), "protected": (*names,)})
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        fault = error.errors()[0]
        key, unknown = ".".join(map(str, fault["loc"])), fault["type"] == "extra_forbidden"
        words = f"{fault['input']!r} cannot be one" if fault["type"] == "string_pattern_mismatch" else fault["msg"]
        words += ": letters, digits and . / - alone; a pattern finds any other" * (key == "metric.name")
        words = words.partition(" or instance")[0].replace("tuple", "list").replace("dictionary", "table")
        raise UsageError(f"{path}: " + (f"unknown key {key}" if unknown else f"{key}: {words}")) from error
    for at in (at for at in (*given.editable, *given.protected) if "**/" in at):
        both = f"{at.replace('**/', '')} and {at.replace('**/', '*/')}"
        raise UsageError(f"{path}: {at}: here **/ stands for one folder or more, unless a * follows: name {both}")
    if both := [at for at in given.editable if at in given.protected]:
        raise UsageError(f"{path}: {both[0]} is both editable and protected: name it in one of them")
    try:
        parse_pattern(given.metric.pattern)
    except ValueError as error:
        raise UsageError(f"{path}: metric.pattern: {error}") from error
    if not (name := given.seed.get("env", "SEED")).isidentifier():
        raise UsageError(f"{path}: seed.env: {name!r} cannot name a variable")
    for command in filter(None, (given.command, *given.checks)):
        if fault := subprocess.run(["/bin/sh", "-nc", command], check=False, capture_output=True, text=True).stderr:
            raise UsageError(f"{path}: a shell cannot read {command!r}: {fault}")
    if "argument" in given.seed and not _is_one_program(given.command):
        remedy = f"write {given.seed['argument']} $NIGHTSHIFT_SEED into the command, and leave out seed"
        raise UsageError(f"{path}: seed.argument: {given.command!r} is not one program: {remedy}")
    if 0 < given.timeout < given.budget:
        raise UsageError(f"{path}: timeout {given.timeout:g} would end every run before its budget of {given.budget:g}")
    return given


def _is_one_program(command: str) -> bool:
    """Return whether what is added to the end of a command is an argument of what it runs: no pipe, list or `sh -c`."""
    bare = re.sub(r"""'[^']*'|"(?:\\.|[^"\\])*"|\\.""", "x", command.strip(), flags=re.DOTALL)
    return not re.search(rf"[|;()\n]|(?<!>)&|\s#|{_SHELL}", bare)


def _read(path: Path) -> str:
    try:
        return read_written(path)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: save it as UTF-8") from error


def _has_protocol(folder: Path, main: str, task: Task) -> bool:
    """Return whether a script or an editable file imports our `prepare`, or it cannot be read, which is said elsewhere.

    Another file that cannot is perhaps one that git ignores.
    """
    if has_own_prepare(folder / main):
        return False
    there = folder.rglob("*.py") if task.editable else ()
    editable = (path for path in there if task.is_editable(path.relative_to(folder).as_posix()))
    return _has_import(folder / main, unread=True) or any(map(_has_import, editable))


def has_own_prepare(script: Path) -> bool:
    """Return whether a `prepare` lies beside a script that is not Nightshift's, and that it would import instead."""
    beside = [script.parent / name for name in ("prepare.py", "prepare/__init__.py")]
    return any(path.is_file() and TRUSTED.resolve() not in path.resolve().parents for path in beside)


def _has_import(path: Path, *, unread: bool = False) -> bool:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, *NOT_PYTHON):
        return unread
    return any(name.partition(".")[0] == "prepare" for node in ast.walk(tree) for name in list_imports(node))
