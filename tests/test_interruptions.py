"""Signals, terminals that hang up, and two commands at once, with real processes: a night ends recorded or goes on."""

import os
import signal
import sqlite3
import subprocess
import time

import pytest

from orchestrator.core.events import Ended, Resumed
from orchestrator.session.store import Session
from tests.test_cli import opened, runs_of, wait_until
from tests.workplace import BEST, TINY, begun, command, environment, git, orchestrate, status, workplace

NIGHT = ("--offline", "--hours", "1", "--session", "night", "--max-experiments", "1", "--seed", "3")


@pytest.fixture
def place(tmp_path):
    return workplace(tmp_path / "place", BEST)


def wait_for_line(life: "subprocess.Popen[str]", word: str) -> str:
    """Return what was printed up to a line with this word, which must come."""
    printed = ""
    while word not in printed:
        line = life.stdout.readline()
        assert line, printed
        printed += line
    return printed


def finish(life: "subprocess.Popen[str]") -> str:
    printed, _ = life.communicate(timeout=100)
    assert "Traceback" not in printed
    assert "KeyboardInterrupt" not in printed
    return printed


@pytest.mark.parametrize(
    ("seconds", "sent"),
    [
        (0.4, signal.SIGINT),
        (0.8, signal.SIGTERM),
        (1.5, signal.SIGINT),
        pytest.param(1.5, signal.SIGTERM, marks=pytest.mark.soak),
    ],
)
def test_a_command_that_is_interrupted_early_says_nothing_odd(place, sent, seconds):
    life = begun(place, *NIGHT)
    time.sleep(seconds)
    for _ in range(3):
        life.send_signal(sent)
        time.sleep(0.02)
    finish(life)
    assert life.returncode in {0, 130, -sent, 4}
    wait_until(lambda: not runs_of(place))
    if (place / "sessions/night/session.db").exists():
        done = orchestrate(place, "resume", "night")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("word", ["granted", "scored"])
def test_sigterm_stops_at_once_and_the_night_goes_on_later(place, word):
    life = begun(place, *NIGHT)
    wait_for_line(life, word)
    for _ in range(3):
        life.send_signal(signal.SIGTERM)
    assert "python -m orchestrator resume night" in finish(life)
    assert life.returncode == 130
    wait_until(lambda: not runs_of(place))

    done = orchestrate(place, "resume", "night")
    assert done.returncode == 0, done.stdout + done.stderr
    assert opened(place).state.ended == "1 experiment is done"


def test_ctrl_c_during_the_farewell_is_calm_and_the_end_is_recorded(place):
    life = begun(place, *NIGHT)
    wait_for_line(life, "ended")
    for _ in range(4):
        life.send_signal(signal.SIGINT)
        time.sleep(0.01)
    finish(life)
    assert life.returncode in {0, 130, -signal.SIGINT}
    assert isinstance(opened(place).records[-1].event, Ended)


def test_only_one_of_two_resumes_goes_on(place):
    life = begun(place, *NIGHT)
    wait_for_line(life, "granted")
    life.kill()
    life.communicate()
    assert "died or was stopped; last sign of life" in orchestrate(place, "sessions").stdout

    both = [begun(place, "resume", "night") for _ in range(2)]
    printed = [process.communicate(timeout=150)[0] for process in both]

    assert sorted(process.returncode for process in both) == [0, 2], printed
    refused = printed[[process.returncode for process in both].index(2)]
    assert "is running already, as process" in refused
    assert len(refused.splitlines()) == 1
    assert sum(isinstance(record.event, Resumed) for record in opened(place).records) == 1


