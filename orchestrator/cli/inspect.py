"""The commands that look and start nothing: replay, compare, sessions, export, musings, doctor."""

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from orchestrator.cli.doctor import check_machine, check_models
from orchestrator.cli.main import app
from orchestrator.cli.options import Model, Paths, UsageError, load_style, open_session
from orchestrator.cli.wiring import build_crew
from orchestrator.loop import run
from orchestrator.session.recording import Played
from orchestrator.session.replay import Diverged, Tape
from orchestrator.session.replay import replay as play
from orchestrator.session.store import Session, SessionError
from orchestrator.views import comparison, event_text
from orchestrator.views.musings_search import search
from orchestrator.views.report import tensorboard
from orchestrator.views.report.parquet import write_parquet
from orchestrator.views.report.results_tsv import write_results

NameOrFile = Annotated[str, typer.Argument(help="the session's name, or a session.db that somebody sent")]
console = Console(highlight=False)
FIGURES: dict[str, Callable[[comparison.SessionFigures], str]] = {
    "crew and style": lambda row: row.arm,
    "experiments": lambda row: str(row.experiments),
    "kept": lambda row: f"{row.kept} ({row.keep_rate:.0%})",
    "crashed": lambda row: str(row.crashes),
    "repeats refused": lambda row: str(row.repeats),
    "families tried": lambda row: str(row.families),
    "baseline": lambda row: f"{row.baseline:.4f}",
    "best": lambda row: f"{row.best:.4f}",
    "gain": lambda row: f"{row.gain:.4f}",
    "hours": lambda row: f"{row.hours:.2f}",
    "tokens/experiment": lambda row: f"{row.tokens // max(row.experiments, 1):,}",
    "$/experiment": lambda row: "unknown" if row.usd is None else f"{row.usd / max(row.experiments, 1):.3f}",
}


class _WalkEnded(Exception):  # noqa: N818 - a wish
    """Whoever walks through a replay has seen enough."""


@app.command()
def replay(
    context: typer.Context,
    name: NameOrFile,
    until: Annotated[int | None, typer.Option(min=1, help="stop after so many events")] = None,
    event: Annotated[int | None, typer.Option("--show", min=0, help="only print all about this event")] = None,
    step: Annotated[bool, typer.Option("--step", help="walk: any key goes on, q ends")] = False,
    prompts: Annotated[str, typer.Option(help="with this style of today instead of the recorded prompts")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="for machines: one JSON line per event")] = False,
) -> None:
    """Run a recorded session again, offline.

    The production loop, with no model, GPU or git; it stops at the first event that differs, and shows how.
    """
    places: Paths = context.obj
    session = open_session(places, name)
    if event is not None:
        if event >= len(session.records):
            raise UsageError(f"{name} has events 0 to {len(session.records) - 1}")
        print(
            session.records[event].model_dump_json()
            if as_json
            else event_text.write_page(session, session.records, event)
        )
        return
    if step and not sys.stdin.isatty():
        raise UsageError("--step waits for keys, and this is no terminal: --json says all at once")
    began = time.monotonic()
    tape = Tape(session.records, session.get, until)
    try:
        asyncio.run(_replay(tape, places.musings, prompts, walk=step, as_json=as_json))
    except _WalkEnded:
        return
    except Diverged as difference:
        print(difference)
        raise SystemExit(1) from None
    if not as_json:
        print(f"{len(tape.records)} events, all as recorded, in {time.monotonic() - began:.1f} seconds")


async def _replay(tape: Tape, musings: Path, style: str, *, walk: bool, as_json: bool) -> None:
    texts = load_style(style, []) if style else None
    shown, enough = 0, False

    def follow() -> None:
        nonlocal shown, enough
        for record in tape.records[shown:]:
            if not enough:
                print(record.model_dump_json() if as_json else event_text.write_line(record))
                enough = walk and typer.getchar() in {"q", "\x1b", "\x03"}
            shown += 1
        if enough:
            raise _WalkEnded

    async def live(tape: Tape) -> None:
        if walk or as_json:
            tape.subscribe(follow)
            follow()
        await run(tape, build_crew(tape, musings, Played(tape), texts), tape)

    await play(tape, live)


@app.command()
def sessions(context: typer.Context) -> None:
    """List the sessions."""
    places: Paths = context.obj
    table = Table("session", "crew", "experiments", "kept", "baseline", "best", "hours", "state", box=None)
    for path in sorted(places.sessions.glob("*/session.db")):
        try:
            session = Session(path, time.time)
        except SessionError as error:
            table.add_row(path.parent.name, "", "", "", "", "", "", str(error))
            continue
        state = session.state
        session.close()
        if state.started is None:
            continue
        closed = sum(1 for result in state.results if result.experiment > 0)
        baseline = next((f.val_bpb for f in state.results if f.experiment == 0), None)
        table.add_row(
            state.session.name,
            f"{state.session.crew} {state.session.style}".strip(),
            str(closed),
            str(len(state.kept)),
            f"{baseline:.4f}" if baseline else "",
            f"{state.incumbent.score_to_beat:.4f}" if state.incumbent else "",
            f"{state.hours:.2f}",
            state.ended or "not ended: resume goes on",
        )
    console.print(table if table.row_count else f"There are no sessions in {places.sessions} yet.")


