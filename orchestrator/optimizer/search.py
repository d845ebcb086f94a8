"""Coordinate search: rank steps from the incumbent, one constant at a time, by their expected effect.

Every constant is turned once, those first that usually matter; what helped is turned further, in growing steps; what
hurt is turned the other way; near-misses are combined. Pure functions of the trials.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import isclose
from typing import Literal

from orchestrator.core.events import Abandoned, Direction, Discarded, Failed, Kept, Pruned, Refused
from orchestrator.core.state import ExperimentResult, Parent, State, get_proposal
from orchestrator.core.text import format_signed
from orchestrator.optimizer.families import USUAL_EFFECT, find_family
from orchestrator.policy import thresholds
from orchestrator.policy.noise import estimate_sigma
from prepare.constants import Choices, Constant, Numbers, Value

Assignment = Mapping[str, Value]

STEP_SIZE = 0.375
"""A first step, as a share of the constant's space, or of a count: long, because small effects drown in the noise."""
FURTHER = 0.5
"""Share of a gain that one more step the same way is expected to bring."""
MIRROR = 0.5
"""Share of a loss that a step the other way may gain; it does not if the incumbent sits at the optimum."""
SHRINK = 0.7
"""Share of a near-miss's gain that is real: those that luck helped are noticed more often."""
OPPOSITE: dict[str, Literal["up", "down"]] = {"up": "down", "down": "up"}


@dataclass(frozen=True, slots=True)
class Trial:
    """The constants that an experiment set, the values before, and its gain; None while or where that is unknown."""

    experiment: int
    changes: Assignment
    before: Assignment
    outcome: Literal["kept", "discarded", "failed", "refused", "running"]
    gain: float | None = None
    error: float = 0.0
    val_bpb: float | None = None

    @property
    def after(self) -> dict[str, Value]:
        return {**self.before, **self.changes}

    @property
    def hurt(self) -> bool:
        return self.gain is not None and self.gain < -2 * self.error

    @property
    def near_miss(self) -> bool:
        return self.outcome == "discarded" and self.gain is not None and self.gain > thresholds.NEAR_MISS * self.error


@dataclass(frozen=True, slots=True)
class SearchStep:
    """A step from the incumbent."""

    changes: Assignment
    expected_effect: float
    """In σ; only for comparing steps."""
    expected_gain: float
    """Bits per byte; 0 where nothing is known."""
    why: str


@dataclass(frozen=True, slots=True)
class SearchState:
    """What the next step is chosen by: the constants of the incumbent, and the trials so far."""

    constants: Mapping[str, Constant]
    trials: Sequence[Trial]
    sigma: float
    tried: frozenset[frozenset[tuple[str, Value]]] = field(default=frozenset())

    @property
    def values(self) -> dict[str, Value]:
        return {name: constant.value for name, constant in self.constants.items()}

    def is_new(self, changes: Assignment) -> bool:
        """Return whether these values change something and have not been trained yet."""
        after = self.values | dict(changes)
        return after != self.values and frozenset(after.items()) not in self.tried

    def is_known_bad(self, name: str, value: Value) -> bool:
        """Return whether this value alone, or one on the way to it, has clearly hurt."""
        old = self.constants[name].value
        hurt = [trial.changes[name] for trial in self.list_trials(name) if trial.before[name] == old and trial.hurt]
        return any(bad == value or _is_between(bad, old, value) for bad in hurt)

    def list_trials(self, name: str) -> list[Trial]:
        """Return the trials that turned this constant and no other, oldest first."""
        return [trial for trial in self.trials if list(trial.changes) == [name]]


def read_search_state(state: State, read: Callable[[Parent], Mapping[str, Constant]]) -> SearchState:
    """Return the search state of a session; `read` returns the constants of a train.py on the research branch."""
    trials = tuple(_list_trials(state, read))
    tried = frozenset(frozenset(trial.after.items()) for trial in trials)
    return SearchState(read(state.parent), trials, estimate_sigma(state), tried)


def get_direction(constant: Constant, new: Value) -> Direction:
    """Return which way a new value turns a constant; `set` where its values have no order."""
    old, ordered = constant.value, not isinstance(constant.space, Choices) or constant.space.ordered
    if ordered and isinstance(old, int | float) and isinstance(new, int | float):
        return "up" if new > old else "down"
    return "set"


def rank_steps(search: SearchState) -> list[SearchStep]:
    """Return every step that has not been tried, by falling expected effect."""
    found = [step for name in search.constants for step in _propose_steps(search, name)]
    found += _combine_near_misses(search)
    return sorted((step for step in found if search.is_new(step.changes)), key=lambda step: -step.expected_effect)


