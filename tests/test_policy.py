"""What is worth keeping, what must be audited, what is certified: the policy alone, on states made by hand."""

import random
from dataclasses import replace
from math import inf
from operator import attrgetter
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import events as ev
from orchestrator.core.description import get_recent_loss
from orchestrator.core.state import (
    BASELINE,
    Broken,
    Candidate,
    Decided,
    Incumbent,
    PooledVariance,
    State,
    Training,
    apply,
    fold,
)
from orchestrator.policy import (
    belief,
    certification,
    evaluation_plan,
    evidence,
    judge,
    limits,
    proposals,
    pruning,
    thresholds,
)
from orchestrator.policy.evaluation_plan import draw_fresh_seed, draw_seed
from orchestrator.policy.judge import NeededRun
from orchestrator.policy.schedule import find_due
from orchestrator.policy.stack import list_stack, plan_rebase

SIGMA = 0.008
MADE = ev.Committed(experiment=1, commit="c" * 40, parent=0, source="", fingerprint="", added=0, removed=0)


def score(value: float, seed: int = 0) -> ev.Scored:
    return ev.Scored(experiment=1, run=1, val_bpb=value, metrics=ev.RunMetrics(), curve=(), log="", seed=seed)


def make_state(*scores: float, **profile) -> State:
    """Return a session whose baseline ran with the first seeds and got these scores."""
    known = {"name": "cpu", "budget_kind": "work", "budget": 1, "expected_seconds": 60, "data_hash": "", "sigma": SIGMA}
    facts = {"crew": "none", "style": "none", "seed": 0, "repairs": 0, "reflect_every": 0, "versions": {}}
    facts["commit"] = "c" * 40
    limits = ev.SessionLimits(hours=8.0)
    started = ev.Started(name="n", limits=limits, profile={**known, **profile}, prompts={}, **facts)
    state = State(started=started)
    runs = tuple(score(value, draw_seed(state, run)) for run, value in enumerate(scores, 1))
    return replace(state, incumbent=Incumbent(0, runs, fmean(scores)), variance=PooledVariance().add(runs))


NUMBERS = {"experiment": 1, "mean": 2.0, "gain": 0.0, "error": 0.1, "sigma": SIGMA, "reason": ""}
STATE = make_state(2.0, 2.01, 1.99, 2.0, 2.004, 1.996, 2.0, 2.003)
TWO = make_state(2.0, 2.01)
PRIOR = belief.learn_outlook(()).prior


def incumbent(state: State = STATE, **facts) -> State:
    """Return the state in which all of the incumbent's runs have these facts, too."""
    runs = tuple(run.model_copy(update=facts) for run in state.incumbent.scores)
    return replace(state, incumbent=replace(state.incumbent, scores=runs))


def candidate(*gains: float, state: State = STATE, removed: int = 0, family="other", **facts) -> Candidate:
    """Return a candidate whose runs are better than the incumbent's at the same seeds by these many σ."""
    usual = [*(run.val_bpb for run in state.incumbent.scores), *[2.0] * 9]
    runs = [score(usual[n] - gain * SIGMA, draw_seed(state, n + 1)) for n, gain in enumerate(gains)]
    made = MADE.model_copy(update={"removed": removed})
    return Candidate(
        BASELINE.model_copy(update={"family": family}), made, tuple(run.model_copy(update=facts) for run in runs)
    )


def decide(*gains: float, state: State = STATE, **how) -> object:
    return judge.judge(state, 1, candidate(*gains, state=state, **how))


@pytest.mark.parametrize("error", [0.1, 0.44, 1.2])
@pytest.mark.parametrize("gain", [5.0, 20.0, 47.0, 60.0, 90.0, 150.0, 400.0])
def test_a_large_effect_is_believed_however_small_its_error(gain, error):
    prior = belief.learn_outlook(()).prior

    assert belief.infer(prior, gain, error).probability > 0.95
    assert belief.infer(prior, -gain, error).probability < 0.01


def test_one_pair_is_enough_where_luck_is_shared_and_not_where_it_is_not():
    assert isinstance(decide(2.0), ev.Kept)
    assert not isinstance(decide(1.0, family="data order"), ev.Kept)
    assert isinstance(decide(8.0, family="data order"), ev.Kept)


def with_rule(state: State, hours: float = 8.0) -> State:
    """Return the state of a session that records today's rule: long, at 60 s a run, or short."""
    limits = ev.SessionLimits(hours=hours)
    return replace(state, started=state.session.model_copy(update={"rule": thresholds.KEEP_RULE, "limits": limits}))


@pytest.mark.parametrize("loss", [12.0, 20.0, 60.0])
@pytest.mark.parametrize("seen", [5.0, 20.0])
def test_nothing_seen_elsewhere_keeps_what_loses_on_the_branch(loss, seen):
    state = with_rule(STATE)
    moved = replace(candidate(-loss, state=state), earlier=((seen * SIGMA, SIGMA, 1),))

    verdict = judge.judge(state, 1, moved)

    assert isinstance(verdict, ev.Discarded)
    assert verdict.probability < 0.01
    state = replace(state, open={1: moved}, parents={0: MADE})
    assert list_stack(state) == [0], "nor is another stacked on it"
    rule = thresholds.KEEP_RULE.model_copy(update={"consistent": False})
    old = replace(state, started=state.session.model_copy(update={"rule": rule}))
    assert loss < 60 or list_stack(old) == [0, 1], "as it was"


@pytest.mark.parametrize("gain", [1.0, 2.0])
@pytest.mark.parametrize("hours", [0.5, 8.0])
def test_near_misses_that_lose_together_are_discarded_at_once(gain, hours):
    state = with_rule(STATE, hours)
    shown = ev.Discarded(experiment=1, mean=2.0, gain=gain * SIGMA, error=SIGMA, sigma=SIGMA, reason="")
    parts = tuple(
        Decided(n, BASELINE, shown.model_copy(update={"experiment": n}), (score(2.0),), MADE, None, None, 0)
        for n in (1, 2)
    )
    state = replace(state, results=parts, next=3)
    both = replace(candidate(-16.0, state=state), proposal=BASELINE.model_copy(update={"combines": (1, 2)}))

    assert isinstance(judge.judge(state, 3, both), ev.Discarded)


