"""The state of a session is a fold over its records.

An experiment is always in one stage, and each stage is a type that holds what is known by then.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from math import fsum
from statistics import fmean

from orchestrator.events import (
    Abandoned,
    Aborted,
    Closed,
    Committed,
    Crashed,
    Discarded,
    Ended,
    Failed,
    Fitted,
    Forked,
    Granted,
    Guided,
    Kept,
    Opened,
    Outcome,
    Postmortem,
    Promoted,
    Proposal,
    Proposed,
    Record,
    Reflected,
    Refused,
    Replied,
    Resumed,
    Scored,
    Started,
    StopAsked,
    Unanswered,
    Used,
    Verdict,
    Waiting,
)

BASELINE = Proposal(
    title="baseline",
    hypothesis="train.py, fitted to this machine, sets the mark that everything else is measured against.",
    rationale="Runs with several seeds show how far luck alone moves the score.",
    expected_delta=0.0,
    family="other",
    instructions="Change nothing.",
    author="nightshift",
)


@dataclass(frozen=True, slots=True)
class Idea:
    """Proposed, not yet implemented."""

    proposal: Proposal


@dataclass(frozen=True, slots=True)
class Candidate:
    """An edited train.py that waits for a run, or for the judge."""

    proposal: Proposal
    made: Committed
    scores: tuple[Scored, ...] = ()
    runs: int = 0
    """Grants so far, aborted ones included."""
    repairs: int = 0

    @property
    def mean(self) -> float:
        return _mean(self.scores)


@dataclass(frozen=True, slots=True)
class Training:
    """A run is under way."""

    candidate: Candidate
    granted: Granted
    since: float


@dataclass(frozen=True, slots=True)
class Broken:
    """The last run crashed."""

    candidate: Candidate
    crash: Crashed


@dataclass(frozen=True, slots=True)
class Remeasuring:
    """The incumbent runs once more, since a close comparison needs both sides known equally well."""

    granted: Granted
    since: float


@dataclass(frozen=True, slots=True)
class Decided:
    """Judged; to be promoted if it was kept, and reflected upon."""

    candidate: Candidate
    verdict: Verdict
    crash: Crashed | None
    against: int
    promoted: bool = False


Stage = Idea | Candidate | Training | Broken | Remeasuring | Decided


@dataclass(frozen=True, slots=True)
class Finding:
    """A closed experiment, as everybody later sees it."""

    experiment: int
    proposal: Proposal
    verdict: Verdict | Refused | Abandoned
    scores: tuple[Scored, ...]
    made: Committed | None
    crash: Crashed | None
    postmortem: Postmortem | None
    against: int
    """The experiment that was best when this one was judged."""

    @property
    def val_bpb(self) -> float | None:
        return _mean(self.scores) if self.scores else None


@dataclass(frozen=True, slots=True)
class Base:
    """A train.py on the research branch: what candidates start from."""

    experiment: int
    commit: str
    source: str


@dataclass(frozen=True, slots=True)
class Best:
    """The incumbent: what must be beaten."""

    experiment: int
    scores: tuple[Scored, ...]
    mark: float
    """The mean val_bpb to beat."""
    runs: int
    """Grants so far."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Squares of deviations from their own mean, pooled over everything that ran more than once."""

    squares: float = 0.0
    freedom: int = 0

    def plus(self, scores: tuple[Scored, ...]) -> "Spread":
        """With the deviations of these runs of one candidate."""
        more = _deviations(scores)
        return Spread(self.squares + more.squares, self.freedom + more.freedom)

    def minus(self, scores: tuple[Scored, ...]) -> "Spread":
        """Without them."""
        less = _deviations(scores)
        return Spread(self.squares - less.squares, self.freedom - less.freedom)


