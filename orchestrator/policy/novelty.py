"""Find repeated proposals and sources before they cost a run."""

from orchestrator.core import events as ev
from orchestrator.core.state import State
from orchestrator.policy.thresholds import REPEAT_EXPIRY


def find_repeat(state: State, number: int, proposal: ev.Proposal) -> str:
    """Return why a proposal is a repeat of an earlier or current one; empty if it is new."""
    if any("seed" in name.lower() for name in proposal.settings):
        return "another seed is not an improvement: the orchestrator assigns the seeds"
    recent = (r for r in state.results[-REPEAT_EXPIRY:] if r.status == "discarded" and r.incumbent == state.best)
    tried = [(result.experiment, result.proposal) for result in recent]
    under_way = [(n, stage.proposal) for n, stage in state.open.items() if 0 < n < number]
    for experiment, earlier in (*tried, *under_way):
        if _is_same_change(earlier, proposal):
            return f"{describe_settings(proposal)} repeats experiment {experiment} ({describe_settings(earlier)})"
    return ""


def find_duplicate(state: State, number: int, fingerprint: str) -> str:
    """Return why a source need not be trained; empty if it is new."""
    tested = ((result.experiment, result.commit) for result in state.results if result.status != "not tested")
    under_way = ((n, stage.commit) for n, stage in state.open.items() if n < number)
    same = [n for n, commit in (*tested, *under_way) if commit and commit.fingerprint == fingerprint]
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
    if not now.settings or earlier.settings.keys() != now.settings.keys() or earlier.direction != now.direction:
        return False
    same_way = now.direction in ("up", "down") and now.author != "optimizer"
    return same_way or earlier.settings == now.settings
