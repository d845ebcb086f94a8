"""What can be said of a train.py by reading it: its fingerprint, its difference from another."""

import ast
import difflib
import hashlib

from orchestrator.events import Digest


def fingerprint(source: str) -> Digest:
    """Names the syntax tree, so that comments and layout do not count; of the text itself where it does not parse."""
    try:
        text = ast.dump(ast.parse(source))
    except (SyntaxError, ValueError):
        text = source
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def diff(old: str, new: str, context: int = 3) -> str:
    """A unified diff without file headers; empty where the two are equal."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=context)
    return "\n".join(list(lines)[2:])


def changed(old: str, new: str) -> tuple[int, int]:
    """Lines added and lines removed."""
    lines = diff(old, new, context=0).splitlines()
    return sum(line.startswith("+") for line in lines), sum(line.startswith("-") for line in lines)
