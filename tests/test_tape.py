"""Replay, fork, compare and report as a user types them, on sessions made by the real command."""

import csv
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from orchestrator.core.events import Kept, Promoted
from orchestrator.core.state import fold
from orchestrator.session.store import Session
from tests.workplace import ROOT, environment, git, orchestrate, workplace

NIGHT = ("--offline", "--hours", "1", "--max-experiments", "5", "--session", "night", "--seed", "3")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = workplace(tmp_path_factory.mktemp("tape") / "place")
    done = orchestrate(place, *NIGHT)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def test_a_verification_says_that_everything_was_as_recorded(place):
    done = orchestrate(place, "replay", "night", "--verify")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "all as recorded" in done.stdout


@pytest.mark.parametrize(
    ("words", "answer"),
    [(["replay"], "ended"), (["replay", "--verify"], "all as recorded"), (["report"], "report.html")],
)
def test_a_file_from_somebody_else_needs_nothing_else(place, tmp_path, words, answer):
    """No git, no data, no torch: only the file."""
    shutil.copy(place / "sessions/night/session.db", tmp_path / "mailed.db")
    code = (
        f"import sys; sys.modules['torch'] = None; sys.argv = ['orchestrator', *{words!r}, 'mailed.db'];"
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
    assert answer in done.stdout


def test_a_session_of_an_older_version_is_walked_to_its_end_and_verified_past_its_first_divergence(tmp_path):
    golden = str(ROOT / "tests/golden/agents-1.db")
    walked = orchestrate(tmp_path, "replay", golden)
    verified = orchestrate(tmp_path, "replay", golden, "--verify")

    events = len(Session(Path(golden), time.time).records)
    assert walked.returncode == 0
    assert walked.stdout.splitlines()[-1] == f"{events} events"
    assert verified.returncode == 1
    assert verified.stdout.startswith("event 2 differs\n")
    assert "cannot follow the recording beyond event" in verified.stdout  # the keep rule takes other steps since
    assert verified.stdout.count(" differs\n") > 1


def test_looking_and_verifying_are_two_things(place):
    for words in (["--prompts", "socratic"], ["--verify", "--json"], ["--verify", "--show", "3"]):
        done = orchestrate(place, "replay", "night", *words)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1


def test_json_has_a_line_for_every_event(place):
    done = orchestrate(place, "replay", "night", "--json")

    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["seq"] for line in lines] == list(range(len(lines)))
    assert lines[-1]["event"]["kind"] == "ended"


def test_until_stops_early_and_show_prints_one_event(place):
    assert "12 events" in orchestrate(place, "replay", "night", "--until", "12").stdout

    shown = orchestrate(place, "replay", "night", "--show", "1", "--full").stdout
    assert "fitted" in shown
    assert "MATRIX_LR" in shown, "the source is written out"
    assert orchestrate(place, "replay", "night", "--show", "9999").returncode == 2


def test_a_fork_shares_the_past_and_goes_its_own_way(place):
    words = ("--session", "other", "--hours", "0.002", "--max-experiments", "2")
    done = orchestrate(place, "fork", "night", "--at", "25", *words)

    assert done.returncode == 0, done.stdout + done.stderr
    old = orchestrate(place, "replay", "night", "--json", "--until", "25").stdout
    new = orchestrate(place, "replay", "other", "--json").stdout
    assert new.startswith(old)
    forked = json.loads(new.splitlines()[25])["event"]
    begun = {json.loads(line)["event"].get("experiment", 0) for line in old.splitlines()[:25]} - {0}
    assert forked["parent"] == "night@25"
    assert forked["limits"]["experiments"] == len(begun) + 2, "beside those that are closed or under way"
    assert git(place, "rev-parse", "research/other")
    assert orchestrate(place, "replay", "other", "--verify").returncode == 0
    compared = orchestrate(place, "compare", "night", "other").stdout
    shared = sum('"kind":"reflected"' in line for line in old.splitlines()[:25])
    assert re.search(rf"shared with its parent +0 +{shared} *\n", compared), compared


def test_a_night_that_is_over_can_be_made_longer(place):
    """The command is the one that the night itself names at its end."""
    end = orchestrate(place, "resume", "night").stdout.split(" -m orchestrator ")[1].split()
    assert end[:2] == ["fork", "night"]

    done = orchestrate(place, *end, "--session", "longer")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 experiments are done" in done.stdout


