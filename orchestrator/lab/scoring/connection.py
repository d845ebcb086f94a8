"""Our end of a sandboxed process's line: JSON lines, some with bytes behind them; answers may carry descriptors.

Everything that is heard is hostile: lines and sizes have limits, and what is no JSON object was never said.
"""

import json
import socket
from array import array
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, BinaryIO, cast

MAX_LINE = 4_096
"""Bytes of a line; longer ones are ignored."""
CHUNK = 1 << 20


class Connection:
    """Blocks, so it belongs into a thread; hanging up from outside ends that."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.heard = end.makefile("rb")

    def hear(self) -> dict[str, Any] | None:
        """The next thing that is said; None when nothing more will be. Raises OSError."""
        while data := self.heard.readline(MAX_LINE + 1):
            long = not data.endswith(b"\n")
            while data and not data.endswith(b"\n"):
                data = self.heard.readline(MAX_LINE)
            if long:
                continue
            try:
                said = json.loads(data)
            except (ValueError, RecursionError):
                continue
            if isinstance(said, dict):
                return cast("dict[str, Any]", said)
        return None

    def take(self, size: int) -> bytes:
        """So many bytes, or fewer if it falls silent."""
        return self.heard.read(size)

    def save(self, size: int, file: BinaryIO) -> bool:
        """So many bytes into a file; whether all came."""
        while size and (data := self.heard.read(min(size, CHUNK))):
            file.write(data)
            size -= len(data)
        return not size

    def say(self, event: dict[str, object], *, show: Sequence[BinaryIO] = (), data: Sequence[bytes] = ()) -> None:
        """One line, with files to read and bytes behind it. Raises OSError."""
        fds = array("i", [file.fileno() for file in show])
        line = json.dumps(event).encode() + b"\n"
        sent = self.end.sendmsg([line], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else [])
        self.end.sendall(line[sent:])
        for part in data:
            self.end.sendall(part)

    def close(self) -> None:
        """For who listens, when done."""
        self.hang_up()
        self.heard.close()
        self.end.close()

    def hang_up(self) -> None:
        """For anybody: who listens hears the end."""
        with suppress(OSError):
            self.end.shutdown(socket.SHUT_RDWR)


def open_pair() -> tuple[Connection, int]:
    """A line, and the descriptor of its other end, which is the caller's to close."""
    ours, theirs = socket.socketpair()
    return Connection(ours), theirs.detach()
