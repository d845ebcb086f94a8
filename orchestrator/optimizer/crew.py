"""The classical crew: the scientific control of every other crew.

Its next proposal is a pure function of the state: a coordinate search step (search.py) while one promises enough,
otherwise TPE over a few constants that have shown an effect; or, by `--search`, a sampler draws all from the start on.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from orchestrator.core.events import Digest, Postmortem, Proposal
from orchestrator.core.state import Broken, Decided, State
from orchestrator.core.templates import Macros, load_templates
from orchestrator.core.text import flatten, shorten
from orchestrator.optimizer import postmortem
from orchestrator.optimizer.families import find_family
from orchestrator.optimizer.search import SearchState, SearchStep, Trial, rank_steps, read_search, stack_near_misses
from orchestrator.optimizer.space import explain_untunable, get_direction
from orchestrator.optimizer.study import ask
from orchestrator.policy.steps import Edit, Propose, Reflect
from orchestrator.ports import Revision
from prepare.constants import format_literal
from subagents.agent import NoAnswer

SAMPLE_BELOW = 1.0  # expected effect in σ below which TPE takes over from coordinate search
STACK_EVERY = 6  # one proposal in this many stacks near-misses, if there are at least two
MAX_FREE = 2  # constants that TPE may change at once: few enough to tell which one had the effect
DRAWS = 6  # draws of such constants before giving up on finding a new step
QUOTED = 3  # earlier trials of the same constants that a rationale quotes
WORDS = Macros(load_templates("orchestrator.optimizer", literal=format_literal), "proposal.txt")


@dataclass(frozen=True, slots=True)
class Optimizer:
    """A ports.Crew without models; `get` returns stored texts."""

    get: Callable[[Digest], str]

    async def propose(self, state: State, step: Propose) -> Sequence[Proposal]:
        """Return up to `count` proposals, each as if those before it were running. Raises NoAnswer."""
        search = read_search(state, self.get)
        proposals: list[Proposal] = []
        for number in range(step.first, step.first + step.count):
            seed = f"{state.session.seed}/{number}/{step.attempt}"
            next_step = choose_step(state.session.search, search, number, seed)
            if next_step is None:
                break
            proposals.append(_write_proposal(search, next_step))
            pending = Trial(f"experiment {number}", next_step.changes, search.values, "running")
            search = replace(search, trials=(*search.trials, pending))
        if not search.constants:
            raise NoAnswer(explain_untunable(self.get(state.parent.source), search.code))
        if not proposals:
            raise NoAnswer("every step from here has been tried")
        return proposals

    def suggest(self, state: State, count: int) -> list[Proposal]:
        """Return up to `count` proposals, the most promising first, as advice to another researcher."""
        search = read_search(state, self.get)
        found = rank_steps(search)[:count]
        if len(found) < count and (drawn := _sample(search, f"{state.session.seed}/{state.next}")) is not None:
            found.append(drawn)
        return [_write_proposal(search, next_step) for next_step in found]

    async def implement(self, state: State, step: Edit, proposal: Proposal, source: str) -> Revision:  # noqa: ARG002
        raise NoAnswer("the proposal changes more than constants, which needs a mechanic")

    async def repair(self, state: State, step: Edit, broken: Broken, source: str) -> Revision:  # noqa: ARG002
        raise NoAnswer("settings that crash are not repaired")

    async def reflect(self, state: State, step: Reflect, decided: Decided) -> Postmortem:  # noqa: ARG002
        return postmortem.write_postmortem(decided)


def choose_step(way: str, search: SearchState, number: int, seed: str) -> SearchStep | None:
    """Return the next step of experiment `number` by this way to search; None if none is new."""
    if way != "coordinate":  # a sampler draws on all constants at once
        drawn = ask(search, [*search.constants], random.Random(seed).getrandbits(31), way)  # noqa: S311 - reproducible
        new = next(filter(search.is_new, drawn), None)
        return SearchStep(new, 0.0, 0.0, WORDS.draw(way, len(search.trials), new)) if new is not None else None
    if number % STACK_EVERY == 0 and (stack := stack_near_misses(search)) is not None:
        return stack
    found = rank_steps(search)
    if found and found[0].expected_effect >= SAMPLE_BELOW:
        return found[0]
    return _sample(search, seed) or (found[0] if found else None)


def _sample(search: SearchState, seed: str) -> SearchStep | None:
    """Return a step that TPE draws on a few constants, themselves drawn by their effect; None if none is new."""
    rng = random.Random(seed)  # noqa: S311 - reproducible on purpose
    known = sum(trial.gain is not None for trial in search.trials)
    for avoid_bad in (True, False):
        for _ in range(DRAWS):
            # The shortest of exponential waits are a draw without replacement in proportion to their rates.
            waits = {n: rng.expovariate(_estimate_sensitivity(search, n) + 1e-9) for n in search.constants}
            free = sorted(waits, key=waits.__getitem__)[:MAX_FREE]
            for changes in ask(search, free, rng.getrandbits(31)):
                bad = any(search.is_known_bad(name, value) for name, value in changes.items())
                if search.is_new(changes) and not (avoid_bad and bad):
                    return SearchStep(changes, 0.0, 0.0, WORDS.sample(known, changes))
    return None


def _estimate_sensitivity(search: SearchState, name: str) -> float:
    """Return the constant's largest effect so far, or its family's usual one, in σ, divided by 1 + its trials."""
    gains = [abs(trial.gain) / search.sigma for trial in search.list_trials(name) if trial.gain is not None]
    tried = sum(name in trial.changes for trial in search.trials)
    return max(gains, default=find_family(name).effect) / (1 + tried)


def _write_proposal(search: SearchState, next_step: SearchStep) -> Proposal:
    """Return a step as a proposal, which states the usual effects of its constants and what was measured of them."""
    changes, old, metric, sigma = next_step.changes, search.values, search.metric, search.sigma * search.is_measured
    first, *others = changes
    family, direction = find_family(first), None if others else get_direction(search.constants[first], changes[first])
    labels = {None: f"{len(changes)} at once", "up": family.up, "down": family.down, "set": "Another value"}
    settings = " and ".join(f"{name} = {format_literal(new, old=old[name])}" for name, new in changes.items())
    usual = {find_family(name).family: find_family(name).effect for name in changes}
    trials = [trial for name in changes for trial in search.list_trials(name) if trial.gain is not None]
    return Proposal(
        title=shorten(WORDS.title(labels[direction], changes, old, len(changes) > MAX_FREE), 120),
        hypothesis=WORDS.hypothesis(settings, metric, sigma),
        rationale=flatten(WORDS.rationale(next_step.why, usual, trials[-QUOTED:], metric, sigma)),
        expected_delta=0.0 - next_step.expected_gain,
        family=family.family,
        settings=dict(changes),
        direction=direction,
        instructions=f"In {search.code} set {settings}. Change nothing else.",
        author="optimizer",
    )
