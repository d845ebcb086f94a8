"""Views cannot end or delay a night, whatever lies in their way; what failed is tried again."""

import asyncio
import io
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.core import events as ev
from orchestrator.session.store import Session
from orchestrator.views.musings import search, write_musings
from orchestrator.views.observers import TICK, Observers
from tests.fakes import started
from tests.simulated import Fragile, night
from tests.virtual import run_virtually, virtual_clock


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return night(tmp_path_factory.mktemp("night") / "s" / "session.db", experiments=6, lab=Fragile, repairs=0)


def copy_texts(recorded, session) -> None:
    for (digest,) in recorded.db.execute("select digest from texts"):
        session.put(recorded.get(digest))


def relive(recorded, folder: Path, between=lambda _record: None) -> tuple[Session, str]:
    """Append the record's events to a new session under observers' eyes; return it and what was printed."""
    session = Session(folder / "s" / "session.db", time.time, create=True)
    copy_texts(recorded, session)
    session.write("", recorded.records[0].event)
    console = Console(file=io.StringIO(), width=200)
    observers = Observers(session, folder / "musings", console)

    async def live():
        for record in recorded.records[1:]:
            session.write(record.task_id, record.event)
            between(record)
            await asyncio.sleep(0)

    with observers:
        asyncio.run(live())
    observers.print_summary("git log research/test")
    return session, console.file.getvalue()


def test_a_page_that_rests_is_written_later_without_another_event(recorded, tmp_path):
    session = Session(tmp_path / "s" / "session.db", virtual_clock, create=True)
    copy_texts(recorded, session)
    session.write("", recorded.records[0].event)
    observers = Observers(session, tmp_path / "musings", Console(file=io.StringIO()))

    async def live():
        for record in recorded.records[1:30]:
            session.write(record.task_id, record.event)
            await asyncio.sleep(1.0)
        shown = observers.shown[tmp_path / "s" / "report.html"]
        await asyncio.sleep(observers.pages.rested - session.clock() + 1.0)
        return shown

    shown = run_virtually(live())

    now = replace(session.state, now=0.0, usage={})
    assert observers.shown[tmp_path / "s" / "report.html"] == (now, True) != shown
    assert len((tmp_path / "s" / "log.jsonl").read_text().splitlines()) == 30


def test_the_live_view_is_drawn_again_without_events(recorded, tmp_path):
    session, shown = Session(tmp_path / "s" / "session.db", virtual_clock, create=True), io.StringIO()
    session.write("", recorded.records[0].event)
    console = Console(file=shown, width=80, height=24, force_terminal=True, _environ={"TERM": "xterm"})

    async def live():
        session.write("", ev.GuidanceChanged(text="try muon"))
        await asyncio.sleep(600)
        return shown.getvalue().count("left")

    with Observers(session, tmp_path / "musings", console):
        drawn = run_virtually(live())

    assert 3 < drawn <= 600 / TICK + 2


class Interrupted(list):
    """Records of which no view gets to see more, since Ctrl-C comes first."""

    def __getitem__(self, _):
        raise KeyboardInterrupt

    __iter__ = __reversed__ = __getitem__


def test_ctrl_c_while_the_last_files_are_written_leaves_the_terminal_as_it_was(recorded, tmp_path):
    session, shown = Session(tmp_path / "s" / "session.db", virtual_clock, create=True), io.StringIO()
    session.write("", recorded.records[0].event)
    console = Console(file=shown, width=80, height=24, force_terminal=True, _environ={"TERM": "xterm"})
    with pytest.raises(KeyboardInterrupt), Observers(session, tmp_path / "musings", console):
        assert "\x1b[?1049h" in shown.getvalue(), "the other screen"
        session.records = Interrupted(session.records)
    assert "\x1b[?1049l" in shown.getvalue()


