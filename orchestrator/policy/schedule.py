"""Decide which steps are due: a pure function of the state."""

from collections.abc import Iterator

from orchestrator.core import events as ev
from orchestrator.core.state import Broken, Candidate, Decided, Idea, Remeasuring, Stage, State, Training
from orchestrator.policy import steps
from orchestrator.policy.ablation import find_ablation
from orchestrator.policy.certification import certify, list_certificate_runs
from orchestrator.policy.evaluation_plan import plan_certification, plan_evaluation
from orchestrator.policy.judge import NeededRun, judge
from orchestrator.policy.limits import explain_stop, is_fruitless
from orchestrator.policy.novelty import find_duplicate, find_repeat
from orchestrator.policy.thresholds import LOOKAHEAD


def find_due(state: State) -> tuple[steps.Step, ...]:
    """Return the steps that should be under way now, most urgent first."""
    if state.ended:
        return ()
    if state.baseline_commit is None:
        return (steps.CommitBaseline(),)
    found = _hold_back([step for number, stage in state.open.items() for step in _find_next(state, number, stage)])
    if not any(isinstance(step, steps.Judge | steps.Promote) for step in found):
        found += _grant_slots(state)
    reason = explain_stop(state)
    if not reason:
        return (*found, *_request_proposals(state))
    found = [step for step in found if not isinstance(step, steps.Edit) and not _is_postponed(state, step)]
    busy = any(isinstance(stage, Training | Remeasuring) for stage in state.open.values())
    return tuple(found) if found or busy else _finish(state, reason)


def _finish(state: State, reason: str) -> tuple[steps.Step, ...]:
    """Return the last steps of a night: the certificate's runs while there is time, the certificate, the end."""
    runs = [] if state.stopping else list_certificate_runs(state)
    if runs and state.incumbent:
        plan = plan_certification(state, state.incumbent)
        free = zip(range(state.session.slots), runs, strict=False)
        return tuple(steps.Train(n, state.grants[n] + 1, slot, seed, plan) for slot, (n, seed) in free)
    certificate = certify(state)
    return (steps.Certify(certificate),) if certificate and certificate != state.certificate else (steps.Stop(reason),)


def _hold_back(found: list[steps.Step]) -> list[steps.Step]:
    """Drop steps that a new incumbent would make stale: while a keep is due, only it and closing steps start."""
    if any(isinstance(step, steps.Promote) for step in found):
        return [step for step in found if isinstance(step, steps.Promote | steps.Reflect | steps.SkipReflection)]
    keep = next((step for step in found if isinstance(step, steps.Judge) and isinstance(step.verdict, ev.Kept)), None)
    return [step for step in found if not isinstance(step, steps.Judge) or step is keep] if keep else found


def _is_postponed(state: State, step: steps.Step) -> bool:
    """Return whether the reflector's model must be asked again only after the deadline."""
    waiting = state.waiting.get(step.task_id)
    return isinstance(step, steps.Reflect) and waiting is not None and waiting.until > state.deadline


def _find_next(state: State, number: int, stage: Stage) -> Iterator[steps.Step]:
    """Yield the steps that an experiment needs next; `_grant_slots` grants the runs, since slots are scarce."""
    match stage:
        case Idea(proposal):
            reason = find_repeat(state, number, proposal)
            yield steps.Refuse(number, reason) if reason else steps.Implement(number)
        case Candidate() if _is_stale(state, number, stage):
            yield steps.Rebase(number, state.best)
        case Candidate(scores=()):
            if reason := find_duplicate(state, number, stage.commit.fingerprint):
                yield steps.Refuse(number, reason)
        case Candidate():
            if not isinstance(decision := judge(state, number, stage), NeededRun):
                yield steps.Judge(number, decision)
        case Broken(candidate, crash):
            # Repairing a disqualified candidate would teach it how to pass the audit.
            final = number == 0 or crash.failure == "disqualified" or candidate.proposal.reverts is not None
            repairs = 0 if final else state.session.repairs
            if candidate.repairs < repairs:
                yield steps.Repair(number, candidate.repairs + 1)
            if candidate.repairs >= repairs or explain_stop(state):
                reason = f"{crash.failure}: {crash.message}"
                yield steps.Judge(number, ev.Failed(experiment=number, reason=reason, failure=crash.failure))
        case Decided(verdict=ev.Kept(), promoted=False):
            yield steps.Promote(number)
        case Decided() if _needs_reflection(state, number, stage):
            yield steps.Reflect(number)
        case Decided():
            yield steps.SkipReflection(number, "no post-mortem is due")
        case Training() | Remeasuring():
            pass


