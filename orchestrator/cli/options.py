"""The options that commands share, the paths of a session, usage errors and exit codes."""

import shlex
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prepare.errors import UserError
from subagents.errors import PromptError

if TYPE_CHECKING:
    from orchestrator.session.store import Session


class UsageError(UserError):
    """The request cannot be carried out; the message is one line that says what to do instead."""


class ExitCode(IntEnum):
    """How a command ends, other than by 0; docs/commands.md describes each."""

    DIVERGED = NOTHING_FOUND = 1
    USAGE = 2
    UNHEALTHY = 3
    BASELINE_FAILED = 4
    NOTHING_RAN = 5
    NO_MODEL = 6
    INTERRUPTED = 130


CrewName = Literal["claude", "optuna", "centaur"]
Hours = Annotated[float, typer.Option(min=0, help="length of the night in hours")]
Offline = Annotated[bool, typer.Option("--offline", help="no key, no network: the same as --crew optuna")]
Crew = Annotated[CrewName, typer.Option(help="claude: agents; optuna: an optimizer; centaur: both")]
Name = Annotated[str, typer.Option("--session", help="name of the session (default: the date and a word)")]
Experiments = Annotated[int | None, typer.Option(min=1, help="stop after this many experiments")]
Dollars = Annotated[float | None, typer.Option(min=0, help="stop before the models cost more than this")]
Style = Annotated[str, typer.Option(help="style of the prompts: a folder in prompts/, or any other folder")]
Model = Annotated[list[str] | None, typer.Option(help="MODEL for all agents, or AGENT=MODEL; may be repeated")]
Seed = Annotated[int | None, typer.Option(help="seed of the session, for all others (default: random)")]
Notify = Annotated[str, typer.Option(envvar="NIGHTSHIFT_NOTIFY", help="send notifications to this Apprise URL")]
Sessions = Annotated[Path, typer.Option(help="the folder of sessions")]
Data = Annotated[Path, typer.Option(envvar="NIGHTSHIFT_DATA", help="the folder that `python -m prepare` filled")]
Script = Annotated[Path, typer.Option(help="the training script; its git repository gets the branch")]
Unsafe = Annotated[bool, typer.Option("--unsafe", help="train without a sandbox: only for code that you trust")]
Musings = Annotated[Path, typer.Option(help="the folder of musings")]
NameOrFile = Annotated[str, typer.Argument(help="name of the session, or the path of a session file (.db)")]


@dataclass(frozen=True)
class Paths:
    """The files and folders of a session; the defaults are those of the options."""

    sessions: Path = Path("sessions")
    data: Path = Path("data")
    script: Path = Path("train.py")
    musings: Path = Path("musings")
    unsafe: bool = False
    """The training code is trusted."""

    def find_session(self, name: str) -> Path:
        """Return the file of the session of that name, or the file itself. Raises UsageError where there is none."""
        path = Path(name) if name.endswith(".db") else self.sessions / name / "session.db"
        if not path.is_file():
            known = sorted(p.parent.name for p in self.sessions.glob("[!.]*/session.db"))
            hint = f"the latest are {', '.join(known[-5:])}" if known else f"{self.sessions} has no sessions"
            raise UsageError(f"no session is called {name!r}; {hint}")
        return path

    def write_command(self, *words: str) -> str:
        """Return a command about these paths that can be pasted into a shell."""
        given = [(field.name, getattr(self, field.name)) for field in fields(self)]
        chosen = [(f"--{name}", value) for name, value in given if value != getattr(Paths, name)]
        options = [word for name, value in chosen for word in ([name] if value is True else [name, str(value)])]
        return shlex.join(["python", "-m", "orchestrator", *options, *words])


def open_session(path: Path, *, read_only: bool = False) -> "Session":
    """Open a session that has begun. Raises UsageError, SessionError."""
    from orchestrator.session.store import Session

    session = Session(path, read_only=read_only)
    if session.state.started is None:
        raise UsageError(f"{path} has no events: the session never began; delete {path.parent}")
    return session


@contextmanager
def read_session(paths: Paths, name: str) -> Generator["Session"]:
    """Open a session for reading. Any exception that its content causes in a view becomes a UsageError."""
    path = paths.find_session(name)
    session = open_session(path, read_only=True)
    try:
        yield session
    except (OSError, UserError, PromptError):
        raise
    except Exception as error:
        raise UsageError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    finally:
        session.close()
