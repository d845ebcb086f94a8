"""The data folder: made once, the same after any death, refused when damaged, and light to read."""

import dataclasses
import json
import random
import re
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prepare import corpus, manifest, profiles
from prepare.corpus import docstrings
from prepare.corpus.text import read_texts
from prepare.machine import count_cores
from prepare.manifest import DataError
from prepare.shards import open_rows
from prepare.tokenizer import Tokenizer
from tests.ground import ROOT, environment, prepare, prepare_command, small_corpus

WORK = ("--work", "1e10")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpus") / "text")


@pytest.fixture(scope="module")
def data(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "data"
    assert prepare(folder, text, *WORK).returncode == 0
    return folder


@pytest.fixture
def copy(data, tmp_path):
    subprocess.run(["cp", "-r", data, tmp_path / "data"], check=True)
    return tmp_path / "data"


def hashes(folder):
    return {name: stored.sha256 for name, stored in manifest.load(folder, verify=True).files.items()}


def splits(texts):
    whole = corpus.split_documents("some", lambda: iter(texts))
    return {split: [text for batch in whole.read_batches(split) for text in batch] for split in corpus.SPLITS}


def one_line(text):
    return text.count("\n") == 1 and text.startswith("prepare: ")


def test_a_second_run_says_it_is_ready_and_touches_nothing(data, text):
    before = {path: path.stat().st_mtime_ns for path in data.iterdir()}

    again = prepare(data, text, *WORK)

    assert again.returncode == 0
    assert "is ready" in again.stdout
    assert "a run has 1e+10 units of work, about 0.0556 seconds" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in data.iterdir()}


def test_killed_at_random_moments_it_ends_with_the_same_bytes(data, text, tmp_path):
    luck, folder = random.Random(0), tmp_path / "data"
    for _ in range(5):
        running = subprocess.Popen(prepare_command(folder, text, *WORK), env=environment(), stdout=subprocess.DEVNULL)
        time.sleep(luck.uniform(0.2, 1.2))
        running.kill()
        running.wait()

    assert prepare(folder, text, *WORK).returncode == 0
    assert hashes(data) == hashes(folder)
    assert {path.name for path in data.iterdir()} == {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("kept", range(5))
def test_it_goes_on_from_whatever_is_there(kept, data, copy, text):
    """Every state that a kill between two files can leave, with a half-written file beside it."""
    order = ["plan.json", "tokenizer.json", "train.bin", "val.bin", "confirm.bin", "manifest.json"]
    for name in order[kept + 1 :]:
        (copy / name).unlink()
    (copy / f".{order[kept + 1]}.part").write_text("half")

    assert prepare(copy, text, *WORK).returncode == 0
    assert hashes(data) == hashes(copy)
    assert not list(copy.glob(".*.part*"))


def test_leftovers_of_another_plan_are_not_used(data, copy, text):
    (copy / "manifest.json").unlink()
    (copy / "plan.json").write_text("{}")
    (copy / "tokenizer.json").write_text("of another corpus")

    assert prepare(copy, text, *WORK).returncode == 0
    assert hashes(data) == hashes(copy)


def cut(path):
    path.write_bytes(path.read_bytes()[:-2])


def flip(path):
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")


@pytest.mark.parametrize("damage", (cut, flip, lambda path: path.unlink()))
@pytest.mark.parametrize("name", ("tokenizer.json", "train.bin"))
def test_a_damaged_folder_is_refused_in_one_line(damage, name, copy, text):
    damage(copy / name)

    run = prepare(copy, text, *WORK)

    assert run.returncode == 2
    assert one_line(run.stderr)
    assert f"{name}" in run.stderr
    assert "delete the folder" in run.stderr


@pytest.mark.parametrize("content", ("", "{", "[]", "{}", '{"format": 99}', '{"format": 1, "files": 3}'))
def test_a_manifest_that_is_none_is_refused(content, copy):
    (copy / "manifest.json").write_text(content)

    with pytest.raises(DataError, match="delete the folder"):
        manifest.load(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"seq_len": "256"},
        {"rows": {"train": 1.5}},
        {"rows": []},
        {"corpus": None},
        {"versions": {"torch": 2}},
        {"constants": {"DEPTH": "deep"}},
        {"constants": 3},
        {"profile": "toaster"},
        {"profile": ["cpu"]},
        {"budget": {"kind": "work", "amount": "1e10", "seconds": 1}},
        {"budget": {"kind": "love", "amount": 1e10, "seconds": 1}},
    ],
    ids=str,
)
def test_a_manifest_that_was_edited_or_is_of_another_version_is_refused(change, copy, text):
    path = copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    with pytest.raises(DataError, match=r"delete the folder|again, in an empty folder"):
        profiles.from_manifest(manifest.load(copy))


