"""What a run prints is hostile text: it is shown as a terminal would show it, cut to size, and searched for numbers."""

import codecs
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite

from orchestrator.core.events import Point

MAX_LINE = 2_000
"""Characters of a line that are kept."""
MAX_RAW_LINE = 2 * MAX_LINE
"""The same while the line is incomplete, since escape sequences take room until then."""
HEAD, TAIL = 64 << 10, 192 << 10
"""Characters that are kept of a log's beginning, where imports fail, and of its end, where everything else does."""
SUMMARY = {
    *("val_bpb", "training_seconds", "total_seconds", "peak_vram_mb", "mfu_percent"),
    *("total_tokens_M", "num_steps", "num_params_M", "depth"),
}
"""The names in a run's summary."""
MAX_WITHHELD = 200
POINTS = 60
"""Enough of a loss curve to draw it and to compare it with another."""

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
_STEP = re.compile(r"step +(\d{1,9}) +\( *([\d.]{1,9})%\) *\| *loss: *([^ |]{1,40})(?:.*?\| *tok/sec: *([\d,]{1,20}))?")
_SUMMARY = re.compile(r"(\w{1,40}): +(\S{1,40})")


@dataclass(frozen=True, slots=True)
class ProgressLine:
    """A progress line."""

    number: int
    progress: float
    """0 to 1."""
    loss: float
    """May be anything that a float can be."""
    tokens_per_second: float


def parse_progress(line: str) -> ProgressLine | None:
    """`step 00123 (45.6%) | loss: 3.210 | … | tok/sec: 12,345 | …`, or None."""
    if "loss:" not in line or not (match := _STEP.search(line)):
        return None
    number, percent, loss, rate = match.groups(default="0")
    progress = min(_parse_number(percent) / 100, 1.0)
    return ProgressLine(int(number), progress, _parse_number(loss), float(rate.replace(",", "") or 0))


class LineSplitter:
    """Bytes in any pieces to lines, without what is not text; only the beginning of a long one."""

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.open = ""

    def feed(self, data: bytes, *, last: bool = False) -> Iterator[tuple[str, bool]]:
        """Each line, and whether a newline ended it; a carriage return says that it is to be overwritten."""
        *lines, rest = re.split(r"(?<=[\r\n])", self.decoder.decode(data, last))
        for line in lines:
            yield _clean((self.open + line)[:MAX_RAW_LINE]), line.endswith("\n")
            self.open = ""
        self.open = (self.open + rest)[:MAX_RAW_LINE]
        if last and self.open:
            yield _clean(self.open), True


class OutputLog:
    """The head and the tail of everything that was printed."""

    def __init__(self) -> None:
        self.head: list[str] = []
        self.tail: deque[str] = deque()
        self.room, self.held, self.dropped = HEAD, 0, 0

    def add(self, line: str) -> None:
        self.room -= len(line) + 1
        if self.room >= 0:
            self.head.append(line)
            return
        self.tail.append(line)
        self.held += len(line) + 1
        while self.held > TAIL:
            self.held -= len(self.tail.popleft()) + 1
            self.dropped += 1

    @property
    def text(self) -> str:
        gap = [f"[… {self.dropped:,} lines left out …]"] if self.dropped else []
        return "\n".join([*self.head, *gap, *self.tail])


class CurveRecorder:
    """A loss curve of at most POINTS points, evenly thinned while it grows."""

    def __init__(self) -> None:
        self.kept: list[Point] = []
        self.last: Point | None = None
        self.stride, self.seen = 1, 0

    def add(self, point: Point) -> None:
        if self.seen % self.stride == 0:
            self.kept.append(point)
        if len(self.kept) == POINTS:
            self.kept, self.stride = self.kept[::2], 2 * self.stride
        self.last, self.seen = point, self.seen + 1

    @property
    def points(self) -> tuple[Point, ...]:
        ends = [self.last] if self.last and self.kept[-1] != self.last else []
        return (*self.kept, *ends)


class Transcript:
    """Everything printed so far: the log for people, the last step and the summary's numbers for us."""

    def __init__(self) -> None:
        self.log = OutputLog()
        self.lines = LineSplitter()
        self.shown = ""
        self.bytes = 0
        self.summary: dict[str, float] | None = None
        self.sealed = False
        """Only the summary's numbers are still taken in."""
        self.told: set[str] = set()
        """Of the summary, since it was sealed."""
        self.unseen: deque[str] = deque(maxlen=MAX_WITHHELD)
        """The last lines that were not, to name a failure by."""

    def feed(self, data: bytes, *, last: bool = False) -> Iterator[ProgressLine]:
        """Take in what was printed; yield the progress lines."""
        self.bytes += len(data)
        for line, complete in self.lines.feed(data, last=last):
            self.shown = line or self.shown
            if not self.sealed and (found := parse_progress(line)):
                yield found
            if complete:
                self._row(self.shown)
                self.shown = ""

    def close(self) -> Iterator[ProgressLine]:
        """The end: whatever was printed without a newline counts, too."""
        yield from self.feed(b"", last=True)
        if self.shown:
            self._row(self.shown)

    def _row(self, row: str) -> None:
        match = _SUMMARY.fullmatch(row) if self.summary is not None else None
        if self.sealed and (row in self.told or (match and match[1] in self.told)):
            return  # once each: more of it could spell the validation text
        if self.sealed:
            self.told.add(match[1] if match else row)
        if not self.sealed or row == "---" or (match and match[1] in SUMMARY and isfinite(_parse_number(match[2]))):
            self.log.add(row)
        else:
            self.unseen.append(row)
            return
        if row == "---":
            self.summary = {}
        elif self.summary is not None and match and isfinite(value := _parse_number(match[2])):
            self.summary[match[1]] = max(0.0, min(value, 1e15))


def _clean(line: str) -> str:
    text = line.rstrip()
    if not text.isprintable():
        text = _CONTROL.sub("", _ESCAPE.sub("", text)).rstrip()
    return text if len(text) <= MAX_LINE else text[: MAX_LINE - 1] + "…"


def _parse_number(text: str) -> float:
    """NaN where it is no number."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
