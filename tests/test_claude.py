"""The network: whatever may pass is tried again, whatever will not is told in a line, and a key is nowhere."""

import asyncio
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
from llmock.scenarios import Fail, Reply, StreamFault, ToolCall, ToolFault

from subagents.agent import Request
from subagents.claude import ATTEMPTS, Claude, connect, make_arguments
from tests.conversations import text
from tests.metering import PromptCache
from tests.scripted import events, served

KEY = "sk-secret-0123456789"
TOOL = {"name": "look", "description": "Look.", "input_schema": {"type": "object", "properties": {}}}


def request(model="claude-opus-5-5", effort="", **changes):
    user = {"role": "user", "content": [{"type": "text", "text": "Hello."}]}
    fields = {"max_tokens": 500, "system": "Be brief.", "tools": (TOOL,), "messages": (user,)}
    return Request("tester", model, effort, **fields | changes)


class Asking:
    """A Claude that does not sleep, and what it would have slept and told."""

    def __init__(self, url, stall=60.0):
        self.slept, self.waits = [], []
        self.claude = Claude(connect(base_url=url, api_key=KEY, stall=stall), sleep=self.sleep, clock=lambda: 1000.0)

    async def sleep(self, seconds):
        self.slept.append(seconds)

    async def told(self, until, reason):
        self.waits.append((until, reason))

    def __call__(self, **changes):
        return asyncio.run(self.reply(**changes))

    async def reply(self, **changes):
        async with self.claude.client:
            return await self.claude.reply(request(**changes), self.told)


@pytest.fixture
def mock(llmock_server):
    """The hostile server, reset; the client is pointed at it by argument."""
    llmock_server.state.reset()
    yield llmock_server
    llmock_server.state.reset()


def seen(mock):
    return len(mock.state.journal.records(wait=2.0))


