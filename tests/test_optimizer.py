"""The classical crew, on a landscape with the shape of a small GPT's."""

import asyncio
import re
from dataclasses import replace
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.events import Kept, Pruned, RunMetrics
from orchestrator.core.state import BASELINE, Decided, fold
from orchestrator.optimizer.crew import Optimizer
from orchestrator.optimizer.postmortem import write_postmortem
from orchestrator.optimizer.search import (
    MAX_STACKED,
    SearchState,
    Trial,
    estimate_true_gain,
    rank_steps,
    read_search,
    stack_near_misses,
)
from orchestrator.optimizer.space import explain_unsearchable, find_fixed, is_within, list_tunable, take_step
from orchestrator.policy import proposals
from orchestrator.policy.steps import Edit, Propose
from orchestrator.policy.thresholds import KEEP_RULE
from prepare.constants import Choices, Constant, Numbers, list_searchable, read_values
from subagents.agent import NoAnswer
from tests.hunting import try_examples
from tests.simulated import SOURCE, Fragile, Uneven, night, true_score


@pytest.fixture(scope="module")
def long_night(tmp_path_factory):
    return night(tmp_path_factory.mktemp("long") / "s" / "session.db", experiments=60)


@pytest.mark.parametrize(
    ("deficit", "verdict", "said"), [(None, "refuted", "far behind"), (0.0603, "inconclusive", "+0.0603 predicted")]
)
def test_a_prediction_refutes_nothing(deficit, verdict, said):
    pruned = Pruned(experiment=1, run=1, metrics=RunMetrics(), curve=(), log="", reason="", deficit=deficit)
    written = write_postmortem(Decided(1, BASELINE, pruned, (), None, None, None, 0))
    assert written.verdict == verdict
    assert f"(it was pruned, {said})" in written.lesson


@pytest.mark.parametrize("seed", range(6))
def test_a_short_night_improves_honestly(tmp_path, seed):
    session = night(tmp_path / "s" / "session.db", experiments=14, hours=0.15, seed=seed)

    state = session.state
    assert len(state.kept) >= 1
    assert state.incumbent.score_to_beat < state.results[0].val_bpb - 0.013
    assert true_score(session.get(state.parent.source)) < true_score(SOURCE) - 0.013


def list_ideas(session):
    """What the optimizer proposed; the ablation at the end is the policy's, and may run an earlier train.py again."""
    return [result for result in session.state.results if result.proposal.reverts is None]


def test_no_proposal_repeats_another(long_night):
    proposed = [r.event.proposal for r in long_night.records if r.event.kind == "proposed"]

    assert len(proposed) == 60
    assert not any(r.event.kind in ("refused", "unanswered") for r in long_night.records)
    commits = [result.commit.fingerprint for result in list_ideas(long_night) if result.commit]
    assert len(set(commits)) == len(commits)


def test_every_proposal_turns_few_constants_and_says_why(long_night):
    names = list_searchable(SOURCE).keys()
    for result in list_ideas(long_night)[1:]:
        proposal, changes = result.proposal, result.proposal.settings
        assert 1 <= len(changes) <= MAX_STACKED
        assert len(changes) <= 2 or "add up" in proposal.rationale
        assert changes.keys() <= names
        for name in changes:
            assert name in proposal.title
            assert name in proposal.instructions
        assert len(proposal.rationale) > 80
        assert proposal.family in policy_families()
        assert abs(proposal.expected_delta) < 0.1


def policy_families():
    from orchestrator.optimizer.families import FAMILIES

    return {entry.family for entry in FAMILIES} | {"simplification"}


def test_the_same_state_gives_the_same_proposals(long_night):
    """Also where TPE draws: otherwise a session could not be replayed."""
    state, seen = None, 0
    crew = Optimizer(long_night.get)
    for record in long_night.records:
        if record.event.kind == "proposed" and record.event.experiment % 9 == 0:
            step = Propose(record.event.experiment, 1, 0)
            # The proposal was made in the state that this step fell due in, which is not always the one just before.
            first, again = (asyncio.run(Optimizer(long_night.get).propose(state, step)) for _ in range(2))
            assert first == again == asyncio.run(crew.propose(state, step))
            seen += 1
        state = fold([record], state)
    assert seen > 4