def test_a_candidate_that_is_what_it_was_has_its_runs_again_and_they_count_once():
    state, runs = with_rule(STATE), {"experiment": 1, "onto": ""}
    first, other = (MADE.model_copy(update={**runs, "source": source}) for source in ("a", "b"))
    own = replace(candidate(3.0, state=state), commit=first)
    seen = (3 * SIGMA, SIGMA, 1)
    state = replace(state, open={1: own}, stacked={"a": Incumbent(1, own.scores, own.mean)})

    def move(state, commit, earlier):
        made = commit.model_copy(update={"earlier": earlier})
        return apply(state, ev.Record(seq=1, at=state.now, task_id="rebase", event=made))

    moved = move(state, other, seen)
    assert (moved.open[1].scores, moved.open[1].earlier) == ((), (seen,))
    back = move(moved, first, None)
    assert (back.open[1].scores, back.open[1].earlier) == (own.scores, ())
    assert move(back, other, seen).open[1].earlier == (seen,)
    ids = [plan_rebase(one, 1, one.open[1], [state.best]).task_id for one in (state, moved, back)]
    assert len({*ids}) == 3, "no step is due again once it has ended"

    rule = thresholds.KEEP_RULE.model_copy(update={"consistent": False})
    old = replace(moved, started=state.session.model_copy(update={"rule": rule}))
    assert (move(old, first, None).open[1].scores, move(old, first, None).open[1].earlier) == ((), (seen,))
    assert plan_rebase(old, 1, old.open[1], [state.best]).task_id == f"rebase 1 on {state.best}", "as it was"


def test_what_lies_in_a_folder_of_seeds_is_not_one():
    there = BASELINE.model_copy(update={"settings": {"seedling/train.py:LR": 0.02}})
    assert not proposals.find_repeat(STATE, 1, there)
    assert "another seed" in proposals.find_repeat(STATE, 1, BASELINE.model_copy(update={"settings": {"a.py:SEED": 2}}))


def test_a_keep_of_a_long_night_takes_two_seeds():
    long, short = with_rule(STATE), with_rule(STATE, hours=0.5)
    assert isinstance(decide(3.0, state=short), ev.Kept)
    assert decide(3.0, state=long) == NeededRun(1, draw_seed(STATE, 2))
    assert isinstance(decide(3.0, 3.0, state=long), ev.Kept)
    assert "in 2 runs" in judge.describe_rule(long)
    assert "in 2 runs" not in judge.describe_rule(short)
    last = decide(3.0, state=replace(long, stopping="Ctrl-C"))
    assert isinstance(last, ev.Discarded)
    assert "in 2 runs)" in last.reason


def test_a_session_that_recorded_no_rule_keeps_the_one_that_it_had():
    assert isinstance(decide(3.0), ev.Kept)
    old = ev.Started.model_validate(STATE.session.model_dump(exclude={"rule"}))
    assert old.rule == ev.KeepRule()
    assert belief.learn_outlook((), 480, old.rule).explain() == "0.70"


@pytest.mark.parametrize("further", [Candidate, Training, Decided])
def test_of_twins_the_one_that_was_proposed_first_or_has_begun_is_trained(further):
    """Requests side by side: #9 was proposed before #2, or after it, and has begun."""
    made = {n: MADE.model_copy(update={"experiment": n, "source": "x"}) for n in (2, 9)}
    idea = BASELINE.model_copy(update={"settings": {"LR": 0.1}})
    late, early = Candidate(idea, made[2]), Candidate(idea, made[9])
    granted = ev.Granted(experiment=9, run=1, slot=0, seed=1)
    verdict = ev.Discarded(**NUMBERS | {"experiment": 9})
    begun = Decided(9, idea, verdict, (score(2.1),), made[9], None, None, 0)
    stages = {9: {Candidate: early, Training: Training(early, granted, 0.0), Decided: begun}[further]}
    state = replace(STATE, open=stages | {2: late} if further is Candidate else {2: late} | stages)
    now, twins = with_rule(state), (*state.open,)

    assert proposals.find_duplicate(now, 2, twins) == "it is the same code as experiment 9"
    assert proposals.find_duplicate(state, 2, twins) == "", "as a session without a rule has done"
    if further is Candidate:
        assert proposals.find_duplicate(now, 9, twins) == ""
        assert "repeats experiment 9" in proposals.find_repeat(now, 2, idea)
        assert proposals.find_repeat(now, 9, idea) == ""
        assert "repeats experiment 2" in proposals.find_repeat(state, 9, idea)


def test_what_is_worse_costs_one_run():
    assert isinstance(decide(-0.5), ev.Discarded)
    assert isinstance(decide(-5.0), ev.Discarded)


def test_a_close_call_runs_again_with_the_next_seed():
    assert decide(0.8) == NeededRun(1, draw_seed(STATE, 2))


def test_the_incumbent_runs_first_where_it_lacks_the_seed():
    close = decide(2.8, 1.2, state=TWO, family="data order")
    assert close == NeededRun(0, draw_seed(TWO, 3))
    tired = replace(TWO, incumbent=replace(TWO.incumbent, failures=2))
    assert isinstance(decide(2.8, 1.2, state=tired, family="data order"), ev.Discarded)


def test_a_verdict_says_what_it_rests_on():
    kept = decide(2.0, 2.4)
    assert isinstance(kept, ev.Kept)
    assert kept.differences == pytest.approx((2.0 * SIGMA, 2.4 * SIGMA))
    assert kept.same_shape
    assert kept.probability > 0.95
    assert 0 < kept.expected < 2.4 * SIGMA
    assert kept.score_to_beat == pytest.approx(STATE.incumbent.score_to_beat - kept.expected)
    assert [luck.seed for luck in kept.luck] == [run.seed for run in candidate(1.0, 1.0).scores]
    assert kept.reason.startswith("better with probability ")
    assert "at 2 equal seeds" in kept.reason


def test_a_session_begun_before_seeds_were_shared_is_compared_by_its_means():
    runs = tuple(run.model_copy(update={"seed": seed}) for seed, run in enumerate(STATE.incumbent.scores))
    old = replace(STATE, incumbent=replace(STATE.incumbent, scores=runs))
    found = evidence.compare(old, old.incumbent, candidate(3.0))
    assert found.lucks == ()
    assert found.link == 0.0
    assert found.error > 1.0


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 2)), max_size=40))
def test_a_weak_night_raises_the_bar_and_no_prior_is_ever_sure(seen):
    outlook = belief.learn_outlook(tuple(seen))
    assert outlook.prior.weights.sum() == pytest.approx(1)
    assert 0.01 < outlook.prior.probability < 0.9
    assert thresholds.KEEP_RULE.risk[0] <= outlook.risk
    old = belief.learn_outlook(tuple(seen), rule=ev.KeepRule())
    assert ev.KeepRule().bars[0] <= old.bar <= thresholds.MAX_BAR
    assert old.risk == 0


