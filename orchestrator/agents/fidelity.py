"""Check the mechanic's edit against the proposal: which constants of train.py it may change, and to what."""

import ast
import re
from collections import defaultdict
from collections.abc import Mapping

from orchestrator.core.events import Proposal
from orchestrator.core.source import compute_fingerprint
from prepare.constants import read_values
from prepare.tree import parse_files, split_files

NUMBER = re.compile(r"(?<![\w.])-?(?:\d[\d_]*\.?[\d_]*|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE)


def find_deviation(proposal: Proposal, before: str, after: str, declared: str = "", *, repair: bool = False) -> str:
    """Return where an edit departs from its proposal, and how to correct it; empty if it does not.

    A constant that the proposal does not name must keep its value, unless a repair declares the change. The value of a
    new constant, and the new value of an old one, must be in the proposal or be declared.
    """
    if compute_fingerprint(before) == compute_fingerprint(after):
        return "nothing but comments or layout has changed"
    values, old, new = read_values(after), _read_constants(before), _read_constants(after)
    told = f"{proposal.title}\n{proposal.instructions}\n{' '.join(proposal.settings)}"
    wrong = {name: value for name, value in proposal.settings.items() if values.get(name) != value}
    faults = [f"the proposal sets {name} to {value!r}: set it to exactly that" for name, value in wrong.items()]
    for name in {**old, **new}:
        was, now = old.get(name, ""), new.get(name, "removed")
        if was == now or name in proposal.settings:
            continue
        if was and not _is_named(told, name) and not (repair and _is_named(declared, name)):
            faults.append(f"{name} has changed, which the proposal does not name: put `{was}` back")
        elif not _read_numbers(now) <= _read_numbers(f"{told}\n{declared}\n{was}"):
            remedy = "correct it, or say in `deviations` where it comes from"
            faults.append(f"`{now}`: the proposal gives no such value; {remedy}")
    return "; ".join(faults)


def _read_constants(source: str) -> Mapping[str, str]:
    """Return the normalized top-level statements that assign an UPPER_CASE name, by that name; argparse's defaults."""
    found = defaultdict[str, list[str]](list)
    for node, written in ((node, text) for text in split_files(source).values() for node in parse_files(text).body):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            stored = (part for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store))
            for name in dict.fromkeys(part.id for part in stored if part.id.isupper()):
                found[name].append(_normalize(written, node))
    options = {name: f"{name} = {value!r}" for name, value in read_values(source).items() if "--" in name}
    return {name: "; ".join(statements) for name, statements in found.items()} | options


def _normalize(text: str, node: ast.stmt) -> str:
    """Return a statement in one layout; as it is written where Python cannot write it anew."""
    try:
        return ast.unparse(node)
    except (ValueError, RecursionError):  # such as an f-string with a line break, or a number of 5,000 digits
        return ast.get_source_segment(text, node) or ""


def _is_named(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def _read_numbers(text: str) -> set[float]:
    return {abs(float(found.replace("_", ""))) for found in NUMBER.findall(text)}