def test_the_report_of_a_night_that_is_stopped_at_once_tells_how_to_go_on(recorded, tmp_path):
    session = Session(tmp_path / "s" / "session.db", virtual_clock, create=True)
    copy_texts(recorded, session)
    session.write("", recorded.records[0].event)

    async def live():
        for record in recorded.records[1:30]:
            session.write(record.task_id, record.event)
        await asyncio.sleep(60)
        assert "The night is running" in (tmp_path / "s" / "report.html").read_text()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Observers(session, tmp_path / "musings", Console(file=io.StringIO())):
        run_virtually(live())

    page = (tmp_path / "s" / "report.html").read_text()
    assert "The night is running" not in page
    assert "resume test</pre>" in page


def test_a_night_reads_those_before_it_at_its_ends_only(recorded, tmp_path):
    earlier = tmp_path / "musings" / "earlier"
    write_musings(recorded, earlier)
    session = Session(tmp_path / "s" / "session.db", virtual_clock, create=True)
    copy_texts(recorded, session)
    session.write("", recorded.records[0].event)

    async def live():
        for record in recorded.records[1:]:
            session.write(record.task_id, record.event)
            await asyncio.sleep(600.0)
        assert (tmp_path / "musings" / "test" / "index.md").exists()
        return (tmp_path / "musings" / "index.md").read_text()

    (tmp_path / "musings" / "index.md").write_text("# Musings\nbefore")
    with Observers(session, tmp_path / "musings", Console(file=io.StringIO())):
        assert run_virtually(live()) == "# Musings\nbefore"

    assert "earlier" in (tmp_path / "musings" / "index.md").read_text()


def put_note(folder: Path, kind: str) -> None:
    """Put something of the user's own where an index would lie."""
    path = folder / "musings" / "notes" / "index.md"
    path.parent.mkdir(parents=True)
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "broken symlink":
            path.symlink_to("nowhere")
        case "symlink to itself":
            path.symlink_to(path)
        case "forbidden":
            path.write_text("---\nsession: x\n---\n")
            path.chmod(0)
        case "not UTF-8":
            path.write_bytes(b"---\nsession: \xff\xfe\n---\n")
        case text:
            path.write_text(text)


NOTES = (
    *("---\nstarted: 2024-13-45\n---\nmine\n", "---\n- a\n- list\n---\n", "---\n: [\n---\n"),
    "---\nsession: [1, {a: b}]\n---\n",
    *("not UTF-8", "directory", "fifo", "broken symlink", "symlink to itself", "forbidden"),
)  # fmt: skip


@pytest.mark.parametrize("kind", NOTES)
def test_a_note_of_the_users_own_ends_no_night(recorded, tmp_path, kind):
    put_note(tmp_path, kind)

    session, printed = relive(recorded, tmp_path)

    assert session.state.ended
    assert " failed: " not in printed
    assert "The night is over" in printed
    assert "[test](test/index.md)" in (tmp_path / "musings/index.md").read_text()


@pytest.mark.parametrize("kind", ["directory", "fifo", "broken symlink"])
def test_a_search_passes_by_what_cannot_be_read(recorded, tmp_path, kind):
    put_note(tmp_path, kind)
    (tmp_path / "musings/notes/index.md").rename(tmp_path / "musings/notes/001-mine.md")
    (tmp_path / "musings/notes/002-odd.md").write_text("---\nexperiment: [x]\ndelta: much\n---\n# muon\n")

    assert [hit.path.name for hit in search(tmp_path / "musings", "muon")] == ["002-odd.md"]


def list_targets(folder: Path) -> list[Path]:
    files = ("log.jsonl", "results.tsv", "ledger.parquet", "report.html")
    return [
        *(folder / "s" / name for name in files),
        *(folder / "musings" / name for name in ("index.md", "test/index.md")),
    ]


def test_a_directory_in_the_way_is_said_once_and_the_rest_is_written(recorded, tmp_path):
    for path in list_targets(tmp_path):
        if path.parent.name != "s":
            path.mkdir(parents=True)

    session, printed = relive(recorded, tmp_path)

    assert session.state.ended
    assert printed.count("musings/test/index.md cannot be written") == 1
    assert printed.count("musings/index.md cannot be written") == 1
    assert (tmp_path / "s/report.html").stat().st_size > 100_000
    assert len(list((tmp_path / "musings/test").glob("0*.md"))) == 7