def _deviations(scores: tuple[Scored, ...]) -> Spread:
    if len(scores) < 2:
        return Spread()
    mean = fmean(score.val_bpb for score in scores)
    return Spread(fsum((score.val_bpb - mean) ** 2 for score in scores), len(scores) - 1)


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens and dollars of one agent."""

    input: int = 0
    cached: int = 0
    output: int = 0
    usd: float = 0.0
    unpriced: int = 0
    """Requests whose price is not known."""

    def plus(self, reply: Replied) -> "Spent":
        tokens = reply.tokens
        return Spent(
            self.input + tokens.input + tokens.cache_write + tokens.cache_read,
            self.cached + tokens.cache_read,
            self.output + tokens.output,
            self.usd + (reply.usd or 0.0),
            self.unpriced + (reply.usd is None),
        )


@dataclass(frozen=True, slots=True)
class State:
    """Everything that is known of a session."""

    started: Started | None = None
    parent: str = ""
    """`session@event` that this one was forked at."""
    started_at: float = 0.0
    now: float = 0.0
    away: float = 0.0
    """Seconds between a death and its resumption; they do not count."""
    fitted: Fitted | None = None
    open: Mapping[int, Stage] = field(default_factory=dict[int, Stage])
    findings: tuple[Finding, ...] = ()
    bases: Mapping[int, Base] = field(default_factory=dict[int, Base])
    """The baseline and everything kept, by experiment."""
    best: Best | None = None
    spread: Spread = Spread()
    next: int = 1
    """The number of the next experiment; 0 is the baseline."""
    unanswered: int = 0
    """Rounds without an answer from the researcher, in a row."""
    silence: str = ""
    """Why there was none."""
    aborted: int = 0
    """Runs lost to the machine, in a row."""
    unreflected: int = 0
    """Experiments since the last post-mortem."""
    run_seconds: tuple[float, ...] = ()
    """Wall seconds of the latest runs."""
    spent: Mapping[str, Spent] = field(default_factory=dict[str, Spent])
    waiting: Mapping[str, Waiting] = field(default_factory=dict[str, Waiting])
    guidance: str = ""
    stopping: str = ""
    ended: str = ""

    @property
    def session(self) -> Started:
        assert self.started is not None, "a session begins with Started"
        return self.started

    @property
    def deadline(self) -> float:
        return self.started_at + self.away + 3600 * self.session.limits.hours

    @property
    def hours(self) -> float:
        """That have been spent."""
        return (self.now - self.started_at - self.away) / 3600

    @property
    def base(self) -> Base:
        """What a new candidate starts from."""
        return self.bases[self.best.experiment if self.best else 0]

    @property
    def usd(self) -> float:
        return sum(spent.usd for spent in self.spent.values())

    @property
    def kept(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if isinstance(f.verdict, Kept) and f.experiment > 0)


def proposal_of(stage: Stage) -> Proposal:
    """What a stage came from."""
    match stage:
        case Idea(proposal) | Candidate(proposal):
            return proposal
        case Training(candidate) | Broken(candidate) | Decided(candidate):
            return candidate.proposal
        case Remeasuring():
            return BASELINE


def fold(records: Iterable[Record], state: State | None = None) -> State:
    """The state after all of them. Raises ValueError where an event cannot follow what came before."""
    return reduce(apply, records, state or State())


def apply(state: State, record: Record) -> State:
    """The state after one more record."""
    before, state = state.now, replace(state, now=record.at)
    match record.event:
        case Started() as event:
            return replace(state, started=event, started_at=record.at)
        case Resumed():
            return _revived(replace(state, away=state.away + record.at - before))
        case Forked() as event:
            changes = event.model_dump(exclude={"kind", "parent", "limits"})
            started = state.session.model_copy(update={**changes, "limits": event.limits})
            return _revived(replace(state, started=started, parent=event.parent, away=state.away + record.at - before))
        case Guided(text=text):
            return replace(state, guidance=text)
        case StopAsked(reason=reason):
            return replace(state, stopping=reason)
        case Ended(reason=reason):
            return replace(state, ended=reason)
        case Unanswered(reason=reason):
            return replace(state, unanswered=state.unanswered + 1, silence=reason)
        case Waiting() as event:
            return replace(state, waiting={**state.waiting, record.lane: event})
        case Replied(agent=agent) as event:
            spent = {**state.spent, agent: state.spent.get(agent, Spent()).plus(event)}
            waiting = {lane: value for lane, value in state.waiting.items() if lane != record.lane}
            return replace(state, spent=spent, waiting=waiting)
        case Opened() | Used():
            return state
        case Fitted() as event:
            bases = {0: Base(0, event.commit, event.source)}
            return replace(_at(state, 0, _baseline(event)), fitted=event, bases=bases)
        case Proposed(experiment=number, proposal=proposal):
            return replace(_at(state, number, Idea(proposal)), next=number + 1, unanswered=0)
        case event:
            return _advance(state, record, event.experiment, state.open.get(event.experiment))


def _advance(state: State, record: Record, number: int, stage: Stage | None) -> State:
    """One experiment goes from one stage to the next."""
    against = state.best.experiment if state.best else 0
    match record.event, stage:
        case (Refused() | Abandoned()) as verdict, Idea(proposal):
            return _close(state, Finding(number, proposal, verdict, (), None, None, None, against))
        case (Refused() | Abandoned()) as verdict, Candidate(proposal, made) | Broken(Candidate(proposal, made)):
            return _close(state, Finding(number, proposal, verdict, (), made, None, None, against))
        case Committed() as made, Idea(proposal):
            return _at(state, number, Candidate(proposal, made))
        case Committed() as made, Candidate() as old:
            return _at(state, number, replace(old, made=made, scores=()))
        case Committed() as made, Broken(old):
            return _at(state, number, replace(old, made=made, scores=(), repairs=old.repairs + 1))
        case Granted() as granted, Candidate() as candidate:
            return _at(state, number, Training(replace(candidate, runs=granted.run), granted, record.at))
        case Aborted(), Training(candidate):
            return replace(_at(state, number, candidate), aborted=state.aborted + 1)
        case Scored() as score, Training(candidate, _, since):
            seconds = (*state.run_seconds[-4:], record.at - since)
            candidate = replace(candidate, scores=(*candidate.scores, score))
            return replace(_at(state, number, candidate), run_seconds=seconds, aborted=0)
        case Crashed() as crash, Training(candidate):
            return replace(_at(state, number, Broken(candidate, crash)), aborted=0)
        case Granted() as granted, None:
            assert state.best is not None, "only the incumbent runs again after it was judged"
            best = replace(state.best, runs=granted.run)
            return replace(_at(state, number, Remeasuring(granted, record.at)), best=best)
        case (Scored() | Crashed() | Aborted()) as outcome, Remeasuring():
            return _remeasured(_leave(state, number), outcome)
        case Failed() as verdict, Broken(candidate, crash):
            return _at(state, number, Decided(candidate, verdict, crash, against))
        case (Kept() | Discarded()) as verdict, Candidate() as candidate:
            spread = state.spread.plus(candidate.scores)
            return replace(_at(state, number, Decided(candidate, verdict, None, against)), spread=spread)
        case Promoted(commit=commit), Decided(candidate) as decided:
            mark = decided.verdict.mark if isinstance(decided.verdict, Kept) else candidate.mean
            best = Best(number, candidate.scores, mark, candidate.runs)
            bases = {**state.bases, number: Base(number, commit, candidate.made.source)}
            return replace(_at(state, number, replace(decided, promoted=True)), best=best, bases=bases)
        case Reflected(postmortem=postmortem), Decided() as decided:
            return replace(_close(state, _finding(number, decided, postmortem)), unreflected=0)
        case Closed(), Decided() as decided:
            return replace(_close(state, _finding(number, decided, None)), unreflected=state.unreflected + 1)
        case _:
            raise ValueError(f"record {record.seq}: {record.event.kind} cannot follow {type(stage).__name__}")


def _baseline(event: Fitted) -> Candidate:
    made = Committed(
        experiment=0,
        commit=event.commit,
        base=0,
        source=event.source,
        fingerprint=event.fingerprint,
        added=0,
        removed=0,
    )
    return Candidate(BASELINE, made)


def _finding(number: int, decided: Decided, postmortem: Postmortem | None) -> Finding:
    candidate = decided.candidate
    return Finding(
        number,
        candidate.proposal,
        decided.verdict,
        candidate.scores,
        candidate.made,
        decided.crash,
        postmortem,
        decided.against,
    )


def _at(state: State, number: int, stage: Stage) -> State:
    return replace(state, open={**state.open, number: stage})


def _leave(state: State, number: int) -> State:
    return replace(state, open={other: stage for other, stage in state.open.items() if other != number})


def _close(state: State, finding: Finding) -> State:
    state = _leave(state, finding.experiment)
    return replace(state, findings=(*state.findings, finding))


def _remeasured(state: State, outcome: Outcome) -> State:
    """The incumbent is known better now, unless the run came to nothing."""
    best = state.best
    assert best is not None
    if not isinstance(outcome, Scored):
        return replace(state, aborted=state.aborted + isinstance(outcome, Aborted))
    if outcome.experiment != best.experiment:
        return state
    scores = (*best.scores, outcome)
    old, new = _mean(best.scores), _mean(scores)
    mark = new if best.mark == old else best.mark
    spread = state.spread.minus(best.scores).plus(scores)
    return replace(state, best=replace(best, scores=scores, mark=mark), spread=spread, aborted=0)


def _mean(scores: tuple[Scored, ...]) -> float:
    return fmean(score.val_bpb for score in scores)


def _revived(state: State) -> State:
    """After a death: a run that was under way is to be granted again, and a request to stop is forgotten."""
    stages = {
        number: stage.candidate if isinstance(stage, Training) else stage
        for number, stage in state.open.items()
        if not isinstance(stage, Remeasuring)
    }
    return replace(state, open=stages, waiting={}, stopping="", ended="", unanswered=0, aborted=0)
