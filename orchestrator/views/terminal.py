"""Show a session while it runs: a live view on a terminal, one plain line per event elsewhere."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TextIO, cast

import structlog
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from orchestrator.core import events as ev
from orchestrator.core.state import State, Training, get_proposal
from orchestrator.core.text import format_count, shorten
from orchestrator.policy.limits import estimate_run_seconds
from orchestrator.session.store import EventLog
from orchestrator.views.event_text import TALK, summarize
from orchestrator.views.experiments import list_rows
from orchestrator.views.output import make_printable
from orchestrator.views.render import format_change, format_clock, format_score, render_template
from orchestrator.views.summary import summarize as summarize_session

LATEST = 8
"""Experiments in the live view."""
STYLES = {"kept": "bold green", "crashed": "red"}
PLAIN_SECONDS = 60.0
"""Seconds between two plain lines about the same run's progress."""
LONGEST = 2_000
"""Characters of a message."""


class Reading(NamedTuple):
    """Where a run stands by its own last line, and when a plain line last told it."""

    granted: ev.Granted
    point: ev.Point
    said: float


class Terminal:
    """Watches a session. Between `open` and `close` the live view is up, if the console can show one."""

    def __init__(self, log: EventLog, console: Console, clock: Callable[[], float]) -> None:
        self.log, self.console, self.clock = log, console, clock
        lives = [record.seq for record in log.records if isinstance(record.event, ev.Started | ev.Resumed)]
        self.seen = lives[-1] if lives else 0
        self.readings: dict[int, Reading] = {}
        self.is_live = console.is_terminal and not console.is_dumb_terminal
        self.live = Live(
            get_renderable=lambda: render_view(log.state, self.readings, clock(), console.width), console=console
        )
        renderer = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0, sort_keys=False)
        self.lines = structlog.wrap_logger(structlog.PrintLogger(cast("TextIO", console.file)), processors=[renderer])

    def open(self) -> None:
        """Put up the live view, or print what happened so far in this life of the session."""
        if self.is_live:
            self.live.start()
        self.update()

    def close(self) -> None:
        """Take the live view down; what it last showed stays."""
        self.live.stop()

    def update(self) -> None:
        """Print a line for each new event, unless the live view shows it."""
        fresh, self.seen = self.log.records[self.seen :], len(self.log.records)
        for record in fresh:
            if not isinstance(record.event, TALK):
                number = getattr(record.event, "experiment", None)
                self._print_line(record.at, record.event.kind, number, summarize(record.event))

    def progress(self, granted: ev.Granted, point: ev.Point, rate: float) -> None:
        """Take in how far a run has come; `rate` is in tokens per second."""
        last, now = self.readings.get(granted.slot), self.clock()
        before = last.said if last and last.granted == granted else now
        due = now - before >= PLAIN_SECONDS
        self.readings[granted.slot] = Reading(granted, point, now if due else before)
        if due:
            text = f"{point.progress:.0%} done, loss {point.loss:.4f}, {format_count(rate)} tokens per second"
            self._print_line(now, "training", granted.experiment, text)

    def say(self, text: str) -> None:
        """Print a message to the user, above the live view."""
        self.console.print(make_printable(text, LONGEST), highlight=False, markup=False, soft_wrap=True)

    def _print_line(self, at: float, kind: str, experiment: int | None, text: str) -> None:
        if not self.is_live:
            number = "" if experiment is None else f"{experiment}: "
            self.lines.info(f"{kind.replace('_', ' '):10} {number}{text}".rstrip(), timestamp=format_clock(at))


def render_view(state: State, readings: Mapping[int, Reading], now: float, width: int = 80) -> RenderableType:
    """Return the live view: where the session stands, what trains, how the last experiments ended."""
    return Group(
        Text(),
        _render_headline(state, now),
        *_render_slots(state, readings, now, width),
        *_render_latest(state, width),
        *_render_notices(state, now),
    )


def _render_headline(state: State, now: float) -> Text:
    session, left = state.session, _format_span(state.deadline - now)
    facts = {"title": escape(session.name), "limits": session.limits, "usd": state.usd, "left": left}
    text = Text.from_markup(render_template("terminal.txt", summary=summarize_session(state), **facts), emoji=False)
    text.overflow, text.no_wrap = "ellipsis", True
    return text


def _render_slots(state: State, readings: Mapping[int, Reading], now: float, width: int) -> Iterator[RenderableType]:
    rights = [Column(justify="right", no_wrap=True) for _ in range(3)]
    title = Column(no_wrap=True, max_width=max(24, width - 42), overflow="ellipsis")
    table = Table.grid(title, Column(width=16), *rights, padding=(0, 1), pad_edge=True)
    for number, stage in state.open.items():
        granted = getattr(stage, "granted", None)
        if granted is None:
            continue
        reading = readings.get(granted.slot)
        point = reading.point if reading and reading.granted == granted else None
        name = get_proposal(stage).title if isinstance(stage, Training) else "the incumbent once more"
        run = f" (run {granted.run})" if granted.run > 1 else ""
        table.add_row(
            Text(f"{number}{run} {make_printable(name)}"),
            ProgressBar(total=1.0, completed=point.progress if point else 0.0, width=16),
            f"{point.progress:.0%}" if point else "",
            f"loss {point.loss:.3f}" if point else "starting",
            _format_span(estimate_run_seconds(state) - (now - stage.since)) if isinstance(stage, Training) else "",
        )
    yield Text()
    yield table if table.row_count else Text(" nothing is training", style="dim")


def _render_latest(state: State, width: int) -> Iterator[RenderableType]:
    decided = [row for row in list_rows(state) if row.is_decided and row.experiment > 0]
    number, score, change = (Column(justify="right", no_wrap=True) for _ in range(3))
    title = Column(no_wrap=True, max_width=max(24, width - 34), overflow="ellipsis")
    table = Table.grid(number, title, "", score, change, padding=(0, 1), pad_edge=True)
    for row in reversed(decided[-LATEST:]):
        cells = (Text(row.title), row.status, format_score(row.val_bpb), format_change(row.gain))
        table.add_row(str(row.experiment), *cells, style=STYLES.get(row.status, "dim"))
    if decided:
        yield from (Text(), table)


def _render_notices(state: State, now: float) -> Iterator[RenderableType]:
    notices = [f"waiting {_format_span(waiting.until - now)}: {waiting.reason}" for waiting in state.waiting.values()]
    if state.stopping and not state.ended:
        notices.append(f"stopping: {state.stopping}")
    for text in notices:
        yield Text(f" {make_printable(shorten(text, LONGEST))}", style="yellow", overflow="ellipsis", no_wrap=True)


def _format_span(seconds: float) -> str:
    """Return a duration as 0:42, 7:05 or 6 h 12; 0:00 where it is negative."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d}"
