"""Models that are programs: real processes, which get no secret of ours, and none of which outlives its request."""

import asyncio
import json
import os
import shlex
import shutil
import sys
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from orchestrator.cli.options import Options, UsageError
from orchestrator.cli.preflight import Preflight, inherit_models, list_models, load_style
from orchestrator.core.events import Forked, ModelReplied, Record, SessionLimits, SessionSettings, Tokens
from orchestrator.loop import run
from orchestrator.ports import Log
from orchestrator.session.recording import Live
from orchestrator.session.store import Session
from subagents.agent import Request
from subagents.claude import ATTEMPTS, Claude, connect
from subagents.cli_model import ask_program, read_reply, write_command
from tests.fakes import started
from tests.test_claude import Asking
from tests.test_crew import Lab, kinds, make_crew
from tests.test_damage import run as command
from tests.test_outages import played
from tests.workplace import ROOT

SAGE = shlex.join([sys.executable, str(ROOT / "tests/sage.py")])
FAILING = "cat > /dev/null; echo the license has run out >&2; exit 1"
SORRY = """cat > /dev/null; echo '{"type": "result", "is_error": true, "result": "Please run /login"}'; exit 1"""
TOOL = {"name": "ready", "description": "Says so.", "input_schema": {"type": "object", "properties": {}}}


def make_request(how, **changes):
    user = {"role": "user", "content": [{"type": "text", "text": "Hello."}]}
    fields = {"max_tokens": 500, "system": "Be brief.", "tools": (TOOL,), "messages": (user,)}
    return Request("tester", f"cli:{SAGE} {how}", "", **fields | changes)


