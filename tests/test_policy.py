"""What is worth keeping, and what must be audited: the policy alone, on states made by hand."""

import random
from dataclasses import replace

import pytest

from benchmarks.noise import fresh_state, score
from orchestrator.core import curves
from orchestrator.core import events as ev
from orchestrator.core.state import BASELINE, Candidate, ExperimentResult, State
from orchestrator.policy import evaluation_plan, judge, noise, pruning, thresholds

STATE = fresh_state(random.Random(0), "cpu")
MADE = ev.Committed(experiment=1, commit="", parent=0, source="", fingerprint="", added=0, removed=0)


def incumbent(**facts) -> State:
    """The state in which all of the incumbent's runs have these facts, too."""
    runs = tuple(run.model_copy(update=facts) for run in STATE.incumbent.scores)
    return replace(STATE, incumbent=replace(STATE.incumbent, scores=runs))


def candidate(*gains: float, removed: int = 0, **facts) -> Candidate:
    """Runs that are better than the mark by these many hundredths."""
    plain = score(random.Random(0), 0.0)
    runs = [plain.model_copy(update={**facts, "val_bpb": STATE.incumbent.score_to_beat - gain / 100}) for gain in gains]
    return Candidate(BASELINE, MADE.model_copy(update={"removed": removed}), tuple(runs), len(runs))


def decision(*gains: float, **how) -> object:
    return judge.judge(STATE, 1, candidate(*gains, **how))


def test_one_seed_is_never_enough():
    assert decision(15.0) == "again"
    assert isinstance(decision(15.0, 15.0), ev.Kept)


def test_what_is_no_better_costs_one_run():
    assert isinstance(decision(0.0), ev.Discarded)
    assert isinstance(decision(-5.0), ev.Discarded)


def test_a_close_call_runs_again_and_then_the_incumbent_does():
    assert decision(1.3, 1.3) == "again"
    assert decision(1.8, 1.8, 1.8, 1.8) == "remeasure"


def test_eight_seeds_decide():
    assert isinstance(decision(*[0.5] * thresholds.MAX_RUNS), ev.Discarded)


def test_less_code_may_be_kept_at_no_loss_and_leaves_the_mark():
    kept = decision(*[-0.01] * thresholds.SIMPLER_RUNS, removed=thresholds.SIMPLER_LINES)

    assert isinstance(kept, ev.Kept)
    assert kept.score_to_beat == STATE.incumbent.score_to_beat


def test_the_less_is_known_of_the_noise_the_more_is_asked():
    needed = [noise.t_critical(dof) for dof in range(1, 200)]
    assert needed == sorted(needed, reverse=True)


@pytest.mark.parametrize(
    ("experiment", "run", "removed", "below"),
    [(0, 1, 0, "always"), (0, 2, 0, "always"), (5, 1, 0, "mark"), (5, 1, 3, "always"), (5, 7, 0, "always")],
)
def test_every_run_that_a_mean_is_taken_of_is_audited(experiment, run, removed, below):
    state = replace(STATE, open={experiment: candidate(*[1.0] * (run - 1), removed=removed)})
    terms = evaluation_plan.plan_evaluation(state, experiment, run)
    assert terms.audit == (STATE.incumbent.score_to_beat if below == "mark" else below)


def test_the_incumbent_is_audited_again_when_it_runs_again():
    state = replace(STATE, incumbent=replace(STATE.incumbent, experiment=3), open={5: candidate(1.0)})
    assert evaluation_plan.plan_evaluation(state, 3, 4).audit == "always"


@pytest.mark.parametrize(("worst", "error"), [(0.3, 0.3), (-5.0, 0.0)])
def test_claims_that_were_too_bad_allow_none_that_are_too_good(worst, error):
    audit = ev.Audit(claimed=2.0, error=0.0, worst=worst, looks=9, seconds=1.0, evaluation=1.0)
    assert evaluation_plan.plan_evaluation(incumbent(audit=audit), 5, 1).baseline_error == error


def test_a_script_that_sets_its_own_seed_is_told_so():
    same = candidate(1.0, 1.0, 1.0)
    kept = judge.judge(replace(STATE, incumbent=None), 0, same)
    assert "3 identical runs (train.py sets its own seed)" in kept.reason
    assert "seeds" not in decision(*[20.0] * 3).reason
    assert "over 2 seeds" in decision(15.0, 16.0).reason


