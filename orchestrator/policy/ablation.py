"""Take back a kept change that is not certain, on trial: late in the night, and for good where nothing is lost."""

from math import ceil

from orchestrator.core import events as ev
from orchestrator.core.state import Decided, State, get_proposal
from orchestrator.core.text import format_signed
from orchestrator.policy import belief
from orchestrator.policy.evidence import learn_outlook
from orchestrator.policy.limits import count_certificate_rounds, estimate_runs, has_time_for
from orchestrator.policy.thresholds import ABLATE_BELOW, ABLATION_SHARE, SIMPLER_LINES


def assess_keep(state: State, experiment: int) -> belief.Belief:
    """Return what is believed of a kept change now.

    That is its own comparison under the prior that the whole night has taught, and its ablation where it had one.
    """
    found = learn_outlook(state).prior
    for result in state.judged:
        sign = 1 if result.experiment == experiment else -1 if result.proposal.reverts == experiment else 0
        if sign and isinstance(verdict := result.verdict, ev.Evidence) and verdict.error > 0:
            found = belief.infer(found, sign * verdict.gain / verdict.sigma, verdict.error / verdict.sigma)
    return found


def count_seeds_of_keep(state: State, experiment: int | None) -> int:
    """Return how many seeds a keep was judged by; its ablation runs with others, which it was not chosen for."""
    return sum(len(kept.differences) for kept in _list_verdicts(state, experiment))


def get_expected_gain(state: State, experiment: int) -> float:
    """Return the gain in bits per byte that was expected of a keep when it was adopted."""
    return sum(kept.gain if kept.expected is None else kept.expected for kept in _list_verdicts(state, experiment))


def _list_verdicts(state: State, experiment: int | None) -> list[ev.Kept]:
    """Return the verdict on a keep; nothing where no such experiment was kept."""
    found = [result.verdict for result in state.judged if result.experiment == experiment]
    return [verdict for verdict in found if isinstance(verdict, ev.Kept)]


def find_ablation(state: State) -> ev.Proposal | None:
    """Return the ablation that is due: of the least certain keep, within the last runs before the certificate."""
    extra = int(ABLATION_SHARE * estimate_runs(state))
    limit = state.session.limits.experiments
    is_late = not has_time_for(state, count_certificate_rounds(state) + 1 + ceil(extra / state.session.slots))
    if not extra or not (is_late or (limit is not None and limit - state.next < extra)):
        return None
    asked = {result.proposal.reverts for result in state.judged}
    asked |= {get_proposal(stage).reverts for stage in state.open.values()}
    doubts = {
        kept.experiment: (doubt.probability, kept, doubt)
        for kept in state.results
        if _is_revertible(kept) and kept.experiment not in asked
        if (doubt := assess_keep(state, kept.experiment)).probability < ABLATE_BELOW
    }
    if not doubts:
        return None
    probability, kept, doubt = min(doubts.values(), key=lambda entry: entry[0])
    number, sigma = kept.experiment, kept.verdict.sigma if isinstance(kept.verdict, ev.Kept) else 0.0
    return ev.Proposal(
        title=f"take back #{number}: {kept.proposal.title}"[:120],
        hypothesis=f"Without the change of #{number}, val_bpb is no higher: its gain was luck.",
        rationale=f"#{number} was adopted on little evidence and is better with a probability of {probability:.2f} "
        f"now, expected {format_signed(-doubt.mean * sigma)}. An ablation compares the best train.py with and without "
        "it at equal seeds; it is taken back where the one without is the likelier to be better.",
        expected_delta=doubt.mean * sigma,
        family=kept.proposal.family,
        instructions=f"Take the change of experiment {number} out of train.py, and nothing else.",
        author="nightshift",
        reverts=number,
    )


def _is_revertible(result: Decided) -> bool:
    """Return whether a result is a keep on the branch that was adopted for its gain."""
    if result.status != "kept" or not result.experiment or result.proposal.reverts is not None or not result.commit:
        return False
    return result.commit.removed - result.commit.added < SIMPLER_LINES