def _grant_slots(state: State) -> list[steps.Train]:
    """Return runs for the free slots: further runs of promising candidates first, then the oldest candidates."""
    taken = {stage.granted.slot for stage in state.open.values() if isinstance(stage, Training | Remeasuring)}
    free = [slot for slot in range(state.session.slots) if slot not in taken]
    wanted = sorted(_list_wanted_runs(state)) if free and not explain_stop(state) else []
    runs = dict.fromkeys(wanted_run for *_, wanted_run in wanted)
    return [
        steps.Train(number, run, slot, seed, plan_evaluation(state, number, run, seed))
        for slot, (number, run, seed) in zip(free, runs, strict=False)
    ]


def _list_wanted_runs(state: State) -> Iterator[tuple[bool, int, tuple[int, int, int]]]:
    """Yield the runs that candidates wait for: (is a first run, waiting experiment, (experiment, run, seed))."""
    for number, stage in state.open.items():
        if not isinstance(stage, Candidate) or _is_stale(state, number, stage) or (number > 0 and not state.incumbent):
            continue
        if not stage.scores and find_duplicate(state, number, stage.commit.fingerprint):
            continue
        need = judge(state, number, stage)
        if not isinstance(need, NeededRun):
            continue
        if need.experiment == number:
            yield (not stage.scores, number, (number, state.grants.get(number, 0) + 1, need.seed))
        elif need.experiment not in state.open:
            yield (False, number, (need.experiment, state.grants[need.experiment] + 1, need.seed))


def _request_proposals(state: State) -> list[steps.Propose | steps.Ablate | steps.FallBack]:
    """Return a request for enough proposals to keep a candidate ready behind each slot."""
    limits, slots = state.session.limits, state.session.slots
    if state.incumbent is None and not _is_baseline_scored(state):
        return []
    behind = sum(1 for n, stage in state.open.items() if n > 0 and isinstance(stage, Idea | Candidate | Broken))
    wanted = slots * LOOKAHEAD - behind
    if limits.experiments is not None:
        wanted = min(wanted, limits.experiments - state.next + 1)
    if wanted <= 0:
        return []
    if ablation := find_ablation(state):
        return [steps.Ablate(state.next, ablation)]
    if is_fruitless(state):
        why = f"{state.fruitless} rounds in a row led to no run: {state.setback}"
        return [steps.FallBack(f"the optimizer proposes from now on, since {why}")]
    return [steps.Propose(state.next, wanted, state.unanswered)]


def _is_baseline_scored(state: State) -> bool:
    """Return whether the baseline has a score, which a first proposal needs."""
    match state.open.get(0):
        case Candidate(scores=scores) | Training(Candidate(scores=scores)) | Decided(scores=scores):
            return bool(scores)
        case _:
            return False


def _is_stale(state: State, number: int, candidate: Candidate) -> bool:
    """Return whether a candidate started from another train.py than the incumbent's."""
    return number > 0 and state.incumbent is not None and candidate.commit.parent != state.best


def _needs_reflection(state: State, number: int, decided: Decided) -> bool:
    failures = state.reflection_failures
    every = state.session.reflect_every * 2**failures  # a reflector that keeps failing is asked less often
    kept = isinstance(decided.verdict, ev.Kept) and not failures
    if decided.proposal.reverts is not None:
        return False
    return number > 0 and every > 0 and (kept or state.unreflected + 1 >= every)