def test_the_baseline_shows_how_far_honest_claims_are_off():
    again = evaluation_plan.plan_evaluation(replace(STATE, open={0: candidate()}), 0, 2)
    assert (again.baseline_error, again.audit, again.confirmed) == ("unmeasured", "always", True), (
        "the first run was lost"
    )
    assert evaluation_plan.plan_evaluation(STATE, 5, 1).baseline_error == 0.0
    audit = ev.Audit(claimed=2.0, error=0.0, worst=0.3, looks=9, seconds=1.0, evaluation=1.0)
    assert evaluation_plan.plan_evaluation(incumbent(audit=audit), 5, 1).baseline_error == 0.3
    later = replace(STATE, incumbent=replace(STATE.incumbent, experiment=3))
    shown = replace(_finding(0, 0.0, random.Random(0), audit=audit), experiment=0)
    assert evaluation_plan.plan_evaluation(replace(later, results=(shown,)), 5, 1).baseline_error == 0.3


def test_a_jump_that_is_hard_to_believe_takes_another_seed_and_a_look():
    jump = 100 * STATE.incumbent.score_to_beat * thresholds.IMPLAUSIBLE_GAIN + 1
    assert decision(jump, jump) == "again"
    kept = decision(*[jump] * thresholds.IMPLAUSIBLE_RUNS)
    assert isinstance(kept, ev.Kept)
    assert "have a look" in kept.reason


@pytest.mark.parametrize(("scores", "confirmed"), [(0, False), (1, True), (3, True)])
def test_only_a_run_that_can_decide_a_keep_sees_the_confirmation_text(scores, confirmed):
    state = replace(STATE, open={5: candidate(*[1.0] * scores)})
    assert evaluation_plan.plan_evaluation(state, 5, scores + 1).confirmed == confirmed


def test_memory_has_its_price():
    state = incumbent(metrics=ev.RunMetrics(memory_mb=1000.0))

    def judged(gain: float, memory: float) -> object:
        return judge.judge(state, 1, candidate(gain, gain, metrics=ev.RunMetrics(memory_mb=memory)))

    enough = next(gain / 100 for gain in range(1000) if isinstance(judged(gain / 100, 1000.0), ev.Kept))
    assert isinstance(judged(enough, 1000 * thresholds.MEMORY_SLACK), ev.Kept)
    assert not isinstance(judged(enough, 2000.0), ev.Kept)
    paid = enough + 100 * thresholds.MEMORY_PRICE * noise.compute_sigma(noise.pool_variance(state)) + 0.01
    assert isinstance(kept := judged(paid, 2000.0), ev.Kept)
    assert "2 times the memory" in kept.reason
    assert isinstance(judged(enough, 500.0), ev.Kept)


def test_less_code_is_no_reason_to_take_more_memory():
    state = incumbent(metrics=ev.RunMetrics(memory_mb=1000.0))
    how = {"removed": thresholds.SIMPLER_LINES, "metrics": ev.RunMetrics(memory_mb=4000.0)}
    assert isinstance(judge.judge(state, 1, candidate(*[0.0] * thresholds.SIMPLER_RUNS, **how)), ev.Discarded)


@pytest.mark.parametrize(
    ("lost", "verdict"),
    [(0.0, ev.Kept), (0.4, ev.Kept), (2.5, ev.Discarded), (-1.0, ev.Kept)],
)
def test_a_gain_must_be_there_on_text_that_no_decision_has_used(lost, verdict):
    state = incumbent(confirmed=STATE.incumbent.score_to_beat + 0.5)
    state = replace(
        state, incumbent=replace(state.incumbent, scores=tuple(_shifted(s, 0.5) for s in state.incumbent.scores))
    )
    runs = tuple(_shifted(run, 0.5 + lost / 100) for run in candidate(4.0, 4.0).scores)
    found = judge.judge(state, 1, Candidate(BASELINE, MADE, runs, len(runs)))
    assert isinstance(found, verdict)
    assert isinstance(found, ev.Kept) or "fresh text" in found.reason


def test_without_that_examination_there_is_no_keep():
    state = incumbent(confirmed=STATE.incumbent.score_to_beat)
    assert judge.judge(state, 1, candidate(9.0, 9.0)) in {"again", "remeasure"}
    found = judge.judge(state, 1, candidate(*[9.0] * thresholds.MAX_RUNS))
    assert isinstance(found, ev.Discarded)
    assert "not examined" in found.reason


def _shifted(run, by):
    return run.model_copy(update={"confirmed": run.val_bpb + by})


# Early ends. In this world a run's loss is ahead or behind by five times what its score will be.


def _curve(behind: float, luck: random.Random) -> tuple[ev.Point, ...]:
    steps = [n / 50 for n in range(1, 51)]
    return tuple(ev.Point(seconds=p, progress=p, loss=4 - p + 5 * behind + luck.gauss(0, 0.02)) for p in steps)


