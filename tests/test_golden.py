"""Old sessions load, fold and replay for ever. Each file in tests/golden was written by the version in its name.

A golden file is never regenerated. Where a threshold or a prompt was changed on purpose, the first event that differs
is entered in DIFFERS, with the reason; loading, folding and walking to the end must still hold.
"""

import asyncio
import json
import shutil
import time
from pathlib import Path

import pytest

from orchestrator.cli.wiring import build_crew
from orchestrator.loop import run
from orchestrator.session.replay import Tape, replay
from orchestrator.session.store import Session
from orchestrator.views.musings import write_musings
from orchestrator.views.report import write_files

GOLDEN = Path(__file__).parent / "golden"
SUMMARIES = json.loads((GOLDEN / "summaries.json").read_text())
DIFFERS: dict[str, int] = {
    **dict.fromkeys(("agents-1", "offline-1", "offline-3"), 2),  # run r of every experiment has the same seed
    **dict.fromkeys(("agents-2", "offline-2"), 3),  # the same
    "offline-4": 5,  # a proposal now says why it goes down first, and states each figure once, as post-mortems do
}
STOPS: dict[str, int] = {
    "agents-1": 10,  # constants were set by the mechanic's conversation, and are now set by code
    "agents-2": 11,  # the same
    "offline-1": 8,  # the baseline ran a third time, which is not needed where σ is known
    "offline-2": 9,  # the same
    "offline-3": 8,  # the same
}
"""Events after which the loop of today takes other steps, so that a verification cannot go on."""


@pytest.fixture(params=sorted(SUMMARIES))
def session(request, tmp_path):
    (tmp_path / "s").mkdir()
    path = Path(shutil.copy(GOLDEN / f"{request.param}.db", tmp_path / "s" / "session.db"))
    return request.param, Session(path, time.time)


def test_it_loads_and_folds_to_what_it_was(session):
    name, session = session
    summary = SUMMARIES[name]

    assert len(session.records) == summary["events"]
    assert session.state.ended == summary["ended"]
    assert [result.experiment for result in session.state.kept] == summary["kept"]
    assert session.state.incumbent.score_to_beat == pytest.approx(summary["mark"], abs=1e-12)


def test_it_replays(session, tmp_path):
    name, session = session
    tape = Tape(session)

    async def live(tape):
        await run(tape, build_crew(tape, tmp_path), tape)

    differing = [divergence.seq for divergence in asyncio.run(replay(tape, live))]

    assert differing[:1] == ([DIFFERS[name]] if name in DIFFERS else [])
    assert tape.records == session.records[: STOPS.get(name)]


def test_everything_beside_it_can_be_rebuilt(session, tmp_path):
    _, session = session

    write_files(session, tmp_path / "files")
    write_musings(session, tmp_path / "musings" / "night")

    assert (tmp_path / "files/report.html").stat().st_size > 100_000
    assert (tmp_path / "musings/night/index.md").exists()
