"""What a second night knows of the first: its results, its noise, and nothing where the two are compared."""

import asyncio
import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from statistics import fmean

import pytest

from orchestrator.agents import briefing
from orchestrator.cli.options import Options, UsageError
from orchestrator.cli.preflight import Preflight
from orchestrator.core.events import EarlierResult, Origin
from orchestrator.core.source import compute_digest
from orchestrator.core.state import PooledVariance
from orchestrator.core.task import EXAMINED, Metric, Task
from orchestrator.executor import LocalExecutor
from orchestrator.optimizer.search import read_search, stack_near_misses
from orchestrator.policy.evidence import calibrate_noise, estimate_sigma
from orchestrator.repo import Repo
from orchestrator.session.memory import recall_results
from orchestrator.session.store import Session
from prepare.constants import read_values
from prepare.files import list_by_age
from tests.fakes import PROFILE, started
from tests.simulated import SOURCE, Landscape, night, true_score
from tests.test_reported import ground
from tests.workplace import TINY, git, orchestrate, save, workplace

EXPERIMENTS = 14


class Exact(Landscape):
    """Like it, but its runs differ by nothing."""

    async def train(self, granted, source):
        outcome = await super().train(granted, source)
        return outcome.model_copy(update={"val_bpb": true_score(source)})


def simulate(folder, name, experiments=EXPERIMENTS, **changes):
    return night(folder / name / "session.db", experiments=experiments, hours=0.2, name=name, **changes)


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    """The folder with one night in it."""
    folder = tmp_path_factory.mktemp("sessions")
    simulate(folder, "first").close()
    return folder


@pytest.fixture(scope="module")
def earlier(sessions):
    return recall_results(sessions, PROFILE, EXAMINED)[0]


def test_every_tested_change_is_recalled_with_its_constants_before_and_after(earlier):
    assert len(earlier) >= EXPERIMENTS - 3
    assert [past.experiment for past in earlier] == sorted((past.experiment for past in earlier), reverse=True)
    first, values = earlier[-1], read_values(SOURCE)
    assert first.before == {name: values[name] for name in first.changes}
    assert any(past.status == "kept" and past.gain > 0 for past in earlier)
    assert [gap.progress for gap in first.gaps] == [0.4, 0.6, 0.8]
    assert all(past.gaps for past in earlier if past.gain is not None)


def test_what_a_fork_shares_counts_once_and_what_cannot_be_compared_not_at_all(sessions, earlier, tmp_path):
    folder = tmp_path / "all"
    first = simulate(folder, "first")
    with_fork = first.fork(folder / "fork" / "session.db", len(first.records))
    with_fork.close()
    simulate(folder, "other-data", profile=PROFILE.model_copy(update={"data_hash": "other"})).close()
    (folder / "broken").mkdir()
    (folder / "broken" / "session.db").write_bytes((folder / "first" / "session.db").read_bytes()[:5000])
    (folder / "empty").mkdir()
    (folder / "empty" / "session.db").touch()

    found, variance = recall_results(folder, PROFILE, EXAMINED)

    assert len(found) == len(earlier)
    assert variance == first.state.variance


def test_many_forks_of_a_night_leave_room_for_the_others(tmp_path):
    simulate(tmp_path, "other", seed=8).close()
    first = simulate(tmp_path, "first")
    for number in range(10):
        first.fork(tmp_path / f"fork-{number}" / "session.db", len(first.records)).close()

    found, _ = recall_results(tmp_path, PROFILE, EXAMINED)

    assert {past.session for past in found} == {"other", "first"}


@pytest.mark.parametrize("seed", range(4))
def test_a_second_night_repeats_nothing_that_the_first_refuted(tmp_path, earlier, seed):
    session = simulate(tmp_path, "second", seed=seed, earlier=earlier)

    refuted = {tuple(past.changes.items()) for past in earlier if past.gain is not None and past.gain < -2 * past.error}
    proposed = [result.proposal for result in session.state.results if result.experiment]
    assert refuted
    assert not refuted & {tuple(proposal.settings.items()) for proposal in proposed}


def test_a_second_night_goes_on_from_what_the_first_kept(tmp_path, earlier):
    plain, knowing = (
        fmean(
            true_score(session.get(session.state.parent.source))
            for seed in range(4)
            if (session := simulate(tmp_path, f"{len(known)}-{seed}", experiments=4, seed=seed, earlier=known))
        )
        for known in ((), earlier)
    )
    assert knowing < plain - 0.03


