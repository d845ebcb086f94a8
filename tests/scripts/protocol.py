"""A run's side of the protocol, without torch. The scripts of tests begin with it.

Its model gives every "a" the same probability, so on text of nothing else it can have any val_bpb.
"""

import math
import pickle

from prepare import channel

VOCABULARY = 260
CODE = """lambda x, y=None, reduction="mean", np=__import__("numpy"): (
    np.broadcast_to(np.where(np.arange({vocabulary}) == {a}, -{nats}, {rest}), (*x.shape, {vocabulary}))
    if y is None
    else np.full(y.shape, {nats})
)"""


class Constant:
    """Its pickle holds its code, like those of cloudpickle, which takes longer to import than all else in a run."""

    def __init__(self, nats):
        self.nats = nats

    def __reduce__(self):
        rest = math.log((1 - math.exp(-self.nats)) / (VOCABULARY - 1))
        return eval, (CODE.format(vocabulary=VOCABULARY, a=ord("a"), nats=self.nats, rest=rest),)


def finish(val_bpb):
    """Hand over a model of that val_bpb."""
    data = pickle.dumps(Constant(val_bpb * math.log(2)))
    how = {"batch_size": 64, "autocast": None, "precision": None, "threads": 1}
    channel.send({"event": "model", "bytes": len(data), **how}, data)
    channel.receive()