@pytest.mark.parametrize("lost", ["its keep", "the record of its promotion"])
def test_a_session_that_is_older_than_its_branch_is_not_gone_on_with(place, tmp_path, lost):
    """A file from a backup. The record of a promotion is lost to a kill, too, and the keep is then made out again."""
    place = shutil.copytree(place, tmp_path / "place", symlinks=True)
    path = place / "sessions/night/session.db"
    with closing(Session(path, read_only=True)) as session:
        kept, promoted = (
            max(record.seq for record in session.records if isinstance(record.event, kind)) for kind in (Kept, Promoted)
        )
        best, before = session.state.parent.commit, fold(session.records[:kept]).parent.commit
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("delete from events where seq >= ?", (kept if lost == "its keep" else promoted,))

    gone_on = orchestrate(place, "resume", "night")
    if lost == "its keep":
        assert gone_on.returncode == 2
        line = gone_on.stderr.splitlines()[-1]
        subprocess.run(line.split("`")[1], shell=True, check=True, cwd=place)
        gone_on = orchestrate(place, "resume", "night")
        assert "moved by another program" in gone_on.stdout
    assert gone_on.returncode == 0, gone_on.stdout + gone_on.stderr
    with closing(Session(path, read_only=True)) as session:
        promotions = [record.event.commit for record in session.records if isinstance(record.event, Promoted)]
        assert promotions[-1] == git(place, "rev-parse", "refs/nightshift/night/kept")
    assert (best in promotions) == (lost != "its keep")
    assert git(place, "merge-base", before, promotions[-1]) == before


def test_a_walk_step_by_step_needs_a_terminal(place):
    done = orchestrate(place, "replay", "night", "--step")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_sessions_are_listed_and_compared(place):
    listed = orchestrate(place, "sessions").stdout
    assert "night" in listed

    done = orchestrate(place, "compare", "night", "night")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"(?m)^ +night *$", done.stdout), "named twice, it is one night"
    assert all(figure in done.stdout for figure in ("baseline", "gain", "tokens per experiment"))
    assert "…" not in done.stdout
    assert "plotly" in (place / "sessions/compare.html").read_text().lower()


def test_a_report_is_rebuilt_from_the_session_file_alone(place):
    done = orchestrate(place, "report", "night", "--out", "out", "--to", "csv")

    assert done.returncode == 0, done.stdout + done.stderr
    assert pq.read_table(place / "out/ledger.parquet").num_rows == 6
    assert json.loads((place / "out/log.jsonl").read_text().splitlines()[0])["event"]["kind"] == "started"
    for name in ("results.tsv", "log.jsonl", "ledger.parquet"):
        assert (place / "out" / name).read_bytes() == (place / "sessions/night" / name).read_bytes()
    musings = sorted(path.name for path in (place / "musings/night").iterdir())
    assert sorted(path.name for path in (place / "out/musings").iterdir()) == musings
    with (place / "out/ledger.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["experiment"] for row in rows] == [str(number) for number in range(6)]
    assert all(float(row["val_bpb"]) > 0 for row in rows if row["status"] == "kept")


def test_a_tracker_gets_every_run(place):
    done = orchestrate(
        place,
        "report",
        "night",
        "--out",
        "out",
        "--to",
        "trackio",
        TRACKIO_DIR=str(place / "trackio"),
        TRACKIO_SERVER_URL="http://127.0.0.1:9/?write_token=x",  # as one has who logs other work there
        HF_HUB_OFFLINE="1",
    )

    assert done.returncode == 0, done.stdout + done.stderr
    rows = pq.read_table(place / "out/ledger.parquet").to_pylist()
    with closing(sqlite3.connect(place / "trackio/night.db")) as database:
        found = [
            (name, json.loads(values)) for name, values in database.execute("select run_name, metrics from metrics")
        ]
    scores = {int(name[:4]): values["val_bpb"] for name, values in found if "val_bpb" in values}
    assert scores == {row["experiment"]: row["val_bpb"] for row in rows if row["val_bpb"] is not None}
    assert {name[:4] for name, values in found if "training loss" in values} >= {"0000", "0001"}


def test_a_report_of_a_session_stands_beside_it(place):
    (place / "sessions/night/report.html").unlink()
    shutil.rmtree(place / "musings/night")

    done = orchestrate(place, "report", "night")

    assert done.stdout.strip() == "sessions/night/report.html"
    assert (place / "sessions/night/report.html").exists()
    assert (place / "musings/night/index.md").exists()


def test_a_fork_needs_the_data_and_the_commits_that_it_goes_on_from(place, tmp_path):
    elsewhere = workplace(tmp_path / "elsewhere")
    shutil.copytree(place / "data", tmp_path / "other")
    manifest = tmp_path / "other/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"corpus": "another"}))
    file = str(shutil.copy(place / "sessions/night/session.db", tmp_path / "mailed.db"))  # without its places

    for folder, words, answer in [
        (place, ["--data", str(tmp_path / "other"), "fork", "night", "--at", "25"], "other data"),
        (elsewhere, ["fork", file, "--at", "25"], "train.py"),
        (place, ["fork", "night", "--at", "9999"], "events"),
    ]:
        done = orchestrate(folder, *words, "--session", "refused")
        assert done.returncode == 2, done.stdout + done.stderr
        assert answer in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not list(folder.glob("sessions/*refused*"))
        assert "refused" not in git(folder, "branch", "--list", "--all")
