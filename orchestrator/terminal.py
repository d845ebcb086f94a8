"""What a person sees while a session runs: a live view on a terminal, one plain line per event elsewhere."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self, TextIO, cast

import structlog
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator import facts, policy
from orchestrator.events import (
    Abandoned,
    Aborted,
    Committed,
    Crashed,
    Discarded,
    Ended,
    Failed,
    Fitted,
    Granted,
    Guided,
    Kept,
    Point,
    Promoted,
    Proposed,
    Record,
    Refused,
    Resumed,
    Scored,
    Started,
    StopAsked,
    Unanswered,
    Waiting,
)
from orchestrator.ledger import Entry, entries
from orchestrator.session import Log
from orchestrator.state import State, Training, proposal_of

LATEST = 8
"""Experiments in the live view."""
STYLES = {"kept": "bold green", "failed": "red"} | dict.fromkeys(
    ("discarded", "hopeless", "refused", "abandoned"), "dim"
)
PLAIN_SECONDS = 60.0
"""How often a run's progress is worth a line in a log file."""
Said = tuple[str, Mapping[str, object]]
"""An event in a word, and a few facts."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Where a run stands, by its own last line."""

    granted: Granted
    point: Point
    rate: float
    """Tokens per second."""
    said: float
    """When it was last said in plain lines."""


