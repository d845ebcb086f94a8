import ast
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prepare.constants import (
    Choices,
    Numbers,
    Setting,
    UnknownConstantError,
    list_declarations,
    list_misread,
    list_searchable,
    read_values,
    with_constants,
    with_settings,
)

SCRIPT = '''"""A script – with ünïcode."""
import torch

LAYERS = 8               # 2..16 – blocks
WIDTH = 512              # one of 512, 256, 384 – width
MATRIX_LR = 0.04         # 0.005..0.2 log – Muon's – learning rate
PATTERN = "SSSL"         # one of "L", "SSSL" – windows
BETAS = (0.8, 0.95)      # one of (0.8, 0.95), (0.9, 0.99)
TIED: bool = False       # one of False, True
OFFSET = -1.5            # -2.0..2.0
ROWS = 8
NAME = "é"; AFTER = 3    # 1..5 – after a wide letter
HALF = 1 / 2             # 0..1
lower = 3                # 1..5
DEPTH = 8                # 1..9
DEPTH = 9                # 1..99
def f():
    INNER = 3            # 1..5
'''


def test_spaces_come_from_the_comments():
    found = list_searchable(SCRIPT)

    assert list(found) == ["LAYERS", "WIDTH", "MATRIX_LR", "PATTERN", "BETAS", "TIED", "OFFSET", "AFTER"]
    assert found["LAYERS"].space == Numbers(2, 16, whole=True)
    assert found["LAYERS"].value == 8
    assert found["WIDTH"].space == Choices((256, 384, 512))
    assert found["MATRIX_LR"].space == Numbers(0.005, 0.2, log=True)
    assert found["PATTERN"].space == Choices(("L", "SSSL"))
    assert found["BETAS"].space == Choices(((0.8, 0.95), (0.9, 0.99)))
    assert found["OFFSET"].space == Numbers(-2, 2)
    assert found["AFTER"].space == Numbers(1, 5, whole=True)


def test_without_declared_ranges_all_are_guessed():
    script = "LR = 0.04\nWARMDOWN_RATIO = 0.5\nWARMUP_RATIO = 0.0\nDEPTH = 8\nBATCH = 65_536\nTIED = True\n"
    script += "NAME = 'x'\nBETAS = (0.8, 0.95)\nTOKENS = 2**19\nSECONDS = 5 * 60\nZERO = 0.0\nBIAS = -0.5\nPAD = -1\n"
    script += "HUGE = 9**9**9\nSUM = 2 + 2\nHALF = 1 / 2\nWORDS = 'a' * 3\n"
    found = list_searchable(script)

    assert {name: constant.space for name, constant in found.items()} == {
        "LR": Numbers(0.01, 0.16, log=True),
        "WARMDOWN_RATIO": Numbers(0.125, 1.0, log=True),
        "WARMUP_RATIO": Numbers(0.0, 0.4),
        "DEPTH": Numbers(6, 10, whole=True),
        "BATCH": Choices((32_768, 65_536, 131_072)),
        "TIED": Choices((False, True)),
        "TOKENS": Choices((2**18, 2**19, 2**20)),
        "SECONDS": Numbers(150, 600, log=True, whole=True),
        "BIAS": Numbers(-2.0, -0.125),
        "BETAS": Choices(((0.8, 0.95), (0.6, 0.95), (0.9, 0.95), (0.8, 0.9), (0.8, 0.975))),
    }


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("MATRIX_LR", 0.08, "MATRIX_LR = 0.08         # 0.005..0.2 log – Muon's – learning rate"),
        ("WIDTH", 131072, "WIDTH = 131072           # one of 512, 256, 384 – width"),
        ("OFFSET", 2, "OFFSET = 2.0             # -2.0..2.0"),
        ("TIED", True, "TIED: bool = True        # one of False, True"),
        ("PATTERN", "L", 'PATTERN = "L"            # one of "L", "SSSL" – windows'),
        ("AFTER", 4, 'NAME = "é"; AFTER = 4    # 1..5 – after a wide letter'),
    ],
)
def test_only_the_literal_changes(name, value, line):
    before, after = SCRIPT.splitlines(), with_constants(SCRIPT, {name: value}).splitlines()

    assert [b for a, b in zip(before, after, strict=True) if a != b] == [line]


