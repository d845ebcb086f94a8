"""Coordinate search: rank steps from the incumbent, one constant at a time, by their expected effect.

Every constant is moved once, those with large usual effects first. What helped is moved further, in growing steps; what
hurt is moved in the other direction; near-misses are stacked. Pure functions of the trials.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from statistics import median
from typing import Literal

from orchestrator.core.events import Abandoned, Digest, Discarded, EarlierResult, Kept, Refused, Vetoed
from orchestrator.core.state import Decided, State
from orchestrator.core.task import BPB, Metric
from orchestrator.optimizer.families import CHEAPER_DOWN, find_family
from orchestrator.optimizer.space import STEP_SIZE, get_direction, is_between, is_within, list_tunable, take_step
from orchestrator.policy.evidence import estimate_sigma, pool_variance
from prepare.constants import Choices, Constant, Numbers, Value, has_ranges

Assignment = Mapping[str, Value]

FURTHER = 0.5  # expected gain of one more step in the same direction, as a share of the last one's
MIRROR = 0.5  # expected gain of a step the other way, as a share of a loss; at the optimum there is none
MAX_STACKED = 5  # most constants in a stack of near-misses: with more of them, more are there by luck
ADDITIVITY = 0.85  # expected gain of a stack, as a share of the sum of its parts' gains: effects overlap


@dataclass(frozen=True, slots=True)
class Trial:
    """The constants that an experiment set, their values before, and its gain; None if that is unknown."""

    name: str  # `experiment 3`, and of which session where that is an earlier one
    changes: Assignment
    before: Assignment
    outcome: Literal["kept", "open", "discarded", "failed", "refused", "running"]
    """Open: an earlier session kept it, and it is not in force here."""
    gain: float | None = None
    error: float = 0.0
    val_bpb: float | None = None

    @property
    def after(self) -> dict[str, Value]:
        return {**self.before, **self.changes}


@dataclass(frozen=True, slots=True)
class SearchStep:
    """A step from the incumbent."""

    changes: Assignment
    expected_effect: float  # in σ; only for comparing steps
    expected_gain: float  # in bits per byte; 0 if unknown
    why: str


@dataclass(frozen=True, slots=True)
class SearchState:
    """The constants of the incumbent, and the trials so far: what the next step is chosen by."""

    constants: Mapping[str, Constant]
    trials: Sequence[Trial]
    sigma: float
    metric: Metric = BPB
    code: str = "train.py"  # what candidates change
    is_measured: bool = True  # whether runs have shown σ: else it is only a floor

    @property
    def values(self) -> dict[str, Value]:
        return {name: constant.value for name, constant in self.constants.items()}

    def is_new(self, changes: Assignment) -> bool:
        """Return whether these values differ from the incumbent's and have not been tried yet."""
        after = self.values | dict(changes)
        tried = (trial for trial in self.trials if trial.outcome != "open")
        return after != self.values and all({**self.values, **trial.after} != after for trial in tried)

    def is_known_bad(self, name: str, value: Value) -> bool:
        """Return whether this value alone, or one on the way to it, has clearly hurt."""
        old = self.constants[name].value
        trials = [trial for trial in self.list_trials(name) if trial.before[name] == old]
        hurt = [trial.changes[name] for trial in trials if (trial.gain or 0.0) < -2 * trial.error]
        return any(bad == value or is_between(bad, old, value) for bad in hurt)

    def list_trials(self, name: str) -> list[Trial]:
        """Return the trials that set this constant and no other, oldest first."""
        return [trial for trial in self.trials if list(trial.changes) == [name]]


def read_search(state: State, get: Callable[[Digest], str]) -> SearchState:
    """Return the search state of a session; `get` returns stored texts."""
    task = state.session.task
    code = "the code" if task.has_tree else (*task.editable, "train.py")[0]
    best = state.parent.source
    bases = {best, *(_get_base(state, result) for result in state.results)}
    is_old = not state.session.rule.as_declared
    guesses = not (is_old or has_ranges(get(state.parents[0].source)))  # whatever edits have declared since
    read = partial(list_tunable, is_reported=task.is_reported, fixed=task.fixed, guesses=guesses, is_old=is_old)
    found = {base: read(get(base)) for base in bases}
    values = {base: {name: c.value for name, c in constants.items()} for base, constants in found.items()}
    trials = tuple(_list_trials(state, values))
    is_measured = pool_variance(state).squares > 0
    return SearchState(found[best], trials, estimate_sigma(state), task.metric, code, is_measured)


