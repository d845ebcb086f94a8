"""Recording: everything in its order, and a limit in dollars that holds with calls in flight."""

import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from orchestrator.core import events as ev
from orchestrator.core.state import BASELINE
from orchestrator.policy.limits import measure_usage
from orchestrator.ports import Log
from orchestrator.session.recording import Live, Recording
from orchestrator.session.replay import Tape
from orchestrator.views.event_text import find_conversations, list_conversations, write_page
from subagents.agent import Agent, NoAnswer, Reply, Request, ask
from subagents.tools import Tool, ToolCall
from tests.conversations import PROMPT, call, says, text
from tests.fakes import started
from tests.hunting import try_examples
from tests.virtual import run_virtually

TOKENS = {"input": 5, "cache_read": 4, "cache_write": 3, "output": 2}


class Answer(BaseModel):
    size: int


class Memory(Log):
    def __init__(self, **limits):
        super().__init__()
        self.write("", started(limits=ev.SessionLimits(hours=1, **limits)))

    async def append(self, task_id, *events, last=False):
        self.write(task_id, *events)

    def write(self, task_id, *events):
        self.fold(
            *[ev.Record(seq=len(self.records) + i, at=1.0, task_id=task_id, event=e) for i, e in enumerate(events)]
        )
        self.tell()


class Model:
    """Costs what the request says, up to what it may cost."""

    calls = 0

    def at_most(self, request):
        return request.messages[0]["most"]

    async def reply(self, request, on_wait):
        self.calls += 1
        await asyncio.sleep(request.messages[0]["seconds"])
        await on_wait(99.0, "busy")
        return Reply({"content": [], "stop_reason": "end_turn"}, TOKENS, request.messages[0]["usd"])


def request(most=0.1, usd=0.05, seconds=1.0):
    return Request("researcher", "m", "", 10, "s", (), ({"most": most, "usd": usd, "seconds": seconds},))


def add(a: int) -> str:
    """Add one."""
    return str(a + 1)


def look() -> str:
    """Look outside."""
    return "now"


async def one_conversation(outside, log):
    world = Recording(outside, log, "propose 1", 1)
    await world.begin(Agent("researcher", PROMPT, Answer), "opening")
    reply = await world.reply(request())
    pure = await world.use(Tool.from_function(add), ToolCall("1", "add", {"a": 1}))
    other = await world.use(Tool.from_function(look, pure=False), ToolCall("2", "look", {}))
    return reply, pure, other


def test_a_reply_that_is_cut_off_again_and_again_costs_no_more_than_an_experiment_may():
    """Such a conversation does not get longer."""

    class Endless(Model):
        async def reply(self, request, on_wait):
            self.calls += 1
            return replace(says(text("half"), stop="max_tokens"), usd=0.3)

        def at_most(self, request):
            return 0.3

    log, agent, model = Memory(experiment_usd=0.2), Agent("mechanic", PROMPT, Answer), Endless()
    with pytest.raises(NoAnswer, match=r"models have cost \$0.30"):
        run_virtually(ask(agent, Recording(Live(model, log), log, "implement 1", 1), "opening"))
    assert model.calls == 1


def test_all_that_an_agent_was_told_is_written_down_and_shown():
    class Clumsy(Model):
        replies = iter(
            [
                says(call("submit", size="one")),
                says(call("add", a=1), call("look", "id_other")),
                says(text("half"), stop="max_tokens"),
                says(call("submit", "id_last", size=1)),
            ]
        )

        async def reply(self, request, on_wait):
            return next(self.replies)

        def at_most(self, request):
            return 0.0

    log, agent = Memory(), Agent("mechanic", PROMPT, Answer, (Tool.from_function(add),))
    run_virtually(ask(agent, Recording(Live(Clumsy(), log), log, "implement 1", 1), "opening"))

    opened, *replies = [r.event for r in log.records if isinstance(r.event, ev.ConversationOpened | ev.ModelReplied)]
    assert [json.loads(line)["name"] for line in log.get(opened.tools).splitlines()] == ["add", "submit"]
    assert opened.limits == {"max_turns": 6, "max_tokens": 1000, "max_spent": PROMPT.max_spent}
    first, refused, strange, cut_off = [reply.told for reply in replies]
    assert first == ()
    assert [told[0].split(":")[0] for told in (refused, strange)] == [
        "Not accepted",
        "No tool is called 'look'; the tools are add, submit.",
    ]
    assert cut_off == ("Your last message was cut off at 1000 tokens and is lost. Be briefer.",)
    page = write_page(log, len(log.records) - 1, full=False)
    told = [page.index(words) for words in ("may call", "max_turns: 6", "Not accepted: ", "No tool is", "cut off at")]
    assert told == sorted(told)
    assert page.count("2\n") >= 1, "the result of `add` is there once"
    assert page.count("add answers") == 1


