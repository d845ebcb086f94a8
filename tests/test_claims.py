"""The arithmetic of trust: claims, secret places, and a score that no claim can bias."""

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.events import EvaluationPlan
from orchestrator.lab.failures import MachineError
from orchestrator.lab.monitor import RunLimits, RunMonitor
from orchestrator.lab.scoring.claims import (
    ABSURD,
    BASELINE_FACTOR,
    BASELINE_TOLERANCE,
    COMPANY,
    TOLERANCE,
    Disqualified,
    Exam,
    Scorer,
)
from orchestrator.lab.scoring.server import TrainingServer
from prepare import manifest
from prepare.manifest import BudgetAmount, DataError, Manifest
from tests.hunting import try_examples
from tests.small import COUNTS, small_data

VOCAB, LENGTH, ROWS = 7, 5, 6
BASELINE = EvaluationPlan(audit="always", confirmed=False, incumbent=0)
LENGTHS = np.array([1, 1, 2, 3, 1, 0, 0], dtype=np.int32)


def make_scorer(rows=ROWS, kind="work", amount=1.0, seconds=20.0, seed=0):
    luck = np.random.default_rng(seed)
    shards = [luck.integers(VOCAB, size=(count, LENGTH + 1)).astype("<u2") for count in (rows, 50)]
    shards[0][:, 1] = 0  # something counts in every row
    found = Manifest(
        profile="cpu",
        corpus="made up",
        corpus_sha256="",
        seq_len=LENGTH,
        vocab_size=VOCAB,
        eval_tokens=rows * LENGTH,
        budget=BudgetAmount(kind, amount, seconds),
        rows={},
        files={},
        versions={},
    )
    return Scorer(Path(), shards[0], shards[1], LENGTHS, found)


NONE = np.empty(0, dtype=np.int64)


class Fixed:
    """Chance that always says the same."""

    def __init__(self, value):
        self.value = value

    def choice(self, count, p):
        return min(int((np.cumsum(p) <= self.value).sum()), count - 1)

    def permutation(self, count):
        return np.arange(count)


nats = st.lists(st.floats(0, 9, width=32), min_size=ROWS * LENGTH, max_size=ROWS * LENGTH).map(
    lambda values: np.array(values, dtype=np.float32).reshape(ROWS, LENGTH)
)


@try_examples(25)
@given(claims=nats, blind=nats, reference=st.none() | nats)
def test_the_expected_score_is_the_blind_one_whatever_is_claimed(claims, blind, reference):
    this = make_scorer()
    steps, total = 400, 0.0
    for i in range(steps):
        exam = this.plan_audit(claims, reference, Fixed((i + 0.5) / steps), alone=0)
        gaps = blind[np.arange(ROWS), exam.at].astype(float) - claims[np.arange(ROWS), exam.at]
        total += this.compute_bpb(claims, float((exam.weight * gaps).sum())) / steps
    assert total == pytest.approx(this.compute_bpb(blind), abs=0.03)


def test_only_tokens_that_count_are_looked_at():
    this = make_scorer(rows=515)
    claims = np.ones(this.shape, dtype=np.float32)
    exam = this.plan_audit(claims, None, np.random.default_rng(1), alone=0)
    targets = this.rows[np.arange(len(exam.at)), exam.at + 1]
    assert (LENGTHS[targets] > 0).all()
    assert exam.weight.sum() == pytest.approx((LENGTHS[this.rows[:, 1:]] > 0).sum())


def test_a_look_goes_where_the_gain_is():
    this = make_scorer()
    reference = np.full(this.shape, 3.0, dtype=np.float32)
    claims = reference.copy()
    claims[:, 0] = 0.0
    found = [this.plan_audit(claims, reference, np.random.default_rng(i), alone=0).at for i in range(200)]
    assert (np.array(found) == 0).mean() > 0.5


@given(first=st.integers(0, ROWS - 1), places=st.lists(st.integers(0, LENGTH - 1), min_size=ROWS, max_size=ROWS))
def test_what_follows_a_place_is_never_validation_text(first, places):
    this = make_scorer()
    this.decoys[:] = 99
    exam = Exam(this, np.ones(this.shape), np.array(places), np.ones(ROWS), NONE)
    shown = exam.mask(np.arange(first, ROWS), np.random.default_rng(0))
    for row, place, genuine in zip(shown, places[first:], this.rows[first:], strict=True):
        assert (row[: place + 1] == genuine[: place + 1]).all()
        assert (row[place + 1 :] == 99).all()