@contextmanager
def server(*answers):
    """A server that gives these answers in turn, the last one for ever; yields its address and what it was asked.

    An answer is a list of events, or (status, body, headers), or a function of the request that gives one of these.
    """
    asked = []

    async def app(scope, receive, send):
        head = {key.decode(): value.decode() for key, value in scope["headers"]}
        body, more = b"", True
        while more:
            part = await receive()
            body, more = body + part["body"], part.get("more_body", False)
        asked.append({**head, "body": json.loads(body)})
        answer = answers[min(len(asked), len(answers)) - 1]
        answer = answer(asked[-1]) if callable(answer) else answer
        status, body, headers = answer if isinstance(answer, tuple) else (200, answer, {})
        lines = (
            [f"event: {part['type']}\ndata: {json.dumps(part)}\n\n" for part in body] if isinstance(body, list) else []
        )
        kind = "text/event-stream" if lines else "application/json"
        head = [(key.encode(), value.encode()) for key, value in {"content-type": kind, **headers}.items()]
        await send({"type": "http.response.start", "status": status, "headers": head})
        for line in lines or [body if isinstance(body, str) else json.dumps(body)]:
            await send({"type": "http.response.body", "body": line.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    with served(app) as url:
        yield url, asked


def message(*content, stop="end_turn", **changes):
    usage = {"input_tokens": 1000, "output_tokens": 10, "cache_read_input_tokens": 500}
    fields = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-opus-5-5", "usage": usage}
    return {**fields, "content": list(content), "stop_reason": stop, **changes}


def whole(*content, **changes):
    """The events of a message."""
    return list(events(message(*content, **changes)))


def error(kind, words, **more):
    return {"type": "error", "error": {"type": kind, "message": words, **more}}


def refusal(status, kind, words, headers=(), **more):
    return status, error(kind, words, **more), dict(headers)


def test_a_message_comes_whole_with_its_tokens_and_its_price():
    content = [
        {"type": "thinking", "thinking": "hm " * 300, "signature": "c2lnbmVk"},
        {"type": "text", "text": "Grüße " * 100},
        {"type": "tool_use", "id": "t1", "name": "look", "input": {"words": "x" * 1000, "n": 3}},
    ]
    with server(whole(*content, stop="tool_use")) as (url, _):
        reply = Asking(url)()

    assert reply.content == content
    assert reply.stop_reason == "tool_use"
    assert (reply.tokens["input"], reply.tokens["cache_read"], reply.tokens["output"]) == (1000, 500, 10)
    assert reply.usd == pytest.approx(1000 * 4e-6 + 500 * 0.2e-6 + 10 * 20e-6)


def test_a_price_that_nobody_knows_is_unknown(mock):
    asking = Asking(mock.base_url("anthropic"))

    assert asking(model="qwen3-coder").usd is None
    assert asking.claude.at_most(request(model="qwen3-coder")) is None
    assert asking.claude.at_most(request()) > 500 * 20e-6


@pytest.mark.parametrize(
    ("changes", "cost"),
    [
        ({"model": "our-gateway/opus"}, 1000 * 4e-6 + 500 * 0.2e-6 + 10 * 20e-6),
        ({"model": "our-gateway/opus", "usage": {"output_tokens": 1}}, None),
        ({"usage": {"input_tokens": 10**400, "output_tokens": 1}}, None),
        ({"usage": {"input_tokens": 1, "output_tokens": 10**30}}, None),
        ({"usage": {"input_tokens": 1000, "cache_read_input_tokens": -(10**12), "output_tokens": 1}}, None),
    ],
)
def test_what_a_gateway_calls_otherwise_or_miscounts_is_paid_for_all_the_same(changes, cost):
    with server(whole(**changes)) as (url, _):
        asking = Asking(url)
        reply = asking()

    assert reply.stop_reason == "end_turn"
    assert reply.usd == pytest.approx(cost or asking.claude.at_most(request()))
    assert all(0 <= count <= 1000 for count in reply.tokens.values())


def test_an_attempt_that_its_server_may_bill_counts_though_it_fails():
    cut, price = whole()[:-2], 1000 * 4e-6 + 500 * 0.2e-6 + 10 * 20e-6
    busy = refusal(529, "overloaded_error", "busy")
    with server(cut, busy, cut, whole()) as (url, _):
        asking = Asking(url)
        assert asking().usd == pytest.approx(2 * asking.claude.at_most(request()) + price)
    with server(cut) as (url, _):
        asking = Asking(url)
        reply = asking()
    assert reply.stop_reason == "failed"
    assert reply.usd == pytest.approx(ATTEMPTS * asking.claude.at_most(request()))
    assert Asking("http://127.0.0.1:1")().usd == 0.0


def test_a_server_that_says_nothing_for_long_may_bill_it(mock):
    mock.state.scenarios.add(StreamFault("stall", after_chunks=0, stall_seconds=12.0))
    asking = Asking(mock.base_url("anthropic"), stall=3.0)

    assert asking().usd > asking.claude.at_most(request())


def test_a_turn_that_takes_too_long_is_told_paid_for_and_not_tried_again(mock):
    """Its server works all the time, and would do so again."""
    mock.state.scenarios.add(StreamFault("stall", after_chunks=2, stall_seconds=12.0, times=None))
    asking = Asking(mock.base_url("anthropic"))
    asking.claude = replace(asking.claude, patience=3.0)
    reply = asking()

    assert (reply.stop_reason, reply.message["error"]) == ("failed", "it gave no answer in 3 s")
    assert reply.usd == pytest.approx(asking.claude.at_most(request()))
    assert seen(mock) == 1


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_what_may_pass_is_tried_again(mock, status):
    mock.state.scenarios.add(Fail(status, times=3))

    reply = Asking(mock.base_url("anthropic"))()

    assert reply.stop_reason in ("end_turn", "tool_use")
    assert seen(mock) == 4


@pytest.mark.parametrize("kind", ["disconnect", "truncate", "malformed", "stall"])
@pytest.mark.parametrize("after", [0, 2, 4])
def test_a_stream_that_breaks_is_taken_again_from_its_start(mock, kind, after):
    mock.state.scenarios.add(StreamFault(kind, after_chunks=after, stall_seconds=12.0))

    reply = Asking(mock.base_url("anthropic"), stall=3.0 if kind == "stall" else 60.0)()

    assert reply.stop_reason in ("end_turn", "tool_use")
    assert seen(mock) >= 2 if kind == "stall" else seen(mock) == 2  # a busy machine stalls, too


def test_half_an_argument_is_never_taken_for_a_whole_one(mock):
    mock.state.scenarios.add(Reply(tool_calls=(ToolCall("look", {"words": "all of it"}),), times=2))
    mock.state.scenarios.add(ToolFault("malformed_arguments"))

    reply = Asking(mock.base_url("anthropic"))()

    assert reply.calls[0].input == {"words": "all of it"}
    assert seen(mock) == 2


@pytest.mark.parametrize("stop", ["max_tokens", "refusal", "model_context_window_exceeded"])
def test_an_answer_that_is_cut_off_inside_a_call_is_paid_for_once(stop):
    sent = whole({"type": "tool_use", "id": "t", "name": "look", "input": {"words": "x" * 300}}, stop=stop)
    (*_, last) = [i for i, event in enumerate(sent) if event["type"] == "content_block_delta"]
    with server(sent[:last] + sent[last + 1 :]) as (url, got):
        reply = Asking(url)()

    assert len(got) == 1
    assert reply.stop_reason == stop


def test_a_blank_text_is_not_sent_back():
    """The API refuses a request that holds one."""
    tool = {"type": "tool_use", "id": "t", "name": "look", "input": {}}
    with server(whole({"type": "text", "text": " \n"}, tool, stop="tool_use")) as (url, _):
        reply = Asking(url)()

    assert [block["type"] for block in reply.content] == ["tool_use"]


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422])
def test_what_will_not_pass_is_a_reply_that_says_so(mock, status):
    mock.state.scenarios.add(Fail(status, times=None))
    asking = Asking(mock.base_url("anthropic"))

    reply = asking()

    assert reply.stop_reason == "failed"
    assert reply.content == []
    assert "\n" not in reply.message["error"]
    assert reply.usd == 0.0
    assert seen(mock) == 1
    assert asking.slept == []


