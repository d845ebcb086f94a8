"""The researcher: reads the state of the research, looks things up, and proposes what to try next, and why."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from typing import Annotated, cast, get_args

from pydantic import BaseModel, BeforeValidator, Field

from orchestrator.agents import briefing
from orchestrator.core.events import Digest, Direction, Family, Notebook, Noted, Proposal, Started, parse_value
from orchestrator.core.state import UNTESTED, FinalStatus, State, diff_from_parent
from orchestrator.policy.steps import BATCH
from orchestrator.ports import StepMeter
from prepare.command import UserError
from prepare.constants import UnknownConstantError, Value, is_plain, read_values, with_constants
from prepare.tree import join_files, split_files
from subagents.agent import Agent
from subagents.files import MAX_STARTS, EditedFiles, number_page
from subagents.logs import quote
from subagents.prompts import Prompt
from subagents.tools import Tool, ToolError, find_overlong, unquote

MOST = 1e30  # larger numbers have sums and squares that are infinite


def _read_list(given: object) -> list[object]:
    """Return the list of proposals, even if a smaller model has quoted it as JSON or submitted a single proposal."""
    found = unquote(given)
    return [_read_settings(item) for item in (cast("list[object]", found) if isinstance(found, list) else [found])]


def _read_settings(given: object) -> object:
    """Return a proposal with its settings unquoted; without them if they are empty."""
    found = unquote(given)
    if not isinstance(found, dict):
        return found
    proposal = cast("dict[str, object]", found)
    if settings := _parse_values(proposal.get("settings")):
        return proposal | {"settings": settings}
    return {name: value for name, value in proposal.items() if name != "settings"}


def _parse_values(given: object) -> object:
    """Return settings unquoted: as a whole, and each value."""
    found = unquote(given)
    if not isinstance(found, dict):
        return found
    values = cast("dict[str, object]", found).items()
    return {name: parse_value(value) if isinstance(value, str) else value for name, value in values}


class Proposals(BaseModel):
    """The researcher's answer."""

    proposals: Annotated[list[Proposal], BeforeValidator(_read_list)] = Field(min_length=1, max_length=BATCH)


def make_note(state: State, notebook: Notebook | None, reason: str = "") -> Noted:
    """Return the event of a notebook whose author was told of this state."""
    drafts = tuple(draft.title for draft in briefing.list_drafts(state))
    return Noted(notebook=notebook, reason=reason, told=len(state.tried), drafts=drafts)


def make_agent(
    prompt: Prompt, state: State, source: str, tools: Sequence[Tool], write: Callable[[Noted], Awaitable[None]]
) -> Agent[Proposals]:
    """Return a researcher that makes proposals; `source` is the best script, and `write` stores a notebook."""
    values = read_values(source)

    def find_fault(answer: Proposals) -> str:
        return "; ".join(fault for draft in answer.proposals if (fault := _find_fault(draft, state, values)))

    async def rewrite_notebook(beliefs: list[str], questions: list[str], ideas: list[str]) -> str:
        """Replace your whole notebook; at most 3,800 characters in all.

        Beliefs: what the measurements carry, each with the #numbers of its experiments. Questions: what is open. Ideas:
        the backlog, best first.
        """
        notebook = Notebook(beliefs=tuple(beliefs), questions=tuple(questions), ideas=tuple(ideas))
        if fault := find_notebook_fault(state, notebook):
            raise ToolError(fault)
        await write(make_note(state, notebook))
        return "The notebook is rewritten."

    return Agent("researcher", prompt, Proposals, (*tools, Tool.from_function(rewrite_notebook)), find_fault)


def match_types(settings: Mapping[str, Value], values: Mapping[str, Value]) -> dict[str, Value]:
    """Return settings with the types of the values before, where nothing is lost by it: 12 for 12.0, False for 0."""
    return {name: _match_type(new, values.get(name)) for name, new in settings.items()}


