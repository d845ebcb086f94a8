"""Find the literals by which a script fixes its seed, and let it read the seed of the run in their place.

What is a seed, names tell; those of data, of a split or an evaluation stay, and so do generators with a literal of
their own, which may make data. The literal becomes the default of an expression, by which the user's text is put back
wherever it stands by then.
"""

import ast
import re
from collections.abc import Iterator, Mapping

from orchestrator.core.source import LOOKUPS, SEEDERS, get_name, is_seeder
from prepare.tree import join_files, parse_files, split_files

VARIABLE = "NIGHTSHIFT_SEED"
"""Environment variable with the seed of every run."""
_READS = re.compile(r'(int\()?__import__\("os"\)\.environ\.get\("\w+", ([\w"\']+)\)(?(1)\))')
_SEED = re.compile(r"(?!n_|num_|\w*hash).*(seed|random_?state)", re.IGNORECASE)
_SETS = re.compile(r"(\w+_)?(set|reset|fix|init\w*|setup)_(\w+_)?seeds?")
_OF_DATA = re.compile(
    r"data|split|fold|shuffle|sampl|load|fetch|^make_|^(?!.*train).*(eval|valid|test)|(^|_)(val|dev)(_|$)",
    re.IGNORECASE,
)


def with_assigned_seed(source: str, seed: Mapping[str, str]) -> str:
    """Return the script with its literal seeds read from the environment; unchanged if it may have its seed already.

    `seed` is the task's: how a run is given it.
    """
    tree, known = parse_files(source), {VARIABLE, *seed.values()}
    nodes, seeds = [*ast.walk(tree)], [value for _, value in _list_seeds(tree)]
    bound = {_get_label(node) for node in nodes if not isinstance(getattr(node, "ctx", None), ast.Load)}
    loaded = {_get_label(node) for value in seeds for node in ast.walk(value) if hasattr(node, "ctx")}
    if any(isinstance(node, ast.Constant) and node.value in known for node in nodes) or not loaded <= bound | {""}:
        return source
    used = {name for node in nodes if (name := _get_label(node)) and isinstance(getattr(node, "ctx", None), ast.Load)}
    variable = seed.get("env", VARIABLE)
    return join_files({path: _rewrite(text, used, variable) for path, text in split_files(source).items()})


def without_assigned_seed(source: str) -> str:
    """Return the script with the literals that `with_assigned_seed` has replaced."""
    return join_files({path: _READS.sub(r"\2", text) for path, text in split_files(source).items()})


def _rewrite(text: str, used: set[str], variable: str) -> str:
    """Return one file with the seeds that are used read from a variable; unchanged if it is not Python."""
    try:
        seeds = _list_seeds(ast.parse(text))
    except (SyntaxError, ValueError):
        return text
    lines = [line.encode() for line in text.split("\n")]  # Python counts bytes
    found = {at for name, value in seeds if not name or name in used for at in _list_literals(value)}
    for at in sorted(found, key=lambda at: (at.lineno, at.col_offset), reverse=True):
        line, end = lines[at.lineno - 1], at.end_col_offset
        read = f'__import__("os").environ.get("{variable}", {line[at.col_offset : end].decode()})'
        read = f"int({read})" if isinstance(at.value, int) else read
        lines[at.lineno - 1] = line[: at.col_offset] + read.encode() + line[end:]
    return b"\n".join(lines).decode()


def _list_seeds(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield what gives seeds their values, each with the variable that it is assigned to, if to one."""
    match node:
        case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name) | ast.keyword(str(name)):
            is_of_data = _OF_DATA.search(name)
        case ast.Call(function):
            is_of_data = _OF_DATA.search(get_name(function))
        case ast.Assign([target, *_]) | ast.AnnAssign(target):
            is_of_data = _OF_DATA.search(_get_name(target))
        case _:
            is_of_data = None
    if is_of_data:
        return
    for target, value in _list_values(node):
        if value and (target is None or _get_label(target)):
            yield _get_label(target) if isinstance(target, ast.Name) else "", value
    for child in ast.iter_child_nodes(node):
        yield from _list_seeds(child)


def _list_values(node: ast.AST) -> list[tuple[ast.AST | None, ast.expr | None]]:
    """Return the values that a node gives, each with its name; those that it hands to a function of seeds have none."""
    match node:
        case ast.Assign([ast.Tuple(names)], ast.Tuple(values)) | ast.Dict(names, values) if len(names) == len(values):
            return [*zip(names, values, strict=True)]
        case ast.Assign(targets, value):
            return [(target, value) for target in targets]
        case ast.AnnAssign(target, _, value):
            return [(target, value)]
        case ast.keyword(str(), value):
            return [(node, value)]
        case ast.arguments():
            positional = [*node.posonlyargs, *node.args]
            pairs = zip(positional[len(positional) - len(node.defaults) :], node.defaults, strict=True)
            return [*pairs, *zip(node.kwonlyargs, node.kw_defaults, strict=True)]
        case ast.Call(function, [name, *others], keywords) if get_name(function) in LOOKUPS:
            default = [keyword.value for keyword in keywords if keyword.arg == "default"]
            return [(name, value) for value in (*others, *default)]
        case ast.Call(function, [value, *_]) if _seeds_the_run(function):
            return [(None, value)]
        case _:
            return []


def _seeds_the_run(function: ast.expr) -> bool:
    """Return whether a function seeds all of a run: a generator of its own, with a literal, may make data."""
    name = get_name(function)
    is_own = name in SEEDERS - {"PRNGKey", "Rngs"} or isinstance(getattr(function, "value", None), ast.Call)
    return not is_own and (is_seeder(function) or bool(_SETS.fullmatch(name)))


def _list_literals(value: ast.expr) -> list[ast.Constant]:
    """Return the literals in the value of a seed that another may replace."""
    match value:
        case ast.Constant(int()) if not isinstance(value.value, bool):
            return [value]
        case ast.Constant(str(text)) if text.isdecimal():
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


def _get_name(node: ast.AST) -> str:
    """Return the last part of what a variable, attribute, argument, key or option is called."""
    match node:
        case ast.Name(name) | ast.arg(name) | ast.Attribute(_, name) | ast.keyword(str(name)) | ast.Constant(str(name)):
            return name
        case ast.Subscript(_, key):
            return _get_name(key)
        case _:
            return ""


def _get_label(node: ast.AST) -> str:
    """Return that name in one spelling if it is that of a seed of the training; else an empty string."""
    name = _get_name(node)
    return name.lstrip("-").replace("-", "_").lower() if _SEED.fullmatch(name) and not _OF_DATA.search(name) else ""
