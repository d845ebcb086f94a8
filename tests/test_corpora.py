"""Shards from an unreliable hub arrive whole or not at all, and text of the user's own is read whatever its form."""

import gzip
import hashlib
import io
import json
import random
import subprocess
from collections import deque
from functools import partial
from types import SimpleNamespace

import pyarrow as pa
import pytest
from huggingface_hub import hf_hub_download
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from tenacity import wait_none

from prepare import manifest
from prepare.corpus import bars, climbmix, split_documents
from prepare.corpus.text import _read_text, read_texts
from prepare.manifest import DataError
from tests.ground import environment, prepare_command
from tests.hub import serving, shard_bytes
from tests.hunting import try_examples

NAMES = ["shard_00000.parquet", "shard_00001.parquet", "shard_06541.parquet", "shard_06542.parquet"]


def words(seed, count):
    luck = random.Random(seed)
    return [
        " ".join(luck.choices(["tide", "moor", "lamp", "quay", "fern", "Öl"], k=luck.randint(5, 400)))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def files():
    return {name: shard_bytes(words(name, 600)) for name in NAMES}


@pytest.fixture
def hub(files):
    with serving(files) as hub:
        yield hub


@pytest.fixture
def dataset(hub, tmp_path):
    cache = tmp_path / "cache"
    return SimpleNamespace(cache=cache, fetch=partial(climbmix.fetch, cache=cache, endpoint=hub.url, wait=wait_none()))


def whole(found, files, names=NAMES):
    return [path.read_bytes() for path, _ in found] == [files[name] for name in names]


def test_a_few_documents_fill_three_splits():
    for seed in range(20):
        documents = [f"{seed} {number}" for number in range(3)]
        corpus = split_documents("few", lambda documents=documents: iter(documents))
        split = [text for part in ("train", "val", "confirm") for batch in corpus.read_batches(part) for text in batch]
        assert corpus.counts == {"train": 1, "val": 1, "confirm": 1}
        assert sorted(split) == documents
    with pytest.raises(DataError, match="2 documents to split, and none for train"):
        split_documents("few", lambda: iter("ab"))


def test_shards_arrive_once_and_are_vouched_for(dataset, files, hub):
    first = dataset.fetch(NAMES)
    asked = len(hub.asked)

    again = dataset.fetch(NAMES)

    assert whole(first, files)
    assert first == again
    assert [hashlib.sha256(files[name]).hexdigest() for name in NAMES] == [sha256 for _, sha256 in first]
    assert asked == len(hub.asked), "nothing is asked for twice"
    assert bars.tasks[-1].finished
    assert not list(dataset.cache.rglob("*.incomplete"))


@pytest.mark.parametrize(
    "faults",
    ([500], [503, 502], [429, 429], ["truncate"], ["truncate", "truncate", 500], ["corrupt"], ["corrupt", "truncate"]),
    ids=str,
)
def test_faults_are_outlived(faults, dataset, files, hub):
    hub.faults = {NAMES[1]: deque(faults)}

    assert whole(dataset.fetch(NAMES), files)


def test_a_busy_hub_is_asked_again_for_its_description(dataset, files, hub):
    hub.heads = deque([429, 500, 504])

    assert whole(dataset.fetch(NAMES[:1]), files, NAMES[:1])


@pytest.mark.parametrize("damage", ("flip", "cut", "delete"))
def test_a_damaged_shard_is_found_and_fetched_again(damage, dataset, files, hub):
    path = dataset.fetch(NAMES)[2][0]
    match damage:
        case "flip":
            path.write_bytes(path.read_bytes()[:-5] + b"wrong")
        case "cut":
            path.write_bytes(path.read_bytes()[:100])
        case _:
            path.unlink()
    hub.asked.clear()

    assert whole(dataset.fetch(NAMES), files)
    assert {NAMES[2]} == {name for _, name, _, _ in hub.asked}


def test_a_shard_that_another_program_fetched_is_not_fetched_again(dataset, files, hub):
    hf_hub_download(climbmix.REPO, NAMES[0], repo_type="dataset", cache_dir=dataset.cache, endpoint=hub.url)
    hub.asked.clear()

    assert whole(dataset.fetch(NAMES[:1]), files, NAMES[:1])
    assert hub.asked == []


def test_a_hub_that_never_sends_the_right_bytes_is_named(dataset, files, hub):
    hub.faults = {NAMES[0]: deque(["corrupt"] * 50)}

    with pytest.raises(DataError, match="keeps sending a damaged shard"):
        dataset.fetch(NAMES)

    assert not list(dataset.cache.rglob(hashlib.sha256(files[NAMES[0]]).hexdigest()))


@pytest.mark.parametrize("data", (b"not parquet at all", shard_bytes(["x"], column="words"), shard_bytes([])))
def test_a_shard_must_be_parquet_with_text(data, dataset, hub):
    hub.files = hub.files | {NAMES[0]: data}

    with pytest.raises(DataError, match=r"damaged shard .*(Parquet|no text)"):
        dataset.fetch(NAMES[:1])


@pytest.mark.parametrize(("status", "says"), ((401, "HF_TOKEN"), (404, "404"), (500, "again later")))
def test_refusals_are_one_line(status, says, dataset, hub):
    hub.heads = deque([status] * 50)

    with pytest.raises(DataError, match=says) as caught:
        dataset.fetch(NAMES)

    assert "\n" not in str(caught.value)
    assert "--corpus docstrings" in str(caught.value)


def run(data, cache, *more, **variables):
    command = [*prepare_command(data, "climbmix", "--work", "1e9", "--shards", "2"), *more]
    env = environment(XDG_CACHE_HOME=str(cache), HF_HUB_DISABLE_TELEMETRY="1", **variables)
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=200)