def test_the_blind_answer_is_normalised_here():
    this = make_scorer()
    exam = Exam(this, np.ones(this.shape), np.zeros(ROWS, dtype=np.int64), np.ones(ROWS), NONE)
    logits = np.random.default_rng(0).normal(size=(ROWS, VOCAB)).astype(np.float32)
    shifted = exam.score_blind(logits + 100, np.arange(ROWS))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert shifted == pytest.approx(-np.log(chances[np.arange(ROWS), this.rows[:, 1]]), abs=1e-4)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda logits: logits[:, :-1], "for 6 tokens of 7"),
        (lambda logits: logits * np.nan, "no probabilities"),
        (lambda logits: np.where(logits == logits.max(), np.inf, logits), "no probabilities"),
        (lambda logits: np.full_like(logits, -np.inf), "no probabilities"),
    ],
)
def test_what_is_no_distribution_is_no_answer(spoil, words):
    logits = np.random.default_rng(0).normal(size=(ROWS, VOCAB)).astype(np.float32)
    exam = Exam(make_scorer(), np.ones((ROWS, LENGTH)), np.zeros(ROWS, dtype=np.int64), np.ones(ROWS), NONE)
    with pytest.raises(Disqualified, match=words):
        exam.score_blind(spoil(logits), np.arange(ROWS))


def test_a_small_difference_is_corrected_and_a_large_one_disqualifies():
    this = make_scorer()
    claims = np.full(this.shape, 2.0, dtype=np.float32)
    exam = this.plan_audit(claims, None, np.random.default_rng(0), alone=0)
    val_bpb, _, worst = exam.correct(np.full(ROWS, 2.01), 0.05)
    assert val_bpb == pytest.approx(this.compute_bpb(claims + np.float32(0.01)), abs=3e-3)
    assert worst == pytest.approx(0.01, abs=1e-6)
    with pytest.raises(Disqualified, match=r"6 of 6 positions, by up to 1\.00 nats"):
        exam.correct(np.full(ROWS, 3.0), 0.05)
    assert exam.correct(np.full(ROWS, 2.3), 0.5)[2] == pytest.approx(0.3)


def test_claims_worse_than_the_truth_hurt_nobody_but_their_author():
    this = make_scorer()
    claims = np.full(this.shape, 2.0, dtype=np.float32)
    exam = this.plan_audit(claims, None, np.random.default_rng(0), alone=0)
    val_bpb, _, worst = exam.correct(np.full(ROWS, 1.0), 0.05)
    assert worst < 0
    assert val_bpb == this.compute_bpb(claims)  # who learns while it is audited gains nothing


@given(claims=nats, blind=nats, seed=st.integers(0, 99))
def test_a_score_is_never_better_than_the_claims_nor_than_the_corrected_ones(claims, blind, seed):
    this = make_scorer()
    exam = this.plan_audit(claims, None, np.random.default_rng(seed), alone=0)
    answers = blind[np.arange(ROWS), exam.at].astype(float)
    val_bpb, _, _ = exam.correct(answers, 99.0)
    terms = exam.weight * (answers - claims[np.arange(ROWS), exam.at])
    assert val_bpb >= this.compute_bpb(claims)
    assert val_bpb >= this.compute_bpb(claims, float(terms.sum()))


@try_examples(25)
@given(worse=st.floats(-1, 1), tolerance=st.floats(0.1, 2), chosen=st.permutations(range(ROWS)))
def test_rows_may_not_do_otherwise_alone_than_among_others(worse, tolerance, chosen):
    this, chosen = make_scorer(), np.array(chosen[:3])
    claims = np.full(this.shape, 2.0, dtype=np.float32)
    exam = Exam(this, claims, np.full(ROWS, LENGTH - 1), np.ones(ROWS), chosen)
    alone = (claims + np.float32(worse))[chosen]
    if abs(worse) <= COMPANY * tolerance - 1e-6:
        exam.check_company(alone, tolerance)
    elif abs(worse) >= COMPANY * tolerance + 1e-6:
        with pytest.raises(Disqualified, match="worse alone than among others"):
            exam.check_company(alone, tolerance)


def test_rows_that_are_shown_whole_are_represented_by_the_others():
    this = make_scorer(rows=64)
    exam = this.plan_audit(np.ones(this.shape, dtype=np.float32), None, np.random.default_rng(0))
    assert (len({*exam.alone}), exam.weight[exam.alone].sum()) == (16, 0.0)
    drawn = this.plan_audit(np.ones(this.shape, dtype=np.float32), None, np.random.default_rng(0), alone=0)
    assert exam.weight.max() == pytest.approx(drawn.weight.max() * 64 / 48)


