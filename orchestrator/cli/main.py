import importlib
import sys

import typer
from typer.exceptions import TyperException

from orchestrator.cli.options import UsageError
from orchestrator.lab.repo import RepoError
from orchestrator.lab.sandbox.select import NoSandboxError
from orchestrator.session.store import SessionError
from orchestrator.views.notify import NotifyError
from prepare.manifest import DataError
from subagents.prompts import PromptError

HELP = """Machine-learning research while you sleep.

Without a command it starts a night: the baseline is trained three times, then one experiment after another is
proposed, implemented, trained, judged and reflected upon, until the hours are over. What is really better ends up on
the branch research/SESSION; why it was tried and what was learned, in musings/SESSION/.

\b
once: text, tokenizer, budget        python -m prepare
no key, no network                   python -m orchestrator --offline --hours 0.15
a night with Claude                  ANTHROPIC_API_KEY=… python -m orchestrator --hours 8
after any interruption               python -m orchestrator resume NAME
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


USER_ERRORS = (UsageError, SessionError, RepoError, DataError, PromptError, NotifyError, NoSandboxError)


def main() -> None:
    """Run a command. Whatever the user can mend is one line and exit code 2."""
    for name in ("start", "inspect"):  # they register their commands
        importlib.import_module(f"orchestrator.cli.{name}")
    try:
        app(standalone_mode=False)
    except TyperException as error:
        _complain(error.format_message() if hasattr(error, "format_message") else str(error))
    except USER_ERRORS as error:
        _complain(str(error))


def _complain(message: str) -> None:
    print(f"nightshift: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