def test_spent_money_is_not_asked_for_again():
    code = {"error_code": "enforced_spend_limit_reached"}
    with server(refusal(429, "rate_limit_error", "limit reached", details=code)) as (url, got):
        reply = Asking(url)()

    assert reply.stop_reason == "failed"
    assert len(got) == 1


def test_trouble_inside_a_stream_is_classified_by_its_type():
    first = next(iter(events(message())))
    with server([first, error("invalid_request_error", "no")]) as (url, got):
        assert Asking(url)().stop_reason == "failed"
        assert len(got) == 1
    with server([first, error("overloaded_error", "later")]) as (url, got):
        assert Asking(url)().stop_reason == "failed"
        assert len(got) == ATTEMPTS


def test_nonsense_is_no_message():
    bad = message({"type": "tool_use", "id": "t1", "name": "look", "input": ["not", "an", "object"]}, stop="tool_use")
    stray = [{"type": "content_block_stop", "index": 7}, {"type": "message_stop"}]
    nameless = list(events(message({"type": "tool_use", "id": "t1", "name": "", "input": {}}, stop="tool_use")))
    for parts in (list(events(bad)), nameless, stray, [{"type": "message_stop"}]):
        with server(parts) as (url, got):
            assert Asking(url)().stop_reason == "failed"
            assert len(got) == ATTEMPTS