def test_what_was_told_is_written_down_though_a_server_gives_its_calls_the_same_id():
    class Forgetful(Model):
        replies = iter(
            [
                says(call("add", "call_0", a=1), call("add", "call_0", a=2)),
                says(call("submit", "call_0", size="one")),
                says(call("submit", "call_0", size=1)),
            ]
        )

        async def reply(self, request, on_wait):
            self.asked = request
            return next(self.replies)

        def at_most(self, request):
            return 0.0

    log, agent, model = Memory(), Agent("mechanic", PROMPT, Answer, (Tool.from_function(add),)), Forgetful()
    run_virtually(ask(agent, Recording(Live(model, log), log, "implement 1", 1), "opening"))

    told = [record.event.told for record in log.records if isinstance(record.event, ev.ModelReplied)]
    assert [[words.partition(":")[0] for words in each] for each in told] == [[], [], ["Not accepted"]]
    ids = [part["id"] for said in model.asked.messages for part in said["content"] if part["type"] == "tool_use"]
    assert len({*ids}) == len(ids) == 3
    assert ids[0] == "call_0"
    page = write_page(log, len(log.records) - 1, full=False)
    assert page.count("add answers") == 2
    assert page.index("2\n") < page.index("3\n")


def test_a_conversation_is_written_down_as_it_happens():
    log = Memory()

    run_virtually(one_conversation(Live(Model(), log), log))

    events = [record.event for record in log.records[1:]]
    assert [type(event) for event in events] == [
        ev.ConversationOpened,
        ev.Waiting,
        ev.ModelReplied,
        ev.ToolUsed,
        ev.ToolUsed,
    ]
    assert {record.task_id for record in log.records[1:]} == {"propose 1"}
    assert (log.get(events[0].system), log.get(events[0].opening)) == (PROMPT.system, "opening")
    assert events[2].request == request().digest
    assert events[2].tokens.model_dump() == TOKENS
    assert [event.result for event in events[3:]] == ["2", "now"]


@pytest.mark.parametrize("cut_off", [False, True])
def test_a_conversation_that_was_cut_off_led_to_nothing_of_a_later_life(cut_off):
    """Tasks of two lives may have the same id: here the optimizer goes on where a researcher was asked."""
    log = Memory(usd=1.0)
    run_virtually(one_conversation(Live(Model(), log), log))
    last = log.records[-1].seq
    assert list_conversations(log.records)[-1].is_open
    assert not any("What came of it" in write_page(log, number) for number in range(1, last))
    log.write("", *[ev.Resumed()] * cut_off)
    log.write("propose 1", ev.Proposed(experiment=1, proposal=BASELINE))

    assert ("What came of it" in write_page(log, last)) != cut_off
    led = write_page(log, len(log.records) - 1)
    assert ("What led to it" in led) != cut_off
    assert "at most $" not in led
    assert find_conversations(log.records, 1) == [last][cut_off:]


def test_a_tape_gives_back_replies_and_what_tools_saw_outside():
    log = Memory()
    live = run_virtually(one_conversation(Live(Model(), log), log))

    class Anyhow(Tape):
        """The recorded replies and results, after a trip through JSON, in whatever order they are asked for."""

        async def expect(self, *kinds):
            events = [type(r.event).model_validate(json.loads(r.event.model_dump_json())) for r in self.recorded]
            usable = (ev.ModelReplied, ev.ToolUsed)
            found = (event for event in events if isinstance(event, kinds) and isinstance(event, usable))
            return next(event for event in found if getattr(event, "tool", "look") == "look")

    again = run_virtually(one_conversation(Anyhow(log), Memory()))

    assert again == live