def _match_type(new: Value, old: Value | None) -> Value:
    kind = type(old)
    if kind in {bool, int, float} and isinstance(new, int | float) and abs(new) <= MOST:
        return exact if (exact := kind(new)) == new else new
    return new


def find_direction(proposal: Proposal, values: Mapping[str, Value]) -> Direction | None:
    """Return which way a proposal changes its only constant, `set` if that has no order; None for several or none."""
    match list(proposal.settings.items()):
        case [(name, int() | float() as new)] if isinstance(old := values.get(name), int | float):
            return "set" if proposal.direction == "set" else "up" if new > old else "down"
        case [_]:
            return "set"
        case _:
            return None


def find_notebook_fault(state: State, notebook: Notebook) -> str:
    """Return why a notebook cannot be taken over: too long, or a belief without evidence; empty if it can."""
    entries = (*notebook.beliefs, *notebook.questions, *notebook.ideas)
    if not entries and state.tried:
        return "it is empty, and what is not in it is forgotten"
    if (size := len(briefing.WORDS.notebook(notebook))) > briefing.NOTEBOOK * briefing.CHARACTERS:
        return f"it has {size:,} characters, and {briefing.NOTEBOOK * briefing.CHARACTERS:,.0f} fit: shorten it"
    tested = {0, *(result.experiment for result in state.judged if result.status not in UNTESTED)}
    for belief in notebook.beliefs:
        named = {int(number) for number in re.findall(r"#(\d+)", belief)}
        measured = named & tested or re.search(r"experiments? \d[\d, and]* of ", belief, re.IGNORECASE)
        if (unknown := named - tested - state.open.keys()) or not measured:  # what is under way may be named, too
            without = "it names no experiment, such as #3 or experiment 7 of another night"
            fault = f"#{min(unknown or named)} has measured nothing" if named else without
            return f"beliefs: {belief[:60]!r}: {fault}. Without evidence it is a question or an idea"
    return ""


def make_tools(
    state: State,
    source: str,
    read: Callable[[Digest], str],
    search: Callable[[str], str],
    find: Callable[[str, int], str],
    meter: StepMeter | None = None,
) -> list[Tool]:
    """Return the tools that look things up; `source` is the best script.

    `read` returns stored texts, `search` snippets of the musings of all sessions, `find` one of them. A tape never
    calls `meter`.
    """

    def read_train_py(first: int = 1, last: int | None = None) -> str:
        """Read the best script so far, from line `first` to line `last`, in pages that say where to go on."""
        return number_page(source, first, last)

    def look_up_experiment(number: int) -> str:
        """Read all that is known of one experiment: its proposal, its scores, its post-mortem, its diff."""
        for result in state.judged:
            if result.experiment == number:
                change = diff_from_parent(state, result.commit, read) if result.commit else ""
                return briefing.WORDS.experiment(result, briefing.clip(change, briefing.DIFF))
        raise ToolError(f"Experiment {number} {'is not judged yet' if number in state.open else 'does not exist'}.")

    def query_ledger(family: Family | None = None, verdict: FinalStatus | None = None, parameter: str = "") -> str:
        """List experiments by family, by verdict, by a constant that they set; all filters are optional."""
        found = [r for r in state.judged if family in (None, r.proposal.family) and verdict in (None, r.status)]
        if parameter:
            found = [result for result in found if parameter.strip() in result.proposal.settings]
        return briefing.WORDS.experiments(found, briefing.ROWS) if found else "No experiment matches."

    def search_musings(words: str) -> str:
        """Search the musings of all sessions: what was tried, why, and what came of it, in the ten that fit best."""
        try:
            return search(words) or "No musings match."
        except UserError as error:
            raise ToolError(str(error)) from error

    def open_musing(night: str, experiment: int) -> str:
        """Read a musing of an earlier night in full: reasons, the change as a diff, results, lesson."""
        return find(night, experiment) or f"Experiment {experiment} of {night!r} has no musing."

    known = map(Tool.from_function, (read_train_py, look_up_experiment, query_ledger))
    tools = [*known, *(Tool.from_function(look, pure=False) for look in (search_musings, open_musing))]
    if is_step_measurable(state):
        tools.append(_make_profiler(source, state.session, meter))
    return tools