def estimate_sensitivity(search: SearchState, name: str) -> float:
    """Return the constant's largest effect so far, or its family's usual one, in σ, divided by 1 + its trials."""
    gains = [abs(trial.gain) / search.sigma for trial in search.list_trials(name) if trial.gain is not None]
    turned = sum(name in trial.changes for trial in search.trials)
    return max(gains, default=USUAL_EFFECT[find_family(name).family]) / (1 + turned)


def _list_trials(state: State, read: Callable[[Parent], Mapping[str, Constant]]) -> Iterator[Trial]:
    for result in state.results:
        base = result.commit.parent if result.commit else result.incumbent
        before = {name: constant.value for name, constant in read(state.parents[base]).items()}
        changes = result.proposal.settings
        if result.experiment == 0 or (changes and changes.keys() <= before.keys() and result.status != "not tested"):
            yield _make_trial(result, changes, before)
    before = {name: constant.value for name, constant in read(state.parent).items()}
    for number, stage in sorted(state.open.items()):
        changes = get_proposal(stage).settings
        if changes and changes.keys() <= before.keys():
            yield Trial(number, changes, before, "running")


def _make_trial(result: ExperimentResult, changes: Assignment, before: Assignment) -> Trial:
    match result.verdict:
        case Kept(gain=gain, error=error, mean=mean):
            return Trial(result.experiment, changes, before, "kept", gain, error, mean)
        case Discarded(gain=gain, error=error, mean=mean):
            return Trial(result.experiment, changes, before, "discarded", gain, error, mean)
        case Failed() | Pruned():
            return Trial(result.experiment, changes, before, "failed")
        case Refused() | Abandoned():
            return Trial(result.experiment, changes, before, "refused")


def _propose_steps(search: SearchState, name: str) -> Iterator[SearchStep]:
    """Yield the steps on one constant; none while another step on it is running."""
    constant, history = search.constants[name], search.list_trials(name)
    if any(trial.outcome == "running" for trial in history):
        return
    if isinstance(constant.space, Choices) and not constant.space.ordered:
        yield from _propose_options(constant, constant.space, history)
        return
    for way in ("up", "down"):
        if (step := _propose_step(search, constant, way, history)) is not None:
            yield step


def _propose_options(constant: Constant, space: Choices, history: Sequence[Trial]) -> Iterator[SearchStep]:
    """Yield each untried value of a constant without an order; each failure halves the expected effect."""
    failed = [trial for trial in history if trial.outcome != "kept"]
    effect = USUAL_EFFECT[find_family(constant.name).family] * 0.5 ** (1 + len(failed))
    why = f"{len(failed)} of its other values did not help." if failed else "None of its other values has failed yet."
    for option in space.options:
        if option != constant.value and option not in _list_abandoned_values(constant, history):
            yield SearchStep({constant.name: option}, effect, 0.0, why)


def _list_abandoned_values(constant: Constant, history: Sequence[Trial]) -> set[Value]:
    """Return the values that were given up for better ones."""
    return {trial.before[constant.name] for trial in history if trial.outcome == "kept"}


def _propose_step(
    search: SearchState, constant: Constant, way: Literal["up", "down"], history: Sequence[Trial]
) -> SearchStep | None:
    """Return a step up or down, by the results of earlier ones on the constant; None where it promises nothing."""
    same, other = _find_latest(history, constant, way), _find_latest(history, constant, OPPOSITE[way])
    match same, other:
        case None, None:
            estimate = _Estimate(_get_usual_effect(constant), why="It has not been turned yet.")
        case Trial() as last, _:
            estimate = _assess_next_step(search, constant, last)
        case None, Trial() as last:
            estimate = _assess_reversal(search, constant, last)
    new = take_step(constant, way, estimate.size)
    if new is None or estimate.expected_effect <= 0:
        return None
    if any(old == new or _is_between(old, constant.value, new) for old in _list_abandoned_values(constant, history)):
        return None
    return SearchStep({constant.name: new}, estimate.expected_effect, estimate.expected_gain, estimate.why)


@dataclass(frozen=True, slots=True)
class _Estimate:
    """The expected effect of a step in σ, its length in step sizes, and its expected gain in bits per byte."""

    expected_effect: float = 0.0
    size: float = 1.0
    expected_gain: float = 0.0
    why: str = ""