def _run(behind: float, luck: random.Random, **facts):
    value = STATE.incumbent.score_to_beat + behind + luck.gauss(0, 0.003)
    return score(luck, 0.0).model_copy(update={"val_bpb": value, "curve": _curve(behind, luck), **facts})


def _finding(number: int, behind: float, luck: random.Random, **facts) -> ExperimentResult:
    run = _run(behind, luck, **facts)
    key = {"experiment": number, "error": 0.005, "sigma": 0.0048, "reason": ""}
    verdict = ev.Discarded(mean=run.val_bpb, gain=STATE.incumbent.score_to_beat - run.val_bpb, **key)
    return ExperimentResult(number, BASELINE, verdict, (run,), MADE, None, None, 0)


def _night(count: int, luck: random.Random, **facts) -> State:
    """So many candidates have been tried, and number 99 waits for its first run."""
    best = replace(STATE.incumbent, scores=tuple(_run(0.0, luck) for _ in range(3)))
    results = tuple(_finding(n, luck.uniform(-0.01, 0.05), luck, **facts) for n in range(1, count + 1))
    return replace(STATE, incumbent=best, results=results, open={99: candidate()})


def test_before_calibration_and_for_confirmations_no_run_is_hopeless():
    luck = random.Random(1)
    assert not evaluation_plan.plan_evaluation(_night(thresholds.CALIBRATION_RUNS - 1, luck), 99, 1).pruning_thresholds
    state = _night(100, luck)
    assert evaluation_plan.plan_evaluation(state, 99, 1).pruning_thresholds
    assert not evaluation_plan.plan_evaluation(replace(state, open={99: candidate(1.0)}), 99, 2).pruning_thresholds
    assert not evaluation_plan.plan_evaluation(state, 0, 4).pruning_thresholds


def test_the_hopeless_are_found_and_no_other():
    luck = random.Random(2)
    bounds = evaluation_plan.plan_evaluation(_night(60, luck), 99, 1).pruning_thresholds
    assert [bound.progress for bound in bounds] == list(thresholds.CHECKPOINTS)
    assert not any(_condemned(bounds, luck.uniform(-0.05, 0.0), luck) for _ in range(500))
    assert all(_condemned(bounds, luck.uniform(0.04, 0.2), luck) for _ in range(500))


def _condemned(bounds: tuple[ev.PruningThreshold, ...], behind: float, luck: random.Random) -> bool:
    curve = _curve(behind, luck)
    return any(curves.get_recent_loss(curve, bound.progress) > bound.loss for bound in bounds)


def test_who_is_ahead_of_the_best_is_never_hopeless():
    luck = random.Random(5)
    results = [_finding(n, 0.01 + n / 1000, luck, curve=_curve(-0.05 + n / 1000, luck)) for n in range(1, 30)]
    state = replace(_night(0, luck), results=tuple(results))
    assert not any(
        _condemned(evaluation_plan.plan_evaluation(state, 99, 1).pruning_thresholds, -0.01, luck) for _ in range(200)
    )


def test_where_curves_say_nothing_none_is_hopeless():
    luck = random.Random(3)
    results = [_finding(n, luck.uniform(-0.02, 0.02), luck, curve=_curve(0.0, luck)) for n in range(1, 60)]
    state = replace(_night(0, luck), results=tuple(results))
    assert not any(
        _condemned(evaluation_plan.plan_evaluation(state, 99, 1).pruning_thresholds, 0.0, luck) for _ in range(200)
    )


def test_one_in_five_is_reprieved_and_too_many_false_alarms_end_the_rule():
    luck = random.Random(4)
    state = _night(60, luck)
    share = (
        sum(
            evaluation_plan.plan_evaluation(replace(state, open={n: candidate()}), n, 1).control_run
            for n in range(1000)
        )
        / 1000
    )
    assert share == pytest.approx(1 / thresholds.CONTROL_RUN_EVERY, abs=0.05)
    wrong = _finding(70, -0.02, luck, would_prune_at=0.4)
    right = tuple(_finding(n, 0.05, luck, would_prune_at=0.4) for n in range(71, 91))
    assert pruning.count_false_prunes(replace(state, results=(*state.results, wrong, *right))) == (21, 1)
    assert not evaluation_plan.plan_evaluation(
        replace(state, results=(*state.results, wrong)), 99, 1
    ).pruning_thresholds
    assert evaluation_plan.plan_evaluation(
        replace(state, results=(*state.results, wrong, *right)), 99, 1
    ).pruning_thresholds
