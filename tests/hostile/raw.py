"""A train.py without torch that speaks the protocol itself, and hands over something that is no model."""

import pickle

import numpy as np

from prepare import MAX_SEQ_LEN, channel
from prepare.shards import open_rows

MANNER = {"batch_size": 16, "autocast": None, "precision": "highest", "threads": 1}


def say(**fact):
    channel.send(fact)


def hand_over(data=None, **changes):
    data = pickle.dumps({}) if data is None else data
    channel.send({"event": "model", "bytes": len(data), **MANNER, **changes}, data)
    channel.receive()


def rows():
    """Claims of certainty."""
    return np.zeros((len(open_rows("val")), MAX_SEQ_LEN), np.float32)


def claim(values):
    channel.send({"event": "claims", "bytes": values.nbytes}, memoryview(values).cast("B"))


channel.ready()
