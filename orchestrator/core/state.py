"""The state of a session: a fold over its records.

An experiment is always in one stage, and each stage is a type that holds what is known at that point.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import chain, pairwise
from math import fsum, isclose
from statistics import fmean
from typing import Literal, cast

from orchestrator.core import events as ev
from orchestrator.core.source import diff
from orchestrator.core.task import EXAMINED, Task

BASELINE = ev.Proposal(
    title="baseline",
    hypothesis="The script, as the night begins with it, sets the mark that everything else is measured against.",
    rationale="Where it runs more than once, its runs differ by luck alone: a change must do better than that.",
    expected_delta=0.0,
    family="other",
    instructions="Change nothing.",
    author="nightshift",
)


@dataclass(frozen=True, slots=True)
class Idea:
    """Proposed, not yet implemented."""

    proposal: ev.Proposal
    commit: None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """An edited train.py that waits for a run, or for its verdict."""

    proposal: ev.Proposal
    commit: ev.Committed
    scores: tuple[ev.Scored, ...] = ()
    repairs: int = 0
    earlier: tuple[tuple[float, float, int], ...] = ()  # gain, error and runs on earlier parents
    origins: tuple[ev.Digest, ...] = ()  # the sources that it had there
    moves: int = 0  # how often it was given another parent

    @property
    def mean(self) -> float:
        return _average(self.scores)


@dataclass(frozen=True, slots=True)
class _OfCandidate:
    """A stage that a candidate comes back from."""

    candidate: Candidate

    @property
    def proposal(self) -> ev.Proposal:
        return self.candidate.proposal

    @property
    def commit(self) -> ev.Committed:
        return self.candidate.commit


@dataclass(frozen=True, slots=True)
class Training(_OfCandidate):
    """A run is under way."""

    granted: ev.Granted
    since: float


@dataclass(frozen=True, slots=True)
class Broken(_OfCandidate):
    """The last run crashed."""

    crash: ev.Crashed


@dataclass(frozen=True, slots=True)
class Remeasuring:
    """The incumbent or the baseline runs once more: at a seed that a comparison needs, or for the certificate."""

    granted: ev.Granted
    since: float


FinalStatus = Literal["kept", "reverted", "discarded", "pruned", "crashed", "refused", "abandoned", "not tested"]
"""How an experiment ended, as the researcher may ask for it. Not tested: it ran, but not as it was proposed."""
Status = Literal["proposed", "ready", "training", "broken", "vetoed"] | FinalStatus
UNTESTED: tuple[Status, ...] = ("refused", "abandoned", "vetoed", "not tested")
"""Ends that say nothing of the hypothesis."""
MAY_REPEAT: tuple[Status, ...] = ("not tested", "vetoed")
"""Ends after which the same code may run: it has not been measured as it was meant."""
MAX_SKIPPED = 10_000
"""Numbers that requests under way may leave open: each takes memory, and session files may come from anyone."""
SAME = 3e-7  # largest relative difference of identical runs: below the last digit of a printed val_bpb


@dataclass(frozen=True, slots=True)
class Decided:
    """An experiment with its verdict; open until it is promoted, if it was kept, and reflected upon."""

    experiment: int
    proposal: ev.Proposal
    verdict: ev.Verdict | ev.Refused | ev.Abandoned | ev.Vetoed
    scores: tuple[ev.Scored, ...]
    commit: ev.Committed | None
    crash: ev.Crashed | None
    postmortem: ev.Postmortem | None
    incumbent: int  # the experiment that was best when this one was judged
    promoted: bool = False
    reverted: bool = False
    against: "Incumbent | None" = None  # the incumbent as the verdict knew it, with its runs by then
    task: Task = EXAMINED

    @property
    def val_bpb(self) -> float | None:
        return _average(self.scores) if self.scores else None

    @property
    def status(self) -> Status:
        unfaithful = self.postmortem is not None and self.postmortem.implemented == "no"
        if unfaithful and not isinstance(self.verdict, ev.Kept):
            return "not tested"
        if self.reverted:
            return "reverted"
        return "crashed" if isinstance(self.verdict, ev.Failed) else cast("FinalStatus", self.verdict.kind)

    @property
    def is_lost(self) -> bool:
        return isinstance(self.verdict, ev.Abandoned) and self.verdict.outage

    @property
    def compared(self) -> tuple[ev.Scored, ...]:
        """The incumbent's runs that the verdict is about: those at equal seeds, or all where no seed is shared."""
        runs = {score.seed: score for score in self.against.scores} if self.against else {}
        return tuple(runs[score.seed] for score in self.scores if score.seed in runs) or tuple(runs.values())

    @property
    def last_run(self) -> ev.Scored | ev.Crashed | ev.Pruned:
        """The run that decided: pruned, crashed or scored."""
        return self.verdict if isinstance(self.verdict, ev.Pruned) else self.crash or self.scores[-1]

    @property
    def runs(self) -> Sequence[ev.RunResult]:
        """The runs that the verdict is about: all scored ones, or the one that crashed or was pruned."""
        return self.scores if isinstance(self.last_run, ev.Scored) else [self.last_run]


