"""A model that fails half of the time, in every way that its interface allows: the night ends well, and replays."""

import asyncio
import json
import math
import random

import pytest

from orchestrator.core import events as ev
from orchestrator.core.state import Training
from orchestrator.loop import run
from orchestrator.session.replay import Tape, replay
from orchestrator.views.event_text import write_line
from orchestrator.views.report import write_files
from subagents.agent import Reply
from tests.scripted import Scripted
from tests.test_crew import make_crew
from tests.test_fruitless import TURNS, Player, list_events, night
from tests.virtual import run_virtually

ODD = (
    None,
    True,
    0,
    -1,
    1 << 70,
    1e308,
    math.nan,
    math.inf,
    "",
    " ",
    "\x00\x1b[31m\u202e",
    "#" * 100_000,
    [],
    {},
    [[[[]]]],
    {"a": {"b": None}},
    "../../etc/passwd",
    "{{ 7 * 7 }}",
)
"""Values that no schema asks for."""


def mutate(value, luck):
    """The value with one thing in it changed: a field gone, another type, a stranger beside it."""
    if isinstance(value, dict) and value and luck.random() < 0.8:
        name = luck.choice(sorted(value))
        match luck.randrange(4):
            case 0:
                return {key: kept for key, kept in value.items() if key != name}
            case 1:
                return value | {name + "s": value[name]}
            case _:
                return value | {name: mutate(value[name], luck)}
    if isinstance(value, list) and value and luck.random() < 0.8:
        place = luck.randrange(len(value))
        return luck.choice(
            [value[:place], value * 7, [*value[:place], mutate(value[place], luck), *value[place + 1 :]]]
        )
    if isinstance(value, str) and value and luck.random() < 0.5:
        return luck.choice([value[: len(value) // 2], value * 50, f"{value}\r\n\x07", json.dumps(value)])
    return luck.choice(ODD)


class Faulty(Player):
    """Half of its replies are not what was asked for."""

    def __init__(self, seed):
        super().__init__(["turn", "crash", "turn", "turn", "abandon", "repeat", "stray", "unfaithful"] * 100)
        self.app, self.luck, self.faults = Scripted(self.app.script, TURNS), random.Random(seed), set()

    async def reply(self, request, on_wait):
        good, luck = await super().reply(request, on_wait), self.luck
        if luck.random() < 0.5:
            return good
        fault = luck.choice(FAULTS)
        self.faults.add(fault.__name__)
        return await fault(good, luck, on_wait)


async def send_error(_good, luck, _on_wait):
    return Reply.from_error("failed", luck.choice(["529: overloaded", "", "401: \x1b]0;no\x07 such key", "x" * 9_000]))


async def wait_long(good, luck, on_wait):
    seconds = luck.choice([1.0, 30.0, 400.0])
    now = asyncio.get_running_loop().time() + 1_800_000_000
    await on_wait(now + seconds, "429: rate limited")
    await asyncio.sleep(seconds)
    return good


async def stop_otherwise(good, luck, _on_wait):
    reasons = ["max_tokens", "refusal", "end_turn", "pause_turn", "model_context_window_exceeded", "", "unheard-of"]
    return Reply(good.message | {"stop_reason": luck.choice(reasons)}, usd=0.01)


async def say_nothing(good, luck, _on_wait):
    return Reply(good.message | {"content": luck.choice([[], [{"type": "text", "text": ""}]])}, usd=None)


async def talk(good, luck, _on_wait):
    text = {"type": "text", "text": luck.choice(["Well.", "<tool_use>submit</tool_use>", "\u2028" * 5_000])}
    return Reply(good.message | {"content": [text], "stop_reason": luck.choice(["end_turn", "tool_use"])}, usd=0.01)


async def call_a_stranger(good, _luck, _on_wait):
    blocks = [block | {"name": "bash"} if block["type"] == "tool_use" else block for block in good.content]
    return Reply(good.message | {"content": blocks}, usd=0.01)


async def garble(good, luck, _on_wait):
    blocks = [
        block | {"input": garbled if isinstance(garbled := mutate(block["input"], luck), dict) else {}}
        if block["type"] == "tool_use"
        else block
        for block in good.content
    ]
    return Reply(good.message | {"content": blocks}, {"input": 10, "output": 10**9 * luck.randrange(2)}, usd=0.01)


async def call_twice(good, _luck, _on_wait):
    return Reply(good.message | {"content": good.content * 2}, usd=0.01)


FAULTS = (send_error, wait_long, stop_otherwise, say_nothing, talk, call_a_stranger, garble, garble, garble, call_twice)


@pytest.mark.parametrize(
    ("hours", "seed"), [(0.3, 0), *(pytest.param(1.0, seed, marks=pytest.mark.soak) for seed in range(1, 13))]
)
def test_a_night_with_a_model_that_fails_half_of_the_time_ends_well(tmp_path, hours, seed):
    session = night(tmp_path, model := Faulty(seed), hours=hours)

    state = session.state
    assert state.ended
    assert len(model.faults) == len(set(FAULTS)), model.faults
    assert not [stage for stage in state.open.values() if isinstance(stage, Training)]
    numbers = [result.experiment for result in state.judged]
    assert len(numbers) == len({*numbers})
    assert sum(bool(result.scores) for result in state.judged) > 10 * hours
    for result in state.judged:
        assert result.commit is None or "\x00" not in session.get(result.commit.source)

    async def live(tape):
        await run(tape, make_crew(tape, tape), tape)

    assert not run_virtually(replay(Tape(session), live))
    write_files(session, tmp_path / "files")
    for record in session.records:
        assert "\x1b" not in write_line(record, state.session.task)
    assert list_events(session, ev.Waiting)
