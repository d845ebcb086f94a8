"""Read and write the UPPER_CASE constants of a script, with the search spaces that their comments declare.

MATRIX_LR = 0.04  # 0.005..0.2 log – Muon's learning rate
DEPTH = 8         # one of 2, 3, 4, 8 – blocks
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from itertools import accumulate
from math import exp, floor, log, log10
from sys import float_info
from typing import Any, NamedTuple, cast

from prepare.tree import NOT_PYTHON, join_files, split_files

Value = bool | int | float | str | tuple[float, ...]

_BOUND = r"[-+]?[\d._]{1,40}(?:e[-+]?\d+)?"
_SPACE = rf"(?P<low>{_BOUND}?)\.\.(?P<high>{_BOUND})(?P<log>\s+log)?|one of\s+(?P<options>.+?)"
_END = r"(?<!\s)(?=\s+[–—-]\s|\s*$)"  # spaces are looked at once only, however many there are
_COMMENT = re.compile(rf"(?P<gap>[\s),]*)(?P<sign>#[#\s]*)(?P<space>(?:{_SPACE}){_END})?", re.IGNORECASE)
_MISREAD = re.compile(r"#[#\s]*(?:[-+\d._e]{1,40}\s{0,9}\.\.|one of\b)", re.IGNORECASE)
_SHARE = re.compile(r"RATIO|FRAC|SHARE|DROPOUT|DECAY|BETA|MOMENTUM")  # constants that are never more than 1
_MEMORY = re.compile(r"DECAY|BETA|MOMENTUM")  # close to 1, their distance from 1 is what counts
_JUDGES = re.compile(r"(?i)(^|[-_:])(eval(uation)?|val(id(ation)?)?|test|dev|hold_?out|splits?|folds?)($|[-_])")
LOOKUPS = {"add_argument", "get", "getattr", "getenv", "pop", "setdefault"}
"""Functions that take a name, and the value where nothing else gives one."""
_SETS = ast.Assign, ast.AnnAssign
MAX_BASE, MAX_POWER = 1 << 16, 63  # larger powers are no plausible setting, and could take long to compute
MAX_BOUND = 1e300  # end of a range; beyond it, arithmetic in a range leaves what a float can hold
PLACES = 8  # numbers that a range holds at least: it has more than two digits where two leave fewer
GUESS = 4.0  # a range that is not declared goes from the value divided by this to the value times this


class UnknownConstantError(ValueError):
    """The script assigns no plain literal to such a constant."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers from `low` to `high`, inclusive; on a log scale if `log`, only integers if `whole`."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def to_unit(self, value: float) -> float:
        """Return the position of a value, from 0 at `low` to 1 at `high`."""
        low, high, at = (log(x) if self.log else x for x in (self.low, self.high, self.clip(value)))
        return (at - low) / (high - low) if high > low else 0.0

    def from_unit(self, position: float, is_coarse: bool = False) -> int | float:
        """Return the value at a position from 0 to 1, rounded to an integer, or to the digits that the range needs.

        Those are two, and more if fewer than PLACES numbers of two lie in the range, unless `is_coarse`.
        """
        low, high = (log(x) if self.log else x for x in (self.low, self.high))
        value = low + min(max(position, 0.0), 1.0) * (high - low)
        value = self.clip(exp(value) if self.log else value)
        digits = 2
        if value and self.high > self.low and not is_coarse:
            digits = max(2, floor(log10(abs(value))) + 1 - floor(log10(self.high - self.low) - log10(PLACES)))
        return round(value) if self.whole else self.clip(float(f"{value:.{min(digits, 17)}g}"))

    def clip(self, value: float) -> float:
        """Return the nearest value within the range."""
        return min(max(value, self.low), self.high)

    def include(self, value: Value) -> "Numbers":
        """Return the range, widened to hold a value. Raises ValueError if it is not a number."""
        if not isinstance(value, int | float):
            raise ValueError(f"{value!r} is not a number")  # noqa: TRY004 - as for any other bad value
        return replace(self, low=min(self.low, value), high=max(self.high, value))

    def __str__(self) -> str:
        return f"{self.low}..{self.high}{' log' if self.log else ''}"


@dataclass(frozen=True, slots=True)
class Choices:
    """A few values, in ascending order if they are numbers."""

    options: tuple[Value, ...]

    @property
    def ordered(self) -> bool:
        """True if all options are numbers."""
        return all(isinstance(option, int | float) and not isinstance(option, bool) for option in self.options)

    def include(self, value: Value) -> "Choices":
        """Return the choices with a value among them."""
        return self if value in self.options else _make_choices((*self.options, value))

    def __str__(self) -> str:
        return f"one of {', '.join(format_literal(option, like='0') for option in self.options)}"


