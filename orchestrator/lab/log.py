"""Reads the output of a run, which is hostile text: shown as a terminal would, cut to size, searched for numbers."""

import codecs
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf, nan

from subagents.logs import clean

MAX_LINE = 1_000
"""Characters of a line that are kept."""
MAX_RAW_LINE = 2 * MAX_LINE
"""The same while the line is incomplete, since escape sequences take room until then."""
HEAD, TAIL = 100, 500
"""Lines kept of a log's beginning, where imports fail, and of its end, where everything else does."""
SUMMARY = {
    *("val_bpb", "training_seconds", "total_seconds", "peak_vram_mb", "mfu_percent"),
    *("total_tokens_M", "num_steps", "num_params_M", "depth"),
}
"""Names in a run's summary."""
MAX_NUMBER = 1e9
"""A larger number in a summary counts as this: more steps, millions of tokens or MB than there are."""
MAX_WITHHELD = 200
"""Lines kept of those that a sealed log withholds."""

_STEP = re.compile(r"step +(\d{1,9}) +\( *([\d.]{1,9})%\) *\| *loss: *([^ |]{1,40})(?:.*?\| *tok/sec: *([\d,]{1,20}))?")
_SUMMARY = re.compile(r"(\w{1,40}): +(\S{1,40})")


@dataclass(frozen=True, slots=True)
class ProgressLine:
    number: int
    progress: float
    """Share of the budget, 0 to 1."""
    loss: float
    """Any float, infinite and NaN included."""
    tokens_per_second: float


def parse_progress(line: str) -> ProgressLine | None:
    """Parse `step 00123 (45.6%) | loss: 3.210 | … | tok/sec: 12,345 | …`; return None for any other line."""
    if "loss:" not in line or not (match := _STEP.search(line)):
        return None
    number, percent, loss, rate = match.groups(default="0")
    share = _parse_number(percent) / 100
    if not share >= 0:
        return None
    return ProgressLine(int(number), min(share, 1.0), _parse_number(loss), float(rate.replace(",", "") or 0))


class Transcript:
    """The output so far: a log for people, progress lines and the summary's numbers for the monitor."""

    def __init__(self) -> None:
        self.head: list[str] = []
        self.tail: deque[str] = deque(maxlen=TAIL)
        self.dropped = 0
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.open = self.shown = ""
        """The line that is not complete yet: as it came, and as a terminal shows it so far."""
        self.bytes = 0
        self.summary: dict[str, float] | None = None
        self.sealed = False
        """Only the summary's numbers are still read: other lines may quote the validation text."""
        self.logged: set[str] = set()
        """Names that the sealed log has shown."""
        self.withheld: deque[str] = deque(maxlen=MAX_WITHHELD)
        """The last lines that were kept out of a sealed log; a failure is classified by them."""
        self.on_row: Callable[[str], None] = lambda _row: None
        """Is told of every line."""

    def feed(self, data: bytes, *, last: bool = False) -> Iterator[ProgressLine]:
        """Read output, in pieces of any size, and yield its progress lines; text at the end counts as a line."""
        self.bytes += len(data)
        printed = self.open + self.decoder.decode(data, last)
        if last and (printed or self.shown):
            printed += "\n"
        *lines, rest = re.split(r"(?<=[\r\n])", printed)
        self.open = rest[:MAX_RAW_LINE]
        for line in lines:
            text = clean(line[:MAX_RAW_LINE], MAX_LINE)
            self.shown = text or self.shown
            if not self.sealed and (found := parse_progress(text)):
                yield found
            if line.endswith("\n"):
                self._add_row(self.shown)
                self.shown = ""

    @property
    def log(self) -> str:
        """Return the output's head and tail."""
        gap = [f"[… {self.dropped:,} lines left out …]"] if self.dropped else []
        return "\n".join([*self.head, *gap, *self.tail])

    def _add_row(self, row: str) -> None:
        self.on_row(row)
        match = _SUMMARY.fullmatch(row) if self.summary is not None else None
        name, value = (match[1], _parse_number(match[2])) if match else (row, nan)
        known = name in SUMMARY and abs(value) < inf
        if self.sealed:
            # Once each: repetitions could spell the validation text.
            if name in self.logged or not (known or row == "---"):
                self.withheld.append(row)
                return
            self.logged.add(name)
        self.dropped += len(self.tail) == TAIL
        (self.tail if len(self.head) == HEAD else self.head).append(row)
        if row == "---":
            self.summary = {}
        elif self.summary is not None and known:
            self.summary[name] = max(0.0, min(value, MAX_NUMBER))


def _parse_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return nan
