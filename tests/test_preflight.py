"""Check what a night is refused for before anything is written."""

import asyncio
import contextlib
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.options import Options, UsageError
from orchestrator.cli.preflight import Preflight
from orchestrator.cli.start import WORDS, invent_name
from orchestrator.cli.wiring import hold_slots
from orchestrator.core.events import Origin, Record, SessionLimits
from orchestrator.core.state import fold
from orchestrator.executor import LocalExecutor
from orchestrator.lab.sandbox.base import NoSandbox
from orchestrator.lab.sandbox.select import NoSandboxError
from orchestrator.repo import RepoError
from prepare.manifest import load
from tests.fakes import PROFILE, started
from tests.test_reported import ground
from tests.workplace import TINY, git, orchestrate, save, workplace


@pytest.fixture
def place(tmp_path):
    return workplace(tmp_path / "place")


def check_name(place, name):
    Preflight(Options(place / "sessions", place / "data", place / "train.py"), name, "optuna").check_name()


@pytest.mark.parametrize("name", ["a", "2026-11-25-quartz", "nächtlich", "夜", "v1.2", "a_b", "x" * 100])
def test_a_name_is_letters_and_digits(place, name):
    check_name(place, name)
    git(place, "branch", f"research/{name}")
    with pytest.raises(RepoError, match="exists already"):
        check_name(place, name)


def test_a_name_whose_pages_are_those_of_a_deleted_night_is_refused(place):
    options = Options(place / "sessions", place / "data", place / "train.py", place / "musings")
    pages = options.musings / "tonight"
    pages.mkdir(parents=True)
    (pages / "note.md").write_text("the user's own")
    Preflight(options, "tonight", "optuna").check_name()
    (pages / "001-a.md").write_text("# A page")
    with pytest.raises(UsageError, match="tonight holds pages of an earlier session called tonight: move them"):
        Preflight(options, "tonight", "optuna").check_name()
    Preflight(options, "tonight-2", "optuna").check_name()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        ".",
        "-x",
        "a b",
        "a/b",
        "a..b",
        ".hidden",
        "x" * 101,
        "ü" * 60,
        "x.db",
        "x.lock",
        "a\nb",
        "a\n",
        "$(id)",
    ],
)
def test_a_name_that_a_file_a_branch_or_a_shell_cannot_take(place, name):
    with pytest.raises(UsageError, match="cannot be a name"):
        check_name(place, name)


def test_a_name_is_invented_that_neither_a_session_nor_a_branch_has(place):
    today, last, first, *words = (
        invent_name(paths := Options(place / "sessions", script=place / "train.py"))[:10],
        *WORDS.split(),
    )
    git(place, "branch", f"research/{today}-{first}")
    for word in words:
        (paths.sessions / f"{today}-{word}").mkdir(parents=True)
    assert {invent_name(paths) for _ in range(8)} == {f"{today}-{last}"}


def test_a_name_is_for_one_night_in_a_repository_wherever_its_sessions_lie(place):
    night = Preflight(Options(place / "sessions", place / "data", place / "train.py"), "night", "optuna")
    other = replace(night, options=replace(night.options, sessions=place / "elsewhere"))
    taken = pytest.raises(UsageError, match="another session called night is running in this repository")
    with hold_slots(night), taken, hold_slots(other):
        pass


class Bare(Preflight):
    """A night on a machine that has no sandbox."""

    @property
    def sandbox(self):
        if self.options.unsafe:
            return NoSandbox()
        raise NoSandboxError("no sandbox works here")


@pytest.mark.parametrize("answer", [True, False])
def test_without_a_sandbox_it_is_for_the_user_to_decide(answer):
    night, asked = Bare(Options(), "night", "optuna"), []
    night.ask_for_trust(lambda question: asked.append(question) or answer)
    night.ask_for_trust(lambda question: asked.append(question) or answer)

    assert night.options.unsafe == answer
    assert asked == ["no sandbox works here.\nTrain without a sandbox?"] * (1 if answer else 2)


@pytest.mark.parametrize(
    ("source", "command", "noun"),
    [
        ("import os, random\nrandom.seed(int(os.environ['NIGHTSHIFT_SEED']))\n", "", "seed"),
        ("import sys\n", "python train.py $NIGHTSHIFT_SEED", "seed"),
        ("import random\nrandom.seed(3)\n", "", "seed"),
        ("import random\n", "", "repeat"),
    ],
)
def test_a_seed_is_passed_where_something_reads_it(tmp_path, source, command, noun):
    place = ground(tmp_path / "place", {"train.py": source, "nightshift.toml": f"command = '{command}'\nbudget = 2\n"})
    night = Preflight(Options(script=place / "train.py"), "night", "optuna")
    assert night.task.noun == noun
    assert ("no seed is passed" in night.task.describe()) == (noun == "repeat")


