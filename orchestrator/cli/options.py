"""The options that commands share, the paths of a session, usage errors and exit codes."""

import json
import sys
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from os.path import relpath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import typer
from typer import Option

from orchestrator.views.output import print_safely
from prepare.command import UserError, write_command
from prepare.files import list_by_age, write_atomically
from subagents import PromptError

if TYPE_CHECKING:
    from orchestrator.session.store import Session

PLACES = "places.json"
NO_NIGHT = "runs no night"  # stands in a lock in place of when its process began


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
NameOrFile = Annotated[str, typer.Argument(help="name of the session, or the path of a session file (.db)")]


@dataclass(frozen=True)
class Paths:
    """The files and folders of a session; the defaults are those of the options."""

    sessions: Annotated[Path, Option(file_okay=False, help="the folder of sessions")] = Path("sessions")
    data: Annotated[Path, Option(file_okay=False, envvar="NIGHTSHIFT_DATA", help="what `prepare` fills")] = Path("data")
    script: Annotated[Path, Option(dir_okay=False, help="script, whose repository gets the branch")] = Path("train.py")
    musings: Annotated[Path, Option(file_okay=False, help="the folder of musings")] = Path("musings")
    unsafe: Annotated[bool, Option("--unsafe", help="train without a sandbox: only for code that you trust")] = False
    fit: Annotated[bool | None, Option("--fit/--no-fit", help="train with the profile's constants, or yours")] = None
    """None for the profile's where the script has those of ours."""
    keep_seed: Annotated[bool, Option("--keep-seed", help="train with the seed that the script fixes")] = False
    cluster: Annotated[str, Option(metavar="ADDRESS", help="train on Ray: auto, HOST:PORT or ray://HOST:PORT")] = ""
    programs: Sequence[str] = ()
    """The models that are programs: a session's file, which may be another's, cannot have one started."""
    venv: str | None = None
    """The .venv that runs have, from the script's folder; empty for none, None where it is not known."""
    own: bool = False  # whether a night of the session's folder wrote these

    def find_session(self, name: str) -> Path:
        """Return the file of the session of that name, or the file itself. Raises UsageError where there is none."""
        path = Path(name) if name.endswith(".db") else self.sessions / name / "session.db"
        if not path.is_file():
            known = [p.parent.name for p in list_by_age(self.sessions.glob("[!.]*/session.db"))]
            hint = f"the latest are {', '.join(known[-5:])}" if known else f"{self.sessions} has no sessions"
            raise UsageError(f"no session is called {name!r}; {hint}")
        return path

    def write_command(self, *words: str) -> str:
        """Return a command about a session that can be pasted into a shell; the session knows its other places."""
        return write_command(*words, *(["--sessions", str(self.sessions)] if self.sessions != Paths.sessions else []))

    def remember(self, folder: Path) -> None:
        """Write the places beside the session's file, which may be mailed and so names no folder. Raises OSError."""
        known = {part.name: getattr(self, part.name) for part in fields(Paths) if part.name not in {"sessions", "own"}}
        known["inode"] = folder.stat().st_ino
        relative = {name: relpath(at, folder) for name, at in known.items() if isinstance(at, Path) and at.root != "/"}
        write_atomically(folder / PLACES, json.dumps(known | relative, default=str))

    def recall(self, folder: Path, context: typer.Context | None = None) -> Self:
        """Return the places of the session in that folder, except those that the command gives.

        They may name programs and leave out the sandbox, so they count only in the folder in which they were written:
        its inode is in no folder that came from elsewhere. Raises UsageError.
        """
        path, known = folder / PLACES, dict[str, Any]()
        if not path.is_file():
            return self  # an older session, or a file without its folder
        with suppress(OSError, ValueError, RecursionError, AttributeError, TypeError):
            found: dict[str, Any] = json.loads(path.read_text())
            known = found if found.pop("inode", 0) == folder.stat().st_ino else known
        if not known:
            if context:
                words = "was not written by a night in this folder, so it is not read: give --data and whatever else is"
                print_safely(f"nightshift: {path} {words} not the default", sys.stderr)
            return self
        try:
            for name, at in known.items():
                if isinstance(at, str) and name not in {"cluster", "venv"}:
                    known[name] = Path(at if at.startswith("/") else relpath(str(folder / at)))
            told = {name: at for name, at in known.items() if not is_given(context, name)}
            return replace(self, **told | {"own": True})
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UsageError(f"{path} is damaged: delete it, and give --data, --script and --musings") from error


