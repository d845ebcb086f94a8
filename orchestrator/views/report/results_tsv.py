"""results.tsv: autoresearch's own five columns, so that whatever reads its results reads ours."""

from orchestrator.core.state import State
from orchestrator.views.experiments import ExperimentRow, list_rows

HEADER = ("commit", "val_bpb", "memory_gb", "status", "description")
STATUS = {"kept": "keep", "discarded": "discard", "pruned": "crash", "crashed": "crash"}


def write_results(state: State) -> str:
    """A line for everything that was judged, in the order of the experiments; what never ran is left out."""
    rows = [HEADER, *(_make_row(entry) for entry in list_rows(state) if entry.status in STATUS)]
    return "".join("\t".join(row) + "\n" for row in rows)


def _make_row(entry: ExperimentRow) -> tuple[str, str, str, str, str]:
    crashed = STATUS[entry.status] == "crash"  # without a score, as upstream has it
    return (
        entry.commit.commit[:7] if entry.commit else "",
        f"{0.0 if crashed else entry.val_bpb or 0.0:.6f}",
        f"{0.0 if crashed else entry.memory_mb / 1024:.1f}",
        STATUS[entry.status],
        " ".join(entry.proposal.title.split()),
    )
