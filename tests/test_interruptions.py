"""Signals, terminals that hang up, and two commands at once, with real processes: a night ends recorded or goes on."""

import contextlib
import itertools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.cli.options import ExitCode
from orchestrator.core.events import BaselineCommitted, Committed, Crashed, Ended, Promoted, Resumed, Scored
from orchestrator.session.inbox import Control, send_control
from tests.test_cli import opened, runs_of, wait_for_line, wait_until
from tests.workplace import (
    BEST,
    REPORTED,
    REPORTED_BEST,
    TINY,
    begun,
    command,
    environment,
    git,
    orchestrate,
    save,
    status,
    workplace,
)

NIGHT = ("--offline", "--hours", "1", "--session", "night", "--max-experiments", "1", "--seed", "3")


@pytest.fixture
def place(tmp_path, request):
    """What trains costs little where a test is no hunt: what is interrupted is the command."""
    return workplace(tmp_path / "place", BEST if request.node.get_closest_marker("soak") else REPORTED_BEST)


def finish(life: "subprocess.Popen[str]") -> str:
    printed, _ = life.communicate(timeout=200)
    assert "Traceback" not in printed
    assert "KeyboardInterrupt" not in printed
    return printed


def has_begun(life: "subprocess.Popen[str]") -> bool:
    """Return whether its own code runs, and not only the start of Python, which says odd things when interrupted."""
    return "pydantic_core" in Path(f"/proc/{life.pid}/maps").read_text()


STORMS = itertools.product(range(3, 63, 3), (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))


@pytest.mark.parametrize(
    ("seconds", "sent"),
    [
        (0.4, signal.SIGINT),
        (0.8, signal.SIGTERM),
        *(pytest.param(tenths / 10, sent, marks=pytest.mark.soak) for tenths, sent in STORMS),
    ],
)
def test_a_command_that_is_interrupted_early_says_nothing_odd(place, sent, seconds):
    life = begun(place, *NIGHT)
    wait_until(lambda: life.poll() is not None or has_begun(life))
    time.sleep(seconds)
    for _ in range(3):
        life.send_signal(sent)
        time.sleep(0.02)
    finish(life)
    assert life.returncode in {0, 130, -sent, ExitCode.BASELINE_FAILED, ExitCode.NOTHING_RAN}
    wait_until(lambda: not runs_of(place))
    if (place / "sessions/night/session.db").exists():
        done = orchestrate(place, "resume", "night")
        assert done.returncode == 0, done.stderr


LOST = """
import signal, sys, time
from orchestrator.__main__ import run_interruptible

class Held:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def lose_in_finalizer():
    Held()
    time.sleep(60)

def lose_twice():
    def strike(frame, event, _):
        if event == "call" and frame.f_code.co_name == "report_lost":  # which takes long on a busy machine
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    sys.setprofile(strike)
    lose_in_finalizer()

def strike_in(name):
    def strike(frame, event, _):
        if event == "call" and frame.f_code.co_name == name:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    sys.setprofile(strike)
    if name == "signal":
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)

def interrupt_at_its_end():
    strike_in("signal")  # which is about to be called there

def interrupt_twice():
    strike_in("notify_all")  # while threading holds a lock in the handler

def interrupt_within():
    strike_in("interrupt")

def turn_into_another_error():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt as error:
        raise ValueError("a model could not be built") from error

def fail():
    raise ValueError("a fault")
"""


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("lose_in_finalizer", 130, ""),
        ("lose_twice", 130, ""),
        ("interrupt_at_its_end", 130, ""),
        ("interrupt_twice", 130, ""),
        ("interrupt_within", 130, ""),
        ("turn_into_another_error", 130, "nightshift: interrupted (ValueError)"),
        ("fail", 1, "ValueError: a fault"),
    ],
)
def test_an_interrupt_that_a_library_swallows_or_renames_still_ends_the_command(command, code, said):
    words = [sys.executable, "-c", f"{LOST}\nrun_interruptible({command})"]
    done = subprocess.run(words, env=environment(), check=False, capture_output=True, text=True, timeout=150)
    assert done.returncode == code
    assert done.stderr.strip().endswith(said)
    assert (done.stderr.strip() == said) is (code == 130)


@pytest.mark.parametrize("word", ["granted", pytest.param("scored", marks=pytest.mark.soak)])
def test_sigterm_stops_at_once_and_the_night_goes_on_later(place, word):
    life = begun(place, *NIGHT)
    wait_for_line(life, word)
    for _ in range(3):
        life.send_signal(signal.SIGTERM)
    assert "-m orchestrator resume night" in finish(life)
    assert life.returncode == 130
    wait_until(lambda: not runs_of(place))

    send_control(place / "sessions/night", Control(action="stop"))  # of the life before: out of date
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


