"""What an examined run sees of its repository: the candidate's files, and the modules that they import."""

import ast
import errno
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from orchestrator.core.task import EXAMINED, Task
from orchestrator.lab.failures import MachineError
from orchestrator.lab.sandbox.base import TRUSTED
from orchestrator.repo import list_folders
from prepare.constants import get_name
from prepare.tree import parse_files, split_files


@dataclass(frozen=True, slots=True)
class ScriptTree:
    """Lays out candidates; of the repository's other files a run gets only the modules that its candidate imports."""

    task: Task = EXAMINED
    modules: Mapping[str, str] = field(default_factory=dict[str, str])
    """The other Python files beside the script, as git has them, by path."""
    others: frozenset[str] = frozenset()
    """Where no candidate may have a file: see check_places."""

    @property
    def script(self) -> str:
        """The path of what a run starts: train.py, unless there is another of that name or the task says otherwise."""
        named = [*shlex.split(self.task.command)[1:], *self.task.editable]
        return named[0] if self.task.command or "train.py" in self.modules else "train.py"

    def select(self, source: str) -> dict[str, str]:
        """Return the files of a candidate's run by path. Raises MachineError where it may not have one."""
        own = split_files(source) if self.task.has_tree else {self.script: source}
        if strange := [name for name in own if self.task.has_tree and not self.task.is_editable(name)]:
            raise MachineError(f"a candidate has a file {strange[0]!r}, which is not editable")
        own |= {self.script: self.modules[self.script]} if self.script in self.modules else {}  # it may not change
        return find_modules(own, self.modules) | own

    def lay_out(self, work: Path, source: str) -> None:
        """Write the files of a candidate's run into its folder. Raises MachineError, OSError."""
        files = self.select(source)
        check_places(source, self.others)
        for name, text in files.items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_text(text, "utf-8", "surrogateescape")


def check_places(source: str, others: frozenset[str]) -> None:
    """Raise FileExistsError for a candidate's file in the place of others: git tracks them, or ignores what lies there.

    A commit with it would delete the former, and a merge of that the latter.
    """
    folders = list_folders(others)
    for name in split_files(source):
        if name in folders or not others.isdisjoint(map(str, (name, *PurePosixPath(name).parents))):
            raise FileExistsError(errno.EEXIST, "what lies there may not change", name)


def find_modules(files: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
    """Return those of the other files that these files import, directly or not, with the packages around them.

    A script may add folders to its path, so any file counts whose path ends with what is imported.
    """
    found, new = dict[str, str](), dict(files)
    while new:
        left, names = others.keys() - files.keys() - found.keys(), list_imported(new)
        ends = {path: [path, *(path[i + 1 :] for i, letter in enumerate(path) if letter == "/")] for path in left}
        new = {path: others[path] for path in left if not names.isdisjoint(map(_get_module, ends[path]))}
        found |= new
    return found


def find_forgotten(files: Mapping[str, str], untracked: Iterable[str]) -> list[str]:
    """Return the untracked files that these files import."""
    names = list_imported(files)
    return [path for path in untracked if path.endswith(".py") and _get_module(path) in names]


def list_imported(files: Mapping[str, str]) -> set[str]:
    """Return what files may import as paths without an ending, from the script's folder, and the packages around it."""
    names = {name for path, text in files.items() for name in _list_names(path, text)}
    return {"/".join(name.split(".")[:end]) for name in names for end in range(1, name.count(".") + 2)}


def _list_names(path: str, text: str) -> Iterator[str]:
    """Yield the dotted names that a file may import, but for ours."""
    for node in ast.walk(parse_files(text)):
        match node:
            case ast.Import(aliases):
                names = [alias.name for alias in aliases]
            case ast.ImportFrom(module, aliases, level):
                folder = path.split("/")[:-level] if level else []
                names = [".".join([*folder, *filter(None, [module]), alias.name]) for alias in aliases]
            case ast.Call(function, [ast.Constant(str(name)), *_]) if "import" in get_name(function):
                names = [name]  # import_module, __import__
            case _:
                continue
        yield from (name for name in names if name.partition(".")[0] != TRUSTED.name)


def _get_module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__")
