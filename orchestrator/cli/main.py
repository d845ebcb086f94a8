"""The table of commands, the options that stand before them, and the handling of errors."""

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from orchestrator.cli import options as opt
from orchestrator.views.output import harden_streams
from prepare.errors import UserError
from subagents.errors import PromptError

COMMANDS = {
    "resume": ("start", "Continue an interrupted session."),
    "fork": ("start", "Start a new session from an event of another."),
    "trial": ("start", "Compare prompt styles over several nights."),
    "sessions": ("inspect", "List the sessions, the newest first."),
    "replay": ("inspect", "Print a recorded session event by event, or verify it."),
    "report": ("inspect", "Rebuild a session's files from its log."),
    "compare": ("inspect", "Compare sessions side by side."),
    "musings": ("inspect", "Search the musings of all sessions."),
    "doctor": ("doctor", "Check everything that a night needs."),
}
"""The module of each command in this folder, and the first line of its help."""
HELP = """Machine-learning research while you sleep.

Without a command, start a night: train the baseline two or three times, then propose, implement, train and judge one
experiment after another until the hours are over. The changes that were kept are commits on the branch
research/SESSION; the reasons and lessons are in musings/SESSION/.

\b
first: text, tokenizer, budget       python -m prepare
no key, no network                   python -m orchestrator --offline --hours 0.15
a night with Claude                  ANTHROPIC_API_KEY=… python -m orchestrator --hours 8
after any interruption               python -m orchestrator resume NAME
"""


class LazyGroup(TyperGroup):
    """The commands of the table, each imported when it runs, so that help and listings start at once."""

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and return the command; None for an unknown name."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        module = importlib.import_module(f"orchestrator.cli.{COMMANDS[cmd_name][0]}")
        single.command(cmd_name)(getattr(module, cmd_name))
        return typer.main.get_command(single)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the table without importing a command."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
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
    name: opt.Name = "",
    max_experiments: opt.Experiments = None,
    max_usd: opt.Dollars = None,
    prompts: opt.Style = "default",
    model: opt.Model = None,
    seed: opt.Seed = None,
    notify: opt.Notify = "",
    sessions: opt.Sessions = opt.Paths.sessions,
    data: opt.Data = opt.Paths.data,
    script: opt.Script = opt.Paths.script,
    musings: opt.Musings = opt.Paths.musings,
    unsafe: opt.Unsafe = opt.Paths.unsafe,
) -> None:
    """Start a night, unless a command is given."""
    paths = context.obj = opt.Paths(sessions, data, script, musings, unsafe)
    if context.invoked_subcommand:
        return
    from orchestrator.cli.start import plan_night, start_night
    from orchestrator.core.events import SessionLimits

    limits = SessionLimits(hours=hours, experiments=max_experiments, usd=max_usd)
    chosen = "optuna" if offline else crew
    start_night(plan_night(paths, name, limits, chosen, prompts, model or (), notify), limits, chosen, prompts, seed)


def main(words: Sequence[str] | None = None) -> None:
    """Run a command, by default the process's own. An error that the user can fix is one line and exit code 2."""
    try:
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
