"""The state of a session is a fold over its records.

An experiment is always in one stage, and each stage is a type that holds what is known by then.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from math import fsum
from statistics import fmean

from orchestrator.core import events as ev

BASELINE = ev.Proposal(
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

    proposal: ev.Proposal


@dataclass(frozen=True, slots=True)
class Candidate:
    """An edited train.py that waits for a run, or for the judge."""

    proposal: ev.Proposal
    commit: ev.Committed
    scores: tuple[ev.Scored, ...] = ()
    runs: int = 0
    """Grants so far, aborted ones included."""
    repairs: int = 0

    @property
    def mean(self) -> float:
        return _average(self.scores)


@dataclass(frozen=True, slots=True)
class Training:
    """A run is under way."""

    candidate: Candidate
    granted: ev.Granted
    since: float


@dataclass(frozen=True, slots=True)
class Broken:
    """The last run crashed."""

    candidate: Candidate
    crash: ev.Crashed


@dataclass(frozen=True, slots=True)
class Remeasuring:
    """The incumbent runs once more, since a close comparison needs both sides known equally well."""

    granted: ev.Granted
    since: float


@dataclass(frozen=True, slots=True)
class Decided:
    """Judged; to be promoted if it was kept, and reflected upon."""

    candidate: Candidate
    verdict: ev.Verdict
    crash: ev.Crashed | None
    incumbent: int
    promoted: bool = False


Stage = Idea | Candidate | Training | Broken | Remeasuring | Decided


@dataclass(frozen=True, slots=True)
class ExperimentResult:
    """A closed experiment, as everybody later sees it."""

    experiment: int
    proposal: ev.Proposal
    verdict: ev.Verdict | ev.Refused | ev.Abandoned
    scores: tuple[ev.Scored, ...]
    commit: ev.Committed | None
    crash: ev.Crashed | None
    postmortem: ev.Postmortem | None
    incumbent: int
    """The experiment that was best when this one was judged."""

    @property
    def val_bpb(self) -> float | None:
        return _average(self.scores) if self.scores else None


@dataclass(frozen=True, slots=True)
class Parent:
    """A train.py on the research branch: what candidates start from."""

    experiment: int
    commit: str
    source: str


@dataclass(frozen=True, slots=True)
class Incumbent:
    """The incumbent: what must be beaten."""

    experiment: int
    scores: tuple[ev.Scored, ...]
    score_to_beat: float
    """The mean val_bpb to beat."""
    runs: int
    """Grants so far."""


@dataclass(frozen=True, slots=True)
class PooledVariance:
    """Squares of deviations from their own mean, pooled over everything that ran more than once."""

    squares: float = 0.0
    dof: int = 0

    def plus(self, scores: tuple[ev.Scored, ...]) -> "PooledVariance":
        """With the deviations of these runs of one candidate."""
        more = _sum_deviations(scores)
        return PooledVariance(self.squares + more.squares, self.dof + more.dof)

    def minus(self, scores: tuple[ev.Scored, ...]) -> "PooledVariance":
        """Without them."""
        less = _sum_deviations(scores)
        return PooledVariance(self.squares - less.squares, self.dof - less.dof)


def _sum_deviations(scores: tuple[ev.Scored, ...]) -> PooledVariance:
    if len(scores) < 2:
        return PooledVariance()
    mean = fmean(score.val_bpb for score in scores)
    return PooledVariance(fsum((score.val_bpb - mean) ** 2 for score in scores), len(scores) - 1)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and dollars of one agent."""

    input: int = 0
    cached: int = 0
    output: int = 0
    usd: float = 0.0
    unpriced: int = 0
    """Requests whose price is not known."""

    def plus(self, reply: ev.ModelReplied) -> "Usage":
        tokens = reply.tokens
        return Usage(
            self.input + tokens.input + tokens.cache_write + tokens.cache_read,
            self.cached + tokens.cache_read,
            self.output + tokens.output,
            self.usd + (reply.usd or 0.0),
            self.unpriced + (reply.usd is None),
        )


