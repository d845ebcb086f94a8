"""`nightshift serve`: its pages, whom it lets in, what a browser shows and what its forms ask of a night."""

import contextlib
import html
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from base64 import b64encode
from hashlib import sha256

import httpx
import psutil
import pytest
import uvicorn
from markupsafe import escape
from starlette.testclient import TestClient

from orchestrator.cli.inspect import find_process
from orchestrator.cli.main import main
from orchestrator.cli.options import Paths, UsageError
from orchestrator.cli.pages import CACHED, Site, is_own_name
from orchestrator.cli.wiring import hold_session
from orchestrator.core import events as ev
from orchestrator.session.inbox import Control, take_controls
from orchestrator.session.store import Session
from orchestrator.supervisor import GUIDANCE_CHARACTERS
from orchestrator.views.event_text import list_conversations, write_page
from orchestrator.views.musings import write_musings
from tests.browser import CHROMIUM, Browser
from tests.fakes import SOURCE, started
from tests.workplace import ROOT, begun, environment

HOME = "http://127.0.0.1:8000"
EVIL = '</script><script>document.title="owned"</script><img src=x onerror=document.title="owned">'
browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture
def folder(tmp_path):
    """Two recorded sessions of agents, one that is damaged, and guidance.md."""
    for name in ("agents-1", "agents-2"):
        (tmp_path / "sessions" / name).mkdir(parents=True)
        shutil.copy(ROOT / "tests/golden/agents-1.db", tmp_path / "sessions" / name / "session.db")
    (tmp_path / "sessions/broken").mkdir()
    (tmp_path / "sessions/broken/session.db").write_bytes(b"SQLite format 3\0" + b"?" * 5000)
    (tmp_path / "guidance.md").write_text("Try <b>optimizers</b>.\n")
    return tmp_path


def open_site(folder, token="", host="127.0.0.1", base=HOME):
    paths = Paths(folder / "sessions", script=folder / "train.py", musings=folder / "musings")
    site = Site(paths)
    client = TestClient(site.build(host, token), base_url=base, follow_redirects=False, raise_server_exceptions=False)
    return site, client


def begin_night(folder, behind=0.0, name="night"):
    """A session that this process runs, as far as anybody can see: experiment 1 trains, 2 waits."""
    session = Session(folder / "sessions" / name / "session.db", lambda: time.time() - behind, create=True)
    (folder / "sessions" / f".{name}.lock").write_text(f"{os.getpid()}\n")
    source = session.put(SOURCE)
    session.write("", started(name=name), ev.BaselineCommitted(commit="f" * 40, source=source, fingerprint="f" * 16))
    for number in (1, 2):
        proposal = ev.Proposal(
            title=f"{EVIL} {number}",
            hypothesis=EVIL,
            rationale=EVIL,
            expected_delta=0.0,
            family="other",
            instructions=EVIL,
        )
        change = {"source": source, "fingerprint": f"{number}" * 16, "added": 1, "removed": 0}
        session.write("", ev.Proposed(experiment=number, proposal=proposal))
        session.write("", ev.Committed(experiment=number, commit="a" * 40, parent=0, **change))
    session.write("train 1.1", ev.Granted(experiment=1, run=1, slot=0, seed=1))
    session.write("", ev.ConversationOpened(experiment=1, agent="mechanic", model=EVIL, system=source, opening=source))
    session.write("", ev.ToolUsed(tool=EVIL, call="c", result=EVIL))
    return session


def test_a_night_is_found_by_its_process_whatever_number_a_longer_one_left(folder):
    begin_night(folder)
    (folder / "sessions/.night.lock").write_text("4194303\n")
    with hold_session(folder / "sessions/night"):
        assert find_process(Paths(folder / "sessions"), "night", time.time()) == os.getpid()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says when a process began by no clock")
def test_a_clock_that_is_set_ahead_leaves_a_night_alive_and_a_later_process_is_another(folder):
    begin_night(folder)
    paths, lock = Paths(folder / "sessions"), folder / "sessions/.night.lock"
    before = psutil.Process().create_time() - 3600  # as if the clock had been set ahead since its last event
    assert find_process(paths, "night", before) is None, "it is a lock of before"
    with hold_session(folder / "sessions/night"):
        assert find_process(paths, "night", before) == os.getpid()
        with pytest.raises(UsageError, match=f"as process {os.getpid()}$"), hold_session(folder / "sessions/night"):
            pass
        lock.write_text("4194303\n")  # as it is called in a container
        assert find_process(paths, "night", before) == os.getpid()
    lock.write_text(f"{os.getpid():<20}{'7':<20}\n")
    assert find_process(paths, "night", time.time()) is None


