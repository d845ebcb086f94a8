"""The kernel: a conversation ends with a valid answer or NoAnswer, within bounds, and no tool runs that should not."""

import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from subagents.agent import CACHE, MAX_BAD_ANSWERS, STUB, Agent, NoAnswer, Outage, Reply, ask
from subagents.tools import RESULT_BYTES, Tool, ToolCall, ToolError, cap
from tests.conversations import PROMPT, FakeWorld, call, says, text


class Sum(BaseModel):
    total: int = Field(ge=0)


def add(a: int, b: int = 1) -> str:
    """Add two numbers."""
    return str(a + b)


async def fail(why: str) -> str:
    """Fail for a reason."""
    raise ToolError(why)


AGENT = Agent("adder", PROMPT, Sum, (Tool.from_function(add), Tool.from_function(fail, pure=False)))
ANSWER = says(call("submit", total=3))


def asked(*replies, agent=AGENT, opening="Add."):
    world = FakeWorld(list(replies))
    return world, asyncio.run(ask(agent, world, opening))


def failed(*replies, agent=AGENT):
    world = FakeWorld(list(replies))
    with pytest.raises(NoAnswer) as caught:
        asyncio.run(ask(agent, world, "Add."))
    return world, str(caught.value)


def test_an_answer_is_a_call_that_validates():
    world, answer = asked(ANSWER)

    assert answer == Sum(total=3)
    assert world.openings == ["Add."]


class Settings(BaseModel):
    values: dict[str, int]


@pytest.mark.parametrize(
    "odd",
    [
        call("submit", values={"x" * 300_000: "no"}),
        call("add", **{"x" * 300_000: 1}),
        call("x" * 300_000),
        text("x"),
    ],
)
def test_what_a_model_is_told_and_the_reason_that_is_kept_are_bounded(odd):
    stop = "tool_use" if odd["type"] == "tool_use" else "x" * 300_000
    world, reason = failed(says(odd, stop=stop), agent=replace(AGENT, answer=Settings))

    assert len(reason) <= RESULT_BYTES + 100
    assert all(len(words) <= RESULT_BYTES for words in world.heard())


def test_tools_are_described_by_their_signatures():
    schema = AGENT.schemas[0]

    assert schema["name"] == "add"
    assert schema["description"] == "Add two numbers."
    assert schema["input_schema"]["required"] == ["a"]
    assert schema["input_schema"]["properties"]["a"] == {"type": "integer"}, "a title would repeat the name"
    assert [tool["name"] for tool in AGENT.schemas] == ["add", "fail", "submit"]


def test_the_calls_of_a_message_are_answered_in_their_order():
    calls = [call("add", "1", a=1), call("add", "2", a=2), call("nothing", "3"), call("add", "4", a="x")]

    world, _ = asked(says(*calls), ANSWER)

    results = world.requests[-1].messages[-1]["content"]
    assert [r["tool_use_id"] for r in results] == ["1", "2", "3", "4"]
    assert [r["content"] for r in results[:2]] == ["2", "3"]
    assert "No tool is called 'nothing'; the tools are add, fail, submit." in results[2]["content"]
    assert results[3]["content"].startswith("Wrong arguments: a: ")
    assert [r["is_error"] for r in results] == [False, False, True, True]


def test_an_answer_behind_a_failed_call_of_its_message_does_not_count():
    world, answer = asked(says(call("fail", why="no such file"), call("submit", total=1)), ANSWER)

    assert answer.total == 3
    assert world.heard()[0] == "no such file"
    assert "because `fail` failed" in world.heard()[1]


def test_an_answer_counts_once_the_calls_behind_it_have_run():
    world, answer = asked(says(call("submit", "1", total=1), call("fail", why="no such file")), ANSWER)

    assert answer.total == 3
    assert world.used == ["fail"]


