"""A run's side of the protocol, without torch. The scripts of tests begin with it.

Its model gives every "a" the same probability, so on text of nothing else it can have any val_bpb.
"""

import math
import pickle

from prepare import channel

MODEL = """lambda x, y=None, reduction="mean", np=__import__("numpy"), nats=float("{nats}"), vocabulary=260: (
    np.broadcast_to(
        np.where(np.arange(vocabulary) == ord("a"), -nats, np.log((1 - np.exp(-nats)) / (vocabulary - 1))),
        (*x.shape, vocabulary),
    )
    if y is None
    else np.full(y.shape, nats)
)"""


class Constant:
    """Its pickle holds its code, like those of cloudpickle, which takes longer to import than all else in a run."""

    def __init__(self, nats):
        self.nats = nats

    def __reduce__(self):
        return eval, (MODEL.format(nats=self.nats),)


def finish(val_bpb):
    """Hand over a model of that val_bpb."""
    data = pickle.dumps(Constant(val_bpb * math.log(2)))
    how = {"batch_size": 64, "autocast": None, "precision": None, "threads": 1}
    channel.send({"event": "model", "bytes": len(data), **how}, data)
    channel.receive()