@pytest.mark.parametrize("way", ["tpe", "gp"])
def test_a_sampler_searches_all_constants_at_once_and_a_replay_draws_the_same(tmp_path, way):
    lacks = explain_unsearchable(way)
    assert bool(lacks) == (way == "gp" and find_spec("scipy") is None)
    if lacks:
        assert "pip install scipy" in lacks
        return
    session = night(tmp_path / "s" / "session.db", experiments=8, hours=0.1, search=way)

    ideas = [result.proposal for result in list_ideas(session)[1:]]
    assert len(ideas) > 3
    assert max(len(proposal.settings) for proposal in ideas) > MAX_STACKED
    assert all({"tpe": "TPE", "gp": "Gaussian"}[way] in proposal.rationale for proposal in ideas)
    state = session.state
    again = [asyncio.run(Optimizer(session.get).propose(state, Propose(state.next, 2, 0))) for _ in range(2)]
    assert again[0] == again[1]
    assert again[0][0].settings != again[0][1].settings


def test_several_slots_get_different_proposals(long_night):
    state = long_night.state
    proposals = asyncio.run(Optimizer(long_night.get).propose(state, Propose(state.next, 5, 0)))

    assert len({str(proposal.settings) for proposal in proposals}) == len(proposals) == 5


def test_suggestions_are_the_most_promising_first(long_night):
    suggestions = Optimizer(long_night.get).suggest(long_night.state, 4)
    assert len(suggestions) == 4
    assert all(suggestion.author == "optimizer" for suggestion in suggestions)


def test_it_neither_edits_nor_repairs():
    crew = Optimizer({}.__getitem__)

    with pytest.raises(NoAnswer, match="mechanic"):
        asyncio.run(crew.implement(None, Edit(1, "implement 1", "implemented"), BASELINE, SOURCE))
    with pytest.raises(NoAnswer):
        asyncio.run(crew.repair(None, None, None, SOURCE))


def test_a_crash_is_remembered_not_repeated_and_never_a_score(tmp_path):
    session = night(tmp_path / "s" / "session.db", experiments=40, lab=Fragile, repairs=0)

    failed = [result for result in session.state.results if result.crash]
    assert 1 <= len(failed) < 8
    assert "does not run" in failed[0].postmortem.lesson
    at = read_search(session.state, session.get)
    assert all(trial.gain is None and trial.val_bpb is None for trial in at.trials if trial.outcome == "failed")


def test_postmortems_state_what_was_measured(long_night):
    kept = next(result for result in long_night.state.results[1:] if isinstance(result.verdict, Kept))
    post = kept.postmortem

    assert post.verdict == "supported"
    assert not re.search(r"\d", post.happened), "the table beside it has the figures"
    (name, value), *_ = kept.proposal.settings.items()
    label = kept.proposal.title.partition(":")[0]
    told = f"{label}: {name} = {value}" if kept.commit.how == "rebased" else kept.proposal.title
    assert post.lesson.startswith(f"{told}: helps (−0.0"), "a rebased step began from other values than its title says"
    reasons = [result.postmortem.why for result in long_night.state.results[1:] if result.postmortem]
    assert any("steps from the same budget" in why for why in reasons)
    assert "training loss was" in post.happened
    verdicts = {result.postmortem.verdict for result in long_night.state.results if result.postmortem}
    assert verdicts == {"supported", "refuted", "inconclusive"}


names = st.sampled_from(["DEPTH", "MATRIX_LR", "WARMUP_RATIO", "WINDOW"])