Stage = Idea | Candidate | Training | Broken | Decided


@dataclass(frozen=True, slots=True)
class Incumbent:
    """The best candidate so far: what must be beaten."""

    experiment: int
    scores: tuple[ev.Scored, ...]
    score_to_beat: float  # the val_bpb expected of it: measured, and corrected for luck
    luck: tuple[ev.SeedLuck, ...] = ()
    failures: int = 0  # runs for a comparison that crashed, in a row


@dataclass(frozen=True, slots=True)
class PooledVariance:
    """Squared deviations from each candidate's own mean, pooled over every candidate that ran more than once."""

    squares: float = 0.0
    dof: int = 0

    def add(self, scores: tuple[ev.Scored, ...], sign: int = 1) -> "PooledVariance":
        """Include the deviations of these runs of one candidate; with a sign of -1, leave them out again."""
        if not scores:
            return self
        mean = _average(scores)
        squares = fsum((score.val_bpb - mean) ** 2 for score in scores)
        return PooledVariance(self.squares + sign * squares, self.dof + sign * (len(scores) - 1))

    def pool(self, other: "PooledVariance") -> "PooledVariance":
        """Return the variance over the candidates of both."""
        return PooledVariance(self.squares + other.squares, self.dof + other.dof)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and dollars spent by one agent."""

    input: int = 0
    cached: int = 0
    output: int = 0
    usd: float = 0.0
    unpriced: int = 0

    def add(self, reply: ev.ModelReplied) -> "Usage":
        """Include one reply."""
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
    """Everything that is known about a session."""

    started: ev.Started | None = None
    started_at: float = 0.0
    now: float = 0.0
    away: float = 0.0  # seconds between a crash or stop and the resumption; they do not count
    open: Mapping[int, Stage] = field(default_factory=dict[int, Stage])
    reruns: Mapping[tuple[int, int], Remeasuring] = field(default_factory=dict[tuple[int, int], Remeasuring])
    """Runs of the incumbent and the baseline that are under way, by experiment and run."""
    results: tuple[Decided, ...] = ()  # closed experiments, in the order in which they were closed
    lost: int = 0  # experiments that an outage of a model ended; they do not count
    sources: Mapping[ev.Digest, tuple[int, ...]] = field(default_factory=dict[ev.Digest, tuple[int, ...]])
    """Closed experiments whose source counts as tested, by its fingerprint."""
    parents: Mapping[int, ev.Committed] = field(default_factory=dict[int, ev.Committed])
    """The baseline and every kept train.py, by experiment, as they stand on the branch; none until there is one."""
    incumbent: Incumbent | None = None
    former: Mapping[int, Incumbent] = field(default_factory=dict[int, Incumbent])
    """Earlier incumbents by experiment, as they were when another was promoted."""
    stacked: Mapping[ev.Digest, Incumbent] = field(default_factory=dict[ev.Digest, Incumbent])
    """Runs of the candidates, by source: others may start from one before it is kept."""
    variance: PooledVariance = PooledVariance()
    grants: Mapping[int, int] = field(default_factory=dict[int, int])
    fresh: Mapping[int, Mapping[int, ev.Scored]] = field(default_factory=dict[int, Mapping[int, ev.Scored]])
    """Scores of the certificate's runs, by experiment and seed."""
    lost_fresh: int = 0  # runs of the certificate that crashed
    certificate: ev.Certified | None = None
    next: int = 1  # number after the last experiment; 0 is the baseline
    skipped: frozenset[int] = frozenset()  # smaller numbers that a request of the researcher has yet to use
    unanswered: int = 0  # rounds without an answer from the researcher, in a row
    fruitless: int = 0  # rounds in a row that led to no run: unanswered, refused or abandoned
    setback: str = ""  # the reason of the latest of these
    fallback: str = ""  # why the optimizer proposes, not the researcher; empty while the researcher does
    aborted: int = 0  # runs lost to the machine, in a row
    sick: Mapping[int, str] = field(default_factory=dict[int, str])  # why nothing starts there, by slot
    unreflected: int = 0  # experiments since the last post-mortem
    reflection_failures: int = 0  # post-mortems that the reflector failed to write, in a row
    run_seconds: tuple[float, ...] = ()
    usage: Mapping[str, Usage] = field(default_factory=dict[str, Usage])
    costs: Mapping[int, float] = field(default_factory=dict[int, float])
    """Dollars that models cost, by experiment: a joint request counts for the first, one without answer for none."""
    waiting: Mapping[str, ev.Waiting] = field(default_factory=dict[str, ev.Waiting])
    reserved: Mapping[str, ev.Reserved] = field(default_factory=dict[str, ev.Reserved])
    """What the requests that are not answered yet may cost, by task."""
    notebook: ev.Notebook | None = None
    shelved: tuple[ev.Proposal, ...] = ()  # drafts since the notebook was last rewritten
    consolidated: int = 0  # how many closed experiments the last consolidation was told of
    digested: int = 0  # the same, of the last one that had an answer
    noted: int = 0  # how many the author of the notebook was told of when it was last rewritten
    guidance: str = ""
    vetoed: frozenset[int] = frozenset()  # not wanted by the user, but what is under way has not ended
    paused: str = ""  # why nothing new is started for the time being
    stopping: str = ""
    ended: str = ""

    @property
    def session(self) -> ev.Started:
        assert self.started is not None, "a session begins with Started"
        return self.started

    @property
    def deadline(self) -> float:
        """Seconds since the epoch."""
        return self.started_at + self.away + 3600 * self.session.limits.hours

    @property
    def hours(self) -> float:
        """Hours spent so far."""
        return (self.now - self.started_at - self.away) / 3600

    @property
    def parent(self) -> ev.Committed:
        """The train.py that a new candidate starts from."""
        return self.parents[self.best]

    @property
    def best(self) -> int:
        """Number of the best experiment so far; 0, the baseline, until it is measured."""
        return self.incumbent.experiment if self.incumbent else 0

    def is_vetoable(self, number: int) -> bool:
        """Return whether the user can still veto an experiment: no baseline, without a verdict, not vetoed yet."""
        is_open = isinstance(self.open.get(number), Idea | Candidate | Training | Broken)
        return number > 0 and is_open and number not in self.vetoed

    def get_rival(self, commit: ev.Committed) -> Incumbent | None:
        """Return what a candidate is compared with, which may be an earlier incumbent; None while that has not run."""
        rival, parent = self.former.get(commit.parent, self.incumbent), self.parents.get(commit.parent)
        is_kept = rival and parent and rival.experiment == commit.parent and parent.source == commit.onto
        return self.stacked.get(commit.onto) if commit.onto and not is_kept else rival

    def get_base(self, commit: ev.Committed) -> ev.Digest:
        """Return the source that a candidate was edited from."""
        return commit.onto or self.parents[commit.parent].source

    def is_current(self, commit: ev.Committed) -> bool:
        """Return whether a candidate starts from the branch's head."""
        return commit.parent == self.best and commit.onto in ("", self.parents[self.best].source)

    @property
    def running(self) -> tuple[Training | Remeasuring, ...]:
        """The runs under way."""
        return (*(stage for stage in self.open.values() if isinstance(stage, Training)), *self.reruns.values())

    @property
    def slots(self) -> tuple[int, ...]:
        """The slots that are not sick."""
        return tuple(slot for slot in range(self.session.slots) if slot not in self.sick)

    @property
    def is_automatic(self) -> bool:
        """Whether the optimizer alone proposes."""
        return bool(self.fallback) or self.session.crew == "optuna"

    @property
    def usd(self) -> float:
        return sum(usage.usd for usage in self.usage.values())

    @property
    def tried(self) -> tuple[Decided, ...]:
        """Every closed experiment but the baseline, and those lost to an outage."""
        return tuple(result for result in self.results if result.experiment > 0 and not result.is_lost)

    @property
    def judged(self) -> tuple[Decided, ...]:
        """Every experiment with a verdict; those that wait for their post-mortem come last."""
        return (*self.results, *(stage for stage in self.open.values() if isinstance(stage, Decided)))

    @property
    def settled(self) -> tuple[Decided, ...]:
        """What may be asked whether it was kept: all that is judged; in older sessions, all that is closed."""
        return self.judged if self.session.rule.chronological else self.results

    @property
    def kept(self) -> tuple[Decided, ...]:
        """Every kept change that has not been reverted; an ablation only reverts one."""
        return tuple(result for result in self.tried if result.status == "kept" and result.proposal.reverts is None)

    @property
    def baseline_bpb(self) -> float | None:
        """Mean score of the baseline; None until it is closed."""
        return next((result.val_bpb for result in self.results if result.experiment == 0), None)


