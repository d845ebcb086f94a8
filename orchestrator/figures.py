"""Figures of a session from its records: who ran when, how busy the slots were, how a loss curve stood at a moment."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from orchestrator.events import Aborted, Audit, Crashed, Forked, Granted, Point, Record, Replied, Resumed, Scored
from orchestrator.state import Spent


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
class Use:
    """How the slots were used between the first run's start and the last run's end, time away left out."""

    seconds: float = 0.0
    occupancy: float = 0.0
    """Share of the time in which a slot held a run, 0 to 1."""
    duty: float = 0.0
    """Budgeted training over that time, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Trust:
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
    hopeless: int = 0
    """Runs that were ended early."""
    reprieved: int = 0
    """Runs that would have been, but were let finish."""
    wrong: int = 0
    """Of these, those that ended as good as the best."""


def trust(records: Iterable[Record], alarms: tuple[int, int] = (0, 0)) -> Trust:
    """What the audits of a session came to; `alarms` as the policy counts them."""
    found = Trust(reprieved=alarms[0], wrong=alarms[1])
    for record in records:
        match record.event:
            case Scored(audit=Audit() as audit, val_bpb=score):
                correction = max(found.correction, abs(score - audit.claimed))
                found = replace(found, audited=found.audited + 1, correction=correction)
            case Crashed(failure="disqualified", experiment=number) if number not in found.disqualified:
                found = replace(found, disqualified=(*found.disqualified, number))
            case Crashed(failure="hopeless"):
                found = replace(found, hopeless=found.hopeless + 1)
            case _:
                pass
        if isinstance(record.event, Scored | Crashed):
            found = replace(found, tiers=found.tiers | {record.event.tier})
        if isinstance(record.event, Scored) and record.event.confirmed is not None:
            found = replace(found, confirmed=found.confirmed + 1)
    return found


def runs(records: Iterable[Record]) -> list[Run]:
    """All runs in the order of their start."""
    found: list[Run] = []
    open_: dict[tuple[int, int], int] = {}
    now = 0.0
    for record in records:
        before, now = now, record.at
        match record.event:
            case Granted(experiment=number, run=run, slot=slot, seed=seed):
                open_[number, run] = len(found)
                found.append(Run(number, run, slot, seed, now, now, "training"))
            case (Scored() | Crashed() | Aborted()) as event if (event.experiment, event.run) in open_:
                at = open_.pop((event.experiment, event.run))
                found[at] = _ended(found[at], event, now)
            case Resumed() | Forked():
                for at in open_.values():
                    found[at] = replace(found[at], end=before, outcome="cut off")
                open_ = {}
            case _:
                pass
    for at in open_.values():
        found[at] = replace(found[at], end=now)
    return found


def use(records: Sequence[Record], slots: int) -> Use:
    """Occupancy and duty of a session's slots."""
    held = runs(records)
    if not held:
        return Use()
    first, last = min(run.start for run in held), max(run.end for run in held)
    seconds = last - first - _away(records, first, last)
    if seconds <= 0:
        return Use()
    busy = sum(run.end - run.start for run in held)
    trained = sum(run.train_seconds for run in held)
    return Use(seconds, busy / seconds / slots, trained / seconds / slots)


def spent_on(records: Iterable[Record]) -> dict[int, Spent]:
    """What the agents used for each experiment."""
    found: dict[int, Spent] = {}
    for record in records:
        if isinstance(reply := record.event, Replied):
            found[reply.experiment] = found.get(reply.experiment, Spent()).plus(reply)
    return found


def loss_at(curve: Sequence[Point], progress: float) -> float | None:
    """The loss at this share of the budget, between two points by a straight line; None outside the curve."""
    after = bisect_left(curve, progress, key=lambda point: point.progress)
    if after == len(curve) or (after == 0 and curve[0].progress > progress):
        return None
    right = curve[after]
    if after == 0 or right.progress == progress:
        return right.loss
    left = curve[after - 1]
    share = (progress - left.progress) / (right.progress - left.progress)
    return left.loss + share * (right.loss - left.loss)


def thinned(curve: Sequence[Point], most: int) -> list[Point]:
    """At most so many points of a curve, evenly taken, the last one included."""
    if len(curve) <= most:
        return list(curve)
    return [curve[round(i * (len(curve) - 1) / (most - 1))] for i in range(most)]


def _ended(run: Run, event: Scored | Crashed | Aborted, now: float) -> Run:
    if isinstance(event, Aborted):
        return replace(run, end=now, outcome="aborted")
    score = event.val_bpb if isinstance(event, Scored) else None
    outcome = "scored" if isinstance(event, Scored) else "crashed"
    return replace(run, end=now, outcome=outcome, train_seconds=event.measures.train_seconds, val_bpb=score)


def _away(records: Sequence[Record], first: float, last: float) -> float:
    """Seconds within an interval in which no orchestrator was alive."""
    gaps = [(before.at, after.at) for before, after in pairwise(records) if isinstance(after.event, Resumed | Forked)]
    return sum(max(0.0, min(end, last) - max(start, first)) for start, end in gaps)
