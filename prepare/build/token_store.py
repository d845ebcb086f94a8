"""The tokens of a split between tokenizing and packing: in a file, with the lengths of the documents in memory."""

from array import array
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from prepare.shards import choose_row_dtype
from prepare.tokenizer import Tokenizer


class TokenStore:
    """Tokens in a file, with the lengths of the documents and how many of them came in each batch."""

    def __init__(
        self, file: BinaryIO, batches: Iterable[list[str]], tokenizer: Tokenizer, max_length: int | None = None
    ) -> None:
        """Tokenize the batches into `file`; documents longer than `max_length` become several, each with a BOS."""
        self.dtype = choose_row_dtype(tokenizer.get_vocab_size())
        self._file, lengths, self.batch_sizes = file, array("q"), array("q")
        for documents in tokenizer.encode_batches(batches):
            count, pieces = len(lengths), list[NDArray[np.uint32]]()
            for ids in documents:
                starts = np.arange(0, len(ids) or 1, max_length or len(ids) or 1)
                pieces.append(np.insert(ids, starts, tokenizer.get_bos_token_id()))
                lengths.extend((1 + np.diff(starts, append=len(ids))).tolist())
            np.concatenate(pieces).astype(self.dtype).tofile(file)
            self.batch_sizes.append(len(lengths) - count)
        file.flush()
        self.lengths: NDArray[np.int64] = np.array(lengths, dtype=np.int64)

    def map_tokens(self) -> NDArray[Any]:
        """Return all tokens, mapped read-only."""
        return np.memmap(self._file, dtype=self.dtype, mode="r")
