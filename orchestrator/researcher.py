"""The main agent: reads the state of the research, looks things up, and proposes what to try next, and why."""

from collections.abc import Callable
from typing import Annotated, Literal, cast

from pydantic import BaseModel, BeforeValidator, Field

from orchestrator import briefing
from orchestrator.events import Digest, Family, Knob, Proposal
from orchestrator.source import diff
from orchestrator.state import Finding, State
from subagents.agent import Agent
from subagents.prompts import Prompt
from subagents.tools import Tool, ToolError, unquoted

PAGE = 200
"""Lines of train.py at a time."""
Search = Callable[[str], str]
"""Searches the musings of all sessions; gives snippets."""


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
    knob: Annotated[Knob | None, BeforeValidator(unquoted)] = Field(
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
        return Proposal(**dict(self), author="researcher")


def _listed(given: object) -> object:
    """What smaller models hand in for a list: the list as a string, or its only item."""
    found = unquoted(given)
    return [cast("object", found)] if isinstance(found, dict) else found


class Proposals(BaseModel):
    """The researcher's answer."""

    proposals: Annotated[list[Draft], BeforeValidator(_listed)] = Field(min_length=1, max_length=8)


def agent(
    prompt: Prompt, state: State, source: str, read: Callable[[Digest], str], search: Search | None = None
) -> Agent[Proposals]:
    """The researcher as the state stands; `source` is the best train.py, `read` gives stored texts."""
    tools = (_reader(source), _lookup(state, read), _query(state))
    return Agent("researcher", prompt, Proposals, (*tools, *([_searcher(search)] if search else [])))


def change(finding: Finding, state: State, read: Callable[[Digest], str]) -> str:
    """What an experiment changed in train.py, as a diff; empty where nothing was made."""
    made = finding.made
    return diff(read(state.bases[made.base].source), read(made.source)) if made else ""


def _reader(source: str) -> Tool:
    lines = source.splitlines()

    def read_train_py(first: int = 1, last: int = PAGE) -> str:
        """Read the best train.py so far, from line `first` to line `last`; the outline says what stands where."""
        if not 1 <= first <= last:
            raise ToolError(f"Lines count from 1 to {len(lines)}, and `first` is not after `last`.")
        page = lines[first - 1 : min(last, first - 1 + PAGE)]
        return "\n".join([f"({len(lines)} lines in all)", *(f"{n:4}│{line}" for n, line in enumerate(page, first))])

    return Tool.of(read_train_py)


def _lookup(state: State, read: Callable[[Digest], str]) -> Tool:
    def look_up_experiment(number: int) -> str:
        """All that is known of one experiment: its proposal, its scores, its post-mortem, its diff."""
        for finding in state.findings:
            if finding.experiment == number:
                return briefing.experiment(finding, change(finding, state, read))
        raise ToolError(f"No experiment {number} is finished; the finished ones go from 0 to {state.next - 1}.")

    return Tool.of(look_up_experiment)


def _query(state: State) -> Tool:
    def query_ledger(
        family: Family | None = None,
        verdict: Literal["kept", "discarded", "crashed", "refused", "abandoned"] | None = None,
        parameter: str = "",
    ) -> str:
        """List finished experiments, by family, by verdict, by the constant they turned; all filters are optional."""
        found = [
            finding
            for finding in state.findings
            if family in (None, finding.proposal.family)
            and verdict in (None, briefing.verdict_name(finding))
            and (not parameter or (finding.proposal.knob and finding.proposal.knob.parameter == parameter.strip()))
        ]
        return briefing.ledger(found) if found else "No experiment is like that."

    return Tool.of(query_ledger)


def _searcher(search: Search) -> Tool:
    def search_musings(words: str) -> str:
        """Search the musings of this and all earlier nights: what was tried, why, and what came of it."""
        return search(words) or "Nothing is said of that."

    return Tool.of(search_musings, pure=False)
