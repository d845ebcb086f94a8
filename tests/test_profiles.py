"""What a card gets: a model, rows that fit in its memory, and what the user says."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prepare import manifest, profiles
from prepare.__main__ import check_request
from prepare.constants import read_values
from prepare.machine import Gpu, filter_visible
from prepare.manifest import DataError
from tests.ground import ROOT, prepare, small_corpus

TRAIN = (ROOT / "train.py").read_text()
AMPERE, PASCAL = (8, 6), (6, 1)


def card(gigabytes, capability=AMPERE):
    return Gpu(int(gigabytes * 1e9), capability)


@pytest.mark.parametrize(
    ("gigabytes", "name"),
    (
        (3.0, None),
        (4.2, "gpu4"),
        (6.2, "gpu6"),
        (6.44, "gpu6"),
        (8.59, "gpu8"),
        (10.7, "gpu12"),
        (15.8, "gpu16"),
        (25.7, "gpu24"),
        (42.4, "gpu40"),
        (85.0, "h100"),
        (150.0, "h100"),
    ),
)
def test_memory_as_cards_report_it_names_the_profile(gigabytes, name):
    found = profiles.choose_for_gpu(card(gigabytes))

    assert name == (found and found.name)


CARDS = [Gpu(8 << 30, AMPERE, f"GPU-{name}", node) for name, node in (("aa11", 1), ("aa22", 0), ("bb33", 2))]


@pytest.mark.parametrize(
    ("names", "nodes"),
    (
        (None, [1, 0, 2]),
        ("", []),
        ("-1", []),
        ("2, 0", [2, 1]),
        ("GPU-bb", [2]),
        ("GPU-aa22,1,2", [0]),
        ("0,7,1", [1]),
        ("GPU-aa", []),
    ),
)
def test_the_user_says_which_cards_are_ours(names, nodes):
    """As CUDA reads it: whatever follows a name that is nobody's, ambiguous or there already is not used."""
    assert [card.node for card in filter_visible(CARDS, names)] == nodes


def test_a_big_card_is_upstreams():
    sizes = read_values(TRAIN) | profiles.get_values(profiles.H100)

    assert (
        profiles.H100.seq_len,
        profiles.H100.vocab_size,
        profiles.H100.eval_tokens,
        profiles.H100.budget.amount,
    ) == (2048, 8192, 40 * 524_288, 300)
    assert tuple(sizes[name] for name in ("DEPTH", "MODEL_DIM", "TOTAL_BATCH_SIZE", "DEVICE_BATCH_SIZE")) == (
        8,
        512,
        2**19,
        128,
    )


@given(st.floats(3.5, 69.9), st.sampled_from((AMPERE, PASCAL)))
def test_the_rows_fit_and_the_script_is_sound(gigabytes, capability):
    found = profiles.choose_for_gpu(card(gigabytes, capability))
    size = profiles.get_values(found)

    per_token = 26 * size["DEPTH"] * size["MODEL_DIM"] + 8 * 8192
    if capability == PASCAL:
        per_token = 60 * size["DEPTH"] * size["MODEL_DIM"] + 18 * 8192
        assert size["WINDOW_PATTERN"] == "L"
    used = size["DEVICE_BATCH_SIZE"] * found.seq_len * per_token
    assert used <= 0.9 * (gigabytes - 1) * 1e9
    assert size["TOTAL_BATCH_SIZE"] % (size["DEVICE_BATCH_SIZE"] * found.seq_len) == 0
    assert size["MODEL_DIM"] % size["HEAD_DIM"] == 0
    assert found.eval_tokens % found.seq_len == 0
    compile(profiles.apply_to_script(TRAIN, found), "train.py", "exec")


def test_a_slow_card_gets_fewer_rows():
    assert profiles.get_values(profiles.choose_for_gpu(card(25.7, AMPERE)))["DEVICE_BATCH_SIZE"] == 32
    assert profiles.get_values(profiles.choose_for_gpu(card(19.1, PASCAL)))["DEVICE_BATCH_SIZE"] == 16