Space = Numbers | Choices
_Edit = tuple[str, int, str, str]  # the path of a file, an offset, the text there, and its replacement


class Setting(NamedTuple):
    """A value for a constant, and the space to declare for it instead of the script's."""

    value: Value
    space: Space | None = None


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant of a script, with the space to search."""

    name: str
    value: Value
    space: Space
    dest: str = ""  # name under which an option is read, where it is not the option's own
    is_coarse: bool = False  # whether two digits and steps of 1 % are the finest, as in older sessions


class _Assignment(NamedTuple):
    path: str  # of the file; empty where there is only one
    name: str  # of a variable, or an option of argparse, such as --lr
    value: Any  # of a plain literal, else None
    start: int  # offset of the expression in the file, in characters
    text: str  # the expression
    comment: re.Match[str] | None  # on the same line, with the gap before it
    is_top: bool  # not inside another statement, such as an `if`
    is_final: bool  # nothing but such assignments gives the name a value: no loop, no +=, no `global`
    options: tuple[Value, ...] = ()  # that argparse accepts
    dest: str = ""  # that argparse stores it under
    behind: re.Match[str] | None = None  # the comment on an option's range: on the line of the value or of what follows


def list_searchable(source: str, *, guesses: bool = False, is_old: bool = False) -> dict[str, Constant]:
    """Return the constants with a declared space, or if none does, with guessed ones; not those of an evaluation.

    Where `guesses`, those without a declared space have a guessed one in any case. `is_old` reads spaces as older
    sessions did (decision 0075).
    """
    found = _find_constants(source)
    declared = {name: space for name, at in found.items() if (space := _parse_space(at, is_old))}
    unjudged = {name: at for name, at in found.items() if not _JUDGES.search(name)}
    guessed = {n: space for n, at in unjudged.items() if (space := _guess_space(at.name.upper(), at.value, at.options))}
    chosen = guessed | declared if guesses else declared or guessed
    return {
        name: Constant(name, at.value, chosen[name], "" if is_old else at.dest, is_old)
        for name, at in found.items()
        if name in chosen
    }


@lru_cache(maxsize=8)
def has_ranges(source: str) -> bool:
    """Return whether the script declares the space of any constant."""
    return any(_parse_space(at) for at in _find_constants(source).values())


def list_misread(source: str) -> list[str]:
    """Return the constants whose comments begin like a range or choices, and declare none."""
    found = [(at, at.behind or at.comment) for at in _find_constants(source).values()]
    said = [(at, note.string[note.start("sign") :]) for at, note in found if note and not _parse_space(at)]
    return [f"{at.name} = {at.text} {' '.join(note.split())}" for at, note in said if _MISREAD.match(note)]


def list_declarations(source: str) -> list[str]:
    """Return name, value and comment of every constant, as written in the script."""
    found = _find_constants(source)
    comments = (at.comment.string[at.comment.end("gap") :] if at.comment else "" for at in found.values())
    rows = zip(found.items(), comments, strict=True)
    return [" ".join(f"{name} = {at.text} {said}".split()) for (name, at), said in rows]


def read_values(source: str) -> dict[str, Value]:
    """Return the value of every constant that is a plain literal."""
    return {name: at.value for name, at in _find_constants(source).items()}


def is_plain(value: object) -> bool:
    """Return whether a value can be stored and read again: a text that can be encoded, or what a float can hold."""
    if isinstance(value, tuple):
        return all(map(is_plain, cast("tuple[object, ...]", value)))
    if isinstance(value, str):
        return value.encode("utf-8", "ignore").decode() == value
    return isinstance(value, int | float) and abs(value) <= float_info.max


def with_constants(source: str, changes: Mapping[str, Value]) -> str:
    """Return the script with other values for some constants; every other byte stays. Raises UnknownConstantError."""
    if odd := [name for name, value in changes.items() if not is_plain(value)]:
        raise UnknownConstantError(f"{odd[0]}: such a value cannot be kept: it is too large, or not a text")
    found = _find_constants(source)
    if unknown := changes.keys() - found.keys():
        raise UnknownConstantError(f"the script has no plain constant {min(unknown)}")
    return _edit(source, [_rewrite(found[name], Setting(value)) for name, value in changes.items()])


def with_settings(source: str, settings: Mapping[str, Setting]) -> str:
    """Return the script with the values of `settings`, and with their spaces where the script declares one.

    Later assignments to the same name, and those inside an `if`, get the value, too; none does where the script goes on
    to change it (+=, a loop). The comments' words stay, in their column where possible.
    """
    places = [at for at in _list_assignments(source) if at.name in settings and at.is_final]
    shared = Counter((at.path, at.start) for at in places)
    found = [at for at in places if shared[at.path, at.start] == 1]  # A = B = 8 cannot have two values
    return _edit(source, [_rewrite(at, settings[at.name]) for at in found])


def with_originals(source: str, fitted: str, own: str) -> str:
    """Return the script with the values and comments of `own` where it still has those of `fitted`, its fitted form."""
    put, before, edits = _list_declared(fitted), _list_declared(own), list[_Edit]()
    for (path, *which), (start, now) in _list_declared(source).items():
        same = [key for key in put if [*key[1:]] == which]
        homes = [key for key in same if key[0] == path] or same  # it may have moved to another file
        if len(homes) == 1 and now == put[homes[0]][1]:
            edits.append((path, start, now, before[homes[0]][1]))
    return _edit(source, edits)


def _list_declared(source: str) -> dict[tuple[str, str, int], tuple[int, str]]:
    """Return offset and text, comment included, of each assigned value, by path, name and how often it came before."""
    seen, found = Counter[tuple[str, str]](), dict[tuple[str, str, int], tuple[int, str]]()
    for at in _list_assignments(source):
        found[at.path, at.name, seen[at.path, at.name]] = at.start, at.text + (at.comment[0] if at.comment else "")
        seen[at.path, at.name] += 1
    return found


def format_literal(value: Value, like: str = "1_000", old: Value | None = None) -> str:
    """Return a literal for the value in the form of another: its quotes, digit groups, exponent, or base of a power.

    It is a float if the `old` value is one; a tuple, whose elements are stored as floats, keeps their types if it can.
    """
    if isinstance(value, tuple):
        types = map(type, old) if isinstance(old, tuple) and len(old) == len(value) else map(type, value)
        exact = tuple(kind(new) for kind, new in zip(types, value, strict=True))
        elements = [format_literal(element, like) for element in (exact if exact == value else value)]
        return f"({', '.join(elements)}{',' * (len(elements) == 1)})"
    if isinstance(value, str):
        return repr(value) if "'" in like.partition('"')[0] else json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return repr(value)
    power = re.fullmatch(r"(\d+)(\s*\*\*\s*)\d+", like)
    base = int(power[1]) if power and isinstance(value, int) else 0
    if power and base > 1 and base ** (top := round(log(max(value, 1), base))) == value:
        return f"{base}{power[2]}{top}"
    number = float(value) if isinstance(old, float) else value
    if "e" in like.lower() and isinstance(number, float) and number and not 0.1 <= abs(number) < 1000:
        return f"{Decimal(repr(number)).normalize():e}".replace("+", "")
    return f"{number:_}" if "_" in like else repr(number)


def _rewrite(place: _Assignment, setting: Setting) -> _Edit:
    """Return the edit that sets a value, and keeps the words of its comment, in their column where they fit."""
    literal, comment = format_literal(setting.value, place.text, place.value), place.comment
    if comment is None:
        return place.path, place.start, place.text, literal
    closing = comment["gap"].rstrip()
    space, longer = comment["gap"][len(closing) :], len(literal) - len(place.text.rpartition("\n")[2])
    space = space[min(longer, max(len(space) - 2, 0)) :] if longer > 0 else " " * -longer + space
    declared = str(setting.space or comment["space"]) if comment["space"] else ""
    return place.path, place.start, place.text + comment[0], f"{literal}{closing}{space}{comment['sign']}{declared}"


def _edit(source: str, edits: Iterable[_Edit]) -> str:
    files = split_files(source)
    for path, start, old, new in sorted({edit[:2]: edit for edit in edits}.values(), reverse=True):
        files[path] = files[path][:start] + new + files[path][start + len(old) :]
    return join_files(files)


def _find_constants(source: str) -> dict[str, _Assignment]:
    """Return the constants by name, by `path:name` where several files define it: assigned once, alone, a literal."""
    places = _list_assignments(source)
    counts = Counter(key for at in places for key in ((at.path, at.name), (at.path, at.start)))
    single = [at for at in places if counts[at.path, at.name] == counts[at.path, at.start] == 1 and at.is_final]
    named = [at for at in single if (at.name.isupper() and at.is_top) or at.name[:2] == "--"]
    found = [at for at in named if at.value is not None]
    files = Counter(at.name for at in found)
    return {at.name if files[at.name] == 1 else f"{at.path}:{at.name}": at for at in found}


@lru_cache(maxsize=64)
def _list_assignments(source: str) -> tuple[_Assignment, ...]:
    """Return the assignments of all files, and the options of argparse; none of text that is not Python."""
    found = list[_Assignment]()
    for path, text in split_files(source).items():
        with suppress(*NOT_PYTHON):
            found += [*_walk_assignments(path, text)]
    return (*found,)


def _walk_assignments(path: str, source: str) -> Iterator[_Assignment]:
    tree = ast.parse(bare := source.removeprefix("\ufeff"))
    data = bare.encode()  # Python counts bytes
    begins = [*accumulate(map(len, data.splitlines(keepends=True)), initial=0)]

    def locate(line: int | None, column: int | None) -> int:
        assert line
        return len(source) - len(bare) + len(data[: begins[line - 1] + (column or 0)].decode())

    def match_comment(end: int) -> re.Match[str] | None:
        return _COMMENT.match(re.split(r"[\r\n]", source[end:], maxsplit=1)[0])

    def place(name: str, value: ast.expr, is_top: bool) -> _Assignment:
        start, end = locate(value.lineno, value.col_offset), locate(value.end_lineno, value.end_col_offset)
        text, is_final = source[start:end], bound[name] == 0
        return _Assignment(path, name, _evaluate(value), start, text, match_comment(end), is_top, is_final)

    nodes = [*_walk_scope(tree)]
    given = [(*pair, node in tree.body) for node in nodes if isinstance(node, _SETS) for pair in list_values(node)]
    pairs = [(name.id, value, is_top) for name, value, is_top in given if isinstance(name, ast.Name)]
    bound = Counter(at.id for at in nodes if isinstance(at, ast.Name) and not isinstance(at.ctx, ast.Load))
    bound.update(name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names)
    bound.subtract(name for name, *_ in pairs)
    yield from (place(*pair) for pair in pairs)
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or getattr(call.func, "attr", "") != "add_argument":
            continue
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        names = [flag.value for flag in call.args if isinstance(flag, ast.Constant) and f"{flag.value}"[:2] == "--"]
        if names and (default := given.get("default")):
            at = place(str(names[0]), default, True)
            real = getattr(given.get("type"), "id", "") == "float" and isinstance(at.value, int)
            options = tuple(map(_evaluate, getattr(given.get("choices"), "elts", ())))
            known = tuple(option for option in options if option is not None)
            dest = getattr(given.get("dest"), "value", "")
            parts = [*call.args, *(keyword.value for keyword in call.keywords), call]
            ends = sorted({locate(part.end_lineno, part.end_col_offset) for part in parts})
            notes = [note for end in ends if end >= at.start + len(at.text) and (note := match_comment(end))]
            behind = next((note for note in notes if note["space"]), (*notes, None)[0])
            value = float(at.value) if real else at.value
            yield at._replace(value=value, options=known, dest=f"{dest or ''}", behind=behind)


def _walk_scope(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below one, without what functions and classes have inside."""
    left = [*ast.iter_child_nodes(node)][::-1]
    while left:
        yield (node := left.pop())
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            left += [*ast.iter_child_nodes(node)][::-1]


