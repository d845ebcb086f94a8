"""What can be said of a train.py by reading it: its fingerprint, its difference from another."""

import ast
import difflib
import hashlib

from merge3 import Merge3

from orchestrator.events import Digest


def digest(text: str) -> Digest:
    """The name of a text: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(source: str) -> Digest:
    """Names the syntax tree, so that comments and layout do not count; of the text itself where it does not parse."""
    try:
        text = ast.dump(ast.parse(source))
    except (SyntaxError, ValueError):
        text = source
    return digest(text)


def diff(old: str, new: str, context: int = 3) -> str:
    """A unified diff without file headers; empty where the two are equal."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=context)
    return "\n".join(list(lines)[2:])


def changed(old: str, new: str) -> tuple[int, int]:
    """Lines added and lines removed."""
    lines = diff(old, new, context=0).splitlines()
    return sum(line.startswith("+") for line in lines), sum(line.startswith("-") for line in lines)


def merge(base: str, ours: str, theirs: str) -> str | None:
    """Both changes to the base in one text; None where they touch the same lines."""
    merger = Merge3(base.splitlines(keepends=True), ours.splitlines(keepends=True), theirs.splitlines(keepends=True))
    groups = list(merger.merge_groups())
    if any(group[0] == "conflict" for group in groups):
        return None
    return "".join(line for group in groups for line in group[1])
