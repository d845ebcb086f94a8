"""Choose the constants of a script that can be searched, and take steps in their spaces. Pure."""

import ast
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from math import isclose
from typing import Literal

from orchestrator.core.events import Direction, parse_value
from orchestrator.core.text import shorten
from prepare.constants import Choices, Constant, Numbers, Space, Value, get_name, is_plain, list_searchable, read_values
from prepare.tree import parse_files

STEP_SIZE = 0.375  # a first step, as a share of the space or of a count: long, to exceed the noise
CLOSE = 0.005  # a step that changes a number by up to 1 % counts only if it is longer than this share of its range
OUTPUT = {"print", "log", "debug", "info", "warning", "write", "flush"}
"""Functions whose call has no effect on training if the statement is nothing but the call."""
LOOKS = {"globals", "locals", "vars"}  # functions that read constants without naming them, all at once
REFLECTION = LOOKS | {"exec", "eval"}  # functions that may read a constant without naming it
_TEXT = {"str", "repr", "format", "join", "dumps", "pformat", "dict", "items", "sorted"}
PLAIN = OUTPUT | LOOKS | _TEXT | {"round", "len", "int", "float", "max", "min", "sum"}
"""Functions without side effects on training."""


@lru_cache(maxsize=512)  # the optimizer asks for all parents in turn
def list_tunable(
    source: str,
    is_reported: bool = False,
    fixed: tuple[str, ...] = (),
    *,
    guesses: bool = False,
    is_old: bool = False,
) -> dict[str, Constant]:
    """Return the constants that training reads and whose space holds another value.

    Seeds are left out: the orchestrator assigns them. Where the score is a number that the script prints, everything
    has an effect except what is printed as it is. `guesses` and `is_old` are those of `list_searchable`.
    """
    found, names = list_searchable(source, guesses=guesses, is_old=is_old), set[str]()
    with suppress(RecursionError):  # older sessions may hold a script that would not be accepted now
        names = (_find_names_computed if is_reported else _find_names_read)(source) if found else names
    own = {name: name.rpartition(":")[2].removeprefix("--").replace("-", "_") for name in found}
    words = {name: (own[name], constant.dest or own[name]) for name, constant in found.items()}
    read = {n: c for n, c in found.items() if {words[n][1], f".{words[n][1]}"} & names or names & REFLECTION}
    free = {n: c for n, c in read.items() if not ({*fixed} & {*words[n]} or "seed" in f"{words[n]}".lower())}
    return {name: constant for name, constant in free.items() if _has_steps(constant)}


def find_fixed(source: str, command: str) -> tuple[str, ...]:
    """Return the options whose defaults have no effect, since the command or `set_defaults` sets them."""
    calls = [node for node in ast.walk(parse_files(source)) if isinstance(node, ast.Call)]
    keywords = (word.arg for call in calls if get_name(call.func) == "set_defaults" for word in call.keywords)
    options = (word.replace("-", "_") for word in re.findall(r"(?<![\w-])--([\w-]+)", command))
    return (*sorted({*options, *filter(None, keywords)}),)


def explain_untunable(source: str, script: str) -> str:
    """Return why a script without tunable constants has none, and what to do about it."""
    if not script.endswith(".py"):
        return f"the optimizer changes Python alone, and not {script}: leave out --offline to have a model propose"
    found = shorten(", ".join(read_values(source)), 80)
    reason = f"{found}: each lacks a range, or is read only for output" if found else "it assigns none"
    return (
        f"the optimizer finds no constant to search in {script} ({reason}). Assign one at the top level and state "
        "its range, as in LR = 0.01 # 0.001..0.1 log, or leave out --offline to have a model propose"
    )


def explain_unsearchable(way: str) -> str:
    """Return which package a way to search lacks, and how to install it; empty if none."""
    return "--search gp needs the package scipy: pip install scipy" if way == "gp" and not find_spec("scipy") else ""


def _has_steps(constant: Constant) -> bool:
    """Return whether the space holds another value, and only values that a proposal can express."""
    options = constant.space.options if isinstance(constant.space, Choices) else ()
    if not all(is_plain(value) and parse_value(repr(value)) == value for value in (constant.value, *options)):
        return False
    steps = (take_step(constant, way, 1.0) for way in ("up", "down"))
    return any(option != constant.value for option in options) or any(step is not None for step in steps)


def get_direction(constant: Constant, new: Value) -> Direction:
    """Return the direction from a constant's value to a new one; `set` if its values have no order."""
    old, ordered = constant.value, not isinstance(constant.space, Choices) or constant.space.ordered
    if ordered and isinstance(old, int | float) and isinstance(new, int | float):
        return "up" if new > old else "down"
    return "set"


