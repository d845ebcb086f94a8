"""Write log.jsonl, results.tsv, ledger.parquet and report.html beside a session; all can be rebuilt."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from orchestrator.views.experiments import LogReader
from orchestrator.views.render import File
from orchestrator.views.report.page import render_report
from orchestrator.views.report.tables import write_parquet, write_results
from prepare.command import write_command
from prepare.files import write_atomically


def list_files(
    log: LogReader, folder: Path, command: Callable[..., str] = write_command, git: str = "git"
) -> Iterator[File]:
    """Yield all but log.jsonl; `command` completes a command of ours, `git` begins one about the script."""
    state = replace(log.state, now=0.0, usage={})  # neither agents' talk nor time alone needs a new page
    yield folder / "results.tsv", state, partial(write_results, log.state)
    yield folder / "ledger.parquet", state, partial(write_parquet, log)
    yield folder / "report.html", state, partial(render_report, log, command, git)


def write_log(log: LogReader, folder: Path, known: int = 0) -> None:
    """Write log.jsonl, or append to it what follows the `known` records that it holds. Raises OSError."""
    path = folder / "log.jsonl"
    known = known if path.is_file() else 0
    lines = "".join(record.model_dump_json() + "\n" for record in log.records[known:])
    if known:
        with path.open("a", encoding="utf-8") as file:
            file.write(lines)
    else:
        write_atomically(path, lines)


def write_files(log: LogReader, folder: Path, command: Callable[..., str] = write_command, git: str = "git") -> None:
    """Write all files of a session into its folder. Raises OSError."""
    write_log(log, folder)
    for path, _, render in list_files(log, folder, command, git):
        write_atomically(path, render())
