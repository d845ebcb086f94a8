"""Decide when a session stops, and estimate how many runs it has left."""

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from math import ceil
from statistics import median
from typing import TypeVar

from orchestrator.core import events as ev
from orchestrator.core.state import UNTESTED, Decided, State, apply
from orchestrator.core.templates import Macros, load_templates
from orchestrator.policy import thresholds as th

WORDS = Macros(load_templates("orchestrator.policy"), "verdicts.txt")
K = TypeVar("K")
T = TypeVar("T")


def remember(function: Callable[[K], T]) -> Callable[[K], T]:
    """Keep the latest result of a pure function, and return it while the very same frozen value is given.

    All candidates ask the same of one state, and what the closed experiments say stays until the next is closed.
    """
    latest: list[tuple[K, T]] = []

    def ask(value: K) -> T:
        for known, result in latest:
            if known is value:
                return result
        result = function(value)
        latest[:] = [(value, result)]
        return result

    return ask


def remember_each(function: Callable[..., T]) -> Callable[..., list[T]]:
    """Map a pure function over columns, and keep each result while the very same frozen values are given again.

    What is passed by keyword only serves to compute: a result must not depend on it otherwise.
    """
    latest: dict[tuple[int, ...], tuple[tuple[object, ...], T]] = {}  # holds the values, so that none has another's id

    def ask(*columns: Iterable[object], **context: object) -> list[T]:
        nonlocal latest
        known, found, results = latest, dict[tuple[int, ...], tuple[tuple[object, ...], T]](), list[T]()
        for values in zip(*columns, strict=True):
            key = tuple(map(id, values))
            found[key] = known.get(key) or found.get(key) or (values, function(*values, **context))
            results.append(found[key][1])
        latest = found
        return results

    return ask


@remember
def explain_stop(state: State) -> str:
    """Return why nothing new may start; empty while the session continues."""
    limits = state.session.limits
    baseline = next((result.verdict for result in state.results if result.experiment == 0), None)
    closed = len(state.results) - (baseline is not None) - state.lost
    done = "1 experiment is done" if closed == 1 else f"{closed} experiments are done"
    reasons = (
        state.stopping,
        isinstance(baseline, ev.Failed) and not state.incumbent and f"the baseline does not train: {baseline.reason}",
        not has_time_for(state, 1 + count_certificate_rounds(state)) and explain_deadline(limits),
        limits.experiments is not None and closed >= limits.experiments and done,
        limits.usd is not None and state.usd >= limits.usd and f"${limits.usd:g} are spent",
        state.is_automatic and explain_fruitless(state),
        not state.slots and f"no GPU is left: {'; '.join(state.sick.values())}",
        explain_aborted(state),
    )
    return next((reason for reason in reasons if isinstance(reason, str) and reason), "")


def is_over(state: State) -> bool:
    """Return whether the session has ended and would end at once if resumed; one that was killed may lack its end."""
    return bool(state.ended and explain_end(state))


def explain_end(state: State) -> str:
    """Return why the session would end at once if it went on; empty if it would not."""
    return explain_stop(apply(state, ev.Record(seq=0, at=state.now, task_id="", event=ev.Resumed())))


def measure_usage(state: State) -> dict[str, float]:
    """Return what is used up of each limit; a fork counts those in flight, too, which it will not go on with."""
    begun = len(state.tried) + len(state.open.keys() - {0})
    lost = sum(request.usd for request in state.reserved.values())
    return {"hours": state.hours, "experiments": begun, "usd": state.usd + lost}


def explain_deadline(limits: ev.SessionLimits) -> str:
    """Return that the time is up."""
    return "the hour is over" if limits.hours == 1 else f"the {limits.hours:g} hours are over"


def has_time_for(state: State, runs: int, *, usual: bool = False) -> bool:
    """Return whether that many consecutive runs would end before the deadline, if they take their `usual` time."""
    seconds = median(state.run_seconds) if usual and state.run_seconds else estimate_run_seconds(state)
    return state.now + th.FINISH_MARGIN * runs * seconds <= state.deadline