@try_examples(300)
@given(
    st.one_of(
        st.builds(
            lambda low, span, log: Numbers(low, low + span, log=log),
            st.floats(0.01, 10),
            st.floats(0.1, 90),
            st.booleans(),
        ),
        st.builds(lambda low, span: Numbers(low, low + span, whole=True), st.integers(1, 9), st.integers(1, 30)),
        st.builds(
            lambda options: Choices(tuple(sorted(options))), st.sets(st.integers(1, 999), min_size=1, max_size=5)
        ),
    ),
    st.floats(0, 1),
    st.sampled_from(["up", "down"]),
    st.floats(0.5, 9),
)
def test_a_step_goes_its_way_and_stays_within(space, place, way, size):
    value = (
        space.options[int(place * (len(space.options) - 1))] if isinstance(space, Choices) else space.from_unit(place)
    )
    new = take_step(Constant("X", value, space), way, size)

    if new is not None:
        assert (new > value) == (way == "up")
        assert new in space.options if isinstance(space, Choices) else space.low <= new <= space.high
        assert type(new) is type(value)


def make_state(*trials, **constants):
    table = {name: Constant(name, value, Numbers(0.0, 1.0)) for name, value in constants.items()}
    return SearchState(table, trials, 0.004)


def trial(number, name, old, new, gain, outcome="discarded", before=None):
    return Trial(f"experiment {number}", {name: new}, before or {name: old}, outcome, gain, 0.004)


def test_what_helped_is_turned_further_in_longer_steps():
    best = rank_steps(make_state(trial(1, "SOME_LR", 0.1, 0.3, 0.03, "kept"), SOME_LR=0.3))[0]
    assert best.changes == {"SOME_LR": 1.0}
    assert best.expected_gain == pytest.approx(0.015)


def test_what_hurt_is_turned_back():
    best = rank_steps(make_state(trial(1, "SOME_LR", 0.5, 0.75, -0.03), SOME_LR=0.5))
    assert [step.changes for step in best] == [{"SOME_LR": 0.12}]


def test_nothing_goes_back_to_where_it_came_from():
    kept = trial(1, "SOME_LR", 0.25, 0.5, 0.03, "kept")
    lost = trial(2, "SOME_LR", 0.5, 1.0, -0.05)
    found = [step.changes for step in rank_steps(make_state(kept, lost, SOME_LR=0.5))]
    assert found == [{"SOME_LR": 0.75}]


def test_near_misses_are_stacked():
    before = {"A_LR": 0.5, "B_LR": 0.5}
    a = trial(1, "A_LR", 0.5, 0.75, 0.008, before=before)
    b = trial(2, "B_LR", 0.5, 0.75, 0.009, before=before)
    best = rank_steps(make_state(a, b, **before))[0]
    assert best.changes == {"A_LR": 0.75, "B_LR": 0.75}
    assert "add up" in best.why


def test_a_stack_goes_only_on_values_that_its_parts_started_from():
    before = {"A_LR": 0.5, "B_LR": 0.5}
    a, b = (trial(n, name, 0.5, 0.75, 0.008, before=before) for n, name in enumerate(before))
    assert stack_near_misses(make_state(a, b, A_LR=0.9, B_LR=0.5)) is None
    assert stack_near_misses(make_state(a, B_LR=0.5)) is None


changes = st.dictionaries(
    st.sampled_from([f"{letter}_LR" for letter in "ABCDEFGH"]), st.floats(0, 1), min_size=1, max_size=3
)


@given(
    st.lists(st.tuples(changes, st.floats(-0.05, 0.02), st.sampled_from(["discarded", "kept", "failed"])), max_size=12),
    st.floats(-0.02, 0.02),
)
def test_no_stack_is_repeated_and_each_is_small_and_within_the_ranges(results, outcome):
    before = dict.fromkeys((f"{letter}_LR" for letter in "ABCDEFGH"), 0.5)
    trials = [
        Trial(f"experiment {n}", change, before, how, None if how == "failed" else gain, 0.004)
        for n, (change, gain, how) in enumerate(results, 1)
    ]
    stacked = []
    while (step := stack_near_misses(at := make_state(*trials, **before))) is not None:
        assert step.changes not in stacked
        assert at.is_new(step.changes)
        assert 2 <= len(step.changes) <= MAX_STACKED
        assert all(is_within(at.constants[name].space, value) for name, value in step.changes.items())
        parts = [t for t in trials if t.changes.items() <= step.changes.items() and t.outcome == "discarded"]
        assert set().union(*(part.changes for part in parts)) == step.changes.keys()
        assert 0 < step.expected_gain < sum(max(part.gain, 0.0) for part in parts)  # a repeat may have been worse
        stacked.append(step.changes)
        trials.append(Trial(f"experiment {len(trials) + 1}", step.changes, before, "discarded", outcome, 0.004))
        assert len(stacked) <= len(results)