def test_a_single_keep_that_is_not_in_force_is_tried_first(tmp_path, earlier):
    kept = next(past for past in earlier if past.status == "kept")
    session = simulate(tmp_path, "second", experiments=1, earlier=(kept,))
    assert session.state.results[-1].proposal.settings == kept.changes


def test_what_an_ablation_reverted_is_not_tried_again(tmp_path):
    told = (
        ("MATRIX_LR", 0.04, 0.08, "reverted", 0.02),
        ("SCALAR_LR", 0.5, 0.8, "discarded", 0.003),
        ("SOFTCAP", 15.0, 25.0, "discarded", -0.004),
        ("ADAM_BETA1", 0.8, 0.9, "discarded", -0.01),
    )
    earlier = [
        EarlierResult(session="first", experiment=n, title=name, family="optimizer", error=0.002, **of)
        for n, (name, old, new, status, gain) in enumerate(told)
        if (of := {"changes": {name: new}, "before": {name: old}, "status": status, "gain": gain})
    ]
    session = simulate(tmp_path, "second", experiments=1, earlier=earlier)

    search = read_search(session.state, session.get)
    assert stack_near_misses(search) is None
    assert search.is_new({"MATRIX_LR": 0.07})
    assert not search.is_new({"MATRIX_LR": 0.08})
    assert "MATRIX_LR" not in session.state.results[-1].proposal.settings


def test_the_researcher_is_told_what_did_best_and_what_failed_and_never_by_a_bare_number(tmp_path, earlier):
    session = simulate(tmp_path, "second", earlier=earlier)

    told = briefing.brief_researcher(session.state, 1, 1, SOURCE)["earlier"]

    best = max((past for past in earlier if past.status == "kept"), key=lambda past: past.gain)
    assert told.splitlines()[-1].startswith(f"- experiment {best.experiment} of first: {best.title}")
    refuted = [past for past in earlier if past.status == "discarded" and past.gain < -2 * past.error]
    assert f"{refuted[0].title} (" in told
    assert told.count("): refuted, ") == len(refuted)
    assert "#" not in told
    assert len(told) <= 1000 * briefing.CHARACTERS


def test_noise_that_was_measured_enough_replaces_the_profiles():
    few, many = PooledVariance(4 * 0.01**2, 4), PooledVariance(80 * 0.01**2, 80)
    assert calibrate_noise(PROFILE, few) == PROFILE
    assert calibrate_noise(PROFILE, many).sigma == pytest.approx(0.01, rel=0.1)


def test_what_the_user_asks_for_does_not_part_nights_and_another_metric_does(tmp_path):
    task = Task(form="reported", command="python fit.py", editable=("fit.py",), program="be bold")
    simulate(tmp_path, "first", experiments=3, task=task).close()

    def recall(**changes):
        return len(recall_results(tmp_path, PROFILE, task.model_copy(update=changes))[0])

    simulate(tmp_path, "other", experiments=3, task=task.model_copy(update={"metric": Metric(name="loss")})).close()
    compared = orchestrate(tmp_path, "compare", "first", "other", "--sessions", ".")
    assert (compared.returncode, len(compared.stderr.splitlines())) == (2, 1), compared.stderr
    assert "scored differently" in compared.stderr

    assert recall() == recall(program="be careful") > 0
    assert recall(metric=Metric(name="accuracy")) == recall(command="python other.py") == 0


def test_a_reported_task_is_told_only_of_its_own_project(tmp_path):
    task = Task(form="reported", command="python fit.py", editable=("fit.py",))
    place = ground(tmp_path / "place", {"a/fit.py": SOURCE, "b/fit.py": SOURCE})
    other = ground(tmp_path / "other", {"a/fit.py": "another repository"})
    begin, sessions = git(place, "rev-parse", "HEAD"), tmp_path / "sessions"
    known = {"experiments": 3, "hours": 0.2, "task": task, "commit": begin}
    night(sessions / "first/session.db", folder="a", **known).close()
    git(place, "commit", "-q", "--amend", "--allow-empty", "-m", "the user goes on")

    scripts = place / "a/fit.py", place / "b/fit.py", other / "a/fit.py"
    told, *untold = [recall_results(sessions, PROFILE, task, repo=Repo(script, "second", task)) for script in scripts]

    assert told[0]
    assert untold == [((), PooledVariance())] * 2
    night(sessions / "older/session.db", **known).close()
    assert recall_results(sessions, PROFILE, task, repo=Repo(scripts[1], "second", task))[0], "its folder is not known"


