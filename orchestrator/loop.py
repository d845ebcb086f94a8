"""The loop: whatever is due and not under way is started; whatever comes of it is appended; and so on until the end.

It is a reconciler. Overlap, several slots, resumption and replay all follow from it.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from orchestrator import policy
from orchestrator.events import (
    Abandoned,
    Closed,
    Committed,
    Digest,
    Ended,
    Event,
    Fitted,
    Granted,
    Outcome,
    Postmortem,
    Promoted,
    Proposal,
    Proposed,
    Reflected,
    Refused,
    Unanswered,
)
from orchestrator.notes import candidate_note, kept_note
from orchestrator.policy import (
    Close,
    Fit,
    Implement,
    Judge,
    Promote,
    Propose,
    Rebase,
    Reflect,
    Refuse,
    Repair,
    Step,
    Stop,
    Train,
)
from orchestrator.source import changed, fingerprint, merge
from orchestrator.state import Base, Broken, Candidate, Decided, Idea, Stage, State, proposal_of
from subagents.agent import NoAnswer

Edit = Implement | Rebase | Repair
HOW: dict[type[Edit], Literal["implemented", "repaired", "rebased"]] = {
    Implement: "implemented",
    Repair: "repaired",
    Rebase: "rebased",
}


class Log(Protocol):
    """Where events go and texts are kept: a session, or the tape of one."""

    @property
    def state(self) -> State: ...
    def watch(self, watcher: Callable[[], None]) -> None: ...
    @property
    def finished(self) -> set[str]:
        """Lanes that have appended their last."""
        ...

    async def append(self, lane: str, *events: Event, last: bool = False) -> None: ...
    def put(self, text: str) -> Digest: ...
    def get(self, name: Digest) -> str: ...


class Crew(Protocol):
    """Who thinks. Each raises NoAnswer where nothing usable comes of it."""

    async def propose(self, state: State, step: Propose) -> Sequence[Proposal]: ...
    async def implement(self, state: State, step: Implement | Rebase, proposal: Proposal, source: str) -> str: ...
    async def repair(self, state: State, step: Repair, broken: Broken, source: str) -> str: ...
    async def reflect(self, state: State, step: Reflect, decided: Decided) -> Postmortem: ...


class Lab(Protocol):
    """Where code is changed and trained. A broken machine raises; a failed experiment is an Outcome."""

    async def fit(self) -> Fitted: ...
    async def commit(self, experiment: int, parent: str, source: str, message: str) -> str: ...
    async def train(self, granted: Granted, source: str) -> Outcome: ...
    async def promote(self, experiment: int, parent: str, source: str, message: str) -> str: ...


async def run(log: Log, crew: Crew, lab: Lab) -> State:
    """Research until the policy says stop; whatever breaks the machine is raised."""
    tasks: dict[str, asyncio.Task[None]] = {}
    places: dict[str, str] = {}
    """Who is where: one lane at a time for each experiment and for each slot."""

    def reconcile() -> None:
        for step in policy.due(log.state):
            before = [places[place] for place in step.places if place in places]
            if step.lane not in tasks and log.finished.issuperset(before):
                places.update(dict.fromkeys(step.places, step.lane))
                tasks[step.lane] = group.create_task(perform(step, log.state, log, crew, lab), name=step.lane)
        if log.state.ended:
            for task in tasks.values():
                task.cancel()

    try:
        async with asyncio.TaskGroup() as group:
            log.watch(reconcile)
            reconcile()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the others were cancelled because of it
    return log.state


async def perform(step: Step, state: State, log: Log, crew: Crew, lab: Lab) -> None:
    """Do one step, as the state stood when it fell due, and append what came of it."""
    if isinstance(step, Train):
        granted = Granted(
            experiment=step.experiment,
            run=step.run,
            slot=step.slot,
            seed=step.seed,
            terms=policy.terms(state, step.experiment, step.run),
        )
        stage = state.open.get(step.experiment)
        source = stage.made.source if isinstance(stage, Candidate) else state.bases[step.experiment].source
        await log.append(step.lane, granted)
        await log.append(step.lane, await lab.train(granted, log.get(source)), last=True)
    else:
        await log.append(step.lane, *await _outcome(step, state, log, crew, lab), last=True)


async def _outcome(step: Step, state: State, log: Log, crew: Crew, lab: Lab) -> Sequence[Event]:
    match step:
        case Fit():
            return [await lab.fit()]
        case Propose(first):
            return await _proposals(step, first, state, crew)
        case Refuse(number, reason):
            return [Refused(experiment=number, reason=reason)]
        case Implement() | Rebase() | Repair():
            return [await _made(step, state, log, crew, lab)]
        case Judge(_, verdict):
            return [verdict]
        case Promote(number):
            return [await _promoted(number, state, log, lab)]
        case Reflect():
            return [await _reflected(step, state, crew)]
        case Close(number, reason):
            return [Closed(experiment=number, reason=reason)]
        case Stop(reason):
            return [Ended(reason=reason)]
        case Train():
            raise AssertionError("a run is granted before it is made")


async def _proposals(step: Propose, first: int, state: State, crew: Crew) -> Sequence[Event]:
    try:
        proposals = await crew.propose(state, step)
    except NoAnswer as error:
        return [Unanswered(reason=str(error))]
    return [Proposed(experiment=first + i, proposal=proposal) for i, proposal in enumerate(proposals[: step.count])]


async def _made(step: Edit, state: State, log: Log, crew: Crew, lab: Lab) -> Committed | Refused | Abandoned:
    """A candidate on the branch's best train.py; unless nothing came of it, or it has been tried."""
    number = step.experiment
    base = state.bases[stage.candidate.made.base] if isinstance(stage := state.open[number], Broken) else state.base
    try:
        source = await _edited(step, stage, base, state, log, crew)
    except NoAnswer as error:
        return Abandoned(experiment=number, reason=str(error))
    name = fingerprint(source)
    if reason := policy.duplicate(state, number, name):
        return Refused(experiment=number, reason=reason)
    added, removed = changed(log.get(base.source), source)
    return Committed(
        experiment=number,
        commit=await lab.commit(number, base.commit, source, candidate_note(number, proposal_of(stage))),
        base=base.experiment,
        source=log.put(source),
        fingerprint=name,
        added=added,
        removed=removed,
        how=HOW[type(step)],
    )