def list_values(node: ast.AST) -> Iterator[tuple[ast.AST | None, ast.expr]]:
    """Yield the values that a node itself gives to variables, keys, arguments and options, each after its name."""
    match node:
        case ast.Assign([ast.Tuple(a) | ast.List(a)], ast.Tuple(b) | ast.List(b)) if len(a) == len(b):
            for target, element in zip(a, b, strict=True):
                yield from list_values(ast.Assign([target], element))
            return
        case ast.Assign(targets, value):
            names, values = [*targets], [value] * len(targets)
        case ast.AnnAssign(target, _, value):
            names, values = [target], [value]
        case ast.keyword(str(), value):
            names, values = [node], [value]
        case ast.Dict():
            names, values = [*node.keys], [*node.values]
        case ast.arguments():
            positional = [*node.posonlyargs, *node.args]
            names = [*positional[len(positional) - len(node.defaults) :], *node.kwonlyargs]
            values = [*node.defaults, *node.kw_defaults]
        case ast.Call(function, [name, *others], keywords) if get_name(function) in LOOKUPS:
            values = [*others, *(keyword.value for keyword in keywords if keyword.arg == "default")]
            names = [name] * len(values)
        case _:
            return
    yield from ((name, value) for name, value in zip(names, values, strict=True) if value)


