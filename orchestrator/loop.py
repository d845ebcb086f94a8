"""Start every due step that is not running, append the events it returns, repeat until the session ends.

The loop is a reconciler: overlap, several slots, resumption and replay all follow from it.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence

from orchestrator.core import events as ev
from orchestrator.core.source import compute_fingerprint, count_changes, merge
from orchestrator.core.state import Broken, Candidate, Decided, Stage, State
from orchestrator.core.templates import Macros, load_templates
from orchestrator.policy import steps
from orchestrator.policy.limits import explain_cap
from orchestrator.policy.schedule import find_due
from orchestrator.policy.stack import sum_up
from orchestrator.ports import Crew, Executor, Log, Revision
from prepare.constants import read_values, with_constants
from subagents.agent import NoAnswer, Outage

MESSAGES = Macros(load_templates("orchestrator"), "commit.txt")


async def run(log: Log, crew: Crew, executor: Executor, linger: Callable[[], Awaitable[object]] | None = None) -> State:
    """Research until the policy stops the session; return the final state. Raises what the executor or log raises.

    While nothing is due or under way, as in a pause, the loop goes on until `linger` returns: others may append.
    """
    tasks: dict[str, asyncio.Task[None]] = {}
    holders: dict[str, str] = {}  # the task that holds each exclusive resource

    def reconcile() -> None:
        for step in find_due(log.state):
            before = (holders[resource] for resource in step.resources if resource in holders)
            if step.task_id not in tasks and log.finished.issuperset(before):
                holders.update(dict.fromkeys(step.resources, step.task_id))
                work = perform(step, log.state, log, crew, executor)
                tasks[step.task_id] = group.create_task(work, name=step.task_id)
        last = log.records[-1].event
        holder = holders.get(f"experiment {last.experiment}", "") if isinstance(last, ev.VetoAsked) else ""
        if holder in tasks and holder not in log.finished and _has_begun(tasks[holder]):
            tasks[holder].cancel()
        if log.state.ended:
            for task in tasks.values():
                task.cancel()

    try:
        async with asyncio.TaskGroup() as group:
            log.watchers.append(reconcile)
            reconcile()
            if linger:
                await linger()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the others were cancelled because of it
    return log.state


async def perform(step: steps.Step, state: State, log: Log, crew: Crew, executor: Executor) -> None:
    """Carry out one step, with the state in which it became due, and append its events.

    Once its experiment is vetoed, it ends what it has begun, and appends only that the experiment has ended.
    """
    while True:
        ending = _end_vetoed(step, log.state)
        try:
            events = ending or await _run_step(step, state, log, crew, executor)
            return await log.append(step.task_id, *(_end_vetoed(step, log.state) or events), last=True)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if ending or not _end_vetoed(step, log.state) or (task and task.cancelling() > 1):
                raise  # the night ends


def _end_vetoed(step: steps.Step, state: State) -> list[ev.Vetoed]:
    """Return the end of the experiment that the step holds, if that is vetoed; else an empty list."""
    return [ev.Vetoed(experiment=number) for number in state.vetoed if f"experiment {number}" in step.resources]


def _has_begun(task: asyncio.Task[None]) -> bool:
    """Return whether a task has begun; one that has not notices a veto by itself."""
    coroutine = task.get_coro()
    return inspect.iscoroutine(coroutine) and inspect.getcoroutinestate(coroutine) != inspect.CORO_CREATED


async def _run_step(step: steps.Step, state: State, log: Log, crew: Crew, executor: Executor) -> Sequence[ev.Event]:
    """Return the events of one step but the grant of a run, which precedes the run."""
    match step:
        case steps.Train(experiment, _, run, slot, seed, plan):
            granted = ev.Granted(experiment=experiment, run=run, slot=slot, seed=seed, plan=plan)
            stage = state.open.get(experiment)
            source = stage.commit.source if isinstance(stage, Candidate) else state.parents[experiment].source
            await log.append(step.task_id, granted)
            return [await executor.train(granted, log.get(source))]
        case steps.CommitBaseline():
            return [await executor.commit_baseline()]
        case steps.Propose():
            return await _propose(step, state, crew)
        case steps.Edit():
            return [await _make_candidate(step, state, log, crew, executor)]
        case steps.Promote(number):
            return [await _promote(number, state, log, executor)]
        case steps.Reflect():
            return [await _reflect(step, state, crew)]
        case steps.Append(event):
            return [event]


async def _propose(step: steps.Propose, state: State, crew: Crew) -> Sequence[ev.Event]:
    try:
        proposals = await crew.propose(state, step)
    except NoAnswer as error:
        return [ev.Unanswered(reason=str(error))]
    numbered, further = enumerate(proposals[: step.count], step.first), tuple(proposals[step.count :])
    proposed = [ev.Proposed(experiment=number, proposal=proposal) for number, proposal in numbered]
    return [*proposed[:-1], *(last.model_copy(update={"shelved": further}) for last in proposed[-1:])]


async def _make_candidate(
    step: steps.Edit, state: State, log: Log, crew: Crew, executor: Executor
) -> ev.Committed | ev.Abandoned:
    """Edit and commit a candidate; abandon the experiment if no edit comes back."""
    number, stage = step.experiment, state.open[step.experiment]
    parent, onto = state.parent, ""
    if isinstance(stage, Broken):
        parent, onto = state.parents[stage.commit.parent], stage.commit.onto
    elif step.parent is not None and (commit := state.open[step.parent].commit):
        parent, onto = commit, commit.source
    before = log.get(onto or parent.source)
    try:
        revision = await _edit(step, stage, before, state, log, crew)
    except NoAnswer as error:
        is_outage = isinstance(error, Outage) and number not in state.grants  # what has run counts
        return ev.Abandoned(experiment=number, reason=str(error), outage=is_outage)
    source = revision.source
    added, removed = count_changes(before, source)
    message = MESSAGES.candidate(number, stage.proposal)
    return ev.Committed(
        experiment=number,
        commit=await executor.commit(number, parent.commit, source, message),
        parent=parent.experiment,
        source=log.put(source),
        fingerprint=compute_fingerprint(source),
        added=added,
        removed=removed,
        how=step.how,
        onto=onto,
        earlier=sum_up(state, stage) if isinstance(stage, Candidate) else None,
        summary=revision.summary,
        deviations=revision.deviations,
    )


async def _edit(step: steps.Edit, stage: Stage, source: str, state: State, log: Log, crew: Crew) -> Revision:
    """Return the candidate's source, with constants exactly as proposed or as the crew edits it. Raises NoAnswer."""
    proposal = stage.proposal
    if isinstance(stage, Broken):
        return await crew.repair(state, step, stage, log.get(stage.commit.source))
    if isinstance(stage, Candidate):  # a rebase
        commit = stage.commit
        before = log.get(state.get_base(commit))
        settings = proposal.settings if state.session.rule.chronological else {}
        old, new = (read_values(text) if settings else {} for text in (before, source))
        if moved := [name for name in settings if old.get(name) != new.get(name)]:  # it would be another change
            number = state.best if step.parent is None else step.parent
            raise NoAnswer(f"experiment {number}, from which it would start now, sets {', '.join(moved)}, too")
        if (merged := merge(before, source, log.get(commit.source))) is not None:
            return Revision(merged, commit.summary, commit.deviations)
    if proposal.reverts is not None:
        kept = state.parents[proposal.reverts]
        reverted = merge(log.get(kept.source), source, log.get(state.parents[kept.parent].source))
        if reverted is None:
            raise NoAnswer(f"later keeps build on experiment {proposal.reverts}")
        return Revision(reverted)
    if not (proposal.settings or proposal.combines):
        if cap := explain_cap(state, step.experiment):
            raise NoAnswer(f"its change does not fit the best as it is now, and {cap}")
        return await crew.implement(state, step, proposal, source)
    try:
        changed = with_constants(source, proposal.settings) if proposal.settings else None
        return Revision(changed or _combine(state, proposal, source, log))
    except (ArithmeticError, ValueError) as error:  # no such constant, or a value that older checks let pass
        raise NoAnswer(str(error)) from error


