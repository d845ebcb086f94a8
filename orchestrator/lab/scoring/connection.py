"""Our end of the socket to a sandboxed process: JSON lines, some with bytes behind them; answers may carry descriptors.

What comes in is hostile: lines and sizes have limits, and anything but a JSON object is ignored.
"""

import asyncio
import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, cast

MAX_LINE = 4_096
"""Bytes of a line; longer ones are ignored."""
CHUNK = 1 << 20


class Connection:
    """Every method raises ConnectionError where the other end has gone, and no other OSError of the socket's."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def receive(self) -> dict[str, Any] | None:
        """Return the next object, None at the end."""
        reader, _ = await self._open()
        too_long = False
        while True:
            try:
                line = await reader.readuntil(b"\n")
            except asyncio.LimitOverrunError as error:
                await reader.readexactly(error.consumed)
                too_long = True
                continue
            except asyncio.IncompleteReadError:
                return None
            received = None if too_long else _parse(line)
            too_long = False
            if isinstance(received, dict):
                return cast("dict[str, Any]", received)

    async def read_exactly(self, size: int) -> bytes:
        """Return `size` bytes."""
        reader, _ = await self._open()
        try:
            return await reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise ConnectionError("the connection ended in the middle of a message") from error

    async def copy_to(self, file: BinaryIO, size: int) -> None:
        """Copy `size` bytes to the file. Raises OSError where it cannot be written."""
        for first in range(0, size, CHUNK):
            await asyncio.to_thread(file.write, await self.read_exactly(min(CHUNK, size - first)))

    async def send(
        self, event: Mapping[str, object], *, files: Sequence[BinaryIO] = (), data: Sequence[bytes] = ()
    ) -> None:
        """Send one line, with descriptors of files to read and bytes behind it."""
        _, writer = await self._open()
        if writer.transport.is_closing():
            raise ConnectionError("the other end has gone")
        line = json.dumps(event).encode() + b"\n"
        # Nothing waits to be sent, since each answer is sent whole before the next.
        sent = socket.send_fds(self.socket, [line], [file.fileno() for file in files]) if files else 0
        writer.writelines([line[sent:], *data])
        await writer.drain()

    def close(self) -> None:
        if self.streams:
            self.streams[1].transport.abort()
        self.socket.close()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.streams is None:
            self.streams = await asyncio.open_connection(sock=self.socket, limit=MAX_LINE)
            self.streams[1].transport.set_write_buffer_limits(0)  # `drain` waits until all is sent
        return self.streams


def _parse(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def open_pair() -> tuple[Connection, int]:
    """Return a connection and the descriptor of its other end, which the caller closes."""
    ours, theirs = socket.socketpair()
    return Connection(ours), theirs.detach()
