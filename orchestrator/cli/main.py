"""The commands, the options that stand before them, and the errors that become one line."""

import sys
from collections.abc import Sequence

import typer
from typer.exceptions import TyperException

from orchestrator.cli import options as opt
from orchestrator.cli.doctor import doctor
from orchestrator.cli.inspect import compare, musings, replay, report, sessions
from orchestrator.cli.start import fork, plan_night, resume, start_night, trial
from orchestrator.core.events import SessionLimits
from orchestrator.views.output import harden_streams

COMMANDS = (resume, fork, trial, sessions, replay, report, compare, musings, doctor)
HELP = """Machine-learning research while you sleep.

Without a command it starts a night: the baseline is trained twice or more, then one experiment after another is
proposed, implemented, trained, judged and reflected upon, until the hours are over. What is really better ends up on
the branch research/SESSION; why it was tried and what was learned, in musings/SESSION/.

\b
once: text, tokenizer, budget        python -m prepare
no key, no network                   python -m orchestrator --offline --hours 0.15
a night with Claude                  ANTHROPIC_API_KEY=… python -m orchestrator --hours 8
after any interruption               python -m orchestrator resume NAME
"""

app = typer.Typer(
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
    """Start a night, unless a command follows."""
    paths = context.obj = opt.Paths(sessions, data, script, musings, unsafe)
    if context.invoked_subcommand:
        return
    limits = SessionLimits(hours=hours, experiments=max_experiments, usd=max_usd)
    chosen = "optuna" if offline else crew
    start_night(plan_night(paths, name, limits, chosen, prompts, model or (), notify), limits, chosen, prompts, seed)


for command in COMMANDS:
    app.command()(command)


def main(words: Sequence[str] | None = None) -> None:
    """Run a command, by default the process's own. An error that the user can mend is one line and exit code 2."""
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
    except opt.USER_ERRORS as error:
        _complain(str(error))


def _complain(message: str) -> None:
    print(f"nightshift: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(opt.ExitCode.USAGE)
