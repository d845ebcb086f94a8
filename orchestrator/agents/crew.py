"""The crew of three agents, on Claude or any server that speaks its API; the optimizer advises or replaces them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

from orchestrator.agents import briefing, packets, researcher
from orchestrator.agents.fidelity import find_deviation
from orchestrator.core.events import Notebook, Postmortem, Proposal, Record, Telemetry
from orchestrator.core.state import Broken, Decided, State, apply, diff_from_parent
from orchestrator.policy.evidence import explain_unsupported
from orchestrator.policy.limits import compute_pause, explain_cap, explain_consolidation
from orchestrator.policy.steps import Edit, Propose, Reflect
from orchestrator.policy.thresholds import CENTAUR_SHARE
from orchestrator.ports import Crew, Log, Revision, StepMeter
from prepare.constants import read_values
from prepare.tree import join_files, split_files
from subagents import PromptError, mechanic, reflector
from subagents.agent import Agent, Environment, NoAnswer, ask
from subagents.files import EditedFiles
from subagents.prompts import Prompt
from subagents.tools import find_overlong

SUGGESTIONS = 3  # suggestions of the optimizer in the briefing of a centaur crew


class Adviser(Crew, Protocol):
    """The optimizer, which can also advise."""

    def suggest(self, state: State, count: int) -> Sequence[Proposal]:
        """Return up to `count` proposals as advice."""
        ...


class Review(Postmortem):
    """What an experiment taught."""

    implemented: Literal["yes", "partly", "no"]  # pyright: ignore[reportGeneralTypeIssues] - models must answer it
    """Whether the change is what the instructions asked for: answer this first."""


@dataclass(frozen=True)
class ClaudeCrew:
    """A ports.Crew of researcher, mechanic and reflector.

    In a centaur crew the optimizer makes a share of the proposals and advises on the others. In every crew it makes all
    proposals after a fallback.
    """

    log: Log
    connect: Callable[[str, int], Environment]  # for a conversation, by task id and experiment
    prompts: Mapping[str, Prompt]
    get_optimizer: Callable[[], Adviser]
    search: Callable[[str], str]
    find_page: Callable[[str, int], str]  # a musing by session and experiment; "" if the agents may see none
    meter: StepMeter | None = None

    async def propose(self, state: State, step: Propose) -> Sequence[Proposal]:
        centaur = state.session.crew == "centaur"
        if state.fallback:
            return await self.get_optimizer().propose(state, step)
        if centaur and step.first % CENTAUR_SHARE == 0:
            with suppress(NoAnswer):
                return await self.get_optimizer().propose(state, replace(step, count=1))
        environment = self.connect(step.task_id, step.first)
        if seconds := compute_pause(state):
            await environment.pause(seconds, state.now + seconds, f"{state.fruitless} rounds in a row led to no run")
            state = self.log.state if state.session.rule.chronological else state
            if state.fallback:
                return await self.get_optimizer().propose(state, step)
        if reason := explain_consolidation(state):
            noted = await self._consolidate(state, step, reason)
            state = self.log.state if state.session.rule.chronological else noted
        if cap := (seconds or reason) and (explain_cap(self.log.state, step.first) or self.log.state.stopping):
            raise NoAnswer(cap)
        source, prompt = self.log.get(state.parent.source), self.prompts["researcher"]
        tools = researcher.make_tools(state, source, self.log.get, self.search, self.find_page, self.meter)
        advice = self.get_optimizer().suggest(state, SUGGESTIONS) if centaur else ()
        suggestions = [f"{proposal.title}: {proposal.rationale}" for proposal in advice]
        facts = briefing.brief_researcher(state, step.first, step.count, source, suggestions)
        facts |= briefing.show_source(state, source, self.log.get)
        agent = researcher.make_agent(prompt, state, source, tools, partial(self.log.append, step.task_id))
        answer = await ask(agent, environment, prompt.render_opening(facts))
        own, sign = {"author": "researcher", "reverts": None, "combines": ()}, state.session.task.metric.sign
        drafts = [d.model_copy(update={**own, "expected_delta": sign * d.expected_delta}) for d in answer.proposals]
        if not state.session.rule.consistent:
            return drafts
        values = read_values(source)
        if state.session.rule.as_declared:
            drafts = [d.model_copy(update={"settings": researcher.match_types(d.settings, values)}) for d in drafts]
        return [d.model_copy(update={"direction": researcher.find_direction(d, values)}) for d in drafts]

    async def _consolidate(self, state: State, step: Propose, reason: str) -> State:
        """Return the state with a notebook that is rewritten from the evidence; without an answer it stays as it is."""
        prompt, source, notebook = self.prompts["notebook"], self.log.get(state.parent.source), None
        facts = briefing.brief_researcher(replace(state, notebook=None), step.first, 1, source)
        facts |= briefing.show_source(state, source, self.log.get)
        facts |= {"notebook": briefing.describe_notebook(state), "reason": reason}
        tools = researcher.make_tools(state, source, self.log.get, self.search, self.find_page, self.meter)
        agent = Agent("notebook", prompt, Notebook, tuple(tools), partial(researcher.find_notebook_fault, state))
        with suppress(NoAnswer):
            notebook = await ask(agent, self.connect(step.task_id, step.first), prompt.render_opening(facts))
        noted = researcher.make_note(state, notebook, reason)
        await self.log.append(step.task_id, noted)
        return apply(state, Record(seq=0, at=state.now, task_id=step.task_id, event=noted))

    async def implement(self, state: State, step: Edit, proposal: Proposal, source: str) -> Revision:
        shown = briefing.show_source(state, source, self.log.get)
        return await self._edit(state, step, proposal, source, packets.pack_order(proposal) | shown)

    async def repair(self, state: State, step: Edit, broken: Broken, source: str) -> Revision:
        proposal, commit = broken.candidate.proposal, broken.candidate.commit
        change = diff_from_parent(state, commit, self.log.get)
        facts = packets.pack_repair(broken, self.log.get(broken.crash.log), change, source, state.session.task)
        facts |= briefing.show_source(state, self.log.get(state.get_base(commit)), self.log.get)
        repaired = await self._edit(state, step, proposal, source, facts)
        return replace(repaired, deviations=" ".join(filter(None, (commit.deviations, repaired.deviations))))

    async def reflect(self, state: State, step: Reflect, decided: Decided) -> Postmortem:
        prompt, log = self.prompts["reflector"], self.log.get(decided.last_run.log)
        change = diff_from_parent(state, decided.commit, self.log.get) if decided.commit else ""
        onto = decided.commit and decided.commit.onto
        source = self.log.get(onto or state.parents[decided.incumbent].source)
        facts = packets.pack_reflection(state, decided, log, change, source)
        agent = reflector.make_agent(prompt, Review, log, partial(packets.write_curve_table, decided))

        def find_fault(review: Review) -> str:
            return find_overlong(review) or explain_unsupported(decided, review)

        agent = replace(agent, accept=find_fault)
        answer = await ask(agent, self.connect(step.task_id, step.experiment), prompt.render_opening(facts))
        return Postmortem(**answer.model_dump())

    async def _edit(self, state: State, step: Edit, proposal: Proposal, source: str, facts: dict[str, str]) -> Revision:
        check = partial(find_deviation, proposal, source, repair=step.how == "repaired")
        task, environment = state.session.task, self.connect(step.task_id, step.experiment)
        start = self._start if researcher.is_step_measurable(state) else None
        if task.has_tree:
            files = EditedFiles(split_files(source), start, task.is_editable, join_files)
        else:
            files = EditedFiles({(*task.editable, "train.py")[0]: source}, start)
        try:
            text, answer = await mechanic.edit(environment, self.prompts["mechanic"], files, facts, check)
        except PromptError as error:  # the script is too long for a model, though not for a run
            raise NoAnswer(str(error)) from error
        return Revision(text, answer.summary, answer.deviations)

    async def _start(self, source: str) -> Telemetry | str:
        return await self.meter(source) if self.meter else {}
