"""What is due, and what is worth keeping: pure functions of the state, and every threshold with its reason."""

from collections.abc import Iterator

from orchestrator.core import events as ev
from orchestrator.core.state import Broken, Candidate, Decided, Idea, Remeasuring, Stage, State, Training
from orchestrator.policy.evaluation_plan import draw_seed
from orchestrator.policy.judge import judge
from orchestrator.policy.limits import explain_stop
from orchestrator.policy.novelty import find_repeat
from orchestrator.policy.steps import (
    CommitBaseline,
    Implement,
    Judge,
    Promote,
    Propose,
    Rebase,
    Reflect,
    Refuse,
    Repair,
    SkipReflection,
    Step,
    Stop,
    Train,
)
from orchestrator.policy.thresholds import LOOKAHEAD


def find_due(state: State) -> tuple[Step, ...]:
    """The steps that should be under way now, most urgent first."""
    if state.ended:
        return ()
    if state.baseline_commit is None:
        return (CommitBaseline(),)
    steps = [step for number, stage in state.open.items() for step in _find_next(state, number, stage)]
    if any(isinstance(step, Promote) for step in steps):
        # The best is about to change: what depends on it waits for the moment that this takes.
        steps = [step for step in steps if isinstance(step, Promote | Reflect | SkipReflection)]
    elif not any(isinstance(step, Judge) for step in steps):
        # A verdict may change the best, too: no slot is given to what would be stale a moment later.
        steps += _grant_slots(state)
    reason = explain_stop(state)
    if not reason:
        return (*steps, *_request_proposals(state))
    steps = [
        step for step in steps if not isinstance(step, Implement | Rebase | Repair) and not _is_postponed(state, step)
    ]
    busy = any(isinstance(stage, Training | Remeasuring) for stage in state.open.values())
    return tuple(steps) if steps or busy else (Stop(reason),)


def _is_postponed(state: State, step: Step) -> bool:
    """A post-mortem whose model asked to come back after the night."""
    return (
        isinstance(step, Reflect)
        and step.task_id in state.waiting
        and state.waiting[step.task_id].until > state.deadline
    )


def _find_next(state: State, number: int, stage: Stage) -> Iterator[Step]:
    """What an experiment needs next; runs are granted apart, since slots are scarce."""
    match stage:
        case Idea(proposal):
            reason = find_repeat(state, number, proposal)
            yield Refuse(number, reason) if reason else Implement(number)
        case Candidate() if stage.scores and not _is_stale(state, number, stage):
            if not isinstance(decision := judge(state, number, stage), str):
                yield Judge(number, decision)
        case Candidate() if _is_stale(state, number, stage):
            assert state.incumbent
            yield Rebase(number, state.incumbent.experiment)
        case Broken(candidate, crash):
            # Who repaired a disqualified candidate would learn from the auditor how to pass.
            final = number == 0 or crash.failure in {"disqualified", "hopeless"}
            repairs = 0 if final else state.session.repairs
            if candidate.repairs < repairs:
                yield Repair(number, candidate.repairs + 1)
            if candidate.repairs >= repairs or explain_stop(state):
                kind = "" if crash.failure == "hopeless" else f"{crash.failure}: "
                yield Judge(number, ev.Failed(experiment=number, reason=kind + crash.message, failure=crash.failure))
        case Decided(verdict=ev.Kept(), promoted=False):
            yield Promote(number)
        case Decided() if _needs_reflection(state, number, stage):
            yield Reflect(number)
        case Decided():
            yield SkipReflection(number, "no post-mortem is due")
        case _:
            pass


def _grant_slots(state: State) -> list[Train]:
    """Free slots go to the candidates that wait: confirmations first, then the oldest."""
    taken = {stage.granted.slot for stage in state.open.values() if isinstance(stage, Training | Remeasuring)}
    free = [slot for slot in range(state.session.slots) if slot not in taken]
    wanted = sorted(_list_wanted_runs(state)) if free and not explain_stop(state) else []
    numbers = list(dict.fromkeys((number, run) for _, _, number, run in wanted))
    return [
        Train(number, run, slot, draw_seed(state, number, run))
        for slot, (number, run) in zip(free, numbers, strict=False)
    ]


def _list_wanted_runs(state: State) -> Iterator[tuple[bool, int, int, int]]:
    """Runs that somebody waits for: (not a confirmation, for which experiment, whose run, which run of it)."""
    for number, stage in state.open.items():
        if not isinstance(stage, Candidate) or _is_stale(state, number, stage) or (number > 0 and not state.incumbent):
            continue
        need = judge(state, number, stage) if stage.scores else "again"
        if need == "again":
            yield (not stage.scores, number, number, stage.runs + 1)
        elif need == "remeasure" and state.incumbent and state.incumbent.experiment not in state.open:
            yield (False, number, state.incumbent.experiment, state.incumbent.runs + 1)


def _request_proposals(state: State) -> list[Propose]:
    """Enough proposals that every slot has a candidate ready behind the one it trains."""
    limits, slots = state.session.limits, state.session.slots
    baseline = state.open.get(0)
    if state.incumbent is None and not (
        isinstance(baseline, Candidate | Training | Decided) and _count_runs(baseline) > 0
    ):
        return []
    behind = sum(1 for n, stage in state.open.items() if n > 0 and isinstance(stage, Idea | Candidate | Broken))
    wanted = slots * LOOKAHEAD - behind
    if limits.experiments is not None:
        wanted = min(wanted, limits.experiments - state.next + 1)
    return [Propose(state.next, wanted, state.unanswered)] if wanted > 0 else []


def _count_runs(stage: Candidate | Training | Decided) -> int:
    return len((stage if isinstance(stage, Candidate) else stage.candidate).scores)


def _is_stale(state: State, number: int, candidate: Candidate) -> bool:
    """Made from a train.py that is no longer the best."""
    return number > 0 and state.incumbent is not None and candidate.commit.parent != state.incumbent.experiment


def _needs_reflection(state: State, number: int, decided: Decided) -> bool:
    every = state.session.reflect_every
    kept = isinstance(decided.verdict, ev.Kept)
    return number > 0 and every > 0 and (kept or state.unreflected + 1 >= every)
