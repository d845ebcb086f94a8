"""Tokenize by byte pairs: rustbpe learns the merges, tiktoken applies them, tokenizer.json stores them (no pickle)."""

import base64
import importlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import tiktoken
from numpy.typing import NDArray

from prepare import manifest
from prepare.machine import count_cores

TOKENIZER_FILE = "tokenizer.json"
# GPT-4's pattern, but at most two digits per token: a small vocabulary has no room for all triples.
PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"""
)
SPECIALS = [f"<|reserved_{i}|>" for i in range(4)]
BOS_TOKEN = SPECIALS[0]
MAX_CHARS, DOCUMENT_CHARS = 1_000_000_000, 10_000  # of a corpus, and of each document, to learn merges from


class Tokenizer:
    """Converts text to token ids and back. Ids below the special tokens are in the order of the merges."""

    def __init__(self, merges: Sequence[bytes], pattern: str = PATTERN) -> None:
        self.merges, self.pattern, self.bos_token_id = list(merges), pattern, len(merges)
        self.enc = tiktoken.Encoding(
            name="nightshift",
            pat_str=pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(self.merges)},
            special_tokens={name: len(self.merges) + i for i, name in enumerate(SPECIALS)},
        )

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn `vocab_size` tokens, special ones included, from the beginnings of the texts."""
        rustbpe = importlib.import_module("rustbpe")  # has no types
        learner = rustbpe.Tokenizer()
        learner.train_from_iterator(_sample_text(texts), vocab_size - len(SPECIALS), pattern=PATTERN)
        ranks = sorted((rank, bytes(token)) for token, rank in learner.get_mergeable_ranks())
        return cls([token for _, token in ranks])

    @classmethod
    def from_directory(cls, tokenizer_dir: str | Path | None = None) -> "Tokenizer":
        """Load the tokenizer of a data folder (default: `get_data_dir`)."""
        raw = json.loads((Path(tokenizer_dir or manifest.get_data_dir()) / TOKENIZER_FILE).read_text())
        return cls([base64.b64decode(token) for token in raw["merges"]], raw["pattern"])

    def to_json(self) -> str:
        """Return the content of tokenizer.json."""
        merges = [base64.b64encode(token).decode() for token in self.merges]
        return json.dumps({"pattern": self.pattern, "specials": SPECIALS, "merges": merges}, indent=0)

    def get_vocab_size(self) -> int:
        """Return the number of tokens, special ones included."""
        return self.enc.n_vocab

    def get_bos_token_id(self) -> int:
        """Return the id of the token that begins every document."""
        return self.bos_token_id

    def encode(
        self, text: str | list[str], prepend: int | str | None = None, num_threads: int = count_cores()
    ) -> list[int] | list[list[int]]:
        """Return the ids of a text, or of each text in a list, after the token `prepend`: an id, or a special name."""
        if isinstance(prepend, str):
            if prepend not in SPECIALS:
                raise ValueError(f"no special token {prepend!r}: one of {', '.join(SPECIALS)}")
            prepend = len(self.merges) + SPECIALS.index(prepend)
        front = [] if prepend is None else [prepend]
        if isinstance(text, str):
            return front + self.enc.encode_ordinary(text)
        rows = self.enc.encode_ordinary_batch(text, num_threads=num_threads)
        return [front + row for row in rows]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids."""
        return self.enc.decode(ids)

    def encode_batches(self, batches: Iterable[list[str]]) -> Iterator[list[NDArray[np.uint32]]]:
        """Yield the ids of each text, batch by batch, on all cores."""
        encode = partial(self.enc.encode_to_numpy, disallowed_special=())
        with ThreadPoolExecutor(count_cores()) as pool:
            yield from (list(pool.map(encode, batch)) for batch in batches)

    @cached_property
    def token_bytes(self) -> NDArray[np.int32]:
        """Bytes of each token, [vocabulary]; 0 for special tokens, which no score counts."""
        return np.array([len(token) for token in self.merges] + [0] * len(SPECIALS), dtype=np.int32)


def _sample_text(texts: Iterable[str]) -> Iterator[str]:
    left = MAX_CHARS
    for text in texts:
        if left <= 0:
            return
        yield text[:DOCUMENT_CHARS]
        left -= min(len(text), DOCUMENT_CHARS)