def test_a_night_goes_on_when_its_terminal_goes_away(place):
    """The kernel sends SIGHUP, and every write to the terminal fails from then on."""
    master, terminal = os.openpty()
    words = ["setsid", "--ctty", *command(*NIGHT)]  # the terminal is the one that controls it
    life = subprocess.Popen(
        words, cwd=place, env=environment(TERM="xterm"), stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    wait_until(lambda: runs_of(place))
    assert f"running as process {life.pid} since" in orchestrate(place, "sessions").stdout
    os.close(master)

    assert life.wait(100) == 0
    assert opened(place).state.ended
    assert "  ended " in orchestrate(place, "sessions").stdout


def test_two_nights_of_one_name_in_one_repository(place, tmp_path):
    """Two worktrees, each with its own sessions: the second is refused, however early it begins."""
    other = tmp_path / "other"
    git(place, "worktree", "add", "-q", "--detach", str(other))
    (other / "data").symlink_to(place / "data")
    lives = [begun(folder, *NIGHT) for folder in (place, other)]
    printed = [life.communicate(timeout=150)[0] for life in lives]

    assert sorted(life.returncode for life in lives) == [0, 2], printed
    refused = printed[[life.returncode for life in lives].index(2)]
    assert "night" in refused
    assert len(refused.splitlines()) == 1
    assert sum((folder / "sessions/night").exists() for folder in (place, other)) == 1


def test_a_night_waits_for_another_writer(place):
    life = begun(place, *NIGHT)
    wait_for_line(life, "granted")
    with sqlite3.connect(place / "sessions/night/session.db", isolation_level=None) as other:
        other.execute("begin immediate")
        time.sleep(7)
        other.execute("rollback")
    other.close()
    finish(life)
    assert life.returncode == 0
    assert opened(place).state.ended == "1 experiment is done"


def test_a_session_that_is_written_by_another_program_ends_in_one_line(place):
    life = begun(place, *NIGHT)
    wait_for_line(life, "scored")
    with sqlite3.connect(place / "sessions/night/session.db", timeout=30) as other:
        other.execute("insert into events select seq + 1, at, lane, kind, body from events order by seq desc limit 1")
    other.close()
    printed = finish(life)
    assert life.returncode == 2
    assert "cannot be written" in printed


def test_a_repository_that_is_away_and_a_branch_that_is_looked_at(place):
    (place / "train.py").write_text(TINY)
    git(place, "commit", "-qam", "much to gain")
    life = begun(place, *NIGHT[:-4], "--max-experiments", "2", "--seed", "3")
    wait_for_line(life, "promoted")
    git(place, "switch", "-q", "research/night")
    (place / ".git").rename(place / ".git-away")
    time.sleep(2)
    (place / ".git-away").rename(place / ".git")
    printed = finish(life)

    assert life.returncode == 0, printed
    assert opened(place).state.kept, "the tiny train.py has easy gains"
    assert status(place) == ""
    assert "is checked out" in printed
    paste = printed.strip().splitlines()[-1].partition(" as it is: ")[2]
    subprocess.run(paste, shell=True, check=True, cwd="/", stdout=subprocess.DEVNULL)
    assert git(place, "rev-parse", "HEAD") == opened(place).state.parent.commit


def test_commands_that_are_printed_can_be_pasted(place, tmp_path):
    elsewhere = tmp_path / "my nights"
    options = [
        "--sessions",
        str(elsewhere / "s"),
        "--musings",
        str(elsewhere / "it's m"),
        "--data",
        str(place / "data"),
    ]
    done = orchestrate(place, *options, *NIGHT)
    assert done.returncode == 0, done.stderr
    line = done.stdout.split("  go on     ")[1].splitlines()[0]
    assert line.startswith("python -m orchestrator --sessions ")
    words = line.replace("--hours 1", "--hours 0.001") + " --session longer"
    assert "fork night" in words
    pasted = subprocess.run(
        words.replace("python", command()[0], 1),
        shell=True,
        cwd=place,
        env=environment(),
        check=False,
        capture_output=True,
        text=True,
    )
    assert pasted.returncode == 0, pasted.stdout + pasted.stderr
    assert Session(elsewhere / "s/longer/session.db").state.ended
