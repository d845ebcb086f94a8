"""The commands that only read: sessions, replay, report, compare, musings.

Slow imports are done where they are used, so that a listing comes at once.
"""

import asyncio
import os
import pydoc
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from orchestrator.cli.options import (
    NO_NIGHT,
    ExitCode,
    NameOrFile,
    Options,
    Paths,
    UsageError,
    get_own_folder,
    is_given,
    read_session,
    refuse,
)
from orchestrator.core.events import Forked, Resumed, Started
from orchestrator.core.text import make_printable
from orchestrator.session.store import Session
from orchestrator.views import event_text
from orchestrator.views.musings import search
from orchestrator.views.output import print_safely
from orchestrator.views.render import render_template
from orchestrator.views.summary import suggest_command, summarize
from prepare.command import UserError
from prepare.files import write_atomically
from prepare.machine import read_birth

AgentName = Literal["researcher", "mechanic", "reflector", "notebook"]
console = Console(highlight=False, markup=False)


def sessions(context: typer.Context) -> None:
    """List the sessions, the newest first.

    Each with what it gained, and whether it runs (as which process, since when), has ended (why), or died (when it last
    wrote something).
    """
    paths: Paths = context.obj
    found = list_sessions(paths, partial(read_session, paths))
    for facts in found:
        console.print(render_template("session.txt", **facts), soft_wrap=True)
    if not found:
        console.print(f"There are no sessions in {paths.sessions} yet.")


def list_sessions(paths: Paths, read: Callable[[str], AbstractContextManager[Session]]) -> list[dict[str, Any]]:
    """Return the facts of all sessions, the newest first; of one that cannot be read, its name and the fault."""
    found: list[tuple[float, dict[str, Any]]] = []
    for path in paths.sessions.glob("[!.]*/"):
        try:
            if not (path / "session.db").exists():
                continue
            with read(path.name) as session:
                began = max(r.at for r in session.records if isinstance(r.event, Started | Forked))
                found.append((began, describe_session(paths, session)))
        except (OSError, UserError) as error:
            found.append((0.0, {"name": path.name, "fault": str(error)}))
    return [facts for _, facts in sorted(found, key=lambda pair: -pair[0])]


def describe_session(paths: Paths, session: Session) -> dict[str, Any]:
    """Return how a session stands, what it gained, which process runs it and since when, and how to resume it."""
    name, state = session.path.parent.name, session.state
    since = max(record.at for record in session.records if isinstance(record.event, Started | Resumed | Forked))
    process = find_process(paths, name, state.now)
    resume = "" if state.ended else suggest_command(session, paths.write_command, find_copy(session))
    facts = {"summary": summarize(state), "process": process, "since": since, "resume": resume}
    return {"name": name, "state": state, **facts}


def find_copy(session: Session) -> str:
    """Return the file of a session that is not in the folder of its name, and can only be forked; empty otherwise."""
    try:
        get_own_folder(session)
    except UsageError:
        return str(session.path)
    return ""


def find_process(paths: Paths, name: str, now: float) -> int | None:
    """Return the id of the process that runs a session, which last wrote something at `now`; None if there is none."""
    lock, told = paths.sessions / f".{name}.lock", ""
    with suppress(OSError, ValueError, psutil.Error):
        told = lock.read_text().partition("\n")[0]
        process, birth = psutil.Process(int(told[:20])), told[20:].strip()
        is_same = birth == read_birth(process.pid) if birth else process.create_time() <= now + 1
        if is_same and process.status() != psutil.STATUS_ZOMBIE:
            return process.pid  # one that began later only has the same number
    return None if told[20:].strip() == NO_NIGHT else _find_holder(lock)


def _find_holder(lock: Path) -> int | None:
    """Return who Linux says holds a lock: one that is another account's, or of a container with numbers of its own."""
    with suppress(OSError):
        at = lock.stat()
        place = f"{os.major(at.st_dev):02x}:{os.minor(at.st_dev):02x}:{at.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            if place in (words := line.split()) and "FLOCK" in words:
                return int(words[-4])
    return None


