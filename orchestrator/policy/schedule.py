"""Decide which steps are due: a pure function of the state."""

from collections.abc import Iterable, Iterator

from orchestrator.core import events as ev
from orchestrator.core.state import Broken, Candidate, Decided, Idea, Remeasuring, Stage, State, Training, is_training
from orchestrator.policy import steps
from orchestrator.policy.ablation import find_ablation
from orchestrator.policy.certification import certify, list_certificate_runs
from orchestrator.policy.evaluation_plan import plan_certification, plan_evaluation
from orchestrator.policy.judge import NeededRun, judge
from orchestrator.policy.limits import explain_stop, is_fruitless
from orchestrator.policy.novelty import find_duplicate, find_repeat
from orchestrator.policy.thresholds import LOOKAHEAD


def find_due(state: State) -> tuple[steps.Step, ...]:
    """Return the steps that should be running now, most urgent first."""
    if state.ended:
        return ()
    if state.baseline_commit is None:
        return (steps.CommitBaseline(),)
    needs = [(number, need) for number, stage in state.open.items() for need in _find_next(state, number, stage)]
    found = _hold_back([need for _, need in needs if not isinstance(need, NeededRun)])
    if not any(isinstance(_get_content(step), steps.Promote | ev.Verdict) for step in found):
        found += _grant_slots(state, [(number, need) for number, need in needs if isinstance(need, NeededRun)])
    reason = explain_stop(state)
    if not reason:
        return (*found, *_request_proposals(state))
    found = [step for step in found if not isinstance(step, steps.Edit) and not _is_postponed(state, step)]
    return tuple(found) if found or is_training(state) else _finish(state, reason)


def _finish(state: State, reason: str) -> tuple[steps.Step, ...]:
    """Return the last steps of a night: the certificate's runs while there is time, the certificate, the end."""
    runs = [] if state.stopping or not state.slots else list_certificate_runs(state)
    if runs and state.incumbent:
        plan = plan_certification(state, state.incumbent)
        free = zip(state.slots, runs, strict=False)
        return tuple(_train(n, state.grants[n] + 1, slot, seed, plan) for slot, (n, seed) in free)
    certificate = certify(state)
    if certificate and certificate != state.certificate:
        return (steps.Append(certificate, "certify", ("certify",)),)
    return (steps.Append(ev.Ended(reason=reason), "stop", ("stop",)),)


def _hold_back(found: list[steps.Step]) -> list[steps.Step]:
    """Drop steps that a new incumbent would make stale: while a keep is due, only it and closing steps start."""
    if any(isinstance(step, steps.Promote) for step in found):
        closing = steps.Promote | steps.Reflect | ev.ReflectionSkipped
        return [step for step in found if isinstance(_get_content(step), closing)]
    keep = next((step for step in found if isinstance(_get_content(step), ev.Kept)), None)
    return [step for step in found if step is keep or not isinstance(_get_content(step), ev.Verdict)] if keep else found


def _get_content(step: steps.Step) -> steps.Step | ev.Event:
    """Return the event that a step only appends; any other step as it is."""
    return step.event if isinstance(step, steps.Append) else step


def _is_postponed(state: State, step: steps.Step) -> bool:
    """Return whether a post-mortem waits for its model until after the deadline."""
    waiting = state.waiting.get(step.task_id)
    return isinstance(step, steps.Reflect) and waiting is not None and waiting.until > state.deadline


