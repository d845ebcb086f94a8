"""The numbers of a run are those that its verdict used: means over seeds on both sides."""

import pytest

from orchestrator.core import events as ev
from orchestrator.core.description import (
    average_telemetry,
    compare_curves,
    compare_metrics,
    count_distinct,
    count_seeds,
)
from orchestrator.core.task import BPB
from subagents.prompts import split_front_matter


def run(score: float, *, steps: int = 0, losses=()) -> ev.Scored:
    curve = tuple(ev.Point(seconds=p, progress=p, loss=loss) for p, loss in losses)
    metrics = ev.RunMetrics(steps=steps)
    return ev.Scored(experiment=1, run=1, val_bpb=score, metrics=metrics, curve=curve, log="x")


def test_both_sides_are_means_over_their_runs():
    ours = [run(2.0, steps=100, losses=[(0.5, 4.0), (1.0, 3.0)]), run(2.2, steps=110, losses=[(0.5, 4.2), (1.0, 3.2)])]
    incumbent = [run(2.5, steps=90, losses=[(0.5, 5.0), (1.0, 4.0)]), run(2.3, losses=[(0.5, 4.0), (1.0, 3.0)])]

    assert compare_metrics(ours, incumbent)[0] == ("optimizer steps", 105, 90)
    assert compare_curves(ours, incumbent) == pytest.approx({0.5: -0.4, 1.0: -0.4})


def test_a_crash_has_measurements_and_no_curve_to_compare():
    crash = ev.Crashed(
        experiment=1, run=1, failure="NaN", message="", metrics=ev.RunMetrics(steps=7), curve=(), log="x"
    )
    assert compare_metrics([crash], [])[0] == ("optimizer steps", 7, 0)
    assert compare_curves([crash], []) == {}


def test_telemetry_is_averaged_where_it_is_known():
    told = [{"scalar/x": (1.0, None, 3.0), "position": (2.0,)}, {"scalar/x": (2.0, 5.0), "update/y": (None, 7.0)}]
    runs = [run(2.0).model_copy(update={"telemetry": telemetry}) for telemetry in told]

    assert average_telemetry(runs) == {
        "scalar/x": [(0.0, 1.5), (0.1, 5.0), (0.2, 3.0)],
        "position": [(0.0, 2.0)],
        "update/y": [(0.1, 7.0)],
    }
    assert average_telemetry([]) == {}
    (points,) = average_telemetry([run(2.0).model_copy(update={"telemetry": {"position": (1.0,) * 40_000}})]).values()
    assert len(points) == 64, "whose positions are powers of two"


def audit(claimed: float) -> ev.Audit:
    return ev.Audit(claimed=claimed, error=0.0, worst=0.0, looks=9, seconds=1.0, evaluation=1.0)


def test_runs_that_agree_to_the_bit_are_not_told_as_several_seeds():
    same = [run(2.5 + n * 1e-9).model_copy(update={"audit": audit(2.5)}) for n in range(3)]
    corrected = [score.model_copy(update={"val_bpb": 2.5 + n / 100}) for n, score in enumerate(same)]
    for scores in (same, corrected):
        assert count_seeds(scores) == "3 identical runs (their seeds made no difference)"
        assert count_distinct(scores) == 1
    assert count_seeds([run(2.5), run(2.51), run(2.5)]) == "3 seeds"
    assert (count_seeds([run(2.5)]), count_distinct([])) == ("1 seed", 0)


def test_front_matter_is_keys_and_values():
    assert split_front_matter("---\na: 1\n---\nbody\n") == ({"a": 1}, "body\n")
    assert split_front_matter("---\n---\nbody\n") == ({}, "body\n")


@pytest.mark.parametrize(
    "text",
    [
        "no matter",
        "---\n- a\n- list\n---\n",
        "---\nstarted: 2024-13-45\n---\n",
        "---\na: !!bool maybe\n---\n",
        "---\na: !!timestamp never\n---\n",
        "---\n? [a]\n: b\n---\n",
        "---\na: [\n---\n",
        "---\nnever: closed\n",
    ],
)
def test_anything_else_is_a_value_error(text):
    with pytest.raises(ValueError, match="front matter"):
        split_front_matter(text)


def test_what_rounds_to_zero_has_no_sign_of_a_loss():
    assert {BPB.format_change(change) for change in (-1e-9, -0.0, 0.0, 1e-9)} == {"+0.0000"}
    assert BPB.format_size(-1e-9) == "0.0000"
    assert (BPB.format_change(-0.5), BPB.format_change(0.5)) == ("−0.5000", "+0.5000")