@pytest.mark.parametrize(
    ("line", "value", "changed"),
    [
        ("A = 1_024  # x", 4096, "A = 4_096  # x"),
        ("A = 512  # x", 4096, "A = 4096  # x"),
        ("A = 10_000.0", 1000.0, "A = 1_000.0"),
        ("A = 3e-4", 0.0015, "A = 1.5e-3"),
        ("A = 3e-4", 0.5, "A = 0.5"),
        ("A = 3e-4", 0.0, "A = 0.0"),
        ("A = 1e6", 2.5e7, "A = 2.5e7"),
        ("A = 2 ** 14", 2**16, "A = 2 ** 16"),
        ("A = 2**14", 3000, "A = 3000"),
        ("A = 1**14", 8, "A = 8"),
        ("A = -(2 * 8)", -8, "A = -8"),
        ("A = 'SSL'", "it's", 'A = "it\'s"'),
        ("A = 'SSL'", "SL", "A = 'SL'"),
        ("A = (1_024, 0.5)   # x", (2048.0, 0.25), "A = (2_048, 0.25)  # x"),
        ("A = (0.5,)", (1.0,), "A = (1.0,)"),
        ("A = 1\t\t# x", 2, "A = 2\t\t# x"),
        ("A = 10     # x", 1000, "A = 1000   # x"),
        ("A = 1000   # x", 10, "A = 10     # x"),
    ],
)
def test_a_value_is_written_in_the_form_of_the_one_before(line, value, changed):
    assert with_constants(line, {"A": value}) == changed
    assert read_values(changed) == {"A": value}


def test_products_and_powers_are_read_as_their_values_and_replaced_whole():
    script = "TOKENS = 2**19  # one of 2**18, 2**19 – a step\nSECONDS = (5 * 60)  # 60..600\nRATE = 3 * 1e-4\n"
    assert read_values(script) == {"TOKENS": 2**19, "SECONDS": 300, "RATE": 3 * 1e-4}
    assert list_searchable(script)["TOKENS"].space == Choices((2**18, 2**19))
    assert with_constants(script, {"TOKENS": 2**18, "SECONDS": 90, "RATE": 1}) == (
        "TOKENS = 2**18  # one of 2**18, 2**19 – a step\nSECONDS = (90)      # 60..600\nRATE = 1.0\n"
    )


@pytest.mark.parametrize("value", [10**400, -(10**309), float("inf"), float("nan"), "\ud800", (0.1, 10**400)])
def test_what_cannot_be_kept_is_no_value(value):
    with pytest.raises(UnknownConstantError, match="MATRIX_LR"):
        with_constants(SCRIPT, {"MATRIX_LR": value})


def test_what_is_not_a_plain_constant_cannot_be_turned():
    for name in ("HALF", "INNER", "MISSING", "lower", "DEPTH"):
        with pytest.raises(UnknownConstantError, match=name):
            with_constants(SCRIPT, {name: 1})


@pytest.mark.parametrize(
    ("line", "setting", "changed"),
    [
        ("A = 1  # 1..5 – words", Setting(2, Numbers(1, 3)), "A = 2  # 1..3 – words"),
        ("A = 1    #1..5 - words", Setting(2, Numbers(1, 3)), "A = 2    #1..3 - words"),
        ("A = 1  # words – more", Setting(2, Choices((1, 2))), "A = 2  # words – more"),
        ("A = 1  # one of 1, 3", Setting(2, Choices((1, 2))), "A = 2  # one of 1, 2"),
        ("A = 1  # 1..5 – words", Setting(2), "A = 2  # 1..5 – words"),
        ("A = 1", Setting(2, Numbers(0.01, 3, log=True)), "A = 2"),
        ("A = 1  ", Setting(2), "A = 2  "),
        ("A = (1)  # words", Setting("é"), 'A = ("é")  # words'),
        ("A: int = 1  # words", Setting(True), "A: int = True  # words"),
        ("A = 1; B = 2  # 1..5", Setting(33, Numbers(1, 40)), "A = 33; B = 2  # 1..5"),
        ("A = (1,\n    2)  # words", Setting(3), "A = 3       # words"),
        ("A = 1 # words\r\nB = 2\r\n", Setting(3), "A = 3 # words\r\nB = 2\r\n"),
    ],
)
def test_a_setting_replaces_the_value_and_a_declared_space_alone(line, setting, changed):
    assert with_settings(line, {"A": setting, "MISSING": setting}) == changed
    assert with_settings(changed, {"A": setting}) == changed


