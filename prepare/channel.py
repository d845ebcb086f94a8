"""The line to the orchestrator, the descriptor $NIGHTSHIFT_FD: JSON lines, some with bytes behind them.

A pipe only listens. A socket answers: with the shards, as read-only descriptors, each when it is due. Where there is no
line at all, a script run by hand, the shards are files. Also the one place that knows when training began.
"""

import array
import json
import os
import socket
import stat
import time
from contextlib import suppress
from functools import cache
from typing import Any

LONGEST = 4_096
"""Bytes of an answer's line."""

_began: float | None = None
_shards: dict[str, int] = {}


def ready() -> None:
    """Warm-up is over: the first real batch is asked for and the clock starts. Later calls do nothing."""
    global _began  # noqa: PLW0603 - a process trains once
    if _began is None:
        send({"event": "ready"})
        if answers():
            receive()
        _began = time.monotonic()


def elapsed() -> float:
    """Seconds of wall time since the first real batch, 0 before it."""
    return 0.0 if _began is None else time.monotonic() - _began


def score(val_bpb: float, tokens: int, nbytes: int) -> None:
    send({"event": "score", "val_bpb": val_bpb, "tokens": tokens, "bytes": nbytes})


def answers() -> bool:
    """Whether there is somebody at the other end who hands out the shards."""
    descriptor = _descriptor()
    return descriptor is not None and stat.S_ISSOCK(os.fstat(descriptor).st_mode)


def shard(split: str) -> int | None:
    """The descriptor of a shard that was handed out."""
    return _shards.get(split)


def send(event: dict[str, object], data: bytes | memoryview = b"") -> None:
    """One line, and what belongs to it. An orchestrator that has gone is no reason to stop."""
    if (descriptor := _descriptor()) is None:
        return
    with suppress(BrokenPipeError, ConnectionResetError):
        left = memoryview(json.dumps(event).encode() + b"\n")
        for part in (left, memoryview(data).cast("B") if len(data) else memoryview(b"")):
            while len(part):
                part = part[os.write(descriptor, part) :]  # noqa: PLW2901 - what is left of it


def receive() -> dict[str, Any]:
    """The next answer; the descriptors that come with it are kept. Raises EOFError when there is no more."""
    line, given = b"", array.array("i")
    while not line.endswith(b"\n"):
        # Byte by byte: what follows the line is not ours to take.
        data, ancillary, _, _ = _line().recvmsg(1, socket.CMSG_LEN(given.itemsize))
        if not data or len(line) > LONGEST:
            raise EOFError("the orchestrator has gone")
        line += data
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                given.frombytes(content[: len(content) // given.itemsize * given.itemsize])
    answer = json.loads(line)
    if given:
        _shards[answer["split"]] = given[0]
    return answer


def take(size: int) -> bytes:
    """So many bytes that follow an answer. Raises EOFError."""
    data = bytearray(size)
    left = memoryview(data)
    while left:
        if not (count := _line().recv_into(left)):
            raise EOFError("the orchestrator has gone")
        left = left[count:]
    return bytes(data)


def _descriptor() -> int | None:
    value = os.environ.get("NIGHTSHIFT_FD")
    return None if value is None else int(value)


@cache
def _line() -> socket.socket:
    descriptor = _descriptor()
    assert descriptor is not None
    return socket.socket(fileno=os.dup(descriptor))
