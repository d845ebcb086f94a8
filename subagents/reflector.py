"""The reflector: a finished experiment in, a post-mortem out. It judges independently of the author."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, Field

from subagents.agent import Agent, Environment, ask
from subagents.logs import fence, number_lines, split_lines
from subagents.prompts import Prompt
from subagents.tools import Tool, ToolError

PAGE = 60
"""Lines of a log at a time."""
HITS = 40

MOST_POINTS = 40

Compare = Callable[[Sequence[float]], str]
"""A table of both curves' losses at these shares of the budget."""


class Lesson(BaseModel):
    """The reflector's answer."""

    verdict: Literal["supported", "refuted", "inconclusive"] = Field(
        description="Of the hypothesis as it was written, by the measurements. Within the noise is inconclusive."
    )
    happened: str = Field(max_length=700, description="What happened, in numbers: two or three sentences.")
    why: str = Field(max_length=900, description="The likeliest mechanism, and what in the curves speaks for it.")
    lesson: str = Field(
        max_length=250,
        description="One sentence that will help the next proposal, with its limits. It is quoted without the rest.",
    )
    next: str = Field(max_length=400, description="The one experiment that would teach most now.")


async def reflect(
    world: Environment, prompt: Prompt, facts: Mapping[str, str], *, log: str, compare: Compare
) -> Lesson:
    """The post-mortem. `facts` fill the opening; the log and the curves are behind tools. Raises NoAnswer."""
    tools = (*make_log_tools(log), make_curve_tool(compare))
    return await ask(Agent("reflector", prompt, Lesson, tools), world, prompt.opening(facts))


def make_log_tools(log: str) -> tuple[Tool, ...]:
    """Tools that search and page a log, cleaned and fenced."""
    shown = split_lines(log)

    def grep_log(words: str) -> str:
        """Find the lines of the run's log that contain the words, upper or lower case; `a|b` finds either."""
        wanted = [word.strip().lower() for word in words.split("|") if word.strip()]
        if not wanted:
            raise ToolError("Say what to look for.")
        hits = [i for i, line in enumerate(shown, 1) if any(word in line.lower() for word in wanted)]
        if not hits:
            return f"None of the {len(shown)} lines contains that."
        found = [line for i in hits[:HITS] for line in number_lines(shown, i, i)]
        return f"{len(hits)} of {len(shown)} lines:\n{fence(found)}"

    def page_log(first: int) -> str:
        """Read the run's log from line `first` on; a negative number counts from the end."""
        start = max(1, first if first > 0 else len(shown) + 1 + first)
        page = number_lines(shown, start, start + PAGE - 1)
        return f"The log has {len(shown)} lines.\n{fence(page)}"

    return Tool.of(grep_log), Tool.of(page_log)


def make_curve_tool(compare: Compare) -> Tool:
    """A tool that sets two loss curves side by side."""

    def compare_curves(start: float = 0.0, end: float = 1.0, points: int = 20) -> str:
        """Show the training loss of this change and of its base, means over seeds, at equal shares of the budget.

        `start` and `end` are shares, 0 to 1; `points` is at most 40.
        """
        if not 0 <= start < end <= 1:
            raise ToolError("`start` and `end` are shares of the budget: 0 <= start < end <= 1.")
        count = min(max(points, 2), MOST_POINTS)
        return compare([start + (end - start) * i / (count - 1) for i in range(count)])

    return Tool.of(compare_curves)