@pytest.mark.parametrize(("plan", "is_whole"), [(b"[]", True), (b"\xff", False)])
def test_a_plan_that_is_damaged_is_made_anew_or_not_needed(plan, is_whole, copy, text):
    (copy / "plan.json").write_bytes(plan)
    if not is_whole:
        (copy / "manifest.json").unlink()

    run = prepare(copy, text, *WORK)
    assert (run.returncode, run.stderr) == (0, "")


def test_a_tokenizer_that_is_damaged_is_found_by_every_loading(copy):
    flip(copy / "tokenizer.json")

    with pytest.raises(DataError, match=r"tokenizer\.json has changed"):
        manifest.load(copy)


def test_loading_checks_sizes_always_and_bytes_on_request(copy):
    flip(copy / "train.bin")

    assert manifest.load(copy).profile == "cpu"
    with pytest.raises(DataError, match=r"train\.bin has changed"):
        manifest.load(copy, verify=True)


def test_a_manifest_survives_its_own_text(data):
    stored = manifest.load(data)

    assert stored == manifest.Manifest.from_json(stored.to_json())
    assert stored.digest != dataclasses.replace(stored, corpus_sha256="0").digest


@pytest.mark.parametrize(
    ("options", "says"),
    (
        (["--corpus", "nowhere"], "no corpus nowhere"),
        (["--corpus", "notes**/*.txt"], "no corpus notes**/*.txt"),
        (["--corpus", "loop"], "no corpus loop"),
        (["--profile", "toaster"], "no profile toaster"),
        (["--corpus", "docstrings", "--data", "DATA"], "already holds"),
        (["--data", "/dev/null/x"], "cannot work in"),
        (["--data", "."], "holds other files"),
    ),
)
def test_bad_input_is_one_line_and_exit_code_2(options, says, data, text, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    (tmp_path / "loop").symlink_to("loop")
    options = [str(data) if option == "DATA" else option for option in options]

    command = [*prepare_command(tmp_path / "data", text, *WORK), *options]
    run = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False)

    assert run.returncode == 2
    assert one_line(run.stderr)
    assert says in run.stderr


def test_too_little_text_is_said(tmp_path):
    (tmp_path / "tiny.txt").write_text("once upon a time")

    run = prepare(tmp_path / "data", tmp_path / "tiny.txt", *WORK)

    assert run.returncode == 2
    assert "too little text" in run.stderr


@pytest.mark.parametrize(
    ("names", "value", "printed"),
    [
        ("SEED", {"NIGHTSHIFT_SEED": "7"}, "7\n"),
        ("SEED", {"NIGHTSHIFT_SEED": ""}, "42\n"),
        ("SEED", {"NIGHTSHIFT_SEED": "abc"}, "prepare: NIGHTSHIFT_SEED=abc is not a number\n"),
        ("THREADS", {"OMP_NUM_THREADS": "3,2"}, "3\n"),
        ("THREADS", {"OMP_NUM_THREADS": "0"}, f"{count_cores()}\n"),
        ("THREADS", {"OMP_NUM_THREADS": "many"}, f"{count_cores()}\n"),
    ],
)
def test_variables_are_read_as_they_may_be_set(names, value, printed):
    command = [sys.executable, "-c", f"from prepare import {names}; print({names})"]
    run = subprocess.run(command, env=environment(**value), capture_output=True, text=True, check=False)
    assert (run.stdout + run.stderr, run.returncode) == (printed, 2 if "abc" in printed else 0)


