"""Write the files beside a session: log.jsonl, log.txt, results.tsv, ledger.parquet, report.html, and a tracker's.

All can be rebuilt. report.html is one self-contained page that needs no network. Text by agents is untrusted, and
escaped by Jinja; all of it can be read without scripts. ledger.parquet holds everything about each experiment, for
pandas, DuckDB and similar tools; results.tsv has autoresearch's own five columns, so that its tools can read it.
"""

import io
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup
from pyarrow import csv

from orchestrator.core.events import Discarded, Failed, Forked, Kept, ModelReplied, Pruned, Resumed, Started
from orchestrator.core.state import UNTESTED, State, Usage
from orchestrator.policy.evidence import assess_keep
from orchestrator.policy.limits import estimate_run_seconds, remember_each
from orchestrator.policy.thresholds import NEAR_MISS
from orchestrator.views.charts import Figure, Places, draw_curves, draw_progress, draw_telemetry, render_page
from orchestrator.views.event_text import write_json, write_line
from orchestrator.views.experiments import ExperimentRow, LogReader, list_rows, show_diff
from orchestrator.views.render import File, render_template
from orchestrator.views.summary import describe_trust, suggest_command, summarize, tabulate
from orchestrator.views.usage import list_runs, measure_utilization
from prepare.command import UserError, write_command
from prepare.files import write_atomically

Tool = Literal["csv", "trackio", "wandb"]
ENOUGH = 20
"""Measured experiments that only set constants, below which a picture of the constants would show luck."""
COLUMNS = (Path(__file__).parent / "templates/columns.txt").read_text("utf-8")
"""val_bpb and scores are values of the metric, expected_delta a change of them. Seconds, steps and tokens are
of the first run; gain is positive where better; unknown is null, never 0."""


def list_files(log: LogReader, folder: Path, runs: bool = True, **how: Any) -> Iterator[File]:
    """Yield all but the logs; `runs` and `how` are arguments of `draw_report`."""
    state = replace(log.state, now=0.0, usage={})  # neither agents' talk nor time alone needs a new page
    yield folder / "results.tsv", state, partial(write_results, log.state)
    yield folder / "ledger.parquet", state, partial(write_parquet, log)
    yield folder / "report.html", (state, runs), partial(draw_report, log, runs=runs, **how)


def write_log(log: LogReader, folder: Path, known: int = 0) -> None:
    """Write log.jsonl and, for people, log.txt, or append what follows the `known` records. Raises OSError."""
    write = partial(write_line, task=log.state.session.task, pattern="%Y-%m-%d %H:%M:%S")
    for path, tell in ((folder / "log.jsonl", write_json), (folder / "log.txt", write)):
        begun = known if path.is_file() else 0
        lines = "".join(f"{tell(record)}\n" for record in log.records[begun:])
        if begun:
            with path.open("a", encoding="utf-8") as file:
                file.write(lines)
        else:
            write_atomically(path, lines)


def has_log(log: LogReader, folder: Path) -> bool:
    """Return whether files of this session were written into that folder before; a fork shares its parent's events."""
    path, begun = folder / "log.jsonl", max(r.seq for r in log.records if isinstance(r.event, Started | Forked))
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        for record in log.records:
            line = f"{write_json(record)}\n"
            if (found := file.readline(len(line) + 1)) != line:
                return not found and record.seq > begun
    return True


def write_files(log: LogReader, folder: Path, **how: Any) -> None:
    """Write all files of a session into its folder; `how` are arguments of `draw_report`. Raises OSError."""
    write_log(log, folder)
    for path, _, render in list_files(log, folder, **how):
        write_atomically(path, render())


def render_report(log: LogReader, **how: Any) -> str:
    """Return the page; `how` are arguments of `draw_report`."""
    return "".join(draw_report(log, **how))


def draw_report(
    log: LogReader,
    command: Callable[..., str] = write_command,
    git: str = "git",
    runs: bool = True,
    rest: float = 0.0,
    file: str = "",
) -> Iterator[str]:
    """Yield the page in parts, since it is large.

    `command` completes a command of ours, `git` begins one about the script. `runs` is whether a
    process still runs the session, if it has not ended; `rest` for how many seconds it leaves the page as it is;
    `file` is that of a session which is not in the folder of its name.
    """
    state, rows, summary = log.state, list_rows(log.state), summarize(log.state)
    experiments, held = _render_experiments(rows, log=log), list_runs(log.records)
    figures = {"progress": draw_progress(rows, _list_axes(log, rows), summary)} | _draw_constants(log, rows)
    used, soon = measure_utilization(log.records, state.session.slots, held), 2 * max(estimate_run_seconds(state), rest)
    facts = {"state": state, "summary": summary, "rows": rows, "experiments": experiments, "held": held, "used": used}
    facts |= {"live": runs and not summary.ended, "soon": soon, "trust": describe_trust(log)}
    facts |= {"near_miss": NEAR_MISS, "untested": UNTESTED}
    facts |= {"assess_keep": partial(assess_keep, state), "show_diff": partial(show_diff, log)}
    facts |= {"git": git, "command": command, "suggested": suggest_command(log, command, file)}
    return render_page("page.html", figures, [charts for charts, _ in experiments], **facts)


@remember_each
def _render_experiments(row: ExperimentRow, *, log: LogReader) -> tuple[str, Markup]:
    """Return an experiment's charts, as JSON, and its part of the page."""
    curve = draw_curves(row)
    figures = ({f"curve-{row.experiment}": curve} if curve else {}) | draw_telemetry(row)
    facts = {"row": row, "change": show_diff(log, row), "numbers": tabulate(row), "figures": figures}
    return json.dumps(figures), Markup(render_template("experiment.html", **facts))  # noqa: S704 - escaped there