@given(st.lists(st.floats(-0.05, 0.05), min_size=1, max_size=9), st.floats(0.0005, 0.02))
def test_an_uncertain_gain_is_worth_less_and_order_stays(gains, error):
    trials = [Trial("experiment 1", {"A_LR": 0.9}, {"A_LR": 0.5}, "discarded", gain, error) for gain in gains]
    at = make_state(*trials, A_LR=0.5)
    worth = [estimate_true_gain(at, t) for t in trials]
    assert all(true < max(gain, 0.0) or true <= gain for true, gain in zip(worth, gains, strict=True) if gain > 0)
    assert sorted(range(len(gains)), key=gains.__getitem__) == sorted(
        range(len(gains)), key=lambda i: (worth[i], gains[i])
    )


def test_one_proposal_in_six_is_a_stack_where_there_is_one(tmp_path):
    long = night(tmp_path / "s" / "session.db", experiments=60, lab=Fragile)
    stacks = [r for r in long.state.tried if "If their effects add up" in r.proposal.rationale]
    assert stacks
    assert all(len(result.proposal.settings) > 1 for result in stacks)


def test_the_cheaper_direction_is_tried_first():
    found = rank_steps(make_state(DEPTH=0.5))
    assert [step.changes["DEPTH"] < 0.5 for step in found] == [True, False]
    assert found[0].expected_effect == found[1].expected_effect


def test_a_constant_in_flight_is_left_alone():
    found = rank_steps(make_state(trial(1, "A_LR", 0.5, 0.75, None, "running"), A_LR=0.5))
    assert found == []


def test_what_is_between_must_not_hurt():
    at = make_state(trial(1, "A_LR", 0.5, 0.7, -0.03), A_LR=0.5)
    assert at.is_known_bad("A_LR", 0.7)
    assert at.is_known_bad("A_LR", 0.9)
    assert not at.is_known_bad("A_LR", 0.6)
    assert not at.is_known_bad("A_LR", 0.3)


def test_policy_would_not_refuse_what_is_proposed_in_flight(long_night):
    """The policy's own rule of repeats, asked of every proposal in the state that it was made in."""
    state = None
    for record in long_night.records:
        if record.event.kind == "proposed":
            assert proposals.find_repeat(state, record.event.experiment, record.event.proposal) == ""
        state = fold([record], state)
    assert not any(isinstance(stage, Decided) for stage in state.open.values())


TUNABLE = """
DEPTH = 8
BATCH = 2**19
WARMUP = 5 * 60
BIAS = -0.5
TIED = True
SCALE = 2.0
GAIN = 1.0
ACCUM = 4
EVALUATED = 8
BETAS = (0.9, 0.95)
PATTERN = "SSSL"
PAD = -1
LOG_EVERY = 20
NAME = 7
COLUMNS = 80
SEED = 42
settings = {"scale": SCALE}
class Config:
    gain = GAIN
def report(step, loss):
    if step % LOG_EVERY == 0:
        shown = loss.item() * COLUMNS
        print(f"{step} {shown:.3f}")
title = f"run {NAME}"
loss = train(DEPTH, batch=BATCH, bias=BIAS, tied=TIED, until=WARMUP, seed=SEED, BETAS, PATTERN, PAD)
print(title, evaluate(EVALUATED))
(loss * ACCUM).backward()
train(settings, Config)
""".replace("seed=SEED, BETAS, PATTERN, PAD", "seed=[SEED, BETAS, PATTERN, PAD]")


def test_what_training_reads_is_searched_and_what_is_only_shown_is_left_alone():
    found = ["DEPTH", "BATCH", "WARMUP", "BIAS", "TIED", "SCALE", "GAIN", "ACCUM", "EVALUATED", "BETAS"]
    assert list(list_tunable(TUNABLE)) == found
    assert [*list_tunable(TUNABLE + "train(globals())\n")] == [*found, "LOG_EVERY", "NAME", "COLUMNS"]


