"""What an examined run sees of its repository: the candidate's files, and the modules that they import."""

import ast
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.core.source import get_name
from orchestrator.core.task import EXAMINED, Task
from orchestrator.lab.failures import MachineError
from orchestrator.lab.sandbox.base import TRUSTED
from prepare.tree import parse_files, split_files


@dataclass(frozen=True, slots=True)
class ScriptTree:
    """Lays out candidates; of the repository's other files a run gets only the modules that its candidate imports."""

    task: Task = EXAMINED
    modules: Mapping[str, str] = field(default_factory=dict[str, str])
    """The other Python files beside the script, as git has them, by path."""

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
        for name, text in self.select(source).items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_text(text, "utf-8", "surrogateescape")


def find_modules(files: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
    """Return those of the other files that these files import, directly or not, with the packages around them.

    A script may add folders to its path, so any file counts whose path ends with what is imported.
    """
    found, new = dict[str, str](), dict(files)
    while new:
        names = {name for path, text in new.items() for name in _list_names(path, text)}
        new = {path: others[path] for path in others.keys() - files.keys() - found.keys() if _is_named(path, names)}
        found |= new
    return found


def _list_names(path: str, text: str) -> Iterator[str]:
    """Yield what a file may import as paths without their ending, the packages around it included."""
    for node in ast.walk(parse_files(text)):
        names = list[str]()
        match node:
            case ast.Import(aliases):
                names = [alias.name for alias in aliases]
            case ast.ImportFrom(module, aliases, level):
                folder = path.split("/")[:-level] if level else []
                base = ".".join([*folder, *filter(None, [module])])
                names = [f"{base}.{alias.name}" for alias in aliases]
            case ast.Call(function, [ast.Constant(str(name)), *_]) if "import" in get_name(function):
                names = [name]  # import_module, __import__
            case _:
                pass
        for parts in (name.split(".") for name in names if name.partition(".")[0] != TRUSTED.name):
            yield from ("/".join(parts[:end]) for end in range(1, len(parts) + 1))


def _is_named(path: str, names: set[str]) -> bool:
    parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
    return any("/".join(parts[start:]) in names for start in range(len(parts)))
