"""A train.py without torch that speaks the protocol itself, and hands over something that is no model."""

import pickle

import cloudpickle
import numpy as np

from prepare import channel

MANNER = {"batch_size": 16, "autocast": None, "precision": None, "threads": 1}


class Liar:
    """What `claim` makes of the rows are its losses."""

    def __init__(self, claim):
        self.claim = claim

    def __call__(self, x, y=None, reduction="mean"):
        return np.zeros((*x.shape, 260)) if y is None else self.claim(np.zeros(y.shape))


def say(**fact):
    channel.send(fact)


def hand_over(data=None, **changes):
    data = pickle.dumps({}) if data is None else data
    channel.send({"event": "model", "bytes": len(data), **MANNER, **changes}, data)
    channel.receive()


def claim(how):
    hand_over(cloudpickle.dumps(Liar(how)))


channel.ready()