@pytest.mark.parametrize(
    "line",
    [
        "X = 'a'",
        "X = 8  # one of 8",
        "X = 8  # one of None, 8",
        "X = ('a', 'b')  # one of ('a', 'b'), ('b', 'c')",
        "X = 1e999",
        "X = ('a', 'b')",
        "SEED = 3",
        "x = 3",
    ],
)
def test_what_has_no_other_value_is_not_searched(line):
    assert list_tunable(f"{line}\ntrain({line.split()[0]})\n") == {}


def test_in_reported_form_what_only_tells_is_left_alone():
    script = """
parser.add_argument("--lr", default=0.1)
parser.add_argument("--batch-size", default=64)
parser.add_argument("--width-of-lines", default=80)
parser.add_argument("--seed", default=8)
EVERY = 10
args = parser.parse_args()
def main():
    for step in range(args.batch_size):
        if step % EVERY == 0:
            print(f"step {step} {args.width_of_lines}")
    print(f"METRIC x={train(args.lr, args.seed)}")
"""
    shown = (
        "print(vars(args))",
        "print(f'{json.dumps(vars(args))}')",
        "for name, value in sorted(vars(args).items()):\n    print(name, value)",
    )
    used = ("print(train(**vars(args)))", "model = make(vars(args))\nmodel.fit()")
    for is_reported in (True, False):
        for line in ("", *shown):
            assert [*list_tunable(f"{script}{line}\n", is_reported)] == ["--lr", "--batch-size"], line
        for line in used:
            assert "--width-of-lines" in list_tunable(f"{script}{line}\n", is_reported), line


def test_an_option_that_the_command_or_set_defaults_sets_is_not_searched():
    options = "".join(f'p.add_argument("--{name}", default=0.3)\n' for name in ("lr", "weight-decay", "dropout"))
    script = f"{options}p.set_defaults(dropout=0.5)\na = p.parse_args()\nprint(fit(a.lr, a.weight_decay, a.dropout))\n"
    fixed = find_fixed(script, "python train.py --weight-decay=0.1 -x")
    assert fixed == ("dropout", "weight_decay")
    assert [*list_tunable(script, True, fixed)] == ["--lr"]
    assert len(list_tunable(script, True)) == 3, "as in sessions of before"


@pytest.mark.parametrize(
    "line",
    [
        "X = 8  # 1..8",
        "X = 1  # 1..2 log",
        "X = 0.0  # 0.0..0.5",
        "X = True",
        "X = 2 # one of 2, 3",
        "X = 0  # 0.0..0.3",
        "X = 0  # 0..3e-1",
        "X = 0.9999  # 0.99..0.9999",
        "X = 0.9999  # one of 0.9995, 0.9999",
    ],
)
def test_a_constant_at_its_bound_has_a_step(line):
    found = list_tunable(f"{line}\ntrain(X)\n")
    at = SearchState(found, (), 0.004)
    assert [is_within(found["X"].space, step.changes["X"]) for step in rank_steps(at)] == [True]


@pytest.mark.parametrize(
    ("line", "steps", "before"),
    [
        ("X = 1  # 0.1..10 log", (0.18, 5.6), (0, 6)),
        ("X = 3  # 0.5..3.5", (1.9, 3.5), (2, 4)),
        ("X = 3  # 1..5", (2, 4), (2, 4)),
        ("X = 0  # 0.0..1.0", (None, 0.38), (None, 1)),
        ("X = 0.999  # 0.99..0.9999", (0.995, 0.9999), None),
        ("X = 0.9995  # 0.999..0.9999", (0.9992, 0.9998), None),
        ("X = 10000.0  # 10000.0..10400.0", (None, 10150.0), None),
        ("X = 0.999  # 0.9..0.9999", (0.96, 0.9999), (0.96, None)),
        ("X = 0.95  # 0.9..0.99", (0.92, 0.98), (0.92, 0.98)),
        ("X_BETA = 0.999", (0.998, 0.9995), (None, None)),
        ("X = 0.199  # 0.005..0.2 log", (0.05, None), (0.05, None)),
    ],
)
def test_a_range_is_searched_as_it_is_declared_and_in_old_sessions_as_before(line, steps, before):
    for is_old, expected in ((False, steps), (True, before)):
        found = list_tunable(f"{line}\ntrain({line.split()[0]})\n", is_old=is_old).values()
        ways = [tuple(take_step(constant, way, 1.0) for way in ("down", "up")) for constant in found]
        assert ways == [expected] * (expected is not None)


