"""Every command that is printed, pasted as it stands into a shell where it was printed; and what is refused."""

import html
import json
import re
import subprocess
import sys

import pytest

from prepare.manifest import BudgetAmount
from tests.small import small_data
from tests.workplace import TINY, environment, git, orchestrate

PROGRAM = f"{sys.executable} -m orchestrator "
PLACES = (
    "--sessions",
    "my nights",
    "--data",
    "../the data",
    "--script",
    "the code/train it.py",
    "--musings",
    "../it's me",
)
NIGHT = ("--offline", "--hours", "1", "--max-experiments", "2", "--session", "first", "--seed", "3")


def paste(place, line):
    """Run the line in a shell; it takes apart the words of a command of ours, which then begins without its imports."""
    if line.startswith(PROGRAM):
        words = run_shell(place, f"printf '%s\\0' {line.removeprefix(PROGRAM)}").split("\0")[:-1]
        done = orchestrate(place, *words)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout
    return run_shell(place, line)


def run_shell(place, line):
    who = {f"GIT_{who}_{what}": "me@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["bash", "-ec", line],
        cwd=place,
        env=environment(GIT_PAGER="cat", **who),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A night with every place where one would not look for it, and with names that a shell takes apart."""
    place = tmp_path_factory.mktemp("pasted") / "it's $mine"
    (place / "the code").mkdir(parents=True)
    (place / "the code/train it.py").write_text(TINY)
    git(place, "init", "-q", "-b", "main")
    git(place, "add", ".")
    git(place, "commit", "-qm", "begin")
    git(place, "tag", "start")
    small_data(place.parent / "the data")
    return place


@pytest.fixture(scope="module")
def ending(place):
    done = orchestrate(place, *PLACES, *NIGHT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_last_lines_of_a_night(place, ending):
    for name in ("report", "musings"):
        (path,) = re.findall(rf"^  {name} +(.+)$", ending, re.MULTILINE)
        assert (place / path).is_file()
    (log,) = re.findall("^  branch +(.+)$", ending, re.MULTILINE)
    assert "Experiment: 1" in paste(place, log)
    (on,) = re.findall("^  go on +(.+)$", ending, re.MULTILINE)
    assert on.startswith(f"{PROGRAM}fork first --at ")
    paste(place, f"{on} --session second".replace("--hours 1", "--hours 0.001"))
    first, second = (json.loads((place / f"my nights/{name}/places.json").read_text()) for name in ("first", "second"))
    assert second == first | {"inode": (place / "my nights/second").stat().st_ino}


def test_the_lines_of_a_report(place, ending):
    for name in ("as-written", "as-rebuilt"):
        page = html.unescape((place / "my nights/first/report.html").read_text())
        lines = re.findall('<pre class="copy">(.+?)</pre>', page)
        assert {re.match(r"git -C 'the code' (\S+)", line)[1] for line in lines if line.startswith("git")} >= {
            "show",
            "log",
            "diff",
            "merge",
            "cherry-pick",
        }
        for line in lines:
            if line.startswith("git"):
                paste(place, f"{line} && git reset -q --hard start")
            else:
                paste(place, f"{line} --session {name}".replace("--hours 1", "--hours 0.001"))
        paste(place, "rm 'my nights/first/report.html'")
        paste(place, f"{PROGRAM}report first --sessions 'my nights'")


def test_a_session_needs_only_its_name(place, ending):
    for line in ("resume first", "fork first --at 20 --hours 0.001 --session fourth", "replay first", "report first"):
        paste(place, f"{PROGRAM}--sessions 'my nights' {line}")
    assert list((place.parent / "it's me/fourth").glob("*.md"))
    moved = place.parent / "moved data"
    (place.parent / "the data").rename(moved)
    refused = orchestrate(place, "resume", "first", "--sessions", "my nights", NIGHTSHIFT_DATA=str(moved))
    assert "no data in ../the data: run `" in refused.stderr  # what the session knows comes before the environment
    for _ in ("given", "remembered"):
        paste(place, f"{PROGRAM}resume first --sessions 'my nights' {'--data ../moved*' if _ == 'given' else ''}")
    moved.rename(place.parent / "the data")
    (place / "my nights/first/places.json").unlink()


def test_the_line_that_says_what_to_prepare(tmp_path):
    (tmp_path / "a folder").mkdir()
    said = " ".join(orchestrate(tmp_path, "doctor", "--data", "a folder/data of mine").stdout.split())
    (line,) = re.findall("no data in .+?: run `(.+?)` first", said)
    done = subprocess.run(
        ["bash", "-ec", f"{line} --help"], cwd=tmp_path, env=environment(), capture_output=True, check=True
    )
    assert b"Usage: " in done.stdout
    assert line == f"{PROGRAM}prepare --data 'a folder/data of mine'"


def test_the_lines_of_init(tmp_path):
    folder = tmp_path / "it's new"
    folder.mkdir()
    (folder / ".gitignore").write_bytes("größe".encode("latin-1"))
    *_, first = said = orchestrate(folder, "init").stdout.splitlines()[1:]
    assert [line.split()[0] for line in said[:3]] == ["git", "git", "git"]
    for line in said[:3]:
        paste(folder, line)
    small_data(folder / "data", BudgetAmount(kind="work", amount=1e11, seconds=5.0))  # more than one step
    assert said[3] == f"{PROGRAM}prepare"
    checked = paste(folder, first.replace("--offline", "doctor --offline").replace(" --hours 0.15", ""))
    assert "✓ script    it " in checked


def test_init_ignores_the_folders_of_nights_and_no_others(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "code").mkdir()
    (tmp_path / ".gitignore").write_text("# data and sessions of my own\n")
    for line in orchestrate(tmp_path, "init", "--script", "code/train.py").stdout.splitlines()[1:3]:
        paste(tmp_path, line)
    for name in ("data/a", "sessions/x/session.db", "code/data/rows.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert git(tmp_path, "status", "--porcelain") == "?? code/data/"


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--offline", "--model", "claude"], "--model"),
        (["--crew", "optuna", "--max-usd", "3"], "--max-usd"),
        (["--offline", "--prompts", "socratic"], "--prompts"),
        (["--offline", "--crew", "claude"], "--crew"),
        (["doctor", "--offline", "--model", "x"], "--model"),
        (["--hours", "3", "resume", "first"], "--hours"),
        (["--seed", "3", "resume", "first"], "--seed"),
        (["resume", "first", "--seed", "3"], "--seed"),
        (["--offline", "report", "first"], "--offline"),
        (["--unsafe", "report", "first"], "--unsafe"),
        (["--no-fit", "resume", "first"], "--no-fit"),
        (["--data", "x", "sessions"], "--data"),
        (["fork", "first", "--at", "3", "--prompts", "socratic"], "--prompts"),
        (["replay", "first", "--show", "3", "--until", "9"], "--until"),
        (["replay", "first", "--prompts", "none"], "--prompts"),
        (["replay", "first", "--verify", "--json"], "--json"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(place, ending, words, option):
    done = orchestrate(place, *words, "--sessions", "my nights")
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.splitlines()
    assert option in line


def test_readers_write_nothing_but_what_they_are_asked_for(place, ending):
    def look():
        return {path: path.stat().st_mtime_ns for path in (place / "my nights").rglob("*")}

    before = look()
    for words in (
        ["sessions"],
        ["replay", "first"],
        ["replay", "first", "--verify"],
        ["report", "first", "--out", "../o"],
    ):
        paste(place, f"{PROGRAM}{' '.join(words)} --sessions 'my nights'")
    assert look() == before
    compared = orchestrate(place, "compare", "first", "first", "--sessions", "my nights", "--chart", "/proc/chart.html")
    assert compared.returncode == 2
    assert "nightshift: /proc/chart.html cannot be written" in compared.stderr
    assert "val_bpb" in compared.stdout or "gain" in compared.stdout
    assert look() == before