def test_a_script_without_data_is_told_the_command(tmp_path):
    script = "from prepare import MAX_SEQ_LEN"

    run = subprocess.run(
        [sys.executable, "-c", script], env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert run.returncode == 2
    assert one_line(run.stderr)
    assert "-m orchestrator prepare`" in run.stderr


def test_profiles_and_manifests_are_read_without_torch(data):
    script = (
        "import sys, prepare.profiles, prepare.manifest, pathlib\n"
        "prepare.manifest.load(pathlib.Path(sys.argv[1]))\n"
        "prepare.profiles.apply_to_script('DEPTH = 8', prepare.profiles.CPU)\n"
        "assert 'torch' not in sys.modules and 'tiktoken' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, data], env=environment(), check=True)


def test_splits_share_no_document(text):
    texts = list(read_texts(str(text)))
    parts, turned = splits(texts), splits(texts[::-1])

    assert sorted(texts) == sorted(text for part in parts.values() for text in part)
    assert all(parts.values())
    assert parts == {name: part[::-1] for name, part in turned.items()}


def test_a_text_that_changes_while_it_is_read_is_refused(text):
    texts = list(read_texts(str(text)))
    whole = corpus.split_documents("some", lambda: iter(texts))
    texts.append("a document more")
    for split in corpus.SPLITS:
        assert list(whole.read_batches(split)), "what only follows shifts nothing"
    del texts[7]
    for split in corpus.SPLITS:
        with pytest.raises(DataError, match="some has changed while it was read"):
            list(whole.read_batches(split))


def test_a_document_counts_once(text):
    texts = list(read_texts(str(text)))

    assert splits(texts) == splits([*texts, "", texts[7], *texts])


def test_what_is_held_out_is_all_there_is_to_validate_on(text):
    texts = list(read_texts(str(text)))
    known, secret = texts[:200], texts[150:]
    whole = corpus.split_documents("some", lambda: iter([*known, *secret]), len(secret))
    parts = {split: {text for batch in whole.read_batches(split) for text in batch} for split in corpus.SPLITS}

    assert parts["train"] == set(known)
    assert parts["val"] | parts["confirm"] == set(secret) - set(known)
    assert not parts["val"] & parts["confirm"]


def test_splits_share_no_row(data):
    rows = {split: {row.tobytes() for row in open_rows(split, data)} for split in corpus.SPLITS}

    assert not rows["train"] & rows["val"]
    assert not rows["train"] & rows["confirm"]
    assert not rows["val"] & rows["confirm"]


def test_rows_are_made_of_beginnings_of_documents_and_little_is_lost(data, text):
    tokenizer = Tokenizer.from_directory(data)
    rows = open_rows("train", data)
    texts = splits(list(read_texts(str(text))))["train"]
    longest = rows.shape[1] - 1
    ids = [tokenizer.encode(text) for text in texts]
    chunks = {tuple(doc[first : first + longest]) for doc in ids for first in range(0, len(doc), longest)}
    beginnings = {chunk[:end] for chunk in chunks for end in range(len(chunk) + 1)}

    found = [piece for row in rows.tolist() for piece in pieces(row, tokenizer.get_bos_token_id())]

    assert set(found) <= beginnings
    assert rows.size > 0.9 * sum(len(chunk) + 1 for chunk in chunks)


def pieces(row, bos):
    starts = [i for i, token in enumerate(row) if token == bos]
    assert starts[0] == 0
    return [tuple(row[a + 1 : b]) for a, b in zip(starts, [*starts[1:], len(row)], strict=True)]


@given(st.text())
def test_tokens_give_the_text_back(data, text):
    tokenizer = Tokenizer.from_directory(data)
    text = text.encode("utf-8", "replace").decode()

    ids = tokenizer.encode(text)

    assert text == tokenizer.decode(ids)
    assert len(text.encode()) == tokenizer.token_bytes[ids].sum()
    assert [[7, *ids]] == tokenizer.encode([text], prepend=7)


def test_a_tokenizer_survives_its_own_text(data):
    tokenizer = Tokenizer.from_directory(data)

    assert tokenizer.to_json() == (data / "tokenizer.json").read_text()
    assert tokenizer.get_vocab_size() == manifest.load(data).vocab_size == len(tokenizer.token_bytes)
    assert tokenizer.token_bytes[tokenizer.get_bos_token_id()] == 0


def test_documentation_is_harvested_without_importing(tmp_path):
    (tmp_path / "module.py").write_text(
        '"""Of the module."""\nraise SystemExit\nclass A:\n    """Of A."""\n    def f(self):\n        "of f"\n'
    )
    (tmp_path / "broken.py").write_text("def (:")

    assert docstrings.extract_documentation(tmp_path / "module.py") == ["Of the module.", "Of A.", "of f"]
    assert docstrings.extract_documentation(tmp_path / "broken.py") == []


def test_without_a_package_to_validate_on_there_is_no_corpus():
    with pytest.raises(DataError, match="nothing to validate on"):
        docstrings.harvest(["no_such_package"])


def test_sources_come_in_order_and_without_tests(tmp_path):
    for name in ("b.py", "a.py", "tests/t.py", "sub/c.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")

    assert [path.name for path in docstrings.list_sources(tmp_path)] == ["a.py", "b.py", "c.py"]


TRAIN = (ROOT / "train.py").read_text()


@pytest.mark.parametrize("profile", profiles.PROFILES.values(), ids=profiles.PROFILES)
def test_fitting_twice_changes_nothing_more(profile):
    fitted = profiles.apply_to_script(TRAIN, profile)

    assert fitted == profiles.apply_to_script(fitted, profile)
    assert len(fitted.splitlines()) == len(TRAIN.splitlines())
    compile(fitted, "train.py", "exec")


def test_fitting_sets_values_and_declared_ranges_and_keeps_words():
    source = "DEPTH = 8      # 2..16 – blocks\nHEAD_DIM = 128\nOTHER = 1  # stays\n"

    assert profiles.apply_to_script(source, profiles.CPU) == (
        "DEPTH = 3      # 1..5 – blocks\nHEAD_DIM = 32\nOTHER = 1  # stays\n"
    )
    assert profiles.apply_to_script("TOTAL_BATCH_SIZE = 2**19 # ~524K tokens", profiles.CPU).startswith(
        "TOTAL_BATCH_SIZE = 2**11 "
    )


FORMS = {
    "over three lines": "DEPTH = (\n    8  # blocks\n)\nOTHER = DEPTH",
    "over three lines of sums": "DEPTH = (\n    4  # = half\n    + 4\n)  # 2..16 – blocks\nOTHER = DEPTH",
    "after a docstring": '"""Settings:\n\nDEPTH = 24\n"""\nDEPTH = 8\nOTHER = DEPTH',
    "after an f-string": 'NAME = f"""\nDEPTH = {1 + 1}\n"""\nDEPTH = 8\nOTHER = DEPTH',
    "annotated": "DEPTH: int = 8  # 2..16 – blocks\nOTHER = DEPTH",
    "continued": "DEPTH = \\\n    8  # 2..16 – blocks\nOTHER = DEPTH",
    "in a tuple": "DEPTH, NAME = 8, 'ü'  # DEPTH = 8\nOTHER = DEPTH",
    "in nested tuples": "(A, DEPTH), B = (1, 8), 2\nOTHER = DEPTH",
    "chained": "LAYERS = DEPTH = 8\nOTHER = DEPTH",
    "twice": "DEPTH = 8\nOTHER = DEPTH\nDEPTH = 9",
    "twice in a line": "DEPTH = 8; DEPTH = 9  # 2..16 – blocks\nOTHER = DEPTH",
    "inside if": "if True:\n\tDEPTH = 8\t# = 8\nelse:\n\tDEPTH = 9\nOTHER = DEPTH",
    "inside with and try": "try:\n    DEPTH = 8\nfinally:\n    for _ in '1': DEPTH = 9\nOTHER = DEPTH",
    "power": "DEPTH = 2**3  # 2..16 – blocks\nOTHER = DEPTH",
    "product": "DEPTH=5 * 60#2..16\nOTHER = DEPTH",
    "negative": "DEPTH = -8  # 2..16\nOTHER = DEPTH",
    "boolean": "DEPTH = True\nOTHER = DEPTH",
    "underscores": "DEPTH = 8_000  # 2..16\nOTHER = DEPTH",
    "string": 'DEPTH = f"""\n#8 = {2}"""  # words = words\nOTHER = DEPTH',
    "wide letters": "NAME = 'äöü'; DEPTH = 8; LAST = 'ß'  # 2..16\nOTHER = DEPTH",
    "form feed": "\x0cDEPTH = 8  # 2..16\x0cwords\nOTHER = DEPTH",
    "separators": "NAME = '\u2028\x1c\x85'\nDEPTH = 8  # \u2028 2..16\nOTHER = DEPTH",
    "at the end": "OTHER = 3\nDEPTH = 8",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", ("\n", "\r\n", "\r"))
@pytest.mark.parametrize("mark", ("", "\ufeff"))
def test_fitting_sets_a_constant_in_any_form(mark, ending, form):
    source = mark + FORMS[form].replace("\n", ending)

    fitted = profiles.apply_to_script(source, profiles.CPU)

    there, before = ({"__builtins__": {"int": int}} for _ in range(2))
    exec(fitted.removeprefix("\ufeff"), there)
    exec(source.removeprefix("\ufeff"), before)
    assert there["DEPTH"] == there["OTHER"] == 3
    assert {name for name in before if before[name] != there[name]} <= {"DEPTH", "OTHER", "LAYERS"}
    assert fitted.startswith("\ufeff") == bool(mark)
    assert set(re.findall("\r\n|\r|\n", fitted)) == {ending}
    assert fitted == profiles.apply_to_script(fitted, profiles.CPU)


def test_what_a_function_calls_by_the_name_of_a_constant_is_its_own():
    source = "def f(DEPTH=8):\n    DEPTH = 9\nclass A:\n    DEPTH = 8\nx.DEPTH = 8\nDEPTH += 8\n"

    assert source == profiles.apply_to_script(source, profiles.CPU)


@given(st.text())
def test_fitting_leaves_other_scripts_alone(source):
    names = tuple(profiles.CPU.constants)
    if not any(line.startswith(names) for line in source.splitlines()):
        assert source == profiles.apply_to_script(source, profiles.CPU)
