"""A run's side of the protocol, without torch. The scripts of tests begin with it.

Its model gives every "a" the same probability, so on text of nothing else it can have any val_bpb.
"""

import math

import cloudpickle
import numpy as np

from prepare import channel
from prepare.shards import open_rows

VOCABULARY = 260


class Constant:
    def __init__(self, nats):
        self.nats = nats

    def __call__(self, x):
        import torch

        logits = torch.full((*x.shape, VOCABULARY), math.log((1 - math.exp(-self.nats)) / (VOCABULARY - 1)))
        logits[..., ord("a")] = -self.nats
        return logits


def finish(val_bpb):
    """Hand over a model of that val_bpb, and claim its losses for as long as they are asked for."""
    nats = val_bpb * math.log(2)
    data = cloudpickle.dumps(Constant(nats))
    how = {"batch_size": 64, "autocast": None, "precision": "highest", "threads": 1}
    channel.send({"event": "model", "bytes": len(data), **how}, data)
    while (answer := channel.receive())["event"] == "rows":
        rows = open_rows(answer["split"])
        claims = np.full((len(rows), rows.shape[1] - 1), nats, np.float32)
        channel.send({"event": "claims", "bytes": claims.nbytes}, memoryview(claims).cast("B"))
