"""What the branch holds, and what the printed lines of git bring: the gains over the user's own file, and no more."""

import html
import re
import subprocess

import pytest

from orchestrator.cli.options import Options
from orchestrator.cli.preflight import Preflight
from orchestrator.session.store import Session
from prepare.constants import read_values, with_originals
from prepare.profiles import CPU, apply_to_script
from tests.workplace import ROOT, TINY, git, orchestrate, status, workplace

OWN = TINY.replace("DEPTH = 3                # 1..5", "DEPTH = 8                # 1..16").replace(
    "STEPS = 40\n", "HEAD_DIM = 128\nSTEPS = 40\n"
)
"""A script with a GPU's constants, where the cpu profile has others."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = workplace(tmp_path_factory.mktemp("gains") / "place", OWN)
    words = ("--offline", "--fit", "--hours", "1", "--max-experiments", "4", "--session", "night", "--seed", "3")
    done = orchestrate(place, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "constants of train.py: runs have those of profile cpu" in done.stderr
    assert "\n-HEAD_DIM = 128\n+HEAD_DIM = 32\n" in done.stderr
    return place


@pytest.fixture(scope="module")
def gained(place):
    """The user's constants, with those that kept changes set."""
    session = Session(place / "sessions/night/session.db", read_only=True)
    assert session.state.best, "the tiny train.py has easy gains"
    before, after = (read_values(session.get(session.state.parents[n].source)) for n in (0, session.state.best))
    assert before["DEPTH"] == 3
    changed = {name: value for name, value in after.items() if value != before[name]}
    assert changed
    return read_values(OWN) | changed


def printed(place, verb):
    page = html.unescape((place / "sessions/night/report.html").read_text())
    found = [line for line in re.findall('<pre class="copy">(.+?)</pre>', page) if f" {verb} " in line]
    return found[-1]


def clone(place, folder):
    git(place, "clone", "-q", ".", folder)
    git(folder, "fetch", "-q", "origin", "refs/nightshift/*:refs/nightshift/*")
    return folder


PICK_FIRST = 'set -- {cherry-pick}; git cherry-pick $(git rev-list --reverse "${!#}" | head -1); '


@pytest.mark.parametrize(
    "line",
    [
        "{merge}",
        "{cherry-pick}",
        PICK_FIRST + "{cherry-pick}",  # as by the report of an hour before
        "{diff} | git apply",
        "git merge origin/research/night",
    ],
)
def test_a_printed_line_brings_exactly_what_was_gained(place, gained, tmp_path, line):
    folder = clone(place, tmp_path / "mine")
    for verb in ("merge", "cherry-pick", "diff"):
        line = line.replace(f"{{{verb}}}", printed(place, verb))
    who = {f"GIT_{who}_{what}": "me@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    subprocess.run(["env", *(f"{k}={v}" for k, v in who.items()), "bash", "-ec", line], cwd=folder, check=True)
    assert read_values((folder / "train.py").read_text()) == gained
    changed = git(folder, "diff", "--numstat", "origin/main", "--", "train.py").split()
    assert int(changed[0]) == sum(value != read_values(OWN)[name] for name, value in gained.items())


def test_the_fit_lies_beside_the_branch(place):
    assert git(place, "show", "refs/nightshift/night/0:train.py") == apply_to_script(OWN, CPU).strip()
    assert git(place, "merge-base", "main", "research/night") == git(place, "rev-parse", "main")
    assert not [s for s in git(place, "log", "--format=%s", "research/night").splitlines() if s.startswith("fit")]
    assert status(place) == ""


def test_commits_that_are_named_are_on_the_branch(place):
    rows = [line.split("\t") for line in (place / "sessions/night/results.tsv").read_text().splitlines()[1:]]
    kept = [commit for commit, _, _, status, _ in rows if status == "keep"]
    assert len(kept) > 1
    for commit in kept:
        git(place, "merge-base", "--is-ancestor", commit, "research/night")
    for page in (place / "musings/night").glob("0*.md"):
        text = page.read_text()
        if "status: kept" in text:
            (named,) = set(re.findall(r"^commit: '?(\w{12})", text, re.MULTILINE))
            git(place, "merge-base", "--is-ancestor", named, "research/night")


def test_edits_that_are_not_committed_are_a_choice(tmp_path):
    place = workplace(tmp_path / "it's mine")
    (place / "train.py").write_text(TINY.replace("STEPS = 40", "STEPS = 30"))
    for words in (("--offline",), ("doctor", "--offline")):
        done = orchestrate(place, *words)
        said = " ".join((done.stdout + done.stderr).split())
        assert done.returncode in (2, 3)
        assert "train.py has edits that are not committed" in said
    assert not (place / "sessions").exists()


def test_a_script_of_ones_own_keeps_its_constants_and_says_so(tmp_path):
    place = workplace(tmp_path / "place", OWN)
    done = orchestrate(place, "doctor", "--offline")
    assert "constants of train.py: runs have yours; with --fit, those of profile cpu" in " ".join(done.stdout.split())
    assert "\n-HEAD_DIM = 128\n+HEAD_DIM = 32\n" in done.stdout
    night, asked = Preflight(Options(place / "sessions", place / "data", place / "train.py"), "night", "optuna"), []
    night.ask_to_fit(lambda question: asked.append(question) or True)
    night.ask_to_fit(lambda question: asked.append(question) or False)
    assert asked == ["Train with those of profile cpu?"]
    assert "HEAD_DIM = 32\n" in night.fit(night.source)
    (place / "sessions/night").mkdir(parents=True)
    night.options.remember(place / "sessions/night")
    night = Preflight(Options(place / "sessions", place / "data", place / "train.py"), "second", "optuna")
    night.ask_to_fit(lambda _: pytest.fail("it was answered for another night of this script"))
    assert "HEAD_DIM = 32\n" in night.fit(night.source)
    ours = (ROOT / "train.py").read_text()
    (place / "train.py").write_text(ours.replace("DEPTH = 8 ", "DEPTH = 9 "))
    git(place, "commit", "-qam", "tuned")
    assert Preflight(Options(place / "sessions", place / "data", place / "train.py"), "night", "optuna").profile is None
    (place / "train.py").write_text(ours.replace("manual_seed(SEED)", "manual_seed(SEED + 1)") + "A = 1  # 0.1 .. 1\n")
    git(place, "commit", "-qam", "the constants that come with it")
    night = Preflight(Options(place / "sessions", place / "data", place / "train.py"), "night", "optuna")
    checked, ranges, *_ = (result for result in night.check() if result.subject in {"constants", "ranges"})
    assert "constants of train.py: runs have those of profile cpu" in checked.message
    assert ranges.message.startswith("not read as ranges: A = 1 # 0.1 .. 1: write low..high")
    night.ask_to_fit(lambda _: pytest.fail("ours is fitted unasked"))


def test_what_a_candidate_sets_itself_stays():
    own = "A = 8  # 1..9 – big\nB = 128\nif small:\n    A = 4\nC = 1\n"
    fitted = "A = 3  # 1..5 – big\nB = 32\nif small:\n    A = 3\nC = 1\n"
    assert with_originals(fitted, fitted, own) == own
    candidate = fitted.replace("B = 32", "B = 64\nNEW = 2").replace("C = 1", "C = 7")
    assert with_originals(candidate, fitted, own) == own.replace("B = 128", "B = 64\nNEW = 2").replace("C = 1", "C = 7")
    assert with_originals("A = 3  # 1..5 – big\n", fitted, own) == "A = 8  # 1..9 – big\n"
