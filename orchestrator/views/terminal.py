"""Show a session while it runs: a live view on a terminal, one plain line per event elsewhere."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain, islice
from operator import attrgetter
from typing import TextIO, cast

import structlog
from rich.cells import set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.segment import Segment, Segments
from rich.text import Text

from orchestrator.core import events as ev
from orchestrator.core.state import Training
from orchestrator.core.text import format_count, make_printable
from orchestrator.policy.limits import estimate_run_seconds
from orchestrator.ports import Log
from orchestrator.views.event_text import summarize
from orchestrator.views.experiments import ExperimentRow, list_open_rows, list_rows
from orchestrator.views.render import format_local, render_template
from orchestrator.views.summary import summarize as summarize_session

PLAIN_SECONDS = 60.0  # seconds between plain lines about one run's progress
NEWLINE = Segment.line()
LONGEST = 2_000  # characters of a message
TROUBLE = {"crashed", "aborted", "failed", "abandoned", "unanswered", "fell_back", "replaced", "waiting"}


class Terminal:
    """Shows a session; with a live view between `open` and `close`, if the console can show one."""

    def __init__(self, log: Log, console: Console, clock: Callable[[], float], report: str = "report.html") -> None:
        self.log, self.console, self.clock, self.report = log, console, clock, report
        lives = [record.seq for record in log.records if isinstance(record.event, ev.Started | ev.Resumed)]
        self.seen = lives[-1] if lives else 0
        self.points: dict[tuple[int, int], tuple[float, ev.Point]] = {}
        """When each run last said how far it had come, by experiment and run."""
        self.said: dict[tuple[int, int], float] = {}  # when a plain line last showed it
        self.talks: dict[str, ev.Record] = {}
        """The opening of each task's latest conversation with an agent, whose dollars are in `spent`."""
        self.spent = defaultdict[str, float](float)
        self.messages: dict[str, str] = {}  # each with the time when it was last said
        self.listed: tuple[Sequence[ExperimentRow], int] = ((), 0)
        """The latest experiments and the width for which they are drawn in `list`."""
        self.list = Segments(())
        self.is_live = console.is_terminal and not console.is_dumb_terminal
        self.live = Live(get_renderable=self.render, console=console, screen=self.is_live, auto_refresh=False)
        renderer = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0, sort_keys=False)
        steps = [structlog.processors.add_log_level, renderer]
        self.lines = structlog.wrap_logger(structlog.PrintLogger(cast("TextIO", console.file)), processors=steps)

    def open(self) -> None:
        """Start the live view, or print what has happened since the session was last started or resumed."""
        self.update()
        if self.is_live:
            self.live.start()

    def draw(self) -> None:
        """Draw the live view anew, if there is one."""
        if self.live.is_started:
            self.live.refresh()

    def close(self) -> None:
        """Stop the live view, and print its last state and all messages where they stay."""
        if self.live.is_started:
            self.live.stop()
            self.is_live = False
            messages, self.messages = self.messages, {}  # each is printed in full, and so not in the view
            self.console.print(self.render())
            for text in messages.values():
                self.say(text)

    def render(self) -> Group:
        """Return the live view: where the session stands, who does what now, how the last experiments ended."""
        state, (width, height) = self.log.state, self.console.size
        rows = list_rows(state)
        shown = {"width": width, "height": height, "now": self.clock(), "fit": set_cell_size, "escape": escape}
        facts = {"points": self.points, "spent": self.spent, "messages": self.messages, "report": self.report}
        facts |= {"state": state, "summary": summarize_session(state), "usual": estimate_run_seconds(state)}
        titles = {row.experiment: row.title for row in list_open_rows(state, Training)}
        kept = sorted((row for row in rows if row.status == "kept"), key=attrgetter("promotion"))
        talks = [talk for task, talk in self.talks.items() if task not in self.log.finished]
        markup = render_template("terminal.txt", **facts, **shown, titles=titles, kept=kept, talks=talks)
        head, room, foot = markup.split("\f")
        known = {row.experiment: row for row in rows}
        judged = (result.experiment for result in reversed(state.judged) if result.experiment)
        decided = [known[number] for number in islice(judged, int(room))]
        if (decided, width) != self.listed:
            facts = {"rows": decided, "metric": state.session.task.metric, "width": width}
            text = _read_markup(render_template("terminal_list.txt", **facts, fit=set_cell_size, escape=escape))
            lines = self.console.render_lines(text, pad=False) if decided else []
            self.listed = decided, width
            self.list = Segments([*chain.from_iterable((*line, NEWLINE) for line in lines)])
        return Group(_read_markup(head), self.list, *map(_read_markup, [foot] if foot.strip() else []))

    def update(self) -> None:
        """Take in the new events, and print a line for each unless the live view shows it."""
        fresh, self.seen = self.log.records[self.seen :], len(self.log.records)
        for record in fresh:
            match record.event:
                case ev.ConversationOpened():
                    self.talks[record.task_id], self.spent[record.task_id] = record, 0.0
                case ev.ModelReplied(usd=usd):
                    self.spent[record.task_id] += usd or 0.0
                case ev.ToolUsed() | ev.Reserved():
                    pass
                case event if not self.is_live:
                    number, text = getattr(event, "experiment", None), summarize(event, self.log.state.session.task)
                    self._print_line(record.at, event.kind, number, text)
                case ev.ModelReplaced() as event:
                    self._keep(summarize(event), record.at)
                case _:
                    pass

    def progress(self, granted: ev.Granted, point: ev.Point, rate: float) -> None:
        """Store how far a run has come, and print it now and then; `rate` is in tokens per second."""
        run, now = (granted.experiment, granted.run), self.clock()
        self.points[run] = now, point
        if now - self.said.setdefault(run, now) >= PLAIN_SECONDS:
            self.said[run] = now
            text = f"{100 * point.progress:.0f} % done, loss {point.loss:.4f}, {format_count(rate)} tokens per second"
            self._print_line(now, "training", granted.experiment, text)

    def say(self, text: str) -> None:
        """Show a message to the user."""
        if self.live.is_started:
            self._keep(text, self.clock())
            self.live.refresh()
        else:
            self.console.print(make_printable(text, LONGEST), highlight=False, markup=False, soft_wrap=True)

    def _keep(self, text: str, at: float) -> None:
        """Keep a message for the live view, with its time: what it tells may be over since."""
        self.messages.pop(text, None)  # so that it comes last
        self.messages[text] = f"{format_local(at, '%H:%M')} {text}"

    def _print_line(self, at: float, kind: str, experiment: int | None, text: str) -> None:
        if not self.is_live:
            number = "" if experiment is None else f"{experiment}: "
            tell = self.lines.warning if kind in TROUBLE else self.lines.info
            clock = format_local(at, "%Y-%m-%d %H:%M:%S")
            tell(f"{kind.replace('_', ' '):10} {number}{text}".rstrip(), timestamp=clock)


def _read_markup(markup: str) -> Text:
    text = Text.from_markup(markup.rstrip("\n"), emoji=False, overflow="ellipsis")
    text.no_wrap = True
    return text
