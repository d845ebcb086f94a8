"""The options that commands share, the paths of a session, usage errors and exit codes."""

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from os.path import relpath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prepare.command import UserError, write_command
from prepare.files import write_atomically
from subagents.errors import PromptError

if TYPE_CHECKING:
    from orchestrator.session.store import Session

PLACES = "places.json"


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
SearchName = Literal["coordinate", "tpe", "gp"]
Hours = Annotated[float, typer.Option(min=0, max=10_000, help="length of the night in hours")]
Offline = Annotated[bool, typer.Option("--offline", help="no key, no network: the same as --crew optuna")]
Crew = Annotated[CrewName, typer.Option(help="claude: agents; optuna: an optimizer; centaur: both")]
Search = Annotated[SearchName, typer.Option(help="how the optimizer searches; gp needs scipy")]
Name = Annotated[str, typer.Option("--session", help="name of the session (default: the date and a word)")]
Slots = Annotated[str, typer.Option(metavar="N|auto", help="runs at a time; auto: one on each GPU, or core")]
Experiments = Annotated[int | None, typer.Option(min=1, help="stop after this many experiments")]
Dollars = Annotated[float | None, typer.Option(min=0.01, max=1e6, help="stop before the models cost more than this")]
ExperimentDollars = Annotated[
    float | None, typer.Option("--max-usd-per-experiment", min=0.01, max=1e6, help="ask no model about one beyond this")
]
Style = Annotated[str, typer.Option(help="style of the prompts: a folder in prompts/, or any other folder")]
Model = Annotated[list[str] | None, typer.Option(help="MODEL or AGENT=MODEL, repeatable; cli:claude for Claude Code")]
Fallback = Annotated[list[str] | None, typer.Option(help="the same, for where a model refuses or is out")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**31 - 1, help="seed of all other seeds (default: random)")]
Origin = Annotated[str, typer.Option("--from", metavar="SESSION", help="begin with the best script of this session")]
Memory = Annotated[bool, typer.Option(help="begin with what earlier sessions on the same data found")]
Notify = Annotated[str, typer.Option(envvar="NIGHTSHIFT_NOTIFY", help="send notifications to this Apprise URL")]
Sessions = Annotated[Path, typer.Option(file_okay=False, help="the folder of sessions")]
Data = Annotated[Path, typer.Option(file_okay=False, envvar="NIGHTSHIFT_DATA", help="the folder that `prepare` fills")]
Script = Annotated[Path, typer.Option(dir_okay=False, help="the training script; its git repository gets the branch")]
Unsafe = Annotated[bool, typer.Option("--unsafe", help="train without a sandbox: only for code that you trust")]
Cluster = Annotated[str, typer.Option(metavar="ADDRESS", help="train on Ray: auto, HOST:PORT or ray://HOST:PORT")]
Fit = Annotated[bool | None, typer.Option("--fit/--no-fit", help="train with the profile's constants, or the script's")]
KeepSeed = Annotated[bool, typer.Option("--keep-seed", help="train with the seed that the script fixes")]
Musings = Annotated[Path, typer.Option(file_okay=False, help="the folder of musings")]
Salvage = Annotated[bool, typer.Option("--salvage", help="read a damaged file as far as it is sound")]
NameOrFile = Annotated[str, typer.Argument(help="name of the session, or the path of a session file (.db)")]


@dataclass(frozen=True)
class Paths:
    """The files and folders of a session; the defaults are those of the options."""

    sessions: Path = Path("sessions")
    data: Path = Path("data")
    script: Path = Path("train.py")
    musings: Path = Path("musings")
    unsafe: bool = False
    fit: bool | None = None  # the baseline gets the profile's constants; None for a train.py of ours only
    keep_seed: bool = False
    cluster: str = ""  # address of the Ray cluster that trains; empty for this machine
    programs: Sequence[str] = ()
    """The models that are programs: a session's file, which may be another's, cannot have one started."""

    def find_session(self, name: str) -> Path:
        """Return the file of the session of that name, or the file itself. Raises UsageError where there is none."""
        path = Path(name) if name.endswith(".db") else self.sessions / name / "session.db"
        if not path.is_file():
            known = sorted(p.parent.name for p in self.sessions.glob("[!.]*/session.db"))
            hint = f"the latest are {', '.join(known[-5:])}" if known else f"{self.sessions} has no sessions"
            raise UsageError(f"no session is called {name!r}; {hint}")
        return path

    def write_command(self, *words: str) -> str:
        """Return a command about a session that can be pasted into a shell; the session knows its other places."""
        return write_command(*words, *(["--sessions", str(self.sessions)] if self.sessions != Paths.sessions else []))

    def remember(self, folder: Path) -> None:
        """Write the places beside the session's file, which may be mailed and so names no folder. Raises OSError."""
        known = {name: at for name, at in vars(self).items() if name != "sessions"}
        relative = {name: relpath(at, folder) for name, at in known.items() if isinstance(at, Path) and at.root != "/"}
        write_atomically(folder / PLACES, json.dumps(known | relative, default=str))

    def recall(self, folder: Path, context: typer.Context | None = None) -> "Paths":
        """Return the places of the session in that folder, except those that the command gives. Raises UsageError."""
        if not (path := folder / PLACES).is_file():
            return self  # an older session, or a file without its folder
        try:
            known: dict[str, Any] = json.loads(path.read_text())
            for name, at in known.items():
                if isinstance(at, str) and name != "cluster":
                    known[name] = Path(at if at.startswith("/") else relpath(str(folder / at)))
            return replace(self, **{name: at for name, at in known.items() if not is_given(context, name)})
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(f"{path} is damaged: delete it, and give --data, --script and --musings") from error


def choose_place(context: Any, param: Any, value: Any) -> None:
    """Set a field of the context's Paths, for commands whose functions do not take it as a parameter."""
    context.obj = replace(context.obj or Paths(), **{param.name: value})


def is_given(context: typer.Context | None, name: str) -> bool:
    """Tell whether the command states the option itself: it is not from the environment, and no default."""
    source = context and context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse(context: typer.Context, where: str, *names: str) -> None:
    """Raise UsageError for an option that the command states and that would do nothing."""
    for param in context.command.params:
        if param.name in names and is_given(context, param.name):
            raise UsageError(f"{param.opts[0]} does nothing {where}: leave it out")


def choose_crew(context: typer.Context, crew: str, *, offline: bool = False) -> str:
    """Return the crew. Raises UsageError for options that it would not use."""
    if offline:
        refuse(context, "with --offline", "crew")
    if offline or crew == "optuna":
        refuse(context, "without models (--offline)", "prompts", "model", "fallback", "max_usd", "experiment_usd")
    return "optuna" if offline else crew


def open_session(
    path: Path, *, read_only: bool = False, salvage: bool = False, known: "Session | None" = None
) -> "Session":
    """Open a session. Raises SessionError."""
    from orchestrator.session.store import Session

    return Session(path, read_only=read_only, salvage=salvage, known=known)


@contextmanager
def read_session(
    paths: Paths, name: str, *, salvage: bool = False, known: "Session | None" = None
) -> Generator["Session"]:
    """Open a session for reading. Any exception that its content causes in a view becomes a UsageError."""
    path = paths.find_session(name)
    session = open_session(path, read_only=True, salvage=salvage, known=known)
    try:
        yield session
    except (OSError, UserError, PromptError):
        raise
    except Exception as error:
        raise UsageError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    finally:
        session.close()
