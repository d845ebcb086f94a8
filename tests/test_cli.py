"""The commands as a user types them: real processes, real git, a real session file."""

import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from orchestrator.core.events import Crashed, Ended, Granted, Kept, Promoted, Proposed, Scored
from orchestrator.session.store import Session
from tests.workplace import REPORTED, REPORTED_BEST, begun, git, orchestrate, save, status, workplace

if TYPE_CHECKING:
    import subprocess


@pytest.fixture
def place(tmp_path):
    return workplace(tmp_path / "place")


def opened(place: Path, name: str = "night") -> Session:
    return Session(place / "sessions" / name / "session.db", time.time)


def wait_for_line(life: "subprocess.Popen[str]", word: str) -> str:
    """Return what was printed up to a line with this word, which must come."""
    printed = ""
    while word not in printed:
        line = life.stdout.readline()
        assert line, printed
        printed += line
    return printed


def runs_of(place: Path) -> list[psutil.Process]:
    """Processes that train something of this place, or guard it."""
    mine = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        where = f"{process.info['cwd']} {process.info['cmdline']}"
        if str(place / "sessions") in where and "orchestrator/__main__" not in where:
            mine.append(process)
    return mine


def wait_until(condition, seconds: float = 150.0) -> None:
    """Wait for what must come to pass, however busy the machine is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def test_a_night_offline(place):
    before = git(place, "rev-parse", "HEAD")

    done = orchestrate(
        place, "--offline", "--hours", "1", "--max-experiments", "3", "--session", "night", "--seed", "3"
    )

    assert done.returncode == 0, done.stdout + done.stderr
    session = opened(place)
    assert session.state.ended == "3 experiments are done"
    assert len(session.state.results) == 4
    kept = session.state.kept
    assert kept, "the tiny train.py has easy gains"
    log = git(place, "log", "--format=%s%n%b", "research/night")
    for result in kept:
        assert result.proposal.title in log
        assert f"Experiment: {result.experiment}" in log
    assert git(place, "rev-parse", "HEAD") == before
    assert status(place) == ""
    assert (
        (place / "sessions/night/results.tsv").read_text().startswith("commit\tval_bpb\tmemory_gb\tstatus\tdescription")
    )
    assert "<html" in (place / "sessions/night/report.html").read_text()
    assert len(list((place / "musings/night").glob("0*.md"))) == 4


def kill_something(place: Path, life, luck: random.Random) -> None:
    """Kill the orchestrator or its group; before that, sometimes, a process of a run: guardian, sandbox or trainer."""
    for _ in range(luck.randrange(6)):
        life.stdout.readline()  # of an event each
    time.sleep(luck.choice([0.0, luck.uniform(0.0, 1.5)]))
    if luck.random() < 0.5 and (found := runs_of(place)):
        with contextlib.suppress(psutil.Error):
            luck.choice(found).kill()
        time.sleep(luck.uniform(0.0, 0.6))
    luck.choice([os.kill, os.killpg])(life.pid, signal.SIGKILL)


@pytest.mark.parametrize(("lives", "count"), [(4, 2), pytest.param(200, 60, marks=pytest.mark.soak)])
def test_killed_again_and_again_nothing_is_lost_or_counted_twice(place, lives, count):
    luck = random.Random(11)
    words = ("--offline", "--hours", "1", "--max-experiments", str(count), "--session", "night", "--seed", "5")
    for _ in range(lives):
        life = begun(place, *words)
        wait_until((place / "sessions/night/session.db").exists)
        kill_something(place, life, luck)
        life.communicate()
        wait_until(lambda: not runs_of(place))
        words = ("resume", "night")

    last = begun(place, *words)
    printed, _ = last.communicate(timeout=200 + 30 * count)

    assert last.returncode == 0, printed
    session = opened(place)
    events = [record.event for record in session.records]
    proposed = [event.experiment for event in events if isinstance(event, Proposed)]
    assert proposed == list(range(1, count + 1))
    assert [f.experiment for f in sorted(session.state.results, key=lambda f: f.experiment)] == list(range(count + 1))
    grants = [(event.experiment, event.run) for event in events if isinstance(event, Granted)]
    scores = [(event.experiment, event.run) for event in events if isinstance(event, Scored)]
    assert len(set(grants)) == len(grants)
    assert len(set(scores)) == len(scores)
    assert not [event for event in events if isinstance(event, Crashed)], "no idea is charged for it"
    assert isinstance(events[-1], Ended)
    promoted = [event.commit for event in events if isinstance(event, Promoted)]
    assert len(promoted) == sum(isinstance(event, Kept) for event in events)
    assert git(place, "rev-parse", "research/night") == promoted[-1]
    branch = git(place, "rev-list", "--reverse", "research/night").split()
    assert branch[-len(promoted) :] == promoted
    assert not runs_of(place)


def test_ctrl_c_finishes_what_trains_and_says_how_to_go_on(place):
    save(place, REPORTED)
    life = begun(place, "--offline", "--hours", "1", "--session", "night")
    wait_until((place / "sessions/night/session.db").exists)
    wait_until(lambda: opened(place).state.incumbent is not None)

    os.kill(life.pid, signal.SIGINT)
    printed, _ = life.communicate(timeout=200)

    assert life.returncode == 0
    assert "resume night" in printed
    state = opened(place).state
    assert state.ended == "you asked to stop"


def test_ctrl_c_twice_stops_at_once(place):
    save(place, REPORTED)
    life = begun(place, "--offline", "--hours", "1", "--session", "night")
    wait_for_line(life, "granted")

    os.kill(life.pid, signal.SIGINT)
    time.sleep(0.05)
    os.kill(life.pid, signal.SIGINT)
    printed, _ = life.communicate(timeout=200)

    assert life.returncode in {0, 130}
    assert "resume night" in printed
    wait_until(lambda: not runs_of(place))


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--hours", "-1"], "--hours"),
        (["--hours", "abc"], "--hours"),
        (["--hours", "0"], "--hours"),
        (["--offline", "--crew", "nobody"], "nobody"),
        (["--offline", "--search", "simplex"], "simplex"),
        (["--offline", "--script", "none.py"], "none.py"),
        (["resume", "nothing"], "no session"),
        (["--offline", "--session", "no good~name"], "name"),
        (["--offline", "--session", "a/b"], "name"),
        (["--nonsense"], "--nonsense"),
        (["dance"], "dance"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(place, words, answer):
    done = orchestrate(place, *words)

    assert done.returncode == 2, done.stdout + done.stderr
    assert answer in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (place / "sessions").exists(), "a refused start leaves nothing behind"


def test_a_place_that_is_no_repository(tmp_path, place):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "train.py").write_text("pass\n")

    done = orchestrate(tmp_path / "bare", "--offline")

    assert done.returncode == 2
    assert "git init" in done.stderr
    assert not (tmp_path / "bare/sessions").exists()


def test_a_repository_without_a_commit(place):
    shutil.rmtree(place / ".git")
    git(place, "init", "-q")

    done = orchestrate(place, "--offline", "--session", "x")

    assert done.returncode == 2
    assert "no commit yet" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (place / "sessions").exists()


def test_a_session_that_never_began_is_one_line(place):
    Session(place / "sessions/night/session.db", time.time, create=True).close()

    for words in (["resume", "night"], ["fork", "night", "--at", "1"], ["replay", "night"]):
        done = orchestrate(place, *words)
        assert done.returncode == 2
        assert "never began" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert "never began" in orchestrate(place, "sessions").stdout


def test_a_name_that_is_taken(place):
    git(place, "branch", "research/branch")
    (place / "sessions/folder").mkdir(parents=True)

    for name in ("branch", "folder"):
        done = orchestrate(place, "--offline", "--session", name)
        assert done.returncode == 2
        assert "another name" in done.stderr
    assert [path.name for path in (place / "sessions").iterdir()] == ["folder"]


def test_a_baseline_that_fails_is_said_first_and_is_exit_code_4(place):
    save(place, "LR = 0.1\nraise ValueError('the baseline is broken', LR)\n")

    done = orchestrate(place, "--offline", "--session", "night")

    assert done.returncode == 4, done.stdout + done.stderr
    told = done.stdout.split("\n\n")[1].splitlines()[0]
    assert told.startswith("The baseline does not train: ")
    assert "the baseline is broken" in told
    assert done.stdout.split("\n\n")[1].count("does not train") == 1


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("globals().update(LR=0.1)\n", "assigns none"),
        ("NAME = 'x'\nopen(NAME)\n", "NAME"),
        ("LR = 0.1\nprint(LR)\n", "LR"),
        ("UNITS = 8  # one of 8\ntrain(UNITS)\n", "UNITS"),
        ("SEED = 8\ntrain(SEED)\n", "SEED"),
        ("LR = = 0.1\n", "line 1"),
    ],
)
def test_a_script_with_nothing_to_search_is_said_before_anything_trains(place, script, answer):
    save(place, script)

    done = orchestrate(place, "--offline", "--session", "night")

    assert done.returncode == 2, done.stdout + done.stderr
    assert answer in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (place / "sessions").exists()


def test_the_doctor_checks_what_would_run(place, tmp_path):
    fine = orchestrate(place, "doctor", "--offline")
    assert fine.returncode == 0, fine.stdout
    assert "script    it came to a step" in fine.stdout

    for words, answer in [
        (["doctor"], "ANTHROPIC_API_KEY"),
        (["doctor", "--prompts", "unheard-of"], "unheard-of"),
        (["--script", "none.py", "doctor", "--offline"], "none.py"),
        (["--data", str(tmp_path), "doctor", "--offline"], "-m orchestrator prepare"),
    ]:
        done = orchestrate(place, *words)
        assert done.returncode == 3
        assert answer in " ".join(done.stdout.split())
    assert not (place / "sessions").exists()


def test_no_data_names_the_command_that_prepares_it(place):
    (place / "data/manifest.json").unlink()

    done = orchestrate(place, "--offline")

    assert done.returncode == 2
    assert "-m orchestrator prepare" in done.stderr


def test_a_file_that_is_no_session(place):
    (place / "sessions/night").mkdir(parents=True)
    (place / "sessions/night/session.db").write_text("hello")

    done = orchestrate(place, "resume", "night")

    assert done.returncode == 2
    assert "not a session file" in done.stderr


def test_a_session_by_a_newer_version(place):
    session = Session(place / "sessions/night/session.db", time.time, create=True)
    session.db.execute("pragma user_version = 99")
    session.close()

    done = orchestrate(place, "resume", "night")

    assert done.returncode == 2
    assert "newer" in done.stderr


def test_a_folder_that_cannot_be_written(place):
    done = orchestrate(place, "--offline", "--sessions", "/proc/sessions")

    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


def test_without_a_key_one_line_says_what_to_set(place):
    done = orchestrate(place, "--hours", "8")

    assert done.returncode == 2
    assert "ANTHROPIC_API_KEY" in done.stderr
    assert "--offline" in done.stderr
    assert not (place / "sessions").exists()


@pytest.mark.parametrize("source", ("x = (\n", "x = 1\0\n", "if x:\n\ty\n        z\n"))
def test_a_script_that_is_not_python_costs_no_run(source, place):
    save(place, source)

    done = orchestrate(place, "--offline")

    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "train.py" in done.stderr
    assert not (place / "sessions").exists()


@pytest.mark.parametrize("form", (lambda text: b"\xef\xbb\xbf" + text, lambda text: text.replace(b"\n", b"\r\n")))
def test_a_script_from_another_system_is_searched_like_any_other(form, place):
    script = place / "train.py"
    script.write_bytes(form(REPORTED_BEST.encode()))
    git(place, "commit", "-qam", "as another editor saves it")

    done = orchestrate(place, "--offline", "--max-experiments", "1", "--session", "night", "--seed", "3")

    assert done.returncode == 0, done.stdout + done.stderr
    assert git(place, "status", "--porcelain") == ""
    tried = opened(place).state.results[1].commit
    added, removed = git(place, "diff", "--numstat", f"{tried.commit}~1", tried.commit).split()[:2]
    assert (int(added), int(removed)) == (tried.added, tried.removed)
    assert int(added) < 5