def is_step_measurable(state: State) -> bool:
    """Return whether a step can be run beside the runs: where a budget is work, unless the best does not report it."""
    best, own = state.incumbent, state.session
    is_work = own.profile.budget_kind == "work" and own.measures_steps
    return is_work and (not best or "step/calls" in best.scores[0].telemetry)


def _make_profiler(source: str, session: Started, meter: StepMeter | None) -> Tool:
    """Return the tool that measures a step of a draft of the source, of a few before each proposal."""
    measured = count(1)

    async def profile_step(
        settings: Annotated[dict[str, Value], BeforeValidator(_parse_values)],
        edits: Annotated[dict[str, str], BeforeValidator(unquote)] = {},  # noqa: B006 - never changed
    ) -> str:
        """Measure in some seconds what a step costs, and how many the budget allows.

        `settings` give constants other values, `edits` replace passages that occur once.
        """
        edited = EditedFiles({"train.py": source})
        if session.task.has_tree:
            edited = EditedFiles(split_files(source), join=join_files)
        for old, new in edits.items():
            places = [path for path, text in edited.files.items() if old in text]
            if len(places) > 1:
                raise ToolError(f"{quote(old)} occurs in {', '.join(places)}. Include more of the text around it.")
            edited.replace((*places, *edited.files)[0], old, new)
        try:
            values = read_values(edited.text)
            draft = with_constants(edited.text, match_types(settings, values))
        except UnknownConstantError as error:
            raise ToolError(str(error)) from error
        if fault := next(filter(None, (_find_other_type(n, value, values[n]) for n, value in settings.items())), ""):
            raise ToolError(fault)
        if next(measured) > MAX_STARTS:
            raise ToolError(f"{MAX_STARTS} drafts were started already: that is enough, so propose.")
        found = await meter(draft) if meter else "the runs are on a cluster"
        if isinstance(found, str) or not found:
            raise ToolError(f"No step could be measured: {quote(str(found or 'it is not known why'))}")
        return briefing.WORDS.cost(found, session.profile.budget).strip()

    return Tool.from_function(profile_step, pure=False)


def _find_other_type(name: str, value: Value, before: Value) -> str:
    """Return how a constant is to be set, if a text would become something else, or the reverse; else an empty text."""
    if isinstance(value, str) is isinstance(before, str):
        return ""
    how = "not a text: give its value, not an expression" if isinstance(value, str) else """a text: write "'3'\""""
    return f"settings: {name} is {how}"


def _find_fault(proposal: Proposal, state: State, values: Mapping[str, Value]) -> str:
    """Return why a proposal cannot be carried out; empty if it can. `values` are the constants of the script."""
    if proposal.family not in get_args(Family):
        return f"family: {proposal.family!r} is not offered"
    if proposal.tests is not None and proposal.tests not in (result.experiment for result in state.judged):
        return f"tests: experiment {proposal.tests} has no verdict"
    if abs(proposal.expected_delta) > MOST:
        return f"expected_delta: more than {MOST:g}"
    for name, value in proposal.settings.items():
        if name not in values:
            return f"settings: the script has no plain constant {name}; leave settings empty and write instructions"
        if fault := _find_other_type(name, value, values[name]):
            return f"{fault}; or leave settings empty and write instructions"
        if isinstance(value, int | float) and not abs(value) <= MOST:
            return f"settings: {name} is more than {MOST:g}"
        if not is_plain(value):
            return f"settings: {name} cannot have a value that is too large to be kept, or not a text"
        if values[name] == value:
            return f"settings: {name} is {value!r} already"
    return find_overlong(proposal)