def get_name(node: ast.AST | None) -> str:
    """Return the last part of what a function, variable, attribute, argument, key or option is called."""
    match node:
        case ast.Name(name) | ast.arg(name) | ast.Attribute(_, name) | ast.keyword(str(name)) | ast.Constant(str(name)):
            return name
        case ast.Subscript(_, key):
            return get_name(key)
        case _:
            return ""


def _evaluate(node: ast.expr) -> Any:
    """Return the value of a plain literal, or of a product or power of numbers, such as 2**19; else None."""
    return value if is_plain(value := _compute(node)) else None


def _compute(node: ast.expr) -> Any:
    match node:
        case ast.Constant(bool() | int() | float() | str() as value):
            return value
        case ast.Tuple([_, *_] as elements) if None not in (values := tuple(map(_evaluate, elements))):
            return values
        case ast.UnaryOp(ast.UAdd() | ast.USub() as sign, operand) if type(value := _evaluate(operand)) in {int, float}:
            return -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(left, ast.Mult() | ast.Pow() as operator, right):
            a, b = _evaluate(left), _evaluate(right)
            if not isinstance(a, int | float) or not isinstance(b, int | float) or min(a, b) < 0:
                return None
            if isinstance(operator, ast.Mult):
                return a * b
            return a**b if a <= MAX_BASE and b <= MAX_POWER else None
        case _:
            return None