def test_the_bar_is_higher_for_a_weak_researcher_and_later_in_the_night():
    luck = random.Random(0)
    weak = tuple((luck.gauss(-0.05, 0.45), 0.45) for _ in range(40))
    strong = tuple((luck.choice((2.5, -2.0)), 0.45) for _ in range(40))
    for rule, read in ((ev.KeepRule(), attrgetter("bar")), (thresholds.KEEP_RULE, attrgetter("risk"))):
        bars = [read(belief.learn_outlook(seen, rule=rule)) for seen in (weak, strong, strong[:5])]
        assert bars == sorted(bars, reverse=True)
        assert len(set(bars)) == 3


def test_a_keep_needs_more_certainty_the_less_it_gains():
    outlook = replace(belief.learn_outlook(()), risk=3.0)
    bells = (np.exp(-0.5 * ((belief.GRID - mean) / sd) ** 2) for mean, sd in ((0.3, 0.25), (30.0, 25.0)))
    small, large = (belief.Belief(bell / bell.sum()) for bell in bells)
    assert small.probability > large.probability
    assert outlook.is_met(large)
    assert not outlook.is_met(small)
    assert replace(outlook, risk=0.0).is_met(small)
    assert outlook.explain(large) < outlook.explain(small)


def test_gains_fade_and_the_last_ideas_of_a_night_are_worth_few_runs():
    seen = tuple((gain, 0.45) for gain in (8.0, -2.0, 5.0, -1.0, 3.0, -2.0, 1.0, -1.0))
    promised = [belief.learn_outlook(seen, left=left) for left in (0, 10, 40)]
    assert promised[0].price > promised[1].price > promised[2].price > 0


@given(gain=st.floats(-9, 9), implemented=st.sampled_from(["yes", "no"]))
def test_an_edit_that_was_not_the_proposal_teaches_nothing_of_ideas_or_pairing(gain, implemented):
    verdict = ev.Discarded(**NUMBERS | {"gain": gain * SIGMA}, same_shape=True, differences=(0.0, gain * SIGMA))
    post = ev.Postmortem(verdict="refuted", happened="", why="", lesson="", next="", implemented=implemented)
    state = replace(STATE, results=(Decided(1, BASELINE, verdict, (score(2.0),), MADE, None, post, 0),))
    is_taught = evidence.learn_outlook(state).bar != evidence.learn_outlook(STATE).bar
    is_linked = evidence.estimate_link(state, True, (), SIGMA) != evidence.estimate_link(STATE, True, (), SIGMA)
    assert (is_taught, is_linked) == ((implemented == "yes"),) * 2


def test_scatter_says_what_pairing_is_worth():
    def with_results(scatter: float) -> State:
        verdict = ev.Discarded(**NUMBERS, same_shape=True, differences=(scatter, -scatter))
        result = Decided(1, BASELINE, verdict, (score(2.0),), MADE, None, None, 0)
        return replace(STATE, results=(result,) * 30)

    def link(scatter: float) -> float:
        return evidence.estimate_link(with_results(scatter), True, (), SIGMA)

    assert link(0.1 * SIGMA) > 0.95
    assert link(1.0 * SIGMA) < 0.3
    assert link(3.0 * SIGMA) == 0.0


def test_the_less_is_known_of_the_noise_the_larger_it_is_taken():
    known, unknown = make_state(2.0, 2.01, 1.99), make_state(2.0, 2.01, 1.99, sigma=0.0)
    assert isinstance(decide(1.8, state=known), ev.Kept)
    assert not isinstance(decide(1.8, state=unknown), ev.Kept)
    baseline = replace(
        candidate(*[0.0] * known.session.profile.baseline_runs), commit=MADE.model_copy(update={"experiment": 0})
    )
    assert isinstance(judge.judge(replace(known, incumbent=None), 0, baseline), ev.Kept)
    assert isinstance(judge.judge(replace(unknown, incumbent=None), 0, baseline), NeededRun)


def test_a_lucky_incumbent_is_known_by_what_is_measured_against_it():
    luck = ev.SeedLuck(seed=1)
    prior = belief.learn_outlook(()).prior
    for _ in range(20):
        difference = -1.5  # everything looks worse by as much
        gain, error = belief.compare([difference], [luck], 0.3)
        luck = belief.update_luck(luck, difference, 0.3, belief.infer(prior, gain, error), kept=False)
    assert luck.mean < -0.8
    assert luck.variance < 0.5


def test_less_code_is_kept_where_nothing_was_lost():
    def judged(*gains: float) -> object:
        return decide(*gains, removed=thresholds.SIMPLER_LINES)

    assert isinstance(judged(*[0.0] * thresholds.SIMPLER_RUNS), ev.Kept)
    assert isinstance(judged(*[-0.1] * thresholds.SIMPLER_RUNS), ev.Discarded)
    assert isinstance(judged(0.0), NeededRun)


@pytest.mark.parametrize("pairs", [3, 5, 10])
def test_a_trial_sees_the_stated_difference_in_four_of_five_cases(pairs):
    gains = np.random.default_rng(0).normal(evidence.compute_visible_difference(pairs), 2**0.5, (20_000, pairs))
    low = gains.mean(1) - evidence.get_t_90(pairs - 1) * gains.std(1, ddof=1) / pairs**0.5
    assert np.mean(low > 0) == pytest.approx(0.8, abs=0.04)


def test_the_less_is_known_of_the_noise_the_more_is_asked():
    needed = [*thresholds.T_CRITICAL.values()]
    assert needed == sorted(needed, reverse=True)


def test_what_could_be_kept_is_audited_and_no_decision_sees_held_out_text():
    plan = evaluation_plan.plan_evaluation(replace(STATE, open={5: candidate()}), 5, 1, draw_seed(STATE, 2))
    assert plan.audit > max(STATE.incumbent.scores[1].val_bpb, STATE.incumbent.score_to_beat)
    assert not plan.confirmed


@pytest.mark.parametrize(("experiment", "run", "removed"), [(0, 1, 0), (0, 2, 0), (5, 1, 3), (5, 7, 0)])
def test_every_run_that_a_mean_is_taken_of_is_audited(experiment, run, removed):
    state = replace(STATE, open={experiment: candidate(*[1.0] * (run - 1), removed=removed)})
    assert evaluation_plan.plan_evaluation(state, experiment, run, 1).audit == "always"


def test_the_incumbent_is_audited_again_when_it_runs_again():
    state = replace(STATE, incumbent=replace(STATE.incumbent, experiment=3), open={5: candidate(1.0)})
    assert evaluation_plan.plan_evaluation(state, 3, 4, 1).audit == "always"


