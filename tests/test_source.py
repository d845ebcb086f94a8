"""What counts as the same code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import source
from orchestrator.core.source import (
    compute_fingerprint,
    count_changes,
    diff,
    merge,
    normalize_lines,
    restore_lines,
)
from prepare.constants import read_values
from tests.ground import ROOT

BASE = "import torch\nSEED = 42\nLR = 0.1  # learning rate\ntorch.manual_seed(42)\nmodel(seed=1)\nDEPTH = 3\n"


def test_comments_layout_and_seeds_do_not_count():
    for other in (
        BASE.replace("# learning rate", "# changed"),
        BASE.replace("\nDEPTH", "\n\n\nDEPTH"),
        BASE.replace("SEED = 42", "SEED = 137"),
        BASE.replace("manual_seed(42)", "manual_seed(7)"),
        BASE.replace("seed=1", "seed=99"),
    ):
        assert other != BASE
        assert compute_fingerprint(other) == compute_fingerprint(BASE)


TRAIN = (ROOT / "train.py").read_text()
SEEDED = "torch.manual_seed(SEED)\n"


@pytest.mark.parametrize(
    "seeds",
    (
        "torch.manual_seed(137)",
        "torch.manual_seed(SEED + 1)",
        "torch.manual_seed(int(SEED) ^ 0x5eed)",
        "SEED = 137\ntorch.manual_seed(SEED)",
        "SEED += 1\ntorch.manual_seed(SEED)",
        "seed: int = 7\ntorch.manual_seed(seed)",
        "torch.manual_seed(SEED)\ntorch.manual_seed(137)",
        "torch.manual_seed(SEED)\ntorch.cuda.manual_seed_all(137)",
        "import random\nrandom.seed(7)\ntorch.manual_seed(SEED)",
        "import numpy as np\nnp.random.seed(7)\ntorch.random.manual_seed(7)\ntorch.manual_seed(SEED)",
        "os.environ['PYTHONHASHSEED'] = '7'\ntorch.manual_seed(SEED)",
        "np.random.seed(1)\nrandom.seed(2)\nset_seed(3)\nseed_everything(4)\ntorch.manual_seed(SEED)",
    ),
)
def test_another_seed_of_the_whole_run_is_the_same_code(seeds):
    other = TRAIN.replace(SEEDED, f"{seeds}\n")

    assert other != TRAIN
    assert compute_fingerprint(other) == compute_fingerprint(TRAIN)


@pytest.mark.parametrize(
    ("line", "other"),
    (
        ("x = torch.Generator().manual_seed(0)", "x = torch.Generator().manual_seed(SEED + 1)"),
        ("generator.manual_seed(0)", "generator.manual_seed(SEED)"),
        ("rng = np.random.default_rng(0)", "rng = np.random.default_rng()"),
        ("rng = random.Random(SEED)", "rng = random.Random(7)"),
        ("def run(lr, seed=1, *, data_seed=2): pass", "def run(lr, seed=3, *, data_seed=4): pass"),
        ("CONFIG = {'lr': 1, 'seed': 2}", "CONFIG = {'lr': 1, 'seed': SEED * 3}"),
        ("self.seed = 3", "self.seed = 4"),
        ("config['seed'] = 3", "config['seed'] = -4"),
        ("run(seed=SEED)", "run(seed=5)"),
        ("key = jax.random.key(0)", "key = jax.random.key(1)"),
        ("rng = np.random.Generator(np.random.PCG64(0))", "rng = np.random.Generator(np.random.PCG64(1))"),
        ("parser.add_argument('--seed', type=int, default=1)", "parser.add_argument('--seed', type=int, default=2)"),
        ("torch.manual_seed(os.environ.get('SEED', 1))", "torch.manual_seed(os.environ.get('SEED', 2))"),
        ("x = config.get('seed', 1)", "x = config.get('seed', 2)"),
        ("seed, LR = 1, 2", "seed, LR = 3, 2"),
        ("split(x, random_state=1)", "split(x, random_state=2)"),
    ),
)
def test_another_seed_of_a_part_is_the_same_code(line, other):
    assert compute_fingerprint(line) == compute_fingerprint(other)


@pytest.mark.parametrize(
    ("line", "other"),
    (
        ("seed_weights(model, STD)", "seed_weights(model, LR)"),
        ("np.random.seed(1); LR = 2", "np.random.seed(1); LR = 3"),
        ("seed, LR = 1, 2", "seed, LR = 1, 3"),
        ("def run(lr=1, seed=1): pass", "def run(lr=2, seed=1): pass"),
        ("seed_text = read('a')", "seed_text = read('b')"),
        ("load('seed.txt', 4)", "load('seed.txt', 5)"),
        ("cache.key(1)", "cache.key(2)"),
    ),
)
def test_what_stands_beside_a_seed_counts(line, other):
    assert compute_fingerprint(line) != compute_fingerprint(other)


def test_everything_else_counts():
    assert compute_fingerprint(BASE.replace("DEPTH = 3", "DEPTH = 4")) != compute_fingerprint(BASE)
    assert compute_fingerprint(BASE.replace("LR = 0.1", "LR = 0.2")) != compute_fingerprint(BASE)
    assert compute_fingerprint("not python (") == compute_fingerprint("not python (")


@pytest.mark.parametrize(
    "deep", ["X = " + "+".join("1" * 500), "if a: pass\n" + "elif b: pass\n" * 5000, f"X = {'-' * 9000}1"]
)
def test_what_is_nested_too_deeply_to_be_walked_is_a_text(deep):
    assert compute_fingerprint(deep) == compute_fingerprint(deep)
    assert read_values(deep) == {}


def test_two_changes_merge_unless_they_touch():
    one, two = BASE.replace("DEPTH = 3", "DEPTH = 4"), BASE.replace("LR = 0.1", "LR = 0.2")

    both = merge(BASE, one, two)

    assert both is not None
    assert "DEPTH = 4" in both
    assert "LR = 0.2" in both
    assert merge(BASE, one, BASE.replace("DEPTH = 3", "DEPTH = 5")) is None


def test_changes_are_counted_in_lines():
    new = BASE.replace("DEPTH = 3\n", "DEPTH = 4\nWIDTH = 5\n")

    assert count_changes(BASE, new) == (2, 1)
    assert "+WIDTH = 5" in diff(BASE, new)
    assert diff(BASE, BASE) == ""


def test_lines_come_back_as_they_were():
    old = "\ufeffone\r\ntwo\nthree\r\nfour\r\nfive"

    assert normalize_lines(old) == "one\ntwo\nthree\nfour\nfive"
    assert restore_lines("one\ntwo\nnew\nfour\nfive", old) == "\ufeffone\r\ntwo\nnew\r\nfour\r\nfive"
    assert restore_lines("a\nb\n", "plain\n") == "a\nb\n"


@given(st.text("ab\r\n\f\ufeff"))
def test_an_unchanged_text_comes_back_byte_for_byte(text):
    assert restore_lines(normalize_lines(text), text) == text


def test_a_long_diff_is_not_kept_in_memory_with_its_texts():
    before = source._diff.cache_info().currsize
    assert diff("x" * 1_000_000, "y") == f"@@ -1 +1 @@\n-{'x' * 1_000_000}\n+y"
    assert source._diff.cache_info().currsize == before
