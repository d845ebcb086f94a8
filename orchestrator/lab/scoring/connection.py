"""Our end of the socket to a sandboxed process: JSON lines, some with bytes behind them; answers may carry descriptors.

What comes in is hostile: lines and sizes have limits, and anything but a JSON object is ignored.
"""

import json
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, BinaryIO, cast

MAX_LINE = 4_096
"""Bytes of a line; longer ones are ignored."""
CHUNK = 1 << 20


class Connection:
    """Blocks, so it belongs in a thread; `shutdown`, from any other, ends that."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self.reader = end.makefile("rb")

    def receive(self) -> dict[str, Any] | None:
        """Return the next object, None at the end. Raises OSError."""
        while data := self.reader.readline(MAX_LINE + 1):
            too_long = not data.endswith(b"\n")
            while data and not data.endswith(b"\n"):
                data = self.reader.readline(MAX_LINE)
            if too_long:
                continue
            try:
                received = json.loads(data)
            except (ValueError, RecursionError):
                continue
            if isinstance(received, dict):
                return cast("dict[str, Any]", received)
        return None

    def read_exactly(self, size: int) -> bytes:
        """Return `size` bytes. Raises ConnectionError where fewer come, OSError."""
        data = self.reader.read(size)
        if len(data) != size:
            raise ConnectionError("the connection ended in the middle of a message")
        return data

    def copy_to(self, file: BinaryIO, size: int) -> None:
        """Copy `size` bytes to the file. Raises ConnectionError where fewer come, OSError."""
        file.writelines(self.read_exactly(min(CHUNK, size - first)) for first in range(0, size, CHUNK))

    def send(self, event: dict[str, object], *, files: Sequence[BinaryIO] = (), data: Sequence[bytes] = ()) -> None:
        """Send one line, with descriptors of files to read and bytes behind it. Raises OSError."""
        line = json.dumps(event).encode() + b"\n"
        sent = socket.send_fds(self.socket, [line], [file.fileno() for file in files]) if files else 0
        for part in (line[sent:], *data):
            self.socket.sendall(part)

    def close(self) -> None:
        """Close it; for the thread that reads."""
        self.shutdown()
        self.reader.close()
        self.socket.close()

    def shutdown(self) -> None:
        """Shut down so that the reader sees EOF; thread-safe."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


def open_pair() -> tuple[Connection, int]:
    """Return a connection and the descriptor of its other end, which the caller closes."""
    ours, theirs = socket.socketpair()
    return Connection(ours), theirs.detach()
