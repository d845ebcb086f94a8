"""Measure when each slot held which run, and how busy the slots were, from a session's records."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import attrgetter
from typing import Literal

from orchestrator.core import events as ev


@dataclass(frozen=True, slots=True)
class Run:
    """A training run in a slot, in seconds since the epoch; an unfinished one ends at the last record."""

    experiment: int
    run: int
    slot: int
    start: float
    end: float
    outcome: Literal["training", "scored", "crashed", "pruned", "aborted", "vetoed", "cut off"] = "training"
    train_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Utilization:
    """Use of the slots from the first run's start to the last run's end, without time between resumptions."""

    occupancy: float = 0.0  # share of slot time with a run, 0 to 1
    duty: float = 0.0  # share of slot time in budgeted training, 0 to 1


def list_runs(records: Iterable[ev.Record]) -> list[Run]:
    """Return all runs, ordered by start."""
    closed, held, now = list[Run](), dict[tuple[int, int], Run](), 0.0
    for record in records:
        match record.event:
            case ev.Granted(experiment=number, run=run, slot=slot):
                held[number, run] = Run(number, run, slot, record.at, record.at)
            case ev.Scored() | ev.Crashed() | ev.Pruned() | ev.Aborted() as event:
                if ended := held.pop((event.experiment, event.run), None):
                    trained = 0.0 if isinstance(event, ev.Aborted) else event.metrics.train_seconds
                    closed.append(replace(ended, end=record.at, outcome=event.kind, train_seconds=trained))
            case ev.Vetoed(experiment=number):
                ended = [held.pop(key) for key in [*held] if key[0] == number]
                closed += (replace(run, end=record.at, outcome="vetoed") for run in ended)
            case ev.Resumed() | ev.Forked():
                closed += (replace(run, end=now, outcome="cut off") for run in held.values())
                held.clear()
            case _:
                pass
        now = record.at
    return sorted([*closed, *(replace(run, end=now) for run in held.values())], key=attrgetter("start"))


def measure_utilization(records: Sequence[ev.Record], slots: int, runs: Sequence[Run] | None = None) -> Utilization:
    """Return the use of a session's slots by its runs, without the time in which no orchestrator ran."""
    held = list_runs(records) if runs is None else runs
    first, last = min((run.start for run in held), default=0.0), max((run.end for run in held), default=0.0)
    away = [(old.at, new.at) for old, new in pairwise(records) if isinstance(new.event, ev.Resumed | ev.Forked)]
    seconds = last - first - sum(max(0.0, min(end, last) - max(start, first)) for start, end in away)
    if seconds <= 0:
        return Utilization()
    busy = sum(run.end - run.start for run in held)
    trained = sum(run.train_seconds for run in held)
    return Utilization(busy / seconds / slots, trained / seconds / slots)