@pytest.mark.parametrize("count", [2, pytest.param(10, marks=pytest.mark.soak)])
def test_only_one_of_several_resumes_goes_on(place, count):
    life = begun(place, *NIGHT)
    wait_for_line(life, "granted")
    life.kill()
    life.communicate()
    assert "died or was stopped; last sign of life" in orchestrate(place, "sessions").stdout

    racing = [begun(place, "resume", "night") for _ in range(count)]
    printed = [process.communicate(timeout=150 + 10 * count)[0] for process in racing]

    assert sorted(process.returncode for process in racing) == [0, *[2] * (count - 1)], printed
    for process, refused in zip(racing, printed, strict=True):
        assert process.returncode == 0 or "is running already, as process" in refused
        assert process.returncode == 0 or len(refused.splitlines()) == 1
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

    assert life.wait(200) == 0
    assert opened(place).state.ended
    assert "  ended " in orchestrate(place, "sessions").stdout


def test_two_nights_of_one_name_in_one_repository(place, tmp_path):
    """Two worktrees, each with its own sessions: the second is refused, however early it begins."""
    other = tmp_path / "other"
    git(place, "worktree", "add", "-q", "--detach", str(other))
    (other / "data").symlink_to(place / "data")
    lives = [begun(folder, *NIGHT) for folder in (place, other)]
    printed = [life.communicate(timeout=200)[0] for life in lives]

    assert sorted(life.returncode for life in lives) == [0, 2], printed
    refused = printed[[life.returncode for life in lives].index(2)]
    assert "night" in refused
    assert len(refused.splitlines()) == 1
    assert sum((folder / "sessions/night").exists() for folder in (place, other)) == 1


def test_a_night_outlives_programs_that_lock_and_delete_its_session(place):
    save(place, TINY)
    life = begun(place, *NIGHT[:-4], "--max-experiments", "3", "--seed", "3")
    wait_for_line(life, "granted")
    with sqlite3.connect(place / "sessions/night/session.db", timeout=150, isolation_level=None) as other:
        other.execute("begin immediate")
        wait_for_line(life, "database is locked")
        other.execute("rollback")
    other.close()
    wait_for_line(life, "granted")
    shutil.rmtree(place / "sessions/night", ignore_errors=True)
    wait_for_line(life, "written anew")
    printed = finish(life)
    assert life.returncode == 0, printed
    session = opened(place)
    assert session.state.ended == "3 experiments are done"
    assert all(session.get(record.event.log) for record in session.records if isinstance(record.event, Scored))
    crashes = [record.event for record in session.records if isinstance(record.event, Crashed)]
    assert not crashes, "a run whose folder was deleted is run again"
    assert (place / "sessions/night/report.html").exists()


def test_a_session_that_is_written_by_another_program_ends_in_one_line(place):
    life = begun(place, *NIGHT)
    wait_for_line(life, "scored")
    git(place, "update-ref", "-d", "refs/heads/research/night")
    with sqlite3.connect(place / "sessions/night/session.db", timeout=30) as other:
        other.execute("insert into events select seq + 1, at, lane, kind, body from events order by seq desc limit 1")
    other.close()
    printed = finish(life)
    assert life.returncode == 2
    assert "cannot be written" in printed
    assert git(place, "rev-parse", "research/night") == git(place, "rev-parse", "refs/nightshift/night/kept")


def test_a_repository_that_is_away_and_a_branch_that_is_looked_at(place):
    save(place, REPORTED)
    life = begun(place, *NIGHT[:-4], "--max-experiments", "2", "--seed", "3")
    wait_for_line(life, "promoted")
    git(place, "switch", "-q", "research/night")
    (place / ".git").rename(place / ".git-away")
    time.sleep(2)
    shutil.rmtree(place / ".git", ignore_errors=True)  # a git process that was under way made its folders anew
    (place / ".git-away").rename(place / ".git")
    printed = finish(life)

    assert life.returncode == 0, printed
    assert opened(place).state.kept, "it has easy gains"
    assert status(place) == ""
    assert "is checked out" in printed
    paste = printed.strip().splitlines()[-1].partition(" as it is: ")[2]
    subprocess.run(paste, shell=True, check=True, cwd="/", stdout=subprocess.DEVNULL)
    assert git(place, "rev-parse", "HEAD") == opened(place).state.parent.commit


