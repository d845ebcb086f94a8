"""A model server that speaks the Messages API and plays researcher, mechanic and reflector by reading the request.

`python -m tests.scripted --port 8080` serves it on loopback; then set ANTHROPIC_BASE_URL=http://127.0.0.1:8080.
It has no memory: what it says depends on the request alone, so it can be asked twice and through any chaos.

A script says what each experiment is to be, round and round: `turn` (one constant, set by code), `crash` (edited by
the mechanic, fixed in repair), `misfit` (a wrong shape, which the mechanic mends when it is told), `stray` (the
mechanic changes a second constant until it is told), `unfaithful` (the mechanic adds something else, and the reflector
says so), `repeat` (the last turn again), `abandon` (the mechanic gives up), `mute` (the researcher gives no answer).
"""

import argparse
import asyncio
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SCRIPT = ("turn", "turn", "crash", "turn", "repeat", "turn", "abandon", "turn", "turn", "turn")
TURNS = (  # (constant, factor): what is worth a try first, for a train.py in the lineage's conventions
    ("UNEMBEDDING_LR", 4.0),
    ("MATRIX_LR", 2.0),
    ("WARMDOWN_RATIO", 0.6),
    ("EMBEDDING_LR", 1.5),
    ("SOFTCAP", 2.0),
    ("WEIGHT_DECAY", 0.5),
    ("MUON_MOMENTUM", 0.97),
    ("SCALAR_LR", 0.5),
    ("ADAM_BETA2", 1.02),
    ("ROPE_BASE", 0.3),
)
CRASH = 'raise RuntimeError("scripted crash")\n'
MISFIT = 'assert len((1, 2)) == 3, "scripted misfit"\n'
ASSIGNED = re.compile(r"^(?:- )?(?P<name>[A-Z][A-Z0-9_]*) = (?P<value>-?[\d_.]+(?:e-?\d+)?)\b", re.MULTILINE)
SOURCE = re.compile(r"```python\n(.*?)\n```", re.DOTALL)


class Scripted:
    """The ASGI application. `app.requests` holds the bodies that it has seen."""

    def __init__(self, script=SCRIPT, turns=TURNS):
        self.script, self.turns = tuple(script), tuple(turns)
        self.requests = []
        self.headers = []

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if not scope["path"].endswith("/v1/messages"):
            await _respond(
                send, 404, {"type": "error", "error": {"type": "not_found_error", "message": "no such page"}}
            )
            return
        request = json.loads(body)
        self.requests.append(request)
        self.headers.append({key.decode(): value.decode() for key, value in scope["headers"]})
        await _stream(send, events(self.message(request)))

    def message(self, request):
        """The whole message with which to answer."""
        names = {tool["name"] for tool in request["tools"]}
        play = self.mechanic if "replace" in names else self.reflector if "grep_log" in names else self.researcher
        play = self.checked if names == {"ready"} else play
        play = self.notebook if "Rewrite it now" in _opening(request) else play
        blocks, stop = play(request)
        said = json.dumps([request["system"], request["messages"]])
        number = hashlib.sha256(said.encode()).hexdigest()[:12]
        for i, block in enumerate(blocks):
            if block["type"] == "tool_use":
                block["id"] = f"toolu_{number}_{i}"
        return {
            "id": f"msg_{number}",
            "type": "message",
            "role": "assistant",
            "model": request["model"],
            "content": blocks,
            "stop_reason": stop,
            "usage": _usage(request, said, blocks),
        }

    def checked(self, _request):
        return [_call("ready")], "tool_use"

    def researcher(self, request):
        opening = _opening(request)
        first = int(re.search(r"will be experiment (\d+)", opening)[1])
        several = re.search(r"Propose up to (\d+)", opening)
        count = int(several[1]) if several else 1
        if len(request["messages"]) == 1:
            calls = [_call("read_train_py", first=1, last=60)]
            if "profile_step" in {tool["name"] for tool in request["tools"]}:
                calls.append(_call("profile_step", settings={"MUON_MOMENTUM": 0.5}))
            return [_thinking("What limits this model?"), *calls], "tool_use"
        if self.kind(first) == "mute":
            return [_text("I would rather not say.")], "end_turn"
        known = {found["name"]: found["value"] for found in ASSIGNED.finditer(opening)}
        drafts = [self.draft(number, known) for number in range(first, first + count)]
        return [_call("submit", proposals=drafts)], "tool_use"

    def notebook(self, request):
        measured = re.findall(r"^- #(\d+) .*(?:Kept|Discarded)", _opening(request), re.MULTILINE)
        beliefs = [f"Nothing else is known of #{number}." for number in measured[-3:]]
        return [_call("submit", beliefs=beliefs, questions=["Why?"], ideas=["Turn another constant."])], "tool_use"

    def kind(self, number):
        return self.script[(number - 1) % len(self.script)]

    def draft(self, number, known):
        kind = self.kind(number)
        able = [(name, factor) for name, factor in self.turns if name in known]
        fresh = ("turn", "crash", "misfit", "abandon", "stray", "unfaithful")
        earlier = sum(self.kind(i) in fresh for i in range(1, number)) - (kind == "repeat")
        name, factor = able[max(earlier, 0) % len(able)]
        again = 1 + max(earlier, 0) // len(able)
        value = _times(known[name], factor**again)
        words = {"crash": " and crash", "abandon": " but do not"}.get(kind, "")
        order = {"crash": " Then break it.", "abandon": " Give up.", "stray": " Stray.", "unfaithful": " Add a line."}
        order["misfit"] = " Misfit."
        return {
            "title": f"Set {name} to {value}{words}",
            "hypothesis": f"{name} = {value} lowers val_bpb, because {known[name]} wastes part of the budget.",
            "rationale": f"The best {name} depends on the length of the run. This is experiment {number}.",
            "expected_delta": -0.004,
            "family": "optimizer",
            "settings": {} if kind in order else {name: value},
            "direction": None if kind in order else "up" if factor > 1 else "down",
            "instructions": f"Set the constant {name} to {value}.{order.get(kind, '')}",
        }

    def mechanic(self, request):
        opening = _opening(request)
        source = SOURCE.search(opening)[1] + "\n"
        if "Give up." in opening:
            return [_call("submit", summary="", impossible="the instructions ask to give up")], "tool_use"
        if "# It has crashed" in opening:
            return [_call("replace", old=CRASH, new=""), _call("submit", summary="Took the fault out.")], "tool_use"
        name, value = re.search(r"Set the constant (\w+) to ([\d_.e-]+)\.", opening).groups()
        line = re.search(rf"^{name} = .*$", source, re.MULTILINE)[0]
        new = re.sub(r"= \S+", f"= {value}", line, count=1)
        if "Stray." in opening and len(request["messages"]) > 1:  # it has been told
            back = _call("replace", old="HEAD_DIM = 127", new="HEAD_DIM = 128")
            return [back, _call("submit", summary=f"{name} is {value} now.")], "tool_use"
        if "Misfit." in opening and len(request["messages"]) > 1:
            mended = _call("replace", old=MISFIT, new="")  # and hands it in unchecked
            return [mended, _call("submit", summary=f"{name} is {value} now.")], "tool_use"
        fault = f"\n{CRASH.rstrip()}" if "Then break it." in opening else ""
        fault += f"\n{MISFIT.rstrip()}" if "Misfit." in opening else ""
        fault += "\nextra_line = 1" if "Add a line." in opening else ""
        edits = [_call("replace", old=line, new=new + fault)]
        if "Stray." in opening:
            edits.append(_call("replace", old="HEAD_DIM = 128", new="HEAD_DIM = 127"))
        return [*edits, _call("check"), _call("submit", summary=f"{name} is {value} now.")], "tool_use"

    def reflector(self, request):
        opening = _opening(request)
        if len(request["messages"]) == 1:
            return [_call("compare_curves", points=5), _call("grep_log", words="error|nan")], "tool_use"
        verdict = "supported" if "Kept:" in opening else "inconclusive"
        lesson = {
            "implemented": "no" if "extra_line" in opening else "yes",
            "verdict": verdict,
            "happened": "The score moved by less than luck could move it." if verdict != "supported" else "It gained.",
            "why": "The learning rate was near its best value, where the loss is flat (to first order).",
            "lesson": "At this budget this constant matters little.",
            "next": "Turn another constant.",
        }
        return [_thinking("Is it noise?"), _call("submit", **lesson)], "tool_use"


