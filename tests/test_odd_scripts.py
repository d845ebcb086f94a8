"""Scripts as people do not write them, but a model may: whatever reads a script copes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.agents.fidelity import find_deviation
from orchestrator.core.seeds import with_assigned_seed, with_literal_seed
from orchestrator.core.source import compute_fingerprint, count_changes, diff, merge
from orchestrator.core.state import BASELINE
from orchestrator.lab.tree import list_imported
from orchestrator.optimizer.space import list_tunable, take_step
from prepare.constants import (
    Numbers,
    Setting,
    is_plain,
    list_declarations,
    list_searchable,
    read_values,
    with_constants,
    with_originals,
    with_settings,
)
from prepare.tree import join_files, split_files
from subagents.files import MAX_LEVELS, find_missing_packages, find_syntax_error
from tests.hunting import try_examples

BASE = "import prepare\nLR = 0.1  # 0.01..1 log\nprint(LR)\n"
ODD = {
    "sum": lambda n: f"X = {' + '.join('X' * n)}",
    "product": lambda n: f"X = {' * '.join('2' * n)}",
    "elif": lambda n: "if LR: y = 1\n" + "elif LR: y = LR\n" * n,
    "elif print": lambda n: "if LR: print(1)\n" + "elif LR: print(LR)\n" * n,
    "not": lambda n: f"X = {'not ' * n}LR",
    "minus": lambda n: f"X = {'-' * n}1",
    "lambda": lambda n: f"X = {'lambda: ' * n}1",
    "choice": lambda n: f"X = {'1 if LR else ' * n}1",
    "brackets": lambda n: f"X = {'[' * n}LR{']' * n}",
    "tuples": lambda n: f"X = {'(' * n}1{',)' * n}",
    "blocks": lambda n: "".join(f"{' ' * i}if LR:\n" for i in range(n)) + " " * n + "X = 1",
    "chain": lambda n: f"x = a{'.b' * n}.key(1)\njax.random.key(2)",
    "calls": lambda n: f"X = LR{'.a(LR)' * min(n, 120)}",
    "keys": lambda n: f"X = a{'[0]' * n}",
    "targets": lambda n: f"{'X = ' * min(n, 400)}1",
    "overflow": lambda n: "X = 65536**63 * 65536**63 * 1.5\nY = 1e308 * 10\nZ = (65536**63 * 65536**63, 2)",
    "digits": lambda n: f"X = {'9' * n}\nrandom.seed({'9' * n})",
    "hexadecimal": lambda n: f"SEED = X = 0x{'f' * n}\nDEPTH = 0x{'f' * n}\nrandom.seed(SEED)",
    "option": lambda n: f"p.add_argument('--lr', default=0x{'f' * n}, choices=[1, 0x{'f' * n}])",
    "limits": lambda n: f"X = 1e308\nY = 5e-324\nT = (1e308, 5e-324)\nU = {'9' * 308}\nV = -1e308\nW = 2 ** 1023",
    "header": lambda n: f"=== a.py ({'9' * n} characters)\n",
    "spaces": lambda n: f"X = 3  # one of a{' ' * n}b",
    "gap": lambda n: f"X = 3{' ' * n}#{' #' * n} 1..5{' ' * n}x",
    "dots": lambda n: f"X = 3  # {'.' * n} x\nY = 3  # 1{'.1' * n}..5",
    "range": lambda n: (
        "X = 3.0  # 0..1e999\nY = 3  # -1e308..1e308\nZ = 0.1  # 1e-400..1e308 log\nU = 3  # 1..1e300 log"
    ),
    "options": lambda n: f"X = 3  # one of {'(' * n}\nY = 3  # one of {'-' * n}1\nZ = 1  # one of 1, 0x{'f' * n}",
    "no options": lambda n: (
        "X = 3  # one of x for x in y\nY = 3  # one of 1] + [2\nZ = 3  # one of 1, None, b'', {}, 1j"
    ),
    "strings": lambda n: "X = '\\ud800'\nY = f\"{'''\n'''}{X!r:>{LR}}\"\nZ = f'{LR=}'\nU = 'a' 'b'\nV = b'a'",
    "bytes": lambda n: "X = 1\0",
    "lines": lambda n: "\ufeffX = 1\r\nY = 2\rZ = 3\f\nU = \\\n 4\x0b\u2028V = 5",
    "globals": lambda n: "def f():\n" + " global LR\n" * n + " LR = 2",
    "values": lambda n: "X = ...\nY = 1j\nZ: int\nU: int = 3  # 1..5\nV = W = 3\n(A, B), C = (1, 2), 3\nX += 1\ndel Y",
}
SIZES = 90, 400, 5_000


def read(source):
    """Read a script by all that reads one; the numbers and texts that are found can be stored."""
    values = read_values(source)
    assert json.loads(json.dumps(values)).keys() == values.keys()
    assert all(map(is_plain, values.values()))
    for old, new in ((BASE, source), (source, BASE)):
        find_deviation(BASELINE, old, new)
        assert diff(old, new)
        assert count_changes(old, new)
        merge(BASE, old, new)
    list_declarations(source)
    for constant in list_searchable(source).values():
        with_settings(source, {constant.name: Setting(constant.value, constant.space)})
    for constant in [*list_tunable(source).values(), *list_tunable(source, is_reported=True).values()]:
        steps = [step for way in ("up", "down") if (step := take_step(constant, way, 1.0)) is not None]
        assert steps or not isinstance(constant.space, Numbers)
        for step in steps:
            assert is_plain(step)
            assert read_values(with_constants(source, {constant.name: step})).keys() == values.keys()
    assert with_originals(source, source, source) == source
    with_literal_seed(with_assigned_seed(source))
    assert compute_fingerprint(source) == compute_fingerprint(source)
    assert join_files(split_files(source)) == source
    list_imported({"train.py": source})
    find_missing_packages(source)


@pytest.mark.parametrize("kind", ODD)
def test_every_odd_script_is_read(kind):
    for size in SIZES:
        read(f"{BASE}{ODD[kind](size)}\n")
    read(ODD[kind](SIZES[0]))


@try_examples(15)
@given(st.lists(st.tuples(st.sampled_from(sorted(ODD)), st.integers(0, 300)), min_size=1, max_size=4))
def test_so_is_any_mixture(parts):
    read("\n".join([BASE, *(ODD[kind](size) for kind, size in parts)]))


def test_what_is_nested_too_deeply_is_not_accepted():
    """Nothing that is accepted depends on how much of the stack is left."""
    assert find_syntax_error(BASE + ODD["sum"](MAX_LEVELS - 5)) == ""
    for kind in ("sum", "elif", "not", "chain", "choice", "blocks"):
        fault = find_syntax_error(BASE + ODD[kind](99 if kind == "blocks" else 150))
        assert "nested too deeply" in fault, kind
        assert "line " in fault