@pytest.mark.parametrize(("worst", "error"), [(0.3, 0.3), (-5.0, 0.0)])
def test_claims_that_were_too_bad_allow_none_that_are_too_good(worst, error):
    audit = ev.Audit(claimed=2.0, error=0.0, worst=worst, looks=9, seconds=1.0, evaluation=1.0)
    assert evaluation_plan.plan_evaluation(incumbent(audit=audit), 5, 1, 1).baseline_error == error


def test_seeds_that_make_no_difference_are_told_so():
    same = [score(2.0)] * 3
    kept = judge.judge(replace(STATE, incumbent=None), 0, replace(candidate(1.0), scores=tuple(same)))
    assert "3 identical runs (their seeds made no difference)" in kept.reason


def test_the_baseline_shows_how_far_honest_claims_are_off():
    again = evaluation_plan.plan_evaluation(replace(STATE, open={0: candidate()}), 0, 2, 1)
    assert (again.baseline_error, again.audit, again.confirmed) == ("unmeasured", "always", True), (
        "the first run was lost"
    )
    assert evaluation_plan.plan_evaluation(STATE, 5, 1, 1).baseline_error == 0.0
    audit = ev.Audit(claimed=2.0, error=0.0, worst=0.3, looks=9, seconds=1.0, evaluation=1.0)
    assert evaluation_plan.plan_evaluation(incumbent(audit=audit), 5, 1, 1).baseline_error == 0.3
    later = replace(STATE, incumbent=replace(STATE.incumbent, experiment=3))
    shown = replace(_finding(0, 0.0, random.Random(0), audit=audit), experiment=0)
    assert evaluation_plan.plan_evaluation(replace(later, results=(shown,)), 5, 1, 1).baseline_error == 0.3


def test_a_jump_that_is_hard_to_believe_takes_another_seed_and_a_look():
    jump = STATE.incumbent.score_to_beat * thresholds.IMPLAUSIBLE_GAIN / SIGMA + 1
    assert isinstance(decide(jump, jump), NeededRun)
    kept = decide(*[jump] * thresholds.IMPLAUSIBLE_RUNS)
    assert isinstance(kept, ev.Kept)
    assert "check it" in kept.reason


def test_memory_has_its_price():
    state = incumbent(metrics=ev.RunMetrics(memory_mb=1000.0))

    def judged(gain: float, memory: float) -> object:
        return decide(gain, gain, state=state, metrics=ev.RunMetrics(memory_mb=memory))

    enough = next(gain / 10 for gain in range(100) if isinstance(judged(gain / 10, 1000.0), ev.Kept))
    assert isinstance(judged(enough, 1000 * thresholds.MEMORY_SLACK), ev.Kept)
    assert not isinstance(judged(enough, 2000.0), ev.Kept)
    assert isinstance(kept := judged(enough + thresholds.MEMORY_PRICE + 1, 2000.0), ev.Kept)
    assert "2 times the memory" in kept.reason
    assert isinstance(judged(enough, 500.0), ev.Kept)


def test_one_slow_run_does_not_cost_the_night_its_certificate():
    best = replace(STATE.incumbent, experiment=3)
    state = replace(STATE, incumbent=best, run_seconds=(20.0, 20.0, 20.0, 20.0, 52.0), now=STATE.deadline - 79)
    assert limits.explain_stop(state)
    assert certification.list_certificate_runs(state)
    assert not certification.list_certificate_runs(replace(state, run_seconds=(52.0,) * 5))


def fold_rerun(state: State, plan: ev.EvaluationPlan | None, *ends: type[ev.RunEvent]) -> State:
    """Return the state after runs of the incumbent that ended so."""
    result = {"experiment": 0, "metrics": ev.RunMetrics(), "curve": (), "log": "", "reason": "the disk is full"}
    for run, end in enumerate(ends, 90):
        granted = ev.Granted(experiment=0, run=run, slot=0, seed=7, plan=plan)
        facts = result | {"run": run, "failure": "other", "message": "", "val_bpb": 2.0}
        ended = end(**{name: value for name, value in facts.items() if name in end.model_fields})
        state = fold([ev.Record(seq=0, at=0.0, task_id="", event=event) for event in (granted, ended)], state)
    return state


def test_what_the_machine_ends_counts_neither_against_the_incumbent_nor_the_certificate():
    """After two faults nothing was kept any more, and after five there was no certificate."""
    crashed, aborted, certifies = ev.Crashed, ev.Aborted, evaluation_plan.plan_certification(STATE)

    twice = fold_rerun(STATE, None, aborted, aborted)
    assert (twice.incumbent.failures, twice.aborted) == (0, 2)
    assert fold_rerun(STATE, None, crashed, crashed).incumbent.failures == 2
    assert fold_rerun(STATE, None, crashed, ev.Scored, crashed).incumbent.failures == 1, "in a row"
    assert fold_rerun(STATE, certifies, aborted, aborted, crashed).lost_fresh == 1
    broken = fold_rerun(replace(STATE, lost_fresh=5), None, crashed, crashed)
    resumed = fold([ev.Record(seq=0, at=0.0, task_id="", event=ev.Resumed())], broken)
    assert (resumed.incumbent.failures, resumed.lost_fresh) == (0, 0)


def test_no_run_for_the_certificate_starts_where_the_machine_has_failed_too_often():
    state = replace(STATE, incumbent=replace(STATE.incumbent, experiment=3))
    assert certification.list_certificate_runs(state)
    assert not certification.list_certificate_runs(replace(state, aborted=thresholds.MAX_ABORTED))


