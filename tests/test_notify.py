"""Notices: what is worth a word, sent by Apprise to a real server on loopback, without holding up the night."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from orchestrator.core.events import Waiting
from orchestrator.ports import Log
from orchestrator.views.notify import Notifier, make_sender
from orchestrator.views.summary import summarize
from prepare.command import UserError
from tests.simulated import night
from tests.workplace import REPORTED_BEST, environment, orchestrate, workplace

SECRET = "hunter2-the-token"


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return night(tmp_path_factory.mktemp("night") / "s" / "session.db", experiments=12)


class Phone:
    """Takes notices by HTTP, answering each with the given status; use as a context."""

    def __init__(self, status=200):
        self.got, received = [], self

        class Take(BaseHTTPRequestHandler):
            def do_POST(self):
                received.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
        self.url = f"json://127.0.0.1:{self.server.server_port}/{SECRET}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def log_of(session, upto=None) -> Log:
    log = Log()
    log.get = session.get
    log.fold(*session.records[:upto])
    return log


def replayed(session, send, say=print) -> Log:
    """A log that grows to the session's records under a notifier's eyes."""
    log = log_of(session, 1)
    notifier = Notifier(log, send, say)

    async def live():
        for record in session.records[1:]:
            log.fold(record)
            notifier.update()
        await asyncio.sleep(0.01)

    asyncio.run(live())
    notifier.close()
    return log


def collected():
    told = []

    async def send(title, text):
        told.append((title, text))
        return True

    return told, send


def test_every_new_best_and_the_end_are_told(session):
    told, send = collected()

    log = replayed(session, send)

    titles = [title for title, _ in told]
    assert titles == [f"{session.state.session.name}: a new best"] * len(session.state.kept) + [
        f"{session.state.session.name}: the night is over"
    ]
    assert session.state.kept[0].proposal.title in told[0][1]
    assert f"{summarize(log.state).gain:.4f} better" in told[-1][1]
    assert f"→ {summarize(log.state).best:.4f}" in told[-1][1]
    assert "12 experiments" in told[-1][1]


def test_what_is_past_is_not_told_again(session):
    told, send = collected()
    notifier = Notifier(log_of(session), send, print)

    notifier.update()
    notifier.close()

    assert told == []


async def test_pauses_that_follow_upon_each_other_are_one(session):
    told, send = collected()
    log = log_of(session, 40)
    notifier, start, last = Notifier(log, send, print), log.state.now, log.records[-1]
    for begin, length in [(700, 60), (765, 60), (900, 3600), (4505, 60), (9000, 60)]:
        waiting = Waiting(until=start + begin + length, reason="the server asks for patience")
        log.fold(last.model_copy(update={"seq": len(log.records), "at": start + begin, "event": waiting}))
        notifier.update()
    await asyncio.gather(*notifier.sending)

    assert [title.split(": ")[1] for title, _ in told] == ["a pause", "a pause"]
    assert told[0][1].startswith("the server asks for patience.\n")


def test_a_fault_is_told_and_a_user_at_the_keyboard_is_not(session):
    far = KeyboardInterrupt("another program ended it")
    errors = [(RuntimeError("disk"), 1), (far, 1), (KeyboardInterrupt(), 0), (SystemExit(130), 0), (None, 0)]
    for error, much in errors:
        told, send = collected()
        Notifier(log_of(session, 1), send, print).close(error)
        assert len(told) == much
        assert all("resume" in text for _, text in told)


def test_a_message_that_hangs_holds_nothing_up(session):
    started = []

    async def hang(title, _text):
        started.append(title)
        if title.endswith("a new best"):
            await asyncio.sleep(3600)
        return True

    log = replayed(session, hang)

    assert log.state.ended
    assert len(started) == len(session.state.kept) + 1


async def test_python_ends_without_waiting_for_a_server_that_is_silent():
    before = threading.enumerate()
    with socket.create_server(("127.0.0.1", 0)) as server:
        task = asyncio.ensure_future(make_sender(f"json://127.0.0.1:{server.getsockname()[1]}")("night", "text"))
        await asyncio.sleep(0)
        connection, _ = server.accept()
        with connection:
            begun = [thread for thread in threading.enumerate() if thread not in before]
            task.cancel()

    assert begun
    assert all(thread.daemon for thread in begun)


def test_a_failure_is_said_once_and_without_its_words(session):
    said = []

    async def fail(_title, _text):
        raise RuntimeError(SECRET)

    replayed(session, fail, said.append)

    assert said == ["A notification did not arrive."]


def test_a_night_sends_word_and_keeps_the_secret(tmp_path):
    place = workplace(tmp_path / "place", REPORTED_BEST)
    with Phone() as phone:
        done = orchestrate(
            place,
            "--offline",
            "--max-experiments",
            "1",
            "--session",
            "night",
            "--seed",
            "3",
            NIGHTSHIFT_NOTIFY=phone.url,
        )

    assert done.returncode == 0, done.stderr
    assert phone.got[-1]["title"] == "night: the night is over"
    assert "1 experiment is done" in phone.got[-1]["message"]
    assert SECRET not in done.stdout + done.stderr
    for path in (place / "sessions").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_a_server_that_refuses_is_said_once_without_the_secret(tmp_path):
    place = workplace(tmp_path / "place", REPORTED_BEST)
    with Phone(status=500) as phone:
        done = orchestrate(
            place, "--offline", "--max-experiments", "1", "--session", "night", "--seed", "3", "--notify", phone.url
        )

    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("did not arrive") == 1
    assert SECRET not in done.stdout + done.stderr


def test_a_url_that_is_none_is_one_line_without_it(tmp_path):
    place = workplace(tmp_path / "place", REPORTED_BEST)

    done = orchestrate(place, "--offline", "--notify", f"nonsense-{SECRET}")

    assert done.returncode == 2
    assert "--notify" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert SECRET not in done.stdout + done.stderr
    assert not (place / "sessions").exists()


def test_without_apprise_one_line_says_what_to_install(tmp_path):
    """None in sys.modules is Python's own way to say that there is no such package."""
    place = workplace(tmp_path / "place", REPORTED_BEST)
    code = (
        "import sys; sys.modules['apprise'] = None; from orchestrator.cli.main import main; "
        "sys.argv = ['nightshift', '--offline', '--notify', 'json://127.0.0.1']; main()"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment(), capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "[notify]" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_nobody_is_told_by_default(session):
    said = []
    Notifier(log_of(session, 1), None, said.append).close(RuntimeError("disk"))

    assert said == []


def test_an_address_of_no_service_is_refused():
    with pytest.raises(UserError, match="does not support"):
        make_sender("::")