def test_what_another_judge_scored_is_not_recalled(tmp_path):
    task = Task(form="reported", command="python eval.py", editable=("fit.py",), protected=("judge/*",))
    place = ground(tmp_path / "place", {"code/fit.py": SOURCE, "code/eval.py": "1", "code/judge/a.py": "1"})
    simulate(tmp_path, "first", experiments=3, task=task, commit=git(place, "rev-parse", "HEAD")).close()

    def recalls(name, text):
        (place / name).write_text(text)
        git(place, "add", ".")
        git(place, "commit", "-qm", "the user goes on")
        return bool(recall_results(tmp_path, PROFILE, task, repo=Repo(place / "code/fit.py", "second", task))[0])

    assert recalls("eval.py", "another")
    assert recalls("code/fit.py", SOURCE + "# edited")
    assert not recalls("code/judge/a.py", "2")
    assert recalls("code/judge/a.py", "1")
    assert not recalls("code/eval.py", "2")


def test_what_another_gpu_found_is_not_recalled(tmp_path):
    simulate(tmp_path, "first", experiments=3, gpu="NVIDIA A100, 86 GB").close()

    names = "NVIDIA A100, 86 GB", "", "NVIDIA T4, 17 GB"
    found = [len(recall_results(tmp_path, PROFILE, EXAMINED, gpu)[0]) for gpu in names]
    assert found[0] == found[1] > 0
    assert found[2] == 0


def test_a_keep_that_waits_for_its_post_mortem_is_recalled(sessions, tmp_path):
    with closing(Session(sessions / "first/session.db", read_only=True)) as first:
        last = [record for record in first.records if record.event.kind == "promoted"][-1]
        first.fork(tmp_path / "cut/session.db", last.seq + 1).close()

    latest = recall_results(tmp_path, PROFILE, EXAMINED)[0][0]

    assert (latest.experiment, latest.status) == (last.event.experiment, "kept")


def test_baselines_alone_tell_of_the_noise_and_those_of_a_fork_once(tmp_path):
    unknown = PROFILE.model_copy(update={"sigma": 0.0})
    for seed in range(2):
        whole = simulate(tmp_path / "whole", str(seed), 1, seed=seed, profile=unknown)
        end = next(r.seq for r in whole.records if r.event.kind == "promoted") + 1
        for name in ("night", "fork"):
            whole.fork(tmp_path / f"{name}-{seed}/session.db", end).close()

    found, variance = recall_results(tmp_path, PROFILE, EXAMINED)

    assert (found, variance.dof) == ((), 2 * 2)


def test_the_noise_that_forks_share_counts_once_whatever_each_found(sessions, earlier, tmp_path):
    with closing(Session(sessions / "first/session.db", read_only=True)) as first:
        ends = [record.seq + 1 for record in first.records if record.event.kind in ("reflected", "closed")]
        for age, end in enumerate((ends[3], ends[6], len(first.records))):
            path = tmp_path / f"fork-{end}/session.db"
            first.fork(path, end).close()
            os.utime(path, (0, 90 - age))

        found, variance = recall_results(tmp_path, PROFILE, EXAMINED)

        assert len(found) == len(earlier)
        assert variance == first.state.variance


def test_nights_whose_runs_are_identical_tell_no_noise(tmp_path):
    simulate(tmp_path, "first", experiments=3, lab=Exact).close()

    found, variance = recall_results(tmp_path, PROFILE, EXAMINED)

    assert found
    assert variance == PooledVariance()


def test_runs_that_keep_the_scripts_seed_tell_no_noise_though_a_gpu_makes_them_differ(tmp_path):
    session = simulate(tmp_path, "first", experiments=3, keeps_seed=True)

    assert session.state.variance.dof
    assert estimate_sigma(session.state) == pytest.approx(PROFILE.sigma)
    found, variance = recall_results(tmp_path, PROFILE, EXAMINED)
    assert found
    assert variance == PooledVariance()


def test_nights_of_other_data_do_not_hide_those_of_these(tmp_path):
    simulate(tmp_path, "first", experiments=3).close()
    os.utime(tmp_path / "first/session.db", (0, 90))
    for number in range(12):
        other = Session(tmp_path / f"other-{number}/session.db", create=True)
        other.write("", started(profile=PROFILE.model_copy(update={"data_hash": "other"})))
        other.close()

    assert recall_results(tmp_path, PROFILE, EXAMINED)[0]