@given(st.integers(1, 16), st.integers(0, 10_000))
def test_the_researchers_pause_grows_with_the_rounds_of_each_slot_and_stays_bounded(slots, fruitless):
    state = replace(STATE, started=STATE.session.model_copy(update={"slots": slots}), fruitless=fruitless)
    assert limits.compute_pause(state) == limits.compute_pause(replace(STATE, fruitless=min(fruitless // slots, 6)))
    assert limits.compute_pause(state) <= 240


def test_less_code_is_no_reason_to_take_more_memory():
    state = incumbent(metrics=ev.RunMetrics(memory_mb=1000.0))
    how = {"removed": thresholds.SIMPLER_LINES, "metrics": ev.RunMetrics(memory_mb=4000.0)}
    assert isinstance(decide(*[0.0] * thresholds.SIMPLER_RUNS, state=state, **how), ev.Discarded)


def _certified(gains: list[float], heldout: bool) -> State:
    """Return a night at whose end the baseline and experiment 3 ran with as many fresh seeds."""
    seeds = [draw_fresh_seed(STATE, pair + 1) for pair in range(len(gains))]
    base = {seed: score(2.0).model_copy(update={"confirmed": 2.1 if heldout else None}) for seed in seeds}
    best = {
        seed: score(2.0 - gain).model_copy(update={"confirmed": 2.1 - gain / 2 if heldout else None})
        for seed, gain in zip(seeds, gains, strict=True)
    }
    kept = Decided(3, BASELINE, ev.Kept(**NUMBERS, score_to_beat=1.9), (score(1.9),), MADE, None, None, 0)
    best_now = replace(STATE.incumbent, experiment=3)
    return replace(STATE, incumbent=best_now, results=(kept,), fresh={0: base, 3: best})


def test_the_certificate_compares_baseline_and_best_on_fresh_seeds_and_held_out_text():
    found = certification.certify(_certified([0.04, 0.05, 0.06], heldout=True))
    assert (found.experiment, found.pairs, found.heldout) == (3, 3, True)
    assert found.gain == pytest.approx(0.025)
    assert found.low < 0.025 < found.high
    assert certification.certify(_certified([0.04], heldout=False)).gain == pytest.approx(0.04)
    assert certification.certify(STATE) is None


def test_a_keep_counts_in_the_certificate_while_its_post_mortem_is_put_off():
    state, kept = with_rule(_certified([0.04, 0.05], heldout=False)), keep(3, 0, 5.0)
    verdict = kept.verdict.model_copy(update={"same_shape": False})
    former = {0: Incumbent(0, (score(2.0),), 2.0)}
    state, kept = replace(state, former=former, results=()), replace(kept, verdict=verdict)
    closed, waiting = (
        certification.certify(replace(state, **facts)) for facts in ({"results": (kept,)}, {"open": {3: kept}})
    )
    assert waiting == closed != certification.certify(state)


def test_certificate_intervals_cover_what_they_say():
    luck, covered = random.Random(1), 0
    for _ in range(400):
        gains = [luck.gauss(0.05, SIGMA * thresholds.OTHER_SHAPE**0.5) for _ in range(2)]
        found = certification.certify(_certified(gains, heldout=False))
        covered += found.low < 0.05 < found.high
    assert 0.86 < covered / 400 < 0.99


@pytest.mark.parametrize("ratio", [1.0, 1.6])
@pytest.mark.parametrize("pairs", [1, 3])
def test_certificate_intervals_cover_what_they_say_where_the_best_is_noisier(ratio, pairs):
    state, covered, link = with_rule(_certified([0.0] * pairs, heldout=False)), 0, 1 - thresholds.OTHER_SHAPE / 2
    for shared, own in np.random.default_rng(0).normal(0, SIGMA, (250, 2, 8)):
        sides = 2 + shared, 1.9 + ratio * (link * shared + (1 - link**2) ** 0.5 * own)
        base, best = ([score(value, n) for n, value in enumerate(side)] for side in sides)
        fresh = {0: dict(enumerate(base[:pairs])), 3: dict(enumerate(best[:pairs]))}
        former = {0: Incumbent(0, tuple(base[6:7]), 2.0)}
        night = replace(state, fresh=fresh, former=former, incumbent=Incumbent(3, tuple(best[6:]), 1.9))
        found = certification.certify(night)
        covered += found.low < 0.1 < found.high
    assert 0.83 < covered / 250 < 0.97


def test_a_limit_of_any_size_is_not_counted_out():
    limits = ev.SessionLimits(hours=8, experiments=10**15)
    started = STATE.session.model_copy(update={"limits": limits})
    (step,) = find_due(replace(STATE, started=started, parents={0: MADE}))
    assert step.task_id == "propose 1"


def test_the_certificate_does_not_wait_for_a_post_mortem():
    kept = ev.Kept(**{**NUMBERS, "experiment": 3}, score_to_beat=1.9)
    state = replace(
        STATE,
        parents={0: MADE},
        incumbent=replace(STATE.incumbent, experiment=3),
        open={3: Decided(3, BASELINE, kept, (), MADE, None, None, 0, promoted=True)},
        started=STATE.session.model_copy(
            update={"reflect_every": 1, "limits": ev.SessionLimits(hours=8, experiments=0)}
        ),
        waiting={"reflect 3": ev.Waiting(until=1e9, reason="overloaded")},
    )
    assert [step.task_id for step in find_due(state)] == ["train 0.1"]
    due = find_due(replace(state, started=state.started.model_copy(update={"slots": 4})))
    assert [step.task_id for step in due] == ["train 0.1", "train 3.1", "train 0.2", "train 3.2"]
    assert len({step.seed for step in due}) == 2
    assert len({resource for step in due for resource in step.resources}) == 4


def test_every_run_of_the_certificate_has_a_seed_that_no_decision_used():
    state = replace(STATE, incumbent=replace(STATE.incumbent, experiment=3))
    runs = certification.list_certificate_runs(state)
    assert {run.experiment for run in runs} == {0, 3}
    assert not {run.seed for run in runs} & {draw_seed(state, run) for run in range(1, 1000)}
    plan = evaluation_plan.plan_certification(state)
    assert plan.certifies
    assert plan.confirmed
    assert plan.needs_audit(99.0)


@given(slots=st.integers(1, 5), half=st.booleans(), runs_left=st.floats(0.5, 6))
def test_no_pair_of_the_certificate_is_begun_that_cannot_be_finished(slots, half, runs_left):
    state = late_state(keep(1, 0, 5.0))
    seconds = thresholds.FINISH_MARGIN * state.session.profile.expected_seconds
    first = draw_fresh_seed(state, 1)
    state = replace(
        state,
        started=state.started.model_copy(update={"slots": slots}),
        now=state.deadline - runs_left * seconds,
        fresh={0: {first: score(2.0)}} if half else {},
    )
    runs = [(run.experiment, run.seed) for run in certification.list_certificate_runs(state)]
    started = set(runs[: slots * int(runs_left)])
    assert started == set(runs) or runs_left >= 2
    lonely = {seed for n, seed in started if (1 - n, seed) not in started} - ({first} if half else set())
    assert len(lonely) <= (runs_left >= 2), "it is finished in the next round"
    assert ((1, first) in runs) == (runs_left >= 1 if half else runs_left >= 2 or (slots > 1 and runs_left >= 1))


# Early ends. In this world a run's loss is ahead or behind by five times what its score will be.


def _curve(behind: float, luck: random.Random) -> tuple[ev.Point, ...]:
    steps = [n / 50 for n in range(1, 51)]
    return tuple(ev.Point(seconds=p, progress=p, loss=4 - p + 5 * behind + luck.gauss(0, 0.02)) for p in steps)


def _run(behind: float, luck: random.Random, **facts):
    value = STATE.incumbent.score_to_beat + behind + luck.gauss(0, 0.003)
    return score(value).model_copy(update={"curve": _curve(behind, luck), **facts})


def _finding(number: int, behind: float, luck: random.Random, **facts) -> Decided:
    run = _run(behind, luck, **facts)
    key = {"experiment": number, "error": 0.005, "sigma": 0.0048, "reason": ""}
    verdict = ev.Discarded(mean=run.val_bpb, gain=STATE.incumbent.score_to_beat - run.val_bpb, **key)
    return Decided(number, BASELINE, verdict, (run,), MADE, None, None, 0)


def _night(count: int, luck: random.Random, **facts) -> State:
    """So many candidates have been tried, and number 99 waits for its first run."""
    best = replace(STATE.incumbent, scores=tuple(_run(0.0, luck) for _ in range(3)))
    results = tuple(_finding(n, luck.uniform(-0.01, 0.05), luck, **facts) for n in range(1, count + 1))
    return replace(STATE, incumbent=best, results=results, open={99: candidate()})


def test_a_candidate_that_fails_before_the_baseline_is_measured_does_not_end_the_night():
    failed = ev.Failed(experiment=1, reason="NaN: diverged", failure="NaN")
    decided = Decided(1, BASELINE, failed, (), MADE, None, None, 0)
    state = replace(STATE, incumbent=None, results=(decided,))
    assert not limits.explain_stop(state)
    assert "does not train" in limits.explain_stop(replace(state, results=(decided, replace(decided, experiment=0))))


def test_before_calibration_and_for_confirmations_no_run_is_hopeless():
    luck = random.Random(1)
    assert not evaluation_plan.plan_evaluation(
        _night(thresholds.CALIBRATION_RUNS - 1, luck), 99, 1, 1
    ).pruning_thresholds
    state = _night(100, luck)
    assert evaluation_plan.plan_evaluation(state, 99, 1, 1).pruning_thresholds
    assert not evaluation_plan.plan_evaluation(replace(state, open={99: candidate(1.0)}), 99, 2, 1).pruning_thresholds
    assert not evaluation_plan.plan_evaluation(state, 0, 4, 1).pruning_thresholds


def test_an_earlier_night_calibrates_the_first_experiment_of_the_next():
    luck = random.Random(6)
    before, first = _night(60, luck), _night(0, luck)
    gaps = pruning.list_gaps(before)
    key = {"session": "before", "title": "", "family": "size", "status": "discarded"}
    earlier = tuple(ev.EarlierResult(experiment=n, gaps=found, **key) for n, found in gaps.items())
    assert len(earlier) == 60
    second = replace(first, started=first.started.model_copy(update={"earlier": earlier}))

    assert not evaluation_plan.plan_evaluation(first, 99, 1, 1).pruning_thresholds
    bounds = evaluation_plan.plan_evaluation(second, 99, 1, 1).pruning_thresholds
    assert not any(_condemned(bounds, luck.uniform(-0.05, 0.0), luck) for _ in range(100))
    assert all(_condemned(bounds, luck.uniform(0.04, 0.2), luck) for _ in range(100))


def test_the_hopeless_are_found_and_no_other():
    luck = random.Random(2)
    bounds = evaluation_plan.plan_evaluation(_night(60, luck), 99, 1, 1).pruning_thresholds
    assert [bound.progress for bound in bounds] == list(thresholds.CHECKPOINTS)
    assert not any(_condemned(bounds, luck.uniform(-0.05, 0.0), luck) for _ in range(500))
    assert all(_condemned(bounds, luck.uniform(0.04, 0.2), luck) for _ in range(500))


def _condemned(bounds: tuple[ev.PruningThreshold, ...], behind: float, luck: random.Random) -> bool:
    curve = _curve(behind, luck)
    return any(get_recent_loss(curve, bound.progress) > bound.loss for bound in bounds)


def test_who_is_ahead_of_the_best_is_never_hopeless():
    luck = random.Random(5)
    results = [_finding(n, 0.01 + n / 1000, luck, curve=_curve(-0.05 + n / 1000, luck)) for n in range(1, 30)]
    state = replace(_night(0, luck), results=tuple(results))
    assert not any(
        _condemned(evaluation_plan.plan_evaluation(state, 99, 1, 1).pruning_thresholds, -0.01, luck) for _ in range(200)
    )


def test_where_curves_say_nothing_none_is_hopeless():
    luck = random.Random(3)
    results = [_finding(n, luck.uniform(-0.02, 0.02), luck, curve=_curve(0.0, luck)) for n in range(1, 60)]
    state = replace(_night(0, luck), results=tuple(results))
    assert not any(
        _condemned(evaluation_plan.plan_evaluation(state, 99, 1, 1).pruning_thresholds, 0.0, luck) for _ in range(200)
    )


def _gainful_night(count: int, luck: random.Random, **proposal) -> State:
    """Return the same night under the rule of new sessions."""
    state = with_rule(_night(count, luck), hours=0.5)
    first = candidate()
    return replace(state, open={99: replace(first, proposal=first.proposal.model_copy(update=proposal))})


def test_a_run_is_pruned_by_gain_once_a_few_curves_have_told():
    luck = random.Random(7)
    assert not evaluation_plan.plan_evaluation(_gainful_night(0, luck), 99, 1, 1).pruning_thresholds
    few = thresholds.CALIBRATION_RUNS - 2
    limits = evaluation_plan.plan_evaluation(_gainful_night(few, luck), 99, 1, 1).pruning_thresholds
    assert limits
    assert all(limit.loss > limit.usual and limit.scale > 0 for limit in limits)
    assert not any(_condemned(limits, luck.uniform(-0.05, 0.0), luck) for _ in range(200))
    assert all(_condemned(limits, luck.uniform(0.1, 0.3), luck) for _ in range(200))


def test_by_gain_an_earlier_night_tells_from_the_first_experiment_on():
    luck = random.Random(9)
    gaps = pruning.list_gaps(_night(20, luck))
    key = {"session": "before", "title": "", "family": "size", "status": "discarded"}
    earlier = tuple(ev.EarlierResult(experiment=n, gaps=found, **key) for n, found in gaps.items())
    first = _gainful_night(0, luck)
    second = replace(first, started=first.started.model_copy(update={"earlier": earlier}))
    assert evaluation_plan.plan_evaluation(second, 99, 1, 1).pruning_thresholds


def test_schedules_are_pruned_late_and_no_ablation_or_combination_is():
    luck = random.Random(8)
    limits = evaluation_plan.plan_evaluation(_gainful_night(20, luck, family="schedule"), 99, 1, 1).pruning_thresholds
    assert [limit.progress for limit in limits] == [thresholds.CHECKPOINTS[-1]]
    for facts in ({"reverts": 3}, {"combines": (1, 2)}):
        state = _gainful_night(20, luck, **facts)
        assert not evaluation_plan.plan_evaluation(state, 99, 1, 1).pruning_thresholds


def test_curves_that_tell_nothing_end_pruning_by_gain():
    outlook = belief.learn_outlook((), 20, thresholds.KEEP_RULE, 10)
    told, blind = [(6.0, 5.0), (-6.0, -5.0)] * 5, [(6.0, -5.0), (-6.0, 5.0)] * 5
    shares = [pruning.estimate_misled(outlook.prior, pairs) for pairs in (told, [], blind)]
    assert shares == sorted(shares)
    borders = [pruning.find_limit(outlook, share, 0.4) for share in shares]
    assert borders[0] < inf
    assert borders == sorted(borders)
    assert borders[-1] == inf


@given(st.floats(0, 0.05), st.sampled_from(thresholds.CHECKPOINTS), st.floats(-10, 50))
def test_only_runs_behind_the_limit_are_hopeless(misled, progress, gap):
    outlook = belief.learn_outlook((), 20, thresholds.KEEP_RULE, 10)
    limit = pruning.find_limit(outlook, misled, progress)
    assert limit > 0
    near = thresholds.FAR_BEHIND / 500
    if abs(gap - limit) > near:
        assert pruning.is_hopeless(outlook, misled, progress, gap) == (gap > limit)


def test_one_in_five_is_reprieved_and_too_many_false_alarms_end_the_rule():
    luck = random.Random(4)
    state = _night(60, luck)
    share = (
        sum(
            evaluation_plan.plan_evaluation(replace(state, open={n: candidate()}), n, 1, 1).control_run
            for n in range(1000)
        )
        / 1000
    )
    assert share == pytest.approx(1 / thresholds.CONTROL_RUN_EVERY, abs=0.05)
    wrong = _finding(70, -0.02, luck, would_prune_at=0.4)
    right = tuple(_finding(n, 0.05, luck, would_prune_at=0.4) for n in range(71, 91))
    assert pruning.count_false_prunes((*state.results, wrong, *right)) == (21, 1)
    assert not evaluation_plan.plan_evaluation(
        replace(state, results=(*state.results, wrong)), 99, 1, 1
    ).pruning_thresholds
    assert evaluation_plan.plan_evaluation(
        replace(state, results=(*state.results, wrong, *right)), 99, 1, 1
    ).pruning_thresholds


def keep(number: int, parent: int, gain: float, **facts) -> Decided:
    """Return a change that was kept on one pair, by a gain in σ."""
    numbers = NUMBERS | {"experiment": number, "gain": gain * SIGMA, "error": 0.46 * SIGMA}
    verdict = ev.Kept(**numbers, score_to_beat=2.0, differences=(gain * SIGMA,), same_shape=True)
    made = MADE.model_copy(update={"experiment": number, "parent": parent})
    return Decided(number, BASELINE.model_copy(update=facts), verdict, (score(2.0),), made, None, None, parent)


def late_state(*results: Decided) -> State:
    """Return a session of 3,600 runs with so little time left that only the last of them still fit."""
    limits = ev.SessionLimits(hours=60.0)
    state = replace(STATE, started=STATE.started.model_copy(update={"limits": limits}), now=59.5 * 3600)
    return replace(state, results=results, incumbent=replace(state.incumbent, experiment=results[-1].experiment))


def test_the_least_certain_keep_is_tried_without_late_in_the_night():
    state = late_state(keep(1, 0, 5.0), keep(2, 1, 0.6), keep(3, 2, 0.9))
    found = proposals.find_ablation(state)
    assert found.reverts == 2
    assert found.author == "nightshift"
    assert found.expected_delta > 0, "it is expected to cost what the keep was expected to gain"
    assert proposals.find_ablation(replace(state, now=3600.0)) is None, "there is time for new ideas"
    assert proposals.find_ablation(late_state(keep(1, 0, 5.0))) is None, "a certain keep stays"


def test_a_keep_is_tried_without_once_and_is_then_believed_accordingly():
    tested = ev.Discarded(**NUMBERS | {"experiment": 4, "gain": -2 * SIGMA, "error": 0.46 * SIGMA})
    proposal = BASELINE.model_copy(update={"reverts": 2})
    state = late_state(keep(2, 0, 0.6))
    after = replace(state, results=(*state.results, Decided(4, proposal, tested, (), MADE, None, None, 2)))
    assert proposals.find_ablation(after) is None
    assert evidence.assess_keep(after, 2).probability > 0.95 > evidence.assess_keep(state, 2).probability


def miss(number: int, gain: float, **facts) -> Decided:
    """Return an idea that was discarded after one pair, by a gain in σ."""
    verdict = ev.Discarded(**NUMBERS | {"experiment": number, "gain": gain * SIGMA, "error": 0.46 * SIGMA})
    made, proposal = MADE.model_copy(update={"experiment": number}), BASELINE.model_copy(update=facts)
    return Decided(number, proposal, verdict, (score(2.0),), made, None, None, 0)


def test_effects_of_changes_made_together_add_up():
    one, other = belief.infer(PRIOR, 0.9, 0.46), belief.infer(PRIOR, 0.7, 0.46)
    both = one.add(other)
    assert both.mean == pytest.approx(one.mean + other.mean, abs=0.01)
    assert both.weights.sum() == pytest.approx(1)
    assert both.probability > one.probability > 0.5
    assert both.add(one.mirror()).mean == pytest.approx(other.mean, abs=0.01)


def test_near_misses_are_tried_together_late_in_the_night():
    misses = [miss(2, 0.9), miss(3, -1.0), miss(4, 1.2), miss(5, 1.1, reverts=1), miss(6, -3.0)]
    state = with_rule(STATE, hours=0.5)
    state = replace(state, results=tuple(misses), now=0.45 * 3600)
    found = proposals.find_combination(state)
    assert found.combines == (2, 4), "what is worse stays out, and an ablation is no near-miss"
    assert found.author == "nightshift"
    assert not found.is_idea
    assert found.expected_delta < 0
    assert "#2" in found.rationale
    assert "#4" in found.rationale
    assert proposals.find_combination(replace(state, now=0.0)) is None, "more of them may come up"
    assert proposals.find_combination(replace(state, results=tuple(misses[1:]))) is None, "one alone is none"
    limited = state.session.model_copy(update={"limits": ev.SessionLimits(hours=8, experiments=40)})
    early = replace(state, started=limited, now=0.0)
    for lost in (0, 30):
        assert proposals.find_combination(replace(early, next=11 + lost, lost=lost)) is None, "30 are to go"
    assert proposals.find_combination(replace(early, next=41, lost=0)), "none is"
    done = replace(misses[3], proposal=found)
    assert proposals.find_combination(replace(state, results=(*misses, done))) is None, "each takes part once"
    old = replace(state, started=state.session.model_copy(update={"rule": ev.KeepRule(risk=(3.0, 10.0))}))
    assert proposals.find_combination(old) is None, "the session has recorded that it tries none"


def test_a_combination_sets_each_constant_once_and_only_what_still_applies():
    def find(*results: Decided) -> tuple[int, ...]:
        state = replace(with_rule(STATE, hours=0.5), results=results, now=0.45 * 3600)
        found = proposals.find_combination(state)
        return found.combines if found else ()

    two, four, six = miss(2, 0.9, settings={"A": 1}), miss(4, 1.2, settings={"A": 2}), miss(6, 1.0, settings={"B": 1})
    assert find(two, four, six) == (4, 6)
    assert find(two, four) == ()
    assert find(two, six, keep(7, 0, 5.0, settings={"A": 3})) == (), "the best has another value by now"
    assert find(two, six, miss(8, -1.0, settings={"A": 1, "B": 1})) == (), "they were tried together"


def test_a_combination_takes_no_number_beyond_the_limit():
    state = with_rule(STATE, hours=0.5)
    bounds = state.session.limits.model_copy(update={"experiments": 24})
    state = replace(state, started=state.session.model_copy(update={"limits": bounds, "slots": 2}), parents={0: MADE})
    state = replace(state, results=(miss(2, 0.9), miss(4, 1.2)), now=0.43 * 3600, next=24, skipped=frozenset({15, 16}))

    assert [step.task_id for step in find_due(state)] == ["combine 24"]
    late = replace(state, next=25)
    assert [step.task_id for step in find_due(late)] == ["propose 15"]
    rule = late.session.rule.model_copy(update={"chronological": False})
    older = replace(late, started=late.session.model_copy(update={"rule": rule}))
    assert [step.task_id for step in find_due(older)] == ["combine 25"], "what it recorded is replayed"


def test_a_combination_undoes_no_keep_that_came_later_under_a_smaller_number():
    four, one = keep(4, 0, 5.0, settings={"C": 1}), keep(1, 4, 5.0, settings={"A": 3})
    against = [replace(miss(n, 1.0, settings={name: 1}), incumbent=4) for n, name in ((2, "A"), (3, "B"), (5, "C"))]
    best = replace(STATE.incumbent, experiment=1)
    former = {0: STATE.incumbent, 4: replace(STATE.incumbent, experiment=4)}
    state = replace(with_rule(STATE, hours=0.5), now=0.45 * 3600, next=6, incumbent=best, former=former)
    state = replace(state, results=(four, *against))

    assert proposals.find_combination(replace(state, results=(*state.results, one))).combines == (3, 5)
    assert proposals.find_combination(replace(state, open={1: one})).combines == (3, 5), "its post-mortem is written"
    rule = thresholds.KEEP_RULE.model_copy(update={"chronological": False})
    old = replace(state, results=(*state.results, one), started=state.session.model_copy(update={"rule": rule}))
    assert proposals.find_combination(old).combines == (2, 3, 5), "as it was before that was recorded"


def test_a_combination_is_judged_by_what_its_parts_have_shown():
    state = replace(with_rule(STATE, hours=0.5), results=(miss(2, 0.9), miss(4, 1.0)))
    alone = candidate(0.9, state=state)
    both = replace(alone, proposal=alone.proposal.model_copy(update={"combines": (2, 4)}))
    assert judge.judge(state, 8, both).probability > 0.9 > judge.judge(state, 8, alone).probability
    kept = replace(keep(8, 0, 0.9, combines=(2, 4)), experiment=8)
    believed = evidence.assess_keep(replace(state, results=(*state.results, kept)), 8)
    assert believed.probability > 0.9


@pytest.mark.parametrize(("gain", "verdict"), [(0.3, ev.Kept), (-0.8, ev.Discarded)])
def test_an_ablation_runs_with_other_seeds_and_needs_no_proof(gain, verdict):
    state = late_state(keep(2, 0, 0.6))
    without = replace(candidate(state=state), proposal=BASELINE.model_copy(update={"reverts": 2}))
    runs = replace(candidate(gain, gain, gain, state=state), proposal=without.proposal)
    assert judge.judge(state, 4, without) == NeededRun(4, draw_seed(state, 2))
    judged = judge.judge(state, 4, runs)
    assert isinstance(judged, verdict)
    assert "#2 " in judged.reason


@pytest.mark.parametrize(("settings", "due"), [({}, "repair 5.1"), ({"MATRIX_LR": 9.0}, "judge 5")])
def test_a_proposed_value_that_diverges_is_judged_and_not_repaired(settings, due):
    made = candidate()
    proposal = made.proposal.model_copy(update={"settings": settings})
    crash = ev.Crashed(
        experiment=5, run=1, failure="NaN", message="loss is nan", metrics=ev.RunMetrics(), curve=(), log=""
    )
    started = STATE.started.model_copy(update={"repairs": 2})
    open_experiments = {5: Broken(replace(made, proposal=proposal), crash)}
    state = replace(STATE, started=started, parents={0: MADE}, open=open_experiments)
    assert due in [step.task_id for step in find_due(state)]


def test_each_result_is_remembered_for_the_very_same_values():
    """Also where others come, go, or change places; an equal value is another one."""
    asked = []

    @limits.remember_each
    def pair(left, right, *, end):
        asked.append((left[0], right))
        return f"{left[0]}{right}{end}"

    first, second, third = ["a"], ["b"], ["c"]
    assert pair([first, second], [None, None], end=".") == ["aNone.", "bNone."]
    assert pair([third, second, first], [None, None, "x"], end="!") == ["cNone!", "bNone.", "ax!"]
    assert asked == [("a", None), ("b", None), ("c", None), ("a", "x")]
    assert pair([["b"], second, second], [None, None, None], end="?") == ["bNone?", "bNone.", "bNone."]
    assert len(asked) == 5
    assert pair([], [], end="") == []
