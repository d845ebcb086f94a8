"""Replay, fork, compare and export as a user types them, on sessions made by the real command."""

import json
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from tests.workplace import environment, git, orchestrate, workplace

NIGHT = ("--offline", "--hours", "1", "--max-experiments", "5", "--session", "night", "--seed", "3")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = workplace(tmp_path_factory.mktemp("tape") / "place")
    done = orchestrate(place, *NIGHT)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def test_a_replay_says_that_everything_was_as_recorded(place):
    done = orchestrate(place, "replay", "night")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "all as recorded" in done.stdout


def test_a_file_from_somebody_else_replays_with_nothing_else_there(place, tmp_path):
    """No git, no data, no torch, no Optuna data: only the file."""
    shutil.copy(place / "sessions/night/session.db", tmp_path / "mailed.db")
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['orchestrator', 'replay', 'mailed.db'];"
        "from orchestrator.cli.main import main; main()"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(PATH="/nonexistent"),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "all as recorded" in done.stdout


def test_json_has_a_line_for_every_event(place):
    done = orchestrate(place, "replay", "night", "--json")

    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["seq"] for line in lines] == list(range(len(lines)))
    assert lines[-1]["event"]["kind"] == "ended"


def test_until_stops_early_and_show_prints_one_event(place):
    assert "12 events" in orchestrate(place, "replay", "night", "--until", "12").stdout

    shown = orchestrate(place, "replay", "night", "--show", "1").stdout
    assert "fitted" in shown
    assert "MATRIX_LR" in shown, "the source is written out"
    assert orchestrate(place, "replay", "night", "--show", "9999").returncode == 2


def test_a_fork_shares_the_past_and_goes_its_own_way(place):
    done = orchestrate(place, "fork", "night", "--at", "25", "--session", "other", "--hours", "0.002")

    assert done.returncode == 0, done.stdout + done.stderr
    old = orchestrate(place, "replay", "night", "--json", "--until", "25").stdout
    new = orchestrate(place, "replay", "other", "--json").stdout
    assert new.startswith(old)
    assert json.loads(new.splitlines()[25])["event"]["parent"] == "night@25"
    assert git(place, "rev-parse", "research/other")
    assert orchestrate(place, "replay", "other").returncode == 0


def test_a_night_that_is_over_can_be_made_longer(place):
    """The command is the one that the night itself names at its end."""
    end = orchestrate(place, "resume", "night").stdout.split("python -m orchestrator ")[1].split()
    assert end[:2] == ["fork", "night"]

    done = orchestrate(place, *end, "--session", "longer")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 experiments are done" in done.stdout


def test_walking_needs_a_terminal(place):
    done = orchestrate(place, "replay", "night", "--step")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_sessions_are_listed_and_compared(place):
    listed = orchestrate(place, "sessions").stdout
    assert "night" in listed

    done = orchestrate(place, "compare", "night", "night")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "night    night" in done.stdout
    assert all(figure in done.stdout for figure in ("baseline", "gain", "tokens/experiment"))
    assert "…" not in done.stdout
    assert "plotly" in (place / "sessions/compare.html").read_text().lower()


def test_exports_can_be_read_by_others(place):
    for form in ("jsonl", "tsv", "parquet"):
        assert orchestrate(place, "export", "night", "--format", form, "--out", f"out.{form}").returncode == 0
    assert (place / "out.tsv").read_text().startswith("commit\tval_bpb")
    assert pq.read_table(place / "out.parquet").num_rows == 6
    assert json.loads((place / "out.jsonl").read_text().splitlines()[0])["event"]["kind"] == "started"