@dataclass(frozen=True, slots=True)
class State:
    """Everything that is known of a session."""

    started: ev.Started | None = None
    forked_from: str = ""
    """`session@event` that this one was forked at."""
    started_at: float = 0.0
    now: float = 0.0
    away: float = 0.0
    """Seconds between a death and its resumption; they do not count."""
    baseline_commit: ev.BaselineCommitted | None = None
    open: Mapping[int, Stage] = field(default_factory=dict[int, Stage])
    results: tuple[ExperimentResult, ...] = ()
    parents: Mapping[int, Parent] = field(default_factory=dict[int, Parent])
    """The baseline and everything kept, by experiment."""
    incumbent: Incumbent | None = None
    variance: PooledVariance = PooledVariance()
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
    spent: Mapping[str, Usage] = field(default_factory=dict[str, Usage])
    waiting: Mapping[str, ev.Waiting] = field(default_factory=dict[str, ev.Waiting])
    guidance: str = ""
    stopping: str = ""
    ended: str = ""

    @property
    def session(self) -> ev.Started:
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
    def parent(self) -> Parent:
        """What a new candidate starts from."""
        return self.parents[self.incumbent.experiment if self.incumbent else 0]

    @property
    def usd(self) -> float:
        return sum(spent.usd for spent in self.spent.values())

    @property
    def kept(self) -> tuple[ExperimentResult, ...]:
        return tuple(f for f in self.results if isinstance(f.verdict, ev.Kept) and f.experiment > 0)


def get_proposal(stage: Stage) -> ev.Proposal:
    """What a stage came from."""
    match stage:
        case Idea(proposal) | Candidate(proposal):
            return proposal
        case Training(candidate) | Broken(candidate) | Decided(candidate):
            return candidate.proposal
        case Remeasuring():
            return BASELINE


def fold(records: Iterable[ev.Record], state: State | None = None) -> State:
    """The state after all of them. Raises ValueError where an event cannot follow what came before."""
    return reduce(apply, records, state or State())


def apply(state: State, record: ev.Record) -> State:
    """The state after one more record."""
    before, state = state.now, replace(state, now=record.at)
    match record.event:
        case ev.Started() as event:
            return replace(state, started=event, started_at=record.at)
        case ev.Resumed():
            return _restart(replace(state, away=state.away + record.at - before))
        case ev.Forked() as event:
            changes = event.model_dump(exclude={"kind", "parent", "limits"})
            started = state.session.model_copy(update={**changes, "limits": event.limits})
            return _restart(
                replace(state, started=started, forked_from=event.parent, away=state.away + record.at - before)
            )
        case ev.GuidanceChanged(text=text):
            return replace(state, guidance=text)
        case ev.StopAsked(reason=reason):
            return replace(state, stopping=reason)
        case ev.Ended(reason=reason):
            return replace(state, ended=reason)
        case ev.Unanswered(reason=reason):
            return replace(state, unanswered=state.unanswered + 1, silence=reason)
        case ev.Waiting() as event:
            return replace(state, waiting={**state.waiting, record.task_id: event})
        case ev.ModelReplied(agent=agent) as event:
            spent = {**state.spent, agent: state.spent.get(agent, Usage()).plus(event)}
            waiting = {task_id: value for task_id, value in state.waiting.items() if task_id != record.task_id}
            return replace(state, spent=spent, waiting=waiting)
        case ev.ConversationOpened() | ev.ToolUsed():
            return state
        case ev.BaselineCommitted() as event:
            bases = {0: Parent(0, event.commit, event.source)}
            return replace(_set_stage(state, 0, _make_baseline(event)), baseline_commit=event, parents=bases)
        case ev.Proposed(experiment=number, proposal=proposal):
            return replace(_set_stage(state, number, Idea(proposal)), next=number + 1, unanswered=0)
        case event:
            return _advance(state, record, event.experiment, state.open.get(event.experiment))


