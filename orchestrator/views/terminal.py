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

from orchestrator.core import events as ev
from orchestrator.core.state import State, Training, get_proposal
from orchestrator.core.text import format_signed
from orchestrator.policy import noise
from orchestrator.policy.limits import estimate_run_seconds
from orchestrator.session.store import EventLog
from orchestrator.views.experiments import ExperimentRow, list_rows

LATEST = 8
"""Experiments in the live view."""
STYLES = {"kept": "bold green", "crashed": "red"} | dict.fromkeys(
    ("discarded", "pruned", "refused", "abandoned"), "dim"
)
PLAIN_SECONDS = 60.0
"""How often a run's progress is worth a line in a log file."""
Description = tuple[str, Mapping[str, object]]
"""An event in a word, and a few facts."""


@dataclass(frozen=True, slots=True)
class RunProgress:
    """Where a run stands, by its own last line."""

    granted: ev.Granted
    point: ev.Point
    rate: float
    """Tokens per second."""
    said: float
    """When it was last said in plain lines."""


class Terminal:
    """Watches a session. Use as a context: inside, the live view is up, if the console is a terminal."""

    def __init__(self, log: EventLog, console: Console, clock: Callable[[], float]) -> None:
        self.log, self.console, self.clock = log, console, clock
        lives = [record.seq for record in log.records if isinstance(record.event, ev.Started | ev.Resumed)]
        self.seen = lives[-1] if lives else 0
        self.readings: dict[int, RunProgress] = {}
        self.live = Live(get_renderable=self._view, console=console, auto_refresh=True, refresh_per_second=4)
        self.lines = make_plain_logger(console)

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
            if isinstance(record.event, ev.Scored | ev.Crashed | ev.Pruned | ev.Aborted):
                self.readings = {
                    s: r for s, r in self.readings.items() if r.granted.experiment != record.event.experiment
                }
            if not self.console.is_terminal:
                self._line(record.at, describe_event(record, self.log.state))

    def progress(self, granted: ev.Granted, point: ev.Point, rate: float) -> None:
        """A run has come so far; `rate` in tokens per second."""
        last, now = self.readings.get(granted.slot), self.clock()
        before = last.said if last and last.granted == granted else now
        due = now - before >= PLAIN_SECONDS
        self.readings[granted.slot] = RunProgress(granted, point, rate, now if due else before)
        if due and not self.console.is_terminal:
            what = {"experiment": granted.experiment, "done": f"{point.progress:.0%}", "loss": f"{point.loss:.4f}"}
            self._line(now, ("training", what))

    def say(self, text: str) -> None:
        """A word to the user, above the live view."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _line(self, at: float, told: Description | None) -> None:
        if told:
            self.lines.info(told[0], at=at, **told[1])

    def _view(self) -> RenderableType:
        return render_view(self.log.state, self.readings, self.clock(), self.console.width)


def make_plain_logger(console: Console) -> structlog.typing.FilteringBoundLogger:
    """Lines for people where there is no terminal: time, event, what is worth knowing."""

    def stamped(_: object, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
        at = datetime.fromtimestamp(line.pop("at")).astimezone()
        return {"timestamp": f"{at:%H:%M:%S}", **line}

    renderer = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=10, sort_keys=False)
    return structlog.wrap_logger(structlog.PrintLogger(cast("TextIO", console.file)), processors=[stamped, renderer])


def describe_event(record: ev.Record, state: State) -> Description | None:
    """How an event is told; None for what nobody needs to follow a night."""
    match record.event:
        case ev.Started(name=name, limits=limits, crew=crew):
            return "started", {"session": name, "crew": crew, "hours": limits.hours}
        case ev.Resumed():
            return "resumed", {"experiments": len(state.results) - 1 if state.results else 0}
        case ev.GuidanceChanged(text=text):
            return "guidance", {"text": _shorten(text, 60)}
        case ev.BaselineCommitted(commit=commit):
            return "fitted", {"commit": commit[:12]}
        case ev.Proposed(experiment=number, proposal=proposal):
            return "proposed", {"experiment": number, "title": proposal.title, "family": proposal.family}
        case ev.Committed(experiment=number, how=how, added=added, removed=removed):
            return how, {"experiment": number, "lines": f"+{added} −{removed}"}
        case ev.Granted(experiment=number, run=run, slot=slot):
            return "training", {"experiment": number, "run": run} | ({"slot": slot} if state.session.slots > 1 else {})
        case ev.Scored(experiment=number, run=run, val_bpb=score, metrics=measures):
            seconds = f"{measures.total_seconds:.0f}"
            return "scored", {"experiment": number, "run": run, "val_bpb": f"{score:.4f}", "seconds": seconds}
        case ev.Pruned(experiment=number, reason=message):
            return "ended early", {"experiment": number, "why": _shorten(message, 100)}
        case ev.Crashed(experiment=number, failure=failure, message=message):
            return "crashed", {"experiment": number, "failure": failure, "message": _shorten(message, 80)}
        case _:
            return _describe_verdict(record, state)


def _describe_verdict(record: ev.Record, state: State) -> Description | None:
    match record.event:
        case ev.Kept(experiment=0, mean=mean, sigma=sigma):
            return "baseline", {"val_bpb": f"{mean:.4f}", "sigma": f"{sigma:.4f}"}
        case (ev.Kept() | ev.Discarded()) as verdict:
            change = f"{format_signed(-verdict.gain)} ± {verdict.error:.4f}"
            what = {"experiment": verdict.experiment, "val_bpb": f"{verdict.mean:.4f}", "change": change}
            return verdict.kind, {**what, "why": verdict.reason}
        case (ev.Failed() | ev.Refused() | ev.Abandoned() | ev.Aborted()) as event:
            return event.kind, {"experiment": event.experiment, "why": _shorten(event.reason, 100)}
        case ev.Promoted(experiment=number, commit=commit) if number:
            return "promoted", {"experiment": number, "commit": commit[:12]}
        case ev.Unanswered(reason=reason):
            return "unanswered", {"why": _shorten(reason, 100)}
        case ev.Waiting(until=until, reason=reason):
            return "waiting", {"seconds": f"{until - record.at:.0f}", "why": _shorten(reason, 100)}
        case ev.StopAsked(reason=reason):
            return "stopping", {"why": reason}
        case ev.Ended(reason=reason):
            return "ended", {"why": reason, "kept": len(state.kept)}
        case _:
            return None


def render_view(state: State, readings: Mapping[int, RunProgress], now: float, width: int = 80) -> RenderableType:
    """The live view: where the session stands, what trains, what came of the last experiments."""
    if state.started is None:
        return Text("")
    return Group(
        Text(),
        _render_headline(state, now),
        *_render_slots(state, readings, now, width),
        *_render_latest(state, width),
        *_render_notices(state, now),
    )


def _render_headline(state: State, now: float) -> Text:
    limits, best = state.session.limits, state.incumbent
    tried = sum(result.experiment > 0 for result in state.results)
    text = Text(overflow="ellipsis", no_wrap=True)
    text.append(f" {state.session.name}", style="bold")
    if best and state.results:
        baseline = state.results[0].val_bpb or best.score_to_beat
        text.append(f"   {baseline:.4f} → ")
        text.append(f"{best.score_to_beat:.4f}", style="bold green" if best.experiment else "bold")
        text.append(f"  σ {noise.compute_sigma(noise.pool_variance(state)):.4f}", style="dim")
    text.append(f"   {tried}{f' of {limits.experiments}' if limits.experiments else ''} tried, {len(state.kept)} kept")
    text.append(f"   {_format_span(max(0.0, state.deadline - now))} left")
    if state.usd or limits.usd:
        text.append(f"   ${state.usd:.2f}" + (f" of ${limits.usd:g}" if limits.usd else ""))
    return text


def _render_slots(
    state: State, readings: Mapping[int, RunProgress], now: float, width: int
) -> Iterator[RenderableType]:
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
        title = get_proposal(stage).title if isinstance(stage, Training) else "the best once more"
        run = f" (run {granted.run})" if granted.run > 1 else ""
        left = _format_span(estimate_run_seconds(state) - (now - stage.since)) if isinstance(stage, Training) else ""
        table.add_row(
            Text(f"{number}{run} {title}", overflow="ellipsis"),
            ProgressBar(total=1.0, completed=point.progress if point else 0.0, width=16),
            f"{point.progress:.0%}" if point else "",
            f"loss {point.loss:.3f}" if point else "starting",
            left,
        )
    yield Text()
    yield table if table.row_count else Text(" nothing trains", style="dim")


def _render_latest(state: State, width: int) -> Iterator[RenderableType]:
    """The last experiments, the newest first."""
    done = [entry for entry in list_rows(state) if entry.decided and entry.experiment > 0][-LATEST:]
    if not done:
        return
    table = Table.grid(padding=(0, 1), pad_edge=True)
    table.add_column(justify="right")
    table.add_column(no_wrap=True, max_width=max(24, width - 34), overflow="ellipsis")
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for entry in reversed(done):
        table.add_row(*_make_cells(entry), style=STYLES.get(entry.status, ""))
    yield Text()
    yield table


def _make_cells(entry: ExperimentRow) -> tuple[RenderableType, ...]:
    return (
        str(entry.experiment),
        Text(entry.proposal.title),
        entry.status,
        f"{entry.val_bpb:.4f}" if entry.val_bpb is not None else "",
        format_signed(-entry.gain) if entry.gain is not None else "",
    )


def _render_notices(state: State, now: float) -> Iterator[RenderableType]:
    """What is out of the ordinary."""
    for waiting in state.waiting.values():
        yield Text(
            f" waiting {_format_span(waiting.until - now)}: {waiting.reason}", style="yellow", overflow="ellipsis"
        )
    if state.stopping and not state.ended:
        yield Text(f" stopping: {state.stopping}", style="yellow")


def _format_span(seconds: float) -> str:
    """A time as people say it: 0:42, 7:05, 6 h 12."""
    whole = timedelta(seconds=round(max(0.0, seconds)))
    minutes, rest = divmod(int(whole.total_seconds()), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d}"


def _shorten(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
