"""Write the files beside a session: log.jsonl, results.tsv, ledger.parquet, report.html. All can be deleted."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from orchestrator.core.state import State
from orchestrator.views.report.page import Page
from orchestrator.views.report.parquet import write_parquet
from orchestrator.views.report.results_tsv import write_results
from orchestrator.views.snapshot import LogReader
from prepare import atomic


class Files:
    """Knows what the files of one session hold, and writes what is missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.renderers: dict[str, Callable[[LogReader], str | bytes]] = {
            "results.tsv": lambda log: write_results(log.state),
            "ledger.parquet": write_parquet,
            "report.html": Page().render,
        }
        self.logged = 0
        """Records that log.jsonl holds."""
        self.shown: dict[str, State] = {}

    def list_writes(self, log: LogReader) -> Iterator[Callable[[], None]]:
        """Yield a write for each file that is not up to date. Each raises OSError."""
        if len(log.records) > self.logged:
            yield partial(self._append_log, log)
        state = replace(log.state, now=0.0, usage={})  # neither agents' talk nor time alone is worth a new page
        for name, render in self.renderers.items():
            if self.shown.get(name) != state:
                yield partial(self._replace, name, render, log, state)

    def _append_log(self, log: LogReader) -> None:
        path = self.folder / "log.jsonl"
        known, self.logged = self.logged if path.is_file() else 0, 0  # a failed append may leave half a line
        lines = "".join(record.model_dump_json() + "\n" for record in log.records[known:])
        if known:
            with path.open("a", encoding="utf-8") as file:
                file.write(lines)
        else:
            atomic.write_atomically(path, lines)
        self.logged = len(log.records)

    def _replace(self, name: str, render: Callable[[LogReader], str | bytes], log: LogReader, state: State) -> None:
        atomic.write_atomically(self.folder / name, render(log))
        self.shown[name] = state


def write_files(log: LogReader, folder: Path) -> None:
    """Write all files of a session into its folder. Raises OSError."""
    for write in Files(folder).list_writes(log):
        write()