def _advance(state: State, record: ev.Record, number: int, stage: Stage | None) -> State:
    """One experiment goes from one stage to the next."""
    incumbent = state.incumbent.experiment if state.incumbent else 0
    match record.event, stage:
        case (ev.Refused() | ev.Abandoned()) as verdict, Idea(proposal):
            return _close(state, ExperimentResult(number, proposal, verdict, (), None, None, None, incumbent))
        case (ev.Refused() | ev.Abandoned()) as verdict, Candidate(proposal, made) | Broken(Candidate(proposal, made)):
            return _close(state, ExperimentResult(number, proposal, verdict, (), made, None, None, incumbent))
        case ev.Committed() as made, Idea(proposal):
            return _set_stage(state, number, Candidate(proposal, made))
        case ev.Committed() as made, Candidate() as old:
            return _set_stage(state, number, replace(old, commit=made, scores=()))
        case ev.Committed() as made, Broken(old):
            return _set_stage(state, number, replace(old, commit=made, scores=(), repairs=old.repairs + 1))
        case ev.Granted() as granted, Candidate() as candidate:
            return _set_stage(state, number, Training(replace(candidate, runs=granted.run), granted, record.at))
        case ev.Aborted(), Training(candidate):
            return replace(_set_stage(state, number, candidate), aborted=state.aborted + 1)
        case ev.Scored() as score, Training(candidate, _, since):
            seconds = (*state.run_seconds[-4:], record.at - since)
            candidate = replace(candidate, scores=(*candidate.scores, score))
            return replace(_set_stage(state, number, candidate), run_seconds=seconds, aborted=0)
        case ev.Crashed() as crash, Training(candidate):
            return replace(_set_stage(state, number, Broken(candidate, crash)), aborted=0)
        case ev.Granted() as granted, None:
            assert state.incumbent is not None, "only the incumbent runs again after it was judged"
            best = replace(state.incumbent, runs=granted.run)
            return replace(_set_stage(state, number, Remeasuring(granted, record.at)), incumbent=best)
        case (ev.Scored() | ev.Crashed() | ev.Aborted()) as outcome, Remeasuring():
            return _update_incumbent(_drop_stage(state, number), outcome)
        case ev.Failed() as verdict, Broken(candidate, crash):
            return _set_stage(state, number, Decided(candidate, verdict, crash, incumbent))
        case (ev.Kept() | ev.Discarded()) as verdict, Candidate() as candidate:
            spread = state.variance.plus(candidate.scores)
            return replace(_set_stage(state, number, Decided(candidate, verdict, None, incumbent)), variance=spread)
        case ev.Promoted(commit=commit), Decided(candidate) as decided:
            score_to_beat = decided.verdict.score_to_beat if isinstance(decided.verdict, ev.Kept) else candidate.mean
            best = Incumbent(number, candidate.scores, score_to_beat, candidate.runs)
            bases = {**state.parents, number: Parent(number, commit, candidate.commit.source)}
            return replace(_set_stage(state, number, replace(decided, promoted=True)), incumbent=best, parents=bases)
        case ev.Reflected(postmortem=postmortem), Decided() as decided:
            return replace(_close(state, _make_result(number, decided, postmortem)), unreflected=0)
        case ev.ReflectionSkipped(), Decided() as decided:
            return replace(_close(state, _make_result(number, decided, None)), unreflected=state.unreflected + 1)
        case _:
            raise ValueError(f"record {record.seq}: {record.event.kind} cannot follow {type(stage).__name__}")


def _make_baseline(event: ev.BaselineCommitted) -> Candidate:
    commit = ev.Committed(
        experiment=0,
        commit=event.commit,
        parent=0,
        source=event.source,
        fingerprint=event.fingerprint,
        added=0,
        removed=0,
    )
    return Candidate(BASELINE, commit)


def _make_result(number: int, decided: Decided, postmortem: ev.Postmortem | None) -> ExperimentResult:
    candidate = decided.candidate
    return ExperimentResult(
        number,
        candidate.proposal,
        decided.verdict,
        candidate.scores,
        candidate.commit,
        decided.crash,
        postmortem,
        decided.incumbent,
    )


def _set_stage(state: State, number: int, stage: Stage) -> State:
    return replace(state, open={**state.open, number: stage})


def _drop_stage(state: State, number: int) -> State:
    return replace(state, open={other: stage for other, stage in state.open.items() if other != number})


def _close(state: State, result: ExperimentResult) -> State:
    state = _drop_stage(state, result.experiment)
    return replace(state, results=(*state.results, result))


def _update_incumbent(state: State, outcome: ev.Outcome) -> State:
    """The incumbent is known better now, unless the run came to nothing."""
    best = state.incumbent
    assert best is not None
    if not isinstance(outcome, ev.Scored):
        return replace(state, aborted=state.aborted + isinstance(outcome, ev.Aborted))
    if outcome.experiment != best.experiment:
        return state
    scores = (*best.scores, outcome)
    old, new = _average(best.scores), _average(scores)
    score_to_beat = new if best.score_to_beat == old else best.score_to_beat
    spread = state.variance.minus(best.scores).plus(scores)
    return replace(
        state, incumbent=replace(best, scores=scores, score_to_beat=score_to_beat), variance=spread, aborted=0
    )


def _average(scores: tuple[ev.Scored, ...]) -> float:
    return fmean(score.val_bpb for score in scores)


def _restart(state: State) -> State:
    """After a death: a run that was under way is to be granted again, and a request to stop is forgotten."""
    stages = {
        number: stage.candidate if isinstance(stage, Training) else stage
        for number, stage in state.open.items()
        if not isinstance(stage, Remeasuring)
    }
    return replace(state, open=stages, waiting={}, stopping="", ended="", unanswered=0, aborted=0)


def get_scores(state: State, experiment: int) -> tuple[ev.Scored, ...]:
    """The scored runs of an experiment, closed or just judged; empty where there are none."""
    for result in reversed(state.results):
        if result.experiment == experiment:
            return result.scores
    stage = state.open.get(experiment)
    return stage.candidate.scores if isinstance(stage, Decided) else ()
