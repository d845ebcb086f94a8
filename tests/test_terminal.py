import contextlib
import io
import re

import pytest
from rich.console import Console

from orchestrator.core import events as ev
from orchestrator.ports import Log
from orchestrator.views.event_text import summarize
from orchestrator.views.terminal import Terminal
from tests import synthetic
from tests.fakes import started
from tests.simulated import Fragile, night


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return night(tmp_path_factory.mktemp("night") / "s" / "session.db", experiments=12, lab=Fragile, repairs=0)


def console(width=80, *, terminal=False) -> Console:
    known = {"force_terminal": terminal, "color_system": None, "_environ": {"TERM": "xterm"}}
    return Console(file=io.StringIO(), width=width, height=24, **known)


def shown(log, points=(), now=None, width=80) -> str:
    to = console(width)
    terminal = Terminal(log, to, lambda: now or log.state.now)
    terminal.points.update(points)
    to.print(terminal.render())
    return to.file.getvalue()


def played(session, upto=None) -> Log:
    log = Log()
    log.get = session.get
    log.fold(*session.records[:upto])
    return log


@contextlib.contextmanager
def watching(log, to, clock):
    terminal = Terminal(log, to, clock)
    terminal.open()
    yield terminal
    terminal.close()


def when(session, kind, number) -> int:
    """How many records there are once this has happened."""
    found = (r.seq for r in session.records if r.event.kind == kind and r.event.experiment == number)
    return next(found) + 1


def told(session) -> list[str]:
    """The plain lines of a whole session."""
    log, to = played(session, 1), console()
    with watching(log, to, lambda: log.state.now) as terminal:
        for record in session.records[1:]:
            log.fold(record)
            terminal.update()
    return to.file.getvalue().splitlines()


def test_plain_lines_tell_the_night_in_order(session):
    lines = told(session)

    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \[(info|warning) *\] [a-z]+", line) for line in lines)
    kinds = [line.split()[4] for line in lines]
    assert kinds[:4] == ["started", "fitted", "granted", "scored"]
    assert kinds.count("proposed") == 12
    assert kinds.count("kept") == 1 + len(session.state.kept)  # the baseline, too
    assert kinds[-1] == "ended"
    assert any("[warning  ] crashed" in line and "NaN" in line for line in lines)
    first = lines[kinds.index("proposed")]
    assert "Shallower: DEPTH 3 → 2" in first


def test_what_is_out_of_the_ordinary_is_said_too():
    log, to = Log(), console()
    log.fold(*synthetic.records(0)[:1])
    events = [
        ev.Unanswered(reason="nothing\nusable"),
        ev.Waiting(until=2e9, reason="the server is full"),
        ev.StopAsked(reason="you asked to stop"),
    ]
    with watching(log, to, lambda: 0.0) as terminal:
        for i, event in enumerate(events, 1):
            log.fold(ev.Record(seq=i, at=1.9e9, task_id="propose 1", event=event))
            terminal.update()
    text = to.file.getvalue()
    assert "nothing usable" in text
    assert "the server is full" in text
    assert "you asked to stop" in text
    assert "waiting" in shown(log, now=1.9e9)
    assert "stopping: you asked to stop" in shown(log)


def test_a_run_is_told_of_once_a_minute_at_most(session):
    upto = when(session, "granted", 1)
    log, to, now = played(session, upto), console(), [0.0]
    granted = log.records[-1].event
    terminal = Terminal(log, to, lambda: now[0])
    for second in range(0, 200, 5):
        now[0] = float(second)
        terminal.progress(granted, ev.Point(seconds=second, progress=second / 200, loss=4.0), 15_000.0)
    lines = [line for line in to.file.getvalue().splitlines() if "loss" in line]
    assert len(lines) == 3
    assert "30 % done" in lines[0]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_live_view_fits_and_shows_what_counts(session, width):
    log = played(session, when(session, "granted", 9))
    granted = log.records[-1].event
    to = console(width)
    terminal = Terminal(log, to, lambda: log.state.now + 9)
    terminal.progress(granted, ev.Point(seconds=8, progress=0.42, loss=4.3123), 15_000.0)
    text = shown(log, terminal.points, log.state.now + 9, width)

    assert all(len(line) <= width for line in text.splitlines())
    assert len(text.splitlines()) <= 16
    for word in ("42 %", "loss 4.312", "0:11", f"{log.state.incumbent.score_to_beat:.4f}", "σ", "left", "kept", " 9 "):
        assert word in text
    assert shown(log, now=log.state.now + 1).count("starting") == 1