def test_every_page_is_there_and_escaped(folder):
    session = begin_night(folder)
    write_musings(session, folder / "musings/night")
    _, client = open_site(folder)
    pages = [
        "/",
        "/sessions/night",
        "/sessions/night?all",
        "/sessions/night/events/8",
        "/musings?q=document",
        "/guidance",
    ]
    for page in [*pages, "/sessions/night/report", "/compare?session=agents-1&session=agents-2"]:
        answer = client.get(page)
        policy = answer.headers["content-security-policy"]
        assert answer.status_code == 200, page
        assert "<script>document" not in answer.text, page
        assert "<img src=x" not in answer.text, page
        assert "unsafe-inline" not in policy.replace("style-src 'unsafe-inline'", ""), page
        assert answer.headers["x-content-type-options"] == "nosniff"
        if page in pages:
            assert "style=" not in answer.text, page
            assert not re.search(r"\son\w+=\"", answer.text), page
            assert re.findall("<script.*?>", answer.text) == ['<script src="/assets/serve.js" defer>'], page
    for asset, kind in (("serve.css", "text/css"), ("serve.js", "text/javascript")):
        assert client.get(f"/assets/{asset}").headers["content-type"].startswith(kind)


def test_more_sessions_than_are_kept_in_memory_are_not_all_read_anew_at_each_visit(folder):
    for number in range(CACHED):
        (folder / f"sessions/offline-{number}").mkdir()
        shutil.copy(ROOT / "tests/golden/offline-4.db", folder / f"sessions/offline-{number}/session.db")
    site, client = open_site(folder)
    client.get("/")
    before = {id(session.state) for session in site.known.values()}
    client.get("/")
    assert {id(session.state) for session in site.known.values()} == before
    assert len(before) == CACHED
    client.get("/sessions/agents-2")
    client.get("/sessions/agents-1")
    assert {"agents-1", "agents-2"} <= {name for name, _ in site.known}


def test_sessions_are_listed_the_newest_first_each_with_how_it_stands(folder):
    session = begin_night(folder)
    _, client = open_site(folder)
    text = client.get("/").text
    told = [
        text.index(words) for words in (f"running as process {os.getpid()}", "ended: ", "cannot be used as a session")
    ]
    assert told == sorted(told)
    assert text.index(">night<") < text.index(">agents-1<") < text.index("<b>broken</b>")
    page = client.get("/sessions/night/report").text
    assert "under way" in page
    assert "data-due" in page
    session.write("", ev.Paused(reason="you asked for a pause"))
    page = client.get("/sessions/night/report").text
    assert "data-refresh" in page
    assert "data-due" not in page, "in a pause it is never overdue"
    (folder / "sessions/.night.lock").unlink()
    page = client.get("/sessions/night/report").text
    assert "died: nothing runs it any more" in page
    assert "under way" not in page
    for end in ("", "/live"):
        assert client.get(f"/sessions/broken{end}").status_code == 422


def test_a_conversation_is_told_as_replay_tells_it(folder):
    _, client = open_site(folder)
    session = Session(folder / "sessions/agents-1/session.db", read_only=True)
    talks = list_conversations(session.records)
    page = client.get("/sessions/agents-1").text
    assert {talk.opened.event.agent for talk in talks} == {"researcher", "mechanic", "reflector"}
    assert not any(talk.is_open for talk in talks)
    for talk in talks:
        assert f"/sessions/agents-1/events/{talk.last}" in page
    last = talks[-1].last
    text = write_page(session, last)
    ruled = re.sub("^── (.*?) ─*$", r"<b>\1</b>", str(escape(text.rstrip())), flags=re.MULTILINE)  # rules would wrap
    assert "<b>" in ruled
    assert ruled in client.get(f"/sessions/agents-1/events/{last}").text
    for number in (len(session.records), -1, "last", "9" * 5000):
        assert client.get(f"/sessions/agents-1/events/{number}").status_code == 422


def test_a_conversation_goes_on_while_it_rewrites_the_notebook(folder):
    session, book = begin_night(folder), ev.Notebook(beliefs=(), questions=(), ideas=())
    words = {"experiment": 3, "model": "m", "system": session.put("."), "opening": session.put(".")}
    session.write("propose 3", ev.ConversationOpened(agent="notebook", **words), ev.Noted(notebook=book, reason="due"))
    session.write("propose 3", ev.ConversationOpened(agent="researcher", **words), ev.Noted(notebook=book))
    assert [talk.is_open for talk in list_conversations(session.records)[-2:]] == [False, True]