def diff_from_parent(state: State, commit: ev.Committed, read: Callable[[ev.Digest], str], context: int = 3) -> str:
    """Return what a commit changed in its parent's train.py, as a unified diff; `read` gives stored texts."""
    return diff(read(state.get_base(commit)), read(commit.source), context)


def fold(records: Iterable[ev.Record], state: State | None = None) -> State:
    """Return the state after all of the records. Raises ValueError if an event cannot follow those before it."""
    return reduce(apply, records, state or State())


def apply(state: State, record: ev.Record) -> State:
    """Return the state after one more record. Raises ValueError."""
    before, state = state.now, replace(state, now=record.at)
    match record.event:
        case ev.Started() as event:
            return replace(state, started=event, started_at=record.at)
        case ev.Resumed():
            return _restart(replace(state, away=state.away + record.at - before))
        case ev.Forked() as event:
            settings = {name: getattr(event, name) for name in ev.SessionSettings.model_fields}
            started = state.session.model_copy(update=settings)
            return _restart(replace(state, started=started, away=state.away + record.at - before))
        case ev.GuidanceChanged(text=text):
            return replace(state, guidance=text)
        case ev.Paused(reason=reason):
            return replace(state, paused=reason)
        case ev.Continued():
            return replace(state, paused="")
        case ev.VetoAsked(experiment=number):
            return replace(state, vetoed=state.vetoed | {number}) if state.is_vetoable(number) else state
        case ev.StopAsked(reason=reason):
            return replace(state, stopping=reason)
        case ev.Ended(reason=reason):
            return replace(state, ended=reason)
        case ev.Certified() as event:
            return replace(state, certificate=event)
        case ev.Noted(notebook=notebook, reason=reason, told=told, drafts=known):
            read = len(state.tried) if told is None else min(told, len(state.tried))
            digested = read if notebook else state.digested
            state = replace(state, consolidated=read, digested=digested) if reason else state
            unread = tuple(draft for draft in state.shelved if known is not None and draft.title not in known)
            return replace(state, notebook=notebook, shelved=unread, noted=read) if notebook else state
        case ev.Unanswered(reason=reason):
            costs = {n: usd for n, usd in state.costs.items() if f"propose {n}" != record.task_id.partition(".")[0]}
            unanswered, fruitless = state.unanswered + 1, state.fruitless + 1
            return replace(state, unanswered=unanswered, fruitless=fruitless, setback=reason, costs=costs)
        case ev.FellBack(reason=reason):
            return replace(state, fallback=reason, fruitless=0)
        case ev.Waiting() as event:
            return replace(state, waiting={**state.waiting, record.task_id: event})
        case ev.Reserved() as event:
            return _reserve(state, record.task_id, event)
        case ev.ModelReplied() as event:
            return _count_reply(state, record.task_id, event)
        case ev.ConversationOpened() | ev.ModelReplaced() | ev.ToolUsed():
            return state
        case ev.BaselineCommitted() as event:
            facts = event.model_dump(exclude={"kind"})
            commit = ev.Committed(experiment=0, parent=0, added=0, removed=0, **facts)
            return _set_stage(replace(state, parents={0: commit}), 0, Candidate(BASELINE, commit))
        case ev.Proposed(experiment=number, proposal=proposal, shelved=drafts):
            if number - state.next + len(state.skipped) > MAX_SKIPPED:
                raise ValueError(f"record {record.seq}: experiment {number} cannot follow {state.next - 1}")
            skipped = state.skipped.union(range(state.next, number)) - {number}
            unanswered = 0 if state.session.slots == 1 else state.unanswered  # it tells several requests apart
            state = replace(state, skipped=skipped, next=max(state.next, number + 1), unanswered=unanswered)
            waiting = tuple(draft for draft in (*state.shelved, *drafts) if draft.title != proposal.title)
            return _set_stage(replace(state, shelved=waiting), number, Idea(proposal))
        case event:
            return _advance(state, record, event.experiment, state.open.get(event.experiment))