def test_the_live_view_says_who_does_what_and_what_it_costs():
    log, to, now = synthetic.log(3), console(), [1.9e9]
    terminal = Terminal(log, to, lambda: now[0])
    text = "0" * 64
    opened = {"model": "m", "system": text, "opening": text}
    reply = {"request": "r", "message": {"content": [], "stop_reason": "end_turn"}, "tokens": ev.Tokens()}
    for task, agent, number in (("propose 4", "researcher", 4), ("implement 3", "mechanic", 3)):
        for event in (
            ev.ConversationOpened(experiment=number, agent=agent, **opened),
            ev.ModelReplied(experiment=number, agent=agent, usd=0.03, **reply),
        ):
            log.fold(ev.Record(seq=len(log.records), at=now[0], task_id=task, event=event))
            terminal.update()
    now[0] += 48
    to.print(terminal.render())
    assert "researcher thinks about #4 0:48, $0.03" in to.file.getvalue()
    log.finished.add("propose 4")

    later = console()
    later.print(terminal.render())
    assert "researcher" not in later.file.getvalue()
    assert "mechanic edits #3 0:48" in later.file.getvalue()


def test_a_large_window_is_used_and_a_small_one_is_not_overrun():
    log = synthetic.log(60, talk=True)
    for width, height in ((200, 50), (80, 24), (60, 20)):
        to = Console(file=io.StringIO(), width=width, height=height, color_system=None)
        to.print(Terminal(log, to, lambda: log.state.now).render())
        lines = to.file.getvalue().splitlines()
        assert len(lines) <= max(height, 20)
        assert all(len(line) <= width for line in lines)
        assert len(lines) > 0.8 * height
        assert "Ctrl-C" in lines[-1]


@pytest.mark.parametrize("stage", range(1, 90, 6))
def test_there_is_a_view_at_every_stage(session, stage):
    assert "test" in shown(played(session, stage))


def test_titles_are_text_not_markup():
    log = synthetic.log(3)
    proposal = synthetic.proposal(synthetic.random.Random(1), title="[red]x[/red] [link=file:///]y")
    n = len(log.records)
    at = log.state.now
    log.fold(ev.Record(seq=n, at=at, task_id="", event=ev.Proposed(experiment=4, proposal=proposal)))
    log.fold(ev.Record(seq=n + 1, at=at, task_id="", event=ev.Refused(experiment=4, reason="[b]again")))
    assert "[red]x[/red]" in shown(log)


def test_the_live_view_comes_and_goes(session):
    log, to = played(session), console(terminal=True)
    with watching(log, to, lambda: log.state.now) as terminal:
        terminal.update()
        terminal.say("Stopping: [what] is training is finished first.")
    text = to.file.getvalue()
    assert len(re.findall(r"\d\d:\d\d Stopping: \[what] is training", text)) >= 2, "in the view and at its end"
    assert "nothing is training" in text


def test_every_kind_of_failure_is_one_line():
    known = {"experiment": 1, "run": 1}
    for event in (
        ev.Crashed(**known, failure="hang", message="a\n" * 500, metrics=ev.RunMetrics(), curve=(), log="x"),
        ev.Aborted(**known, reason="b\n" * 500),
        ev.Failed(experiment=1, reason="c\n" * 500),
        ev.Refused(experiment=1, reason="d\n\x1b[2J" * 500),
    ):
        text = summarize(event)
        assert text.isprintable()
        assert 0 < len(text) <= 100


def test_a_resumed_session_starts_with_its_resumption(session):
    log = Log()
    log.fold(ev.Record(seq=0, at=0.0, task_id="", event=started()))
    log.fold(ev.Record(seq=1, at=9.0, task_id="", event=ev.GuidanceChanged(text="be bold")))

    log.fold(ev.Record(seq=2, at=19.0, task_id="", event=ev.Resumed()))
    to = console()
    with watching(log, to, lambda: 20.0):
        pass
    assert [line.split()[4] for line in to.file.getvalue().splitlines()] == ["resumed"]
