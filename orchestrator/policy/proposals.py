"""Refuse what need not be run; propose ablations of uncertain keeps, and combinations of near-misses."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import islice, takewhile
from math import ceil
from operator import attrgetter, itemgetter

from orchestrator.core import events as ev
from orchestrator.core.state import Candidate, Decided, Stage, State, Training
from orchestrator.core.text import shorten
from orchestrator.policy.belief import Belief, is_near_miss
from orchestrator.policy.evidence import estimate_sigma, expect, include_verdict, learn_outlook
from orchestrator.policy.limits import WORDS, count_certificate_rounds, estimate_runs, has_time_for, remember
from orchestrator.policy.thresholds import (
    ABLATE_BELOW,
    ABLATION_SHARE,
    COMBINE_SHARE,
    MAX_COMBINED,
    REPEAT_EXPIRY,
    SIMPLER_LINES,
)


def find_repeat(state: State, number: int, proposal: ev.Proposal) -> str:
    """Return why a proposal is a repeat of an earlier or current one; empty if it is new."""
    if any("seed" in name.rpartition(":")[2].lower() for name in proposal.settings):  # before it may stand a path
        return "another seed is not an improvement: the orchestrator assigns the seeds"
    if not proposal.settings:
        return ""
    recent = (r for r in state.results[-REPEAT_EXPIRY:] if r.status == "discarded" and r.incumbent == state.best)
    tried = [(result.experiment, result.proposal) for result in recent]
    under_way = [(n, state.open[n].proposal) for n in _list_earlier(state, number, state.open)]
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
    further = [n for n in under_way if state.session.rule.chronological and _has_begun(state.open[n])]
    same = [*earlier, *_list_earlier(state, number, under_way), *further]
    if state.best in same:
        return "it changes nothing but comments, layout or a seed"
    # An ablation of the last keep has its parent's code on purpose.
    is_ablation = state.open[number].proposal.reverts is not None
    return f"it is the same code as experiment {same[0]}" if same and not is_ablation else ""


def _list_earlier(state: State, number: int, numbers: Iterable[int]) -> Iterable[int]:
    """Return those of the open experiments, given in their order, that were proposed before this one."""
    return takewhile(number.__ne__, numbers) if state.session.rule.chronological else filter(number.__gt__, numbers)


def _has_begun(stage: Stage) -> bool:
    """Return whether an experiment trains, has a score, or has its verdict."""
    return isinstance(stage, Training | Decided) or bool(isinstance(stage, Candidate) and stage.scores)


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
    if not extra or not _is_late(state, extra, 1):
        return None
    prior, under_way = learn_outlook(state).prior, {stage.proposal.reverts for stage in state.open.values()}
    uncertain = (kept for kept in _list_for_gain(state.results) if kept.experiment not in under_way)
    beliefs = [(include_verdict(expect(state, kept.proposal, prior), kept), kept) for kept in uncertain]
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


def find_combination(state: State) -> ev.Proposal | None:
    """Return the combination that is due: the best near-misses together, within the last runs before the certificate.

    They may be worth more than a new idea, and each takes part in one combination only.
    """
    runs = estimate_runs(state)
    extra = max(int(COMBINE_SHARE * runs), 1) + int(ABLATION_SHARE * runs)
    if not (state.session.rule.combines and _is_late(state, extra, 2)):
        return None
    outlook, found = learn_outlook(state), list[tuple[Decided, Belief]]()
    likely = islice(_list_combinable(state), 4 * MAX_COMBINED)
    shown = [(result, include_verdict(outlook.prior, result)) for result in likely]
    for result, belief in sorted(shown, key=lambda pair: -pair[1].mean):
        taken = {name for part, _ in found for name in part.proposal.settings}
        if is_near_miss(belief) and not taken & result.proposal.settings.keys() and len(found) < MAX_COMBINED:
            found.append((result, belief))
    total = reduce(Belief.add, [belief for _, belief in found]) if len(found) > 1 else None
    if total is None or total.promise <= outlook.prior.promise:
        return None
    parts, sigma = sorted((part for part, _ in found), key=attrgetter("experiment")), estimate_sigma(state)
    named, settings = [f"#{part.experiment}" for part in parts], [part.proposal.settings for part in parts]
    titles = (f"{name}: {part.proposal.title}" for name, part in zip(named, parts, strict=True))
    return ev.Proposal(
        title=shorten(f"combine {'; '.join(titles)}", 120),
        hypothesis=WORDS.together(named, state.session.task.metric),
        rationale=WORDS.combination(parts, total, sigma, state.session.task),
        expected_delta=-total.mean * sigma,
        family=parts[0].proposal.family,
        settings={name: value for each in settings for name, value in each.items()} if all(settings) else {},
        instructions=f"Make the changes of {', '.join(named)} together, and nothing else.",
        author="nightshift",
        combines=tuple(part.experiment for part in parts),
    )


def _list_combinable(state: State) -> Iterator[Decided]:
    """Yield the discarded ideas that still apply to the best, and that nothing larger has included, the best first."""
    under_way = [stage.proposal for stage in state.open.values()]
    used = {number for proposal in under_way for number in proposal.combines}
    order = [*state.former, state.best] if state.session.rule.chronological else range(state.next)
    places = {number: place for place, number in enumerate(order)}
    kept = [
        (places.get(r.experiment, state.next), r.proposal.settings.keys())  # one that is yet to be promoted is the last
        for r in state.settled
        if r.status == "kept" and not r.proposal.reverts
    ]
    for result in _list_near_misses(state.results):
        base, mine = places.get(result.incumbent, -1), result.proposal.settings.keys()
        is_moved = any(place > base and names & mine for place, names in kept)
        if not is_moved and result.experiment not in used and not _is_included(result, under_way):
            yield result


@remember
def _list_near_misses(results: tuple[Decided, ...]) -> list[Decided]:
    """Return the discarded ideas that looked better and that no larger trial has included, the best first."""
    used = {number for result in results for number in result.proposal.combines}
    joint = [result.proposal for result in results if len(result.proposal.settings) > 1]
    found = [
        (result.verdict.gain, result)
        for result in results
        if isinstance(result.verdict, ev.Discarded) and result.status == "discarded" and result.verdict.gain > 0
        if result.proposal.is_idea and result.experiment not in used and not _is_included(result, joint)
    ]
    return [result for _, result in sorted(found, key=itemgetter(0), reverse=True)]


def _is_included(result: Decided, proposals: Iterable[ev.Proposal]) -> bool:
    """Return whether one of the proposals sets what this one has set, and more."""
    mine = result.proposal.settings
    return bool(mine) and any(proposal.settings.items() > mine.items() for proposal in proposals)


def _is_late(state: State, extra: int, more: int) -> bool:
    """Return whether these runs, and `more` on each slot, no longer fit before the certificate."""
    limit = state.session.limits.experiments
    fits = has_time_for(state, count_certificate_rounds(state) + more + ceil(extra / state.session.slots))
    return not fits or (limit is not None and limit + state.lost - state.next < extra)


@remember
def _list_for_gain(results: tuple[Decided, ...]) -> list[Decided]:
    """Return what was kept for its gain, and not ablated yet: a keep without a gain has nothing to lose."""
    ablated = {result.proposal.reverts for result in results}
    kept = (r for r in results if r.status == "kept" and r.experiment > 0 and r.proposal.reverts is None)
    for_gain = (r for r in kept if r.commit and r.commit.removed - r.commit.added < SIMPLER_LINES)
    return [result for result in for_gain if result.experiment not in ablated]
