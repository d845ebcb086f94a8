"""The mechanic: edits train.py as a proposal says. It never decides what to try."""

from collections.abc import Mapping

from pydantic import BaseModel, Field

from subagents.agent import Agent, Environment, NoAnswer, ask
from subagents.files import EditedFile, make_checker
from subagents.prompts import Prompt


class Edited(BaseModel):
    """The mechanic's answer. The edit itself is what its tools did to the file."""

    summary: str = Field(max_length=400, description="What you changed, in one sentence.")
    impossible: str = Field(
        default="",
        max_length=400,
        description="Only if the instructions cannot be carried out: why. The proposal is then given up.",
    )


async def edit(
    environment: Environment, prompt: Prompt, source: str, facts: Mapping[str, str], packages: frozenset[str]
) -> str:
    """Return the edited source; `facts` and the source fill the prompt's opening. Raises NoAnswer."""
    file = EditedFile(source)

    def accept(answer: Edited) -> str:
        return "" if answer.impossible else file.find_fault()

    agent = Agent("mechanic", prompt, Edited, (*file.tools, make_checker(file, packages)), accept)
    answer = await ask(agent, environment, prompt.render_opening({**facts, "source": source}))
    if answer.impossible:
        raise NoAnswer(f"the mechanic found it impossible: {answer.impossible}")
    return file.text