@try_examples(50)
@given(
    limit=st.floats(0.01, 2.0),
    calls=st.lists(st.tuples(st.floats(0.001, 0.3), st.floats(0, 1), st.floats(0, 5)), min_size=1, max_size=12),
)
def test_a_limit_is_never_exceeded_by_calls_in_flight(limit, calls):
    log = Memory(usd=limit)
    live = Live(Model(), log)

    async def call(most, share, seconds, task_id):
        await asyncio.sleep(seconds)
        return await Recording(live, log, task_id, 1).reply(request(most, most * share, seconds))

    async def night():
        return await asyncio.gather(*(call(*one, f"lane {i}") for i, one in enumerate(calls)))

    replies = run_virtually(night())

    assert log.state.usd <= limit + 1e-9
    refused = [reply for reply in replies if reply.stop_reason == "unaffordable"]
    assert bool(refused) == bool(log.state.stopping)
    assert not live.reserved


def test_a_call_waits_for_what_others_give_back():
    log = Memory(usd=0.25)
    live = Live(Model(), log)

    async def night():
        worlds = [Recording(live, log, f"lane {i}", 1) for i in range(3)]
        return await asyncio.gather(*(world.reply(request(0.15, 0.01)) for world in worlds))

    replies = run_virtually(night())

    assert [reply.stop_reason for reply in replies] == ["end_turn"] * 3
    assert live.model.calls == 3


def test_when_the_money_is_gone_the_night_is_asked_to_stop():
    log = Memory(usd=0.05)

    reply = run_virtually(Recording(Live(Model(), log), log, "propose 1", 1).reply(request()))

    assert reply.stop_reason == "unaffordable"
    assert isinstance(log.records[1].event, ev.StopAsked)
    assert log.records[1].task_id == ""
    assert log.state.stopping == "the next request could exceed $0.05"


def test_an_answer_that_no_event_can_hold_is_none_and_is_paid_for():
    class Deep(Model):
        async def reply(self, request, on_wait):
            nested = []
            for _ in range(600):
                nested = [nested]
            call = {"type": "tool_use", "id": "1", "name": "submit", "input": {"settings": nested}}
            return Reply({"content": [call], "stop_reason": "tool_use"}, usd=0.01)

    log = Memory(usd=0.05)
    reply = run_virtually(Recording(Live(Deep(), log), log, "propose 1", 1).reply(request(None, None)))

    assert (reply.stop_reason, reply.usd) == ("failed", 0.01)
    assert "levels" in log.records[-1].event.model_dump_json()


def test_without_a_limit_or_a_price_nothing_is_refused():
    log = Memory(usd=0.05)

    reply = run_virtually(Recording(Live(Model(), log), log, "propose 1", 1).reply(request(None, None)))

    assert reply.stop_reason == "end_turn"
    assert log.state.usage["researcher"].unpriced == 1


def test_a_call_that_is_cancelled_counts_with_all_that_it_may_cost():
    """Its server may go on and bill it."""
    log = Memory(usd=1.0)
    live = Live(Model(), log)

    async def night():
        call = asyncio.ensure_future(Recording(live, log, "implement 1", 1).reply(request(0.3, 0.01)))
        await asyncio.sleep(0.5)
        call.cancel()
        await asyncio.wait([call])

    run_virtually(night())

    assert live.spent == 0.3
    assert not live.reserved

    used = measure_usage(log.state)
    log.write("", ev.Resumed())
    assert log.state.usd == used["usd"] == 0.3, "and so it does in the next life"
    assert not log.state.reserved
    assert not log.state.costs, "but so high a bound gives no idea up"


@pytest.mark.parametrize("kind", [ev.Resumed, ev.Forked])
def test_however_often_a_night_is_killed_its_limit_holds(kind):
    log, billed = Memory(usd=1.0), 0.0
    same = {name: getattr(log.state.session, name) for name in ev.SessionSettings.model_fields}
    again = kind(parent="test@1", **same) if kind is ev.Forked else kind()

    async def live_and_die(live):
        call = asyncio.ensure_future(Recording(live, log, "implement 1", 1).reply(request(0.4, 0.4)))
        await asyncio.sleep(0.5)
        call.cancel()
        await asyncio.wait([call])
        return 0.4 * live.model.calls

    for _ in range(5):
        billed += run_virtually(live_and_die(Live(Model(), log)))
        log.write("", again)

    assert billed <= 1.0
    assert log.state.usd == pytest.approx(0.8)


def test_a_reply_takes_the_place_of_what_it_might_have_cost():
    log = Memory(usd=1.0)
    run_virtually(Recording(Live(Model(), log), log, "implement 1", 1).reply(request(0.3, 0.01)))
    kinds = [record.event.kind for record in log.records]
    assert [kind for kind in kinds if kind != "waiting"] == ["started", "reserved", "replied"]
    log.write("", ev.Resumed())
    assert log.state.usd == pytest.approx(0.01)
