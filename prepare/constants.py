"""The UPPER_CASE constants of a train.py: reads them with the room that their comments give, and turns one at a time.

    MATRIX_LR = 0.04  # 0.005..0.2 log – Muon's learning rate
    DEPTH = 8         # one of 2, 3, 4, 8 – blocks

It reads and writes text; the script is never run.
"""

import ast
import io
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log

Value = bool | int | float | str | tuple[float, ...]

_BOUND = r"[-+]?[\d._]+(?:e[-+]?\d+)?"
_RANGE = re.compile(rf"(?P<low>{_BOUND}?)\.\.(?P<high>{_BOUND})(?P<log>\s+log)?", re.IGNORECASE)
_CHOICE = re.compile(r"one of\s+(?P<options>.+)", re.IGNORECASE)
_DASH = re.compile(r"\s+[–—-]\s+")
_SHARE = re.compile(r"RATIO|FRAC|SHARE|DROPOUT|DECAY|BETA|MOMENTUM")
"""Names of what is a share by its nature, and so never more than 1."""
GUESS = 4.0
"""A constant without a range is looked for within this multiple of its value."""


class UnknownConstantError(ValueError):
    """The script has no such constant, or not as a plain literal."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """All numbers from low to high, both included; equal steps are equal factors where `log`."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def place(self, value: float) -> float:
        """Where a value stands between low (0) and high (1)."""
        low, high, at = (log(x) if self.log else x for x in (self.low, self.high, self.clip(value)))
        return (at - low) / (high - low) if high > low else 0.0

    def at(self, place: float) -> int | float:
        """The value at a place, rounded to what a person would write: two significant digits, or whole."""
        low, high = (log(x) if self.log else x for x in (self.low, self.high))
        value = low + min(max(place, 0.0), 1.0) * (high - low)
        value = self.clip(exp(value) if self.log else value)
        return round(value) if self.whole else self.clip(float(f"{value:.2g}"))

    def clip(self, value: float) -> float:
        return min(max(value, self.low), self.high)


@dataclass(frozen=True, slots=True)
class Choices:
    """A few values; in rising order where they are numbers."""

    options: tuple[Value, ...]

    @property
    def ordered(self) -> bool:
        return all(isinstance(option, int | float) and not isinstance(option, bool) for option in self.options)


@dataclass(frozen=True, slots=True)
class Constant:
    name: str
    value: Value
    space: Numbers | Choices
    words: str = ""
    """What its comment says of it."""
    declared: bool = False
    """The script itself gives the space; otherwise it was guessed from the value."""


def list_searchable(source: str) -> dict[str, Constant]:
    """The constants worth turning: those with a declared space; in a script that declares none, all with a guess.

    A script that gives ranges means what it leaves out. Raises SyntaxError where it does not parse.
    """
    found = read_constants(source)
    declared = {name: constant for name, constant in found.items() if constant.declared}
    return declared or found


def read_constants(source: str) -> dict[str, Constant]:
    """Every constant for which there is a space, in the script's order, the first of each name."""
    comments = _find_comments(source)
    found: dict[str, Constant] = {}
    for name, node in _find_literals(source).items():
        value = ast.literal_eval(node)
        space, words = _split_comment(comments.get(node.end_lineno or 0, ""))
        declared = _parse_space(space, value)
        guess = declared or _guess_space(name, value)
        if guess is not None:
            found[name] = Constant(name, value, guess, words, declared is not None)
    return found


def read_values(source: str) -> dict[str, Value]:
    """The value of every constant that is a plain literal."""
    return {name: ast.literal_eval(node) for name, node in _find_literals(source).items()}


def with_constant(source: str, name: str, value: Value) -> str:
    """The script with another value for one constant; every other byte stays. Raises UnknownConstantError."""
    node = _find_literals(source).get(name)
    if node is None:
        raise UnknownConstantError(f"train.py has no plain constant {name}")
    lines = source.encode().splitlines(keepends=True)
    first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    head, tail = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
    lines[first : last + 1] = [head + format_literal(value, like=ast.literal_eval(node)).encode() + tail]
    return b"".join(lines).decode()


def with_constants(source: str, changes: Mapping[str, Value]) -> str:
    """As turned, for several constants. Raises UnknownConstantError."""
    for name, value in changes.items():
        source = with_constant(source, name, value)
    return source


def format_literal(value: Value, like: Value | None = None) -> str:
    """A literal for the value; a float where the old value was one, large numbers in groups of three."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return repr(value)
    return f"{float(value) if isinstance(like, float) else value:_}"


def _find_literals(source: str) -> dict[str, ast.expr]:
    """The literals that are assigned to UPPER_CASE names at the top level, the first of each name."""
    found: dict[str, ast.expr] = {}
    for node in ast.parse(source).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name.isupper():
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value) if name.isupper():
                pass
            case _:
                continue
        if _is_plain(value):
            found.setdefault(name, value)
    return found


def _is_plain(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=bool() | int() | float() | str()):
            return True
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
            return True
        case ast.Tuple(elts=elements):
            return bool(elements) and all(_is_plain(element) for element in elements)
        case _:
            return False


def _find_comments(source: str) -> dict[int, str]:
    """The text of the comments, by line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("#").strip() for t in tokens if t.type == tokenize.COMMENT}


def _split_comment(comment: str) -> tuple[str, str]:
    """The part of a comment that may give a space, and the words."""
    space, *rest = _DASH.split(comment, maxsplit=1)
    if _RANGE.fullmatch(space) or _CHOICE.fullmatch(space):
        return space, "".join(rest)
    return "", comment


def _parse_space(text: str, value: Value) -> Numbers | Choices | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and (match := _RANGE.fullmatch(text)):
        low, high = float(match["low"]), float(match["high"])
        logarithmic = bool(match["log"]) and low > 0
        return Numbers(low, high, logarithmic, whole=isinstance(value, int)) if low < high else None
    if match := _CHOICE.fullmatch(text):
        try:
            choices = Choices(tuple(ast.literal_eval(f"[{match['options']}]")))
        except (ValueError, SyntaxError):
            return None
        return Choices(tuple(sorted(choices.options, key=_as_number))) if choices.ordered else choices
    return None


def _guess_space(name: str, value: Value) -> Numbers | Choices | None:
    """Sensible multiples: half and double of a power of two, neighbours of a count, a few times a positive float."""
    match value:
        case bool():
            return Choices((False, True))
        case int() if value >= 16 and value & (value - 1) == 0:
            return Choices((value // 2, value, value * 2))
        case int() if value > 0:
            return Numbers(max(1, value - 2), value + 2, whole=True)
        case float() if value > 0:
            top = 1.0 if _SHARE.search(name) and value <= 1 else value * GUESS
            return Numbers(value / GUESS, min(value * GUESS, top), log=True)
        case float() if not value and _SHARE.search(name):
            return Numbers(0.0, 0.4)
        case _:
            return None


def _as_number(value: Value) -> float:
    assert isinstance(value, int | float)
    return value
