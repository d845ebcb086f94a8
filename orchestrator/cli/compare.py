"""The command that sets sessions side by side."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from orchestrator.cli.options import Paths, UsageError, read_session
from orchestrator.views import comparison


def compare(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="two sessions or more")],
    chart: Annotated[Path | None, typer.Option(help="the chart's file (default: compare.html in --sessions)")] = None,
) -> None:
    """Set sessions side by side.

    Gains, keep rates, crashes, repeats, breadth, tokens and dollars; a chart of the best so far. With several nights of
    one crew and style also intervals: python -m orchestrator compare NAME OTHER THIRD
    """
    paths: Paths = context.obj
    rows = [_summarize(paths, name) for name in names]
    Console(highlight=False).print(_make_table(rows))
    arms = comparison.group_arms(rows)
    for arm, members in arms.items():
        if len(members) > 1:
            low, high = comparison.compute_interval([row.gain for row in members])
            print(f"{arm}: gain {low:.4f} to {high:.4f} (90 % t interval of {len(members)} nights)")
    for (arm, members), (other, others) in combinations(arms.items(), 2):
        if len(gains := comparison.pair_gains(members, others)) > 1:
            low, high = comparison.compute_interval(gains)
            print(f"{arm} gains {low:+.4f} to {high:+.4f} more than {other} (90 %, {len(gains)} pairs of equal seeds)")
    target = chart or paths.sessions / "compare.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(comparison.render_comparison(rows), encoding="utf-8")
    print(f"The chart is in {target}")


def _summarize(paths: Paths, name: str) -> comparison.SessionFigures:
    with read_session(paths, name) as session:
        if session.state.incumbent is None:
            raise UsageError(f"{session.state.session.name} has no baseline yet")
        return comparison.summarize_session(session.state, session.records)


def _make_table(rows: Sequence[comparison.SessionFigures]) -> Table:
    """Make a line for each figure and a column for each session: two or three fit on any terminal."""
    table = Table("", *(Column(row.course.name, justify="right", overflow="fold") for row in rows), box=None)
    for name in rows[0].table:
        table.add_row(name, *(row.table[name] for row in rows))
    return table