def _get_base(state: State, result: Decided) -> Digest:
    """Return the source that a closed experiment started from, or would have."""
    commit = result.commit
    if commit and state.session.rule.chronological:
        return state.get_base(commit)
    return state.parents[commit.parent if commit else result.incumbent].source


def rank_steps(search: SearchState) -> list[SearchStep]:
    """Return every step that has not been tried, by falling expected effect."""
    found = [step for name in search.constants for step in _propose_steps(search, name)]
    if (stack := stack_near_misses(search)) is not None:
        found.append(stack)
    return sorted((step for step in found if search.is_new(step.changes)), key=lambda step: -step.expected_effect)


def stack_near_misses(search: SearchState) -> SearchStep | None:
    """Return the step that combines the most promising near-misses; None if there are fewer than two.

    What an earlier session kept and is not in force here counts as one, comes first, and is enough alone. Each takes
    part in one stack only: later ones consist of new near-misses, and of earlier stacks.
    """
    estimate, parts, changes = partial(estimate_true_gain, search), list[Trial](), dict[str, Value]()
    for trial in sorted(search.trials, key=estimate, reverse=True):
        fits = len(changes) + len(trial.changes) <= MAX_STACKED and not changes.keys() & trial.changes.keys()
        if fits and estimate(trial) > 0 and _is_open_near_miss(search, trial):
            parts.append(trial)
            changes |= trial.changes
    has_open = any(trial.outcome == "open" for trial in parts)
    if (len(parts) < 2 and not has_open) or not search.is_new(changes):
        return None
    expected = ADDITIVITY * sum(map(estimate, parts))
    names = ", ".join(f"{trial.name} ({search.metric.format_change(-(trial.gain or 0.0))})" for trial in parts)
    why = f"Each of these was better: {names}. If their effects add up, together they exceed the noise."
    if len(parts) == 1:
        why = f"It was kept before, and is not in force here: {names}."
    return SearchStep(changes, inf if has_open else expected / search.sigma, expected, why)


def estimate_true_gain(search: SearchState, trial: Trial) -> float:
    """Return a trial's posterior mean gain, in bits per byte, by the session's medians as prior; 0 if unmeasured."""
    gains = [other.gain for other in search.trials if other.gain is not None and other.changes]
    if trial.gain is None or not trial.changes:
        return 0.0
    center = min(median(gains), 0.0)
    spread = max(median(abs(gain - center) for gain in gains), search.sigma / 2)
    return center + (trial.gain - center) * spread**2 / (spread**2 + trial.error**2)


def _is_open_near_miss(search: SearchState, trial: Trial) -> bool:
    """Return whether a discarded change still applies to the incumbent, and no larger trial has included it."""
    return (
        trial.outcome in {"discarded", "open"}
        and all(search.values.get(name) == trial.before[name] for name in trial.changes)
        and all(is_within(search.constants[name].space, value) for name, value in trial.changes.items())
        and not any(other.changes.items() > trial.changes.items() for other in search.trials)
    )


def _list_trials(state: State, values: Mapping[Digest, Assignment]) -> Iterator[Trial]:
    """Yield all trials, earlier sessions first; `values` are the constants of each source that one starts from."""
    yield from _list_earlier_trials(state.session.earlier, values[state.parent.source])
    for result in state.results:
        changes, before = result.proposal.settings, values[_get_base(state, result)]
        if result.experiment == 0 or (changes and changes.keys() <= before.keys() and result.status != "not tested"):
            yield _make_trial(result, changes, before)
    for number, stage in sorted(state.open.items()):
        changes, before = stage.proposal.settings, values[state.parent.source]
        if changes and changes.keys() <= before.keys():
            yield Trial(f"experiment {number}", changes, before, "running")


def _list_earlier_trials(earlier: Sequence[EarlierResult], values: Assignment) -> Iterator[Trial]:
    """Yield the trials of earlier sessions, oldest first; what was kept there but is not in force here is open."""
    for past in reversed(earlier):
        if past.changes and past.changes.keys() <= values.keys():
            gain = None if past.status == "reverted" else past.gain  # which an ablation has refuted
            outcome = "failed" if gain is None else "discarded"
            if past.status == "kept":
                outcome = "kept" if past.changes.items() <= values.items() else "open"
            name = f"experiment {past.experiment} of {past.session}"
            yield Trial(name, past.changes, past.before, outcome, gain, past.error)