class Terminal:
    """Watches a session. Use as a context: inside, the live view is up, if the console is a terminal."""

    def __init__(self, log: Log, console: Console, clock: Callable[[], float]) -> None:
        self.log, self.console, self.clock = log, console, clock
        lives = [record.seq for record in log.records if isinstance(record.event, Started | Resumed)]
        self.seen = lives[-1] if lives else 0
        self.readings: dict[int, Reading] = {}
        self.live = Live(get_renderable=self._view, console=console, auto_refresh=True, refresh_per_second=4)
        self.lines = plain(console)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        self.update()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def update(self) -> None:
        """Say what has happened since the last time."""
        fresh, self.seen = self.log.records[self.seen :], len(self.log.records)
        for record in fresh:
            if isinstance(record.event, Scored | Crashed | Aborted):
                self.readings = {
                    s: r for s, r in self.readings.items() if r.granted.experiment != record.event.experiment
                }
            if not self.console.is_terminal:
                self._line(record.at, said(record, self.log.state))

    def progress(self, granted: Granted, point: Point, rate: float) -> None:
        """A run has come so far; `rate` in tokens per second."""
        last, now = self.readings.get(granted.slot), self.clock()
        before = last.said if last and last.granted == granted else now
        due = now - before >= PLAIN_SECONDS
        self.readings[granted.slot] = Reading(granted, point, rate, now if due else before)
        if due and not self.console.is_terminal:
            what = {"experiment": granted.experiment, "done": f"{point.progress:.0%}", "loss": f"{point.loss:.4f}"}
            self._line(now, ("training", what))

    def say(self, text: str) -> None:
        """A word to the user, above the live view."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _line(self, at: float, told: Said | None) -> None:
        if told:
            self.lines.info(told[0], at=at, **told[1])

    def _view(self) -> RenderableType:
        return view(self.log.state, self.readings, self.clock(), self.console.width)


def plain(console: Console) -> structlog.typing.FilteringBoundLogger:
    """Lines for people where there is no terminal: time, event, what is worth knowing."""

    def stamped(_: object, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
        at = datetime.fromtimestamp(line.pop("at")).astimezone()
        return {"timestamp": f"{at:%H:%M:%S}", **line}

    renderer = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=10, sort_keys=False)
    return structlog.wrap_logger(structlog.PrintLogger(cast("TextIO", console.file)), processors=[stamped, renderer])


def said(record: Record, state: State) -> Said | None:
    """How an event is told; None for what nobody needs to follow a night."""
    match record.event:
        case Started(name=name, limits=limits, crew=crew):
            return "started", {"session": name, "crew": crew, "hours": limits.hours}
        case Resumed():
            return "resumed", {"experiments": len(state.findings) - 1 if state.findings else 0}
        case Guided(text=text):
            return "guidance", {"text": _short(text, 60)}
        case Fitted(commit=commit):
            return "fitted", {"commit": commit[:12]}
        case Proposed(experiment=number, proposal=proposal):
            return "proposed", {"experiment": number, "title": proposal.title, "family": proposal.family}
        case Committed(experiment=number, how=how, added=added, removed=removed):
            return how, {"experiment": number, "lines": f"+{added} −{removed}"}
        case Granted(experiment=number, run=run, slot=slot):
            return "training", {"experiment": number, "run": run} | ({"slot": slot} if state.session.slots > 1 else {})
        case Scored(experiment=number, run=run, val_bpb=score, measures=measures):
            seconds = f"{measures.total_seconds:.0f}"
            return "scored", {"experiment": number, "run": run, "val_bpb": f"{score:.4f}", "seconds": seconds}
        case Crashed(experiment=number, failure="hopeless", message=message):
            return "ended early", {"experiment": number, "why": _short(message, 100)}
        case Crashed(experiment=number, failure=failure, message=message):
            return "crashed", {"experiment": number, "failure": failure, "message": _short(message, 80)}
        case _:
            return _said_of_the_rest(record, state)


def _said_of_the_rest(record: Record, state: State) -> Said | None:
    match record.event:
        case Kept(experiment=0, mean=mean, sigma=sigma):
            return "baseline", {"val_bpb": f"{mean:.4f}", "sigma": f"{sigma:.4f}"}
        case (Kept() | Discarded()) as verdict:
            change = f"{facts.signed(-verdict.gain)} ± {verdict.error:.4f}"
            what = {"experiment": verdict.experiment, "val_bpb": f"{verdict.mean:.4f}", "change": change}
            return verdict.kind, {**what, "why": verdict.reason}
        case (Failed() | Refused() | Abandoned() | Aborted()) as event:
            return event.kind, {"experiment": event.experiment, "why": _short(event.reason, 100)}
        case Promoted(experiment=number, commit=commit) if number:
            return "promoted", {"experiment": number, "commit": commit[:12]}
        case Unanswered(reason=reason):
            return "unanswered", {"why": _short(reason, 100)}
        case Waiting(until=until, reason=reason):
            return "waiting", {"seconds": f"{until - record.at:.0f}", "why": _short(reason, 100)}
        case StopAsked(reason=reason):
            return "stopping", {"why": reason}
        case Ended(reason=reason):
            return "ended", {"why": reason, "kept": len(state.kept)}
        case _:
            return None


def view(state: State, readings: Mapping[int, Reading], now: float, width: int = 80) -> RenderableType:
    """The live view: where the session stands, what trains, what came of the last experiments."""
    if state.started is None:
        return Text("")
    return Group(
        Text(), _headline(state, now), *_slots(state, readings, now, width), *_latest(state, width), *_notes(state, now)
    )


def _headline(state: State, now: float) -> Text:
    limits, best = state.session.limits, state.best
    tried = sum(finding.experiment > 0 for finding in state.findings)
    text = Text(overflow="ellipsis", no_wrap=True)
    text.append(f" {state.session.name}", style="bold")
    if best and state.findings:
        baseline = state.findings[0].val_bpb or best.mark
        text.append(f"   {baseline:.4f} → ")
        text.append(f"{best.mark:.4f}", style="bold green" if best.experiment else "bold")
        text.append(f"  σ {policy.sigma(policy.noise(state)):.4f}", style="dim")
    text.append(f"   {tried}{f' of {limits.experiments}' if limits.experiments else ''} tried, {len(state.kept)} kept")
    text.append(f"   {_span(max(0.0, state.deadline - now))} left")
    if state.usd or limits.usd:
        text.append(f"   ${state.usd:.2f}" + (f" of ${limits.usd:g}" if limits.usd else ""))
    return text


def _slots(state: State, readings: Mapping[int, Reading], now: float, width: int) -> Iterator[RenderableType]:
    """A bar for each slot: what trains there, how far, its loss, the time it will take yet."""
    table = Table.grid(padding=(0, 1), pad_edge=True)
    table.add_column(no_wrap=True, max_width=max(24, width - 42))
    table.add_column(width=16)
    for _ in range(3):
        table.add_column(justify="right", no_wrap=True)
    for number, stage in state.open.items():
        granted = getattr(stage, "granted", None)
        if granted is None:
            continue
        reading = readings.get(granted.slot)
        point = reading.point if reading and reading.granted == granted else None
        title = proposal_of(stage).title if isinstance(stage, Training) else "the best once more"
        run = f" (run {granted.run})" if granted.run > 1 else ""
        left = _span(policy.expected_seconds(state) - (now - stage.since)) if isinstance(stage, Training) else ""
        table.add_row(
            Text(f"{number}{run} {title}", overflow="ellipsis"),
            ProgressBar(total=1.0, completed=point.progress if point else 0.0, width=16),
            f"{point.progress:.0%}" if point else "",
            f"loss {point.loss:.3f}" if point else "starting",
            left,
        )
    yield Text()
    yield table if table.row_count else Text(" nothing trains", style="dim")


def _latest(state: State, width: int) -> Iterator[RenderableType]:
    """The last experiments, the newest first."""
    done = [entry for entry in entries(state) if entry.decided and entry.experiment > 0][-LATEST:]
    if not done:
        return
    table = Table.grid(padding=(0, 1), pad_edge=True)
    table.add_column(justify="right")
    table.add_column(no_wrap=True, max_width=max(24, width - 34), overflow="ellipsis")
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for entry in reversed(done):
        table.add_row(*_row(entry), style=STYLES.get(entry.status, ""))
    yield Text()
    yield table


def _row(entry: Entry) -> tuple[RenderableType, ...]:
    return (
        str(entry.experiment),
        Text(entry.proposal.title),
        {"failed": "crashed"}.get(entry.status, entry.status),
        f"{entry.val_bpb:.4f}" if entry.val_bpb is not None else "",
        facts.signed(-entry.gain) if entry.gain is not None else "",
    )


def _notes(state: State, now: float) -> Iterator[RenderableType]:
    """What is out of the ordinary."""
    for waiting in state.waiting.values():
        yield Text(f" waiting {_span(waiting.until - now)}: {waiting.reason}", style="yellow", overflow="ellipsis")
    if state.stopping and not state.ended:
        yield Text(f" stopping: {state.stopping}", style="yellow")


def _span(seconds: float) -> str:
    """A time as people say it: 0:42, 7:05, 6 h 12."""
    whole = timedelta(seconds=round(max(0.0, seconds)))
    minutes, rest = divmod(int(whole.total_seconds()), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d}"


def _short(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