@pytest.mark.parametrize(
    "changes",
    [
        {"stop_reason": "capped"},
        {"stop_reason": "failed"},
        {"stop_reason": "unaffordable"},
        {"stop_reason": {"a": 1}},
        {"content": [{"type": "tool_use", "id": 5, "name": "look", "input": {}}]},
        {"content": [{"type": "tool_use", "id": "t1", "name": ["look"], "input": {}}]},
        {"content": [{"type": "tool_use", "id": "t1", "name": {"look": 1}, "input": {}}]},
        {"content": [{"type": "text", "text": None}]},
        {"content": [{"type": "text"}]},
        {"content": [{"type": "thinking", "thinking": 3, "signature": "s"}]},
        {"content": [{"type": None}]},
        {"content": [{"type": ["text"]}]},
        {"content": ["text"]},
        {"content": {"text": 1}},
        {"usage": [1]},
    ],
)
@pytest.mark.filterwarnings("ignore:Pydantic serializer")
def test_a_field_of_another_type_is_no_message(changes):
    odd = message({"type": "text", "text": "Hm."}, **changes)
    start = {"type": "message_start", "message": {**odd, "stop_reason": None}}
    end = {"type": "message_delta", "delta": {"stop_reason": odd["stop_reason"]}, "usage": {"output_tokens": 1}}
    with server([start, end, {"type": "message_stop"}]) as (url, got):
        reply = Asking(url)()

    assert reply.stop_reason == "failed"
    assert reply.message["error"]
    assert len(got) == ATTEMPTS


def test_an_error_beside_a_message_is_not_taken_for_ours():
    with server(whole(stop="refusal", error=["no"])) as (url, _):
        assert "error" not in Asking(url)().message


def test_a_long_wait_is_told_and_a_short_one_is_not():
    short, long = (refusal(429, "rate_limit_error", "slow", {"retry-after": seconds}) for seconds in ("5", "7200"))
    with server(short, long, whole()) as (url, _):
        asking = Asking(url)
        reply = asking()

    assert reply.stop_reason == "end_turn"
    assert asking.slept == [5.0, 7200.0]
    assert [until for until, _ in asking.waits] == [8200.0]
    assert "slow" in asking.waits[0][1]


@pytest.mark.parametrize("seconds", ["0", "1", "-5", "nan", "soon"])
def test_a_server_that_asks_for_less_patience_than_ours_gets_ours(seconds):
    with server(refusal(529, "overloaded_error", "busy", {"retry-after": seconds})) as (url, got):
        asking = Asking(url)
        asking()

    assert len(got) == ATTEMPTS
    assert sum(asking.slept) > 60


def test_a_server_that_is_not_there_is_tried_for_long_and_then_given_up():
    asking = Asking("http://127.0.0.1:1")

    reply = asking()

    assert reply.stop_reason == "failed"
    assert len(asking.slept) == ATTEMPTS - 1
    assert max(asking.slept) <= 300


@pytest.mark.parametrize(
    "words",
    [
        "prompt is too long: 210000 tokens > 200000 maximum",
        "context length exceeded",
        "input length and `max_tokens` exceed context limit: 190000 + 16000 > 200000, decrease input length",
    ],
)
def test_a_full_context_is_a_reason_to_stop_of_its_own(words):
    with server(refusal(400, "invalid_request_error", words)) as (url, got):
        reply = Asking(url)()

    assert reply.stop_reason == "model_context_window_exceeded"
    assert len(got) == 1


def test_a_model_that_knows_no_effort_is_asked_without_it_from_then_on():
    def answer(got):
        if got["body"].get("output_config") == {"effort": "max"}:
            return refusal(400, "invalid_request_error", "output_config.effort is not supported")
        return whole()

    with server(answer) as (url, got):
        asking = Asking(url)

        async def twice():
            async with asking.claude.client:
                for effort in ("max", "max", "low"):
                    reply = await asking.claude.reply(request(effort=effort), asking.told)
                    assert reply.stop_reason == "end_turn"

        asyncio.run(twice())

    assert ["output_config" in one["body"] for one in got] == [True, False, False, True]


def test_a_model_that_can_write_less_is_asked_for_what_it_can_from_then_on():
    def answer(got):
        if (asked := got["body"]["max_tokens"]) > 400:
            words = f"max_tokens: {asked} > 400, which is the maximum allowed number of output tokens here"
            return refusal(400, "invalid_request_error", words)
        return whole()

    with server(answer) as (url, got):
        asking = Asking(url)

        async def thrice():
            async with asking.claude.client:
                for most in (500, 1000, 300):
                    reply = await asking.claude.reply(request(max_tokens=most), asking.told)
                    assert reply.stop_reason == "end_turn"

        asyncio.run(thrice())

    assert [one["body"]["max_tokens"] for one in got] == [500, 400, 400, 300]
    assert not asking.slept


