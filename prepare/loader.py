"""Batches from packed rows: the loader moves memory, never Python objects, and gives every run the same order."""

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
    """Return the device that trains: CUDA, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def make_dataloader(tokenizer: Tokenizer, B: int, T: int, split: str) -> Iterator[Batch]:  # noqa: ARG001 - upstream's signature
    """Yield (inputs [B, T], targets [B, T], epoch from 1) forever, int64, on the device that trains.

    Rows begin with a document where T is MAX_SEQ_LEN; for any other T the same rows are read as one long stream.
    """
    channel.ready()
    rows = np.asarray(open_rows(split))  # slices of a memmap itself cost more than the copies
    # Rows of another length overlap by the token that ends one and begins the next.
    windows = rows if rows.shape[1] == T + 1 else sliding_window_view(rows.reshape(-1), T + 1)[::T]
    device, taken = choose_device(), 0
    while True:
        epoch, first = divmod(taken, len(windows))
        block = windows[first : first + B]
        while len(block) < B:  # the epoch ends inside this batch
            block = np.concatenate([block, windows[: B - len(block)]])
        tokens = torch.from_numpy(block.astype(np.int64))
        if device.type == "cuda":  # copied behind the work that is queued already; torch reuses it only after that
            tokens = tokens.pin_memory().to(device, non_blocking=True)
        tokens = tokens.to(device)
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), epoch + 1
        taken += B