def test_declarations_are_listed_as_the_script_states_them():
    assert list_declarations(SCRIPT)[:2] == [
        "LAYERS = 8 # 2..16 – blocks",
        "WIDTH = 512 # one of 512, 256, 384 – width",
    ]
    assert "ROWS = 8" in list_declarations(SCRIPT)
    assert not any(line.startswith(("HALF", "lower", "DEPTH")) for line in list_declarations(SCRIPT))


literals = st.one_of(
    st.booleans(),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(string.printable + "é–", max_size=9),
)


@given(st.dictionaries(st.text("ABCDE_", min_size=1).filter(str.isupper), st.tuples(literals, literals), min_size=1))
def test_turning_back_restores_every_byte(table):
    source = "".join(f"x = 'é'; {name} = {old!r}  # words\n" for name, (old, _) in table.items())
    there = with_constants(source, {name: new for name, (_, new) in table.items()})

    read_back = read_values(there)
    for name, (old, new) in table.items():
        assert read_back[name] == new
        assert type(read_back[name]) is type(new) or (isinstance(old, float) and isinstance(new, int))
    again = with_constants(there, {name: old for name, (old, _) in table.items()})
    assert ast.dump(ast.parse(again)) == ast.dump(ast.parse(source)) or read_values(again) == read_values(source)


@given(st.floats(0.001, 1.0), st.floats(1.5, 1000.0), st.booleans(), st.floats(-0.5, 1.5), st.booleans())
def test_places_stay_within_the_space(low, factor, log, place, whole):
    space = Numbers(low, low * factor, log=log, whole=False)
    assert space.low <= space.from_unit(place) <= space.high
    assert abs(space.to_unit(space.from_unit(place)) - min(max(place, 0), 1)) < 0.15
    if whole:
        counts = Numbers(1, 1 + round(factor), whole=True)
        assert isinstance(counts.from_unit(place), int)
        assert all(counts.from_unit(counts.to_unit(n)) == n for n in range(1, 2 + round(factor)))


def test_our_own_train_py_declares_its_ranges():
    found = list_searchable(Path("train.py").read_text())
    assert {"DEPTH", "MATRIX_LR", "UNEMBEDDING_LR", "TOTAL_BATCH_SIZE", "WARMDOWN_RATIO"} <= found.keys()
    assert "DEVICE_BATCH_SIZE" not in found


REBOUND = """DEPTH = 4
DEPTH += 4
WIDTH = 8
print(WIDTH := 16)
RATE = 0.1
for RATE in (0.2, 0.3):
    pass
STEPS, A = 100, 1
def main():
    global STEPS
    STEPS, A = 7, 2
ROWS = 3
ROWS, B = load()
LAYERS = 5
"""


def test_a_name_that_gets_its_value_in_another_way_is_no_constant():
    assert read_values(REBOUND) == {"A": 1, "LAYERS": 5}
    settings = {name: Setting(50) for name in ("DEPTH", "WIDTH", "RATE", "LAYERS")}
    assert with_settings(REBOUND, settings) == REBOUND.replace("LAYERS = 5", "LAYERS = 50")


def test_what_the_evaluation_is_named_after_is_not_searched_unless_a_range_is_declared():
    script = "TEST_SIZE = 0.2\nN_FOLDS = 5\nEVAL_BATCHES = 4\nVAL_SPLIT = 0.1\nLATEST = 2\nVALUES = 3\n"
    script += "p.add_argument('--test-size', default=0.2)\n"
    assert [*list_searchable(script)] == ["LATEST", "VALUES"]
    assert [*list_searchable("TEST_SIZE = 0.2  # 0.1..0.3\n")] == ["TEST_SIZE"]


def test_text_that_is_not_python_has_no_constants():
    assert list_searchable("Answer the question, kindly.") == {}


OPTIONS = """import argparse

def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("-l", "--lr", type=float, default=3e-4)
    parser.add_argument("--batch-size", default=2**5, help="rows")
    parser.add_argument("--act", choices=["relu", "gelu"], default="relu")
    parser.add_argument("--skip", type=int, choices=[0, 1, 2], default=1)
    parser.add_argument("--betas", default=(0.9, 0.95))
    parser.add_argument("--decay", type=float, default=1, help="float")
    parser.add_argument("--name", default=None)
    parser.add_argument("path", default="x")
    return parser.parse_args()
"""


