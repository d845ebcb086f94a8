"""Tools for files in memory: view, replace, check; in a tree also create and delete. They reach no other file."""

import ast
import re
import sys
import warnings
from collections.abc import Awaitable, Callable, Mapping
from functools import cache, partial
from importlib.metadata import packages_distributions

from subagents.logs import count_fitting, fence, split_lines
from subagents.tools import RESULT_BYTES, Tool, ToolError

Join = Callable[[Mapping[str, str]], str]
Start = Callable[[str], Awaitable[Mapping[str, object] | str]]  # gives what a step costs, if known, or the fault
ROOM = RESULT_BYTES - 100  # bytes of a page, without its first line
MAX_NAME, MAX_PATH = 255, 4_096  # bytes of a file's name and of its path on usual file systems
MAX_LEVELS = 100  # levels of a syntax tree: scripts have up to 60, and what walks a tree fails at about 250
MAX_STARTS = 8  # starts of a draft in one conversation: each may take as long as a run
LISTED = 10  # lines that are named where a passage is not unique


class EditedFiles:
    """The files of a candidate that is being edited; `check` also starts it, if there is what can.

    The tools of a single file take no path. Those of a tree do, and two more create and delete files.
    """

    def __init__(
        self,
        files: Mapping[str, str],
        start: Start | None = None,
        is_allowed: Callable[[str], bool] | None = None,
        join: Join = lambda files: "".join(files.values()),
    ) -> None:
        """Begin with one file by its path, or with a tree, where `is_allowed` tells which files there may be."""
        self.before, self.files, self.start, self.is_allowed, self.join = files, dict(files), start, is_allowed, join
        self.starts = 0

    @property
    def text(self) -> str:
        return self.join(self.files)

    @property
    def tools(self) -> tuple[Tool, ...]:
        one, more = ((), (self.create, self.delete)) if self.is_allowed else (self.files, ())
        pure = map(Tool.from_function, (partial(self.view, *one), partial(self.replace, *one), *more))
        return *pure, Tool.from_function(self.check, pure=False)  # a replay may run where other packages are installed

    def view(self, path: str, first: int = 1, last: int | None = None) -> str:
        """Show the file from line `first` to line `last` as it stands now, in pages that say where to go on.

        The numbers are not part of the text.
        """
        return number_page(self._read(path), first, last)

    def replace(self, path: str, old: str, new: str) -> str:
        """Replace one passage of the file.

        `old` is its exact text, spaces and comments included, and long enough to occur only once. `new` replaces it
        and may be empty.
        """
        text, old, new = self._read(path), _normalize(old), _normalize(new)
        found = re.finditer(f"(?={re.escape(old)})", text) if old else ()  # overlapping occurrences, too
        places = [text.count("\n", 0, match.start()) + 1 for match in found]
        if old == new:
            raise ToolError("`old` and `new` are the same: nothing would change.")
        if not places:
            raise ToolError(f"`old` does not occur in {path}.{_suggest(text, old)}")
        if len(places) > 1:
            lines = ", ".join([*map(str, [*dict.fromkeys(places)][:LISTED]), *["…"] * (len({*places}) > LISTED)])
            raise ToolError(f"`old` occurs {len(places)} times, at lines {lines}. Include more of the text around it.")
        self.files[path] = text.replace(old, new)
        return f"Replaced at line {places[0]}."

    def create(self, path: str, text: str) -> str:
        """Create a file with this text, where the task allows one."""
        if path in self.files:
            raise ToolError(f"{path!r} exists already.")
        if not (self.is_allowed and self.is_allowed(path)):
            raise ToolError(f"The task allows no {path!r}.")
        if any(f"{one}/".startswith(f"{other}/") for name in self.files for one, other in ((path, name), (name, path))):
            raise ToolError(f"There is a file where {path!r} needs a folder, or a folder in its place.")
        if len(path.encode()) > MAX_PATH or max(map(len, path.encode().split(b"/"))) > MAX_NAME:
            raise ToolError("The path is too long.")
        self.files[path] = _normalize(text)
        return f"Created {path}."

    def delete(self, path: str) -> str:
        """Delete a file."""
        self._read(path)
        del self.files[path]
        return f"Deleted {path}."

    async def check(self) -> str:
        """Check the syntax and the imports; where possible, run it up to where its training begins."""
        if fault := self.find_fault():
            raise ToolError(f"{fault}.")
        own = {part.removesuffix(".py") for path in self.files for part in path.split("/")}
        known = own | {*find_missing_packages(*self.before.values())}
        if missing := [name for name in find_missing_packages(*self.files.values()) if name not in known]:
            raise ToolError(f"Not installed here, and nothing can be installed: {', '.join(missing)}.")
        if not self.start or self.starts == MAX_STARTS:
            again = f" again, since {MAX_STARTS} times are enough" * bool(self.start)
            return f"Syntax and imports are in order. It was not run{again}: check the shapes."
        self.starts += 1
        if isinstance(found := await self.start(self.text), str):
            raise ToolError(f"It fails before its training begins:\n{fence(split_lines(found))}")
        ran = "It was run up to its training: a step of it ran."
        return f"Syntax and imports are in order. {ran if found else 'No step could be run: check the shapes.'}"

    def find_fault(self) -> str:
        """Return why the files cannot be handed in as a candidate; empty if they can."""
        if self.files == self.before:
            return "no file is changed" if self.is_allowed else f"{', '.join(self.files)} is unchanged"
        python = [path for path in self.files if path.endswith(".py") or not self.is_allowed]
        sound = [path for path in python if not find_syntax_error(self.before.get(path, ""))]
        faults = (find_syntax_error(self.files[path], path) for path in sound)
        return next(filter(None, faults), "") if self.files else "no file is left"

    def _read(self, path: str) -> str:
        if path not in self.files:
            raise ToolError(f"No file {path!r} may change; these may: {', '.join(self.files)}.")
        return self.files[path]


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
    """Return why Python cannot compile the source, with the line, or why nothing may walk it; empty if all is well."""
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(source, path, "exec", dont_inherit=True)
            row: list[ast.AST] = [ast.parse(source)]
        for _ in range(MAX_LEVELS):
            row = [child for node in row for child in ast.iter_child_nodes(node)]
        if lines := [node.lineno for node in row if isinstance(node, ast.expr | ast.stmt)]:
            return f"{path} is nested too deeply in line {lines[0]}: in more than {MAX_LEVELS} levels"
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


def _normalize(text: str) -> str:
    r"""Return the text with lines that end by \n alone, as in all files here; a commit restores the file's own ends."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _suggest(text: str, old: str) -> str:
    wanted = "".join(next((line for line in old.splitlines() if line.strip()), "").split())
    for number, line in enumerate(text.splitlines(), 1):
        if wanted and wanted in "".join(line.split()):
            return f" Line {number} is close, but its spaces or the text after it differ: {line!r}"
    return " View the passage and copy it exactly."