def test_what_is_gained_at_the_end_of_a_row_and_given_back_at_its_start_is_no_honest_answer():
    this, chosen, claims = make_scorer(), np.arange(4), np.full((ROWS, LENGTH), 2.0, dtype=np.float32)
    exam = Exam(this, claims, np.array([LENGTH - 1] * 4 + [3, 3]), np.array([0.0] * 4 + [15.0] * 2), chosen)
    turned = claims[chosen] + np.float32([-0.5, -0.5, 0.0, 0.5, 0.5])
    with pytest.raises(Disqualified, match=r"learns .*, or its losses are random: `model.eval\(\)`"):
        exam.check_company(turned, 1.0)


def test_a_lottery_of_claims_does_not_pay():
    # A little too good nearly everywhere, absurdly bad at rare exam: unbiased, and lucky where those are looked at.
    this, luck = make_scorer(rows=256), np.random.default_rng(0)
    truth = np.full(this.shape, 3.0, dtype=np.float32)
    wins = 0
    for _ in range(400):
        claims = truth - np.float32(0.2)
        claims[luck.random(this.shape) < 0.1 / 256] = 60.0
        exam = this.plan_audit(claims, truth, luck, alone=0)
        wins += exam.correct(np.full(256, 3.0), 0.25)[0] < this.compute_bpb(truth) - 1e-6
    assert wins == 0


@pytest.mark.parametrize("answer", [np.inf, np.nan])
def test_an_answer_that_is_no_number_disqualifies(answer):
    this = make_scorer()
    claims = np.full(this.shape, 2.0, dtype=np.float32)
    exam = this.plan_audit(claims, None, np.random.default_rng(0), alone=0)
    with pytest.raises(Disqualified):
        exam.correct(np.array([answer, *[2.0] * (ROWS - 1)]), BASELINE_TOLERANCE)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        *((value, "not numbers") for value in (np.nan, np.inf, -np.inf)),
        (-0.5, "probability above 1"),
        (3e38, "a loss of 3e"),
        (2 * ABSURD, "a loss of 2e"),
    ],
)
def test_impossible_claims(value, words):
    this = make_scorer()
    claims = np.ones(this.shape, dtype=np.float32)
    claims[2, 3] = value
    with pytest.raises(Disqualified, match=words):
        this.check_claims(claims)


@pytest.mark.parametrize(
    ("kind", "usual", "fine", "wrong", "words"),
    [
        ("time", None, (310.0, 1e9), (400.0, 0.0), "400 s of 300"),
        ("work", None, (1e9, 600.0), (1.0, 1300.0), "CPU time"),
        ("work", 20.0, (2.0, 30.0), (1.0, 40.0), "more than 37"),  # the baseline of this session counts
    ],
)
def test_training_has_an_end(kind, usual, fine, wrong, words):
    scorer = make_scorer(kind=kind, amount=300.0, seconds=300.0)
    server = TrainingServer(None, scorer, 2, BASELINE.model_copy(update={"train_cpu": usual}), None, None)
    for server.wall, server.cpu in [fine, wrong]:
        with pytest.raises(Disqualified, match=words) if server.wall == wrong[0] else nullcontext():
            server.check_evaluation(0.0, 0.0)


def test_no_evaluation_may_take_three_times_what_the_baselines_took(tmp_path):
    scorer = Scorer.load(small_data(tmp_path / "data", BudgetAmount(kind="work", amount=1.0, seconds=300.0)))
    plan = BASELINE.model_copy(update={"evaluation": 50.0, "evaluation_cpu": 10.0})
    server = TrainingServer(None, scorer, 2, plan, None, tmp_path / "model")
    server.check_evaluation(1.0, 31.0)
    with pytest.raises(Disqualified, match="took 33 s of CPU time"):
        server.check_evaluation(1.0, 33.0)
    assert server.evaluation_cpu == 33.0


def test_a_short_evaluation_may_take_a_moment_longer(tmp_path):
    scorer = Scorer.load(small_data(tmp_path / "data", BudgetAmount(kind="work", amount=1.0, seconds=300.0)))
    plan = BASELINE.model_copy(update={"evaluation": 0.2, "evaluation_cpu": 0.2})
    TrainingServer(None, scorer, 2, plan, None, tmp_path / "model").check_evaluation(1.0, 2.4)


