"""Steps from the incumbent, one constant at a time, each with what may be hoped of it.

First every constant is turned once, those first that usually matter; what helped is turned further, in growing
steps; what hurt is turned the other way; what helped too little to be sure is combined. Pure functions of the trials.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import isclose
from typing import Literal

from orchestrator.core.events import Abandoned, Discarded, Failed, Kept, Pruned, Refused
from orchestrator.core.state import ExperimentResult, Parent, State, get_proposal
from orchestrator.core.text import format_signed
from orchestrator.optimizer.families import ENOUGH_TOKENS, USUAL_EFFECT, ConstantFamily, find_family
from orchestrator.policy.noise import compute_sigma, pool_variance
from prepare.constants import Choices, Constant, Numbers, Value

Assignment = Mapping[str, Value]
Direction = Literal["up", "down", "set"]

STEP_SIZE = 0.375
"""A first step, as a share of the constant's space, or of a count: bold, because a small effect drowns in the noise, or
costs many runs to tell from it."""
AGAINST_EXPECTATION = 0.4
"""A step against what theory expects, as a share of one along it."""
FURTHER = 0.5
"""What helped once helps about half as much the second time."""
MIRROR = 0.5
"""What hurt by so much may help by half as much the other way; it does not if the incumbent sits at the bottom."""
SHRINK = 0.7
"""Gains of near-misses are partly luck: that is why they were noticed."""
OPPOSITE: dict[str, Literal["up", "down"]] = {"up": "down", "down": "up"}


@dataclass(frozen=True, slots=True)
class Trial:
    """What an experiment turned, from which values, and what it gained; `gain` is None while or where unknown."""

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
        return self.outcome == "discarded" and self.gain is not None and self.gain > self.error / 2


@dataclass(frozen=True, slots=True)
class SearchStep:
    """A step from the incumbent."""

    changes: Assignment
    promise: float
    """What may be hoped of it, in σ; only good for comparing moves."""
    expected: float
    """Expected gain in val_bpb; 0 where nothing is known."""
    why: str


@dataclass(frozen=True, slots=True)
class SearchState:
    """Everything that a next step is judged by."""

    constants: Mapping[str, Constant]
    trials: Sequence[Trial]
    sigma: float
    tokens_per_parameter: float
    tried: frozenset[frozenset[tuple[str, Value]]] = field(default=frozenset())

    @property
    def values(self) -> dict[str, Value]:
        return {name: constant.value for name, constant in self.constants.items()}

    def is_new(self, changes: Assignment) -> bool:
        """Nobody has trained these values, and they do change something."""
        after = self.values | dict(changes)
        return after != self.values and frozenset(after.items()) not in self.tried

    def is_hopeless(self, name: str, value: Value) -> bool:
        """Alone, this value, or one on the way to it, has clearly hurt."""
        old = self.constants[name].value
        hurt = [t.changes[name] for t in self.singles(name) if t.before[name] == old and t.hurt]
        return any(bad == value or _is_between(bad, old, value) for bad in hurt)

    def singles(self, name: str) -> list[Trial]:
        """The trials that turned this constant and no other, oldest first."""
        return [trial for trial in self.trials if list(trial.changes) == [name]]


def read_search_state(state: State, read: Callable[[Parent], Mapping[str, Constant]]) -> SearchState:
    """The trials of a session so far; `read` gives the constants of a train.py on the research branch."""
    trials = tuple(_list_trials(state, read))
    tried = frozenset(frozenset(trial.after.items()) for trial in trials)
    scores = state.incumbent.scores if state.incumbent else ()
    measures = [score.metrics for score in scores if score.metrics.parameters]
    tokens = measures[-1].tokens / measures[-1].parameters if measures else 0.0
    return SearchState(read(state.parent), trials, compute_sigma(pool_variance(state)), tokens, tried)


def get_direction(constant: Constant, new: Value) -> Direction:
    old, ordered = constant.value, not isinstance(constant.space, Choices) or constant.space.ordered
    if ordered and isinstance(old, int | float) and isinstance(new, int | float):
        return "up" if new > old else "down"
    return "set"


def rank_steps(bench: SearchState) -> list[SearchStep]:
    """Every step that is worth thinking of, the most promising first, none tried before."""
    found = [move for name in bench.constants for move in _propose_steps(bench, name)]
    found += _combine_near_misses(bench)
    return sorted((move for move in found if bench.is_new(move.changes)), key=lambda move: -move.promise)


def estimate_sensitivity(bench: SearchState, name: str) -> float:
    """The largest effect of the constant so far (its family's usual reach if none), in σ, per time it was turned."""
    gains = [abs(trial.gain) / bench.sigma for trial in bench.singles(name) if trial.gain is not None]
    turned = sum(name in trial.changes for trial in bench.trials)
    return max(gains, default=USUAL_EFFECT[find_family(name).family]) / (1 + turned)


def _list_trials(state: State, read: Callable[[Parent], Mapping[str, Constant]]) -> Iterator[Trial]:
    for result in state.results:
        base = result.commit.parent if result.commit else result.incumbent
        before = {name: constant.value for name, constant in read(state.parents[base]).items()}
        changes = result.proposal.settings
        if result.experiment == 0 or (changes and changes.keys() <= before.keys()):
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


def _propose_steps(bench: SearchState, name: str) -> Iterator[SearchStep]:
    """The steps on one constant; none while another step on it is under way."""
    constant, history = bench.constants[name], bench.singles(name)
    if any(trial.outcome == "running" for trial in history):
        return
    if isinstance(constant.space, Choices) and not constant.space.ordered:
        yield from _propose_options(constant, constant.space, history)
        return
    for way in ("up", "down"):
        if (move := _propose_step(bench, constant, way, history)) is not None:
            yield move


def _propose_options(constant: Constant, space: Choices, history: Sequence[Trial]) -> Iterator[SearchStep]:
    """Values without an order: each untried one, with less hope after each that failed."""
    failed = [trial for trial in history if trial.outcome != "kept"]
    promise = USUAL_EFFECT[find_family(constant.name).family] * 0.5 ** (1 + len(failed))
    why = f"Of its values {len(failed)} have been tried in vain." if failed else "It has not been turned in vain yet."
    for option in space.options:
        if option != constant.value and option not in _list_abandoned_values(constant, history):
            yield SearchStep({constant.name: option}, promise, 0.0, why)


def _list_abandoned_values(constant: Constant, history: Sequence[Trial]) -> set[Value]:
    """Values that were left for better ones."""
    return {trial.before[constant.name] for trial in history if trial.outcome == "kept"}


def _propose_step(
    bench: SearchState, constant: Constant, way: Literal["up", "down"], history: Sequence[Trial]
) -> SearchStep | None:
    """One step up or down, as far and as hopeful as earlier ones on the same constant suggest."""
    same, other = _find_latest(history, constant, way), _find_latest(history, constant, OPPOSITE[way])
    match same, other:
        case None, None:
            hope = _assess_first_step(bench, constant, way)
        case Trial() as last, _:
            hope = _assess_next_step(bench, constant, last)
        case None, Trial() as last:
            hope = _assess_reversal(bench, constant, last)
    new = take_step(constant, way, hope.size)
    if new is None or hope.promise <= 0:
        return None
    if any(old == new or _is_between(old, constant.value, new) for old in _list_abandoned_values(constant, history)):
        return None
    return SearchStep({constant.name: new}, hope.promise, hope.expected, hope.why)


@dataclass(frozen=True, slots=True)
class _Prospect:
    """Of a step: what may come of it, in σ; how many notches; what is expected, in val_bpb; why."""

    promise: float = 0.0
    size: float = 1.0
    expected: float = 0.0
    why: str = ""


def _assess_first_step(bench: SearchState, constant: Constant, way: str) -> _Prospect:
    known = find_family(constant.name)
    along = way == choose_direction(known, bench.tokens_per_parameter)
    return _Prospect(
        USUAL_EFFECT[known.family] * (1.0 if along else AGAINST_EXPECTATION), why="It has not been turned yet."
    )


def _assess_next_step(bench: SearchState, constant: Constant, last: Trial) -> _Prospect:
    """The same way as the last step: further if it helped, half as far if it went too far."""
    size = _count_step_sizes(constant, last)
    match last:
        case Trial(gain=float() as gain) if gain > 0:
            expected = FURTHER * gain
            helped = "helped" if last.outcome == "kept" else "helped a little, within the noise"
            why = (
                f"The last step this way (experiment {last.experiment}) {helped}: {format_signed(-gain)}. So: further."
            )
            return _Prospect(expected / bench.sigma, 2 * size, expected, why)
        case Trial(gain=float()) if size > 1:
            why = f"A longer step this way (experiment {last.experiment}) went too far. So: half as far."
            return _Prospect(FURTHER**2 * USUAL_EFFECT[find_family(constant.name).family], size / 2, 0.0, why)
        case _:
            return _Prospect()


def _assess_reversal(bench: SearchState, constant: Constant, last: Trial) -> _Prospect:
    """The opposite way of the last step, if that hurt."""
    reach = USUAL_EFFECT[find_family(constant.name).family]
    match last:
        case Trial(outcome="discarded", gain=float() as gain) if gain < 0:
            why = f"The step the other way (experiment {last.experiment}) cost {-gain:.4f}. So: back, and beyond."
            return _Prospect(MIRROR * min(-gain / bench.sigma, reach), why=why)
        case Trial(outcome="failed"):
            return _Prospect(
                AGAINST_EXPECTATION * reach, why=f"The step the other way (experiment {last.experiment}) failed."
            )
        case _:
            return _Prospect()


def choose_direction(known: ConstantFamily, tokens_per_parameter: float) -> Literal["up", "down"]:
    """The way that theory would go first."""
    if known.first == "budget":
        return "down" if tokens_per_parameter < ENOUGH_TOKENS else "up"
    return known.first


def take_step(constant: Constant, way: Literal["up", "down"], size: float) -> Value | None:
    """The value so many notches away, the end of its space at most; None where it stands at the end already."""
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
    """How long a step was, in notches, 1 at least."""
    old, new = trial.before[constant.name], trial.changes[constant.name]
    if isinstance(constant.space, Numbers) and isinstance(old, int | float) and isinstance(new, int | float):
        if constant.space.whole and not constant.space.log:
            return max(1.0, abs(new - old) / max(1, round(old * STEP_SIZE)))
        return max(1.0, abs(constant.space.to_unit(new) - constant.space.to_unit(old)) / STEP_SIZE)
    return 1.0


def _find_latest(history: Sequence[Trial], constant: Constant, way: str) -> Trial | None:
    """The last trial that went this way from where the constant now stands, or that brought it here."""
    for trial in reversed(history):
        if trial.outcome == "refused":
            continue
        old, new = trial.before[constant.name], trial.changes[constant.name]
        if constant.value in (old, new) and get_direction(replace(constant, value=old), new) == way:
            return trial
    return None


def _combine_near_misses(bench: SearchState) -> Iterator[SearchStep]:
    """Near-misses two at a time: each was better, within the noise; together they may be better beyond it."""
    misses = {
        next(iter(trial.changes)): trial
        for trial in bench.trials
        if trial.near_miss and len(trial.changes) == 1 and trial.before.keys() == bench.values.keys()
        if all(bench.values[name] == trial.before[name] for name in trial.changes)
    }
    for a, b in combinations(misses.values(), 2):
        assert a.gain is not None
        assert b.gain is not None
        expected = SHRINK * (a.gain + b.gain)
        both = " and ".join(f"{trial.experiment} ({format_signed(-(trial.gain or 0.0))})" for trial in (a, b))
        why = (
            f"Experiments {both} were both better, "
            "but within the noise. If their effects add up, together they stand clear of it."
        )
        yield SearchStep({**a.changes, **b.changes}, expected / bench.sigma, expected, why)
