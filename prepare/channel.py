"""Talk to the orchestrator over the descriptor $NIGHTSHIFT_FD: JSON lines, some followed by bytes.

Over a socket it answers, and hands out each shard as a read-only descriptor when it is due; over a pipe it only
listens. Without either, in a script run by hand, shards are files. Only this module knows when training began.
"""

import json
import os
import socket
import stat
import time
from contextlib import suppress
from functools import cache
from typing import Any

MAX_LINE = 4_096  # bytes of an answer's line

_descriptor = int(os.environ["NIGHTSHIFT_FD"]) if "NIGHTSHIFT_FD" in os.environ else None
_began: float | None = None
_shards: dict[str, int] = {}


def ready() -> None:
    """Start the clock at the first real batch, after any warm-up; later calls do nothing."""
    global _began  # noqa: PLW0603 - a process trains once
    if _began is None:
        send({"event": "ready"})
        if answers():
            receive()
        _began = time.monotonic()


def elapsed() -> float:
    """Return the seconds of wall time since the first real batch; 0 before it."""
    return 0.0 if _began is None else time.monotonic() - _began


def answers() -> bool:
    """Return True if the orchestrator answers, and hands out the shards."""
    return _descriptor is not None and stat.S_ISSOCK(os.fstat(_descriptor).st_mode)


def shard(split: str) -> int | None:
    """Return the descriptor of a shard; None if it was not handed out."""
    return _shards.get(split)


def send(event: dict[str, object], data: bytes | memoryview = b"") -> None:
    """Send one line and the bytes that belong to it; do nothing if the orchestrator has gone."""
    if _descriptor is None:
        return
    with suppress(BrokenPipeError, ConnectionResetError), open(_descriptor, "wb", closefd=False) as file:
        file.write(json.dumps(event).encode() + b"\n")
        file.write(data)


def receive() -> dict[str, Any]:
    """Return the next answer, and store a descriptor that comes with it. Raises EOFError at the end."""
    line, descriptors = b"", list[int]()
    while not line.endswith(b"\n"):
        # Byte by byte, since bytes after the line are for `take`.
        data, given, _, _ = socket.recv_fds(_get_socket(), 1, 1)
        if not data or len(line) > MAX_LINE:
            raise EOFError("the orchestrator has gone")
        line += data
        descriptors += given
    answer = json.loads(line)
    if descriptors:
        _shards[answer["split"]] = descriptors[0]
    return answer


def take(size: int) -> bytes:
    """Return the `size` bytes that follow an answer. Raises EOFError."""
    data = bytearray()
    while len(data) < size:  # a process that is stopped and goes on gets a part
        if not (part := _get_socket().recv(size - len(data), socket.MSG_WAITALL)):
            raise EOFError("the orchestrator has gone")
        data += part
    return bytes(data)


@cache
def _get_socket() -> socket.socket:
    assert _descriptor is not None
    return socket.socket(fileno=os.dup(_descriptor))