def _advance(state: State, record: ev.Record, number: int, stage: Stage | None) -> State:
    """Move one experiment from its stage to the next."""
    commit = stage.commit if stage and isinstance(record.event, ev.Kept | ev.Promoted) else None
    if commit and not state.is_current(commit):
        raise ValueError(f"record {record.seq}: kept on {commit.parent}, while the branch stands at {state.best}")
    match record.event, stage:
        case (ev.Refused() | ev.Abandoned()) as verdict, Idea() | Candidate() | Broken():
            return _dismiss(state, verdict, stage)
        case ev.Vetoed() as verdict, Idea() | Candidate() | Training() | Broken():
            return _dismiss(replace(state, vetoed=state.vetoed - {number}), verdict, stage, record.task_id)
        case ev.Committed() as commit, Idea(proposal):
            return _set_stage(state, number, Candidate(proposal, commit))
        case ev.Committed() as commit, Candidate() as old:
            return _move_candidate(state, old, commit)
        case ev.Committed() as commit, Broken(old):
            return _set_stage(state, number, replace(old, commit=commit, scores=(), repairs=old.repairs + 1))
        case ev.Granted() as granted, Candidate() as candidate:
            fruitless, grants = 0 if granted.run == 1 else state.fruitless, {**state.grants, number: granted.run}
            state = replace(state, fruitless=fruitless, grants=grants)
            return _set_stage(state, number, Training(candidate, granted, record.at))
        case ev.Granted() as granted, None | Decided():
            reruns = {**state.reruns, (number, granted.run): Remeasuring(granted, record.at)}
            return replace(state, reruns=reruns, grants={**state.grants, number: granted.run})
        case ev.Scored() as score, Training(candidate, granted, since):
            state = replace(state, run_seconds=(*state.run_seconds[-4:], record.at - since), aborted=0)
            scores = (*candidate.scores, score.model_copy(update={"seed": granted.seed}))
            return _set_scores(state, number, replace(candidate, scores=scores))
        case ev.Crashed() as crash, Training(candidate):
            return _set_stage(replace(state, aborted=0), number, Broken(candidate, crash))
        case ev.Pruned() as pruned, Training(candidate):
            return _decide(replace(state, aborted=0), candidate, pruned)
        case ev.Aborted() as aborted, Training(candidate, granted):
            return _set_stage(_count_aborted(state, granted.slot, aborted), number, candidate)
        case (ev.Scored() | ev.Crashed() | ev.Aborted()) as end, None | Decided() if (number, end.run) in state.reruns:
            return _end_remeasurement(state, state.reruns[number, end.run].granted, end)
        case ev.Failed() as verdict, Broken(candidate, crash):
            return _decide(state, candidate, verdict, crash)
        case ev.Failed(), Decided(verdict=ev.Pruned()):
            return state  # sessions of format 1 judged a pruned run once more
        case (ev.Kept() | ev.Discarded()) as verdict, Candidate(commit=commit) as candidate:
            state = _decide(replace(state, variance=state.variance.add(candidate.scores)), candidate, verdict)
            current = state.incumbent if state.is_current(commit) else None
            return replace(state, incumbent=replace(current, luck=verdict.luck)) if current else state
        case ev.Promoted(commit=head), Decided(verdict=ev.Kept() as kept, commit=ev.Committed() as commit) as decided:
            incumbent = Incumbent(number, decided.scores, kept.score_to_beat, kept.luck)
            parents = {**state.parents, number: commit.model_copy(update={"commit": head})}
            state = _set_stage(state, number, replace(decided, promoted=True))
            back = decided.proposal.reverts
            results = tuple(replace(r, reverted=True) if r.experiment == back else r for r in state.results)
            former = {**state.former, state.best: state.incumbent} if state.incumbent else {}
            return replace(state, incumbent=incumbent, former=former, parents=parents, results=results)
        case ev.Reflected(postmortem=postmortem), Decided() as decided:
            state = replace(state, unreflected=0, reflection_failures=0)
            return _close(state, replace(decided, postmortem=postmortem))
        case ev.ReflectionSkipped(failed=failed), Decided() as decided:
            failures = state.reflection_failures + failed
            state = replace(state, unreflected=state.unreflected + 1, reflection_failures=failures)
            return _close(state, decided)
        case _:
            raise ValueError(f"record {record.seq}: {record.event.kind} cannot follow {type(stage).__name__}")


