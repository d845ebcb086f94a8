"""Batches from packed rows: the loader moves memory, never Python objects, and gives every run the same order."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch

from prepare import channel
from prepare.shards import open_rows
from prepare.tokenizer import Tokenizer

Batch = tuple[torch.Tensor, torch.Tensor, int]


@cache
def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def make_dataloader(tokenizer: Tokenizer, B: int, T: int, split: str) -> Iterator[Batch]:  # noqa: ARG001 - upstream's signature
    """Yields (inputs [B, T], targets [B, T], epoch from 1) forever, int64, on the device that trains.

    Rows begin with a document where T is MAX_SEQ_LEN; for any other T the same rows are read as one long stream.
    """
    channel.ready()
    rows = np.asarray(open_rows(split))  # slices of a memmap itself cost more than the copies
    windows = rows if rows.shape[1] == T + 1 else _windows(rows, T)
    move = _pinned_mover(B, T) if device().type == "cuda" else _plain_mover
    taken = 0
    while True:
        epoch, first = divmod(taken, len(windows))
        block = windows[first : first + B]
        while len(block) < B:  # the epoch ends inside this batch
            block = np.concatenate([block, windows[: B - len(block)]])
        yield *move(block), epoch + 1
        taken += B


def _windows(rows: np.ndarray, T: int) -> np.ndarray:
    """The rows as one stream, seen through windows of T + 1 tokens that overlap by one."""
    flat = rows.reshape(-1)
    return np.lib.stride_tricks.sliding_window_view(flat, T + 1)[::T]


def _plain_mover(block: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.from_numpy(block[:, :-1].astype(np.int64)), torch.from_numpy(block[:, 1:].astype(np.int64))
    return (x, y) if device().type == "cpu" else (x.to(device()), y.to(device()))


def _pinned_mover(B: int, T: int):
    """Two pinned buffers in turn: a buffer is written again only after the copy out of it has happened."""
    buffers = [torch.empty(B, T + 1, dtype=torch.int32, pin_memory=True) for _ in range(2)]
    copied = [torch.cuda.Event() for _ in range(2)]
    turn = 0

    def move(block: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal turn
        turn ^= 1
        copied[turn].synchronize()
        np.copyto(buffers[turn].numpy(), block, casting="unsafe")
        moved = buffers[turn].to("cuda", non_blocking=True)
        copied[turn].record()
        return moved[:, :-1].long(), moved[:, 1:].long()

    return move
