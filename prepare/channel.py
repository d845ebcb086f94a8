"""The line to the orchestrator: JSON lines on the file descriptor $NIGHTSHIFT_FD, nothing where it is unset.

Also the one place that knows when training began: `ready` is called with the first real batch.
"""

import json
import os
import time
from contextlib import suppress

_began: float | None = None


def ready() -> None:
    """Warm-up is over: the first real batch is asked for and the clock starts. Later calls do nothing."""
    global _began  # noqa: PLW0603 - a process trains once
    if _began is None:
        send({"event": "ready"})
        _began = time.monotonic()


def elapsed() -> float:
    """Seconds of wall time since the first real batch, 0 before it."""
    return 0.0 if _began is None else time.monotonic() - _began


def score(val_bpb: float, tokens: int, nbytes: int) -> None:
    send({"event": "score", "val_bpb": val_bpb, "tokens": tokens, "bytes": nbytes})


def send(event: dict[str, object]) -> None:
    """One line. An orchestrator that has gone is no reason to stop."""
    descriptor = os.environ.get("NIGHTSHIFT_FD")
    if descriptor is None:
        return
    with suppress(BrokenPipeError):
        os.write(int(descriptor), json.dumps(event).encode() + b"\n")
