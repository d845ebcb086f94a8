"""Read the output of a run, which is hostile text: render it as a terminal would, cap it, parse its numbers."""

import codecs
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from time import thread_time
from typing import Any

import regex

from orchestrator.core.task import BPB, Metric
from subagents.logs import clean, quote

MAX_LINE = 1_000  # characters of a line that are kept
MAX_READ = 1 << 16  # the same of one in which numbers are looked for
MAX_RAW_LINE = 2 * MAX_READ  # the same of an incomplete line, whose escape sequences are not removed yet
HEAD, TAIL = 100, 500
"""Lines kept from the start of a log, where imports fail, and from its end, where everything else does."""
MAX_NUMBERS = 64
PATIENCE, USUAL = 1.0, 0.001
"""Seconds of CPU time that a pattern, which may be exponential, may take on the lines of a run, beyond those usual on
each."""

_STEP = re.compile(
    r"step +(\d{1,9}) +\( *([\d.]{1,9})%\) *\| *loss: *([^ |]{1,400})(?![^ |])(?:.*?\| *tok/sec: *([\d,]{1,20}))?"
)
_REPORT = re.compile(r"METRIC\s+([\w./-]{1,40})\s*=\s*([^\s;%]{1,400})(?![^\s;%])")  # all of it, or no exponent
_SUMMARY = re.compile(r"^([\w./-]{1,40}):\s+([^\s%]{1,400})%?$")
_GROUPED = re.compile(r"[-+]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?")  # 1,234.5, but not 0,93


@dataclass(frozen=True, slots=True)
class ProgressLine:
    number: int
    progress: float  # share of the budget, 0 to 1
    loss: float  # may be infinite or NaN
    tokens_per_second: float


def parse_progress(line: str) -> ProgressLine | None:
    """Parse `step 00123 (45.6%) | loss: 3.210 | … | tok/sec: 12,345 | …`; return None for any other line."""
    if "loss:" not in line or not (match := _STEP.search(line)):
        return None
    number, percent, loss, rate = match.groups(default="0")
    with suppress(ValueError):
        share = min(float(percent) / 100, 1.0)
        return ProgressLine(int(number), share, _parse_number(loss), float(rate.replace(",", "") or 0))
    return None


def parse_pattern(text: str | None) -> Any:
    """Return the compiled pattern of a metric; None if it has none. Raises ValueError."""
    try:
        return regex.compile(text) if text else None
    except (regex.error, ArithmeticError, LookupError, MemoryError, RuntimeError, ValueError) as error:
        raise ValueError(f"Input should be a valid regular expression: {error}") from error


class NumberReader:
    """Finds the numbers that a script reports; the last one of a name counts."""

    def __init__(self, metric: Metric = BPB) -> None:
        self.metric, self.patience, self.fault = metric, PATIENCE, ""
        self.pattern: Any = None
        self.numbers: dict[str, float] = {}
        self.in_summary = False
        try:
            self.pattern = parse_pattern(metric.pattern)
        except ValueError as error:  # of a session that was begun with another compiler
            self.fault = f"the pattern of metric: {error}"

    def read(self, row: str) -> None:
        """Read each `METRIC name=number` of a line, or `name: number` below a line of `---`, and the pattern's."""
        self.in_summary = self.in_summary or row == "---"
        pairs = _REPORT.findall(row) or (_SUMMARY.findall(row) if self.in_summary else [])
        if self.pattern:
            pairs = [pair for pair in pairs if pair[0] != self.metric.name]
            if match := self._search(row):
                pairs.append((self.metric.name, match[min(1, self.pattern.groups)] or ""))
        for name, number in pairs:
            if len(self.numbers) < MAX_NUMBERS or name in {*self.numbers, self.metric.name}:
                with suppress(ValueError):
                    self.numbers[name] = _parse_number(number)

    def _search(self, row: str) -> Any:
        """Return what the pattern finds; None once it has taken too long, which is a `fault`."""
        began = thread_time()
        try:
            return self.pattern.search(row, timeout=max(self.patience, 0.0))
        except TimeoutError:
            self.pattern, self.fault = None, f"the pattern of metric takes too long on {quote(row)}"
            return None
        finally:
            self.patience -= max(0.0, thread_time() - began - USUAL)


class Transcript:
    """The output so far: the log, and the numbers in it."""

    def __init__(self) -> None:
        self.head: list[str] = []
        self.tail: deque[str] = deque(maxlen=TAIL)
        self.dropped = 0
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.open = self.shown = ""  # the incomplete line: as received, and as a terminal would show it
        self.bytes = 0
        self.reader = NumberReader()
        self.scored_elsewhere = False
        """True for a run that hands its model over: what it prints as val_bpb is no score, and left out."""

    def feed(self, data: bytes, *, last: bool = False) -> Iterator[ProgressLine]:
        """Read a piece of output and yield its progress lines; `last` completes an open line."""
        self.bytes += len(data)
        printed = self.decoder.decode(data, last)
        if last and (self.open or printed or self.shown):
            printed += "\n"
        first, *others = re.split(r"(?<=[\r\n])", printed)
        *lines, rest = self.open + first, *others
        self.open = rest[:MAX_RAW_LINE]
        for line in lines:
            text = clean(line[:MAX_RAW_LINE], MAX_READ)
            self.shown = text or self.shown
            if found := parse_progress(text[:MAX_LINE]):
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
        if self.scored_elsewhere and row.startswith("val_bpb:"):
            return
        self.reader.read(row)
        self.dropped += len(self.tail) == TAIL
        kept = row if len(row) <= MAX_LINE else f"{row[: MAX_LINE - 1]}…"
        (self.tail if len(self.head) == HEAD else self.head).append(kept)


def _parse_number(text: str) -> float:
    """Return a number as people print it, which may be infinite or NaN. Raises ValueError."""
    text = text.strip(" ,;%")
    return float(text.replace(",", "") if _GROUPED.fullmatch(text) else text)
