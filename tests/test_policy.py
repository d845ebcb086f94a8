"""What is worth keeping, and what must be audited: the policy alone, on states made by hand."""

import random
from math import inf

import pytest

from benchmarks.noise import fresh_state, score
from orchestrator import policy
from orchestrator.events import Committed, Discarded, Granted, Kept
from orchestrator.state import BASELINE, Candidate

STATE = fresh_state(random.Random(0), "cpu")


def candidate(*gains: float, removed: int = 0) -> Candidate:
    """Runs that are better than the mark by these many hundredths."""
    made = Committed(experiment=1, commit="", base=0, source="", fingerprint="", added=0, removed=removed)
    plain = score(random.Random(0), 0.0)
    runs = tuple(plain.model_copy(update={"val_bpb": STATE.best.mark - gain / 100}) for gain in gains)
    return Candidate(BASELINE, made, runs, len(runs))


def decision(*gains: float, **how) -> object:
    return policy.decide(STATE, 1, candidate(*gains, **how))


def test_one_seed_is_never_enough():
    assert decision(50.0) == "again"
    assert isinstance(decision(50.0, 50.0), Kept)


def test_what_is_no_better_costs_one_run():
    assert isinstance(decision(0.0), Discarded)
    assert isinstance(decision(-5.0), Discarded)


def test_a_close_call_runs_again_and_then_the_incumbent_does():
    assert decision(1.0, 1.0) == "again"
    assert decision(1.2, 1.2, 1.2, 1.2) == "remeasure"


def test_eight_seeds_decide():
    assert isinstance(decision(*[0.5] * policy.MAX_RUNS), Discarded)


def test_less_code_may_be_kept_at_no_loss_and_leaves_the_mark():
    kept = decision(*[-0.01] * policy.SIMPLER_RUNS, removed=policy.SIMPLER_LINES)

    assert isinstance(kept, Kept)
    assert kept.mark == STATE.best.mark


def test_the_less_is_known_of_the_noise_the_more_is_asked():
    needed = [policy.sure(freedom) for freedom in range(1, 200)]
    assert needed == sorted(needed, reverse=True)


@pytest.mark.parametrize(("experiment", "run", "bar"), [(0, 1, inf), (0, 2, -inf), (5, 1, None), (5, 7, None)])
def test_everything_that_helps_towards_a_keep_is_audited(experiment, run, bar):
    granted = Granted(experiment=experiment, run=run, slot=0, seed=1)
    assert policy.audited_below(STATE, granted) == (STATE.best.mark if bar is None else bar)
