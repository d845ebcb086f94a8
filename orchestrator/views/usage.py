"""Measure from a session's records who ran when, how busy the slots were, what agents used, and what was checked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from orchestrator.core import events as ev
from orchestrator.core.state import Usage


@dataclass(frozen=True, slots=True)
class Run:
    """One training in one slot, in seconds since the epoch; one that is under way ends with the last record so far."""

    experiment: int
    run: int
    slot: int
    seed: int
    start: float
    end: float
    outcome: Literal["training", "scored", "crashed", "pruned", "aborted", "cut off"]
    train_seconds: float = 0.0
    val_bpb: float | None = None


@dataclass(frozen=True, slots=True)
class Utilization:
    """Use of the slots between the first run's start and the last run's end, without the time away."""

    seconds: float = 0.0
    occupancy: float = 0.0
    """Share of the time in which a slot held a run, 0 to 1."""
    duty: float = 0.0
    """Share of the time that was budgeted training, 0 to 1."""


@dataclass(frozen=True, slots=True)
class TrustSummary:
    """What was done so that the scores can be believed."""

    audited: int = 0
    """Scores that a second, blind process confirmed or corrected."""
    correction: float = 0.0
    """Bits per byte of the largest correction."""
    disqualified: tuple[int, ...] = ()
    """Experiments whose scores were not believed."""
    tiers: frozenset[str] = frozenset()
    """Sandbox tiers that runs were confined by."""
    confirmed: int = 0
    """Runs that were scored on the held-out text, too."""
    pruned: int = 0
    control_runs: int = 0
    """Runs that would have been pruned, but were let finish."""
    false_prunes: int = 0
    """Control runs that ended as good as the incumbent."""


def summarize_trust(records: Iterable[ev.Record], controls: tuple[int, int] = (0, 0)) -> TrustSummary:
    """Return what audits and control runs found; `controls` are control runs and false prunes as the policy counts."""
    events = [record.event for record in records]
    scored = [event for event in events if isinstance(event, ev.Scored)]
    crashed = [event for event in events if isinstance(event, ev.Crashed)]
    pruned = [event for event in events if isinstance(event, ev.Pruned)]
    corrections = [abs(score.val_bpb - score.audit.claimed) for score in scored if score.audit]
    disqualified = [crash.experiment for crash in crashed if crash.failure == "disqualified"]
    return TrustSummary(
        audited=len(corrections),
        correction=max(corrections, default=0.0),
        disqualified=tuple(dict.fromkeys(disqualified)),
        tiers=frozenset(run.tier for run in (*scored, *crashed, *pruned)),
        confirmed=sum(score.confirmed is not None for score in scored),
        pruned=len(pruned),
        control_runs=controls[0],
        false_prunes=controls[1],
    )


def list_runs(records: Iterable[ev.Record]) -> list[Run]:
    """Return all runs in the order of their start."""
    runs: list[Run] = []
    open_: dict[tuple[int, int], int] = {}
    now = 0.0
    for record in records:
        before, now = now, record.at
        match record.event:
            case ev.Granted(experiment=number, run=run, slot=slot, seed=seed):
                open_[number, run] = len(runs)
                runs.append(Run(number, run, slot, seed, now, now, "training"))
            case ev.Scored() | ev.Crashed() | ev.Pruned() | ev.Aborted() as event:
                if (at := open_.pop((event.experiment, event.run), None)) is not None:
                    runs[at] = _end_run(runs[at], event, now)
            case ev.Resumed() | ev.Forked():
                for at in open_.values():
                    runs[at] = replace(runs[at], end=before, outcome="cut off")
                open_ = {}
            case _:
                pass
    for at in open_.values():
        runs[at] = replace(runs[at], end=now)
    return runs


def measure_utilization(records: Sequence[ev.Record], slots: int) -> Utilization:
    """Return occupancy and duty of a session's slots."""
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
    """Return what the agents used for each experiment."""
    found: dict[int, Usage] = {}
    for record in records:
        if isinstance(reply := record.event, ev.ModelReplied):
            found[reply.experiment] = found.get(reply.experiment, Usage()).add(reply)
    return found


def _end_run(run: Run, event: ev.Outcome, now: float) -> Run:
    match event:
        case ev.Scored(val_bpb=score, metrics=metrics):
            return replace(run, end=now, outcome="scored", train_seconds=metrics.train_seconds, val_bpb=score)
        case ev.Crashed(metrics=metrics) | ev.Pruned(metrics=metrics):
            return replace(run, end=now, outcome=event.kind, train_seconds=metrics.train_seconds)
        case ev.Aborted():
            return replace(run, end=now, outcome="aborted")


def _sum_absence(records: Sequence[ev.Record], first: float, last: float) -> float:
    """Return the seconds within an interval in which no orchestrator was alive."""
    gaps = [
        (before.at, after.at) for before, after in pairwise(records) if isinstance(after.event, ev.Resumed | ev.Forked)
    ]
    return sum(max(0.0, min(end, last) - max(start, first)) for start, end in gaps)