def test_a_seed_is_kept_only_where_the_script_fixes_one(tmp_path):
    place = ground(
        tmp_path / "place", {"a/train.py": "import random\nrandom.seed(3)\n", "b/train.py": "import random\n"}
    )
    nights = [Options(script=place / at / "train.py", keep_seed=keeps) for at in "ab" for keeps in (True, False)]
    assert [Preflight(night, "night", "optuna").keeps_seed for night in nights] == [True, False, False, False]


def test_what_lies_in_no_run_is_named(tmp_path):
    files = dict.fromkeys(["code/train.py", "ä.txt", "code/blobs/a.bin", "big.bin", "key.txt", "code/away"], "")
    files |= {".gitattributes": "*.bin filter=lfs\nkey.txt filter=crypt\n*.py filter=tidy"}
    files |= {"code/nightshift.toml": "budget = 2\ndata = ['blobs']\n"}
    place = ground(tmp_path / "place", files)
    for name, target in {"away": place.parent, "near": "../ä.txt", "mine": place / "code/blobs", "gone": "x"}.items():
        (place / "code" / name).unlink(missing_ok=True)
        (place / "code" / name).symlink_to(target)
    git(place, "add", ".")
    git(place, "commit", "-qm", "links")
    (place / "ä.txt").write_text("changed")
    (place / "code/blobs/a.bin").write_text("changed, but shown as data")
    (place / "code/nightshift.toml").write_text("budget = 3\ndata = ['blobs']\n")  # which this start reads
    night = Preflight(Options(script=place / "code/train.py", unsafe=True), "night", "optuna")
    said = [found.message for found in night.check() if found.subject == "git" and found.state != "good"]
    where = "what git tracks as a submodule, by a filter, as LFS, or as a link that leads out is in no run"
    assert said == [
        "uncommitted changes of ä.txt take no part: a run sees what is committed",
        f'{where}: data = ["../big.bin", "../key.txt", "away"] in nightshift.toml shows it as it lies here',
    ]


def test_a_clone_that_lacks_files_is_refused_with_what_fetches_them(tmp_path):
    origin = ground(tmp_path / "origin", {"train.py": "LR = 1", "judge/rows.txt": "1"})
    git(origin, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "-q", "--filter=blob:none", "--sparse", f"file://{origin}", "place")
    night = Preflight(Options(script=tmp_path / "place/train.py", unsafe=True), "night", "optuna")
    refused = next(found.message for found in night.check() if found.state == "bad")
    assert "is in a partial clone, without files that runs need" in refused
    subprocess.run(refused.split("`")[1], shell=True, check=True)
    night.repo.check_whole()


def test_a_forgotten_neighbour_is_refused_in_reported_form_too(tmp_path):
    place = ground(
        tmp_path / "place", {"train.py": "import helper, rows.reader", "nightshift.toml": "data = ['rows/']\n"}
    )
    (place / "helper.py").touch()
    (place / "rows").mkdir()
    (place / "rows/reader.py").touch()
    said = [*Preflight(Options(script=place / "train.py", unsafe=True), "night", "optuna").check()]
    assert any("imports helper.py, which is not committed" in found.message for found in said if found.state == "bad")
    warned = [found.message for found in said if found.state == "warn"]
    assert "runs train without a sandbox, because of --unsafe" in warned, "a session may remember it"


def test_a_file_of_settings_that_is_not_read_is_named_and_one_that_is_read_in_part(tmp_path):
    files = {"src/train.py": "print('METRIC val_bpb=1')", "src/program.md": "Try. " * 2_401}
    place = ground(tmp_path / "place", files | {"nightshift.toml": "budget = 2\n"})
    with contextlib.chdir(place):
        night = Preflight(Options(script=Path("src/train.py"), unsafe=True), "night", "optuna")
        said = [found.message for found in night.check() if found.subject == "scores"]
    assert said[1:] == [
        "nightshift.toml is not read: it does not lie beside src/train.py",
        "12,000 characters of program.md are read, and no more",
    ]


def test_a_script_with_a_forgotten_neighbour_is_refused_with_what_to_do(place):
    (place / "parts.py").write_text("WIDTH = 1\n")
    save(place, f"import parts\n{(place / 'train.py').read_text()}")

    checked = orchestrate(place, "doctor", "--offline")
    started = orchestrate(place, "--offline", "--session", "night")

    assert checked.returncode == 3
    assert "which is not committed" in " ".join(checked.stdout.split())
    assert started.returncode == 2
    assert "imports parts.py, which is not committed: `git add parts.py`, then commit" in started.stderr
    assert not (place / "sessions").exists()


