"""The mechanic: edits train.py as a proposal says, and decides nothing else."""

from collections.abc import Callable, Mapping

from pydantic import BaseModel, ConfigDict, Field, field_validator

from subagents.agent import Agent, Environment, NoAnswer, ask
from subagents.files import EditedFiles
from subagents.prompts import Prompt
from subagents.tools import ToolCall

EMPTY = {"false", "n/a", "no", "none", "null"}


class Edited(BaseModel):
    """The mechanic's answer. The edit itself is what its tools did to the file."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    summary: str = Field(max_length=400)
    """What you changed, in one sentence."""
    deviations: str = Field(default="", max_length=600)
    """Where your edit departs from the instructions, and why: each constant by its name. Empty if you did exactly what
    they say. It is shown to whoever judges the experiment."""
    impossible: str = Field(default="", max_length=400)
    """Only if the instructions cannot be carried out: why. The proposal is then abandoned."""

    @field_validator("deviations", "impossible")
    @classmethod
    def _read_empty(cls, words: str) -> str:
        """Return what a smaller model writes into a field that it would rather leave empty as an empty text."""
        return "" if words.strip(" .").lower() in EMPTY else words


async def edit(
    environment: Environment,
    prompt: Prompt,
    files: EditedFiles,
    facts: Mapping[str, str],
    find_deviation: Callable[[str, str], str],
) -> tuple[str, Edited]:
    """Return the edited source and the mechanic's answer. Raises NoAnswer.

    `find_deviation` takes the source and the declared deviations, and returns why the edit is refused, or "". Where
    `check` runs the file, one that is handed in unchecked is checked, and goes back once if it fails.
    """
    source = files.text

    async def accept(answer: Edited) -> str:
        fault = "" if answer.impossible else files.find_fault() or find_deviation(files.text, answer.deviations)
        if fault or answer.impossible or agent.used[-1:] == ["check"] or not files.start:
            return fault
        agent.used.append("check")
        found = await environment.use(files.tools[-1], ToolCall(f"submit {len(agent.used)}", "check", {}))
        return found.text if found.is_error else ""

    agent = Agent("mechanic", prompt, Edited, files.tools, accept)
    opening = prompt.render_opening({"base": source, "changes": "", **facts, "source": source})
    answer = await ask(agent, environment, opening)
    if answer.impossible:
        raise NoAnswer(f"the mechanic found it impossible: {answer.impossible}")
    return files.text, answer
