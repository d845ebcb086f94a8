"""Figures of a session from its records: who ran when, how busy the slots were, how a loss curve stood at a moment."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from orchestrator.core import events as ev
from orchestrator.core.state import Usage


@dataclass(frozen=True, slots=True)
class Run:
    """One training in one slot, in seconds since the epoch; one under way ends, so far, with the last record."""

    experiment: int
    run: int
    slot: int
    seed: int
    start: float
    end: float
    outcome: Literal["training", "scored", "crashed", "aborted", "cut off"]
    train_seconds: float = 0.0
    val_bpb: float | None = None


@dataclass(frozen=True, slots=True)
class Utilization:
    """How the slots were used between the first run's start and the last run's end, time away left out."""

    seconds: float = 0.0
    occupancy: float = 0.0
    """Share of the time in which a slot held a run, 0 to 1."""
    duty: float = 0.0
    """Budgeted training over that time, 0 to 1."""


@dataclass(frozen=True, slots=True)
class TrustSummary:
    """What was done so that the scores can be believed."""

    audited: int = 0
    """Scores that a second, blind process confirmed or corrected."""
    correction: float = 0.0
    """The largest, in bits per byte."""
    disqualified: tuple[int, ...] = ()
    """Experiments whose scores were not believed."""
    tiers: frozenset[str] = frozenset()
    """The sandboxes that runs were shut in."""
    confirmed: int = 0
    """Runs that were examined on text that no decision had used."""
    pruned: int = 0
    """Runs that were ended early."""
    control_run: int = 0
    """Runs that would have been, but were let finish."""
    wrong: int = 0
    """Of these, those that ended as good as the best."""


def summarize_trust(records: Iterable[ev.Record], alarms: tuple[int, int] = (0, 0)) -> TrustSummary:
    """What the audits of a session came to; `alarms` as the policy counts them."""
    found = TrustSummary(control_run=alarms[0], wrong=alarms[1])
    for record in records:
        match record.event:
            case ev.Scored(audit=ev.Audit() as audit, val_bpb=score):
                correction = max(found.correction, abs(score - audit.claimed))
                found = replace(found, audited=found.audited + 1, correction=correction)
            case ev.Crashed(failure="disqualified", experiment=number) if number not in found.disqualified:
                found = replace(found, disqualified=(*found.disqualified, number))
            case ev.Pruned():
                found = replace(found, pruned=found.pruned + 1)
            case _:
                pass
        if isinstance(record.event, ev.Scored | ev.Crashed | ev.Pruned):
            found = replace(found, tiers=found.tiers | {record.event.tier})
        if isinstance(record.event, ev.Scored) and record.event.confirmed is not None:
            found = replace(found, confirmed=found.confirmed + 1)
    return found


def list_runs(records: Iterable[ev.Record]) -> list[Run]:
    """All runs in the order of their start."""
    found: list[Run] = []
    open_: dict[tuple[int, int], int] = {}
    now = 0.0
    for record in records:
        before, now = now, record.at
        match record.event:
            case ev.Granted(experiment=number, run=run, slot=slot, seed=seed):
                open_[number, run] = len(found)
                found.append(Run(number, run, slot, seed, now, now, "training"))
            case (ev.Scored() | ev.Crashed() | ev.Pruned() | ev.Aborted()) as event if (
                event.experiment,
                event.run,
            ) in open_:
                at = open_.pop((event.experiment, event.run))
                found[at] = _end_run(found[at], event, now)
            case ev.Resumed() | ev.Forked():
                for at in open_.values():
                    found[at] = replace(found[at], end=before, outcome="cut off")
                open_ = {}
            case _:
                pass
    for at in open_.values():
        found[at] = replace(found[at], end=now)
    return found


def measure_utilization(records: Sequence[ev.Record], slots: int) -> Utilization:
    """Occupancy and duty of a session's slots."""
    held = list_runs(records)
    if not held:
        return Utilization()
    first, last = min(run.start for run in held), max(run.end for run in held)
    seconds = last - first - _sum_absence(records, first, last)
    if seconds <= 0:
        return Utilization()
    busy = sum(run.end - run.start for run in held)
    trained = sum(run.train_seconds for run in held)
    return Utilization(seconds, busy / seconds / slots, trained / seconds / slots)


def sum_usage(records: Iterable[ev.Record]) -> dict[int, Usage]:
    """What the agents used for each experiment."""
    found: dict[int, Usage] = {}
    for record in records:
        if isinstance(reply := record.event, ev.ModelReplied):
            found[reply.experiment] = found.get(reply.experiment, Usage()).add(reply)
    return found


def _end_run(run: Run, event: ev.Scored | ev.Crashed | ev.Pruned | ev.Aborted, now: float) -> Run:
    if isinstance(event, ev.Aborted):
        return replace(run, end=now, outcome="aborted")
    score = event.val_bpb if isinstance(event, ev.Scored) else None
    outcome = "scored" if isinstance(event, ev.Scored) else "crashed"
    return replace(run, end=now, outcome=outcome, train_seconds=event.metrics.train_seconds, val_bpb=score)


def _sum_absence(records: Sequence[ev.Record], first: float, last: float) -> float:
    """Seconds within an interval in which no orchestrator was alive."""
    gaps = [
        (before.at, after.at) for before, after in pairwise(records) if isinstance(after.event, ev.Resumed | ev.Forked)
    ]
    return sum(max(0.0, min(end, last) - max(start, first)) for start, end in gaps)
