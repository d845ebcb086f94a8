"""Count what the models of a recorded session were sent, and what the API's cache would have given: --session=FILE.

The loop runs over the recording (as `replay --verify`), so that each request is built again; `tests.metering` counts it
at its recorded time. Answers are counted at the same characters a token.
"""

import asyncio
import json
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from orchestrator.agents.briefing import CHARACTERS
from orchestrator.cli.wiring import build_crew
from orchestrator.loop import run
from orchestrator.session.replay import Tape, replay
from orchestrator.session.store import Session
from subagents.agent import Reply, Request
from subagents.claude import make_arguments
from tests.metering import PromptCache, count_input

ALL = "all, per experiment"


class Counting(Tape):
    """A tape that counts the requests that it answers."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.cache, self.totals = PromptCache(), defaultdict[str, Counter[str]](Counter)

    async def reply(self, *given: Any) -> Reply:
        request: Request = given[0]
        usage = self.cache.count(make_arguments(request, request.effort), self.records[-1].at)
        reply = await super().reply(*given)
        said = sum(len(json.dumps(call.input, ensure_ascii=False)) for call in reply.calls) / CHARACTERS
        counts = {"conversations": len(request.messages) == 1, "requests": 1, "input": count_input(usage)}
        counts |= {"cached": usage["cache_read_input_tokens"], "output": round(said)}
        for row in (request.agent, ALL):
            self.totals[row].update(counts)
        return reply


def main() -> None:
    given = [word.partition("=")[2] for word in sys.argv if word.startswith("--session=")]
    if not given:
        print("no --session=FILE was given")
        return
    session = Session(Path(given[0]), time.time, read_only=True)
    tape = Counting(session.records, session.get)

    async def live(tape: Tape) -> None:
        await run(tape, build_crew(tape, Path("musings")), tape)

    for divergence in asyncio.run(replay(tape, live)):
        print(divergence, file=sys.stderr)
    experiments = sum(result.experiment > 0 and not result.is_lost for result in session.state.results)
    print("| agent | conversations | requests | input | from the cache | output |\n|---|--:|--:|--:|--:|--:|")
    for agent, counts in sorted(tape.totals.items(), reverse=True):
        by = experiments if agent == ALL else 1
        cells = [f"{counts[name] / by:,.3g}" for name in ("conversations", "requests")]
        cells += [f"{counts['input'] / by:,.0f}", f"{counts['cached'] / counts['input']:.0%}"]
        print(f"| {agent} | {' | '.join(cells)} | {counts['output'] / by:,.0f} |")
