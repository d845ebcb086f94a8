"""Read a train.py without running it: its fingerprint, its difference from another, a three-way merge."""

import ast
import difflib
import hashlib
from typing import cast

from merge3 import Merge3

from orchestrator.core.events import Digest


def compute_digest(text: str) -> Digest:
    """Return the name of a text: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def compute_fingerprint(source: str) -> Digest:
    """Return the digest of what the code does: comments, layout and the numbers of seeds do not count.

    Where the source does not parse, it is the digest of the text.
    """
    try:
        return compute_digest(repr(_strip_empty(_SeedEraser().visit(ast.parse(source)))))
    except (SyntaxError, ValueError):
        return compute_digest(source)


def _strip_empty(node: object) -> object:
    """Return a syntax tree without empty fields, so that all versions of Python agree on it."""
    if isinstance(node, ast.AST):
        fields = [(name, _strip_empty(value)) for name, value in ast.iter_fields(node) if value not in (None, [])]
        return type(node).__name__, fields
    return [_strip_empty(item) for item in cast("list[object]", node)] if isinstance(node, list) else node


class _SeedEraser(ast.NodeTransformer):
    """Replaces the numbers given to a seed, so that sources that differ only there are the same."""

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if any(isinstance(target, ast.Name) and _is_seed(target.id) for target in node.targets):
            node.value = _erase_number(node.value)
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if _is_seed(name):
            node.args = [_erase_number(argument) for argument in node.args]
        node.keywords = [
            ast.keyword(word.arg, _erase_number(word.value)) if _is_seed(word.arg or "") else word
            for word in node.keywords
        ]
        return self.generic_visit(node)


def _is_seed(name: str) -> bool:
    return "seed" in name.lower()


def _erase_number(value: ast.expr) -> ast.expr:
    return ast.Constant(0) if isinstance(value, ast.Constant) else value


def diff(old: str, new: str, context: int = 3) -> str:
    """Return a unified diff without file headers; empty where the two are equal."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=context)
    return "\n".join(list(lines)[2:])


def count_changes(old: str, new: str) -> tuple[int, int]:
    """Return the number of lines added and of lines removed."""
    lines = diff(old, new, context=0).splitlines()
    return sum(line.startswith("+") for line in lines), sum(line.startswith("-") for line in lines)


def merge(base: str, ours: str, theirs: str) -> str | None:
    """Return the base with both changes; None where they touch the same lines."""
    merger = Merge3(base.splitlines(keepends=True), ours.splitlines(keepends=True), theirs.splitlines(keepends=True))
    groups = list(merger.merge_groups())
    if any(group[0] == "conflict" for group in groups):
        return None
    return "".join(line for group in groups for line in group[1])
