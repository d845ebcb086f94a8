"""The classical researcher: no key, no network. The scientific control of every other crew.

Its next proposal is a pure function of the session's state: one step from the incumbent while steps promise something
(moves.py), and otherwise Optuna's TPE over the few constants that have shown an effect, all others held.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from orchestrator.core import text
from orchestrator.core.events import Digest, Postmortem, Proposal
from orchestrator.core.state import Broken, Decided, Parent, State
from orchestrator.optimizer import postmortem
from orchestrator.optimizer.families import find_family
from orchestrator.optimizer.search import (
    SearchState,
    SearchStep,
    Trial,
    estimate_sensitivity,
    get_direction,
    rank_steps,
    read_search_state,
)
from orchestrator.policy.steps import Implement, Propose, Rebase, Reflect, Repair
from prepare.constants import (
    Choices,
    Constant,
    Numbers,
    UnknownConstantError,
    Value,
    format_literal,
    list_searchable,
    with_constants,
)
from subagents.agent import NoAnswer

SAMPLE_BELOW = 1.0
"""When no single step promises a whole σ any more, TPE takes over."""
FREE = 2
"""Constants that TPE may turn at once: few enough that one can say what did it."""
DRAWS, ASKS = 6, 10
"""Draws of such constants, and samples of each, before giving up on finding a new step."""
TELLING = 3
"""Earlier trials of the same constants that a rationale quotes."""


class Optimizer:
    """A crew of one. `get` gives the text of a digest, as a session does."""

    def __init__(self, get: Callable[[Digest], str]) -> None:
        self.get = get
        self.known: dict[Digest, dict[str, Constant]] = {}

    async def propose(self, state: State, step: Propose) -> Sequence[Proposal]:
        """Up to `count` proposals, each as if those before it were in flight. Raises NoAnswer."""
        at = read_search_state(state, self._constants)
        proposals: list[Proposal] = []
        for number in range(step.first, step.first + step.count):
            move = _choose_step(at, f"{state.session.seed}/{number}/{step.attempt}")
            if move is None:
                break
            proposals.append(_write_proposal(at, move))
            at = _add_pending(at, number, move)
        if not proposals:
            raise NoAnswer("every step from here has been tried")
        return proposals

    def suggestions(self, state: State, count: int) -> list[Proposal]:
        """What it would propose next, the most promising first; for other researchers to look at."""
        at = read_search_state(state, self._constants)
        found = [_write_proposal(at, move) for move in rank_steps(at)[:count]]
        if len(found) < count and (move := _sample(at, f"{state.session.seed}/{state.next}")) is not None:
            found.append(_write_proposal(at, move))
        return found

    async def implement(self, state: State, step: Implement | Rebase, proposal: Proposal, source: str) -> str:  # noqa: ARG002
        """The source with the proposal's constants turned. Raises NoAnswer."""
        changes = proposal.settings
        if not changes:
            raise NoAnswer("the proposal turns no constant, and more than that needs a mechanic")
        try:
            return with_constants(source, changes)
        except UnknownConstantError as error:
            raise NoAnswer(str(error)) from error

    async def repair(self, state: State, step: Repair, broken: Broken, source: str) -> str:  # noqa: ARG002
        raise NoAnswer("constants that crash are not repaired, but remembered")

    async def reflect(self, state: State, step: Reflect, decided: Decided) -> Postmortem:  # noqa: ARG002
        return postmortem.write_postmortem(state, decided)

    def _constants(self, base: Parent) -> dict[str, Constant]:
        if base.source not in self.known:
            self.known[base.source] = list_searchable(self.get(base.source))
        return self.known[base.source]


def _choose_step(at: SearchState, seed: str) -> SearchStep | None:
    found = rank_steps(at)
    if found and found[0].promise >= SAMPLE_BELOW:
        return found[0]
    return _sample(at, seed) or (found[0] if found else None)


def _add_pending(at: SearchState, number: int, move: SearchStep) -> SearchState:
    """The bench once this move is in flight."""
    trial = Trial(number, move.changes, at.values, "running")
    return replace(at, trials=(*at.trials, trial), tried=at.tried | {frozenset(trial.after.items())})


def _sample(at: SearchState, seed: str) -> SearchStep | None:
    """A step drawn by TPE on a few constants, themselves drawn by their effect so far; nothing known to hurt."""
    luck = random.Random(seed)  # noqa: S311 - reproducible on purpose
    for hard in (True, False):
        for _ in range(DRAWS):
            free = _draw_names(luck, {name: estimate_sensitivity(at, name) for name in at.constants})
            for changes in _ask_tpe(at, free, luck.getrandbits(31)):
                hopeless = any(at.is_hopeless(name, value) for name, value in changes.items())
                if at.is_new(changes) and not (hard and hopeless):
                    return SearchStep(changes, 0.0, 0.0, _explain_sample(at, changes))
    return None


def _ask_tpe(at: SearchState, free: Sequence[str], seed: int) -> Iterator[dict[str, Value]]:
    """What TPE would change about these constants of the incumbent, sample by sample."""
    study = _build_study(at, free, seed)
    for _ in range(ASKS):
        drawn = study.ask({name: _to_distribution(at.constants[name]) for name in free}).params
        values = {name: _decode(at.constants[name], drawn[name]) for name in free}
        yield {name: value for name, value in values.items() if value != at.constants[name].value}


