"""The options that commands share, the paths among them, and the exit codes. Imports little, so that help is quick."""

import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from orchestrator.session.store import Session


class UsageError(Exception):
    """The request cannot be carried out; the message is one line that says what to do instead."""


class ExitCode(IntEnum):
    """How a command ends, other than by 0; docs/commands.md describes each."""

    DIVERGED = 1
    USAGE = 2
    UNHEALTHY = 3
    UNMEASURED = 4
    INTERRUPTED = 130


CrewName = Literal["claude", "optuna", "centaur"]
Hours = Annotated[float, typer.Option(min=0, help="how long the night is, in hours")]
Offline = Annotated[bool, typer.Option("--offline", help="no key, no network: the same as --crew optuna")]
Crew = Annotated[CrewName, typer.Option(help="who does the research")]
Name = Annotated[str, typer.Option("--session", help="the session's name (default: the date and a word)")]
Experiments = Annotated[int | None, typer.Option(min=1, help="stop after this many experiments")]
Dollars = Annotated[float | None, typer.Option(min=0, help="stop before the models cost more than this")]
Style = Annotated[str, typer.Option(help="the style of prompts: a folder in prompts/, or any other folder")]
Model = Annotated[list[str] | None, typer.Option(help="MODEL for all agents, or AGENT=MODEL; may be repeated")]
Seed = Annotated[int | None, typer.Option(help="draws all other seeds (default: by chance)")]
Notify = Annotated[str, typer.Option(envvar="NIGHTSHIFT_NOTIFY", help="send word to this Apprise URL")]
Sessions = Annotated[Path, typer.Option(help="the folder of sessions")]
Data = Annotated[Path, typer.Option(envvar="NIGHTSHIFT_DATA", help="the folder that `python -m prepare` filled")]
Script = Annotated[Path, typer.Option(help="the training script; its git repository gets the branch")]
Unsafe = Annotated[bool, typer.Option("--unsafe", help="train without a sandbox: only where you trust the code")]
Musings = Annotated[Path, typer.Option(help="the folder of musings")]
NameOrFile = Annotated[str, typer.Argument(help="the session's name, or a session.db that somebody sent")]


@dataclass(frozen=True)
class Paths:
    """The files and folders of a session."""

    sessions: Path
    data: Path
    script: Path
    musings: Path
    unsafe: bool = False
    """The training code is trusted."""

    def session(self, name: str) -> Path:
        return self.sessions / name / "session.db"

    @property
    def guidance(self) -> Path:
        return self.script.parent / "guidance.md"


def open_session(paths: Paths, name: str) -> "Session":
    """Open the session of that name, or the file. Raises UsageError, SessionError."""
    from orchestrator.session.store import Session

    path = Path(name) if name.endswith(".db") else paths.session(name)
    if not path.parent.is_dir():
        known = sorted(p.parent.name for p in paths.sessions.glob("[!.]*/session.db"))
        hint = f"there are {', '.join(known[-5:])}" if known else f"there are none in {paths.sessions}"
        raise UsageError(f"no session is called {name!r}: {hint}")
    session = Session(path, time.time)
    if session.state.started is None:
        raise UsageError(f"{path} holds no events: it never began, delete {path.parent}")
    return session
