"""Packing equals a plain, slow best fit: row for row, crops included."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prepare.build.packing import TokenStore, pack, write_rows
from prepare.corpus import make_batches
from prepare.shards import choose_row_dtype
from prepare.tokenizer import Tokenizer

lengths = st.lists(st.integers(1, 40), max_size=120)


def plain_pack(lengths, capacity, buffer, refill):
    """Upstream's loader in its own words: scan the buffer for the longest that fits, else crop the shortest."""
    fresh = list(range(len(lengths)))
    waiting, rows, row, room = [], [], [], capacity
    while True:
        while len(waiting) < buffer and fresh:
            waiting += fresh[:refill]
            fresh = fresh[refill:]
        if not waiting:
            return rows
        fitting = [d for d in waiting if lengths[d] <= room]
        chosen = max(fitting, key=lambda d: lengths[d]) if fitting else min(waiting, key=lambda d: lengths[d])
        waiting.remove(chosen)
        row.append((chosen, min(lengths[chosen], room)))
        room -= row[-1][1]
        if room == 0:
            rows.append(row)
            row, room = [], capacity


@given(lengths, st.integers(2, 50), st.integers(1, 20), st.integers(1, 8))
def test_pack_is_plain_best_fit(lengths, capacity, buffer, refill):
    count = len(lengths)
    refills = [min(refill, count - first) for first in range(0, count, refill)]
    documents, takes = pack(np.array(lengths, np.int64), capacity, buffer=buffer, refills=refills)

    expected = [segment for row in plain_pack(lengths, capacity, buffer, refill) for segment in row]
    assert expected == list(zip(documents.tolist(), takes.tolist(), strict=True))


@given(lengths, st.integers(2, 50))
def test_rows_are_full_and_begin_with_a_document(lengths, capacity):
    documents, takes = pack(np.array(lengths, np.int64), capacity, buffer=10)

    ends = np.cumsum(takes)
    assert len(set(documents.tolist())) == len(documents), "no document twice"
    assert ends.size == 0 or ends[-1] % capacity == 0, "whole rows"
    assert set(range(capacity, int(takes.sum()) + 1, capacity)) <= set(ends.tolist()), "no document crosses a row"


@pytest.mark.parametrize("capacity", (257, 2049))
def test_little_of_chunked_documents_is_cropped(capacity):
    documents = np.random.default_rng(0).lognormal(6.4, 0.9, 8_000).astype(int) + 2
    chunks = [min(capacity, length - first) for length in documents for first in range(0, length, capacity)]

    _, takes = pack(np.random.default_rng(1).permutation(chunks), capacity)

    assert takes.sum() > (0.98 if capacity == 257 else 0.90) * sum(chunks)


def upstream(texts_by_group, tokenizer, length):
    """Rows as upstream's loader makes them on the fly, in its own words, until its documents run out."""
    fresh = (group[i : i + 128] for group in texts_by_group for i in range(0, len(group), 128))
    waiting, row = [], []
    while True:
        while len(waiting) < 1000 and (batch := next(fresh, None)):
            waiting += tokenizer.encode(batch, prepend=tokenizer.get_bos_token_id())
        if not waiting:
            return
        room = length + 1 - len(row)
        best = max((d for d in waiting if len(d) <= room), key=len, default=None)
        chosen = waiting.pop(next(i for i, d in enumerate(waiting) if d is best)) if best else None
        if chosen is None:
            shortest = min(range(len(waiting)), key=lambda i: len(waiting[i]))
            chosen = waiting.pop(shortest)[:room]
        row += chosen
        if len(row) == length + 1:
            yield row
            row = []


GROUPS = [300, 1000, 129, 777, 500]


@pytest.fixture(scope="module")
def groups():
    """Texts in row groups of odd sizes, so that refills are odd, too."""
    luck = random.Random(0)
    return [["".join(luck.choices("abc de", k=luck.randint(0, 400))) for _ in range(size)] for size in GROUPS]


@pytest.fixture(scope="module")
def tokenizer(groups):
    return Tokenizer.train((text for group in groups for text in group), 300)


def stored(path, batches, tokenizer, max_length=None):
    return TokenStore(path.open("wb+"), batches, tokenizer, max_length)


@pytest.mark.parametrize("length", (64, 256))
def test_rows_are_upstreams_row_for_row(length, groups, tokenizer, tmp_path):
    store = stored(tmp_path / "tokens", (batch for group in groups for batch in make_batches(group)), tokenizer)

    write_rows(tmp_path / "rows", store, length, shuffle=False, limit=None, block=7)

    ours = np.fromfile(tmp_path / "rows", np.uint16).reshape(-1, length + 1)
    assert list(upstream(groups, tokenizer, length)) == ours.tolist()
    assert len(ours) > 100


def test_a_limit_leaves_out_the_last_rows(groups, tokenizer, tmp_path):
    store = stored(tmp_path / "tokens", groups, tokenizer)
    for name, limit in (("all", None), ("some", 50), ("more", 10**6)):
        write_rows(tmp_path / name, store, 64, shuffle=True, limit=limit)

    everything = (tmp_path / "all").read_bytes()
    assert everything[: 50 * 65 * 2] == (tmp_path / "some").read_bytes()
    assert everything == (tmp_path / "more").read_bytes()


def test_large_vocabularies_take_four_bytes():
    assert (
        choose_row_dtype(65_535).itemsize,
        choose_row_dtype(65_536).itemsize,
        choose_row_dtype(65_537).itemsize,
    ) == (
        2,
        2,
        4,
    )


def test_long_documents_become_pieces_with_a_bos_each(groups, tokenizer, tmp_path):
    whole, cut = (stored(tmp_path / name, groups, tokenizer, n) for name, n in (("whole", None), ("cut", 16)))
    ids = [tokenizer.encode(text) for group in groups for text in group]
    bos = tokenizer.get_bos_token_id()

    assert whole.tokens.tolist() == [token for doc in ids for token in (bos, *doc)]
    assert whole.lengths.tolist() == [1 + len(doc) for doc in ids]
    assert list(whole.batch_sizes) == GROUPS
    pieces = [doc[first : first + 16] for doc in ids for first in range(0, len(doc) or 1, 16)]
    assert cut.tokens.tolist() == [token for piece in pieces for token in (bos, *piece)]
    assert cut.lengths.tolist() == [1 + len(piece) for piece in pieces]
    assert sum(cut.batch_sizes) == len(pieces)