def take_step(constant: Constant, way: Literal["up", "down"], size: float) -> Value | None:
    """Return the value `size` step sizes away, within the constant's space; None at the end of the space."""
    sign = 1 if way == "up" else -1
    match constant.space, constant.value:
        case Choices(options=options), old:
            reachable = [option for option in options if get_direction(constant, option) == way and option != old]
            rising = reachable if way == "up" else reachable[::-1]
            new = rising[min(round(size), len(rising)) - 1] if rising else old
        case Numbers(whole=True, log=False) as space, int() as old:
            new = round(space.clip(old + sign * max(1, round(abs(old) * STEP_SIZE)) * round(size)))
        case Numbers() as space, (int() | float()) as old:
            new = space.from_unit(space.to_unit(old) + sign * STEP_SIZE * size, constant.is_coarse)
            if new == old and space.whole:
                new = round(space.clip(old + sign))
        case _, old:
            new = old
    space, is_near = constant.space, False
    if isinstance(new, float) and isinstance(old, float) and isclose(new, old, rel_tol=0.01):
        # In 0.99..0.9999, say, neighbours are far apart. Choices are always meant.
        is_short = isinstance(space, Numbers) and abs(space.to_unit(new) - space.to_unit(old)) <= CLOSE
        is_near = is_short or constant.is_coarse
    return new if get_direction(constant, new) == way and new != old and not is_near else None


def is_within(space: Space, value: Value) -> bool:
    if isinstance(space, Choices):
        return value in space.options
    return isinstance(value, int | float) and space.low <= value <= space.high


def is_between(middle: Value, a: Value, b: Value) -> bool:
    numbers = [x for x in (a, middle, b) if isinstance(x, int | float) and not isinstance(x, bool)]
    return len(numbers) == 3 and numbers in (sorted(numbers), sorted(numbers, reverse=True))


def _find_names_computed(source: str) -> set[str]:
    """Return the names that are read other than to be printed as they are, or to decide whether to print."""
    nodes = [*ast.walk(parse_files(source))]
    calls = [node for node in nodes if isinstance(node, ast.Call) and get_name(node.func) in OUTPUT]
    shown = {id(value) for call in calls for value in call.args}
    shown |= {id(part.value) for call in calls for part in ast.walk(call) if isinstance(part, ast.FormattedValue)}
    used = set(_list_read(nodes))
    blocks = [node for node in nodes if isinstance(node, ast.If | ast.For) and _is_idle(node, used)]
    tests = [block.test for block in blocks if isinstance(block, ast.If)]
    inner = [part for node in (*calls, *blocks) for part in _walk_plain(node) if isinstance(part, ast.Call)]
    looks = [call for call in inner if get_name(call.func) in LOOKS]
    shown |= {id(part) for top in (*tests, *looks) for part in ast.walk(top)}
    return set(_list_read(node for node in nodes if id(node) not in shown))


def _walk_plain(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below one, without calls of functions that may have an effect."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.Call) or get_name(child.func) in PLAIN:
            yield child
            yield from _walk_plain(child)


def _find_names_read(source: str) -> set[str]:
    """Return the names whose values may affect more than output."""
    tree, known, found = parse_files(source), None, set[str]()
    while known != found:  # a name counts once the name that it is assigned to counts
        known = found
        found = known | set(_list_read(_walk_effective(tree, known)))
    return found


def _list_read(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the names that are read, those of attributes after a dot: what argparse has read, what a module holds."""
    for node in nodes:
        match node:
            case ast.Name(name, ast.Load()):
                yield name
            case ast.Attribute(_, name, ast.Load()):
                yield f".{name}"
            case _:
                pass


def _walk_effective(node: ast.AST, known: set[str]) -> Iterator[ast.AST]:
    """Yield the nodes of a syntax tree; of statements without effect, only the calls that may have one."""
    for child in ast.iter_child_nodes(node):
        # What a class body assigns is read as an attribute.
        if isinstance(child, ast.stmt) and not isinstance(node, ast.ClassDef) and _is_idle(child, known):
            for part in ast.walk(child):
                if isinstance(part, ast.Call) and get_name(part.func) not in PLAIN:
                    yield from _walk_effective(part, known)
        else:
            yield child
            yield from _walk_effective(child, known)


def _is_idle(node: ast.stmt, known: set[str]) -> bool:
    """Return whether a statement only prints values, or assigns them to names that are not known to be read."""
    match node:
        case ast.Expr(value=ast.Call(func=function)):
            return get_name(function) in OUTPUT
        case ast.Assign(targets=targets):
            return all(isinstance(target, ast.Name) and target.id not in known for target in targets)
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
            return isinstance(target, ast.Name) and target.id not in known
        case ast.If(body=body, orelse=other) | ast.For(body=body, orelse=other):
            return all(_is_idle(part, known) for part in [*body, *other])
        case _:
            return isinstance(node, ast.Pass)