def _make_trial(result: Decided, changes: Assignment, before: Assignment) -> Trial:
    name, verdict = f"experiment {result.experiment}", result.verdict
    if isinstance(verdict, Kept | Discarded):
        outcome = "kept" if isinstance(verdict, Kept) else "discarded"
        return Trial(name, changes, before, outcome, verdict.gain, verdict.error, verdict.mean)
    return Trial(name, changes, before, "refused" if isinstance(verdict, Refused | Abandoned | Vetoed) else "failed")


def _propose_steps(search: SearchState, name: str) -> Iterator[SearchStep]:
    """Yield the steps on one constant, the cheaper first; none while another step on it is running."""
    constant, history = search.constants[name], search.list_trials(name)
    if any(trial.outcome == "running" for trial in history):
        return
    left_behind = {trial.before[name] for trial in history if trial.outcome == "kept"}
    if isinstance(constant.space, Choices) and not constant.space.ordered:
        failed = sum(trial.outcome != "kept" for trial in history)  # each halves the expected effect
        effect = find_family(name).effect * 0.5 ** (1 + failed)
        why = f"{failed} of its other values did not help." if failed else "None of its other values has failed yet."
        others = [option for option in constant.space.options if option not in {constant.value, *left_behind}]
        yield from (SearchStep({name: option}, effect, 0.0, why) for option in others)
        return
    for way in ("down", "up") if find_family(name).family in CHEAPER_DOWN else ("up", "down"):
        step = _propose_step(search, constant, way, history)
        if step and not any(is_between(old, constant.value, step.changes[name]) for old in left_behind):
            yield step


def _propose_step(
    search: SearchState, constant: Constant, way: Literal["up", "down"], history: Sequence[Trial]
) -> SearchStep | None:
    """Return a step up or down, by the results of earlier ones on the constant; None if it promises nothing."""
    usual, size, expected = find_family(constant.name).effect, 1.0, 0.0
    match _find_latest(history, constant, way), _find_latest(history, constant, "down" if way == "up" else "up"):
        case None, None:
            is_cheaper = way == "down" and find_family(constant.name).family in CHEAPER_DOWN
            effect, why = usual, "It has not been changed yet." + " Down makes a step cheaper." * is_cheaper
        case Trial(gain=float() as gain) as last, _ if gain > 0:
            expected, size = FURTHER * gain, 2 * _count_steps(constant, last)
            helped = "helped" if last.outcome in ("kept", "open") else "helped a little, within the noise"
            effect = expected / search.sigma
            why = f"The last step {way} ({last.name}) {helped}. Go further."
        case Trial(gain=float()) as last, _ if (steps := _count_steps(constant, last)) > 1:
            effect, size = FURTHER**2 * usual, steps / 2
            why = f"A longer step {way} ({last.name}) went too far. Go half as far."
        case None, Trial(outcome="discarded", gain=float() as gain) as last if gain < 0:
            effect = MIRROR * min(-gain / search.sigma, usual)
            why = f"The step in the other direction ({last.name}) made it worse."
        case None, Trial(outcome="failed") as last:
            effect, why = MIRROR * usual, f"The step in the other direction ({last.name}) failed."
        case _:
            return None
    new = take_step(constant, way, size)
    return None if new is None else SearchStep({constant.name: new}, effect, expected, why)


def _count_steps(constant: Constant, trial: Trial) -> float:
    """Return the length of a trial's step, in step sizes; at least 1."""
    space, old, new = constant.space, trial.before[constant.name], trial.changes[constant.name]
    if not isinstance(space, Numbers) or not isinstance(old, int | float) or not isinstance(new, int | float):
        return 1.0
    if space.whole and not space.log:
        return max(1.0, abs(new - old) / max(1, round(abs(old) * STEP_SIZE)))
    return max(1.0, abs(space.to_unit(new) - space.to_unit(old)) / STEP_SIZE)


def _find_latest(history: Sequence[Trial], constant: Constant, way: str) -> Trial | None:
    """Return the last trial that moved the constant in this direction, from its present value or to it."""
    for trial in reversed(history):
        old, new = trial.before[constant.name], trial.changes[constant.name]
        is_adjacent = trial.outcome != "refused" and constant.value in (old, new)
        if is_adjacent and get_direction(replace(constant, value=old), new) == way:
            return trial
    return None
