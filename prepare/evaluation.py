"""Compute the metric: bits per byte of validation text, independent of the vocabulary. Lower is better.

Under an orchestrator the model is submitted first, and only then are validation rows handed out. The run returns
claims, one per token, which the orchestrator adds up and audits.
"""

import math

import cloudpickle
import numpy as np
import torch
from numpy.typing import NDArray

from prepare import channel
from prepare.loader import choose_device
from prepare.shards import open_rows
from prepare.tokenizer import Tokenizer


@torch.no_grad()
def evaluate_bpb(model: torch.nn.Module, tokenizer: Tokenizer, batch_size: int) -> float:
    """Return the bits per byte of all validation rows; `model(x, y, reduction="none")` returns nats per token.

    Special tokens count neither as loss nor as bytes. `model(x)` must return logits [rows, tokens, vocabulary].
    """
    sealed = channel.answers() and channel.shard("val") is None
    if sealed:
        hand_over(model, batch_size)
    claims = _compute_claims(model, "val", batch_size)
    lengths = tokenizer.token_bytes[open_rows("val")[:, 1:]]
    nbytes = int(lengths.sum())
    bpb = float(claims[lengths > 0].sum(dtype=np.float64)) / (math.log(2) * nbytes)
    if sealed:
        channel.send({"event": "claims", "bytes": claims.nbytes}, claims.data)
        while (answer := channel.receive())["event"] == "rows":
            claims = _compute_claims(model, answer["split"], batch_size)
            channel.send({"event": "claims", "bytes": claims.nbytes}, claims.data)
    elif not channel.answers():
        channel.send({"event": "score", "val_bpb": bpb, "tokens": claims.size, "bytes": nbytes})
    return bpb


def _compute_claims(model: torch.nn.Module, split: str, batch_size: int) -> NDArray[np.float32]:
    rows = open_rows(split)
    claims = np.empty((len(rows), rows.shape[1] - 1), dtype=np.float32)
    size = min(batch_size, len(rows))
    for first in range(0, len(rows), size):
        # The last batch is filled up from the first: another shape would compile the model again.
        block = rows.take(np.arange(first, first + size), axis=0, mode="wrap").astype(np.int64)
        x, y = (torch.from_numpy(half.copy()).to(choose_device()) for half in (block[:, :-1], block[:, 1:]))
        losses = model(x, y, reduction="none").float().cpu().numpy().reshape(x.shape)
        claims[first : first + size] = losses[: len(rows) - first]
    return claims


def hand_over(model: torch.nn.Module, batch_size: int) -> None:
    """Submit the model and how to run it; return once the validation rows are handed out."""
    pickled = cloudpickle.dumps(getattr(model, "_orig_mod", model))  # without the wrapper of torch.compile
    kind = choose_device().type
    autocast = str(torch.get_autocast_dtype(kind)).removeprefix("torch.") if torch.is_autocast_enabled(kind) else None
    header: dict[str, object] = {
        "event": "model",
        "bytes": len(pickled),
        "batch_size": batch_size,
        "autocast": autocast,
        "precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
    }
    channel.send(header, pickled)
    channel.receive()
