"""Propose ablations: late in a long night, runs of the best train.py without one of its least certain keeps."""

from math import ceil

from orchestrator.core import events as ev
from orchestrator.core.state import State
from orchestrator.policy import belief
from orchestrator.policy.evidence import learn_outlook
from orchestrator.policy.limits import count_certificate_rounds, estimate_runs, has_time_for
from orchestrator.policy.thresholds import ABLATE_BELOW, ABLATION_SHARE, SIMPLER_LINES


def assess_keep(state: State, experiment: int) -> belief.Belief:
    """Return the posterior of a kept change now, from its comparison, its ablation if any, and the present prior."""
    found = learn_outlook(state).prior
    for result in state.judged:
        sign = 1 if result.experiment == experiment else -1 if result.proposal.reverts == experiment else 0
        if sign and isinstance(verdict := result.verdict, ev.Evidence) and verdict.error > 0:
            found = belief.infer(found, sign * verdict.gain / verdict.sigma, verdict.error / verdict.sigma)
    return found


def find_keep(state: State, experiment: int | None) -> ev.Kept | None:
    """Return the verdict on a keep; None if no such experiment was kept."""
    verdicts = (result.verdict for result in state.judged if result.experiment == experiment)
    return next((verdict for verdict in verdicts if isinstance(verdict, ev.Kept)), None)


def find_ablation(state: State) -> ev.Proposal | None:
    """Return the ablation that is due: of the least certain keep, within the last runs before the certificate."""
    extra = int(ABLATION_SHARE * estimate_runs(state))
    limit = state.session.limits.experiments
    is_late = not has_time_for(state, count_certificate_rounds(state) + 1 + ceil(extra / state.session.slots))
    if not extra or not (is_late or (limit is not None and limit - state.next < extra)):
        return None
    ablated = {stage.proposal.reverts for stage in (*state.results, *state.open.values())}
    # A keep without a gain has nothing to lose, so only those that were kept for their gain are ablated.
    for_gain = [k for k in state.kept if k.commit and k.commit.removed - k.commit.added < SIMPLER_LINES]
    beliefs = [(assess_keep(state, kept.experiment), kept) for kept in for_gain if kept.experiment not in ablated]
    doubts = [(doubt, kept) for doubt, kept in beliefs if doubt.probability < ABLATE_BELOW]
    if not doubts:
        return None
    doubt, kept = min(doubts, key=lambda pair: pair[0].probability)
    number, sigma = kept.experiment, kept.verdict.sigma if isinstance(kept.verdict, ev.Kept) else 0.0
    metric = state.session.task.metric
    at = " at equal seeds" * (state.session.task.noun == "seed")
    worse = "lower" if metric.goal == "max" else "higher"
    return ev.Proposal(
        title=f"revert #{number}: {kept.proposal.title}"[:120],
        hypothesis=f"Without the change of #{number}, {metric.name} is not {worse}: its gain was luck.",
        rationale=f"#{number} was kept on little evidence. It is now better with probability {doubt.probability:.2f}, "
        f"expected {metric.format_change(-doubt.mean * sigma)}. An ablation compares the best train.py with and "
        f"without it{at}; it is reverted if the one without is more likely to be better.",
        expected_delta=doubt.mean * sigma,
        family=kept.proposal.family,
        instructions=f"Remove the change of experiment {number} from train.py, and nothing else.",
        author="nightshift",
        reverts=number,
    )
