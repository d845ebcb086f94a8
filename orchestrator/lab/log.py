"""Read the output of a run, which is hostile text: render it as a terminal would, cap it, parse its numbers."""

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
"""The same of an incomplete line, whose escape sequences are not removed yet."""
HEAD, TAIL = 100, 500
"""Lines kept from the start of a log, where imports fail, and from its end, where everything else does."""
SUMMARY = {
    *("val_bpb", "training_seconds", "total_seconds", "peak_vram_mb", "mfu_percent"),
    *("total_tokens_M", "num_steps", "num_params_M", "depth"),
}
"""Names that a run's summary may hold."""
MAX_NUMBER = 1e9
"""Larger numbers in a summary are capped at this, which exceeds any real count of steps, megatokens or MB."""

_STEP = re.compile(r"step +(\d{1,9}) +\( *([\d.]{1,9})%\) *\| *loss: *([^ |]{1,40})(?:.*?\| *tok/sec: *([\d,]{1,20}))?")
_SUMMARY = re.compile(r"(\w{1,40}): +(\S{1,40})")


@dataclass(frozen=True, slots=True)
class ProgressLine:
    number: int
    progress: float
    """Share of the budget, 0 to 1."""
    loss: float
    """May be infinite or NaN."""
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
    """The output so far: the log, and the summary's numbers."""

    def __init__(self) -> None:
        self.head: list[str] = []
        self.tail: deque[str] = deque(maxlen=TAIL)
        self.dropped = 0
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.open = self.shown = ""
        """The incomplete line: as received, and as a terminal would show it."""
        self.bytes = 0
        self.summary: dict[str, float] | None = None
        self.sealed = False
        """True once the model is handed over: what is printed as val_bpb from then on is no score, and left out."""
        self.on_row: Callable[[str], None] = lambda _row: None
        """Called with every line."""

    def feed(self, data: bytes, *, last: bool = False) -> Iterator[ProgressLine]:
        """Read a piece of output and yield its progress lines; `last` completes an open line."""
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
        if self.sealed and name == "val_bpb":
            return
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
