"""A night goes on whatever becomes of its output: a reader that goes, a full stream, a terminal that is gone."""

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.session.store import Session
from tests.workplace import REPORTED_BEST, ROOT, command, environment, workplace

NIGHT = ("--offline", "--max-experiments", "1", "--hours", "1", "--seed", "3", "--session", "night")
ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": ""}


@pytest.fixture
def place(tmp_path):
    return workplace(tmp_path / "place", REPORTED_BEST)


def run_shell(place: Path, line: str, **values: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash in which $NIGHT starts a night; its own output is captured where the line leaves it open."""
    night = " ".join(command(*NIGHT))
    env = environment(NIGHT=night, PYTHON=sys.executable, **values)
    return subprocess.run(["bash", "-c", line], cwd=place, env=env, capture_output=True, check=False, timeout=200)


def ended(place: Path) -> str:
    session = Session(place / "sessions/night/session.db", time.time)
    return session.state.ended


@pytest.mark.parametrize(
    "line",
    [
        *(pytest.param(f"$NIGHT {reader}", marks=pytest.mark.soak) for reader in ("| head -2", "2>&1 | true")),
        "exec 5>&1; $NIGHT >&- 2>&- <&-; echo code $? >&5",
        "$NIGHT >/dev/full 2>/dev/full; echo code $?",
    ],
)
def test_a_night_goes_on_without_its_reader(place, line):
    done = run_shell(place, line)

    assert ended(place) == "1 experiment is done"
    assert b"Traceback" not in done.stderr
    if "code" in line:
        assert b"code 0" in done.stdout
    assert (place / "sessions/night/report.html").exists()


def test_a_night_does_not_wait_for_a_reader_that_does_not_read(place):
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"full\n" * 100)
    os.set_blocking(writing, True)

    subprocess.run(command(*NIGHT), cwd=place, env=environment(), stdout=writing, check=True, timeout=200)

    assert ended(place)
    os.close(reading)
    os.close(writing)


@pytest.mark.soak  # like one in tests/test_interruptions.py, with a terminal that controls the night
def test_a_night_outlives_its_terminal(place):
    """The terminal is closed as soon as the first run shows: the kernel hangs up, and every write fails."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(place)
        os.execvpe(sys.executable, command(*NIGHT), environment(TERM="xterm"))
    seen = b""
    while b"baseline" not in seen:
        seen += os.read(terminal, 4096)
    os.close(terminal)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert ended(place)


def test_a_night_in_ascii_says_everything(place):
    done = run_shell(place, "$NIGHT", **ASCII)

    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert b"Traceback" not in done.stderr
    assert b"val_bpb" in done.stdout
    for words in (["replay", "night"], ["replay", "night", "--show", "3"], ["sessions"], ["report", "night"]):
        told = subprocess.run(command(*words), cwd=place, env=environment(**ASCII), capture_output=True, check=False)
        assert (told.returncode, told.stderr) == (0, b""), words
        assert told.stdout.isascii()
    assert "→" in (place / "sessions/night/report.html").read_text(encoding="utf-8")


def test_a_dumb_terminal_gets_plain_lines(place):
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(place)
        os.execvpe(sys.executable, command(*NIGHT), environment(TERM="dumb"))
    seen = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(terminal, 4096):
            seen += chunk
    os.waitpid(pid, 0)
    assert b"\x1b" not in seen
    assert b"The night is over" in seen
    assert seen.count(b"scored") >= 3


GOLDEN = ROOT / "tests/golden/offline-2.db"


@pytest.mark.parametrize("words", [["replay", "{}"], ["replay", "{}", "--json"], ["sessions"]])
def test_a_command_ends_quietly_with_its_reader(tmp_path, words):
    golden = tmp_path / "s" / "session.db"
    golden.parent.mkdir()
    golden.write_bytes(GOLDEN.read_bytes())
    line = " ".join(command(*(word.format(golden) for word in words)))
    done = subprocess.run(
        ["bash", "-c", f"{line} | head -1"], cwd=tmp_path, env=environment(), capture_output=True, check=False
    )
    assert done.stderr == b""


def test_a_command_says_that_its_output_is_full(tmp_path):
    golden = tmp_path / "session.db"
    golden.write_bytes(GOLDEN.read_bytes())
    line = f"{' '.join(command('replay', str(golden), '--json'))} >/dev/full"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr == b"nightshift: standard output cannot be written: No space left on device\n"


def test_ctrl_c_still_ends_a_night_whose_reader_has_gone(place):
    with subprocess.Popen(command(*NIGHT), cwd=place, env=environment(), stdout=subprocess.PIPE) as night:
        while b"granted" not in (line := night.stdout.readline()):
            assert line, "it ended before"
        night.stdout.close()
        night.send_signal(signal.SIGINT)
        assert night.wait(200) in (0, 5)
    assert ended(place) == "you asked to stop"


def test_ctrl_c_before_the_first_step_is_no_success(place):
    with subprocess.Popen(command(*NIGHT), cwd=place, env=environment(), stdout=subprocess.PIPE) as night:
        assert b"until" in night.stdout.readline()
        assert b"started" in night.stdout.readline()
        night.send_signal(signal.SIGINT)
        assert night.wait(200) != 0
