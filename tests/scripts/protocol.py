"""A run's side of the protocol, without torch. The scripts of tests begin with it.

Its model gives every "a" the same probability, so on text of nothing else it can have any val_bpb.
"""

import math

import cloudpickle

from prepare import channel

VOCABULARY = 260


class Constant:
    def __init__(self, nats):
        self.nats = nats

    def __call__(self, x, y=None, reduction="mean"):
        import math

        import numpy as np

        if y is not None:
            return np.full(y.shape, self.nats)
        logits = np.full((*x.shape, VOCABULARY), math.log((1 - math.exp(-self.nats)) / (VOCABULARY - 1)))
        logits[..., ord("a")] = -self.nats
        return logits


def finish(val_bpb):
    """Hand over a model of that val_bpb."""
    data = cloudpickle.dumps(Constant(val_bpb * math.log(2)))
    how = {"batch_size": 64, "autocast": None, "precision": None, "threads": 1}
    channel.send({"event": "model", "bytes": len(data), **how}, data)
    channel.receive()
