"""Say when a session stops, and how long its next run will take."""

from orchestrator.core import events as ev
from orchestrator.core.state import State
from orchestrator.policy.thresholds import FINISH_MARGIN, MAX_ABORTED, MAX_UNANSWERED


def explain_stop(state: State) -> str:
    """Return why nothing new is started any more; empty while the session goes on."""
    limits, closed = state.session.limits, len(state.tried)
    baseline = state.results[0].verdict if state.results else None
    match state:
        case _ if state.stopping:
            return state.stopping
        case _ if isinstance(baseline, ev.Failed) and not state.incumbent:
            return f"the baseline does not train: {baseline.reason}"
        case _ if state.now + FINISH_MARGIN * estimate_run_seconds(state) > state.deadline:
            return f"the {limits.hours:g} hours are over"
        case _ if limits.experiments is not None and closed >= limits.experiments:
            return f"{closed} experiments are done"
        case _ if limits.usd is not None and state.usd >= limits.usd:
            return f"${limits.usd:g} are spent"
        case _ if state.unanswered >= MAX_UNANSWERED:
            return f"the researcher gave no usable answer {MAX_UNANSWERED} times in a row: {state.silence}"
        case _ if state.aborted >= MAX_ABORTED:
            return f"the machine failed {MAX_ABORTED} times in a row"
        case _:
            return ""


def estimate_run_seconds(state: State) -> float:
    """Return the wall seconds that the next run will probably take: the longest of the last few."""
    return max(state.run_seconds, default=state.session.profile.expected_seconds)