def _draw_names(luck: random.Random, weights: dict[str, float]) -> list[str]:
    """A few names without replacement, in proportion to their weights."""
    found: list[str] = []
    while weights and len(found) < FREE:
        (name,) = luck.choices(list(weights), [weight + 1e-9 for weight in weights.values()])
        found.append(name)
        weights = {other: weight for other, weight in weights.items() if other != name}
    return found


def _build_study(at: SearchState, free: Sequence[str], seed: int) -> optuna.Study:
    """All trials so far, as TPE is to see them; failed ones are infeasible, never a bad score."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=1)
    study = optuna.create_study(sampler=sampler)
    spaces = {name: _to_distribution(at.constants[name]) for name in free}
    for trial in at.trials:
        if trial.outcome != "refused" and trial.after.keys() >= spaces.keys():
            params = {name: _encode(at.constants[name], trial.after[name]) for name in free}
            told = create_trial(state=_to_trial_state(trial), value=trial.val_bpb, params=params, distributions=spaces)
            study.add_trial(told)
    return study


def _to_trial_state(trial: Trial) -> TrialState:
    if trial.val_bpb is not None:
        return TrialState.COMPLETE
    return TrialState.RUNNING if trial.outcome == "running" else TrialState.PRUNED


def _to_distribution(constant: Constant) -> BaseDistribution:
    match constant.space:
        case Choices(options=options) as space:
            last = len(options) - 1
            return IntDistribution(0, last) if space.ordered else CategoricalDistribution(list(range(last + 1)))
        case Numbers(low, high, log, whole=True):
            return IntDistribution(round(low), round(high), log=log)
        case Numbers(low, high, log):
            return FloatDistribution(low, high, log=log)


def _encode(constant: Constant, value: Value) -> int | float:
    """A constant's value as TPE sees it; what lies outside its space counts as the nearest within."""
    match constant.space, value:
        case Choices(options=options), _ if value in options:
            return options.index(value)
        case Choices(options=options) as space, int() | float() if space.ordered:
            return min(range(len(options)), key=lambda i: abs(float(str(options[i])) - value))
        case Numbers(whole=True) as space, int() | float():
            return round(space.clip(value))
        case Numbers() as space, int() | float():
            return float(space.clip(value))
        case _:
            return 0


def _decode(constant: Constant, drawn: float) -> Value:
    match constant.space:
        case Choices(options=options):
            return options[int(drawn)]
        case Numbers() as space:
            return space.from_unit(space.to_unit(drawn))


def _write_proposal(at: SearchState, move: SearchStep) -> Proposal:
    """A move in plain words."""
    first = next(iter(move.changes))
    steps = [
        f"{name} {format_literal(at.constants[name].value)} → {format_literal(new)}"
        for name, new in move.changes.items()
    ]
    settings = [f"{name} = {format_literal(new, like=at.constants[name].value)}" for name, new in move.changes.items()]
    return Proposal(
        title=f"{_label(at, move)}: {', '.join(steps)}"[:120],
        hypothesis=f"With {' and '.join(settings)} val_bpb falls by more than the noise (σ {at.sigma:.4f}).",
        rationale=" ".join(_explain(at, move)),
        expected_delta=0.0 - move.expected,
        family=find_family(first).family,
        settings=dict(move.changes),
        direction=get_direction(at.constants[first], move.changes[first]) if len(move.changes) == 1 else None,
        instructions=f"In train.py set {' and '.join(settings)}. Change nothing else.",
        author="optimizer",
    )


def _label(at: SearchState, move: SearchStep) -> str:
    if len(move.changes) > 1:
        return "Two at once"
    ((name, new),) = move.changes.items()
    match get_direction(at.constants[name], new):
        case "up":
            return find_family(name).up
        case "down":
            return find_family(name).down
        case "set":
            return "Another value"


def _explain(at: SearchState, move: SearchStep) -> Iterator[str]:
    yield from dict.fromkeys(find_family(name).why for name in move.changes)
    if any(find_family(name).first == "budget" for name in move.changes) and at.tokens_per_parameter:
        yield f"The best train.py so far sees {at.tokens_per_parameter:.2g} tokens per parameter."
    yield move.why
    told = [trial for name in move.changes for trial in at.singles(name) if trial.gain is not None][-TELLING:]
    for trial in told:
        ((name, new),) = trial.changes.items()
        step = f"{name} {format_literal(trial.before[name])} → {format_literal(new)}"
        yield f"Experiment {trial.experiment}: {step} changed val_bpb by {text.format_signed(-(trial.gain or 0.0))}."


def _explain_sample(at: SearchState, changes: Mapping[str, Value]) -> str:
    known = sum(trial.gain is not None for trial in at.trials)
    return (
        "No single step promises much any more. TPE (Bergstra et al. 2011) models the good and the bad of "
        f"{known} trials apart and draws where the good ones are denser; it was set free on {' and '.join(changes)} "
        "only, drawn by the effect that they have shown, and everything else is held."
    )
