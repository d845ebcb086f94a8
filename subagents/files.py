"""Tools for files in memory: view, replace, check; create and delete where there are several. They reach no other."""

import ast
import re
import sys
import warnings
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import cache
from importlib.metadata import packages_distributions

from subagents.logs import count_fitting, fence, split_lines
from subagents.tools import RESULT_BYTES, Tool, ToolError

Join = Callable[[Mapping[str, str]], str]
Start = Callable[[str], Awaitable[Mapping[str, object] | str]]  # gives what a step costs, if known, or the fault
ROOM = RESULT_BYTES - 100  # bytes of a page, without its first line
LISTED = 10  # lines that are named where a passage is not unique


class EditedFile:
    """The text of a script that is being edited; `check` also starts it, if there is what can."""

    def __init__(self, text: str, path: str = "train.py", start: Start | None = None) -> None:
        self.before, self.text, self.path, self.start = text, text, path, start

    @property
    def tools(self) -> tuple[Tool, ...]:
        check = Tool.from_function(self.check, pure=False)  # a replay may run where other packages are installed
        return Tool.from_function(self.view), Tool.from_function(self.replace), check

    def view(self, first: int = 1, last: int | None = None) -> str:
        """Show the script from line `first` to line `last` as it stands now, in pages that say where to go on.

        The numbers are not part of the text.
        """
        return number_page(self.text, first, last)

    def replace(self, old: str, new: str) -> str:
        """Replace one passage of the script.

        `old` is its exact text, spaces and comments included, and long enough to occur only once. `new` replaces it
        and may be empty.
        """
        found = re.finditer(f"(?={re.escape(old)})", self.text) if old else ()  # overlapping occurrences, too
        places = [self.text.count("\n", 0, match.start()) + 1 for match in found]
        if old == new:
            raise ToolError("`old` and `new` are the same: nothing would change.")
        if not places:
            raise ToolError(f"`old` does not occur in {self.path}.{_suggest(self.text, old)}")
        if len(places) > 1:
            lines = ", ".join([*map(str, [*dict.fromkeys(places)][:LISTED]), *["…"] * (len({*places}) > LISTED)])
            raise ToolError(f"`old` occurs {len(places)} times, at lines {lines}. Include more of the text around it.")
        self.text = self.text.replace(old, new)
        return f"Replaced at line {places[0]}."

    async def check(self) -> str:
        """Check the syntax and the imports of the script; where possible, run it up to where its training begins."""
        return await _check(self, {self.path: self.text}, [self.before])

    def find_fault(self) -> str:
        """Return why the text cannot be handed in as a candidate; empty if it can."""
        if self.text == self.before:
            return f"{self.path} is unchanged"
        return "" if find_syntax_error(self.before) else find_syntax_error(self.text, self.path)


class EditedTree:
    """Several files that are being edited: tools as for one, which take a path, and two that create and delete."""

    def __init__(
        self, files: Mapping[str, str], is_allowed: Callable[[str], bool], join: Join, start: Start | None = None
    ) -> None:
        """Begin with these files by path; `is_allowed` tells which there may be, and `join` makes one text of them."""
        self.before, self.files, self.is_allowed, self.join, self.start = files, dict(files), is_allowed, join, start

    @property
    def text(self) -> str:
        return self.join(self.files)

    @property
    def tools(self) -> tuple[Tool, ...]:
        pure = map(Tool.from_function, (self.view, self.replace, self.create, self.delete))
        return *pure, Tool.from_function(self.check, pure=False)

    def view(self, path: str, first: int = 1, last: int | None = None) -> str:
        """Show a file from line `first` to line `last` as it stands now, in pages that say where to go on."""
        return self._open(path).view(first, last)

    def replace(self, path: str, old: str, new: str) -> str:
        """Replace one passage of a file: `old` is its exact text, and long enough to occur only once."""
        done = (file := self._open(path)).replace(old, new)
        self.files[path] = file.text
        return done

    def create(self, path: str, text: str) -> str:
        """Create a file with this text, where the task allows one."""
        if path in self.files or not self.is_allowed(path):
            raise ToolError(f"{path!r} exists already." if path in self.files else f"The task allows no {path!r}.")
        self.files[path] = text
        return f"Created {path}."

    def delete(self, path: str) -> str:
        """Delete a file."""
        self._open(path)
        del self.files[path]
        return f"Deleted {path}."

    async def check(self) -> str:
        """Check the syntax and the imports of all files; where possible, run up to where the training begins."""
        return await _check(self, self.files, self.before.values())

    def find_fault(self) -> str:
        """Return why the files cannot be handed in as a candidate; empty if they can."""
        if not self.files or self.files == self.before:
            return "no file is changed" if self.files else "no file is left"
        faults = (find_syntax_error(text, path) for path, text in self.files.items() if path.endswith(".py"))
        return next(filter(None, faults), "")

    def _open(self, path: str) -> EditedFile:
        if path not in self.files:
            raise ToolError(f"No file {path!r} may change; these may: {', '.join(self.files)}.")
        return EditedFile(self.files[path], path)