def test_turning_a_constant_widens_its_range():
    turned = profiles.with_constants(
        profiles.CPU, {"DEPTH": 9, "TOTAL_BATCH_SIZE": 512, "SCALAR_LR": 0.001, "MATRIX_LR": 0.1}
    )
    fitted = profiles.apply_to_script(TRAIN, turned)

    assert "\nDEPTH = 9                   # 1..9 – transformer blocks\n" in fitted
    assert "\nTOTAL_BATCH_SIZE = 512      # one of 512, 1024, 2048, 4096 – " in fitted
    assert "\nSCALAR_LR = 0.001           # 0.001..0.5 log – " in fitted
    assert "\nMATRIX_LR = 0.1             # 0.01..0.16 log – " in fitted
    assert profiles.find_changes(turned) == {"DEPTH": 9, "TOTAL_BATCH_SIZE": 512, "SCALAR_LR": 0.001, "MATRIX_LR": 0.1}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("profiles") / "text")


def test_what_the_user_sets_is_recorded_and_held(text, tmp_path):
    data = tmp_path / "data"
    commit = prepare(data, text, "--work", "1e9", "--set", "DEPTH=2", "--set", "seq_len=128")
    stored = manifest.load(data)
    other = prepare(data, text, "--set", "DEPTH=4")

    assert commit.returncode == 0, commit.stderr
    assert (stored.seq_len, stored.constants) == (128, {"DEPTH": 2})
    assert profiles.get_values(profiles.from_manifest(stored))["DEPTH"] == 2
    assert prepare(data, text, "--set", "DEPTH=2", "--work", "1e9").returncode == 0
    with pytest.raises(DataError, match="other settings"):
        check_request(stored, data, str(text), None, ["DEPTH=2"], 2e9)
    assert other.returncode == 2
    assert "other settings" in other.stderr


def test_a_text_that_yields_less_than_was_asked_for_is_what_was_asked_for(text, tmp_path):
    asked = ("--work", "1e9", "--set", "vocab_size=100000", "--set", "eval_tokens=100000000")
    for _ in range(2):
        done = prepare(tmp_path / "data", text, *asked)
        assert done.returncode == 0, done.stderr
    assert manifest.load(tmp_path / "data").eval_tokens < 100_000_000
    assert prepare(tmp_path / "data", text, "--set", "eval_tokens=1024").returncode == 2


@pytest.mark.parametrize(
    "setting", ("DEPTH=1e999", "DEPTH=", "seq_len=True", "seq_len=2.5", "eval_tokens=-1", "vocab_size=99")
)
def test_settings_out_of_all_bounds_are_refused(setting):
    with pytest.raises(ValueError, match="sets nothing"):
        profiles.with_overrides(profiles.CPU, [setting])


@pytest.mark.parametrize("setting", ("DEPTH", "depth=3", "seq_len=0", "seq_len=long", "seconds=60", "DEPTH=[1]", "=3"))
def test_settings_that_set_nothing_are_refused(setting):
    with pytest.raises(ValueError, match="sets nothing"):
        profiles.with_overrides(profiles.CPU, [setting])


def test_a_number_cannot_become_a_word():
    with pytest.raises(ValueError, match="not a number"):
        profiles.with_overrides(profiles.CPU, ["DEPTH=deep"])


def test_a_budget_of_time_can_be_set():
    assert profiles.with_overrides(profiles.H100, ["seconds=60"]).budget.amount == 60


def test_data_without_constants_reads_as_before():
    plain = {"profile": "cpu", "corpus": "", "corpus_sha256": "", "seq_len": 1, "vocab_size": 2, "eval_tokens": 3}
    plain |= {
        "budget": {"kind": "time", "amount": 1, "seconds": 1},
        "rows": {},
        "files": {},
        "versions": {},
        "format": 2,
    }

    stored = manifest.Manifest.from_json(json.dumps(plain))

    assert plain == json.loads(stored.to_json())
