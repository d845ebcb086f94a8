"""The constants on top of a training script, and the ranges that their comments give.

    MATRIX_LR = 0.04        # 0.01..0.2 log – learning rate of Muon
    WINDOW_PATTERN = "SSL"  # one of "L", "SL", "SSL" – long and short attention, layer by layer

Reads and writes text only: never runs the script, never imports torch.
"""

import ast
import re
from dataclasses import dataclass

Value = int | float | str | bool | tuple[float, ...]

_LINE = re.compile(
    r"^(?P<name>[A-Z][A-Z0-9_]*) = (?P<value>[^#\n]*[^#\s])[ \t]*(?:#[ \t]*(?P<comment>.*))?$", re.MULTILINE
)
_RANGE = re.compile(r"(?P<low>[-+.\d_e]+?)\.\.(?P<high>[-+.\d_e]+)(?P<log> log)?$")
_CHOICE = re.compile(r"one of (?P<options>.+)$")
_DASH = " – "


@dataclass(frozen=True)
class Range:
    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    options: tuple[Value, ...]


@dataclass(frozen=True)
class Constant:
    """`space` is None where the comment gives none: then the constant is not for searching."""

    name: str
    value: Value
    space: Range | Choice | None
    words: str


def read(source: str) -> dict[str, Constant]:
    """The constants of a script whose values are literals, in their order, the first of each name."""
    found: dict[str, Constant] = {}
    for line in _LINE.finditer(source):
        try:
            value = ast.literal_eval(line["value"])
        except (ValueError, SyntaxError):
            continue
        space, words = _split(line["comment"] or "")
        found.setdefault(line["name"], Constant(line["name"], value, _space(space), words))
    return found


def write(source: str, values: dict[str, Value]) -> str:
    """The script with other values for some of its constants; everything else stays byte for byte.

    Raises KeyError for a name that is not one of its constants.
    """
    for name in values.keys() - read(source).keys():
        raise KeyError(name)
    return _rewrite(source, {name: (repr(value), None) for name, value in values.items()})


def overlay(source: str, other: str) -> str:
    """The script with the values and ranges of `other`, lines of the same form; names it lacks are left out."""
    lines = {line["name"]: (line["value"], _split(line["comment"] or "")[0]) for line in _LINE.finditer(other)}
    return _rewrite(source, lines)


def _rewrite(source: str, lines: dict[str, tuple[str, str | None]]) -> str:
    left = dict(lines)

    def replaced(line: re.Match[str]) -> str:
        if line["name"] not in left:
            return line[0]
        value, space = left.pop(line["name"])
        code = f"{line['name']} = {value}"
        if line["comment"] is None:
            return code
        old, words = _split(line["comment"])
        comment = _DASH.join(part for part in (old if space is None else space, words) if part)
        return f"{code.ljust(line.start('comment') - line.start() - 2)}# {comment}" if comment else code

    return _LINE.sub(replaced, source)


def _split(comment: str) -> tuple[str, str]:
    """The range and the words of a comment; a comment without a range is all words."""
    space, _, words = comment.partition(_DASH)
    return (space.strip(), words) if _space(space.strip()) else ("", comment)


def _space(text: str) -> Range | Choice | None:
    try:
        if match := _RANGE.match(text):
            return Range(ast.literal_eval(match["low"]), ast.literal_eval(match["high"]), bool(match["log"]))
        if match := _CHOICE.match(text):
            return Choice(tuple(ast.literal_eval(f"({match['options']},)")))
    except (ValueError, SyntaxError):
        pass  # "one of the few": words after all
    return None