def _parse_space(at: _Assignment, is_old: bool = False) -> Space | None:
    value: Value = at.value
    comment = at.comment if is_old else at.behind or at.comment
    number = isinstance(value, int | float) and not isinstance(value, bool)
    with suppress(*NOT_PYTHON, TypeError, AttributeError):  # such as `one of x for x in y`, which is not a list
        if comment and comment["options"]:
            options = cast("ast.List", ast.parse(f"[{comment['options']}]", mode="eval").body).elts
            values = ((_evaluate(option), option) for option in options)
            choices = _make_choices(ast.literal_eval(option) if value is None else value for value, option in values)
            return choices if str(choices) else None  # a ValueError where one cannot be written
        if comment and comment["high"] and number:
            low, high = float(comment["low"]), float(comment["high"])
            if -MAX_BOUND <= low < high <= MAX_BOUND:
                whole = low.is_integer() and high.is_integer() and comment["space"].count(".") == 2  # not 0.0..1.0
                whole = isinstance(value, int) and (whole or is_old)
                return Numbers(low, high, log=bool(comment["log"]) and low > 0, whole=whole)
    return None


def _make_choices(options: Iterable[Value]) -> Choices:
    choices = Choices(tuple(options))
    return Choices(tuple(sorted(cast("tuple[float, ...]", choices.options)))) if choices.ordered else choices


def _guess_space(name: str, value: Value, options: Sequence[Value] = ()) -> Space | None:
    """Return the space of a constant that declares none, by its kind: its type, its name, and the size of its value."""
    match value:
        case _ if options:
            return _make_choices(options)
        case int() | float() if value and not 1 / MAX_BOUND <= abs(value) <= MAX_BOUND:
            return None
        case bool():
            return Choices((False, True))
        case int() if value >= 16 and value & (value - 1) == 0:
            return Choices((value // 2, value, value * 2))
        case int() if value >= 16:
            return Numbers(value // 2, value * 2, log=True, whole=True)
        case int() if value > 0:
            return Numbers(max(1, value - 2), value + 2, whole=True)
        case int() if value < -1:  # -1 often stands for something else
            return Numbers(value * 2, value // 2, whole=True)
        case float() if 0.5 < value < 1 and _MEMORY.search(name):
            return Choices((round(2 * value - 1, 9), value, round((1 + value) / 2, 9)))
        case float() if value > 0:
            top = 1.0 if _SHARE.search(name) and value <= 1 else value * GUESS
            return Numbers(value / GUESS, min(value * GUESS, top), log=True)
        case float() if value < 0:
            return Numbers(value * GUESS, value / GUESS)
        case float() if not value and _SHARE.search(name):
            return Numbers(0.0, 0.4)
        case tuple():  # its neighbours have another value for one element
            near = [(*value[:i], new, *value[i + 1 :]) for i in range(len(value)) for new in _list_near(name, value[i])]
            return Choices((value, *near)) if near else None
        case _:
            return None


def _list_near(name: str, value: float) -> list[Any]:
    """Return the nearest other values of an element of a tuple."""
    space = _guess_space(name, value)
    if isinstance(space, Numbers):
        return [space.from_unit(space.to_unit(value) + step) for step in (-0.25, 0.25)]
    return [option for option in space.options if option != value] if space else []
