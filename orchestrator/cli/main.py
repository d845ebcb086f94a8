"""The table of commands, the options that stand before them, and the handling of errors."""

import importlib
import sys
from collections.abc import Sequence
from copy import copy
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from orchestrator.cli import options as opt
from orchestrator.views.output import harden_streams
from prepare.command import UserError
from subagents import PromptError

ALL = "sessions data script musings unsafe cluster"
COMMANDS = {
    "init": (".init", "Write a train.py to start from.", "data script"),
    "prepare": ("prepare.__main__", "Prepare the data that every experiment trains on.", ""),
    "doctor": (".doctor", "Check everything that a night needs.", f"{ALL} fit keep_seed"),
    "resume": (".start", "Continue an interrupted session.", ALL),
    "fork": (".start", "Start a new session from an event of another.", ALL),
    "trial": (".start", "Compare prompt styles over several nights.", f"{ALL} fit keep_seed"),
    "sessions": (".inspect", "List the sessions, the newest first.", "sessions"),
    "replay": (".inspect", "Print a session event by event, or verify it.", "sessions musings"),
    "report": (".inspect", "Rebuild a session's files from its log.", "sessions musings"),
    "compare": (".inspect", "Compare sessions side by side.", "sessions"),
    "musings": (".inspect", "Search the musings of all sessions.", "musings"),
    "serve": (".serve", "Show and steer the sessions in a browser.", "sessions script musings"),
}
"""The module of each command, the first line of its help, and the places that it uses."""
HELP = (Path(__file__).parent / "templates/help.txt").read_text("utf-8").replace("\\b", "\b")


class LazyGroup(TyperGroup):
    """The commands of the table, each imported when it runs, so that help and listings start at once."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - as typer calls it
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """Import and return the command, with the options of the places that it uses; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        module, _, places = COMMANDS[cmd_name]
        single.command(cmd_name)(getattr(importlib.import_module(module, __package__), cmd_name))
        command = typer.main.get_command(single)
        for param in [copy(param) for param in self.params if param.name in places.split()]:
            param.expose_value, param.callback = False, opt.choose_place
            command.params.append(param)
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return a command and its words; options that stand before it are among them. Raises UsageError."""
        name, command, words = super().resolve_command(ctx, args)
        known = [word for param in command.params for word in (*param.opts, *param.secondary_opts)] if command else []
        for param in [param for param in self.params if opt.is_given(ctx, str(param.name))]:
            value: object = ctx.params[param.name]
            word = (param.secondary_opts if value is False else param.opts)[0]
            if word not in known:
                ctx.fail(f"{word} does nothing with {name}: leave it out")
            values = cast("list[object]", value) if isinstance(value, list) else [value] * (not isinstance(value, bool))
            words = [*(part for one in values for part in (word, str(one))), *([] if values else [word]), *words]
        return name, command, words

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
    hours: opt.Hours = 8.0,
    offline: opt.Offline = False,
    crew: opt.Crew = "claude",
    search: opt.Search = "coordinate",
    name: opt.Name = "",
    max_experiments: opt.Experiments = None,
    max_usd: opt.Dollars = None,
    experiment_usd: opt.ExperimentDollars = None,
    slots: opt.Slots = "1",
    prompts: opt.Style = "default",
    model: opt.Model = None,
    fallback: opt.Fallback = None,
    seed: opt.Seed = None,
    memory: opt.Memory = True,
    origin: opt.Origin = "",
    notify: opt.Notify = "",
    sessions: opt.Sessions = opt.Paths.sessions,
    data: opt.Data = opt.Paths.data,
    script: opt.Script = opt.Paths.script,
    musings: opt.Musings = opt.Paths.musings,
    unsafe: opt.Unsafe = opt.Paths.unsafe,
    fit: opt.Fit = opt.Paths.fit,
    keep_seed: opt.KeepSeed = opt.Paths.keep_seed,
    cluster: opt.Cluster = opt.Paths.cluster,
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

    chosen = opt.choose_crew(context, crew, offline=offline)
    paths = opt.Paths(sessions, data, script, musings, unsafe, fit, keep_seed, cluster)
    limits = SessionLimits(hours=hours, experiments=max_experiments, usd=max_usd, experiment_usd=experiment_usd)
    slots = "auto" if cluster and not opt.is_given(context, "slots") else slots
    name = name or invent_name(sessions)
    models = model or (), fallback or ()
    own: dict[str, Any] = {"isolated": not memory, "notify": notify, "slots": slots, "origin": origin, "search": search}
    start_night(Preflight(paths, name, chosen, prompts, *models, limits, seed, **own))


def main(words: Sequence[str] | None = None) -> None:
    """Run a command, by default the process's own. An error that the user can fix is one line and exit code 2."""
    try:
        words = sys.argv[1:] if words is None else words
        for word, value in pairwise([*words, "-"]):  # a shell's unset variable leaves an option with nothing
            if word.startswith("--") and (word.endswith("=") or not value.strip()):
                raise opt.UsageError(f"{word.rstrip('=')} is empty: leave it out, or give it a value")
        with harden_streams():
            code = app(words, standalone_mode=False)  # 130 after Ctrl-C, else None
        raise SystemExit(code)
    except TyperException as error:
        _complain(error.format_message())
    except typer.Abort:
        raise SystemExit(opt.ExitCode.INTERRUPTED) from None
    except OSError as error:
        _complain(f"{error.filename or 'the output'} cannot be used: {error.strerror} (for other folders see --help)")
    except (UserError, PromptError) as error:
        _complain(str(error))


def _complain(message: str) -> None:
    print(f"nightshift: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(opt.ExitCode.USAGE)
