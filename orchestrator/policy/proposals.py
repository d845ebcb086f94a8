"""Refuse what need not be run, repeated proposals and sources; propose ablations of uncertain keeps."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import ceil

from orchestrator.core import events as ev
from orchestrator.core.state import Decided, State
from orchestrator.policy.evidence import include_verdict, learn_outlook
from orchestrator.policy.limits import WORDS, count_certificate_rounds, estimate_runs, has_time_for, remember
from orchestrator.policy.thresholds import ABLATE_BELOW, ABLATION_SHARE, REPEAT_EXPIRY, SIMPLER_LINES


def find_repeat(state: State, number: int, proposal: ev.Proposal) -> str:
    """Return why a proposal is a repeat of an earlier or current one; empty if it is new."""
    if any("seed" in name.lower() for name in proposal.settings):
        return "another seed is not an improvement: the orchestrator assigns the seeds"
    if not proposal.settings:
        return ""
    recent = (r for r in state.results[-REPEAT_EXPIRY:] if r.status == "discarded" and r.incumbent == state.best)
    tried = [(result.experiment, result.proposal) for result in recent]
    under_way = [(n, stage.proposal) for n, stage in state.open.items() if 0 < n < number]
    for experiment, earlier in (*tried, *under_way):
        if _is_same_change(earlier, proposal):
            return f"{describe_settings(proposal)} repeats experiment {experiment} ({describe_settings(earlier)})"
    return ""


def group_open(state: State) -> Mapping[ev.Digest, list[int]]:
    """Return the open experiments of each source, by its fingerprint."""
    numbers = defaultdict[ev.Digest, list[int]](list)
    for number, stage in state.open.items():
        if commit := stage.commit:
            numbers[commit.fingerprint].append(number)
    return numbers


def find_duplicate(state: State, number: int, under_way: Sequence[int]) -> str:
    """Return why a source need not be trained, given the open experiments of it; empty if it is new."""
    commit = state.open[number].commit
    earlier = state.sources.get(commit.fingerprint, ()) if commit else ()
    same = [*earlier, *(other for other in under_way if other < number)]
    if state.best in same:
        return "it changes nothing but comments, layout or a seed"
    # An ablation of the last keep has its parent's code on purpose.
    is_ablation = state.open[number].proposal.reverts is not None
    return f"it is the same code as experiment {same[0]}" if same and not is_ablation else ""


def describe_settings(proposal: ev.Proposal) -> str:
    """Return the constants that a proposal sets: `MATRIX_LR up to 0.06`, or `A = 1, B = 2` for several."""
    match list(proposal.settings.items()), proposal.direction:
        case [(name, value)], str(direction):
            return f"{name} {direction} to {value}"
        case settings, _:
            return ", ".join(f"{name} = {value}" for name, value in settings)


def _is_same_change(earlier: ev.Proposal, now: ev.Proposal) -> bool:
    """Return whether both set the same values, or, for agents, move one constant in the same direction."""
    if earlier.settings.keys() != now.settings.keys() or earlier.direction != now.direction:
        return False
    same_way = now.direction in ("up", "down") and now.author != "optimizer"
    return same_way or earlier.settings == now.settings


def find_ablation(state: State) -> ev.Proposal | None:
    """Return the ablation that is due: of the least certain keep, within the last runs before the certificate."""
    extra = int(ABLATION_SHARE * estimate_runs(state))
    limit = state.session.limits.experiments
    is_late = not has_time_for(state, count_certificate_rounds(state) + 1 + ceil(extra / state.session.slots))
    if not extra or not (is_late or (limit is not None and limit - state.next < extra)):
        return None
    prior, under_way = learn_outlook(state).prior, {stage.proposal.reverts for stage in state.open.values()}
    uncertain = (kept for kept in _list_for_gain(state.results) if kept.experiment not in under_way)
    beliefs = [(include_verdict(prior, kept), kept) for kept in uncertain]
    doubts = [(doubt, kept) for doubt, kept in beliefs if doubt.probability < ABLATE_BELOW]
    if not doubts:
        return None
    doubt, kept = min(doubts, key=lambda pair: pair[0].probability)
    number, sigma = kept.experiment, kept.verdict.sigma if isinstance(kept.verdict, ev.Kept) else 0.0
    return ev.Proposal(
        title=f"revert #{number}: {kept.proposal.title}"[:120],
        hypothesis=WORDS.doubt(number, state.session.task.metric),
        rationale=WORDS.ablation(number, doubt, sigma, state.session.task),
        expected_delta=doubt.mean * sigma,
        family=kept.proposal.family,
        instructions=f"Remove the change of experiment {number}, and nothing else.",
        author="nightshift",
        reverts=number,
    )


@remember
def _list_for_gain(results: tuple[Decided, ...]) -> list[Decided]:
    """Return what was kept for its gain, and not ablated yet: a keep without a gain has nothing to lose."""
    ablated = {result.proposal.reverts for result in results}
    kept = (r for r in results if r.status == "kept" and r.experiment > 0 and r.proposal.reverts is None)
    for_gain = (r for r in kept if r.commit and r.commit.removed - r.commit.added < SIMPLER_LINES)
    return [result for result in for_gain if result.experiment not in ablated]