def ask(request, **changes):
    """What comes of a request, and how it was waited for."""
    asking = Asking("http://127.0.0.1:9")
    asking.claude = replace(asking.claude, **changes)
    return asyncio.run(asking.claude.reply(request, asking.told)), asking


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("SAGE_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """A night of one experiment with Claude Code, as played by the sage; the session, and what the sage was given."""
    folder = tmp_path_factory.mktemp("programs")
    claude = folder / "claude"
    claude.write_text(f'#!/bin/sh\nSAGE_LOG={folder}/log exec {SAGE} envelope "$@"\n')
    claude.chmod(0o755)
    prompts = load_style("default", [f"cli:{claude} --model opus"])

    async def go():
        session.write("", started(limits=SessionLimits(hours=1, experiments=1, usd=5)))
        crew = make_crew(session, Live(Claude(connect(base_url="http://127.0.0.1:9")), session))
        await run(session, replace(crew, prompts=prompts), Lab(session))

    session = Session(folder / "night/session.db", time.time, create=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANTHROPIC_API_KEY", "sk-never")
        patch.setenv("NIGHTSHIFT_NOTIFY", "json://127.0.0.1:9/never")
        asyncio.run(go())
    return session, [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def test_a_night_with_claude_code(night):
    session, _ = night

    assert session.state.ended == "1 experiment is done"
    assert {"committed", "crashed", "reflected"} <= kinds(session).keys()
    replies = [record.event for record in session.records if record.event.kind == "replied"]
    assert {event.agent for event in replies} == {"researcher", "mechanic", "reflector"}
    assert all(event.usd == 0.02 for event in replies)
    assert replies[0].tokens == Tokens(input=100, cache_read=1000, cache_write=10, output=50)
    assert played(session, load_style("default", [replies[0].message["model"]])).records == session.records


def test_it_gets_its_documented_options_and_no_secret_of_ours(night):
    _, given = night

    for asked in given:
        options = dict(zip(asked["words"], asked["words"][1:], strict=False))
        assert options["--output-format"] == "json"
        assert options["--tools"] == ""
        assert json.loads(options["--json-schema"])["required"] == ["calls"]
        assert asked["words"][-2:] == ["--model", "opus"]
        assert asked["folder"] == []
        assert "never" not in str(asked["environment"])
    assert [asked for asked in given if "You are the researcher" in str(asked["words"])]
    later = next(asked["prompt"] for asked in given if "# The result of call_100" in asked["prompt"])
    assert "# You called read_train_py, as call_100" in later


def test_a_program_answers_with_calls_in_whatever_it_prints(log):
    reply, _ = ask(make_request("answer"))

    assert [(call.name, call.input) for call in reply.calls] == [("ready", {})]
    assert reply.usd is None
    assert json.loads(log.read_text())["prompt"].startswith("Be brief.\n")


@pytest.mark.parametrize(
    "prose",
    [
        "I set {x} in {train.py}, as {'LR': 1} or {\"LR\": LR}: ",
        '{"calls": [{"tool": "ready", "input": {"draft": 1}}]} is a draft. ',
        "",
    ],
)
def test_braces_around_the_object_do_no_harm(prose):
    answer = json.dumps({"calls": [{"tool": "ready", "input": {"words": "{}"}}]})
    reply = read_reply(make_request(""), f"{prose}{answer}\nThat sets {{x}}, and {{that}} too.")

    assert [call.input for call in reply.calls] == [{"words": "{}"}]


@pytest.mark.parametrize("stream", [1, 2])
def test_a_program_that_does_not_end_to_print_is_ended(stream):
    command = f"cat > /dev/null; exec yes nonsense >&{stream}"
    with pytest.raises(ChildProcessError, match="more than 1 MiB"):
        asyncio.run(ask_program(replace(make_request(""), model=f"cli:sh -c {shlex.quote(command)}"), 60))


def test_instructions_too_long_for_a_word_of_a_command_are_given_otherwise():
    request = replace(make_request("", system="é" * 70_000), model="cli:claude")
    words, prompt = write_command(request)

    assert max(map(len, words)) < 2000
    assert prompt.startswith("é" * 70_000)
    assert "é" in write_command(replace(request, system="é"))[0]


def test_talk_is_no_call():
    reply, _ = ask(make_request("mute"))

    assert reply.stop_reason == "end_turn"
    assert reply.content[0]["text"] == "I would rather not say.\n\n\n(not read: it holds no JSON object)"
    assert read_reply(make_request(""), " \n").content[0]["text"] == "(not read: it is empty)"


@pytest.mark.parametrize(
    "printed",
    [
        "",
        "null",
        "{" * 100_000 + "}" * 100_000,
        '{"calls": []}',
        '{"calls": [{"tool": 3, "input": {}}]}',
        '{"calls": [{"tool": "ready"}], "type": "result"}',
        '{"type": "result", "usage": [1], "result": 7}',
        '{"type": "result", "result": "{\\"calls\\": 1}", "total_cost_usd": NaN}',
        '{"type": "result", "usage": {"input_tokens": "many"}, "total_cost_usd": -1}',
        '{"type": "result", "is_error": true, "result": "busy", "total_cost_usd": 1e308}',
        '{"type": "result", "structured_output": [1], "is_error": null}',
        '{"type": "result", "subtype": "error_max_structured_output_retries", "is_error": true}',
    ],
)
def test_nonsense_is_a_message_without_calls(printed):
    reply = read_reply(make_request(""), printed)

    assert reply.stop_reason == "end_turn"
    known = {"experiment": 1, "agent": "a", "request": "r", "tokens": Tokens(**reply.tokens), "usd": reply.usd}
    assert ModelReplied(message=reply.message, **known).model_dump_json()


def test_calls_are_kept_as_text_that_can_be_stored():
    usage = {"input_tokens": None, "output_tokens": 5}
    answer = {"calls": [{"tool": "ready", "input": {"words": "\ud800", "last": float("nan"), "rate": [10]}}]}
    printed = json.dumps({"type": "result", "usage": usage, "structured_output": answer}).replace("10]", "1e999, 10]")
    reply = read_reply(make_request(""), printed)

    assert reply.calls[0].input == {"words": "?", "last": None, "rate": [None, 10]}
    assert reply.tokens == {"input": 0, "cache_read": 0, "cache_write": 0, "output": 5}
    assert reply.usd is None


@pytest.mark.parametrize(("command", "said"), [(SORRY, "Please run /login"), (FAILING, "the license has run out")])
def test_a_program_that_fails_is_asked_again_and_given_up(command, said):
    request = replace(make_request(""), model=f"cli:sh -c {shlex.quote(command)}")
    reply, asking = ask(request, replaceable=frozenset({("tester", request.model)}))

    assert reply.stop_reason == "failed"
    assert said in reply.message["error"]
    assert 1 < len(asking.slept) < ATTEMPTS


def test_a_conversation_that_is_too_long_for_a_program_is_not_asked_again():
    command = SORRY.replace("Please run /login", "Prompt is too long")
    reply, asking = ask(replace(make_request(""), model=f"cli:sh -c {shlex.quote(command)}"))

    assert reply.stop_reason == "model_context_window_exceeded"
    assert not asking.slept


def test_what_failed_attempts_have_cost_counts(tmp_path):
    """The program says so twice, and then answers for two cents."""
    envelope = {"type": "result", "is_error": True, "result": "Overloaded", "total_cost_usd": 0.7}
    answer = {"type": "result", "result": '{"calls": [{"tool": "ready", "input": {}}]}', "total_cost_usd": 0.02}
    for name, printed in {"error": envelope, "answer": answer}.items():
        (tmp_path / name).write_text(json.dumps(printed))
    count = f"cat > /dev/null; echo >> {tmp_path}/asked; "
    often = f"if [ $(wc -l < {tmp_path}/asked) -lt 3 ]; then cat {tmp_path}/error; exit 1; fi; cat {tmp_path}/answer"
    reply, _ = ask(replace(make_request(""), model=f"cli:sh -c {shlex.quote(count + often)}"))

    assert reply.stop_reason == "tool_use"
    assert reply.usd == pytest.approx(1.42)


def test_an_answer_counts_though_a_process_of_its_own_holds_the_output_open(tmp_path):
    hold = f"cat > /dev/null; setsid sleep 600 & echo $! > {tmp_path}/left"
    answer = """echo '{"calls": [{"tool": "ready", "input": {}}]}'"""
    try:
        request = replace(make_request(""), model=f"cli:sh -c {shlex.quote(f'{hold}; {answer}')}")
        reply = asyncio.run(ask_program(request, 30))
    finally:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(int((tmp_path / "left").read_text())).kill()
    assert [call.name for call in reply.calls] == ["ready"]


@pytest.mark.parametrize(
    ("command", "said", "attempts"),
    [
        ("sh -c 'cat > /dev/null; echo {}; exit 1'", "exit code 1", ATTEMPTS),
        ("/nowhere/agent", "No such file", 1),
        ("/etc/passwd", "Permission denied", 1),
    ],
)
def test_an_exit_code_counts_whatever_is_printed_and_what_cannot_start_is_not_tried_again(command, said, attempts):
    reply, asking = ask(replace(make_request(""), model=f"cli:{command}"))

    assert (reply.stop_reason, len(asking.slept)) == ("failed", attempts - 1)
    assert said in reply.message["error"]


def test_a_program_that_takes_too_long_is_killed():
    reply = asyncio.run(ask_program(replace(make_request(""), model="cli:sleep 600"), 0.2))
    assert reply.stop_reason == "failed", "and it is not asked again: each time could take half an hour"
    assert reply.message["error"].startswith("sleep gave no answer in")
    assert reply.usd is None, "and what it has cost is not known"
    assert not [child for child in psutil.Process().children() if child.name() == "sleep"]


def test_an_answer_counts_though_a_program_left_what_cannot_be_removed(tmp_path):
    """It has left a process, in a session of its own, that fills the folder as fast as it is emptied."""
    fills = """if True:
        import contextlib, itertools, os
        for n in itertools.count():
            with contextlib.suppress(OSError):
                os.makedirs(f"{n % 19}/{n % 10}", exist_ok=True)
    """
    left = f"setsid {sys.executable} -c {shlex.quote(fills)} > /dev/null 2>&1 & echo $! $PWD > {tmp_path}/left"
    wait = "while [ ! -e 9/9 ]; do sleep 0.01; done"
    command = f'{left}; {wait}; cat > /dev/null; echo \'{{"type": "result", "result": "Hello."}}\''
    try:
        reply = asyncio.run(ask_program(replace(make_request(""), model=f"cli:sh -c {shlex.quote(command)}"), 60))
    finally:
        number, folder = (tmp_path / "left").read_text().split()
        with suppress(psutil.NoSuchProcess):
            (process := psutil.Process(int(number))).kill()
            process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
    assert reply.stop_reason != "failed", reply.message


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_a_removal_that_lasts_is_spared_by_ctrl_c_and_ended_by_a_cancellation_or_in_time(
    tmp_path, monkeypatch, is_cancelled
):
    began = tmp_path / "began"
    (tmp_path / "rm").write_text(f"#!/bin/sh\necho $$ $3 > {began}.part; mv {began}.part {began}; exec sleep 600\n")
    (tmp_path / "rm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    async def go():
        asked = asyncio.ensure_future(ask_program(replace(make_request(""), model="cli:true"), 60))
        while not began.exists():
            assert not asked.done(), asked.result()
            await asyncio.sleep(0.02)
        number = int(began.read_text().split()[0])
        assert os.getsid(number) == number, "the terminal's Ctrl-C does not reach it"
        if is_cancelled:
            asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled() == is_cancelled
        return number

    wait_for_end([asyncio.run(go())])
    Path(began.read_text().split()[1]).rmdir()


def test_it_is_killed_with_its_children_when_the_night_ends(log):
    async def go():
        asked = asyncio.ensure_future(ask_program(make_request("sleep"), 60))
        while not (log.exists() and log.read_text().startswith("[")):
            assert not asked.done(), asked.result()
            await asyncio.sleep(0.02)
        asked.cancel()
        with suppress(asyncio.CancelledError):
            await asked

    asyncio.run(go())
    wait_for_end(json.loads(log.read_text()))


def wait_for_end(pids):
    deadline = time.monotonic() + 150  # a killed process takes a moment to end
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("cli:no-such-program", "no-such-program"),
        (f"cli:sh -c {shlex.quote(FAILING)}", "exit code 1: the license has run out"),
        (f"cli:{SAGE} mute", "called no tool"),
        ("cli:'", "No closing quotation"),
        ("cli:", "does not answer: "),
        (f"cli:{SAGE} answer", ""),
    ],
)
def test_what_is_wrong_is_said_beforehand(model, said):
    passes, wrong = asyncio.run(Claude(connect(base_url="http://127.0.0.1:9")).check(model))

    assert passes == (not said)
    assert said in wrong
    assert bool(wrong) == bool(said)


def test_models_are_named_with_their_arguments():
    prompts = load_style("default", ["cli:claude --model=opus", "mechanic=cli:sage -a=b"], fallbacks=["reflector=m"])

    assert prompts["researcher"].model == "cli:claude --model=opus"
    assert prompts["mechanic"].model == "cli:sage -a=b"
    assert (prompts["reflector"].fallback, prompts["mechanic"].fallback) == ("m", "")


def test_a_sessions_file_cannot_have_a_program_started():
    log = Log()
    texts = {name: log.put(prompt.text) for name, prompt in load_style("default", ["mechanic=cli:evil -x"]).items()}
    log.fold(Record(seq=0, at=0.0, task_id="", event=started(crew="claude", prompts=texts)))

    with pytest.raises(UsageError, match=r"no night began with here: .* \(cli:evil -x\)"):
        assert Preflight(Options(), "night", "claude", session=log).prompts
    allowed = Preflight(Options(programs=["cli:evil -x"]), "night", "claude", session=log)
    assert allowed.prompts["mechanic"].model == "cli:evil -x"


def test_a_fork_has_its_parents_models_but_no_program_that_only_a_file_names():
    prompts = load_style("default", ["cli:mine --fast", "mechanic=cli:theirs", "reflector=deft"])

    models = list_models(prompts, ["cli:mine --fast"])

    assert {*models} == {"researcher=cli:mine --fast", "notebook=cli:mine --fast", "reflector=deft"}
    assert load_style("default", models)["researcher"] == prompts["researcher"]


def test_a_fork_keeps_its_parents_models_and_fallbacks_unless_others_are_named(tmp_path):
    (tmp_path / "reflector.md").write_text("---\nmodel: deft\n---\n")
    parent = load_style("default", ["mine"], fallbacks=["spare"])

    def inherit(**given):
        options = inherit_models(Options(**{"prompts": ""} | given), parent)
        prompts = load_style(options.prompts or "default", options.model, fallbacks=options.fallback)
        return {agent: (prompt.model, prompt.fallback) for agent, prompt in prompts.items()}

    same = dict.fromkeys(parent, ("mine", "spare"))
    assert inherit() == inherit(prompts="socratic") == same
    assert inherit(model=["mechanic=x"]) == same | {"mechanic": ("x", "spare")}
    assert inherit(fallback=["y"]) == dict.fromkeys(parent, ("mine", "y"))
    assert inherit(prompts=str(tmp_path)) == same | {"reflector": ("deft", "spare")}


def test_a_fork_without_a_style_has_the_prompts_of_its_event_whatever_became_of_the_style(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/researcher.method.md").write_text("The rule of the first life.\n")
    parent = load_style(str(tmp_path / "mine"), ["mine", "reflector=cli:theirs"])
    (tmp_path / "mine/researcher.method.md").unlink()
    older = {agent: prompt for agent, prompt in parent.items() if agent != "notebook"}
    options = inherit_models(Options(prompts="", model=["mechanic=x"]), older)

    prompts = Preflight(replace(options, prompts=str(tmp_path / "mine")), "fork", "claude", recorded=older).prompts

    assert prompts["researcher"] == parent["researcher"]
    assert "The rule of the first life." in prompts["researcher"].text
    assert {agent: prompt.model for agent, prompt in prompts.items()} == {
        "researcher": "mine",
        "notebook": "mine",
        "mechanic": "x",
        "reflector": load_style("default", None)["reflector"].model,
    }


def test_a_fork_replaces_no_program_by_another_model_unasked():
    parent = load_style("default", ["mechanic=cli:theirs"])
    with pytest.raises(UsageError, match=r"fork it with a --model \(cli:theirs\)"):
        inherit_models(Options(), parent)
    assert "mechanic=cli:theirs" not in inherit_models(Options(model=["x"]), parent).model


def test_a_fork_asks_the_models_of_its_event_not_those_of_a_fork_that_follows_there(tmp_path):
    path = tmp_path / "mailed.db"
    with closing(Session(path, create=True)) as session:
        first, later = (
            {agent: session.put(prompt.text) for agent, prompt in load_style("default", [f"cli:{name}"]).items()}
            for name in ("first", "later")
        )
        begun = started(crew="claude", prompts=first)
        own = {name: getattr(begun, name) for name in SessionSettings.model_fields} | {"prompts": later}
        session.write("", begun, Forked(parent="test@1", **own))
    for at, name in (("1", "first"), ("2", "later")):
        code, _, err = command("fork", str(path), "--at", at, "--session", "mine")
        assert code == 2
        assert f"fork it with a --model (cli:{name})" in err
