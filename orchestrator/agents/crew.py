"""The crew of three agents, on Claude or any server that speaks its API, and the crew that adds the optimizer."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from orchestrator.agents import briefing, packets, researcher
from orchestrator.agents.researcher import Search
from orchestrator.core.events import Postmortem, Proposal
from orchestrator.core.source import diff
from orchestrator.core.state import Broken, Decided, State, diff_from_parent
from orchestrator.policy import thresholds
from orchestrator.policy.steps import Implement, Propose, Rebase, Reflect, Repair
from orchestrator.ports import Crew, Log
from subagents import mechanic, reflector
from subagents.agent import Environment, NoAnswer, ask
from subagents.files import list_packages
from subagents.prompts import Prompt

Suggest = Callable[[State], Sequence[str]]
"""Returns what the optimizer would try next, in words."""


class ClaudeCrew:
    """The researcher, the mechanic and the reflector (a ports.Crew)."""

    def __init__(
        self,
        log: Log,
        connect: Callable[[str, int], Environment],
        prompts: Mapping[str, Prompt],
        *,
        search: Search | None = None,
        suggest: Suggest | None = None,
    ) -> None:
        """Take prompts by agent; `connect` returns the environment of a conversation by task id and experiment."""
        self.log, self.connect, self.prompts = log, connect, prompts
        self.search, self.suggest = search, suggest
        self.packages = list_packages()

    async def propose(self, state: State, step: Propose) -> Sequence[Proposal]:
        source, prompt = self.log.get(state.parent.source), self.prompts["researcher"]
        suggestions = self.suggest(state) if self.suggest else ()
        facts = briefing.brief_researcher(state, step.first, step.count, source, suggestions)
        agent = researcher.make_agent(prompt, state, source, self.log.get, self.search)
        answer = await ask(agent, self.connect(step.task_id, step.first), prompt.render_opening(facts))
        return [proposal.model_copy(update={"author": "researcher"}) for proposal in answer.proposals]

    async def implement(self, state: State, step: Implement | Rebase, proposal: Proposal, source: str) -> str:
        del state
        return await self._edit(step, source, packets.pack_order(proposal))

    async def repair(self, state: State, step: Repair, broken: Broken, source: str) -> str:
        before = self.log.get(state.parents[broken.candidate.commit.parent].source)
        facts = packets.pack_repair(broken, self.log.get(broken.crash.log), diff(before, source))
        return await self._edit(step, source, facts)

    async def reflect(self, state: State, step: Reflect, decided: Decided) -> Postmortem:
        prompt, log = self.prompts["reflector"], self.log.get(decided.last_run.log)
        change = diff_from_parent(state, decided.candidate.commit, self.log.get)
        facts = packets.pack_reflection(state, decided, log, change)
        agent = reflector.make_agent(prompt, Postmortem, log, packets.make_curve_table(state, decided))
        return await ask(agent, self.connect(step.task_id, step.experiment), prompt.render_opening(facts))

    async def _edit(self, step: Implement | Rebase | Repair, source: str, facts: Mapping[str, str]) -> str:
        environment = self.connect(step.task_id, step.experiment)
        return await mechanic.edit(environment, self.prompts["mechanic"], source, facts, self.packages)


class Centaur:
    """Models do the research; the optimizer advises them and makes a share of the proposals (a ports.Crew)."""

    def __init__(self, models: ClaudeCrew, optimizer: Crew) -> None:
        self.models, self.optimizer = models, optimizer
        self.repair, self.reflect = models.repair, models.reflect

    async def propose(self, state: State, step: Propose) -> Sequence[Proposal]:
        if step.first % thresholds.CENTAUR_SHARE == 0:
            with suppress(NoAnswer):
                return await self.optimizer.propose(state, replace(step, count=1))
        return await self.models.propose(state, step)

    async def implement(self, state: State, step: Implement | Rebase, proposal: Proposal, source: str) -> str:
        crew = self.optimizer if proposal.author == "optimizer" else self.models
        return await crew.implement(state, step, proposal, source)
