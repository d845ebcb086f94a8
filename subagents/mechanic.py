"""The mechanic: a proposal and a train.py in, an edited train.py out. It never decides what to try."""

from collections.abc import Mapping

from pydantic import BaseModel, Field

from subagents.agent import Agent, Environment, NoAnswer, ask
from subagents.files import EditedFile, Smoke, make_checker
from subagents.prompts import Prompt


class Done(BaseModel):
    """The mechanic's answer; the edit itself is what the tools left behind."""

    summary: str = Field(max_length=400, description="What you changed, in one sentence.")
    impossible: str = Field(
        default="",
        max_length=400,
        description="Only if the instructions cannot be carried out: why. The proposal is then given up.",
    )


async def edit(
    world: Environment,
    prompt: Prompt,
    source: str,
    facts: Mapping[str, str],
    *,
    packages: frozenset[str],
    smoke: Smoke | None = None,
) -> str:
    """The edited source. `facts` fill the opening, beside the source. Raises NoAnswer."""
    file = EditedFile(source)

    def accept(done: Done) -> str:
        return "" if done.impossible else file.problem()

    tools = (*file.tools, make_checker(file, packages, smoke))
    done = await ask(Agent("mechanic", prompt, Done, tools, accept), world, prompt.opening({**facts, "source": source}))
    if done.impossible:
        raise NoAnswer(f"the mechanic found it impossible: {done.impossible}")
    return file.text
