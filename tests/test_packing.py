"""Packing equals a plain, slow best fit: row for row, crops included."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prepare.packing import materialise, pack

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


@given(lengths, st.integers(2, 50))
def test_materialise_copies_what_was_packed(lengths, capacity):
    documents, takes = pack(np.array(lengths, np.int64), capacity)
    tokens = np.repeat(np.arange(len(lengths), dtype=np.uint16), np.array(lengths, np.int64))
    out = np.empty(int(takes.sum()), np.uint16)

    materialise(tokens, np.cumsum(lengths, dtype=np.int64) - np.array(lengths, np.int64), documents, takes, out)

    assert np.repeat(documents, takes).tolist() == out.tolist()


@pytest.mark.parametrize("capacity", (257, 2049))
def test_little_of_chunked_documents_is_cropped(capacity):
    documents = np.random.default_rng(0).lognormal(6.4, 0.9, 8_000).astype(int) + 2
    chunks = [min(capacity, length - first) for length in documents for first in range(0, length, capacity)]

    _, takes = pack(np.random.default_rng(1).permutation(chunks), capacity)

    assert takes.sum() > (0.98 if capacity == 257 else 0.90) * sum(chunks)
