"""The main agent: reads the state of the research, looks things up, and proposes what to try next, and why."""

from collections.abc import Callable
from typing import Annotated, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from orchestrator.agents import briefing
from orchestrator.core.events import Digest, Direction, Family, Proposal, parse_value
from orchestrator.core.source import diff
from orchestrator.core.state import ExperimentResult, State
from subagents.agent import Agent
from subagents.prompts import Prompt
from subagents.tools import Tool, ToolError, unquote

PAGE = 200
"""Lines of train.py at a time."""
Search = Callable[[str], str]
"""Searches the musings of all sessions; gives snippets."""


class Knob(BaseModel):
    """The constant that a proposal turns, where it turns just one."""

    model_config = ConfigDict(extra="forbid")

    parameter: str
    direction: Direction
    value: str = ""


class Draft(BaseModel):
    """A proposal, as the researcher writes it."""

    title: str = Field(min_length=3, max_length=90, description="An imperative a colleague understands at a glance.")
    hypothesis: str = Field(
        max_length=300, description="One falsifiable sentence: this change has this effect on val_bpb, because of this."
    )
    rationale: str = Field(
        max_length=1800,
        description=(
            "Why it should hold, for a reader who is learning: the mechanism by its name, the theory or paper behind "
            "it, and the findings of this session (by #number) that speak for and against it. Three to eight sentences."
        ),
    )
    expected_delta: float = Field(
        allow_inf_nan=False, description="Your honest median guess of the change of val_bpb; negative is better."
    )
    family: Family
    knob: Annotated[Knob | None, BeforeValidator(unquote)] = Field(
        default=None,
        description=(
            "Only where the change turns one single constant: its name, up or down (set, where its values have no "
            "order), and the new value as it will stand in train.py."
        ),
    )
    instructions: str = Field(
        max_length=2500,
        description="What the mechanic is to change in train.py, so exactly that there is nothing left to decide.",
    )

    def proposal(self) -> Proposal:
        fields = {name: value for name, value in self if name != "knob"}
        if knob := self.knob:
            fields |= {"settings": {knob.parameter: parse_value(knob.value)}, "direction": knob.direction}
        return Proposal(**fields, author="researcher")


def _as_list(given: object) -> object:
    """What smaller models hand in for a list: the list as a string, or its only item."""
    found = unquote(given)
    return [cast("object", found)] if isinstance(found, dict) else found


class Proposals(BaseModel):
    """The researcher's answer."""

    proposals: Annotated[list[Draft], BeforeValidator(_as_list)] = Field(min_length=1, max_length=8)


def make_agent(
    prompt: Prompt, state: State, source: str, read: Callable[[Digest], str], search: Search | None = None
) -> Agent[Proposals]:
    """The researcher as the state stands; `source` is the best train.py, `read` gives stored texts."""
    tools = (_make_reader(source), _make_lookup(state, read), _make_query(state))
    return Agent("researcher", prompt, Proposals, (*tools, *([_make_searcher(search)] if search else [])))


def show_change(result: ExperimentResult, state: State, read: Callable[[Digest], str]) -> str:
    """What an experiment changed in train.py, as a diff; empty where nothing was made."""
    commit = result.commit
    return diff(read(state.parents[commit.parent].source), read(commit.source)) if commit else ""


def _make_reader(source: str) -> Tool:
    lines = source.splitlines()

    def read_train_py(first: int = 1, last: int = PAGE) -> str:
        """Read the best train.py so far, from line `first` to line `last`; the outline says what stands where."""
        if not 1 <= first <= last:
            raise ToolError(f"Lines count from 1 to {len(lines)}, and `first` is not after `last`.")
        page = lines[first - 1 : min(last, first - 1 + PAGE)]
        return "\n".join([f"({len(lines)} lines in all)", *(f"{n:4}│{line}" for n, line in enumerate(page, first))])

    return Tool.of(read_train_py)


def _make_lookup(state: State, read: Callable[[Digest], str]) -> Tool:
    def look_up_experiment(number: int) -> str:
        """All that is known of one experiment: its proposal, its scores, its post-mortem, its diff."""
        for result in state.results:
            if result.experiment == number:
                return briefing.describe_experiment(result, show_change(result, state, read))
        raise ToolError(f"No experiment {number} is finished; the finished ones go from 0 to {state.next - 1}.")

    return Tool.of(look_up_experiment)


def _make_query(state: State) -> Tool:
    def query_ledger(
        family: Family | None = None,
        verdict: Literal["kept", "discarded", "crashed", "refused", "abandoned"] | None = None,
        parameter: str = "",
    ) -> str:
        """List finished experiments, by family, by verdict, by the constant they turned; all filters are optional."""
        found = [
            result
            for result in state.results
            if family in (None, result.proposal.family)
            and verdict in (None, result.status)
            and (not parameter or parameter.strip() in result.proposal.settings)
        ]
        return briefing.list_experiments(found) if found else "No experiment is like that."

    return Tool.of(query_ledger)


def _make_searcher(search: Search) -> Tool:
    def search_musings(words: str) -> str:
        """Search the musings of this and all earlier nights: what was tried, why, and what came of it."""
        return search(words) or "Nothing is said of that."

    return Tool.of(search_musings, pure=False)