@pytest.mark.parametrize("page", ["/sessions/agents-1/report", "/compare?session=agents-1&session=agents-2"])
def test_a_page_with_charts_runs_its_own_scripts_only(folder, page):
    """In an origin of its own, so that nothing in it can read another page or send a form."""
    from plotly.offline import get_plotlyjs

    _, client = open_site(folder)
    answer = client.get(page)
    policy, own = (
        answer.headers["content-security-policy"],
        re.findall("<script>(.*?)</script>", answer.text, re.DOTALL),
    )
    allowed = re.findall("'sha256-([^']+)'", policy)
    assert policy.startswith("sandbox allow-scripts allow-downloads;")
    assert allowed == [b64encode(sha256(text.encode()).digest()).decode() for text in (*own, get_plotlyjs())]


@pytest.mark.parametrize("name", ["nope", "%2e%2e", "..%2fsessions%2fagents-1", ".hidden", "agents-1%00", "a%0d%0ab"])
def test_a_name_is_no_path(folder, name):
    (folder / "sessions/.hidden").mkdir()
    shutil.copy(ROOT / "tests/golden/agents-1.db", folder / "sessions/.hidden/session.db")
    _, client = open_site(folder)
    for end in ("", "/report", "/live", "/events/0"):
        assert client.get(f"/sessions/{name}{end}").status_code == 404
    assert client.get(f"/compare?session=agents-1&session={name}").status_code == 404
    assert client.get("/compare").status_code == 400
    assert client.get(f"/assets/{name}").status_code == 404


@pytest.mark.parametrize(
    ("name", "is_own"),
    [(name, True) for name in ("localhost", "127.0.0.1", "127.0.0.1:8000", "[::1]:8000", "10.0.0.9", "Box:9")]
    + [
        (name, False)
        for name in ("evil.example", "127.0.0.1.evil.example", "a_b.evil.example:8000", "", "[::1", "box@e")
    ],
)
def test_a_foreign_name_that_leads_here_is_turned_away(folder, name, is_own):
    assert is_own_name(name, "box") is is_own
    _, client = open_site(folder, host="box")
    assert client.get("/guidance", headers={"host": name}).status_code == (200 if is_own else 421)


def test_a_form_must_come_from_a_page_of_ours(folder):
    begin_night(folder)
    site, client = open_site(folder)
    ask, own = "/sessions/night/control", {"origin": HOME}
    fields = {"secret": site.secret, "action": "veto", "experiment": "2"}
    wrong = [
        (403, fields, {}),
        (403, fields, {"origin": "null"}),
        (403, fields, {"origin": "http://evil.example"}),
        (403, fields, {"origin": "http://["}),
        (403, fields | {"secret": ""}, own),
        (403, {"action": "pause"}, own),
        (400, fields | {"action": "shutdown"}, own),
        (400, fields | {"experiment": "-1"}, own),
        (400, fields | {"path": "/etc"}, own),
        (413, fields | {"path": "x" * 300_000}, own),
    ]
    for status, data, headers in wrong:
        assert client.post(ask, data=data, headers=headers).status_code == status, (data, headers)
    assert client.post("/sessions/agents-1/control", data=fields, headers=own).status_code == 409
    assert client.get(ask).status_code == 405
    assert take_controls(folder / "sessions/night") == []

    answer = client.post(ask, data=fields, headers=own)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sessions/night")
    assert take_controls(folder / "sessions/night") == [Control(action="veto", experiment=2)]


def test_a_token_lets_in_and_nothing_else(folder):
    _, client = open_site(folder, token="s3cret")
    for page in ("/", "/sessions/agents-1/live", "/assets/serve.js", "/?token=guess", "/?token="):
        assert client.get(page).status_code == 401, page
    assert client.get("/", headers={"cookie": "nightshift-8000=ü".encode()}).status_code == 401

    welcome = client.get("/sessions/agents-1?token=s3cret")
    assert (welcome.status_code, welcome.headers["location"]) == (303, "/sessions/agents-1")
    assert {"HttpOnly", "SameSite=lax"} <= set(welcome.headers["set-cookie"].split("; "))
    assert client.get("/").status_code == 200
    assert client.get(f"{HOME}//evil.example?token=s3cret").headers["location"] == "/evil.example"