@pytest.mark.parametrize(
    ("changes", "total", "words"),
    [
        ({}, 64.0, ""),  # 12 of its start, 30 of its training; 15 + 2 are free, and 5 more are within its limit
        ({}, 70.0, "with what it did besides, it trained for 41 s of CPU time, more than 37"),
        ({}, 0.0, ""),  # a namespace that ends takes what its last processes used with it
        ({"evaluation": None, "evaluation_cpu": None}, 1e9, ""),  # the baseline
        ({"rest_cpu": 40.0}, 108.0, ""),  # what the baseline does once it has handed over, half as long again
        ({"rest_cpu": 40.0}, 113.0, "with what it did besides, it trained for 39 s of CPU time, more than 37"),
    ],
)
def test_what_a_run_used_and_did_not_show_counts_as_training(changes, total, words):
    monitor = RunMonitor(RunLimits(wall=1.0), startup_cpu=12.0, train_cpu=30.0, total_cpu=total)
    plan = BASELINE.model_copy(update={"train_cpu": 20.0, "evaluation_cpu": 10.0, **changes})
    server = TrainingServer(None, make_scorer(), 2, plan, monitor, None, cpu=30.0)
    with pytest.raises(Disqualified, match=words) if words else nullcontext():
        server.check_rest()


@pytest.mark.parametrize("split", COUNTS)
def test_data_that_cannot_score_is_refused(tmp_path, split):
    folder = small_data(tmp_path / "data")
    found = manifest.load(folder)
    rows = {name: count for name, count in found.rows.items() if name != split}
    (folder / "manifest.json").write_text(replace(found, rows=rows).to_json())
    with pytest.raises(DataError, match=f"has no {split} rows"):
        Scorer.load(folder)


def test_shards_can_be_read_and_not_written(tmp_path):
    scorer = Scorer.load(small_data(tmp_path / "data"))
    assert {path.stat().st_mode & 0o777 for path in scorer.folder.glob("*.bin")} == {0o444}
    assert Path(scorer.heldout.rows.base.filename).name == "confirm.bin"


def test_rounding_below_no_loss_at_all_is_worth_nothing():
    this = make_scorer()
    claims = np.full(this.shape, -5e-4, dtype=np.float32)
    with pytest.raises(Disqualified, match="a loss of zero"):
        this.check_claims(claims)
    claims[0, 0] = 1.0
    assert this.check_claims(claims).min() == 0


@pytest.mark.parametrize(
    ("kind", "honest", "allowed"),
    [
        ("work", 1e-6, TOLERANCE["work"]),
        ("time", 0.3, 0.3 * BASELINE_FACTOR),
        ("work", "unmeasured", BASELINE_TOLERANCE),
        ("work", 1.9, 0.5),  # a baseline that looks ahead lets nobody else do so
        ("time", 1.9, 1.0),
    ],
)
def test_what_honest_code_is_off_sets_the_tolerance_and_the_script_does_not(kind, honest, allowed):
    assert make_scorer(kind=kind).get_tolerance(honest) == pytest.approx(allowed)


@pytest.mark.parametrize(
    ("kind", "usual", "long"),
    [("time", (200.0, 1e9), (1000.0, 0.0)), ("work", (1e9, 30.0), (0.0, 1000.0))],
)
def test_a_long_evaluation_counts_as_training(tmp_path, kind, usual, long):
    amount = BudgetAmount(kind=kind, amount=300.0, seconds=300.0)
    scorer = Scorer.load(small_data(tmp_path / "data", amount))
    facts = {"monitor": None, "model": tmp_path / "model", "wall": 300.0, "cpu": 300.0}
    server = TrainingServer(None, scorer, 1, BASELINE.model_copy(update={"evaluation": 100.0}), **facts)
    server.check_evaluation(*usual)
    TrainingServer(None, scorer, 1, BASELINE, **facts).check_evaluation(*long)
    with pytest.raises(Disqualified, match="evaluation of its model"):
        server.check_evaluation(*long)


@pytest.mark.parametrize("how", ["other rows", "deleted"])
def test_data_that_are_made_anew_under_a_running_night_are_the_machines_fault(tmp_path, how):
    scorer = Scorer.load(small_data(tmp_path / "data"))
    assert {path.name for path in scorer.lay_out(tmp_path / "run").iterdir()} == {"manifest.json", "tokenizer.json"}
    shutil.rmtree(tmp_path / "data")
    if how == "other rows":
        small_data(tmp_path / "data", make_rows=lambda count: np.full((count, 33), ord("b")))
    with pytest.raises(MachineError, match="deleted, damaged or prepared anew"):
        scorer.lay_out(tmp_path / "run")
