"""Write results.tsv in autoresearch's own five columns, so that tools which read those read ours."""

from orchestrator.core.state import State
from orchestrator.core.text import flatten
from orchestrator.views.experiments import ExperimentRow, list_rows

HEADER = ("commit", "val_bpb", "memory_gb", "status", "description")
STATUS = {"kept": "keep", "discarded": "discard", "pruned": "crash", "crashed": "crash"}


def write_results(state: State) -> str:
    """Return a line for each experiment that was trained and judged, by number."""
    rows = [HEADER, *(_make_cells(row) for row in list_rows(state) if row.status in STATUS)]
    return "".join("\t".join(cells) + "\n" for cells in rows)


def _make_cells(row: ExperimentRow) -> tuple[str, ...]:
    commit, status = row.commit.commit[:7] if row.commit else "", STATUS[row.status]
    score, memory = (0.0, 0.0) if status == "crash" else (row.val_bpb or 0.0, row.memory_mb / 1024)
    return commit, f"{score:.6f}", f"{memory:.1f}", status, flatten(row.proposal.title)