def count_certificate_rounds(state: State) -> int:
    """Return how often all slots must still run for the certificate; 0 if nothing was kept."""
    if not state.best:
        return 0
    pairs = count_certificate_pairs(state)
    runs = sum(max(pairs - len(state.fresh.get(number, {})), 0) for number in (0, state.best))
    return ceil(runs / max(len(state.slots), 1))


def count_certificate_pairs(state: State) -> int:
    """Return on how many fresh seeds the certificate compares the baseline and the best; 0 if there is to be none."""
    if not state.session.certifies:
        return 0
    pairs = min(max(ceil(th.CERTIFICATE_SHARE * estimate_runs(state) / 2), 1), th.MAX_CERTIFICATE_PAIRS)
    slots = max(len(state.slots), 1)
    return ceil(2 * pairs / slots) * slots // 2  # no slot is left idle


def estimate_runs(state: State) -> float:
    """Return the expected number of runs in the whole night."""
    limits = state.session.limits
    runs = state.session.slots * 3600 * limits.hours / max(estimate_run_seconds(state), 1.0)
    return min(runs, limits.experiments if limits.experiments is not None else runs)


def explain_aborted(state: State) -> str:
    """Return that the machine ended too many runs in a row; empty while they are not too many."""
    is_broken = state.aborted >= th.MAX_ABORTED * state.session.slots
    return f"the machine failed {state.aborted} times in a row" * is_broken


def explain_fruitless(state: State) -> str:
    """Return that too many rounds in a row led to no run, and why the last; empty while they are not too many."""
    is_fruitless = state.fruitless >= th.MAX_FRUITLESS * state.session.slots
    return f"{state.fruitless} rounds in a row led to no run: {state.setback}" * is_fruitless


def explain_cap(state: State, number: int) -> str:
    """Return that models have cost as much for an experiment as they may; empty while they have not."""
    most, cost = state.session.limits.experiment_usd, state.costs.get(number, 0.0)
    return "" if most is None or cost < most else f"models have cost ${cost:.2f} for it, and may cost ${most:g}"


def compute_pause(state: State) -> float:
    """Return the seconds to wait before the researcher is asked again."""
    rounds = min(state.fruitless // state.session.slots, th.MAX_FRUITLESS)
    return th.FRUITLESS_PAUSE * 2 ** (rounds - 2) if rounds >= 2 else 0.0


def find_stall(results: Sequence[Decided]) -> Sequence[Decided]:
    """Return the tested results since the last keep, the latest first; empty while they are few."""
    tested = (result for result in reversed(results) if result.status not in UNTESTED)
    since = list(takewhile(lambda result: result.status != "kept", tested))
    return since if len(since) >= th.STALL else []


def explain_consolidation(state: State) -> str:
    """Return why the researcher should rewrite its notebook from the evidence now; empty where it need not."""
    every, fresh = state.session.consolidate_every, state.tried[state.consolidated :]
    if not every or len(fresh) < min(every, th.CONSOLIDATION_GAP):
        return ""
    if len(fresh) >= every:
        return f"{len(fresh)} experiments have ended since the last time"
    stall = find_stall([result for result in state.settled if result.experiment])
    if stall and stall[-th.STALL] in fresh:
        return f"nothing was kept in the last {len(stall)} experiments"
    guesses = ((result, result.verdict) for result in fresh if result.proposal.author == "researcher")
    measured = [(result, verdict) for result, verdict in guesses if isinstance(verdict, ev.Evidence)]
    wrong = [(r.experiment, abs(v.gain + r.proposal.expected_delta), v.error) for r, v in measured]
    surprises = [f"#{number}" for number, distance, error in wrong if distance > th.SURPRISE * error > 0]
    return f"a surprise: {', '.join(surprises)} came out far from what was expected" if surprises else ""


def estimate_run_seconds(state: State) -> float:
    """Return the expected wall seconds of the next run: the longest of the last few."""
    return max(state.run_seconds, default=state.session.profile.expected_seconds)