def test_of_several_answers_in_a_message_none_is_dropped_without_a_word():
    world, answer = asked(says(call("submit", "1", total=1), call("submit", "2", total=2)), ANSWER)
    assert answer.total == 3
    assert world.heard() == ["Not handed in: call `submit` once, with everything in it."] * 2

    _, answer = asked(says(call("submit", "1", total=1), call("submit", "2", total=1)))
    assert answer.total == 1
    world, _ = failed(*[says(call("submit", "1", total=1), call("submit", "2", total=2))] * 9)
    assert len(world.requests) == MAX_BAD_ANSWERS + 1


def test_the_results_of_a_message_are_bounded_together():
    world, _ = asked(says(*[call("fail", str(i), why="x" * 20_000) for i in range(50)]), ANSWER)

    results = world.requests[-1].messages[-1]["content"]
    assert len(results) == 50
    assert len(world.used) < 12
    assert results[-1]["content"].startswith("Not run: ")


def test_a_failure_in_the_last_turn_says_nothing_about_the_task():
    agent = replace(AGENT, prompt=PROMPT.model_copy(update={"max_turns": 1, "fallback": "other"}))
    world = FakeWorld([Reply.from_error("failed", "overloaded")])
    with pytest.raises(Outage, match="overloaded"):
        asyncio.run(ask(agent, world, "Add."))
    assert not world.changes


def test_bad_answers_go_back_with_the_error_a_bounded_number_of_times():
    bad = says(call("submit", total=-1))

    world, answer = asked(*[bad] * MAX_BAD_ANSWERS, ANSWER)
    assert answer.total == 3
    assert "total: Input should be greater than or equal to 0" in world.heard()[0]

    world, reason = failed(bad)
    assert len(world.requests) == MAX_BAD_ANSWERS + 1
    assert "not valid" in reason


def test_an_answer_may_be_refused_for_what_it_says():
    agent = replace(AGENT, accept=lambda answer: "" if answer.total > 5 else "too little")

    world, answer = asked(ANSWER, says(call("submit", total=6)), agent=agent)

    assert answer.total == 6
    assert world.heard()[0] == "Not accepted: too little"


def test_talk_instead_of_an_answer_is_answered_thrice_at_most():
    world, reason = failed(says(text("I think it is three."), stop="end_turn"))

    assert len(world.requests) == MAX_BAD_ANSWERS + 1
    assert "submit" in world.heard()[0]
    assert "'end_turn'" in reason


def test_an_empty_message_is_never_sent_back():
    world, _ = asked(says(stop="end_turn"), says(stop="tool_use"), ANSWER)

    assert all(message["content"] for message in world.requests[-1].messages)
    assert len(world.requests[-1].messages) == 1


@pytest.mark.parametrize("stop", ["end_turn", "max_tokens", "refusal", "pause_turn", "model_context_window_exceeded"])
def test_tools_of_a_message_that_ended_otherwise_are_not_run(stop):
    world = FakeWorld([says(call("add", a=1), stop=stop)])

    with pytest.raises(NoAnswer):
        asyncio.run(ask(AGENT, world, "Add."))

    assert world.used == []
    for request in world.requests:
        calls = [b["id"] for m in request.messages for b in m["content"] if b["type"] == "tool_use"]
        results = [b["tool_use_id"] for m in request.messages for b in m["content"] if b["type"] == "tool_result"]
        assert calls == results


def test_after_a_cut_off_there_is_more_room_and_the_half_message_is_gone():
    world, _ = asked(says(text("Well, "), stop="max_tokens"), ANSWER)

    assert [request.max_tokens for request in world.requests] == [1000, 2000]
    assert len(world.requests[-1].messages) == 1
    assert "cut off" in world.heard()[-1]


def test_a_refusal_and_a_fault_end_the_conversation_at_once():
    world, reason = failed(says(stop="refusal"))
    assert len(world.requests) == 1
    assert "refused" in reason

    world, reason = failed(Reply.from_error("failed", "AuthenticationError: no"))
    assert len(world.requests) == 1
    assert reason == "AuthenticationError: no"