@pytest.mark.parametrize("kind", ["night", "resumed", "from another"])
def test_a_night_begins_at_the_commit_that_was_checked_whatever_the_user_does_since(place, kind):
    texts, begin = [], git(place, "rev-parse", "HEAD")
    state = fold([Record(seq=1, at=0, task_id="", event=started(commit=begin))]) if kind == "resumed" else None
    options = Options(place / "sessions", place / "data", place / "train.py")
    night = Preflight(options, "night", "optuna", state=state)
    if not state:
        assert night.source == TINY  # as the checks read it before the models are asked
    save(place, TINY.replace("DEPTH = 3", "DEPTH = 4"))
    (place / "train.py").write_text("the user goes on\n")
    lab = LocalExecutor(night.repo, None, lambda text: texts.append(text) or "name", night.fit)
    if kind == "from another":
        best = TINY.replace("DEPTH = 3", "DEPTH = 2")
        lab.origin = Origin(session="first", experiment=1, commit="1" * 40, source="name"), best

    async def commit_baseline():
        return await asyncio.wait_for(lab.commit_baseline(), 60)

    commit = asyncio.run(commit_baseline()).commit
    script = git(place, "show", f"{commit}:train.py")

    assert night.repo.get_start() == begin  # which the session records
    assert begin in git(place, "log", "-1", "--format=%H %P", commit)
    assert script == (TINY if kind != "from another" else best).strip()
    assert night.source == TINY


def test_a_session_of_another_folder_of_the_repository_is_refused(tmp_path):
    place = ground(tmp_path / "place", {"a/train.py": TINY, "b/train.py": TINY.replace("DEPTH = 3", "DEPTH = 2")})
    begun = started(folder="a", commit=git(place, "rev-parse", "HEAD"))
    state = fold([Record(seq=0, at=0.0, task_id="", event=begun)])

    def check(folder):
        night = Preflight(Options(script=place / folder / "train.py"), "night", "optuna", state=state)
        return next(result for result in night.check() if result.subject == "git")

    assert check("a").state == "good"
    assert (other := check("b")).state == "bad"
    assert "night is of the folder a of its repository: give the script there" in other.message


@pytest.mark.parametrize(
    "change",
    [
        {"command": "cat ~/.ssh/*; python fit.py"},
        {"checks": ("cat ~/.ssh/*",)},
        {"data": ("~/.ssh",)},
        {"seed": {"argument": "; cat ~/.ssh/*; true"}},
    ],
)
def test_a_file_from_elsewhere_runs_no_command_and_shows_no_folder_that_the_user_did_not_name(change, tmp_path):
    place = ground(tmp_path / "place", {"fit.py": "LR = 1\n", "nightshift.toml": 'command = "python fit.py"\n'})
    options = Options(script=place / "fit.py")
    task = Preflight(options, "night", "optuna").task

    def read(options, **change):
        begun = started(task=task.model_copy(update=change), commit=git(place, "rev-parse", "HEAD"))
        state = fold([Record(seq=0, at=0.0, task_id="", event=begun)])
        return Preflight(options, "night", "optuna", state=state).task

    assert read(options) == read(options, seed={"env": "NIGHTSHIFT_SEED"}).model_copy(update={"seed": {}}) == task
    assert read(replace(options, own=True), **change) != task  # as the user's toml was when that night began
    key = next(iter(change))
    with pytest.raises(UsageError, match=rf"the session is of no night in its folder, and has {key} .*ssh") as error:
        read(options, **change)
    assert f"write the same into {place / 'nightshift.toml'}" in str(error.value)


def test_a_resumed_session_tells_what_nightshift_toml_says_in_vain(tmp_path):
    place = ground(tmp_path / "place", {"fit.py": "LR = 1\n", "nightshift.toml": 'command = "python fit.py"\n'})
    options = Options(script=place / "fit.py", own=True)
    begun = started(task=Preflight(options, "night", "optuna").task, commit=git(place, "rev-parse", "HEAD"))
    state = fold([Record(seq=0, at=0.0, task_id="", event=begun)])

    def warn():
        said = Preflight(options, "night", "optuna", state=state).check()
        return [each.message for each in said if each.subject == "nightshift.toml"]

    assert not warn()
    (place / "nightshift.toml").write_text('command = "python fit.py"\ntimeout = 3600\nchecks = ["true"]\n')
    (told,) = warn()
    assert told.startswith("checks, timeout as at the beginning of the session")


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"hours": 1}, []),
        ({"hours": 0.001}, ["the 0.001 hours are over"]),
        ({"hours": 1, "experiments": 0}, ["0 experiments are done"]),
        ({"hours": 1, "usd": 0}, ["$0 are spent"]),
    ],
)
def test_a_fork_is_told_where_its_limits_are_used_up(place, limits, told):
    options = Options(place / "sessions", place / "data", place / "train.py", unsafe=True)
    profile = PROFILE.model_copy(update={"data_hash": load(options.data).digest})
    begun = started(commit=git(place, "rev-parse", "HEAD"), profile=profile)
    state = fold([Record(seq=0, at=0.0, task_id="", event=begun)])
    said = [*Preflight(options, "night", "optuna", SessionLimits(**limits), state).check()]
    assert [each.subject for each in said if each.state == "bad"] == []
    warned = [(each.state, each.message.partition(" (")[0]) for each in said if each.subject == "limits"]
    assert warned == [("warn", f"this fork would end at once: {reason}") for reason in told]
