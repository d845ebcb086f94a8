"""The metric: bits per byte of held-out text, independent of the vocabulary. Lower is better."""

import math

import numpy as np
import torch

from prepare import channel
from prepare.loader import device
from prepare.shards import open_rows
from prepare.tokenizer import Tokenizer


@torch.no_grad()
def evaluate_bpb(model: torch.nn.Module, tokenizer: Tokenizer, batch_size: int) -> float:
    """Bits per byte over all validation rows; `model(x, y, reduction="none")` gives one loss in nats per token.

    A token counts with the length of its own bytes; special tokens count neither as loss nor as bytes. Every row is
    scored once whatever the batch size. The score is also sent to the orchestrator.
    """
    rows = open_rows("val")
    nats, nbytes = 0.0, 0
    for first in range(0, len(rows), batch_size):
        block = rows[first : first + batch_size].astype(np.int64)
        x, y = (torch.from_numpy(half.copy()).to(device()) for half in (block[:, :-1], block[:, 1:]))
        losses = model(x, y, reduction="none").reshape(-1).to("cpu", torch.float64)
        lengths = tokenizer.token_bytes[block[:, 1:].reshape(-1)]
        nats += losses[torch.from_numpy(lengths > 0)].sum().item()
        nbytes += int(lengths.sum())
    bpb = nats / (math.log(2) * nbytes)
    channel.score(bpb, tokens=rows.shape[0] * (rows.shape[1] - 1), nbytes=nbytes)
    return bpb
