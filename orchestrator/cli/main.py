"""The table of commands, the options that stand before them, and the handling of errors."""

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from orchestrator.cli import options as opt
from orchestrator.core.text import flatten
from orchestrator.views.output import harden_streams, print_safely
from prepare.command import UserError
from subagents import PromptError

PLACES, FIT = "sessions data script musings unsafe cluster", "fit keep_seed"
LIMITS, MODELS = "max_experiments max_usd", "model fallback notify"
NIGHT = f"hours offline crew search session {LIMITS} max_usd_per_experiment slots prompts seed memory origin"
COMMANDS = {
    "init": (".init", "Write a train.py to start from.", "data script"),
    "prepare": ("prepare.__main__", "Prepare the data that every experiment trains on.", ""),
    "doctor": (".doctor", "Check everything that a night needs.", f"offline crew prompts {MODELS} {PLACES} {FIT}"),
    "resume": (".start", "Continue an interrupted session.", f"notify {PLACES}"),
    "fork": (".start", "Start a new session from an event of another.", f"session {LIMITS} {MODELS} salvage {PLACES}"),
    "trial": (".start", "Compare prompt styles over several nights.", f"{LIMITS} slots {MODELS} {PLACES} {FIT}"),
    "sessions": (".inspect", "List the sessions, the newest first.", "sessions"),
    "replay": (".inspect", "Print a session event by event, or verify it.", "salvage sessions musings"),
    "report": (".inspect", "Rebuild a session's files from its log.", "salvage sessions musings"),
    "compare": (".inspect", "Compare sessions side by side.", "sessions"),
    "musings": (".inspect", "Search the musings of all sessions.", "musings"),
    "serve": (".serve", "Show and steer the sessions in a browser.", "sessions script musings"),
}
"""The module of each command, the first line of its help, and the shared options that it takes."""
HELP = (Path(__file__).parent / "templates/help.txt").read_text("utf-8").replace("\\b", "\b")


class LazyGroup(TyperGroup):
    """The commands of the table, each imported when it runs, so that help and listings start at once."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.params = [*opt.list_params(f"{NIGHT} {MODELS} {PLACES} {FIT}"), *self.params]

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - as typer calls it
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """Import and return the command, with the shared options that it takes; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        module, _, options = COMMANDS[cmd_name]
        single.command(cmd_name)(getattr(importlib.import_module(module, __package__), cmd_name))
        command = typer.main.get_command(single)
        command.params += opt.list_params(options)
        return command

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["words"] = [*args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return a command and its words, to which options that stand before it belong. Raises UsageError."""
        name, command, words = super().resolve_command(ctx, args)
        return name, command, [*ctx.meta["words"][: -len(args)], *words]

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write the table without importing a command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text, _) in COMMANDS.items()])


def print_version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        print(f"nightshift {version('nightshift')}")
        raise typer.Exit


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True, help=HELP)
def start(
    context: typer.Context,
    show_version: Annotated[  # noqa: ARG001 - it never returns
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    """Start a night, unless a command is given."""
    if context.invoked_subcommand:
        return
    from orchestrator.cli.preflight import Preflight
    from orchestrator.cli.start import invent_name, start_night
    from orchestrator.core.events import SessionLimits

    chosen: opt.Options = context.obj
    crew, name = opt.choose_crew(context, chosen.crew, offline=chosen.offline), chosen.session
    dollars = {"usd": chosen.max_usd, "experiment_usd": chosen.max_usd_per_experiment}
    limits = SessionLimits(hours=chosen.hours, experiments=chosen.max_experiments, **dollars)
    if chosen.cluster and not opt.is_given(context, "slots"):
        chosen = replace(chosen, slots="auto")
    start_night(Preflight(chosen, name or invent_name(chosen), crew, limits))


def _check_environment() -> None:
    """Leave out a width of no columns, in which nothing would be printed. Raises UsageError for an odd time zone."""
    if not os.environ.get("COLUMNS", "80").strip("0"):
        del os.environ["COLUMNS"]
    try:
        datetime.now().astimezone()
    except ValueError as error:
        raise opt.UsageError(f"TZ={os.environ.get('TZ', '')} is not a time zone: {error}") from error


def main(words: Sequence[str] | None = None) -> None:
    """Run a command, by default the process's own. An error that the user can fix is one line and exit code 2."""
    try:
        words = sys.argv[1:] if words is None else words
        _check_environment()
        for word, value in pairwise([*words, "-"]):  # a shell's unset variable leaves an option with nothing
            if word.startswith("--") and (word.endswith("=") or not value.strip()):
                raise opt.UsageError(f"{word.rstrip('=')} is empty: leave it out, or give it a value")
        with harden_streams():
            code = app(words, standalone_mode=False)  # 130 after Ctrl-C, else None
        raise SystemExit(code)
    except typer.Abort:
        raise SystemExit(opt.ExitCode.INTERRUPTED) from None
    except (TyperException, OSError, UserError, PromptError) as error:
        said = error.format_message() if isinstance(error, TyperException) else str(error)
        if isinstance(error, OSError):
            said = f"{error.filename or 'the output'} cannot be used: {error.strerror} (for other folders see --help)"
        print_safely(f"nightshift: {flatten(said)}", sys.stderr)
        raise SystemExit(opt.ExitCode.USAGE) from None