def _move_candidate(state: State, old: Candidate, commit: ev.Committed) -> State:
    """Give a candidate another parent, which may be open; if it has run as this source before, those runs are back."""
    if commit.onto:
        stages = (stage for number, stage in state.open.items() if number == commit.parent)
        closed = (result for result in reversed(state.results) if result.experiment == commit.parent)
        parent = next(chain(stages, closed)).commit
        state = replace(state, parents={commit.parent: parent, **state.parents} if parent else state.parents)
    shown = [*zip(old.origins, old.earlier, strict=True), *[(old.commit.source, commit.earlier)] * bool(commit.earlier)]
    runs, scores = state.stacked.get(commit.source) if state.session.rule.consistent else None, ()
    if runs and runs.experiment == commit.experiment:
        shown, scores = [pair for pair in shown if pair[0] != commit.source], runs.scores
    origins, earlier = tuple(source for source, _ in shown), tuple(found for _, found in shown if found)
    moved = replace(old, commit=commit, scores=scores, earlier=earlier, origins=origins, moves=old.moves + 1)
    return _set_stage(state, commit.experiment, moved)


def _set_scores(state: State, number: int, candidate: Candidate) -> State:
    """Return the state after a candidate's run; `stacked` has its runs, too, where others may start from it."""
    if number and state.session.rule.stacks:
        runs = Incumbent(number, candidate.scores, candidate.mean)
        state = replace(state, stacked={**state.stacked, candidate.commit.source: runs})
    return _set_stage(state, number, candidate)