def test_an_option_is_read_under_its_dest():
    script = 'p.add_argument("--rate", dest="lr", default=0.1)\na = p.parse_args()\nfit(a.lr)\n'
    assert [*list_tunable(script)] == ["--rate"]
    assert not (list_tunable(script, fixed=("lr",)) or list_tunable(script, fixed=("rate",)))
    assert not (list_tunable(script, is_old=True) or list_tunable(script.replace("lr", "seed")))


def test_the_constants_of_many_parents_are_read_once_each():
    sources = [f"LR = {number}.5  # 0..1000\nprint(LR, prepare(LR))\n" for number in range(200)]
    before = list_tunable.cache_info().misses
    for source in (*sources, *sources):
        assert list_tunable(source)
    assert list_tunable.cache_info().misses == before + len(sources)


def test_a_trial_has_the_values_that_ran_where_its_parent_was_kept_in_another_version(tmp_path):
    session = night(tmp_path / "s" / "session.db", slots=8, experiments=30, seed=0, rule=KEEP_RULE, lab=Uneven)
    state, trials = session.state, {trial.name: trial for trial in read_search(session.state, session.get).trials}
    stacked = [result for result in state.results if result.commit and result.scores and result.commit.onto]

    assert any(state.parents[result.commit.parent].source != result.commit.onto for result in stacked)
    for result in stacked:
        after, ran = trials[f"experiment {result.experiment}"].after, read_values(session.get(result.commit.source))
        assert after == {name: ran[name] for name in after}


@pytest.fixture(scope="module")
def wide_night(tmp_path_factory):
    return night(tmp_path_factory.mktemp("wide") / "s" / "session.db", slots=32, experiments=32, rule=KEEP_RULE)


def test_a_range_that_an_edit_declares_ends_no_search_of_what_the_baseline_left_to_guesses(wide_night):
    state, base = wide_night.state, wide_night.state.parents[0].source

    def get(digest):
        text = re.sub("#.*", "", wide_night.get(digest))
        return text if digest == base else f"{text}GATE = 0.5  # 0.0..1.0\ntrain(GATE)\n"

    assert state.parent.source != base
    assert {"DEPTH", "MATRIX_LR", "GATE"} <= read_search(state, get).constants.keys()
    begun = state.session.model_copy(update={"rule": KEEP_RULE.model_copy(update={"as_declared": False})})
    assert [*read_search(replace(state, started=begun), get).constants] == ["GATE"]


def test_many_slots_get_no_proposal_twice(wide_night):
    assert "refused" not in {result.status for result in wide_night.state.results}
    trained = [result.commit.fingerprint for result in wide_night.state.results if result.scores]
    assert len({*trained}) == len(trained) > 20


def test_a_rebase_leaves_a_change_what_it_was_proposed_as(wide_night):
    state, starts = wide_night.state, {}
    commits = (record.event for record in wide_night.records if record.event.kind == "committed")
    settings = {result.experiment: result.proposal.settings for result in state.results}
    for commit in commits:
        values = read_values(wide_night.get(state.get_base(commit)))
        starts.setdefault(commit.experiment, []).append({name: values[name] for name in settings[commit.experiment]})

    assert max(map(len, starts.values())) > 1
    assert all(before == first for first, *others in starts.values() for before in others)
    given_up = [result.verdict.reason for result in state.results if result.status == "abandoned"]
    assert "experiment 7, from which it would start now, sets DEPTH, too" in given_up