def test_guidance_is_replaced_unless_it_has_changed_meanwhile(folder):
    site, client = open_site(folder)
    page, path = client.get("/guidance").text, folder / "guidance.md"
    assert "Try &lt;b&gt;optimizers&lt;/b&gt;." in page
    fields = {
        "secret": site.secret,
        "before": re.search('name="before" value="(.*?)"', page)[1],
        "text": "New.\r\n" + "研" * GUIDANCE_CHARACTERS,
    }
    path.write_text("By another editor.\n")
    assert client.post("/guidance", data=fields, headers={"origin": HOME}).status_code == 409
    assert path.read_text() == "By another editor.\n"

    path.chmod(0o600)
    fields["before"] = re.search('name="before" value="(.*?)"', client.get("/guidance").text)[1]
    for _ in range(2):  # a double click
        assert client.post("/guidance", data=fields, headers={"origin": HOME}).status_code == 303
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == "New.\n" + "研" * GUIDANCE_CHARACTERS


def test_guidance_is_saved_as_it_was_shown(folder):
    site, client = open_site(folder)
    link, path, text = folder / "guidance.md", folder / "notes.md", "try muon &\x0c \u200e<b>\n" * 2000
    link.unlink()
    link.symlink_to(path.name)
    path.write_text(text)
    page = client.get("/guidance").text
    shown = html.unescape(re.search(r"<textarea.*?>\n(.*)</textarea>", page, re.DOTALL)[1])
    fields = {"secret": site.secret, "before": re.search('name="before" value="(.*?)"', page)[1]}
    sent = client.post("/guidance", data=fields | {"text": f"{shown}more"}, headers={"origin": HOME})
    assert (sent.status_code, link.is_symlink(), path.read_text()) == (303, True, f"{text}more")

    path.write_bytes(b"prefer \xe9t\xe9")
    assert client.get("/guidance").status_code == 422
    assert client.post("/guidance", data=fields | {"text": ""}, headers={"origin": HOME}).status_code == 422
    assert path.read_bytes() == b"prefer \xe9t\xe9"


@pytest.mark.parametrize(
    ("more", "variable", "words"),
    [
        ([], "t", "--port names another"),
        (["--token", "a&b"], "t", "a token is of letters"),
        (["--token", ""], "t", "--token is empty"),
        ([], "", "NIGHTSHIFT_TOKEN is empty"),
    ],
    ids=["port", "token", "no token", "no variable"],
)
def test_it_says_in_one_line_what_is_wrong(tmp_path, capsys, monkeypatch, more, variable, words):
    monkeypatch.setenv("NIGHTSHIFT_TOKEN", variable)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as exit_:
        port = str(taken.getsockname()[1])
        main(["serve", "--port", port, *more, "--sessions", str(tmp_path)])
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err


@contextlib.contextmanager
def listening(folder, token=""):
    """The address of a real server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        site = Site(Paths(folder / "sessions", script=folder / "train.py", musings=folder / "musings"))
        config = uvicorn.Config(
            site.build("127.0.0.1", token), lifespan="off", log_level="error", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def visit(page, address: str) -> None:
    page.ask("Page.navigate", url=address)
    begin = json.dumps(address.partition("?")[0])
    page.wait(f"location.href.startsWith({begin}) && document.readyState === 'complete'")


@pytest.mark.parametrize("shown", ["", "all&"])
def test_an_event_is_sent_whatever_the_files_tell(folder, shown):
    """SQLite changes its files first and shows the event later: who looks in between never looks again."""
    session, (_, client) = begin_night(folder), open_site(folder)
    live = html.unescape(re.search('data-source="(.*?)"', client.get(f"/sessions/night?{shown}").text)[1])
    assert live == f"/sessions/night/live?{shown}seen="
    wal = session.path.with_name("session.db-wal")
    asked = ev.VetoAsked(experiment=2)
    row = len(session.records), session.state.now, "", asked.kind, asked.model_dump_json()
    with contextlib.closing(sqlite3.connect(session.path)) as db:
        db.execute("pragma wal_checkpoint(restart)")  # what is written next does not lengthen the file
        first = client.get(live).json()
        assert "ends, vetoed" not in first["html"]
        assert client.get(live + first["seen"]).json() is None
        before = wal.stat()
        with db:
            db.execute("insert into events values (?, ?, ?, ?, ?)", row)
        os.utime(wal, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert wal.stat().st_size == before.st_size
        second = client.get(live + first["seen"]).json()
        assert "ends, vetoed" in second["html"]
    (folder / "sessions/.night.lock").unlink()
    assert "died or was stopped" in client.get(live + second["seen"]).json()["html"]
    _, restarted = open_site(folder)
    assert restarted.get(live + second["seen"]).json(), "its forms have another secret"


@pytest.mark.parametrize("behind", [7200.0, -7200.0], ids=["slept", "set back"])
def test_a_run_is_as_old_as_the_clock_of_its_night_says(folder, behind):
    """That clock is not the machine's any more once this has slept, or was set back before a resume."""
    session = begin_night(folder, behind)
    since = max(session.path.stat().st_mtime, (wal := session.path.with_name("session.db-wal")).stat().st_mtime) - 300
    for path in (session.path, wal):
        os.utime(path, (since, since))
    _, client = open_site(folder)
    ages = [int(age) for age in re.findall('data-age="(.*?)"', client.get("/sessions/night").text)]
    assert len(ages) == 3
    assert all(300 <= age < 3000 for age in ages)