def _assess_next_step(search: SearchState, constant: Constant, last: Trial) -> _Estimate:
    """Estimate a step the same way as the last one: further if it helped, half as far if it went too far."""
    size = _count_step_sizes(constant, last)
    match last:
        case Trial(gain=float() as gain) if gain > 0:
            expected = FURTHER * gain
            helped = "helped" if last.outcome == "kept" else "helped a little, within the noise"
            why = f"The last step this way (experiment {last.experiment}) {helped}: {format_signed(-gain)}. Go further."
            return _Estimate(expected / search.sigma, 2 * size, expected, why)
        case Trial(gain=float()) if size > 1:
            why = f"A longer step this way (experiment {last.experiment}) went too far. Go half as far."
            return _Estimate(FURTHER**2 * _get_usual_effect(constant), size / 2, 0.0, why)
        case _:
            return _Estimate()


def _assess_reversal(search: SearchState, constant: Constant, last: Trial) -> _Estimate:
    """Estimate a step the opposite way of the last one, if that hurt."""
    usual = _get_usual_effect(constant)
    match last:
        case Trial(outcome="discarded", gain=float() as gain) if gain < 0:
            why = f"The step the other way (experiment {last.experiment}) cost {-gain:.4f}. Turn back, and beyond."
            return _Estimate(MIRROR * min(-gain / search.sigma, usual), why=why)
        case Trial(outcome="failed"):
            return _Estimate(MIRROR * usual, why=f"The step the other way (experiment {last.experiment}) failed.")
        case _:
            return _Estimate()


def _get_usual_effect(constant: Constant) -> float:
    return USUAL_EFFECT[find_family(constant.name).family]


def take_step(constant: Constant, way: Literal["up", "down"], size: float) -> Value | None:
    """Return the value `size` step sizes away, within its space; None where it is at the end already."""
    sign = 1 if way == "up" else -1
    match constant.space, constant.value:
        case Choices(options=options), old:
            reachable = [option for option in options if get_direction(constant, option) == way and option != old]
            rising = reachable if way == "up" else reachable[::-1]
            new = rising[min(round(size), len(rising)) - 1] if rising else old
        case Numbers(whole=True, log=False) as space, int() as old:
            new = round(space.clip(old + sign * max(1, round(old * STEP_SIZE)) * round(size)))
        case Numbers() as space, (int() | float()) as old:
            new = space.from_unit(space.to_unit(old) + sign * STEP_SIZE * size)
        case _, old:
            new = old
    return new if get_direction(constant, new) == way and not _is_same(new, constant.value) else None


def _is_between(middle: Value, a: Value, b: Value) -> bool:
    numbers = [x for x in (a, middle, b) if isinstance(x, int | float) and not isinstance(x, bool)]
    return len(numbers) == 3 and numbers in (sorted(numbers), sorted(numbers, reverse=True))


def _is_same(a: Value, b: Value) -> bool:
    return a == b or (isinstance(a, float) and isinstance(b, float) and isclose(a, b, rel_tol=0.01))


def _count_step_sizes(constant: Constant, trial: Trial) -> float:
    """Return the length of a step, in step sizes; 1 at least."""
    old, new = trial.before[constant.name], trial.changes[constant.name]
    if isinstance(constant.space, Numbers) and isinstance(old, int | float) and isinstance(new, int | float):
        if constant.space.whole and not constant.space.log:
            return max(1.0, abs(new - old) / max(1, round(old * STEP_SIZE)))
        return max(1.0, abs(constant.space.to_unit(new) - constant.space.to_unit(old)) / STEP_SIZE)
    return 1.0


def _find_latest(history: Sequence[Trial], constant: Constant, way: str) -> Trial | None:
    """Return the last trial that turned the constant this way, from its present value or to it."""
    for trial in reversed(history):
        if trial.outcome == "refused":
            continue
        old, new = trial.before[constant.name], trial.changes[constant.name]
        if constant.value in (old, new) and get_direction(replace(constant, value=old), new) == way:
            return trial
    return None


def _combine_near_misses(search: SearchState) -> Iterator[SearchStep]:
    """Yield near-misses two at a time: together they may be better by more than the noise."""
    misses = {
        next(iter(trial.changes)): trial
        for trial in search.trials
        if trial.near_miss and len(trial.changes) == 1 and trial.before.keys() == search.values.keys()
        if all(search.values[name] == trial.before[name] for name in trial.changes)
    }
    for a, b in combinations(misses.values(), 2):
        assert a.gain is not None
        assert b.gain is not None
        expected = SHRINK * (a.gain + b.gain)
        both = " and ".join(f"{trial.experiment} ({format_signed(-(trial.gain or 0.0))})" for trial in (a, b))
        why = (
            f"Experiments {both} were both better, "
            "but within the noise. If their effects add up, they exceed it together."
        )
        yield SearchStep({**a.changes, **b.changes}, expected / search.sigma, expected, why)