def _dismiss(state: State, verdict: ev.Refused | ev.Abandoned | ev.Vetoed, stage: Stage, task_id: str = "") -> State:
    """Close an experiment without a verdict on its hypothesis; `task_id`, if it waits for a model, does no more."""
    number, proposal = verdict.experiment, stage.proposal
    if not isinstance(verdict, ev.Vetoed) and number not in state.grants and not proposal.combines:
        state = replace(state, fruitless=state.fruitless + 1, setback=verdict.reason)
    state = replace(state, waiting={task: value for task, value in state.waiting.items() if task != task_id})
    if getattr(verdict, "outage", False) and proposal.author == "researcher":  # it may have left the notebook for it
        state = replace(state, shelved=(*state.shelved, proposal))
    best, task = state.best, state.session.task
    return _close(state, Decided(number, proposal, verdict, (), stage.commit, None, None, best, task=task))


def _count_aborted(state: State, slot: int, aborted: ev.Aborted) -> State:
    """Count one more run that the machine ended, and give up its slot where that is sick."""
    sick = {**state.sick, slot: aborted.reason} if aborted.quarantined else state.sick
    return replace(state, aborted=state.aborted + 1, sick=sick)


def _decide(state: State, candidate: Candidate, verdict: ev.Verdict, crash: ev.Crashed | None = None) -> State:
    number, scores, commit = verdict.experiment, candidate.scores, candidate.commit
    best, task = state.get_rival(commit), state.session.task
    rival = best.experiment if best else state.best
    if number == 0 and len(scores) > 1 and count_distinct(scores) == 1:
        task = task.model_copy(update={"is_repeated": True})
        state = replace(state, started=state.session.model_copy(update={"task": task}))
    decided = Decided(number, candidate.proposal, verdict, scores, commit, crash, None, rival, against=best, task=task)
    return _set_stage(state, number, decided)


