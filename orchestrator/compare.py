"""Sessions side by side: what each gained, and what it took. Pure figures of their logs."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from orchestrator.events import Discarded, Failed, Kept, Promoted, Proposed, Record, Refused, Replied
from orchestrator.state import State, apply

RESAMPLES = 2_000
"""Enough for two digits of an interval."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The best so far, when it changed."""

    experiments: int
    hours: float
    usd: float
    best: float


@dataclass(frozen=True, slots=True)
class Row:
    """A session in figures."""

    name: str
    arm: str
    """Crew and style: sessions of one arm are repetitions of each other."""
    experiments: int
    kept: int
    crashes: int
    repeats: int
    families: int
    baseline: float
    best: float
    hours: float
    usd: float | None
    tokens: int
    """Read and written by all agents."""
    course: tuple[Moment, ...]

    @property
    def gain(self) -> float:
        return self.baseline - self.best

    @property
    def keep_rate(self) -> float:
        return self.kept / self.experiments if self.experiments else 0.0


def row(state: State, records: Sequence[Record]) -> Row:
    """The figures of one session. Raises ValueError where it has no baseline yet."""
    if state.best is None:
        raise ValueError(f"{state.session.name} has no baseline yet")
    started = state.session
    course = _course(records)
    verdicts = Counter(type(f.verdict) for f in state.findings if f.experiment > 0)
    judged = [f for f in state.findings if f.experiment > 0 and isinstance(f.verdict, Kept | Discarded | Failed)]
    spent = state.spent.values()
    return Row(
        name=started.name,
        arm=" ".join(filter(None, (started.crew, started.style))),
        experiments=len(judged),
        kept=verdicts[Kept],
        crashes=sum(isinstance(f.verdict, Failed) and f.verdict.failure != "hopeless" for f in judged),
        repeats=verdicts[Refused],
        families=len({f.proposal.family for f in judged}),
        baseline=course[0].best,
        best=state.best.mark,
        hours=state.hours,
        usd=None if any(s.unpriced for s in spent) else state.usd,
        tokens=sum(s.input + s.output for s in spent),
        course=course,
    )


def _course(records: Sequence[Record]) -> tuple[Moment, ...]:
    """The best so far by experiments, hours and dollars, from the baseline on."""
    state, moments = State(), list[Moment]()
    for record in records:
        state = apply(state, record)
        if state.best and isinstance(record.event, Promoted | Proposed | Replied | Kept):
            best = min(state.best.mark, moments[-1].best) if moments else state.best.mark
            tried = {*(f.experiment for f in state.findings), state.best.experiment} - {0}
            moment = Moment(len(tried), state.hours, state.usd, best)
            if not moments or moment.best < moments[-1].best:
                moments.append(moment)
    if moments:
        closed = sum(f.experiment > 0 for f in state.findings)
        moments.append(Moment(closed, state.hours, state.usd, moments[-1].best))
    return tuple(moments)


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """A 90 % bootstrap interval of the mean; of a single value, that value twice."""
    luck = random.Random(seed)  # noqa: S311 - statistics, no secret
    means = sorted(fmean(luck.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return means[RESAMPLES // 20], means[-RESAMPLES // 20]


def arms(rows: Sequence[Row]) -> Mapping[str, Sequence[Row]]:
    """Repetitions together, in the order of their first appearance."""
    return {arm: [r for r in rows if r.arm == arm] for arm in dict.fromkeys(r.arm for r in rows)}