@pytest.mark.parametrize("words", ["max_tokens: 500 > 500", "max_tokens: 500 > 0", f"max_tokens: 500 > {'9' * 5000}"])
def test_a_server_that_refuses_what_it_allows_is_not_asked_for_ever(words):
    with server(refusal(400, "invalid_request_error", words)) as (url, got):
        assert Asking(url)().stop_reason == "failed"
    assert len(got) == 1


def test_a_server_that_allows_ever_less_is_asked_once_more():
    def answer(got):
        asked = got["body"]["max_tokens"]
        return refusal(400, "invalid_request_error", f"max_tokens: {asked} > {asked - 1}")

    with server(answer) as (url, got):
        assert Asking(url)().stop_reason == "failed"
    assert [one["body"]["max_tokens"] for one in got] == [500, 499]


def test_no_key_is_in_what_we_keep_even_if_the_server_echoes_it():
    def answer(got):
        return refusal(401, "authentication_error", f"bad key {got['authorization']}")

    with server(answer) as (url, got):
        reply = Asking(url)()

    assert KEY in got[0]["authorization"]
    assert KEY not in str(reply)


def test_the_wire_is_what_any_server_understands():
    user = {"role": "user", "content": [{"type": "text", "text": "stable"}, {"type": "text", "text": "new"}]}
    with server(whole()) as (url, got):
        Asking(url)(messages=(user,), effort="medium")

    body = got[0]["body"]
    PromptCache().count(body, now=0.0)  # which knows what the API allows
    assert body["stream"] is True
    assert set(body) == {"model", "max_tokens", "system", "messages", "tools", "output_config", "stream"}
    assert body["system"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    stable, new = body["messages"][0]["content"]
    assert stable["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    assert new["cache_control"] == {"type": "ephemeral"}
    assert user["content"][1] == {"type": "text", "text": "new"}


def test_each_request_finds_in_the_cache_what_earlier_ones_had_settled():
    """A row more, another end, another turn; and after a keep the beginning."""
    cache, long = PromptCache(), "x" * 3500  # a thousand tokens, roughly

    def read(*parts, turns=()):
        said = [{"role": "user", "content": [text(part + long) for part in parts]}]
        said += [{"role": role, "content": [text(words + long)]} for role, words in turns]
        usage = cache.count(make_arguments(request(system=long, messages=tuple(said)), ""), now=0.0)
        return round(usage["cache_read_input_tokens"], -3)

    assert read("source", "row 1", "state 1") == 0
    turns = [("assistant", "called"), ("user", "result")]
    assert read("source", "row 1", "state 1", turns=turns) == 4000
    assert read("source", "row 1", "state 1", turns=[*turns, *turns]) == 6000
    assert read("source", "row 1", "row 2", "row 3", "state 2") == 3000
    assert read("source", "row 1", "row 2", "row 3", "row 4", "state 3") == 5000
    assert read("source", "kept", "row 1", "row 2", "state 4") == 2000
    assert read("another", "row 1", "state 5") == 1000


def test_what_a_proxy_for_openai_compatible_servers_speaks():
    """LiteLLM: zeros before and usage at the end, ids of OpenAI's form, no thoughts, errors of either form."""
    usage = {"input_tokens": 812, "output_tokens": 31, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 0}
    content = [text("I look."), {"type": "tool_use", "id": "call_x1", "name": "look", "input": {"words": "loss"}}]
    parts = whole(*content, stop="tool_use", id="msg_0f-4a", model="qwen3-coder", usage=dict.fromkeys(usage, 0))
    end = {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": usage}
    busy = (429, {"error": {"message": "RateLimitError", "type": "throttling_error", "param": None, "code": "429"}}, {})
    with server(busy, [end if part["type"] == "message_delta" else part for part in parts]) as (url, got):
        reply = Asking(url)(model="qwen3-coder")

    assert [(call.id, call.name, call.input) for call in reply.calls] == [("call_x1", "look", {"words": "loss"})]
    assert reply.tokens == {"input": 812, "cache_read": 100, "cache_write": 0, "output": 31}
    assert reply.usd is None
    assert [asked["body"]["model"] for asked in got] == ["qwen3-coder"] * 2
    assert "thinking" not in got[0]["body"]


def test_half_a_surrogate_pair_does_not_spoil_the_log():
    with server(whole({"type": "text", "text": "a\ud800b"})) as (url, _):
        reply = Asking(url)()

    assert reply.content[0]["text"].encode() == b"a?b"


def test_what_to_set_is_said_in_one_line(tmp_path):
    script = """if True:
        import json, os, sys
        from subagents.claude import credentials_error
        found, before = [], dict(os.environ)
        for settings in json.loads(sys.argv[1]):
            os.environ.clear()
            os.environ.update(before | settings)
            found.append(credentials_error())
        print(json.dumps(found))
    """
    settings = [{}, {"ANTHROPIC_API_KEY": KEY}, {"ANTHROPIC_BASE_URL": "http://127.0.0.1:11434"}]
    settings += [{"ANTHROPIC_API_KEY": "sk-x\n"}, {"ANTHROPIC_API_KEY": KEY, "ALL_PROXY": "socks4://127.0.0.1:1080"}]
    words, env = [sys.executable, "-c", script, json.dumps(settings)], {"PATH": os.environ["PATH"], "PYTHONPATH": "."}
    done = subprocess.run(words, env=env | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=True)
    line, *others, newline, proxy = json.loads(done.stdout)

    assert "ANTHROPIC_API_KEY" in line
    assert "ANTHROPIC_BASE_URL" in line
    assert "--offline" in line
    assert "\n" not in line
    assert others == ["", ""]
    assert newline.startswith("ANTHROPIC_API_KEY contains a space, a line break")
    assert proxy.startswith("no connection can be made: ")
    assert "ALL_PROXY" in proxy


CALLED = message({"type": "tool_use", "id": "a", "name": "ready", "input": {}}, stop="tool_use")
WEB_PAGE = (200, "<html>a login page</html>", {"content-type": "text/html"})


@pytest.mark.parametrize(
    ("answer", "passes", "said"),
    [
        (list(events(CALLED)), True, ""),
        (whole({"type": "text", "text": "ready!"}), False, "called no tool"),
        (refusal(401, "authentication_error", "no"), False, "refuses the key"),
        (refusal(404, "not_found_error", "no"), False, "has no model 'claude-opus-5-5'"),
        (refusal(400, "invalid_request_error", "this model does not support tools"), False, "does not support tools"),
        (refusal(429, "rate_limit_error", "slow down"), True, "; a night would wait for it"),
        (refusal(500, "api_error", "oh"), True, "does not answer now"),
        (WEB_PAGE, False, "perhaps a web page: see ANTHROPIC_BASE_URL"),
        ((404, "<html>nginx</html>", {"content-type": "text/html"}), False, "not the address of a Messages API (404)"),
    ],
)
def test_a_model_is_asked_for_one_small_call_beforehand(answer, passes, said):
    with server(answer) as (url, asked):
        found = asyncio.run(Claude(connect(base_url=url, api_key=KEY)).check("claude-opus-5-5", "low"))

    assert found[0] is passes
    assert said in found[1]
    assert bool(said) == bool(found[1])
    assert "\n" not in found[1]
    assert len(asked) == 1, "a check has no patience"
    assert asked[0]["body"]["tools"][0]["name"] == "ready"


def test_a_server_that_is_not_there_is_said_beforehand():
    found = asyncio.run(Claude(connect(base_url="http://127.0.0.1:1", api_key=KEY)).check("m"))
    assert found == (False, "no server answers at http://127.0.0.1:1")