async def _edited(step: Edit, stage: Stage, base: Base, state: State, log: Log, crew: Crew) -> str:
    """The text of the candidate's train.py. Raises NoAnswer."""
    source = log.get(base.source)
    match step, stage:
        case Repair(), Broken(candidate):
            return await crew.repair(state, step, stage, log.get(candidate.made.source))
        case Rebase(), Candidate(proposal, made):
            before = log.get(state.bases[made.base].source)
            merged = merge(before, source, log.get(made.source))
            return merged if merged is not None else await crew.implement(state, step, proposal, source)
        case Implement(), Idea(proposal):
            return await crew.implement(state, step, proposal, source)
        case _:
            raise AssertionError(f"{step} is not due in {type(stage).__name__}")


async def _promoted(number: int, state: State, log: Log, lab: Lab) -> Promoted:
    """The research branch moves on to the candidate; the commit reads like a lab note."""
    decided = state.open[number]
    assert isinstance(decided, Decided)
    made = decided.candidate.made
    if number == 0:
        return Promoted(experiment=0, commit=made.commit)
    note = kept_note(number, decided)
    return Promoted(experiment=number, commit=await lab.promote(number, state.base.commit, log.get(made.source), note))


async def _reflected(step: Reflect, state: State, crew: Crew) -> Reflected | Closed:
    decided = state.open[step.experiment]
    assert isinstance(decided, Decided)
    try:
        return Reflected(experiment=step.experiment, postmortem=await crew.reflect(state, step, decided))
    except NoAnswer as error:
        return Closed(experiment=step.experiment, reason=str(error))