def test_defaults_of_argparse_are_constants():
    found = list_searchable(OPTIONS)

    assert list(found) == ["--lr", "--batch-size", "--act", "--skip", "--betas", "--decay"]
    assert found["--skip"].space == Choices((0, 1, 2))
    assert found["--lr"].space == Numbers(3e-4 / 4, 3e-4 * 4, log=True)
    assert found["--batch-size"].space == Choices((16, 32, 64))
    assert found["--act"].space == Choices(("relu", "gelu"))
    assert found["--decay"].value == 1.0
    after = with_constants(OPTIONS, {"--lr": 0.01, "--act": "gelu", "--decay": 2})
    assert after == OPTIONS.replace("3e-4", "1e-2").replace("default=1,", "default=2.0,").replace(
        'default="relu"', 'default="gelu"'
    )
    assert "--batch-size = 2**5" in list_declarations(OPTIONS)
    ranged = OPTIONS.replace("default=3e-4)", "default=3e-4,  # 1e-5..1e-2 log\n    )")
    assert {name: at.space for name, at in list_searchable(ranged).items()} == {"--lr": Numbers(1e-5, 1e-2, log=True)}


@pytest.mark.parametrize(
    "option",
    [
        '("--lr", default=0.1, help="rate")  # 0.01..1 log',
        '("--lr", default=0.1,  # the rate\n    help="rate",  # 0.01..1 log – words\n)',
        '("--lr", default=0.1,\n    help="rate")  # 0.01..1 log – words',
    ],
)
def test_an_option_has_the_range_that_stands_behind_its_call(option):
    script = f"p.add_argument{option}\np.add_argument('--wd', default=0.1)\n"
    assert {name: at.space for name, at in list_searchable(script).items()} == {"--lr": Numbers(0.01, 1, log=True)}
    assert "--wd" in list_searchable(script, guesses=True)
    assert with_constants(script, {"--lr": 0.125}) == script.replace("0.1,", "0.125,", 1)
    if "the rate" not in script:
        assert list_searchable(script, is_old=True)["--lr"].space == Numbers(0.025, 0.4, log=True)


def test_what_only_looks_like_a_range_is_named():
    read = "A = 1  # 1..5 – words\nB = 2  # see ../data\nC = 'x'  # one of 'x', 'y'\nD = 4\nE = 5  # steps .. and\n"
    assert list_misread(read) == []
    lines = ["A = 0.1 # 0.01 .. 1", "B = 0.1 # 0.01..1 log: rate", "C = 'x' # one of x, y", "D = 3 # 5..1"]
    assert list_misread("\n".join(lines)) == lines
    assert list_misread("p.add_argument('--lr', default=0.1, help='x')  # .1 ..1") == ["--lr = 0.1 # .1 ..1"]


@pytest.mark.parametrize(
    ("line", "space"),
    [
        ("KERNEL = (3, 64)", Choices(((3, 64), (2, 64), (4, 64), (3, 32), (3, 128)))),
        (
            "ADAM_BETAS = (0.9, 0.999)",
            Choices(((0.9, 0.999), (0.8, 0.999), (0.95, 0.999), (0.9, 0.998), (0.9, 0.9995))),
        ),
        ("BETA2 = 0.95", Choices((0.9, 0.95, 0.975))),
        ("FLAGS = (True, 'x')", Choices(((True, "x"), (False, "x")))),
        ("WORDS = ('a', 'b')", None),
        ("SHIFT = -(2 * 20)", Numbers(-80, -20, whole=True)),
        ("PAD = -1", None),
    ],
)
def test_ranges_are_guessed_by_kind(line, space):
    assert [at.space for at in list_searchable(line).values()] == [space] * (space is not None)


def test_a_tuple_keeps_the_types_of_its_elements():
    assert with_constants("KERNEL = (3, 0.5)\n", {"KERNEL": (5.0, 1.0)}) == "KERNEL = (5, 1.0)\n"
    assert with_constants("KERNEL = (3, 1)\n", {"KERNEL": (3.5, 1.0)}) == "KERNEL = (3.5, 1.0)\n"
