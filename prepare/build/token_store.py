"""The tokens of a split between tokenising and packing: one document after another in a file, their lengths in others.

Tokenising takes longest, so it goes on after a kill from the last checkpoint, and ends with the same bytes.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from prepare.atomic import open_replacement
from prepare.shards import choose_row_dtype
from prepare.tokenizer import Tokenizer

COUNT = np.dtype("<u4")
CHECKPOINT = 1 << 24
"""Tokens, after which what is there counts."""


class TokenStore:
    """Lives in files that begin with `path`, until `remove`."""

    def __init__(self, path: Path, tokenizer: Tokenizer, longest: int | None) -> None:
        """With `longest`, a document becomes several pieces of so many tokens, each with its own BOS in front."""
        self._tokenizer, self._longest = tokenizer, longest
        self.dtype = choose_row_dtype(tokenizer.get_vocab_size())
        self._tokens, self._lengths, self._batches, self._checkpoint = (
            path.with_name(f"{path.name}.{name}") for name in ("tokens", "lengths", "batches", "done")
        )

    def fill(self, batches: Iterable[list[str]], checkpoint: int = CHECKPOINT) -> None:
        """Tokenises the batches; those that were tokenised before a kill are only passed over."""
        done = self._done()
        dtypes = (self.dtype, COUNT, COUNT)
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("ab")) for path in (self._tokens, self._lengths, self._batches)]
            for file, count, dtype in zip(files, done, dtypes, strict=True):
                file.truncate(count * dtype.itemsize)
            due = done[0] + checkpoint
            for tokens, lengths in self._pieces(islice(batches, done[2], None)):
                for file, data, dtype in zip(files, (tokens, lengths, [len(lengths)]), dtypes, strict=True):
                    file.write(np.asarray(data, dtype=dtype).tobytes())
                done = [done[0] + len(tokens), done[1] + len(lengths), done[2] + 1]
                if done[0] >= due:
                    due = done[0] + checkpoint
                    self._keep(files, done)
            self._keep(files, done)

    def tokens(self) -> np.ndarray:
        return np.memmap(self._tokens, dtype=self.dtype, mode="r")

    def lengths(self) -> np.ndarray:
        """Of the documents, or of their pieces, BOS included."""
        return np.fromfile(self._lengths, dtype=COUNT).astype(np.int64)

    def batches(self) -> Iterator[int]:
        """Lengths come in batches of so many."""
        return iter(np.fromfile(self._batches, dtype=COUNT).tolist())

    def remove(self) -> None:
        for path in (self._checkpoint, self._batches, self._lengths, self._tokens):
            path.unlink(missing_ok=True)

    def _pieces(self, batches: Iterable[list[str]]) -> Iterator[tuple[np.ndarray, list[int]]]:
        """Of each batch the tokens, and the lengths of its pieces."""
        for documents in self._tokenizer.arrays(batches):
            framed, lengths = [], []
            for ids in documents:
                longest = self._longest or len(ids) or 1
                starts = np.arange(0, len(ids) or 1, longest)
                framed.append(np.insert(ids, starts, self._tokenizer.get_bos_token_id()))
                lengths += (1 + np.diff(starts, append=len(ids))).tolist()
            yield np.concatenate(framed), lengths

    def _done(self) -> list[int]:
        """Tokens, pieces and batches of the last checkpoint."""
        return json.loads(self._checkpoint.read_text()) if self._checkpoint.exists() else [0, 0, 0]

    def _keep(self, files: Iterable[BinaryIO], done: list[int]) -> None:
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        with open_replacement(self._checkpoint) as part:
            part.write_text(json.dumps(done))
