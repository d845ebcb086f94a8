"""What stands beside a session's log: results.tsv, ledger.parquet, report.html, log.jsonl. All can be deleted."""

from pathlib import Path

from orchestrator import paper
from orchestrator.report.page import Page
from orchestrator.report.results import results
from orchestrator.report.table import ledger
from orchestrator.session import Log

TELLING = {"fitted", "scored", "crashed", "refused", "abandoned", "promoted", "reflected", "closed", "waiting", "ended"}
"""Kinds of events after which a reader would see a difference."""


class Files:
    """Keeps the files in a session's folder up to date with its log."""

    def __init__(self, log: Log, folder: Path) -> None:
        self.log, self.folder = log, folder
        self.page = Page(log)
        self.seen = 0

    def update(self) -> None:
        """Write what has changed since the last time; the first time, everything. Raises OSError."""
        fresh, first = self.log.records[self.seen :], self.seen == 0
        if not fresh:
            return
        lines = "".join(record.model_dump_json() + "\n" for record in fresh)
        if first:
            paper.write(self.folder / "log.jsonl", lines)
        else:
            with (self.folder / "log.jsonl").open("a") as file:
                file.write(lines)
        self.seen += len(fresh)
        if first or any(record.event.kind in TELLING for record in fresh):
            paper.write(self.folder / "results.tsv", results(self.log.state))
            paper.write(self.folder / "ledger.parquet", ledger(self.log))
            paper.write(self.folder / "report.html", self.page.html())


def write(log: Log, folder: Path) -> None:
    """Write all files of a session anew into its folder."""
    Files(log, folder).update()
