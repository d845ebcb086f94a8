"""What a second night knows of the first: its results, its noise, and nothing where the two are compared."""

from statistics import fmean

import pytest

from orchestrator.agents import briefing
from orchestrator.core.state import PooledVariance
from orchestrator.core.task import EXAMINED, Metric, Task
from orchestrator.policy.evidence import calibrate_noise
from orchestrator.session.memory import recall_results
from prepare.constants import read_values
from tests.fakes import PROFILE
from tests.simulated import SOURCE, night, true_score
from tests.workplace import orchestrate

EXPERIMENTS = 14


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
