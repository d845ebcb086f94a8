"""Find the literals by which a script fixes its seed, and let it read the seed of the run in their place.

What is a seed, names tell; those of data, of a split or an evaluation stay, and so do generators with a literal of
their own, which may make data. The literal becomes the default of an expression, by which the user's text is put back
wherever it stands by then.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from itertools import islice

from orchestrator.core.source import SEEDERS, is_seeder
from orchestrator.core.task import EXAMINED, Task
from prepare.constants import get_name, is_plain, list_values
from prepare.tree import join_files, parse_files, split_files

VARIABLE = "NIGHTSHIFT_SEED"  # environment variable with the seed of every run
LONGEST = 200  # nodes; a longer expression computes something else than a seed
_READS = re.compile(r'(int\()?__import__\("os"\)\.environ\.get\("\w+", ([\w"\']+)\)(?(1)\))')
_SEED = re.compile(r"(?!n_|num_|\w*hash).*(seed|random_?state)", re.IGNORECASE)
_SETS = re.compile(r"(\w+_)?(set|reset|fix|init\w*|setup)_(\w+_)?seeds?")
_JUDGES = re.compile(r"split|fold|hold_?out|^(?!.*train).*(eval|valid|test)|(^|_)(val|dev)(_|$)", re.IGNORECASE)
_OF_DATA = re.compile(rf"data|shuffle|sampl|load|fetch|^make_|{_JUDGES.pattern}", re.IGNORECASE)


def with_assigned_seed(source: str, task: Task = EXAMINED) -> str:
    """Return the script with its literal seeds read from the environment; unchanged if it may have its seed already."""
    files, script = split_files(source), next(iter(task.editable), ".py")
    python = {path: text for path, text in files.items() if (path or script).endswith(".py")}
    tree, known = parse_files(join_files(python)), {VARIABLE, *task.seed.values()}
    nodes, seeds = [*ast.walk(tree)], [value for *_, value in _list_seeds(tree)]
    bound = {_get_label(node) for node in nodes if not isinstance(getattr(node, "ctx", None), ast.Load)}
    loaded = {_get_label(node) for value in seeds for node in ast.walk(value) if hasattr(node, "ctx")}
    if any(isinstance(node, ast.Constant) and node.value in known for node in nodes) or not loaded <= bound | {""}:
        return source
    judges = (node for node in nodes if _JUDGES.search(_get_own_name(node)))
    judging = {name for node in judges for name in _list_loaded(ast.walk(node))}  # another split is another judge
    used, variable = _list_loaded(nodes), task.seed.get("env", VARIABLE)
    return join_files(files | {path: _rewrite(text, used, judging, variable) for path, text in python.items()})


def with_literal_seed(source: str) -> str:
    """Return the script with the literals that `with_assigned_seed` has replaced."""
    return join_files({path: _READS.sub(r"\2", text) for path, text in split_files(source).items()})


def _rewrite(text: str, used: set[str], judging: set[str], variable: str) -> str:
    """Return one file with the seeds that are used, and not for judging, read from a variable, if it is Python."""
    seeds = _list_seeds(parse_files(text))
    lines = [line.encode() for line in text.split("\n")]  # Python counts bytes
    taken = (value for name, is_given, value in seeds if name not in judging and (is_given or name in used))
    found = {at for value in taken for at in _list_literals(value)}
    for at in sorted(found, key=lambda at: (at.lineno, at.col_offset), reverse=True):
        line, end = lines[at.lineno - 1], at.end_col_offset
        read = f'__import__("os").environ.get("{variable}", {line[at.col_offset : end].decode()})'
        read = f"int({read})" if isinstance(at.value, int) else read
        lines[at.lineno - 1] = line[: at.col_offset] + read.encode() + line[end:]
    return b"\n".join(lines).decode()


def _list_seeds(tree: ast.AST) -> Iterator[tuple[str, bool, ast.expr]]:
    """Yield what gives seeds their values, each with what it belongs to, if to anything, and whether to a call."""
    waiting = [tree]  # in place of recursion: a script may hold a sum of a thousand terms
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.JoinedStr) or _OF_DATA.search(name := _get_own_name(node)):
            continue  # quotes within an f-string would end it
        for target, value in list_values(node):
            if label := _get_label(target):
                yield label, isinstance(target, ast.keyword | ast.arg), value
        if isinstance(node, ast.Call) and node.args and _is_for_all(node.func):
            yield "", True, node.args[0]
        # Classes with a random_state learn; functions with one make, draw or divide data.
        makes_data, children = name.islower(), ast.iter_child_nodes(node)
        waiting += [at for at in children if not (makes_data and getattr(at, "arg", "") == "random_state")]


def _list_loaded(nodes: Iterable[ast.AST]) -> set[str]:
    """Return the seeds that are read somewhere, or handed on by their names."""
    read = [node for node in nodes if isinstance(getattr(node, "ctx", node), ast.Load | ast.Constant)]
    return {label for node in read if (label := _get_label(node))}


def _get_own_name(node: ast.AST) -> str:
    """Return what a definition, a call, an assignment or an argument is named after; else an empty string."""
    match node:
        case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
            return name
        case ast.Call(target) | ast.Assign([target, *_]) | ast.AnnAssign(target):
            return get_name(target)
        case _:
            return get_name(node) if isinstance(node, ast.keyword) else ""


def _is_for_all(function: ast.expr) -> bool:
    """Return whether a function seeds all of a run: a generator of its own, with a literal, may make data."""
    name = get_name(function)
    is_own = name in SEEDERS - {"PRNGKey", "Rngs"} or isinstance(getattr(function, "value", None), ast.Call)
    return not is_own and (is_seeder(function) or bool(_SETS.fullmatch(name)))


def _list_literals(value: ast.expr) -> list[ast.Constant]:
    """Return the literals in the value of a seed that another may replace."""
    if len([*islice(ast.walk(value), LONGEST)]) == LONGEST:
        return []
    match value:
        case ast.Constant(number) if not isinstance(number, bool) and is_plain(number) and f"{number}".isdecimal():
            return [value]
        case ast.Call(ast.Name("int" | "str"), [inner]):
            return _list_literals(inner)
        case ast.IfExp(_, left, right):
            return [*_list_literals(left), *_list_literals(right)]
        case ast.BoolOp(_, [*_, last]):
            return _list_literals(last)
        case ast.BinOp(left, ast.Add() | ast.Mult(), right) if not any(map(_get_label, ast.walk(value))):
            return _list_literals(left) or _list_literals(right)
        case _:
            return []


def _get_label(node: ast.AST | None) -> str:
    """Return what a node is called, in one spelling, if that is a seed of the training; else an empty string."""
    name = get_name(node)
    return name.lstrip("-").replace("-", "_").lower() if _SEED.fullmatch(name) and not _OF_DATA.search(name) else ""
