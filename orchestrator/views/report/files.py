"""What stands beside a session's log: results.tsv, ledger.parquet, report.html, log.jsonl. All can be deleted."""

from pathlib import Path

from orchestrator.session.store import EventLog
from orchestrator.views.report.page import Page
from orchestrator.views.report.parquet import write_parquet
from orchestrator.views.report.results_tsv import write_results
from prepare import atomic

TELLING = {"fitted", "scored", "crashed", "refused", "abandoned", "promoted", "reflected", "closed", "waiting", "ended"}
"""Kinds of events after which a reader would see a difference."""


class Files:
    """Keeps the files in a session's folder up to date with its log."""

    def __init__(self, log: EventLog, folder: Path) -> None:
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
            atomic.write_atomically(self.folder / "log.jsonl", lines)
        else:
            with (self.folder / "log.jsonl").open("a") as file:
                file.write(lines)
        self.seen += len(fresh)
        if first or any(record.event.kind in TELLING for record in fresh):
            atomic.write_atomically(self.folder / "results.tsv", write_results(self.log.state))
            atomic.write_atomically(self.folder / "ledger.parquet", write_parquet(self.log))
            atomic.write_atomically(self.folder / "report.html", self.page.html())


def write_files(log: EventLog, folder: Path) -> None:
    """Write all files of a session anew into its folder."""
    Files(log, folder).update()
