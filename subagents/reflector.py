"""The reflector: writes the post-mortem of a finished experiment, independently of its author."""

from collections.abc import Callable, Sequence

from subagents.agent import Agent, T
from subagents.logs import count_fitting, fence, split_lines
from subagents.prompts import Prompt
from subagents.tools import Tool, ToolError, find_overlong

PAGE = 60  # lines of a log that one call shows
MAX_HITS = 40
MAX_POINTS = 40


def make_agent(prompt: Prompt, answer: type[T], log: str, compare: Callable[[Sequence[float]], str]) -> Agent[T]:
    """Return a reflector that searches and pages the cleaned log; `compare` tables losses at given shares."""
    lines = split_lines(log)
    numbered = [f"{i}: {line}" for i, line in enumerate(lines, 1)]

    def grep_log(words: str) -> str:
        """Find the lines of the run's log that contain the words, in upper or lower case; `a|b` finds either."""
        wanted = [word.strip().lower() for word in words.split("|") if word.strip()]
        if not wanted:
            raise ToolError("Say what to look for.")
        hits = [line for line in numbered if any(word in line.partition(": ")[2].lower() for word in wanted)]
        if not hits:
            return f"None of the {len(lines)} lines contains that."
        shown = hits[: min(MAX_HITS, count_fitting(hits))]
        rest = f", the first {len(shown)} of them; `page_log` shows more" * (len(shown) < len(hits))
        return f"{len(hits)} of {len(lines)} lines{rest}:\n{fence(shown)}"

    def page_log(first: int) -> str:
        """Read the run's log from line `first`; a negative number counts from the end. Pages say where to go on."""
        start = max(0, first - 1 if first > 0 else len(lines) + first)
        if start >= len(lines):
            raise ToolError(f"The log has {len(lines)} lines.")
        shown = numbered[start : start + min(PAGE, count_fitting(numbered[start:]))]
        end = start + len(shown)
        more = f"; go on with first={end + 1}" * (end < len(lines))
        return f"(lines {start + 1} to {end} of {len(lines)}{more})\n{fence(shown)}"

    def compare_curves(start: float = 0.0, end: float = 1.0, points: int = 20) -> str:
        """Show the training loss of this change and of the incumbent, means over seeds, as in the packet.

        `start` and `end` are shares, 0 to 1; `points` is at most 40.
        """
        if not 0 <= start < end <= 1:
            raise ToolError("`start` and `end` are shares of the budget: 0 <= start < end <= 1.")
        count = min(max(points, 2), MAX_POINTS)
        return compare([start + (end - start) * i / (count - 1) for i in range(count)])

    tools = tuple(map(Tool.from_function, (grep_log, page_log, compare_curves)))
    return Agent("reflector", prompt, answer, tools, find_overlong)