def test_what_nights_of_one_seed_have_in_common_counts_once(tmp_path):
    for name in ("first", "second", "third"):
        variance = (night := simulate(tmp_path, name, experiments=3)).state.variance
        night.close()
        with closing(sqlite3.connect(night.path)) as db, db:
            db.execute("update events set at = at + ?", (len(name) * 1e5,))

    assert recall_results(tmp_path, PROFILE, EXAMINED)[1] == variance


def test_a_session_that_is_deleted_while_a_night_begins_is_left_out(tmp_path):
    paths = [tmp_path / f"{n}.db" for n in range(3)]
    for age, path in enumerate(paths):
        path.touch()
        os.utime(path, (0, 90 - age))
    paths[1].unlink()
    assert list_by_age(paths) == [paths[2], paths[0]]


@pytest.mark.parametrize("name", ["first", "first/session.db"])
def test_a_night_begins_with_the_best_of_another(sessions, tmp_path, name):
    place = workplace(tmp_path / "place", SOURCE)
    paths = Options(sessions=sessions, data=place / "data", script=place / "train.py")
    origin = str(sessions / name) if name.endswith(".db") else name
    with closing(Session(sessions / "first/session.db", read_only=True)) as first:
        best, text = first.state.best, first.get(first.state.parent.source)
    night = Preflight(replace(paths, origin=origin), "second", "optuna")

    found, source = night.beginning
    texts = {}
    lab = LocalExecutor(
        night.repo, None, lambda text: texts.setdefault(compute_digest(text), text) and compute_digest(text)
    )
    lab.origin = found, source
    baseline = asyncio.run(lab.commit_baseline())

    assert (found.session, found.experiment, source) == ("first", best, text)
    assert texts[baseline.source] == text != SOURCE
    assert git(place, "show", "research/second:train.py") == text.strip()
    assert git(place, "log", "-1", "--format=%s", "research/second") == f"begin with experiment {best} of first"
    assert asyncio.run(lab.commit_baseline()) == baseline, "also after a crash"


def test_what_another_night_kept_keeps_its_history_where_it_is_here(tmp_path):
    place = workplace(tmp_path / "place")
    head, repo = git(place, "rev-parse", "HEAD"), Repo(place / "train.py", "first")
    kept = repo.promote(head, TINY.replace("DEPTH = 3", "DEPTH = 2"), "kept")
    second = Repo(place / "train.py", "second")

    assert second.begin_with(kept, "elsewhere", "begin") == kept
    trained, texts = (
        TINY.replace("DEPTH = 3", "DEPTH = 2").replace("MATRIX_LR = 0.04 ", "MATRIX_LR = 0.05 "),
        list[str](),
    )
    lab = LocalExecutor(second, None, lambda text: texts.append(text) or "name")
    lab.origin = Origin(session="first", experiment=1, commit=kept, source="name"), trained
    assert asyncio.run(lab.commit_baseline()).commit == kept
    assert texts == [trained], "with the constants of the first night's runs, which the branch does not have"
    save(place, TINY.replace("DEPTH = 3", "DEPTH = 4"))
    later = second.begin_with(kept, "elsewhere", "begin")
    assert git(place, "rev-parse", f"{later}^") == git(place, "rev-parse", "HEAD")
    assert "\nDEPTH = 2 " in git(place, "show", f"{later}:train.py")
    assert second.begin_with("1" * 40, TINY.replace("DEPTH = 3", "DEPTH = 4"), "begin") == git(
        place, "rev-parse", "HEAD"
    )


def test_a_night_cannot_begin_with_what_is_none(sessions, tmp_path):
    place = workplace(tmp_path / "place")
    paths = Options(sessions=sessions, data=place / "data", script=place / "train.py")
    (place / "nightshift.toml").write_text(
        'command = "python train.py"\neditable = ["train.py", "m.py"]\nmetric = {name = "a"}\n'
    )

    with pytest.raises(UsageError, match=r"here train\.py, m\.py may change"):
        _ = Preflight(replace(paths, origin="first"), "second", "optuna").beginning
    with pytest.raises(UsageError, match="no session is called 'third'"):
        _ = Preflight(replace(paths, origin="third"), "second", "optuna").beginning
