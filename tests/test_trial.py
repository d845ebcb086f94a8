"""Styles of prompts tried against each other: whole nights with a server on loopback, and one that goes on later."""

import json
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer

from orchestrator.cli.options import ExitCode, Options
from orchestrator.cli.preflight import Preflight
from orchestrator.cli.start import _check_end, _describe_settings, _has_measured, _is_other, _list_states, _plan_fork
from orchestrator.core.events import Certified, Ended, Forked, Proposed, SessionLimits, SessionSettings, Vetoed
from orchestrator.session.store import Session
from tests.fakes import PROFILE, started
from tests.scripted import Scripted, served
from tests.small import small_data
from tests.workplace import BEST, REPORTED_BEST, ROOT, begun, git, orchestrate, workplace

STYLES = ("trial", "--prompts", "default", "--prompts", "none", "--repeats", "2", "--max-experiments", "1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return workplace(tmp_path_factory.mktemp("trial") / "place", REPORTED_BEST)


def try_styles(place):
    with served(Scripted(script=("turn",))) as url:
        done = orchestrate(place, *STYLES, ANTHROPIC_BASE_URL=url, ANTHROPIC_API_KEY="sk-ant-0")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tried(place):
    return try_styles(place)


def list_kinds(place, name):
    done = orchestrate(place, "replay", name, "--json")
    return [json.loads(line)["event"]["kind"] for line in done.stdout.splitlines()]


def test_two_styles_are_tried_against_each_other(place, tried):
    assert "trial-none-2" in tried
    assert "more than" in tried
    assert "2 pairs of equal seeds" in tried
    assert "2 see 7.7; 10 see 1.2" in tried
    assert (place / "sessions/compare.html").stat().st_size > 100_000
    assert "reflected" not in list_kinds(place, "trial-none-1")
    last = Session(place / "sessions/trial-none-2/session.db", read_only=True)
    assert last.state.session.isolated
    assert not last.state.session.earlier, "an arm of a trial is told what another found"
    last.close()


def test_a_night_with_other_options_is_none_of_this_trial(place, tried):
    done = orchestrate(place, *STYLES, "--hours", "5", ANTHROPIC_BASE_URL="http://127.0.0.1:9")
    assert done.returncode == 2
    assert "trial-default-1 was begun with other options or files: give the same, or another --name" in done.stderr


CONTEXT = typer.Context(typer.core.TyperCommand("trial"))


def plan_night(folder, source):
    """A plan for a night with a style of its own, and its session, which was begun so."""
    place, style = workplace(folder / "place", source), folder / "style"
    style.mkdir()
    shutil.copy(ROOT / "prompts/default/researcher.md", style)
    chosen = Options(folder, place / "data", place / "train.py", place / "musings", seed=3, prompts=str(style))
    night = Preflight(replace(chosen, memory=False), "night", "claude", SessionLimits(hours=1))
    with closing(Session(folder / "night/session.db", create=True)) as session:
        for prompt in night.prompts.values():
            session.put(prompt.text)
        profile = PROFILE.model_copy(update={"data_hash": "" if night.task.is_reported else night.manifest.digest})
        known = {"profile": profile, "commit": git(place, "rev-parse", "HEAD"), "task": night.task}
        session.write("", started(seed=3, **known, **_describe_settings(night)))
    replace(night.options, venv=night.venv).remember(folder / "night")
    return place, night


def test_a_trial_does_not_go_on_with_other_models_slots_or_data(tmp_path):
    place, night = plan_night(tmp_path, BEST)
    chosen = night.options
    other = small_data(tmp_path / "data", make_rows=lambda count: np.full((count, 33), ord("b")))

    assert not _is_other(night)
    assert not _is_other(replace(night, options=replace(chosen, slots="auto")))
    models = {"model": ["other"]}, {"fallback": ["mechanic=other"]}
    for change in (*models, {"slots": "4"}, {"data": other}, {"fit": False}, {"keep_seed": True}, {"cluster": "auto"}):
        assert _is_other(replace(night, options=replace(chosen, **change))), change
    (tmp_path / "elsewhere").mkdir()
    elsewhere = workplace(tmp_path / "elsewhere/place", BEST + "# another script\n")
    git(elsewhere, "fetch", "-q", str(place), "main")
    assert _is_other(replace(night, options=replace(chosen, script=elsewhere / "train.py")))


@pytest.mark.parametrize("source", [BEST, REPORTED_BEST], ids=["examined", "reported"])
def test_a_trial_does_not_go_on_after_an_edit_of_what_its_nights_are(tmp_path, source):
    place, night = plan_night(tmp_path, source)
    begins = git(place, "rev-parse", "HEAD")

    def change(name, text):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
        git(place, "add", "-f", name)
        git(place, "commit", "-qm", "an edit")
        found = _is_other(replace(night))
        git(place, "reset", "-q", "--hard", begins)
        return found

    assert not _is_other(replace(night))
    assert not change("musings/night/0001.md", "a page")
    assert change("train.py", source + "# an edit\n")
    assert change("judge.py", "BEST = 2\n")
    assert change("notes.md", "a note") is (source == REPORTED_BEST), (
        "a run of a reported task sees all that is tracked"
    )
    (place / "train.py").write_text(source + "# an edit\n")
    assert not _is_other(replace(night)), "no night has what is not committed"
    for line in ("budget = 600", 'command = "python -u train.py"', 'metric = {name = "loss"}', 'seed = {env = "SEED"}'):
        (place / "nightshift.toml").write_text(line)
        assert _is_other(replace(night)), line
    (place / "nightshift.toml").unlink()
    replace(night.options, venv=".venv").remember(tmp_path / "night")
    assert _is_other(replace(night)), "its runs had other packages"
    replace(night.options, venv=night.venv).remember(tmp_path / "night")
    assert not _is_other(replace(night))
    with (tmp_path / "style/researcher.md").open("a") as style:
        style.write("Be bold.\n")
    assert _is_other(replace(night))


def test_a_fork_of_a_trial_goes_on_with_what_it_was_begun_with(tmp_path):
    _, night = plan_night(tmp_path, BEST)
    parent = Session(tmp_path / "night/session.db", read_only=True)

    def plan(hours=1, **change):
        one = replace(night, name="t-style-1", options=replace(night.options, **change))
        return _plan_fork(CONTEXT, parent, 1, {"hours": hours, "experiments": 1}, one)

    def begin(one):
        shutil.rmtree(tmp_path / one.name, ignore_errors=True)
        with closing(parent.fork(tmp_path / one.name / "session.db", 1)) as fork:
            fork.write("", Forked(parent="night@1", **_describe_settings(one) | {"certifies": False}))

    begin(plan())
    assert not _is_other(plan(), parent)
    assert _is_other(plan())
    assert _is_other(plan(hours=9), parent)
    for change in ({"model": ["other"]}, {"fallback": ["mechanic=other"]}):
        assert _is_other(plan(**change), parent), change
    begin(given := plan(**change))
    assert not _is_other(given, parent)
    assert _is_other(plan(), parent), "the other forks would have the models of the parent"
    with (tmp_path / "style/researcher.md").open("a") as style:
        style.write("Be bold.\n")
    assert not _is_other(given, parent), "what is planned has the style as it was"
    assert _is_other(plan(**change), parent)
    parent.close()


@pytest.mark.parametrize(
    ("at", "until", "more", "has"),
    [
        (152, 152, [], False),
        (75, 76, [], False),  # the verdict on a candidate of its parent
        (87, 88, [Vetoed(experiment=5)], False),
        (87, 89, [], True),  # what it proposed was refused
    ],
)
def test_a_fork_that_tried_nothing_of_its_own_is_no_measurement(tmp_path, at, until, more, has):
    golden, end = shutil.copyfile(ROOT / "tests/golden/agents-2.db", tmp_path / "golden.db"), Ended(reason="it is over")
    with (
        closing(Session(golden, read_only=True)) as session,
        closing(session.fork(tmp_path / "f/session.db", at)) as fork,
    ):
        own = {name: getattr(session.state.session, name) for name in SessionSettings.model_fields}
        limits = SessionLimits(hours=1, experiments=1)
        fork.write("", Forked(parent=f"night@{at}", **own | {"name": "f", "limits": limits}))
        assert _has_measured(Options(tmp_path), "f") is None
        fork.write("", *(record.event for record in session.records[at:until]), *more, end)
    assert _has_measured(Options(tmp_path), "f") is has
    if not has:
        with pytest.raises(SystemExit) as caught:
            _check_end(Options(tmp_path), "f")
        assert caught.value.code == ExitCode.NOTHING_RAN


def test_a_trial_goes_on_past_forks_that_measured_nothing(tmp_path):
    golden = str(shutil.copyfile(ROOT / "tests/golden/agents-2.db", tmp_path / "golden.db"))
    context = typer.Context(CONTEXT.command, obj=Options(tmp_path / "sessions", prompts="none"))
    for at in _list_states(context, golden, 2):
        plan = Preflight(context.obj, f"trial-none-{at}", "claude", SessionLimits(hours=0, experiments=1))
        with closing(Session(Path(golden), read_only=True)) as old:
            own = _describe_settings(_plan_fork(context, old, at, plan.limits.model_dump(), plan))
            with closing(old.fork(tmp_path / "sessions" / plan.name / "session.db", at)) as fork:
                parent = f"{old.state.session.name}@{at}"
                fork.write("", Forked(parent=parent, **own | {"certifies": False}), Ended(reason="the time is up"))
    done = orchestrate(tmp_path, "trial", "--prompts", "none", "--of", golden, "--at-states", "2", "--hours", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" measured nothing\n") == 2


def test_a_trial_goes_on_where_it_was_interrupted(place, tried):
    """One night stopped as by Ctrl-C, the others are done."""
    session = Session(place / "sessions/trial-default-1/session.db", time.time)
    cut = next(record.seq for record in session.records if isinstance(record.event, Proposed))
    session.close()
    with closing(sqlite3.connect(session.path)) as db, db:
        db.execute("delete from events where seq > ?", (cut,))
    git(place, "branch", "-f", "research/trial-default-1", session.state.parents[0].commit)

    printed = try_styles(place)

    assert "trial-none-1 is done already" in printed
    kinds = list_kinds(place, "trial-default-1")
    assert "resumed" in kinds
    assert kinds[-1] == "ended"


class Ending(Scripted):
    """It sends a process SIGTERM when that checks its models once a night is there."""

    def __init__(self, night):
        super().__init__(script=("turn",))
        self.night, self.process = night, None

    def checked(self, request):
        if self.night.exists():
            self.process.send_signal(signal.SIGTERM)
        return super().checked(request)


def test_sigterm_ends_a_trial_between_two_nights_too(place):
    served_by = Ending(place / "sessions/ended-none-1")
    words = ("trial", "--name", "ended", "--prompts", "none", "--repeats", "2", "--max-experiments", "1")
    with served(served_by) as url, begun(place, *words, ANTHROPIC_BASE_URL=url, ANTHROPIC_API_KEY="sk-ant-0") as life:
        served_by.process = life
        printed, _ = life.communicate(timeout=200)
    assert life.returncode == -signal.SIGTERM, printed
    assert list_kinds(place, "ended-none-1")[-1] == "ended"
    assert not (place / "sessions/ended-none-2").exists()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--prompts", "default", "--prompts", "unheard-of"], "unheard-of"),
        (["--prompts", "default", "--prompts", "default"], "once"),
        (["--prompts", "default", "--crew", "optuna"], "optuna"),
    ],
)
def test_a_trial_that_cannot_be_is_one_line_before_any_night(place, words, answer):
    done = orchestrate(place, "trial", *words, "--name", "bad", ANTHROPIC_BASE_URL="http://127.0.0.1:9")

    assert done.returncode == 2
    assert answer in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list((place / "sessions").glob("*bad*"))


@pytest.mark.soak
def test_two_styles_get_the_same_states(place):
    with served(Scripted(script=("turn",))) as url:
        words = ("--session", "long", "--max-experiments", "3", "--seed", "3", "--no-memory")
        tries = ("trial", *STYLES[1:5], "--of", "long", "--at-states", "2", "--name", "states")
        for command in (words, tries, tries):
            done = orchestrate(place, *command, ANTHROPIC_BASE_URL=url, ANTHROPIC_API_KEY="sk-ant-0")
            assert done.returncode == 0, done.stdout + done.stderr

    assert "an experiment of claude default more than one of claude none, from 2 equal states" in done.stdout
    assert done.stdout.count("is done already") == 4
    forks = sorted((place / "sessions").glob("states-*/session.db"))
    assert len(forks) == 4
    for path in forks:
        session = Session(path, read_only=True)
        forked = next(record.seq for record in session.records if isinstance(record.event, Forked))
        own = [record.event for record in session.records[forked + 1 :]]
        assert sum(isinstance(event, Proposed) for event in own) == 1, "a fork has more than one experiment of its own"
        assert not any(isinstance(event, Certified) for event in own), "a fork of a state measures more than it needs"
        session.close()
