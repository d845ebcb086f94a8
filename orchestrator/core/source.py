"""Analyze a train.py without running it: fingerprint, line endings, diff, three-way merge.

A candidate of several files is one text (prepare/tree.py), which is compared and merged file by file.
"""

import ast
import difflib
import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, cast

from merge3 import Merge3

from orchestrator.core.events import Digest
from prepare.constants import LOOKUPS, get_name, list_values
from prepare.tree import NOT_PYTHON, join_files, split_files

BYTE_ORDER_MARK = "\ufeff"
MAX_KNOWN = 1_000_000  # characters of two texts whose diff is kept in memory, with them
_BIT_GENERATORS = {"MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"}
SEEDERS = {"PRNGKey", "Random", "RandomState", "Rngs", "SeedSequence", "default_rng"} | _BIT_GENERATORS
"""Functions that take a seed although their names do not say so."""
SEEDER_WORDS = {"all", "everything", "fix", "global", "manual", "np", "numpy", "random", "seed", "set", "torch"}
"""A function whose name consists of these words, `seed` among them, only sets a seed."""
SEEDED_MODULES = {"numpy", "random"}  # often imported only to seed them; the import alone has no effect


def compute_digest(text: str) -> Digest:
    """Return the name of a text: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=64)
def compute_fingerprint(source: str) -> Digest:
    """Return the digest of what code does: no comments, layout or seeds; of the text where it does not parse."""
    if "" not in (files := split_files(source)):
        return compute_digest(repr([(path, compute_fingerprint(text)) for path, text in files.items()]))
    try:
        return compute_digest(repr(_strip_empty(_SeedEraser().visit(ast.parse(source)))))
    except NOT_PYTHON:
        return compute_digest(source)


def _strip_empty(node: object) -> object:
    """Return a syntax tree without empty fields, so that all versions of Python agree on it."""
    if isinstance(node, ast.AST):
        fields = [(name, _strip_empty(value)) for name, value in ast.iter_fields(node) if value not in (None, [])]
        return type(node).__name__, fields
    return [_strip_empty(item) for item in cast("list[object]", node)] if isinstance(node, list) else node


class _SeedEraser(ast.NodeTransformer):
    """Makes sources equal that differ only in seeds: drops statements that set one, and zeroes seed arguments."""

    def __init__(self) -> None:
        self.seeded = False
        self.zeroed: set[int] = set()

    def visit(self, node: ast.AST) -> Any:
        if id(node) in self.zeroed:
            return ast.Constant(0)
        self.zeroed |= {id(value) for name, value in list_values(node) if _is_seed(name) and _is_number(value)}
        match node:
            case ast.Expr(ast.Call(ast.Attribute(ast.Name("torch"), "manual_seed") as function)) if not self.seeded:
                # Reads as in the bundled train.py, so that its fingerprints in older sessions stay comparable.
                self.seeded = True
                return ast.Expr(ast.Call(function, [ast.Name("SEED", ast.Load())], []))
            case ast.Expr(ast.Call(function)) if is_seeder(function):
                return None
            case ast.Import(names):
                node.names = [alias for alias in names if alias.name not in SEEDED_MODULES]
                return node if node.names else None
            case ast.Assign(targets, value) if all(map(_is_seed, targets)) and _is_number(value):
                return None
            case ast.AnnAssign(target, _, ast.expr() as value) | ast.AugAssign(target, _, value) if _is_seed(
                target
            ) and _is_number(value):
                return None
            case ast.Call(function) if is_seeder(function):
                node.args[:1] = [ast.Constant(0)]
            case ast.Call(function, arguments) if _is_seed(function):
                node.args = [ast.Constant(0) if _is_number(argument) else argument for argument in arguments]
            case ast.Call(function, [name, *_]) if get_name(function) in LOOKUPS and _is_seed(name):
                node.keywords = [keyword for keyword in node.keywords if keyword.arg != "default"]
            case _:
                pass
        return self.generic_visit(node)


def _is_seed(node: ast.AST | None) -> bool:
    """Return True if a variable, attribute, key or argument is named after a seed."""
    name = get_name(node)
    return "seed" in name.lower() or name == "random_state"


def is_seeder(function: ast.expr) -> bool:
    """Return True if the first argument of a function is a seed."""
    name = get_name(function)
    words = set(name.lower().split("_"))
    is_key = name == "key" and get_name(getattr(function, "value", None)) == "random"  # of jax
    return is_key or name in SEEDERS or ("seed" in words and words <= SEEDER_WORDS)


def _is_number(value: ast.expr) -> bool:
    """Return True for literals, seeds, and expressions of these."""
    known = (ast.Constant, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.expr_context)
    return all(isinstance(node, known) or (isinstance(node, ast.Name) and _is_seed(node)) for node in ast.walk(value))


def normalize_lines(text: str) -> str:
    r"""Return the text without a byte order mark, each line ended by \n alone."""
    return io.StringIO(text.removeprefix(BYTE_ORDER_MARK), newline=None).read()


def restore_lines(source: str, original: str) -> str:
    """Return the source with the byte order mark and the line endings of the text that it was edited from.

    If the original mixes endings, unchanged lines keep theirs, and new lines get the most common one.
    """
    if "\r" in (bare := original.removeprefix(BYTE_ORDER_MARK)):
        old, plain, new = (io.StringIO(*text).readlines() for text in ((bare, ""), (bare, None), (source, "")))
        usual = Counter(line.removeprefix(line.rstrip("\r\n")) for line in old).most_common(1)[0][0]
        lines = [line.replace("\n", usual) for line in new]
        for a, b, size in difflib.SequenceMatcher(None, plain, new, autojunk=False).get_matching_blocks():
            lines[b : b + size] = old[a : a + size]
        source = "".join(lines)
    return BYTE_ORDER_MARK + source if bare != original else source


def diff(old: str, new: str, context: int = 3) -> str:
    """Return a unified diff; file headers only where there are several files. Empty where the two are equal."""
    return (_diff if len(old) + len(new) < MAX_KNOWN else _diff.__wrapped__)(old, new, context)


@lru_cache(maxsize=256)  # each view shows it
def _diff(old: str, new: str, context: int) -> str:
    rows = [row for path, change in _compare_files(old, new, context) for row in (change if path else change[2:])]
    return "\n".join(rows)


def count_changes(old: str, new: str) -> tuple[int, int]:
    """Return the number of lines added and of lines removed."""
    signs = Counter(row[0] for _, change in _compare_files(old, new, 0) for row in change[2:])
    return signs["+"], signs["-"]


def _compare_files(old: str, new: str, context: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the path and the unified diff of each file that differs; its first two lines name the file."""
    before, after = split_files(old), split_files(new)
    for path in sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path)):
        texts = (before.get(path, "").splitlines(), after.get(path, "").splitlines())
        names = [f"{side}/{path}" if path in files else "/dev/null" for side, files in (("a", before), ("b", after))]
        change = list(difflib.unified_diff(*texts, *names, lineterm="", n=context))
        yield path, change or [f"--- {names[0]}", f"+++ {names[1]}"]  # an empty file has no lines


def merge(base: str, ours: str, theirs: str) -> str | None:
    """Return the base with both changes; None where they touch the same lines, or one side has deleted the file."""
    files, merged = [split_files(text) for text in (base, ours, theirs)], dict[str, str]()
    for path in {**files[0], **files[1], **files[2]}:
        a, b, c = (found.get(path) for found in files)
        if b in (a, c):
            text = c
        elif a == c:
            text = b
        elif a is None or b is None or c is None or (text := _merge_texts(a, b, c)) is None:
            return None
        merged |= {path: text} if text is not None else {}
    return join_files(merged)


def _merge_texts(base: str, ours: str, theirs: str) -> str | None:
    merger = Merge3(base.splitlines(keepends=True), ours.splitlines(keepends=True), theirs.splitlines(keepends=True))
    groups = list(merger.merge_groups())
    if any(group[0] == "conflict" for group in groups):
        return None
    return "".join(line for group in groups for line in group[1])
