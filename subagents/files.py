"""Tools for one file in memory: view, replace, check. They take no paths, so no other file can be reached."""

import ast
import re
import sys
import warnings
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from importlib.metadata import packages_distributions

from subagents.logs import count_fitting, fence, split_lines
from subagents.tools import RESULT_BYTES, Tool, ToolError

ROOM = RESULT_BYTES - 100  # bytes of a page, without its first line


class EditedFile:
    """The text of a script that is being edited."""

    def __init__(self, text: str) -> None:
        self.before = self.text = text

    @property
    def tools(self) -> tuple[Tool, ...]:
        check = Tool.from_function(self.check, pure=False)  # a replay may run where other packages are installed
        return Tool.from_function(self.view), Tool.from_function(self.replace), check

    def view(self, first: int = 1, last: int | None = None) -> str:
        """Show train.py from line `first` to line `last` as it stands now, in pages that say where to go on.

        The numbers are not part of the text.
        """
        return number_page(self.text, first, last)

    def replace(self, old: str, new: str) -> str:
        """Replace one passage of train.py.

        `old` is its exact text, spaces and comments included, and long enough to occur only once. `new` replaces it
        and may be empty.
        """
        found = re.finditer(f"(?={re.escape(old)})", self.text) if old else ()  # overlapping occurrences, too
        places = [self.text.count("\n", 0, match.start()) + 1 for match in found]
        if old == new:
            raise ToolError("`old` and `new` are the same: nothing would change.")
        if not places:
            raise ToolError(f"`old` does not occur in train.py.{_suggest(self.text, old)}")
        if len(places) > 1:
            lines = ", ".join(map(str, places[:10]))
            raise ToolError(f"`old` occurs {len(places)} times, at lines {lines}. Include more of the text around it.")
        self.text = self.text.replace(old, new)
        return f"Replaced at line {places[0]}."

    async def check(self) -> str:
        """Check the syntax and the imports of train.py as it stands now. It is not run."""
        if fault := self.find_fault():
            raise ToolError(f"{fault}.")
        if not find_syntax_error(self.text) and (missing := find_missing_packages(self.text)):
            raise ToolError(f"Not installed here, and nothing can be installed: {', '.join(missing)}.")
        return "Syntax and imports are in order. It was not run: check the shapes."

    def find_fault(self) -> str:
        """Return why the text cannot be handed in as a candidate; empty if it can."""
        if self.text == self.before:
            return "train.py is unchanged"
        return "" if find_syntax_error(self.before) else find_syntax_error(self.text)  # it may be no Python at all


class StartedFile(EditedFile):
    """A script that `check` runs, too: `start` returns what a step of it costs, nothing if unknown, or the fault."""

    def __init__(self, text: str, start: Callable[[str], Awaitable[Mapping[str, object] | str]] | None) -> None:
        super().__init__(text)
        self.start = start

    async def check(self) -> str:
        """Check the syntax and the imports of train.py as it stands now, and run it up to where its training begins."""
        await super().check()
        assert self.start
        found = await self.start(self.text)
        if isinstance(found, str):
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


def find_syntax_error(source: str) -> str:
    """Return why Python cannot compile the source, with the line; empty if it can."""
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(source, "train.py", "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"train.py has a syntax error in line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:
        return f"train.py cannot be compiled: {error}"
    return ""


def find_missing_packages(source: str) -> list[str]:
    """Return the top-level packages that the source imports outside of any `try` and that are not installed."""
    tree = ast.parse(source)
    guarded = {id(node) for block in ast.walk(tree) if isinstance(block, ast.Try) for node in ast.walk(block)}
    names = [name for node in ast.walk(tree) if id(node) not in guarded for name in list_imports(node)]
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
