"""Tools on one file that is held in memory: view, replace, check. There is no path, so nothing leads out of it."""

import ast
import sys
import warnings
from collections.abc import Awaitable, Callable, Iterator
from importlib.metadata import packages_distributions

from subagents.tools import Tool, ToolError

SHOWN = 400
"""Lines of one view."""
Smoke = Callable[[str], Awaitable[str]]
"""Runs one step of a train.py and says what went wrong; empty if nothing."""


class EditedFile:
    """The text of a script under edit."""

    def __init__(self, text: str) -> None:
        self.before = self.text = text

    @property
    def tools(self) -> tuple[Tool, ...]:
        return Tool.of(self.view), Tool.of(self.replace)

    def view(self, first: int = 1, last: int = SHOWN) -> str:
        """Show train.py from line `first` to line `last` as it stands now. The numbers are not part of the text."""
        lines = self.text.splitlines()
        if not 1 <= first <= last:
            raise ToolError(f"Lines count from 1 to {len(lines)}, and `first` is not after `last`.")
        return "\n".join(f"{n:4}│{line}" for n, line in enumerate(lines[first - 1 : min(last, first + SHOWN)], first))

    def replace(self, old: str, new: str) -> str:
        """Replace one passage of train.py.

        `old` is its exact text, spaces and comments included, and enough of it to occur only once; `new` is what
        stands there afterwards, and may be empty.
        """
        places = list(_find_places(self.text, old))
        if old == new:
            raise ToolError("`old` and `new` are the same: nothing would change.")
        if not places:
            raise ToolError(f"`old` does not occur in train.py.{_suggest(self.text, old)}")
        if len(places) > 1:
            found = ", ".join(map(str, places[:10]))
            raise ToolError(
                f"`old` occurs {len(places)} times, at lines {found}. Give more of the text around the one."
            )
        self.text = self.text.replace(old, new)
        return f"Replaced at line {places[0]}."

    def problem(self) -> str:
        """Why this cannot be handed in as a candidate; empty if it can."""
        if self.text == self.before:
            return "train.py is unchanged"
        return find_syntax_error(self.text)


def make_checker(file: EditedFile, packages: frozenset[str], smoke: Smoke | None) -> Tool:
    """The tool that says whether a candidate would run; it may try one step, so a replay takes its word."""

    async def check() -> str:
        """Check train.py as it stands: syntax and imports, and on some machines one training step; it says which."""
        if problem := file.problem():
            raise ToolError(f"{problem}.")
        if unknown := find_missing_packages(file.text, packages):
            raise ToolError(f"Not installed here, and nothing can be installed: {', '.join(unknown)}.")
        if smoke and (problem := await smoke(file.text)):
            raise ToolError(problem)
        gone = sorted(list_constants(file.before) - list_constants(file.text))
        said = "One step of it runs." if smoke else "Syntax and imports are in order. It was not run: mind the shapes."
        return said + (f" Constants that are gone: {', '.join(gone)}." if gone else "")

    return Tool.of(check, pure=False)


def find_syntax_error(source: str) -> str:
    """Why Python does not take it, with the line; empty if it does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, "train.py", "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"train.py has a syntax error in line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:
        return f"train.py cannot be compiled: {error}"
    return ""


def find_missing_packages(source: str, packages: frozenset[str]) -> list[str]:
    """Top-level packages that it imports and that are not there; what a `try` guards may be missing."""
    tree = ast.parse(source)
    guarded = {id(node) for block in ast.walk(tree) if isinstance(block, ast.Try) for node in ast.walk(block)}
    names = {name for node in ast.walk(tree) if id(node) not in guarded for name in _list_imports(node)}
    return sorted(names - packages)


def list_packages() -> frozenset[str]:
    """The packages that a script on this machine may import."""
    return frozenset({*packages_distributions(), *sys.stdlib_module_names, "prepare"})


def list_constants(source: str) -> set[str]:
    """The UPPER_CASE names that a script assigns at its top level."""
    targets = (target for node in ast.parse(source).body if isinstance(node, ast.Assign) for target in node.targets)
    return {target.id for target in targets if isinstance(target, ast.Name) and target.id.isupper()}


def _list_imports(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (alias.name.partition(".")[0] for alias in names)
        case ast.ImportFrom(module=str() as module, level=0):
            yield module.partition(".")[0]
        case _:
            pass


def _find_places(text: str, old: str) -> Iterator[int]:
    """The lines at which `old` begins, overlapping finds included."""
    at = text.find(old) if old else -1
    while at >= 0:
        yield text.count("\n", 0, at) + 1
        at = text.find(old, at + 1)


def _suggest(text: str, old: str) -> str:
    """Where the first line of `old` stands but for its spaces: the usual slip."""
    wanted = "".join(next((line for line in old.splitlines() if line.strip()), "").split())
    for number, line in enumerate(text.splitlines(), 1):
        if wanted and wanted in "".join(line.split()):
            return f" Line {number} comes near it, but differs in spaces or in what follows: {line!r}"
    return " View the passage and copy it exactly."