def count_distinct(scores: Sequence[ev.Scored]) -> int:
    """Return how many of the runs differ: 1 where no seed makes a difference. Corrections are noise of their own."""
    claims = sorted(score.audit.claimed if score.audit else score.val_bpb for score in scores)
    return bool(claims) + sum(not isclose(*pair, rel_tol=SAME) for pair in pairwise(claims))


def _set_stage(state: State, number: int, stage: Stage) -> State:
    return replace(state, open={**state.open, number: stage})


def _close(state: State, result: Decided) -> State:
    stages = {number: stage for number, stage in state.open.items() if number != result.experiment}
    sources = state.sources
    if result.commit and result.status not in MAY_REPEAT:
        same = sources.get(result.commit.fingerprint, ())
        sources = {**sources, result.commit.fingerprint: (*same, result.experiment)}
    lost = state.lost + result.is_lost
    return replace(state, open=stages, results=(*state.results, result), sources=sources, lost=lost)


def _end_remeasurement(state: State, granted: ev.Granted, outcome: ev.Outcome) -> State:
    """Count one more run of the incumbent or for the certificate, unless it failed or the incumbent has changed."""
    state = replace(state, reruns={key: stage for key, stage in state.reruns.items() if stage.granted != granted})
    number, incumbent, certifies = granted.experiment, state.incumbent, bool(granted.plan and granted.plan.certifies)
    assert incumbent is not None
    if isinstance(outcome, ev.Aborted):
        return _count_aborted(state, granted.slot, outcome)
    if not isinstance(outcome, ev.Scored):
        if certifies:
            return replace(state, lost_fresh=state.lost_fresh + 1)
        failures = incumbent.failures + (number == incumbent.experiment)
        return replace(state, incumbent=replace(incumbent, failures=failures))
    if certifies:
        scores = {**state.fresh.get(number, {}), granted.seed: outcome}
        return replace(state, fresh={**state.fresh, number: scores}, aborted=0)
    if number != incumbent.experiment:
        return state
    scores = (*incumbent.scores, outcome.model_copy(update={"seed": granted.seed}))
    old, new = _average(incumbent.scores), _average(scores)
    score_to_beat = new if incumbent.score_to_beat == old else incumbent.score_to_beat
    variance = state.variance.add(incumbent.scores, -1).add(scores)
    incumbent = replace(incumbent, scores=scores, score_to_beat=score_to_beat, failures=0)
    return replace(state, incumbent=incumbent, variance=variance, aborted=0)


def _average(scores: tuple[ev.Scored, ...]) -> float:
    return fmean(score.val_bpb for score in scores)


def _reserve(state: State, task_id: str, request: ev.Reserved) -> State:
    before = [lost] if (lost := state.reserved.get(task_id)) else []
    return replace(_count_lost(state, *before), reserved={**state.reserved, task_id: request})


def _count_reply(state: State, task_id: str, reply: ev.ModelReplied) -> State:
    usage = {**state.usage, reply.agent: state.usage.get(reply.agent, Usage()).add(reply)}
    costs = {**state.costs, reply.experiment: state.costs.get(reply.experiment, 0.0) + (reply.usd or 0.0)}
    waiting = {task: value for task, value in state.waiting.items() if task != task_id}
    reserved = {task: request for task, request in state.reserved.items() if task != task_id}
    return replace(state, usage=usage, costs=costs, waiting=waiting, reserved=reserved)


def _count_lost(state: State, *lost: ev.Reserved) -> State:
    """Count requests as spent whose replies are lost, since they may be billed; so high a bound ends no experiment."""
    usage = {**state.usage}
    for request in lost:
        before = usage.get(request.agent, Usage())
        usage[request.agent] = replace(before, usd=before.usd + request.usd)
    return replace(state, usage=usage)


def _restart(state: State) -> State:
    """Restart after a crash, stop or fork: grant the current runs again, and forget a request to stop or pause."""
    stages = {n: stage.candidate if isinstance(stage, Training) else stage for n, stage in state.open.items()}
    state = _count_lost(state, *state.reserved.values())
    state = replace(state, unanswered=0, fruitless=0, fallback="", reflection_failures=0, aborted=0, sick={})
    incumbent = replace(state.incumbent, failures=0) if state.incumbent else None
    state = replace(state, incumbent=incumbent, lost_fresh=0)
    return replace(state, open=stages, reruns={}, waiting={}, reserved={}, paused="", stopping="", ended="")