@browser
def test_a_browser_follows_a_night_and_vetoes_by_a_click(folder):
    session = begin_night(folder)
    with listening(folder) as home, Browser() as page:
        visit(page, f"{home}/sessions/night")
        page.run("window.first = true")
        page.click("#row-1 details summary")
        page.click("#row-2 button[value=veto]")
        page.wait("document.readyState === 'complete' && !window.first && document.querySelector('#row-2')")
        page.run("window.second = true")
        deadline = time.monotonic() + 150
        while not (asked := take_controls(session.path.parent)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert asked == [Control(action="veto", experiment=2)]

        session.write("", ev.VetoAsked(experiment=2))
        page.wait("document.querySelector('#row-2 .mark').textContent === 'ends, vetoed'")
        page.click("#row-1 details summary")
        session.write("", ev.Vetoed(experiment=2), ev.Paused(reason="you asked for a pause"))
        page.wait("document.querySelector('#row-2 .mark').textContent === 'vetoed'")
        page.wait("document.querySelector('button[value=continue]') && document.querySelector('.chip.paused')")
        assert page.run("window.second"), "it was not loaded again"
        assert page.run("document.querySelector('#row-1 details').open"), "what has not changed stays as it is"
        assert page.run("document.title") == "night · Nightshift"
        assert page.complaints() == []


@browser
@pytest.mark.soak
def test_hostile_text_does_nothing_in_a_browser(folder):
    folder = folder.rename(folder.parent / ("path" * 20))  # a name that no line of a phone holds
    session = begin_night(folder)
    write_musings(session, folder / "musings/night")
    with listening(folder, token="t") as home, Browser(390, 844) as page:
        visit(page, f"{home}/")
        assert "holds the token" in page.text("main")
        visit(page, f"{home}/?token=t")
        page.events.clear()
        for path in ("/", "/sessions/night", "/sessions/night/events/8", "/musings?q=document", "/guidance"):
            visit(page, home + path)
            assert page.run("document.title").endswith(" · Nightshift"), path
            assert page.run("document.documentElement.scrollWidth") <= 390, path
            assert page.complaints() == [], path
        for path in ("/sessions/agents-1/report", "/compare?session=agents-1&session=agents-2"):
            visit(page, home + path)
            page.wait("document.body.dataset.drawn === 'yes' && document.querySelector('.main-svg')")
            assert page.run("window.origin") == "null"
            assert "owned" not in page.run("document.title")


@pytest.mark.soak
def test_another_address_needs_the_link_that_it_prints(folder):
    process = begun(folder, "serve", "--host", "0.0.0.0", "--port", "0")
    try:
        link = re.match(r"http://\S+:(\d+)/\?token=(\S+)", process.stdout.readline())
        assert link
        home = f"http://127.0.0.1:{link[1]}"
        assert httpx.get(home).status_code == 401
        assert httpx.get(f"{home}/?token={link[2]}", follow_redirects=True).status_code == 200
        origin = f"Host: {home[7:]}\r\nOrigin: {home}\r\nCookie: nightshift-{link[1]}={link[2]}"
        half = f"POST /guidance HTTP/1.1\r\n{origin}\r\nContent-Length: 9\r\n\r\ntext=".encode()
        gone, waits = (socket.create_connection(("127.0.0.1", int(link[1]))) for _ in range(2))
        gone.sendall(half)
        waits.sendall(half)
        gone.close()
        assert httpx.get(home).status_code == 401, "it has read both"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=50)[0] == "", "nothing is said of what is cut off"
        waits.close()
    finally:
        process.terminate()
        process.communicate(timeout=20)


@pytest.mark.soak
def test_without_its_packages_it_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['uvicorn'] = None; from orchestrator.cli.main import main; main(['serve'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "nightshift: serve needs uvicorn: pip install -e '.[serve]' in Nightshift's folder\n"
