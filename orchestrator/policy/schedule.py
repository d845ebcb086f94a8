"""Decide which steps are due: a pure function of the state."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, groupby, islice

from orchestrator.core import events as ev
from orchestrator.core.state import Broken, Candidate, Decided, Idea, Stage, State, Training
from orchestrator.policy import steps
from orchestrator.policy.certification import certify, list_certificate_runs
from orchestrator.policy.evaluation_plan import plan_certification, plan_evaluation
from orchestrator.policy.judge import NeededRun, judge
from orchestrator.policy.limits import explain_cap, explain_fruitless, explain_stop
from orchestrator.policy.proposals import find_ablation, find_combination, find_duplicate, find_repeat, group_open
from orchestrator.policy.stack import list_live, list_stack, plan_rebase

CLOSING = steps.Reflect | ev.ReflectionSkipped  # what closes an experiment, and changes no verdict


def find_due(state: State) -> tuple[steps.Step, ...]:
    """Return the steps that should be running now, most urgent first."""
    if state.ended:
        return ()
    if not state.parents:
        return (steps.CommitBaseline(),)
    find_next = partial(_find_next, state, group_open(state), list_stack(state))
    needs = [(number, need) for number, stage in state.open.items() for need in find_next(number, stage)]
    found = _hold_back([need for _, need in needs if not isinstance(need, NeededRun)])
    if state.paused and not state.stopping:
        return tuple(step for step in found if not isinstance(step, steps.Edit))
    reason = explain_stop(state)
    if not reason:
        if not any(isinstance(_get_content(step), steps.Promote | ev.Verdict) for step in found):
            found += _grant(state, _list_needed(state, needs))
        kinds = {type(step) for step in found}
        if len(state.slots) == 1 and steps.Reflect in kinds and (state.running or steps.Train in kinds):
            return tuple(found)  # while a run keeps the only slot busy, the next proposal waits for the post-mortem
        if steps.Promote in kinds and state.session.asks_after_promotion:
            return tuple(found)
        return (*found, *_request_proposals(state))
    found = [step for step in found if not isinstance(step, steps.Edit) and not _is_postponed(state, step)]
    decisive = [run for run in state.running if not (run.granted.plan and run.granted.plan.certifies)]
    decisive += [step for step in found if not isinstance(_get_content(step), CLOSING)]
    is_last = len(state.slots) > 1 or not found  # a single slot certifies after everything else
    fresh = list_certificate_runs(state) if is_last and not state.stopping else []
    found += _grant(state, [run for run in fresh if run.experiment == 0 or not decisive], certifies=True)
    certificate = certify(state)
    if found or state.running:
        return tuple(found)
    if certificate and certificate != state.certificate:
        return (steps.Append(certificate, "certify"),)
    return (steps.Append(ev.Ended(reason=reason), "stop"),)


def _hold_back(found: list[steps.Step]) -> list[steps.Step]:
    """Drop steps that a new incumbent would make stale: while a keep is due, only it and closing steps start."""
    if any(isinstance(step, steps.Promote) for step in found):
        return [step for step in found if isinstance(_get_content(step), steps.Promote | CLOSING)]
    keep = next((step for step in found if isinstance(_get_content(step), ev.Kept)), None)
    return [step for step in found if step is keep or not isinstance(_get_content(step), ev.Verdict)] if keep else found


def _get_content(step: steps.Step) -> steps.Step | ev.Event:
    """Return the event that a step only appends; any other step as it is."""
    return step.event if isinstance(step, steps.Append) else step


def _is_postponed(state: State, step: steps.Step) -> bool:
    """Return whether a post-mortem waits for its model until after the deadline."""
    waiting = state.waiting.get(step.task_id)
    return isinstance(step, steps.Reflect) and waiting is not None and waiting.until > state.deadline


def _find_next(
    state: State, same: Mapping[ev.Digest, Sequence[int]], stack: Sequence[int], number: int, stage: Stage
) -> Iterator[steps.Step | NeededRun]:
    """Yield what an experiment needs next; `_grant` grants the runs, since slots are scarce.

    `same` are the open experiments of each source, by its fingerprint; `stack` is that of stack.py.
    """
    match stage:
        case _ if number in state.vetoed:
            yield _append("veto", ev.Vetoed(experiment=number))
        case Idea(proposal) if (cap := explain_cap(state, number)) and proposal.is_idea and not proposal.settings:
            yield _append("abandon", ev.Abandoned(experiment=number, reason=cap))
        case Idea(proposal):
            reason = find_repeat(state, number, proposal)
            edit = steps.Edit(number, f"implement {number}", "implemented")
            yield _append("refuse", ev.Refused(experiment=number, reason=reason)) if reason else edit
        case Candidate() if number not in list_live(state):
            is_judged = stage.scores and not explain_stop(state) and state.get_rival(stage.commit)
            decision = judge(state, number, stage) if is_judged else None
            again = plan_rebase(state, number, stage, stack)
            yield _append("judge", decision) if isinstance(decision, ev.Discarded) else again
        case Candidate(scores=()) if reason := find_duplicate(state, number, same[stage.commit.fingerprint]):
            yield _append("refuse", ev.Refused(experiment=number, reason=reason))
        case Candidate() if number == 0 or not stage.scores or (state.incumbent and state.is_current(stage.commit)):
            decision = judge(state, number, stage)
            is_behind = stage.scores and len(stack) > 1 and number not in stack and stage.proposal.reverts is None
            if is_behind and not isinstance(decision, ev.Discarded):
                decision = plan_rebase(state, number, stage, stack)
            if isinstance(decision, NeededRun):
                yield from _list_runs(state, number, stage, decision)
            else:
                yield _append("judge", decision) if isinstance(decision, ev.Evidence) else decision
        case Broken(candidate, crash):
            # A repair of a disqualified candidate would learn how to pass the audit; none may change a proposed value.
            hopeless = crash.failure == "disqualified" or (crash.failure == "NaN" and candidate.proposal.settings)
            final = number == 0 or hopeless or not candidate.proposal.is_idea
            repairs = 0 if final or explain_cap(state, number) else state.session.repairs
            if candidate.repairs < repairs:
                yield steps.Edit(number, f"repair {number}.{candidate.repairs + 1}", "repaired")
            if candidate.repairs >= repairs or explain_stop(state):
                reason = f"{crash.failure}: {crash.message}"
                yield _append("judge", ev.Failed(experiment=number, reason=reason, failure=crash.failure))
        case Decided(verdict=ev.Kept(), promoted=False):
            yield steps.Promote(number, f"promote {number}")
        case Decided() if _needs_reflection(state, number, stage):
            yield steps.Reflect(number, f"reflect {number}")
        case Decided():
            yield _append("close", ev.ReflectionSkipped(experiment=number, reason="no post-mortem is due"))
        case Candidate() | Training():
            pass


def _list_runs(state: State, number: int, candidate: Candidate, need: NeededRun) -> Iterator[NeededRun]:
    """Yield the run that a verdict waits for; if it is the rival's, with several slots also its own at that seed."""
    has_run = need.experiment == number or need.seed in {score.seed for score in candidate.scores}
    yield from (need,) if has_run or not _is_ahead(state) else (need, NeededRun(number, need.seed))