def test_when_the_context_is_full_old_results_make_room():
    full = Reply.from_error("model_context_window_exceeded", "prompt is too long")

    world, answer = asked(says(call("add", a=1)), full, ANSWER)

    assert answer.total == 3
    assert world.requests[1].messages[-1]["content"][0]["content"] == "2"
    assert world.requests[2].messages[-1]["content"][0]["content"] == STUB

    world, reason = failed(full)
    assert len(world.requests) == MAX_BAD_ANSWERS + 1
    assert "context" in reason


def test_turns_are_bounded_and_the_last_one_is_announced():
    world = FakeWorld([says(call("add", a=i)) for i in range(9)])

    with pytest.raises(NoAnswer, match="no answer in 6 turns"):
        asyncio.run(ask(AGENT, world, "Add."))

    assert len(world.requests) == 6
    assert "One turn is left" in world.heard()[-1]
    assert len(world.heard(-2)) == 1


def test_a_failing_call_is_not_repeated_for_ever():
    world, reason = failed(says(call("fail", why="no")))

    assert len(world.requests) == MAX_BAD_ANSWERS + 2
    assert "repeated a call of `fail`" in reason


def test_results_are_capped_in_bytes():
    def long(size: int) -> str:
        """Say much."""
        return "ä" * size

    result = asyncio.run(Tool.from_function(long).run(ToolCall("1", "long", {"size": 10**6})))

    assert len(result.text.encode()) <= RESULT_BYTES
    assert "2,000,000 bytes" in result.text


@given(st.text(st.characters()), st.integers(100, 400))
def test_capping_gives_valid_text_within_the_limit(words, limit):
    data = cap(words, limit).encode()

    assert len(data) <= limit


def test_replies_go_back_to_the_letter():
    thinking = {"type": "thinking", "thinking": "hm", "signature": "c2ln", "unknown_field": [1]}

    world, _ = asked(says(thinking, call("add", a=1)), ANSWER)

    assert world.requests[-1].messages[1]["content"][0] == thinking


def test_a_request_is_named_by_everything_in_it():
    world, _ = asked(says(call("add", a=1)), ANSWER)
    first, second = world.requests

    assert first.digest != second.digest
    assert first.digest == replace(first, messages=tuple(json.loads(json.dumps(first.messages)))).digest
    for change in ({"model": "m"}, {"effort": "low"}, {"system": "x"}, {"tools": ()}, {"max_tokens": 1}):
        assert replace(first, **change).digest != first.digest


def test_what_stays_the_same_is_a_block_of_its_own():
    world, _ = asked(ANSWER, opening=f"The code: '{CACHE}'\n\n{CACHE}\n- A row.\n{CACHE}\n\n{CACHE}\nThe task.")

    told = [block["text"] for block in world.requests[0].messages[0]["content"]]
    assert told == [f"The code: '{CACHE}'", "- A row.", "The task."]


def test_a_bug_in_a_tool_is_no_result():
    def broken() -> str:
        """Divide by nothing."""
        return str(1 // 0)

    with pytest.raises(ZeroDivisionError):
        asked(says(call("broken")), agent=replace(AGENT, tools=(Tool.from_function(broken),)))


def test_a_conversation_has_a_limit_of_tokens_too():
    """An answer counts whatever it cost; only the next turn is not begun."""
    costly = Agent("adder", PROMPT.model_copy(update={"max_spent": 1_000}), Sum, AGENT.tools)
    turn = replace(says(call("add", a=1)), tokens={"input": 700, "cache_read": 200, "output": 50})

    world, why = failed(turn, agent=costly)
    assert why == "the adder gave no answer in 1,900 tokens"
    assert len(world.requests) == 2
    assert asked(turn, replace(ANSWER, tokens={"input": 9_000}), agent=costly)[1] == Sum(total=3)