def events(message):
    """The stream of a message: its blocks in pieces, as Claude sends them."""
    head = {**message, "content": [], "stop_reason": None, "stop_sequence": None}
    yield {"type": "message_start", "message": head}
    yield {"type": "ping"}
    for index, block in enumerate(message["content"]):
        empty, deltas = _pieces(block)
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    usage = {"output_tokens": message["usage"]["output_tokens"]}
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": usage}
    yield {"type": "message_stop"}


@contextmanager
def served(app, host="127.0.0.1", port=0) -> Iterator[str]:
    """Serve an ASGI application on loopback in a thread; gives its address."""
    import uvicorn

    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        try:
            yield f"http://{host}:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def _pieces(block):
    match block["type"]:
        case "text":
            return {**block, "text": ""}, [{"type": "text_delta", "text": part} for part in _parts(block["text"])]
        case "thinking":
            thought = [{"type": "thinking_delta", "thinking": part} for part in _parts(block["thinking"])]
            signed = {"type": "signature_delta", "signature": block["signature"]}
            return {**block, "thinking": "", "signature": ""}, [*thought, signed]
        case _:
            parts = _parts(json.dumps(block["input"]))
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": part} for part in parts]


def _parts(text, size=200):
    return [text[i : i + size] for i in range(0, len(text), size)]


def _opening(request):
    return "\n\n".join(block["text"] for block in request["messages"][0]["content"] if block["type"] == "text")


def _usage(request, said, blocks):
    """Tokens at four characters each; what precedes the conversation counts as read from the cache."""
    stable = len(json.dumps([request["system"], request["tools"]])) // 4
    output = len(json.dumps(blocks)) // 4
    return {"input_tokens": len(said) // 4, "cache_read_input_tokens": stable, "output_tokens": output}


def _text(text):
    return {"type": "text", "text": text}


def _thinking(text):
    return {"type": "thinking", "thinking": text, "signature": hashlib.sha256(text.encode()).hexdigest()}


def _call(tool, **arguments):
    return {"type": "tool_use", "name": tool, "input": arguments}


def _times(value, factor):
    """The value times a factor, as a person would write it."""
    number = float(value.replace("_", "")) * factor
    if "." in value or "e" in value:
        return f"{float(f'{number:.3g}')!r}"
    return f"{max(1, round(number)):_}"


async def _respond(send, status, body):
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


async def _stream(send, parts):
    headers = [(b"content-type", b"text/event-stream"), (b"request-id", b"req_scripted")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for part in parts:
        line = f"event: {part['type']}\ndata: {json.dumps(part)}\n\n"
        await send({"type": "http.response.body", "body": line.encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--script", default=",".join(SCRIPT), help="kinds of experiments, separated by commas")
    given = parser.parse_args()
    with served(Scripted(given.script.split(",")), port=given.port) as url:
        print(url, flush=True)
        with asyncio.Runner() as runner:
            runner.run(asyncio.Event().wait())


if __name__ == "__main__":
    main()