def test_prepare_outlives_a_stalling_hub_and_then_needs_none(hub, tmp_path):
    hub.faults = {NAMES[0]: deque(["stall"])}
    first = run(tmp_path / "a", tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN="hf_secret", HF_HUB_DOWNLOAD_TIMEOUT="1")
    offline = run(tmp_path / "b", tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    fewer = run(tmp_path / "b", tmp_path, "--shards", "1", HF_HUB_OFFLINE="1")

    assert first.returncode == 0, first.stderr
    assert offline.returncode == 0, offline.stderr
    assert fewer.returncode == 2
    assert "was prepared with other settings" in fewer.stderr
    assert {"Bearer hf_secret"} == {authorization for *_, authorization in hub.asked}
    assert "hf_secret" not in first.stdout + first.stderr
    assert manifest.load(tmp_path / "a").digest == manifest.load(tmp_path / "b").digest
    assert manifest.load(tmp_path / "a", verify=True).corpus == "climbmix"


@pytest.mark.parametrize(
    ("variables", "says"),
    (
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
    ),
    ids=("unreachable", "offline"),
)
def test_without_a_hub_there_is_one_clear_line(variables, says, tmp_path):
    done = run(tmp_path / "data", tmp_path, **variables)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("prepare: ")
    assert says in done.stderr
    assert "--corpus docstrings" in done.stderr


def test_a_cache_that_cannot_be_written_is_named(hub, tmp_path):
    done = run(tmp_path / "data", "/dev/null", HF_ENDPOINT=hub.url)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cannot work in /dev/null" in done.stderr


def documents(path):
    return list(read_texts(str(path)))


def test_own_text_in_every_form_is_the_same_text(tmp_path):
    written = words(0, 50)
    for form in ("txt", "jsonl", "parquet"):
        (tmp_path / form).mkdir()
    for number, text in enumerate(written):
        (tmp_path / "txt" / f"{number:02}.txt").write_text(text)
    (tmp_path / "jsonl/a.jsonl").write_text("\n".join(json.dumps({"id": 7, "text": text}) for text in written))
    parquet.write_table(pa.table({"text": written, "id": range(50)}), tmp_path / "parquet/a.parquet")

    assert written == documents(tmp_path / "txt") == documents(tmp_path / "txt/*.txt")
    assert written == documents(tmp_path / "jsonl/a.jsonl") == documents(tmp_path / "parquet")


@given(st.lists(st.text("ab \n", max_size=60), max_size=8), st.integers(1, 30))
def test_a_long_file_is_cut_into_documents_that_lose_nothing(parts, length):
    text = "\n".join(parts)

    cut = list(_read_text(io.StringIO(text), split_after=length, max_length=40))

    assert text == "".join(cut)
    assert all(len(document) <= 80 for document in cut)


def test_a_marked_file_is_cut_at_its_marks(tmp_path):
    (tmp_path / "stories.txt").write_text("one\n\nday\n<|endoftext|>\ntwo\n<|endoftext|>\n")

    assert documents(tmp_path / "stories.txt") == ["one\n\nday\n", "two\n", ""]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    (
        ("a.jsonl", '{"text": "fine"}\n{"txt": "not"}\n', "line 2 is not an object with a text"),
        ("a.jsonl", '{"text": \n', "line 1 "),
        ("a.parquet", "PAR0", "cannot read"),
        ("a.jsonl", '["text"]\n', "line 1 "),
        ("a.jsonl", '\n{"text": null}\n', "line 2 "),
        ("a.jsonl", "[" * 100_000, "line 1 "),
        ("a.jsonl", '{"text": "fine"}\n'.encode("utf-16"), "not text in UTF-8"),
        ("a.tex", "text", "no text in"),
        *(
            ("a.txt", "Größe".encode(name), "not text in UTF-8")
            for name in ("utf-16", "utf-16-le", "utf-32", "latin-1")
        ),
        ("a.txt", gzip.compress(b"text", mtime=0), "not text in UTF-8"),
        ("a.md", b"an executable\0", "not text in UTF-8"),
        ("a.py", b"# -*- coding: latin-1 -*-\n# \xe4\n", "not text in UTF-8"),
    ),
)
def test_text_that_cannot_be_read_is_named(name, content, says, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(DataError, match=says) as caught:
        documents(tmp_path / name)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", ([1, 2], [b"text"], [["text"]]), ids=str)
def test_a_column_that_holds_no_text_is_named(values, tmp_path):
    parquet.write_table(pa.table({"text": values}), tmp_path / "a.parquet")

    with pytest.raises(DataError, match="its column text holds"):
        documents(tmp_path / "a.parquet")


def test_a_description_that_is_damaged_anywhere_is_text_or_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": ["text"]}), path, store_schema=False)
    raw = path.read_bytes()
    for place in range(len(raw) - 8 - int.from_bytes(raw[-8:-4], "little"), len(raw) - 8):
        path.write_bytes(raw[:place] + b"\x06" + raw[place + 1 :])
        try:
            documents(path)
        except DataError as error:
            assert "\n" not in str(error)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a.txt").write_text("text", encoding="utf-8-sig")
    (tmp_path / "b.jsonl").write_text('{"text": "text"}', encoding="utf-8-sig")

    assert documents(tmp_path) == ["text", "text"]


@pytest.mark.parametrize(
    ("content", "says"),
    ((b"", "0 documents"), (b"one line\n", "1 document "), ("Größe\n".encode("utf-16"), "not text in UTF-8")),
)
def test_a_corpus_of_no_use_is_refused_in_one_line(content, says, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)

    command = prepare_command(tmp_path / "data", tmp_path / "a.txt", "--work", "1e9")
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=200)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert not (tmp_path / "data/manifest.json").exists()


def test_half_a_surrogate_pair_is_no_stumbling_block(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "caf\\ud83d"}')

    assert documents(tmp_path) == ["caf?"]


@try_examples(25)
@given(st.lists(st.text(min_size=1, max_size=3), min_size=200, unique=True))
def test_no_document_is_in_two_splits_and_order_is_kept(written):
    try:
        corpus = split_documents("some", lambda: iter(written))
    except DataError:
        return
    parts = {
        split: [text for batch in corpus.read_batches(split) for text in batch] for split in ("train", "val", "confirm")
    }

    assert sorted(written) == sorted(text for part in parts.values() for text in part)
    assert all(part == [text for text in written if text in known] for part in parts.values() for known in [set(part)])
    assert {split: len(part) for split, part in parts.items()} == corpus.counts