def test_what_failed_is_tried_again(recorded, tmp_path):
    """The folder of musings is a file until the third experiment is proposed."""
    (tmp_path / "musings").write_text("in the way")

    def clear(record):
        if isinstance(record.event, ev.Proposed) and record.event.experiment == 3:
            (tmp_path / "musings").unlink()

    _, printed = relive(recorded, tmp_path, clear)

    assert "cannot be written" in printed
    assert len(list((tmp_path / "musings/test").glob("0*.md"))) == 7
    assert (tmp_path / "musings/index.md").exists()


def test_a_rationale_stands_before_the_next_step(recorded, tmp_path):
    def look(record):
        if isinstance(record.event, ev.Proposed):
            (path,) = (tmp_path / "musings/test").glob(f"{record.event.experiment:03d}-*.md")
            assert recorded.state.results[0].proposal.title not in path.read_text().splitlines()[0]
            assert record.event.proposal.rationale in path.read_text()

    relive(recorded, tmp_path, look)


async def test_files_follow_the_log_while_the_night_goes_on(recorded, tmp_path):
    session = Session(tmp_path / "s" / "session.db", time.time, create=True)
    copy_texts(recorded, session)
    session.write("", recorded.records[0].event)
    observers = Observers(session, tmp_path / "musings", Console(file=io.StringIO()))
    for record in recorded.records[1:30]:
        session.write(record.task_id, record.event)
    assert not (tmp_path / "s/report.html").exists(), "nothing large is written from the event loop"

    await asyncio.wait_for(asyncio.gather(observers.logs.task, observers.pages.task), 100)

    assert (tmp_path / "s/report.html").exists()
    assert len((tmp_path / "s/log.jsonl").read_text().splitlines()) == 30
    session.write("", *(record.event for record in recorded.records[30:40]))
    await asyncio.wait_for(observers.logs.task, 100)
    assert len((tmp_path / "s/log.jsonl").read_text().splitlines()) == 40


def test_any_exception_of_a_view_is_said_and_ends_nothing(recorded, tmp_path):
    """A text that the store lacks makes musings and report raise SessionError."""
    session = Session(tmp_path / "s" / "session.db", time.time, create=True)
    session.write("", recorded.records[0].event)
    console = Console(file=io.StringIO(), width=200)

    async def live():
        for record in recorded.records[1:]:
            session.write(record.task_id, record.event)

    with Observers(session, tmp_path / "musings", console):
        asyncio.run(live())

    assert session.state.ended
    assert "SessionError" in console.file.getvalue()
    assert (tmp_path / "s/results.tsv").exists()


def test_a_baseline_that_fails_is_said_first(tmp_path):
    session = Session(tmp_path / "s" / "session.db", time.time, create=True)
    source = session.put("x = 1\n")
    run = {"experiment": 0, "run": 1}
    session.write("", started(), ev.BaselineCommitted(commit="f" * 40, source=source, fingerprint="f" * 16))
    session.write("", ev.Granted(**run, slot=0, seed=1))
    crash = {"failure": "import", "message": "no torch", "metrics": ev.RunMetrics(), "curve": (), "log": source}
    session.write("", ev.Crashed(**run, **crash), ev.Failed(experiment=0, reason="import: no\ntorch", failure="import"))
    session.write("", ev.ReflectionSkipped(experiment=0, reason="none"), ev.Ended(reason="the baseline does not train"))
    console = Console(file=io.StringIO(), width=200)

    with Observers(session, tmp_path / "musings", console) as observers:
        console.file.truncate(0)
    observers.print_summary("git log research/test")

    lines = console.file.getvalue().strip("\0\n").splitlines()
    assert lines[0] == "The baseline does not train: import: no torch."
    assert "The baseline does not train" in (tmp_path / "s/report.html").read_text()
