"""Print safely although readers go away, disks fill up, terminals stall and locales lack characters.

`harden_streams` is for every command. `Outlet` is for a night, which must not even wait for its reader.
"""

import atexit
import codecs
import io
import os
import queue
import select
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import TextIO

from orchestrator.core.text import make_printable

PLAIN = dict(zip("→−–±σ…─━·✓✗", ["->", "-", "-", "+/-", "sigma", "...", "-", "=", "|", "+", "x"], strict=True))
"""Replacements for characters that the locale's encoding lacks; any other becomes a question mark."""
PENDING = 1_000  # writes that may wait for a slow reader; further ones are dropped
PATIENCE = 5.0  # seconds that the process waits at its end for pending output


def print_safely(text: str, file: TextIO | None = None) -> None:
    """Print a text that may hold what a stranger wrote."""
    print(make_printable(text), file=file)


def spell_out(error: UnicodeError) -> tuple[str, int]:
    """Return replacements for characters that an encoding lacks, and the index at which to continue."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


codecs.register_error("spell-out", spell_out)


class LenientStream(io.TextIOWrapper):
    """A standard stream that stores its first failure instead of raising it."""

    failure: OSError | None = None

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self.failure = self.failure or error
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self.failure = self.failure or error


@contextmanager
def harden_streams() -> Generator[None]:
    """Keep printing from raising. Exits with a message and code 2 if the output could not be written."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed: the next opened file would get its descriptor
            null = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115
            os.set_inheritable(null.fileno(), True)
            setattr(sys, name, null)
            setattr(sys, f"__{name}__", null)  # keeps it open once it is wrapped below
    if not (hasattr(sys.stdout, "buffer") and hasattr(sys.stderr, "buffer")):
        yield  # a caller in this process captures the output
        return
    sys.stderr = _make_lenient(sys.stderr)
    sys.stdout = stdout = _make_lenient(sys.stdout)
    yield
    stdout.flush()
    if stdout.failure and not isinstance(stdout.failure, BrokenPipeError):
        print(f"nightshift: standard output cannot be written: {stdout.failure.strerror}", file=sys.stderr)
        raise SystemExit(2)


def _make_lenient(stream: TextIO) -> LenientStream:
    by_line, at_once = stream.isatty() or stream is sys.stderr, getattr(stream, "write_through", False)
    return LenientStream(stream.buffer, stream.encoding, "spell-out", line_buffering=by_line, write_through=at_once)


class Outlet:
    """A stream for a night: a thread passes on what is written, so that no writer waits or fails.

    Output that the reader does not take in time is dropped; so is all output once the reader has gone.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.encoding, self.isatty = stream, stream.encoding, stream.isatty
        self.pending = queue.Queue[bytes | None](PENDING)
        self.writer = threading.Thread(target=self._write_pending, daemon=True)
        self.writer.start()
        atexit.register(self.close)

    def write(self, text: str, /) -> int:
        with suppress(queue.Full):
            self.pending.put_nowait(text.encode(self.encoding, "spell-out"))
        return len(text)

    def flush(self) -> None:
        """Do nothing, since the thread writes as soon as it can."""

    def close(self) -> None:
        """Wait until everything is printed, PATIENCE seconds at most."""
        with suppress(queue.Full):
            self.pending.put_nowait(None)
            self.writer.join(PATIENCE)

    def _write_pending(self) -> None:
        with suppress(OSError, ValueError):  # the reader has gone, or there was none
            descriptor = self.stream.fileno()
            while data := self.pending.get():
                while data:
                    select.select([], [descriptor], [])  # needed if another process made it non-blocking
                    data = data[os.write(descriptor, data) :]
