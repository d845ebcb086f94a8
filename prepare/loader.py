"""Load batches from packed rows, in the same order for every run; no Python object per token is involved."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from prepare import channel
from prepare.shards import open_rows
from prepare.tokenizer import Tokenizer

Batch = tuple[torch.Tensor, torch.Tensor, int]


@cache
def choose_device() -> torch.device:
    """Return the device to train on: CUDA, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def make_dataloader(tokenizer: Tokenizer, B: int, T: int, split: str, buffer_size: int = 0) -> Iterator[Batch]:  # noqa: ARG001 - upstream's signature
    """Yield (inputs [B, T], targets [B, T], epoch from 1) forever, int64, on the training device.

    If T is MAX_SEQ_LEN, every row begins with a document; for any other T the rows are read as one long stream. The
    rows are packed already, so a buffer of another size changes nothing.
    """
    channel.ready()
    rows = np.asarray(open_rows(split))  # slicing a memmap costs more than the copies
    # Rows of another length overlap by one token, the last target of one and the first input of the next.
    windows = rows if rows.shape[1] == T + 1 else sliding_window_view(rows.reshape(-1), T + 1)[::T]
    device, taken = choose_device(), 0
    while True:
        epoch, first = divmod(taken, len(windows))
        block = windows[first : first + B]
        while len(block) < B:  # the epoch ends inside this batch
            block = np.concatenate([block, windows[: B - len(block)]])
        tokens = torch.from_numpy(block.astype(np.int64))
        if device.type == "cuda":  # copied after the queued work; torch reuses pinned memory only then
            tokens = tokens.pin_memory().to(device, non_blocking=True)
        tokens = tokens.to(device)
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), epoch + 1
        taken += B