def replay(
    context: typer.Context,
    name: NameOrFile,
    until: Annotated[int | None, typer.Option(min=1, help="stop after this many events")] = None,
    event: Annotated[int | None, typer.Option("--show", min=0, help="print this event in full, and no other")] = None,
    experiment: Annotated[int | None, typer.Option(min=0, help="print the conversations about this one")] = None,
    agent: Annotated[AgentName | None, typer.Option(help="with --experiment: only those of this agent")] = None,
    full: Annotated[bool, typer.Option("--full", help="do not fold prompts, code and results")] = False,
    step: Annotated[bool, typer.Option("--step", help="wait after each event: any key continues, q quits")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON line per event")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="run today's code over the recording")] = False,
    prompts: Annotated[str, typer.Option(help="with --verify: use this style, not the recorded prompts")] = "",
) -> None:
    """Print a session event by event, or verify it.

    With --verify the production loop runs over the recording, without model, GPU or git. Every event that today's code
    would write differently is shown, and the exit code is 1 if there is one.
    """
    paths: Options = context.obj
    for holds, where, *useless in (
        (verify, "with --verify", "event", "experiment", "step", "as_json"),
        (not verify, "without --verify", "prompts", "musings"),
        (experiment is not None, "with --experiment", "event", "until", "step", "as_json"),
        (experiment is None, "without --experiment", "agent"),
        (event is None and experiment is None, "without --show or --experiment", "full"),
        (event is not None, "with --show", "until", "step"),
        (as_json, "with --json", "full"),
    ):
        if holds:
            refuse(context, where, *useless)
    if step and not sys.stdin.isatty():
        raise UsageError("--step needs a terminal, and this is none: leave it out")
    with read_session(paths, name, salvage=paths.salvage) as session:
        if verify:
            lives = (record.event for record in session.records if isinstance(record.event, Started | Forked))
            if prompts and not any(life.prompts for life in lives):
                raise UsageError(f"--prompts does nothing here, since no model took part in {name}: leave it out")
            _verify(session, until, paths.recall(session.path.parent, context).musings, prompts)
        elif experiment is not None:
            found = event_text.find_conversations(session.records, experiment, agent or "")
            if not found:
                raise UsageError(f"{name} has no conversation {f'of the {agent} ' if agent else ''}about #{experiment}")
            _show_pages(event_text.write_page(session, number, full=full) for number in found)
        elif event is None:
            _walk(session, until, step=step, as_json=as_json)
        elif event >= len(session.records):
            raise UsageError(f"{name} has events 0 to {len(session.records) - 1}")
        elif as_json:
            print(event_text.write_json(session.records[event]))
        else:
            _show_pages([event_text.write_page(session, event, full=full)])


def _show_pages(pages: Iterable[str]) -> None:
    """Print pages, on a terminal one screen at a time."""
    text = "\n\n\n".join(pages)
    if sys.stdout.isatty():
        pydoc.pager(text)
    else:
        print(text)


def _walk(session: Session, until: int | None, *, step: bool, as_json: bool) -> None:
    records, task = session.records[:until], session.state.session.task
    for record in records:
        print(event_text.write_json(record) if as_json else event_text.write_line(record, task))
        if step and typer.getchar() in {"q", "\x1b", "\x03"}:
            return
    if not as_json:
        print(f"{len(records)} events")


def _verify(session: Session, until: int | None, musings: Path, style: str) -> None:
    """Run the loop over the recording and print each divergence. Exits with 1 if there is one."""
    from orchestrator.cli.preflight import load_style
    from orchestrator.cli.wiring import build_crew
    from orchestrator.loop import run
    from orchestrator.session.replay import Tape, replay

    began, prompts = time.monotonic(), load_style(style, [], session.state.session.task) if style else None
    tape = Tape(session, until)

    async def live(tape: Tape) -> None:
        await run(tape, build_crew(tape, musings, prompts), tape)

    divergences = asyncio.run(replay(tape, live))
    kinds = {divergence.seq: session.records[divergence.seq].event.kind for divergence in divergences}
    for divergence in divergences:
        # With other prompts the request of every reply differs, too.
        if not prompts or kinds[divergence.seq] != "replied" or divergence.seq == len(tape.records):
            print_safely(f"event {divergence.seq} differs\n{divergence.difference}\n")
    if opened := [str(number) for number, kind in kinds.items() if kind == "opened"]:
        print(f"The openings of these conversations change: {', '.join(opened)}")
    if tape.upcoming:
        print(f"The loop cannot follow the recording beyond event {tape.upcoming.seq}: the rest was not verified.")
    found = f"{len(divergences)} differ" if divergences else "all as recorded"
    print(f"{len(tape.records)} events, {found}, in {time.monotonic() - began:.1f} seconds")
    if divergences:
        raise SystemExit(ExitCode.DIVERGED)


def report(
    context: typer.Context,
    name: NameOrFile,
    out: Annotated[Path | None, typer.Option(help="output folder (default: the session's folder)")] = None,
    to: Annotated[
        Literal["csv", "trackio", "wandb"] | None,
        typer.Option(help="also for this tool, on this machine only; trackers add it each time"),
    ] = None,
) -> None:
    """Rebuild a session's files from its log.

    Writes report.html, results.tsv, ledger.parquet, log.jsonl, log.txt and the musings. Reads only the session file.
    For a file that somebody sent you: nightshift report mailed.db
    """
    from orchestrator.cli.wiring import hold_session
    from orchestrator.repo import write_git
    from orchestrator.views.musings import write_musings
    from orchestrator.views.report import export, has_log, write_files

    chosen: Options = context.obj
    with read_session(chosen, name, salvage=chosen.salvage) as session:
        title, home, file = session.state.session.name, session.path.parent, find_copy(session)
        folder = out or (Path(title) if name.endswith(".db") else home)
        own = folder.resolve() == home.resolve() and not (file and name.endswith(".db"))
        if not own and folder.is_dir() and any(folder.iterdir()) and not has_log(session, folder):
            raise UsageError(
                f"{folder} is here already, and holds no report of this session: --out names another folder"
            )
        paths = chosen.recall(home, context)
        runs = not file and find_process(paths, title, session.state.now) is not None

        def write(*words: str) -> str:
            return paths.write_command(*words, *["--salvage"] * (chosen.salvage and words[0] == "fork"))

        beside = (own and not file) or is_given(context, "musings")  # a copy leaves those of its original
        only = name if chosen.salvage else ""  # nothing can be added to a damaged file
        how = {"command": write, "git": write_git(paths.script), "file": file or only}
        with hold_session(home, runs=False) if own else nullcontext():
            write_files(session, folder, runs=runs, **how)
            write_musings(session, paths.musings / title if beside else folder / "musings", overview=beside)
            if to:
                export(session, to, folder)
    print(folder / "report.html")


def compare(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="the sessions")],
    chart: Annotated[Path | None, typer.Option(help="file for the chart (default: compare.html in --sessions)")] = None,
) -> None:
    """Compare sessions side by side.

    Prints gains, keep rates, crashes, repeats, breadth, tokens and dollars, and writes a chart of the best so far. With
    several nights of one crew and style it adds intervals: nightshift compare NAME OTHER THIRD
    """
    from orchestrator.views import comparison

    if len(names) < 2:
        raise UsageError(f"compare {names[0]}: name two sessions or more")
    paths: Paths = context.obj
    rows: list[comparison.SessionFigures] = []
    for name in names:
        with read_session(paths, name) as session:
            rows.append(comparison.summarize_session(session.state, session.records))
    rows = comparison.drop_copies(rows)
    findings = comparison.list_findings(rows)
    table = Table("", *(Column(row.name, justify="right", overflow="fold") for row in rows), box=None)
    for figure in rows[0].table:  # a line for each, since two or three sessions fit on any terminal
        table.add_row(figure, *(make_printable(row.table[figure]) for row in rows))
    console.print(table)
    for finding, *gained in findings:
        print_safely(f"{finding}: gain {' ± '.join(map(rows[0].metric.format_size, gained))} (90 % interval)")
    if differ := comparison.explain_ground(rows):
        print(differ)
    target = chart or paths.sessions / "compare.html"
    try:
        write_atomically(target, comparison.render_comparison(rows))
    except OSError as error:
        raise UsageError(f"{target} cannot be written ({error.strerror}): --chart names another file") from error
    print(f"The chart is in {target}")


def musings(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="search WORDS", help="the word search, then your words")],
    family: Annotated[str, typer.Option(help="only this family")] = "",
    verdict: Annotated[str, typer.Option(help="only this verdict: kept, discarded, supported, refuted, …")] = "",
    session: Annotated[str, typer.Option(help="only this session")] = "",
    limit: Annotated[int, typer.Option(min=1, help="number of results")] = 10,
) -> None:
    """Search the musings of all sessions.

    Example: nightshift musings search value embeddings
    """
    paths: Paths = context.obj
    if words[0] != "search" or len(words) == 1:
        raise UsageError(f"musings {' '.join(words)}: use `musings search WORDS`")
    hits = search(paths.musings, " ".join(words[1:]), family=family, verdict=verdict, session=session, limit=limit)
    for hit in hits:
        head = Text.assemble((hit.title, "bold"), f"  {hit.outcome}  ", (str(hit.path), "dim"))
        console.print(head.append(f"\n  {hit.snippet}\n"))
    if not hits:
        print("No musings match.")
        raise SystemExit(ExitCode.NOTHING_FOUND)