def disturb_git(place: Path, luck: random.Random) -> None:
    """Do to the repository what other programs and users do."""
    refs = place / ".git/refs/nightshift/night"
    match luck.randrange(7):
        case 0:
            subprocess.run(["git", "gc", "-q", "--prune=now"], cwd=place, check=False, capture_output=True)
        case 1:
            words = ["git", "update-ref", "-d", "refs/heads/research/night"]
            subprocess.run(words, cwd=place, check=False, capture_output=True)
        case 2:
            (place / ".git").rename(place / ".git-away")
            time.sleep(luck.uniform(0, 3))
            shutil.rmtree(place / ".git", ignore_errors=True)  # which git may have made anew
            (place / ".git-away").rename(place / ".git")
        case 3:
            subprocess.run(["git", "pack-refs", "--all"], cwd=place, check=False, capture_output=True)
        case 4 | 5:
            path = place / ".git" / luck.choice(["config", "HEAD"])
            was = path.read_bytes()
            path.write_text(luck.choice(["[core\n", "[core]\nbare = true\n", "[core]\nrepositoryformatversion = 99\n"]))
            time.sleep(luck.uniform(0, 3))
            path.write_bytes(was)
        case 6 if refs.is_dir():
            locks = [refs / f"{name}.lock" for name in ("kept", *range(9))]
            for lock in locks:
                lock.touch()
            time.sleep(luck.uniform(0, 3))
            for lock in locks:
                lock.unlink(missing_ok=True)


def disturb_session(place: Path, luck: random.Random) -> None:
    """Do to the session what backup tools and users do."""
    path = place / "sessions/night/session.db"
    match luck.randrange(4):
        case 0 | 1:
            failures = contextlib.suppress(sqlite3.Error)
            with failures, contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("begin immediate")
                time.sleep(luck.uniform(0, 4))
                other.execute("rollback")
        case 2:
            path.with_name("session.db-wal").unlink(missing_ok=True)
        case 3:
            shutil.rmtree(path.parent, ignore_errors=True)


def disturb_processes(place: Path, luck: random.Random) -> None:
    """Kill or suspend a process of a run; most runs must be spared, since five lost in a row end a night."""
    for process in luck.sample(found := runs_of(place), min(1, len(found))):
        with contextlib.suppress(psutil.Error):
            process.send_signal(luck.choice([signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGHUP]))
            time.sleep(luck.uniform(0, 2))
            process.send_signal(signal.SIGCONT)


STORMS_OF = {"git": disturb_git, "task": disturb_git, "session": disturb_session, "processes": disturb_processes}
TASK = """import os, random, time
DEPTH = 2
time.sleep(1)
print("METRIC val_bpb=%f" % (2 + abs(DEPTH - 6) / 9 + random.Random(os.environ["NIGHTSHIFT_SEED"]).gauss(0, 0.001)))
"""
"""A reported script; git lays out each of its runs."""


@pytest.mark.parametrize(
    ("what", "seed"),
    [
        pytest.param(what, n, marks=() if (what, n) == ("task", 0) else pytest.mark.soak)
        for what in STORMS_OF
        for n in range(3)
    ],
)
def test_a_night_in_a_storm_ends_well(place, what, seed):
    luck = random.Random(seed)
    save(place, TASK if what == "task" else TINY)
    printed, said = (place.parent / "printed").open("w+"), ""
    words = command("--offline", "--hours", "1", "--session", "night", "--max-experiments", "4", "--seed", str(seed))
    life = subprocess.Popen(words, cwd=place, env=environment(), stdout=printed, stderr=subprocess.STDOUT)
    wait_until((place / "sessions/night/session.db").exists)
    while "] ended  " not in said:
        STORMS_OF[what](place, luck)
        said = (place.parent / "printed").read_text()
        was_late = "] ended  " in said
        time.sleep(luck.uniform(0, 30 if what == "processes" else 10))
        is_over = life.poll() is not None
        said = (place.parent / "printed").read_text()
        assert not is_over or "] ended  " in said, said
    life.wait(200)
    printed.seek(0)
    said = printed.read()

    assert life.returncode == 0, said
    assert "Traceback" not in said
    session = opened(place)
    assert session.state.ended == "4 experiments are done"
    events = [record.event for record in session.records]
    assert not [event for event in events if isinstance(event, Crashed)], "no idea is charged for it"
    assert all(session.get(event.log) for event in events if isinstance(event, Scored))
    commits = [event.commit for event in events if isinstance(event, Promoted | Committed | BaselineCommitted)]
    git(place, "fsck", "--connectivity-only")
    assert git(place, "rev-parse", "refs/nightshift/night/kept") == session.state.parent.commit
    branch = git(place, "for-each-ref", "--format=%(objectname)", "refs/heads/research/night")
    assert branch == session.state.parent.commit or (was_late and not branch), "deleted after the last step"
    assert all(git(place, "cat-file", "-t", commit) == "commit" for commit in commits)
    wait_until(lambda: not runs_of(place))
