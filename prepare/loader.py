"""Batches from packed rows: the loader moves memory, never Python objects, and gives every run the same order."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import cycle
from typing import Protocol

import numpy as np
import torch

from prepare import channel
from prepare.shards import open_rows
from prepare.tokenizer import Tokenizer

Batch = tuple[torch.Tensor, torch.Tensor, int]


class Event(Protocol):
    """Of CUDA: recorded behind the orders so far, and waited for until they are done."""

    def record(self) -> None: ...
    def synchronize(self) -> None: ...


@cache
def choose_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def make_dataloader(tokenizer: Tokenizer, B: int, T: int, split: str) -> Iterator[Batch]:  # noqa: ARG001 - upstream's signature
    """Yields (inputs [B, T], targets [B, T], epoch from 1) forever, int64, on the device that trains.

    Rows begin with a document where T is MAX_SEQ_LEN; for any other T the same rows are read as one long stream.
    """
    channel.ready()
    rows = np.asarray(open_rows(split))  # slices of a memmap itself cost more than the copies
    windows = rows if rows.shape[1] == T + 1 else _build_windows(rows, T)
    move = _make_pinned_mover(B, T) if choose_device().type == "cuda" else _make_plain_mover
    taken = 0
    while True:
        epoch, first = divmod(taken, len(windows))
        block = windows[first : first + B]
        while len(block) < B:  # the epoch ends inside this batch
            block = np.concatenate([block, windows[: B - len(block)]])
        yield *move(block), epoch + 1
        taken += B


def _build_windows(rows: np.ndarray, T: int) -> np.ndarray:
    """The rows as one stream, seen through windows of T + 1 tokens that overlap by one."""
    flat = rows.reshape(-1)
    return np.lib.stride_tricks.sliding_window_view(flat, T + 1)[::T]


def _make_plain_mover(block: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.from_numpy(block[:, :-1].astype(np.int64)), torch.from_numpy(block[:, 1:].astype(np.int64))
    return (x, y) if choose_device().type == "cpu" else (x.to(choose_device()), y.to(choose_device()))


def _make_pinned_mover(B: int, T: int):
    buffers = [torch.empty(B, T + 1, dtype=torch.int32, pin_memory=True) for _ in range(2)]
    events = [torch.cuda.Event() for _ in range(2)]
    sent = cycle_buffers(buffers, events, lambda buffer: buffer.to("cuda", non_blocking=True))

    def move(block: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        moved = sent(block)
        return moved[:, :-1].long(), moved[:, 1:].long()

    return move


def cycle_buffers(
    buffers: Sequence[torch.Tensor], copied: Sequence[Event], send: Callable[[torch.Tensor], torch.Tensor]
):
    """Sends blocks through buffers: one is written again only after the copy that `send` ordered of it has happened."""
    turns = cycle(zip(buffers, copied, strict=True))

    def sent(block: np.ndarray) -> torch.Tensor:
        buffer, event = next(turns)
        event.synchronize()
        np.copyto(buffer.numpy(), block, casting="unsafe")
        moved = send(buffer)
        event.record()
        return moved

    return sent
