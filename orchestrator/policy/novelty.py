from orchestrator.core import events as ev
from orchestrator.core.state import (
    Broken,
    Candidate,
    Decided,
    ExperimentResult,
    Idea,
    Remeasuring,
    Stage,
    State,
    Training,
    get_proposal,
)
from orchestrator.policy.thresholds import REPEAT_EXPIRY


def find_repeat(state: State, number: int, proposal: ev.Proposal) -> str:
    """Why this was tried already, or is under way; empty if it is new."""
    knob = proposal.knob
    if knob is None:
        return ""
    if "seed" in knob.parameter.lower():
        return "another seed is not an improvement: the orchestrator assigns the seeds"
    best = state.incumbent.experiment if state.incumbent else 0
    tried = [(f.experiment, f.proposal) for f in state.results[-REPEAT_EXPIRY:] if _was_discarded_against(f, best)]
    under_way = [(n, get_proposal(stage)) for n, stage in state.open.items() if 0 < n < number]
    for experiment, earlier in (*tried, *under_way):
        if earlier.knob and _is_same_change(earlier.knob, knob, proposal.author):
            turn = f"{knob.parameter} {knob.direction} {knob.value}".strip()
            return f"{turn} repeats experiment {experiment}: {earlier.title}"
    return ""


def _was_discarded_against(result: ExperimentResult, best: int) -> bool:
    return isinstance(result.verdict, ev.Discarded) and result.incumbent == best


def _is_same_change(earlier: ev.Knob, now: ev.Knob, author: str) -> bool:
    """The same value; or, unless it comes from an optimizer, which searches along a knob on purpose, the same way."""
    same_way = (earlier.parameter, earlier.direction) == (now.parameter, now.direction)
    return earlier == now or (same_way and now.direction != "set" and author != "optimizer")


def find_duplicate(state: State, number: int, fingerprint: str) -> str:
    """Why this source need not be trained; empty if it must."""
    commit = {f.experiment: f.commit for f in state.results if f.commit}
    commit |= {n: m for n, stage in state.open.items() if n < number and (m := _get_commit(stage))}
    same = [n for n, committed in commit.items() if committed.fingerprint == fingerprint and n != number]
    if state.parent.experiment in same:
        return "it changes nothing but comments, layout or a seed"
    return f"it is the same code as experiment {same[0]}" if same else ""


def _get_commit(stage: Stage) -> ev.Committed | None:
    match stage:
        case Candidate(commit=made) | Training(Candidate(commit=made)) | Broken(Candidate(commit=made)):
            return made
        case Decided(Candidate(commit=made)):
            return made
        case Idea() | Remeasuring():
            return None