def _draw_constants(log: LogReader, rows: Sequence[ExperimentRow]) -> dict[str, Figure]:
    """Return what Optuna draws of the constants, if enough experiments changed nothing else."""
    if sum(row.gain is not None and bool(row.proposal.settings) for row in rows) < ENOUGH:
        return {}
    from orchestrator.optimizer.search import read_search
    from orchestrator.optimizer.study import draw_constants  # takes a while to import

    return draw_constants(read_search(log.state, log.get))


def _list_axes(log: LogReader, rows: Sequence[ExperimentRow]) -> dict[str, Places]:
    """Return where each experiment lies along each axis of the chart of scores."""
    axes: dict[str, Places] = {
        "experiment": {row.experiment: row.experiment for row in rows},
        "hours": dict(_list_hours(log)),
        "MB of memory": {
            row.experiment: max(run.metrics.memory_mb for run in row.runs) or None for row in rows if row.runs
        },
    }
    reported = dict.fromkeys(name for row in rows for score in row.scores for name in score.reported)
    for name in [name for name in reported if name not in axes]:
        axes[name] = {row.experiment: row.scores[0].reported.get(name) for row in rows if row.scores}
    return axes


def _list_hours(log: LogReader) -> Iterator[tuple[int, float]]:
    """Yield each experiment and the hours spent until its verdict; what passes between two lives does not count."""
    begin, before = log.state.started_at, 0.0
    for record in log.records:
        if isinstance(record.event, Resumed | Forked):
            begin += record.at - before
        elif isinstance(record.event, Kept | Discarded | Failed | Pruned):
            yield record.event.experiment, (record.at - begin) / 3600
        before = record.at


def write_results(state: State) -> str:
    """Return the content of results.tsv: a line for each experiment that was trained and judged, by number."""
    return render_template("results.tsv", rows=list_rows(state), metric=state.session.task.metric)


def write_parquet(log: LogReader) -> bytes:
    """Return the content of ledger.parquet."""
    buffer = io.BytesIO()
    pq.write_table(_make_table(log), buffer, compression="zstd")
    return buffer.getvalue()


def _make_table(log: LogReader) -> Any:
    session, usage = log.state.session.name, defaultdict[int, Usage](Usage)
    for reply in (record.event for record in log.records if isinstance(record.event, ModelReplied)):
        usage[reply.experiment] = usage[reply.experiment].add(reply)
    rows = [_make_row(session, row, usage[row.experiment]) for row in list_rows(log.state)]
    arrow = cast("Any", pa)
    lines = (line.split(": ") for line in COLUMNS.strip().split("\n"))
    types = {name: kind for kind, names in lines for name in names.split()} | {"scores": arrow.list_(arrow.float64())}
    return arrow.Table.from_pylist(rows, schema=arrow.schema(types.items()))


def _make_row(session: str, row: ExperimentRow, usage: Usage) -> Mapping[str, Any]:
    known: dict[str, Any] = {}
    for part in (row.proposal, row.commit, row.crash, row.postmortem):
        known |= part.model_dump() if part else {}
    for run in row.runs[:1]:
        known |= {name: value or None for name, value in run.metrics.model_dump().items()} | {"tier": run.tier}
    if settings := row.proposal.settings:
        value = next(iter(settings.values())) if len(settings) == 1 else settings
        known |= {"parameter": " + ".join(settings), "value": json.dumps(value, ensure_ascii=False)}
    return known | {
        "session": session,
        "base": row.commit.parent if row.commit else None,
        "against": row.incumbent,
        **{name: getattr(row, name) for name in ("experiment", "status", "gain", "error")},
        "sigma": getattr(row.verdict, "sigma", None),
        "metric": row.task.metric.name,
        "val_bpb": row.value,
        "expected_delta": row.task.metric.sign * row.proposal.expected_delta + 0.0,
        "scores": [row.task.metric.sign * score.val_bpb for score in row.scores],
        "reason": row.reason or None,
        "input_tokens": usage.input,
        "cached_tokens": usage.cached,
        "output_tokens": usage.output,
        "usd": None if usage.unpriced else usage.usd,
    }


def export(log: LogReader, to: Tool, folder: Path) -> None:
    """Write ledger.csv, or give each experiment to a tracker as a run of a project with the session's name.

    Nothing leaves this machine. A run's steps are percents of its budget. Raises UserError without the tracker's
    package, and OSError.
    """
    if to == "csv":
        table = _make_table(log)
        csv.write_csv(table.drop_columns(["scores"]), folder / "ledger.csv")
        return
    for name in [name for name in os.environ if name.startswith("TRACKIO_") and name != "TRACKIO_DIR"]:
        del os.environ[name]  # where other work is logged: a Space or a server
    try:
        api: Any = import_module(to)
    except ImportError as error:
        raise UserError(f"--to {to} needs a package: pip install {to}") from error
    local: dict[str, Any] = {"mode": "offline", "dir": str(folder)}
    if to == "trackio":
        local = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
    for row in list_rows(log.state):
        if row.runs:
            facts = {"status": row.status, "hypothesis": row.proposal.hypothesis, **row.proposal.settings}
            name = f"{row.experiment:04} {row.proposal.title}"
            run = api.init(project=log.state.session.name, name=name, config=facts, **local)
            for point in row.runs[0].curve:
                run.log({"training loss": point.loss}, step=round(100 * point.progress))
            if row.value is not None:
                run.log({row.task.metric.name: row.value}, step=100)
            run.finish()
