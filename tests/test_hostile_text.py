"""Texts of any origin, in every view: nothing steers a terminal, reorders a line, or outgrows its place."""

import asyncio
import io
import re

import pytest
from rich.console import Console

from orchestrator.core import events as ev
from orchestrator.core.text import make_printable
from orchestrator.ports import Log
from orchestrator.session.store import Session
from orchestrator.views import event_text
from orchestrator.views.musings import search, write_musings
from orchestrator.views.notify import Notifier
from orchestrator.views.observers import Observers
from orchestrator.views.report import write_files
from orchestrator.views.terminal import Terminal
from tests.fakes import started

EVIL = "\x1b[2J\x1b]0;owned\x07<script>alert(1)</script>\u202egnp.exe\u2066\x9b31m\r\x00 [red]x[/red] **b** | end"
HUGE = EVIL + " " + "A" * 1_000_000
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def session(tmp_path):
    """One experiment after the baseline, whose every text is hostile, and as long as its type allows."""
    log = Session(tmp_path / "s" / "session.db", lambda: 1.8e9, create=True)
    source = log.put("x = 1\n")
    edited = log.put(f"x = 1\ny = '{HUGE}'\n" + f"# {EVIL}\n" * 5000)
    log.write("", started(), ev.BaselineCommitted(commit="f" * 40, source=source, fingerprint="f" * 16))
    scored = {"val_bpb": 2.2, "metrics": ev.RunMetrics(), "curve": (), "log": log.put(HUGE)}
    numbers = {"mean": 2.2, "gain": 0.1, "error": 0.01, "sigma": 0.004, "reason": HUGE}
    post = ev.Postmortem(verdict="supported", happened=EVIL, why=EVIL, lesson=EVIL, next=EVIL)
    proposal = ev.Proposal(
        title=EVIL, hypothesis=EVIL, rationale=EVIL, expected_delta=-0.1, family="other", instructions=EVIL
    )
    change = {"source": edited, "fingerprint": "a" * 16, "added": 1, "removed": 0}
    for number in (0, 1):
        if number:
            log.write("", ev.Proposed(experiment=1, proposal=proposal))
            log.write("", ev.Committed(experiment=1, commit="a" * 40, parent=0, **change))
        log.write("", ev.Granted(experiment=number, run=1, slot=0, seed=1))
        log.write("", ev.Scored(experiment=number, run=1, **scored))
        log.write("", ev.Kept(experiment=number, score_to_beat=2.2, **numbers))
        log.write("", ev.Promoted(experiment=number, commit="a" * 40), ev.Reflected(experiment=number, postmortem=post))
    log.write("", ev.Waiting(until=1.9e9, reason=HUGE), ev.StopAsked(reason=HUGE))
    message = {"role": "assistant", "content": [{"type": "text", "text": HUGE}, {"type": EVIL, "x": HUGE}]}
    log.write("", ev.ConversationOpened(experiment=1, agent="mechanic", model=EVIL, system=edited, opening=edited))
    tokens = ev.Tokens(input=1, cache_read=1, output=1)
    log.write("", ev.ModelReplied(agent="mechanic", experiment=1, request="r", message=message, tokens=tokens, usd=0.1))
    log.write("", ev.ToolUsed(tool=EVIL, call="c", result=HUGE))
    return log


def is_harmless(text: str) -> bool:
    return not STEERING.search(text)


def test_plain_lines_are_short_and_harmless(session):
    to = Console(file=io.StringIO(), width=80, color_system=None)
    log = Log()
    log.fold(session.records[0])
    terminal = Terminal(log, to, lambda: 1.8e9)
    for record in session.records[1:]:
        log.fold(record)
        terminal.update()
    lines = to.file.getvalue().splitlines()
    terminal.say(HUGE)

    assert len(lines) > 10
    assert all(len(line) < 160 for line in lines)
    assert is_harmless(to.file.getvalue())
    assert len(to.file.getvalue()) < 10_000
    assert "more characters" in to.file.getvalue()


def test_the_live_view_is_harmless_and_fits(session):
    to = Console(file=io.StringIO(), width=80, height=24, color_system=None)
    to.print(Terminal(session, to, lambda: 1.8e9).render())
    lines = to.file.getvalue().splitlines()
    assert is_harmless(to.file.getvalue())
    assert len(lines) < 24
    assert all(len(line) <= 80 for line in lines)


def test_a_walk_and_its_pages_are_harmless(session):
    for number, record in enumerate(session.records):
        page = event_text.write_page(session, number)
        assert is_harmless(page), record.event.kind
        assert len(event_text.write_line(record)) < 160
        assert len(page) < 6 * event_text.LONGEST


def test_a_page_in_full_holds_a_long_text_to_its_end():
    log = Log()
    opening = ev.ConversationOpened(
        experiment=1, agent="researcher", model="m", system=log.put("s"), opening=log.put(f"{'A' * 50_000} the end")
    )
    log.fold(*(ev.Record(seq=i, at=0.0, task_id="propose 1", event=e) for i, e in enumerate((started(), opening))))
    assert "A the end" in event_text.write_page(log, 1)


def test_what_a_search_finds_is_harmless(tmp_path):
    (tmp_path / "night").mkdir()
    (tmp_path / "night/001-x.md").write_text(f"---\nfamily: other\n---\n# 1. {EVIL}\n\n{EVIL} words\n")
    (hit,) = search(tmp_path, "words")
    assert is_harmless(hit.title + hit.snippet)


def test_musings_are_harmless_and_bounded(session, tmp_path):
    write_musings(session, tmp_path / "m" / "test")
    for path in (tmp_path / "m").rglob("*.md"):
        assert is_harmless(path.read_text()), path
        assert path.stat().st_size < 60_000, path


def test_the_report_is_escaped_and_bounded(session, tmp_path):
    write_files(session, tmp_path / "f")
    html = (tmp_path / "f" / "report.html").read_text()
    assert is_harmless(html)
    assert html.count("<script") == 3  # its own
    assert "&lt;script&gt;alert(1)" in html
    assert len(html) < 2_500_000
    assert all(len(line) < 2_500 for line in (tmp_path / "f" / "results.tsv").read_text().splitlines())


def test_messages_are_short_and_harmless(session):
    sent = []

    async def send(title, text):
        sent.append(title + text)
        return True

    async def live():
        log = Log()
        log.fold(*session.records[:8])
        notifier = Notifier(log, send, print)
        for record in session.records[8:]:
            log.fold(record)
            notifier.update()
        await asyncio.gather(*notifier.sending)

    asyncio.run(live())
    assert len(sent) == 2
    assert all(is_harmless(text) and len(text) < 2_000 for text in sent)


def test_a_failure_that_a_view_reports_is_short_and_harmless(session, tmp_path):
    to = Console(file=io.StringIO(), width=80, color_system=None)
    observers = Observers(session, tmp_path / "m", to)

    with observers._guard("the view"):
        raise RuntimeError(HUGE)

    assert "RuntimeError" in to.file.getvalue()
    assert is_harmless(to.file.getvalue())
    assert len(to.file.getvalue()) < 5_000


def test_what_people_write_stays_as_it_is():
    text = "α → β: 90 % of naïve\tcafé, שלום\n日本語 👩‍🔬\n"
    assert make_printable(text) == text
    assert make_printable("50%\r100%\r\ndone") == "50%\n100%\ndone"