@dataclass(frozen=True)
class Options(Paths):
    """All options that commands share; `main.COMMANDS` tells which command takes which."""

    hours: Annotated[float, Option(min=0, max=10_000, help="length of the night in hours")] = 8.0
    offline: Annotated[bool, Option("--offline", help="no key, no network: the same as --crew optuna")] = False
    crew: Annotated[CrewName, Option(help="claude: agents; optuna: an optimizer; centaur: both")] = "claude"
    search: Annotated[SearchName, Option(help="how the optimizer searches; gp needs scipy")] = "coordinate"
    session: Annotated[str, Option(help="name of the session (default: the date and a word)")] = ""
    max_experiments: Annotated[int | None, Option(min=1, help="stop after this many experiments")] = None
    max_usd: Annotated[float | None, Option(min=0.01, max=1e6, help="stop before the models cost more")] = None
    max_usd_per_experiment: Annotated[float | None, Option(min=0.01, max=1e6, help="ask no model beyond it")] = None
    slots: Annotated[str, Option(metavar="N|auto", help="runs at a time; auto: one on each GPU, or core")] = "1"
    prompts: Annotated[str, Option(help="style of the prompts: a folder in prompts/, or any other folder")] = "default"
    model: Annotated[list[str] | None, Option(metavar="MODEL", help="or AGENT=MODEL, repeatable; or cli:claude")] = None
    fallback: Annotated[list[str] | None, Option(metavar="MODEL", help="the same, where one refuses or is out")] = None
    seed: Annotated[int | None, Option(min=0, max=2**31 - 1, help="seed of all other seeds (default: random)")] = None
    memory: Annotated[bool, Option(help="begin with what earlier sessions on the same data found")] = True
    origin: Annotated[str, Option("--from", metavar="SESSION", help="begin with the best script of this session")] = ""
    notify: Annotated[str, Option(envvar="NIGHTSHIFT_NOTIFY", help="send notifications to this Apprise URL")] = ""
    salvage: Annotated[bool, Option("--salvage", help="read a damaged file as far as it is sound")] = False
    given: Sequence[str] = ()
    """Names of those that the command states itself."""


def list_params(names: str) -> list[Any]:
    """Return the parameters of a command for the named options; each sets its field of the context's Options."""
    app = typer.Typer(add_completion=False)
    app.command()(Options)
    params: dict[str, Any] = {str(param.name): param for param in typer.main.get_command(app).params}
    for param in params.values():
        param.expose_value, param.callback = False, _choose
    return [params[name] for name in names.split()]


def _choose(context: Any, param: Any, value: Any) -> None:
    options: Options = context.obj or Options()
    given = [*options.given, param.name] if is_given(context, param.name) else options.given
    context.obj = replace(options, given=given, **{param.name: value})


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
        useless = "prompts", "model", "fallback", "max_usd", "max_usd_per_experiment"
        refuse(context, "without models (--offline)", *useless)
    return "optuna" if offline else crew


@contextmanager
def read_session(
    paths: Paths, name: str, *, salvage: bool = False, known: "Session | None" = None
) -> Generator["Session"]:
    """Open a session for reading. Any exception that its content causes in a view becomes a UsageError."""
    from orchestrator.session.store import Session

    path = paths.find_session(name)
    session = Session(path, read_only=True, salvage=salvage, known=known)
    with closing(session), wrap_damage(path):
        yield session


@contextmanager
def wrap_damage(path: Path) -> Generator[None]:
    """Turn any exception that the content of a session's file causes into a UsageError."""
    try:
        yield
    except (OSError, UserError, PromptError, typer.Abort, typer.Exit):
        raise
    except Exception as error:
        raise UsageError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def get_own_folder(session: "Session") -> Path:
    """Return the folder of a session, in which its files are written. Raises UsageError where the file has none."""
    path, name = session.path, session.state.session.name
    folder = path.parent if path.parent.name == name else path.parent.resolve()
    if (path.name, folder.name) == ("session.db", name):
        return folder
    from orchestrator.views.summary import suggest_command

    way = suggest_command(session, file=str(path))
    where = f"{path} is not {name}/session.db, beside which that session has its files"
    raise UsageError(f"{where}: fork it ({way})")