def _find_next(state: State, number: int, stage: Stage) -> Iterator[steps.Step | NeededRun]:
    """Yield what an experiment needs next; `_grant_slots` grants the runs, since slots are scarce."""
    match stage:
        case Idea(proposal):
            reason = find_repeat(state, number, proposal)
            yield _refuse(number, reason) if reason else steps.Edit(number, f"implement {number}", "implemented")
        case Candidate() if _is_stale(state, number, stage):
            yield steps.Edit(number, f"rebase {number} on {state.best}", "rebased")
        case Candidate(scores=()) if reason := find_duplicate(state, number, stage.commit.fingerprint):
            yield _refuse(number, reason)
        case Candidate() if number == 0 or state.incumbent:
            decision = judge(state, number, stage)
            yield decision if isinstance(decision, NeededRun) else _judge(decision)
        case Broken(candidate, crash):
            # A repair of a disqualified candidate would learn how to pass the audit.
            final = number == 0 or crash.failure == "disqualified" or candidate.proposal.reverts is not None
            repairs = 0 if final else state.session.repairs
            if candidate.repairs < repairs:
                yield steps.Edit(number, f"repair {number}.{candidate.repairs + 1}", "repaired")
            if candidate.repairs >= repairs or explain_stop(state):
                reason = f"{crash.failure}: {crash.message}"
                yield _judge(ev.Failed(experiment=number, reason=reason, failure=crash.failure))
        case Decided(verdict=ev.Kept(), promoted=False):
            yield steps.Promote(number, f"promote {number}")
        case Decided() if _needs_reflection(state, number, stage):
            yield steps.Reflect(number, f"reflect {number}")
        case Decided():
            skipped = ev.ReflectionSkipped(experiment=number, reason="no post-mortem is due")
            yield steps.Append(skipped, f"close {number}", (f"experiment {number}",))
        case Candidate() | Training() | Remeasuring():
            pass


def _refuse(number: int, reason: str) -> steps.Append:
    """Return the step that closes a repeat before it costs a run."""
    return steps.Append(ev.Refused(experiment=number, reason=reason), f"refuse {number}", (f"experiment {number}",))


def _judge(verdict: ev.Verdict) -> steps.Append:
    """Return the step that records a verdict, one at a time: a keep changes the incumbent for the next."""
    number = verdict.experiment
    return steps.Append(verdict, f"judge {number}", (f"experiment {number}", "verdict"))


def _train(number: int, run: int, slot: int, seed: int, plan: ev.EvaluationPlan) -> steps.Train:
    return steps.Train(number, f"train {number}.{run}", run, slot, seed, plan)


def _grant_slots(state: State, needs: Iterable[tuple[int, NeededRun]]) -> list[steps.Train]:
    """Return runs for the free slots: further runs of promising candidates, then first runs, the oldest first."""
    taken = {stage.granted.slot for stage in state.open.values() if isinstance(stage, Training | Remeasuring)}
    free = [slot for slot in state.slots if slot not in taken]
    wanted: list[tuple[bool, int, tuple[int, int, int]]] = []
    for number, need in needs:
        if need.experiment == number or need.experiment not in state.open:
            run = state.grants.get(need.experiment, 0) + 1
            is_first = need.experiment == number and not getattr(state.open[number], "scores", ())
            wanted.append((is_first, number, (need.experiment, run, need.seed)))
    runs = dict.fromkeys(run for *_, run in sorted(wanted)) if not explain_stop(state) else {}
    return [
        _train(number, run, slot, seed, plan_evaluation(state, number, run, seed))
        for slot, (number, run, seed) in zip(free, runs, strict=False)
    ]


def _request_proposals(state: State) -> list[steps.Propose | steps.Append]:
    """Return the step that gets as many proposals as keep a candidate ready for each slot; empty if none is needed."""
    limits, slots = state.session.limits, len(state.slots)
    if state.incumbent is None and not _is_baseline_scored(state):
        return []
    behind = sum(1 for n, stage in state.open.items() if n > 0 and isinstance(stage, Idea | Candidate | Broken))
    wanted = slots * LOOKAHEAD - behind
    if limits.experiments is not None:
        wanted = min(wanted, limits.experiments - state.next + 1)
    if wanted <= 0:
        return []
    if ablation := find_ablation(state):
        proposed = ev.Proposed(experiment=state.next, proposal=ablation)
        return [steps.Append(proposed, f"ablate {state.next}", ("propose",))]
    if is_fruitless(state):
        why = f"{state.fruitless} rounds in a row led to no run: {state.setback}"
        fallback = ev.FellBack(reason=f"the optimizer proposes from now on, since {why}")
        return [steps.Append(fallback, "fall back", ("propose",))]
    return [steps.Propose(state.next, wanted, state.unanswered)]


def _is_baseline_scored(state: State) -> bool:
    """Return whether the baseline has a score, as the first proposal requires."""
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
    is_due = state.unreflected + 1 >= every or (isinstance(decided.verdict, ev.Kept) and not failures)
    return number > 0 and every > 0 and is_due and decided.proposal.reverts is None
