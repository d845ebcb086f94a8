"""Load batches from packed rows, in the same order for every run; no Python object per token is involved."""

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch.utils._pytree import tree_map_only

from prepare import channel
from prepare.shards import open_rows
from prepare.tokenizer import Tokenizer

Batch = tuple[torch.Tensor, torch.Tensor, int]
PRODUCTS = "mm", "bmm", "addmm", "baddbmm", "convolution", "convolution_backward"
"""Operations of torch that all its products of matrices on a CPU come to."""
_library = torch.library.Library("aten", "IMPL")


def multiply_halves_as_floats() -> None:
    """Multiply matrices of bfloat16 in float32, and round once, on a CPU that has no instructions for them.

    Torch emulates these products, ten times as slowly, so an honest run under autocast would take too long.
    """
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001 - no public name
        return
    with warnings.catch_warnings(action="ignore"):  # that kernels are overridden
        for packet in (getattr(torch.ops.aten, name) for name in PRODUCTS):
            for name in {"default", "out"}.intersection(packet.overloads()):
                kernel = _round_from_float(packet.default, getattr(packet, name))
                _library.impl(getattr(packet, name), kernel, "CPU", with_keyset=True, allow_override=True)


def _round_from_float(plain: Any, overload: Any) -> Callable[..., Any]:
    """Return a kernel of the overload that computes bfloat16 by `plain` in float32, and others as before."""
    own = torch.library.get_kernel(overload, "CPU")

    def multiply(keys: Any, first: torch.Tensor, *others: Any, **options: Any) -> Any:
        if first.dtype != torch.bfloat16:
            return own.call_boxed(keys, first, *others, **options)
        out = options.pop("out", None)
        found = plain(*tree_map_only(torch.Tensor, torch.Tensor.float, (first, *others)), **options)
        rounded = tree_map_only(torch.Tensor, torch.Tensor.bfloat16, found)
        return rounded if out is None else out.copy_(rounded)

    return multiply


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


multiply_halves_as_floats()
