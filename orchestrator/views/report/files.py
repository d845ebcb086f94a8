"""Write log.jsonl, results.tsv, ledger.parquet and report.html beside a session; all can be rebuilt."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from orchestrator.views.report.page import Page
from orchestrator.views.report.tables import write_parquet, write_results
from orchestrator.views.snapshot import File, LogReader
from prepare.command import write_command
from prepare.files import write_atomically


class Files:
    """The files of one session: log.jsonl is appended to, the others are rendered."""

    def __init__(self, folder: Path, command: Callable[..., str] = write_command, git: str = "git") -> None:
        """Write into the folder; `command` completes a command of ours, `git` begins one about the script."""
        self.folder, self.page = folder, Page(command, git)
        self.logged = 0
        """Records that log.jsonl holds."""

    def list_files(self, log: LogReader) -> Iterator[File]:
        """Yield all but log.jsonl."""
        state = replace(log.state, now=0.0, usage={})  # neither agents' talk nor time alone needs a new page
        yield self.folder / "results.tsv", state, partial(write_results, log.state)
        yield self.folder / "ledger.parquet", state, partial(write_parquet, log)
        yield self.folder / "report.html", state, partial(self.page.render, log)

    def append_log(self, log: LogReader) -> None:
        """Bring log.jsonl up to date. Raises OSError."""
        path = self.folder / "log.jsonl"
        known, self.logged = self.logged if path.is_file() else 0, 0  # a failed append may leave half a line
        lines = "".join(record.model_dump_json() + "\n" for record in log.records[known:])
        if known:
            with path.open("a", encoding="utf-8") as file:
                file.write(lines)
        else:
            write_atomically(path, lines)
        self.logged = len(log.records)


def write_files(log: LogReader, folder: Path, command: Callable[..., str] = write_command, git: str = "git") -> None:
    """Write all files of a session into its folder. Raises OSError."""
    files = Files(folder, command, git)
    files.append_log(log)
    for path, _, render in files.list_files(log):
        write_atomically(path, render())
