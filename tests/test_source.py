"""What counts as the same code."""

from orchestrator.core.source import compute_fingerprint, count_changes, diff, merge

BASE = "import torch\nSEED = 42\nLR = 0.1  # learning rate\ntorch.manual_seed(42)\nmodel(seed=1)\nDEPTH = 3\n"


def test_comments_layout_and_seeds_do_not_count():
    for other in (
        BASE.replace("# learning rate", "# changed"),
        BASE.replace("\nDEPTH", "\n\n\nDEPTH"),
        BASE.replace("SEED = 42", "SEED = 137"),
        BASE.replace("manual_seed(42)", "manual_seed(7)"),
        BASE.replace("seed=1", "seed=99"),
    ):
        assert other != BASE
        assert compute_fingerprint(other) == compute_fingerprint(BASE)


def test_everything_else_counts():
    assert compute_fingerprint(BASE.replace("DEPTH = 3", "DEPTH = 4")) != compute_fingerprint(BASE)
    assert compute_fingerprint(BASE.replace("LR = 0.1", "LR = 0.2")) != compute_fingerprint(BASE)
    assert compute_fingerprint("not python (") == compute_fingerprint("not python (")


def test_two_changes_merge_unless_they_touch():
    one, two = BASE.replace("DEPTH = 3", "DEPTH = 4"), BASE.replace("LR = 0.1", "LR = 0.2")

    both = merge(BASE, one, two)

    assert both is not None
    assert "DEPTH = 4" in both
    assert "LR = 0.2" in both
    assert merge(BASE, one, BASE.replace("DEPTH = 3", "DEPTH = 5")) is None


def test_changes_are_counted_in_lines():
    new = BASE.replace("DEPTH = 3\n", "DEPTH = 4\nWIDTH = 5\n")

    assert count_changes(BASE, new) == (2, 1)
    assert "+WIDTH = 5" in diff(BASE, new)
    assert diff(BASE, BASE) == ""