async def _check(edited: EditedFile | EditedTree, files: Mapping[str, str], before: Iterable[str]) -> str:
    """Return that all is in order, and whether a step of it ran. Raises ToolError where it cannot be, or fails."""
    if fault := edited.find_fault():
        raise ToolError(f"{fault}.")
    known = {part.removesuffix(".py") for path in files for part in path.split("/")} | {*find_missing_packages(*before)}
    if missing := [name for name in find_missing_packages(*files.values()) if name not in known]:
        raise ToolError(f"Not installed here, and nothing can be installed: {', '.join(missing)}.")
    if not edited.start:
        return "Syntax and imports are in order. It was not run: check the shapes."
    if isinstance(found := await edited.start(edited.text), str):
        raise ToolError(f"It fails before its training begins:\n{fence(split_lines(found))}")
    ran = "It was run up to its training: a step of it ran."
    return f"Syntax and imports are in order. {ran if found else 'No step could be run: check the shapes.'}"


def number_page(text: str, first: int, last: int | None) -> str:
    """Return numbered lines, as many as fit into a result, and where to continue. Raises ToolError."""
    lines = text.splitlines()
    last = len(lines) if last is None else min(last, len(lines))
    if not 1 <= first <= last:
        raise ToolError(f"Lines count from 1 to {len(lines)}, and `first` is not after `last`.")
    wanted = [f"{n:4}│{line}" for n, line in enumerate(lines[first - 1 : last], first)]
    fitting = count_fitting((line.encode("utf-8", "replace") for line in wanted), ROOM, extra=1) or 1
    end = first + fitting - 1
    more = f"; go on with first={end + 1}" * (end < last)
    return "\n".join([f"(lines {first} to {end} of {len(lines)}{more})", *wanted[:fitting]])


def find_syntax_error(source: str, path: str = "train.py") -> str:
    """Return why Python cannot compile the source, with the line; empty if it can."""
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(source, path, "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"{path} has a syntax error{f' in line {error.lineno}' * bool(error.lineno)}: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:
        return f"{path} cannot be compiled: {error}"
    return ""


def find_missing_packages(*sources: str) -> list[str]:
    """Return the top-level packages that the sources import outside of any `try` and that are not installed."""
    nodes = [node for source in sources if not find_syntax_error(source) for node in ast.walk(ast.parse(source))]
    guarded = {id(node) for block in nodes if isinstance(block, ast.Try) for node in ast.walk(block)}
    names = [name for node in nodes if id(node) not in guarded for name in list_imports(node)]
    return sorted({name.partition(".")[0] for name in names} - _list_packages())


def list_imports(node: ast.AST) -> list[str]:
    """Return the full names of the modules that a statement imports; relative ones are left out."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


@cache
def _list_packages() -> frozenset[str]:
    return frozenset({*packages_distributions(), *sys.stdlib_module_names, "prepare"})


def _suggest(text: str, old: str) -> str:
    wanted = "".join(next((line for line in old.splitlines() if line.strip()), "").split())
    for number, line in enumerate(text.splitlines(), 1):
        if wanted and wanted in "".join(line.split()):
            return f" Line {number} is close, but its spaces or the text after it differ: {line!r}"
    return " View the passage and copy it exactly."
