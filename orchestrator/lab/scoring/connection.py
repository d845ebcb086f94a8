"""Our end of the socket to a sandboxed process: JSON lines, some followed by bytes, ours also with descriptors.

Received data is hostile: lines and sizes are limited, and anything but a JSON object is ignored.
"""

import asyncio
import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, BinaryIO, cast

MAX_LINE = 4_096  # bytes of a line; longer ones are ignored


class Connection:
    """A connection; its methods raise ConnectionError if the other end has gone, and no other OSError."""

    def __init__(self, end: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.socket, self.reader, self.writer = end, reader, writer
        writer.transport.set_write_buffer_limits(0)  # so that `drain` waits until all is sent

    async def receive(self) -> dict[str, Any] | None:
        """Return the next object; None at the end."""
        while True:
            with suppress(ValueError, RecursionError):  # not JSON, or too long
                if not (line := await self.reader.readline()):
                    return None
                if isinstance(received := json.loads(line), dict):
                    return cast("dict[str, Any]", received)

    async def read_exactly(self, size: int) -> bytes:
        """Return `size` bytes."""
        try:
            return await self.reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise ConnectionError("the connection ended in the middle of a message") from error

    async def send(self, event: Mapping[str, object], *, file: BinaryIO | None = None, data: bytes = b"") -> None:
        """Send one line, with the descriptor of a file to read, and followed by bytes."""
        if self.writer.transport.is_closing():
            raise ConnectionError("the other end has gone")
        line = json.dumps(event).encode() + b"\n"
        # Bypasses the writer's buffer, which is empty: every message is drained before the next.
        try:
            sent = socket.send_fds(self.socket, [line], [file.fileno()]) if file else 0
        except OSError as error:  # it asks, and does not read the answers
            raise ConnectionError("the other end does not listen") from error
        self.writer.writelines([line[sent:], data])
        await self.writer.drain()

    def close(self) -> None:
        self.writer.transport.abort()
        self.socket.close()


async def open_pair() -> tuple[Connection, int]:
    """Return a connection and the descriptor of its other end, which the caller closes."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE)
    return Connection(ours, reader, writer), theirs.detach()
