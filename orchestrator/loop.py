"""The loop: whatever is due and not under way is started; whatever comes of it is appended; and so on until the end.

It is a reconciler. Overlap, several slots, resumption and replay all follow from it.
"""

import asyncio
from collections.abc import Sequence
from typing import Literal

from orchestrator.core import events as ev
from orchestrator.core.commit_message import write_candidate_message, write_kept_message
from orchestrator.core.source import compute_fingerprint, count_changes, merge
from orchestrator.core.state import Broken, Candidate, Decided, Idea, Parent, Stage, State, get_proposal
from orchestrator.policy import evaluation_plan, novelty, schedule, steps
from orchestrator.ports import Crew, Executor, Log
from subagents.agent import NoAnswer

Edit = steps.Implement | steps.Rebase | steps.Repair
HOW: dict[type[Edit], Literal["implemented", "repaired", "rebased"]] = {
    steps.Implement: "implemented",
    steps.Repair: "repaired",
    steps.Rebase: "rebased",
}


async def run(log: Log, crew: Crew, lab: Executor) -> State:
    """Research until the policy says stop; whatever breaks the machine is raised."""
    tasks: dict[str, asyncio.Task[None]] = {}
    places: dict[str, str] = {}
    """Who is where: one lane at a time for each experiment and for each slot."""

    def reconcile() -> None:
        for step in schedule.find_due(log.state):
            before = [places[place] for place in step.resources if place in places]
            if step.task_id not in tasks and log.finished.issuperset(before):
                places.update(dict.fromkeys(step.resources, step.task_id))
                tasks[step.task_id] = group.create_task(perform(step, log.state, log, crew, lab), name=step.task_id)
        if log.state.ended:
            for task in tasks.values():
                task.cancel()

    try:
        async with asyncio.TaskGroup() as group:
            log.subscribe(reconcile)
            reconcile()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the others were cancelled because of it
    return log.state


async def perform(step: steps.Step, state: State, log: Log, crew: Crew, lab: Executor) -> None:
    """Do one step, as the state stood when it fell due, and append what came of it."""
    if isinstance(step, steps.Train):
        granted = ev.Granted(
            experiment=step.experiment,
            run=step.run,
            slot=step.slot,
            seed=step.seed,
            plan=evaluation_plan.plan_evaluation(state, step.experiment, step.run),
        )
        stage = state.open.get(step.experiment)
        source = stage.commit.source if isinstance(stage, Candidate) else state.parents[step.experiment].source
        await log.append(step.task_id, granted)
        await log.append(step.task_id, await lab.train(granted, log.get(source)), last=True)
    else:
        await log.append(step.task_id, *await _carry_out(step, state, log, crew, lab), last=True)


async def _carry_out(step: steps.Step, state: State, log: Log, crew: Crew, lab: Executor) -> Sequence[ev.Event]:
    match step:
        case steps.CommitBaseline():
            return [await lab.commit_baseline()]
        case steps.Propose(first):
            return await _propose(step, first, state, crew)
        case steps.Refuse(number, reason):
            return [ev.Refused(experiment=number, reason=reason)]
        case steps.Implement() | steps.Rebase() | steps.Repair():
            return [await _make_candidate(step, state, log, crew, lab)]
        case steps.Judge(_, verdict):
            return [verdict]
        case steps.Promote(number):
            return [await _promote(number, state, log, lab)]
        case steps.Reflect():
            return [await _reflect(step, state, crew)]
        case steps.SkipReflection(number, reason):
            return [ev.ReflectionSkipped(experiment=number, reason=reason)]
        case steps.Stop(reason):
            return [ev.Ended(reason=reason)]
        case steps.Train():
            raise AssertionError("a run is granted before it is made")


async def _propose(step: steps.Propose, first: int, state: State, crew: Crew) -> Sequence[ev.Event]:
    try:
        proposals = await crew.propose(state, step)
    except NoAnswer as error:
        return [ev.Unanswered(reason=str(error))]
    return [ev.Proposed(experiment=first + i, proposal=proposal) for i, proposal in enumerate(proposals[: step.count])]


async def _make_candidate(
    step: Edit, state: State, log: Log, crew: Crew, lab: Executor
) -> ev.Committed | ev.Refused | ev.Abandoned:
    """A candidate on the branch's best train.py; unless nothing came of it, or it has been tried."""
    number = step.experiment
    base = (
        state.parents[stage.candidate.commit.parent]
        if isinstance(stage := state.open[number], Broken)
        else state.parent
    )
    try:
        source = await _edit(step, stage, base, state, log, crew)
    except NoAnswer as error:
        return ev.Abandoned(experiment=number, reason=str(error))
    name = compute_fingerprint(source)
    if reason := novelty.find_duplicate(state, number, name):
        return ev.Refused(experiment=number, reason=reason)
    added, removed = count_changes(log.get(base.source), source)
    return ev.Committed(
        experiment=number,
        commit=await lab.commit(number, base.commit, source, write_candidate_message(number, get_proposal(stage))),
        parent=base.experiment,
        source=log.put(source),
        fingerprint=name,
        added=added,
        removed=removed,
        how=HOW[type(step)],
    )


async def _edit(step: Edit, stage: Stage, base: Parent, state: State, log: Log, crew: Crew) -> str:
    """The text of the candidate's train.py. Raises NoAnswer."""
    source = log.get(base.source)
    match step, stage:
        case steps.Repair(), Broken(candidate):
            return await crew.repair(state, step, stage, log.get(candidate.commit.source))
        case steps.Rebase(), Candidate(proposal, commit):
            before = log.get(state.parents[commit.parent].source)
            merged = merge(before, source, log.get(commit.source))
            return merged if merged is not None else await crew.implement(state, step, proposal, source)
        case steps.Implement(), Idea(proposal):
            return await crew.implement(state, step, proposal, source)
        case _:
            raise AssertionError(f"{step} is not due in {type(stage).__name__}")


async def _promote(number: int, state: State, log: Log, lab: Executor) -> ev.Promoted:
    """The research branch moves on to the candidate; the commit reads like a lab note."""
    decided = state.open[number]
    assert isinstance(decided, Decided)
    commit = decided.candidate.commit
    if number == 0:
        return ev.Promoted(experiment=0, commit=commit.commit)
    note = write_kept_message(number, decided)
    return ev.Promoted(
        experiment=number, commit=await lab.promote(number, state.parent.commit, log.get(commit.source), note)
    )


async def _reflect(step: steps.Reflect, state: State, crew: Crew) -> ev.Reflected | ev.ReflectionSkipped:
    decided = state.open[step.experiment]
    assert isinstance(decided, Decided)
    try:
        return ev.Reflected(experiment=step.experiment, postmortem=await crew.reflect(state, step, decided))
    except NoAnswer as error:
        return ev.ReflectionSkipped(experiment=step.experiment, reason=str(error))