def _is_ahead(state: State) -> bool:
    """Return whether runs start before all that their candidates' verdicts wait for is there."""
    return state.session.rule.ahead and state.session.slots > 1


def _append(
    verb: str, event: ev.Refused | ev.Abandoned | ev.Vetoed | ev.Verdict | ev.ReflectionSkipped
) -> steps.Append:
    """Return the step that records a decision; verdicts one at a time, since a keep changes the incumbent."""
    number, exclusive = event.experiment, ("verdict",) * isinstance(event, ev.Verdict)
    return steps.Append(event, f"{verb} {number}", (f"experiment {number}", *exclusive))


def _list_needed(state: State, needs: Iterable[tuple[int, steps.Step | NeededRun]]) -> list[NeededRun]:
    """Return the runs that verdicts wait for: those of promising candidates first, the oldest first, rivals first."""
    under_way = {(run.granted.experiment, run.granted.seed) for run in state.reruns.values()}
    wanted = [
        (is_own and not getattr(state.open[number], "scores", ()), number, is_own, need)
        for number, need in needs
        if isinstance(need, NeededRun) and need not in under_way
        for is_own in (need.experiment == number,)
    ]
    return list(dict.fromkeys(need for *_, need in sorted(wanted)))


def _grant(state: State, needs: Iterable[NeededRun], *, certifies: bool = False) -> list[steps.Train]:
    """Return as many of the runs as slots are free."""
    taken = {run.granted.slot for run in state.running}
    grants, found = Counter(state.grants), list[steps.Train]()
    for slot, need in zip((slot for slot in state.slots if slot not in taken), needs, strict=False):
        number, seed = need.experiment, need.seed
        grants[number] += 1
        run, again = grants[number], not isinstance(state.open.get(number), Candidate)
        plan = plan_certification(state) if certifies else plan_evaluation(state, number, run, seed)
        found.append(steps.Train(number, f"train {number}.{run}", run, slot, seed, plan, again))
    return found


def _request_proposals(state: State) -> list[steps.Propose | steps.Append]:
    """Return the steps that keep a candidate ready for each slot, one for each full batch; empty if none is needed."""
    limits, slots = state.session.limits, len(state.slots)
    if state.incumbent is None and slots == 1 and not state.run_seconds:  # the first score of the baseline is told
        return []
    waiting = (stage for n, stage in state.open.items() if n > 0 and isinstance(stage, Idea | Candidate | Broken))
    behind = sum(1 for stage in waiting if not (_is_ahead(state) and getattr(stage, "scores", ())))
    wanted = max(slots - behind, 0)
    end = state.next + wanted if limits.experiments is None else limits.experiments + state.lost + 1
    numbers = list(islice(chain(sorted(state.skipped), range(state.next, end)), wanted))
    if not numbers:
        return []
    chronological = state.session.rule.chronological
    own = find_ablation(state) or find_combination(state) if state.next < end or not chronological else None
    if own:
        verb, proposed = "combine" if own.combines else "ablate", ev.Proposed(experiment=state.next, proposal=own)
        return [steps.Append(proposed, f"{verb} {state.next}", steps.Propose(state.next, 1, 0).resources)]
    if why := explain_fruitless(state):
        fallback = ev.FellBack(reason=f"the optimizer proposes from now on, since {why}")
        return [steps.Append(fallback, "fall back")]
    batches = (list(batch) for _, batch in groupby(numbers, lambda number: (number - 1) // steps.BATCH))
    requests = (steps.Propose(batch[0], len(batch), state.unanswered) for batch in batches)
    in_turn = state.is_automatic and chronological  # at once, each by what those before it proposed
    return list(islice(requests, 1 if in_turn else max(1, len(numbers) // steps.BATCH)))


def _needs_reflection(state: State, number: int, decided: Decided) -> bool:
    failures = state.reflection_failures
    every = state.session.reflect_every * 2**failures  # a reflector that keeps failing is asked less often
    is_due = state.unreflected + 1 >= every or (isinstance(decided.verdict, ev.Kept) and not failures)
    is_due = is_due and decided.proposal.reverts is None and not explain_cap(state, number)
    return number > 0 and every > 0 and is_due