def _combine(state: State, proposal: ev.Proposal, source: str, log: Log) -> str:
    """Return the source with the changes of several candidates, one after the other. Raises NoAnswer."""
    for result in state.judged:
        commit, settings = result.commit, result.proposal.settings
        if result.experiment not in proposal.combines or commit is None:
            continue
        before, after = log.get(state.get_base(commit)), log.get(commit.source)
        merged = with_constants(source, settings) if settings else merge(before, source, after)
        if merged is None:
            raise NoAnswer(f"the change of experiment {result.experiment} does not fit with the others")
        source = merged
    return source


async def _promote(number: int, state: State, log: Log, executor: Executor) -> ev.Promoted:
    """Move the research branch to the candidate, with a commit message that reads like a lab note."""
    decided = state.open[number]
    assert isinstance(decided, Decided)
    assert decided.commit
    if number == 0:
        return ev.Promoted(experiment=0, commit=decided.commit.commit)
    message = MESSAGES.keep(decided)
    head = await executor.promote(number, state.parent.commit, log.get(decided.commit.source), message)
    return ev.Promoted(experiment=number, commit=head)


async def _reflect(step: steps.Reflect, state: State, crew: Crew) -> ev.Reflected | ev.ReflectionSkipped:
    decided = state.open[step.experiment]
    assert isinstance(decided, Decided)
    try:
        return ev.Reflected(experiment=step.experiment, postmortem=await crew.reflect(state, step, decided))
    except NoAnswer as error:
        return ev.ReflectionSkipped(experiment=step.experiment, reason=str(error), failed=True)
