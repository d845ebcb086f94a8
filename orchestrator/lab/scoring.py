"""What a run says of itself on its own line to us: JSON, one object a line, on the descriptor $NIGHTSHIFT_FD.

What it prints is for people; only what is said here starts the clock and counts as a score.
"""

import json
from collections.abc import Callable
from math import isfinite

LONGEST = 4_096
"""Bytes of a line; longer ones are ignored."""


class Statement:
    """`{"event": "ready"}` starts the clock, `{"event": "score", "val_bpb": 1.23}` stops it; the first of each counts.

    The score is the code's own claim, for now.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.ready_at: float | None = None
        self.scored_at: float | None = None
        self.val_bpb: float | None = None
        """As it was said: perhaps not even finite."""
        self.open = b""

    def feed(self, data: bytes) -> None:
        """Take in what was said."""
        *lines, rest = (self.open + data).split(b"\n")
        self.open = rest[: LONGEST + 1]
        for line in lines:
            if len(line) <= LONGEST:
                self._hear(line)

    @property
    def train_seconds(self) -> float:
        """Seconds between ready and score by our own clock; until now while there is no score."""
        if self.ready_at is None:
            return 0.0
        return (self.scored_at if self.scored_at is not None else self.clock()) - self.ready_at

    @property
    def score(self) -> float | None:
        """A number that can be a score: finite and positive."""
        return self.val_bpb if self.val_bpb is not None and isfinite(self.val_bpb) and self.val_bpb > 0 else None

    def _hear(self, line: bytes) -> None:
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            return
        match said:
            case {"event": "ready"} if self.ready_at is None:
                self.ready_at = self.clock()
            case {"event": "score", "val_bpb": float() | int() as value} if self.scored_at is None:
                self.scored_at, self.val_bpb = self.clock(), _as_float(value)
            case _:
                pass


def _as_float(value: float) -> float:
    """Also of an integer with a thousand digits."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")
