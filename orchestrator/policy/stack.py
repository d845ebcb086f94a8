"""Stack promising candidates: each starts from the one before, as if that were kept already.

A keep makes stale whatever started from an earlier train.py. With many slots several changes are about to be kept at
any time, and only one can be first: stacked, the others start from what the branch will be.
"""

from collections import defaultdict
from collections.abc import Sequence

from orchestrator.core import events as ev
from orchestrator.core.state import Candidate, State, Training
from orchestrator.policy import belief, steps
from orchestrator.policy import thresholds as th
from orchestrator.policy.evidence import compare, estimate_sigma, include_earlier, learn_outlook
from orchestrator.policy.limits import remember


def list_stack(state: State) -> Sequence[int]:
    """Return the best and the promising candidates, each of which starts from the one before it."""
    stack, children = [state.best], defaultdict[int, dict[int, Candidate]](dict)
    for number, stage in state.open.items() if state.session.rule.stacks and state.incumbent else ():
        candidate = stage.candidate if isinstance(stage, Training) else stage
        if not isinstance(candidate, Candidate) or not (candidate.scores or candidate.earlier):
            continue
        if number in list_live(state) and number not in state.vetoed:
            children[candidate.commit.parent][number] = candidate
    outlook = learn_outlook(state) if children else None
    while outlook:
        those = sorted(children[stack[-1]].items(), key=lambda pair: (not children[pair[0]], pair[0]))
        found = next((number for number, one in those if _is_promising(state, one, outlook)), None)
        if found is None:
            break
        stack.append(found)
    return stack


@remember
def list_live(state: State) -> frozenset[int]:
    """Return the candidates that start from the branch, or from what may still come to stand on it."""
    commits = {n: stage.commit for n, stage in state.open.items() if isinstance(stage, Candidate | Training)}
    behind = defaultdict[tuple[int, ev.Digest], list[int]](list)
    for number, commit in commits.items():
        behind[commit.parent, commit.onto].append(number)
    live = [number for number, commit in commits.items() if state.is_current(commit)]
    for number in live:  # grows by those that start from it
        live += behind[number, commits[number].source] if number not in state.vetoed else []
    return frozenset(live)


def plan_rebase(state: State, number: int, candidate: Candidate, stack: Sequence[int]) -> steps.Edit:
    """Return the step that gives a candidate another parent: the end of the stack if it has run, else the best."""
    tail, has_run = next(n for n in reversed(stack) if n != number), candidate.scores or candidate.earlier
    commit = state.open[tail].commit if tail != state.best and has_run else None
    again = f" after {candidate.moves}" * state.session.rule.consistent  # no step is due again once it has ended
    if commit is None or candidate.proposal.reverts is not None:
        return steps.Edit(number, f"rebase {number} on {state.best}{again}", "rebased")
    return steps.Edit(number, f"stack {number} on {tail} as {commit.source}{again}", "rebased", tail)


def sum_up(state: State, candidate: Candidate) -> tuple[float, float, int] | None:
    """Return gain, error and runs of a candidate on its parent, which count after a rebase; None if none do."""
    rival = state.get_rival(candidate.commit)
    if not (state.session.rule.stacks and candidate.scores and rival):
        return None
    found = compare(state, rival, candidate)
    return found.gain * found.sigma, found.error * found.sigma, len(candidate.scores)


def _is_promising(state: State, candidate: Candidate, outlook: belief.Outlook) -> bool:
    """Return whether what a candidate has shown so far makes a keep likely."""
    rival = state.get_rival(candidate.commit)
    if candidate.proposal.reverts is not None or not (rival or state.session.rule.ahead):  # it may have no score yet
        return False
    found = compare(state, rival, candidate) if rival and candidate.scores else None
    if found and found.gain < -th.CLEAR * found.error and state.session.rule.consistent:
        return False  # whatever it gained elsewhere, which could cancel the loss (decision 0073)
    posterior = include_earlier(outlook.prior, candidate, found.sigma if found else estimate_sigma(state))
    posterior = belief.infer(posterior, found.gain, found.error) if found else posterior
    return posterior.mean > 0 and posterior.probability >= th.PROMISING