@app.command(name="compare")
def compare_sessions(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="two sessions or more")],
    chart: Annotated[
        Path | None, typer.Option(help="where the chart goes (default: compare.html in --sessions)")
    ] = None,
) -> None:
    """Set sessions side by side.

    Gains, keep rates, crashes, repeats, breadth, tokens and dollars; a chart of the best so far.
    """
    places: Paths = context.obj
    rows: list[comparison.SessionFigures] = []
    for name in names:
        session = open_session(places, name)
        try:
            rows.append(comparison.summarize_session(session.state, session.records))
        except ValueError as error:
            raise UsageError(str(error)) from error
        session.close()
    console.print(_make_table(rows))
    for arm, members in comparison.group_arms(rows).items():
        if len(members) > 1:
            low, high = comparison.bootstrap_interval([row.gain for row in members])
            rate = comparison.bootstrap_interval([row.keep_rate for row in members])
            print(
                f"{arm}: gain {low:.4f} to {high:.4f}, kept {rate[0]:.0%} to {rate[1]:.0%} (90 % bootstrap intervals)"
            )
    from orchestrator.views.comparison import render_comparison  # its charts take a while to import

    target = chart or places.sessions / "compare.html"
    target.write_text(render_comparison(rows), encoding="utf-8")
    print(f"The chart is in {target}")


def _make_table(rows: list[comparison.SessionFigures]) -> Table:
    """A line for each figure, a column for each session: two or three fit on any terminal."""
    table = Table("", *(Column(row.name, justify="right", overflow="fold") for row in rows), box=None)
    for name, figure in FIGURES.items():
        table.add_row(name, *map(figure, rows))
    return table


@app.command()
def export(
    context: typer.Context,
    name: NameOrFile,
    form: Annotated[Literal["jsonl", "parquet", "tsv", "tensorboard"], typer.Option("--format", help="as what")],
    out: Annotated[Path | None, typer.Option(help="the file or folder (default: NAME.FORMAT here)")] = None,
) -> None:
    """Write a session out, for others.

    Every event as JSON lines, the ledger of experiments as Parquet, autoresearch's results as TSV, or scores and
    loss curves in a folder for TensorBoard.
    """
    session = open_session(context.obj, name)
    target = out or Path(f"{session.state.session.name}.{form}")
    try:
        match form:
            case "jsonl":
                lines = (record.model_dump_json() + "\n" for record in session.records)
                target.write_text("".join(lines), encoding="utf-8")
            case "tsv":
                target.write_text(write_results(session.state), encoding="utf-8")
            case "parquet":
                target.write_bytes(write_parquet(session))
            case "tensorboard":
                tensorboard.write_tensorboard(session, target)
    except tensorboard.TensorBoardMissingError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}") from error
    print(target)


@app.command()
def musings(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="search WORDS", help="the word search, and what to look for")],
    family: Annotated[str, typer.Option(help="only of this family")] = "",
    verdict: Annotated[str, typer.Option(help="only with this verdict: kept, discarded, supported, refuted, …")] = "",
    session: Annotated[str, typer.Option(help="only of this session")] = "",
    limit: Annotated[int, typer.Option(min=1, help="at most so many")] = 10,
) -> None:
    """Search what was tried and learned.

    Over all sessions: musings search value embeddings
    """
    places: Paths = context.obj
    if words[0] != "search" or len(words) == 1:
        raise UsageError(f"musings {' '.join(words)}: say `musings search WORDS`")
    hits = search(places.musings, " ".join(words[1:]), family=family, verdict=verdict, session=session, limit=limit)
    for hit in hits:
        console.print(f"[bold]{escape(hit.title)}[/bold]  [dim]{escape(str(hit.path))}[/dim]")
        console.print(f"  {escape(hit.snippet)}\n")
    if not hits:
        print(f"Nothing is said of that in {places.musings}.")


@app.command()
def doctor(
    context: typer.Context,
    prompts: Annotated[str, typer.Option(help="with this style's models")] = "default",
    model: Model = None,
) -> None:
    """Look at what could spoil a night.

    And say what to do about it. Exit code 3 if something would.
    """
    places: Paths = context.obj
    results = list(check_machine(places.script, places.data, places.sessions))
    results += asyncio.run(check_models(load_style(prompts, model or [])))
    marks = {"good": "[green]✓[/green]", "warn": "[yellow]![/yellow]", "bad": "[red]✗[/red]"}
    table = Table.grid(padding=(0, 1))
    for result in results:
        table.add_row(marks[result.state], escape(result.what), escape(result.words))
    console.print(table)
    if any(result.state == "bad" for result in results):
        raise SystemExit(3)
