"""Batches from packed rows: the loader moves memory, never Python objects, and gives every run the same order."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import cycle
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from prepare import channel
from prepare.shards import open_rows
from prepare.tokenizer import Tokenizer

Batch = tuple[torch.Tensor, torch.Tensor, int]
Rows = NDArray[Any]


class CopyEvent(Protocol):
    """The part of a CUDA event that is used: `synchronize` waits for all work queued before `record`."""

    def record(self) -> None:
        """Mark the end of the work queued so far."""

    def synchronize(self) -> None:
        """Wait until that work is done."""


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
    windows = rows if rows.shape[1] == T + 1 else _build_windows(rows, T)
    move = _make_pinned_mover(B, T) if choose_device().type == "cuda" else _move_plainly
    taken = 0
    while True:
        epoch, first = divmod(taken, len(windows))
        block = windows[first : first + B]
        while len(block) < B:  # the epoch ends inside this batch
            block = np.concatenate([block, windows[: B - len(block)]])
        yield *move(block), epoch + 1
        taken += B


def _build_windows(rows: Rows, T: int) -> Rows:
    """Return the rows as one stream, seen through windows of T + 1 tokens that overlap by one."""
    return np.lib.stride_tricks.sliding_window_view(rows.reshape(-1), T + 1)[::T]


def _move_plainly(block: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.from_numpy(block[:, :-1].astype(np.int64)), torch.from_numpy(block[:, 1:].astype(np.int64))
    return (x, y) if choose_device().type == "cpu" else (x.to(choose_device()), y.to(choose_device()))


def _make_pinned_mover(B: int, T: int) -> Callable[[Rows], tuple[torch.Tensor, torch.Tensor]]:
    buffers = [torch.empty(B, T + 1, dtype=torch.int32, pin_memory=True) for _ in range(2)]
    events = [torch.cuda.Event() for _ in range(2)]
    send_block = cycle_buffers(buffers, events, lambda buffer: buffer.to("cuda", non_blocking=True))

    def move(block: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        moved = send_block(block)
        return moved[:, :-1].long(), moved[:, 1:].long()

    return move


def cycle_buffers(
    buffers: Sequence[torch.Tensor], copied: Sequence[CopyEvent], send: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[Rows], torch.Tensor]:
    """Return a function that sends blocks through the buffers; one is reused only after its last copy is done."""
    turns = cycle(zip(buffers, copied, strict=True))

    def send_block(block: Rows) -> torch.Tensor:
        buffer, event = next(turns)
        event.synchronize()
        np.copyto(buffer.numpy(), block, casting="unsafe")
        moved = send(buffer)
        event.record()
        return moved

    return send_block
