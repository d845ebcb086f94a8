"""Three agents on Claude, or on any server that speaks its API: who thinks, as the loop wants it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from orchestrator.agents import briefing, packets, researcher
from orchestrator.agents.researcher import Search
from orchestrator.core.events import Postmortem, Proposal
from orchestrator.core.source import diff
from orchestrator.core.state import Broken, Decided, State
from orchestrator.policy import thresholds
from orchestrator.policy.steps import Implement, Propose, Rebase, Reflect, Repair
from orchestrator.ports import Crew, Log
from subagents import mechanic, reflector
from subagents.agent import Environment, NoAnswer, ask
from subagents.files import Smoke, list_packages
from subagents.prompts import Prompt

Suggest = Callable[[State], Sequence[str]]
"""What the optimizer would try next, in words."""


class ClaudeCrew:
    """The researcher, the mechanic and the reflector (a loop.Crew)."""

    def __init__(
        self,
        log: Log,
        world: Callable[[str, int], Environment],
        prompts: Mapping[str, Prompt],
        *,
        search: Search | None = None,
        smoke: Smoke | None = None,
        suggest: Suggest | None = None,
        packages: frozenset[str] | None = None,
    ) -> None:
        """`world` makes the world of a conversation from its lane and experiment; `prompts` go by the agent's name."""
        self.log, self.world, self.prompts = log, world, prompts
        self.search, self.smoke, self.suggest = search, smoke, suggest
        self.packages = list_packages() if packages is None else packages

    async def propose(self, state: State, step: Propose) -> Sequence[Proposal]:
        source, prompt = self.log.get(state.parent.source), self.prompts["researcher"]
        suggestions = self.suggest(state) if self.suggest else ()
        facts = briefing.brief_researcher(state, step.first, step.count, source, suggestions)
        agent = researcher.make_agent(prompt, state, source, self.log.get, self.search)
        answer = await ask(agent, self.world(step.task_id, step.first), prompt.opening(facts))
        return [draft.proposal() for draft in answer.proposals]

    async def implement(self, state: State, step: Implement | Rebase, proposal: Proposal, source: str) -> str:
        del state
        return await self._edited(step, source, packets.pack_order(proposal))

    async def repair(self, state: State, step: Repair, broken: Broken, source: str) -> str:
        before = self.log.get(state.parents[broken.candidate.commit.parent].source)
        return await self._edited(
            step, source, packets.pack_repair(broken, self.log.get(broken.crash.log), diff(before, source))
        )

    async def reflect(self, state: State, step: Reflect, decided: Decided) -> Postmortem:
        commit, prompt = decided.candidate.commit, self.prompts["reflector"]
        log = self.log.get((decided.crash or decided.candidate.scores[-1]).log)
        change = diff(self.log.get(state.parents[commit.parent].source), self.log.get(commit.source))
        lesson = await reflector.reflect(
            self.world(step.task_id, step.experiment),
            prompt,
            packets.pack_reflection(state, decided, log, change),
            log=log,
            compare=packets.make_curve_table(state, decided),
        )
        return Postmortem(**lesson.model_dump())

    async def _edited(self, step: Implement | Rebase | Repair, source: str, facts: Mapping[str, str]) -> str:
        world = self.world(step.task_id, step.experiment)
        prompt = self.prompts["mechanic"]
        return await mechanic.edit(world, prompt, source, facts, packages=self.packages, smoke=self.smoke)


class Centaur:
    """Models do the research; an optimizer advises them, and a share of the trials is its own (a loop.Crew)."""

    def __init__(self, models: ClaudeCrew, optimizer: Crew) -> None:
        self.models, self.optimizer = models, optimizer

    async def propose(self, state: State, step: Propose) -> Sequence[Proposal]:
        if step.first % thresholds.CENTAUR_SHARE == 0:
            with suppress(NoAnswer):
                return await self.optimizer.propose(state, replace(step, count=1))
        return await self.models.propose(state, step)

    async def implement(self, state: State, step: Implement | Rebase, proposal: Proposal, source: str) -> str:
        crew = self.optimizer if proposal.author == "optimizer" else self.models
        return await crew.implement(state, step, proposal, source)

    async def repair(self, state: State, step: Repair, broken: Broken, source: str) -> str:
        return await self.models.repair(state, step, broken, source)

    async def reflect(self, state: State, step: Reflect, decided: Decided) -> Postmortem:
        return await self.models.reflect(state, step, decided)
