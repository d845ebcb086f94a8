"""The commands. The only place that builds concrete things, and the only one that turns errors into a line."""

import asyncio
import contextlib
import fcntl
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import psutil
import typer
from typer.exceptions import TyperException

from orchestrator.crew import Centaur, ClaudeCrew
from orchestrator.events import Forked, Limits, Resumed, Started
from orchestrator.lab import bench, watch
from orchestrator.lab.bench import Bench
from orchestrator.lab.exam import Exam
from orchestrator.lab.ladder import NoSandboxWorks, choose
from orchestrator.lab.repo import Repo, RepoError
from orchestrator.lab.runner import Runner
from orchestrator.lab.sandbox import NoSandbox, Sandbox
from orchestrator.lab.slots import slots
from orchestrator.loop import Crew
from orchestrator.musings import search
from orchestrator.night import night
from orchestrator.notice import NoticeError, Send, sender
from orchestrator.onlookers import Onlookers
from orchestrator.optimizer import Optimizer
from orchestrator.recording import Live, Outside, Recording
from orchestrator.replay import Tape
from orchestrator.session import Session, SessionError
from orchestrator.state import State
from prepare import profiles
from prepare.machine import gpus
from prepare.manifest import DataError, load
from subagents import prices
from subagents.claude import Claude, connect, key_missing, trouble
from subagents.prompts import Prompt, PromptError, parse
from subagents.prompts import load as load_prompts

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

WORDS = "amber birch cedar dune ember fjord glade heron iris juniper kestrel larch meadow north opal pine quartz reed"
FREE_BYTES = 1 << 30
"""Less free disk than this, and a night's logs and caches may not fit."""
PACKAGES = ("nightshift", "torch", "anthropic", "optuna", "numpy")


class Refused(Exception):  # noqa: N818 - a word to the user
    """What was asked for cannot be done; the message is one line that says what to do instead."""


REFUSALS = (Refused, SessionError, RepoError, DataError, PromptError, NoticeError, NoSandboxWorks)

CrewName = Literal["claude", "optuna", "centaur"]
SUGGESTIONS = 3
"""Of the optimizer, in the briefing of a centaur's researcher."""
PROMPTS = Path(__file__).parent.parent / "prompts"
Hours = Annotated[float, typer.Option(min=0, help="how long the night is, in hours")]
Name = Annotated[str, typer.Option("--session", help="the session's name (default: the date and a word)")]
Experiments = Annotated[int | None, typer.Option(min=1, help="stop after so many experiments")]
Dollars = Annotated[float | None, typer.Option(min=0, help="stop before the models cost more than so many dollars")]
Style = Annotated[str, typer.Option(help="the style of prompts: a folder in prompts/, or any other folder")]
Model = Annotated[list[str] | None, typer.Option(help="MODEL for all agents, or AGENT=MODEL; may be repeated")]
Seed = Annotated[int | None, typer.Option(help="draws all other seeds (default: by chance)")]
Notify = Annotated[str, typer.Option(envvar="NIGHTSHIFT_NOTIFY", help="send word to this Apprise URL")]
Sessions = Annotated[Path, typer.Option(help="the folder of sessions")]
Data = Annotated[Path, typer.Option(envvar="NIGHTSHIFT_DATA", help="the folder that `python -m prepare` filled")]
Script = Annotated[Path, typer.Option(help="the training script; its git repository gets the branch")]
Unsafe = Annotated[bool, typer.Option("--unsafe", help="train without a sandbox: only where you trust the code")]
Musings = Annotated[Path, typer.Option(help="the folder of musings")]


@dataclass(frozen=True)
class Places:
    """Where a session finds its things."""

    sessions: Path
    data: Path
    script: Path
    musings: Path
    unsafe: bool = False
    """Training code is trusted."""

    def session(self, name: str) -> Path:
        return self.sessions / name / "session.db"

    def sandbox(self) -> Sandbox:
        """What training code is shut in. Raises NoSandboxWorks."""
        return NoSandbox() if self.unsafe else choose()

    @property
    def guidance(self) -> Path:
        return self.script.parent / "guidance.md"


@app.callback(invoke_without_command=True, help=HELP)
def start(
    context: typer.Context,
    hours: Hours = 8.0,
    offline: Annotated[bool, typer.Option("--offline", help="no key, no network: the same as --crew optuna")] = False,
    crew: Annotated[CrewName, typer.Option(help="who does the research")] = "claude",
    name: Name = "",
    max_experiments: Experiments = None,
    max_usd: Dollars = None,
    prompts: Style = "default",
    model: Model = None,
    seed: Seed = None,
    notify: Notify = "",
    sessions: Sessions = Path("sessions"),
    data: Data = Path("data"),
    script: Script = Path("train.py"),
    musings: Musings = Path("musings"),
    unsafe: Unsafe = False,
) -> None:
    """Start a night."""
    places = Places(sessions, data, script, musings, unsafe)
    context.obj = places
    if context.invoked_subcommand:
        return
    if hours <= 0:
        raise Refused(f"--hours {hours:g}: a night needs more than no time")
    chosen: CrewName = "optuna" if offline else crew
    texts = {} if chosen == "optuna" else prompts_of(prompts, model or [])
    _check_models(texts, max_usd)
    send = sender(notify)
    name = name or _new_name(sessions)
    repo = Repo(script, name)
    repo.baseline()
    profile = bench.profile(load(data))
    _check_disk(sessions)
    sandbox = places.sandbox()
    with _locked(sessions / name):
        session = Session(places.session(name), time.time, create=True)
        started = Started(
            name=name,
            limits=Limits(hours=hours, experiments=max_experiments, usd=max_usd),
            crew=chosen,
            style=prompts if texts else "",
            seed=random.SystemRandom().randrange(1 << 31) if seed is None else seed,
            repairs=2 if texts else 0,
            reflect_every=texts["reflector"].manner.cadence if texts else 1,
            commit=repo.head(),
            profile=profile,
            prompts={agent: session.put(prompt.text) for agent, prompt in texts.items()},
            versions={"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        )
        session.write("", started)
        _run(session, places, repo, sandbox, send)


def prompts_of(style: str, models: list[str]) -> dict[str, Prompt]:
    """The style's prompts, each asking its model. Raises PromptError, Refused."""
    texts = load_prompts(PROMPTS, style)
    for entry in models:
        agent, _, model = entry.rpartition("=")
        if agent and agent not in texts:
            raise Refused(f"--model {entry}: there is no agent {agent!r}, there are {', '.join(texts)}")
        chosen = [agent] if agent else list(texts)
        texts |= {name: texts[name].asking(model) for name in chosen}
    return texts


@app.command()
def resume(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="the session's name")],
    notify: Notify = "",
) -> None:
    """Go on after any interruption.

    Nothing is lost or counted twice; hours, dollars and experiments go on from where they stood.
    """
    places: Places = context.obj
    session = opened(places, name)
    started = session.state.session
    _check_models({agent: parse(session.get(text), agent) for agent, text in started.prompts.items()}, None)
    if started.profile.data_hash != load(places.data).digest:
        raise Refused(f"{places.data} holds other data than {name} was measured on: give its folder with --data")
    send, sandbox = sender(notify), places.sandbox()
    with _locked(places.sessions / name):
        session.write("", Resumed())
        _run(session, places, Repo(places.script, name), sandbox, send)


@app.command()
def fork(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="the session to start from")],
    at: Annotated[int, typer.Option(min=1, help="the first event that is not shared (see: replay NAME --step)")],
    fork_name: Name = "",
    hours: Annotated[float | None, typer.Option(min=0, help="hours from here on (default: what was left)")] = None,
    max_experiments: Annotated[int | None, typer.Option(min=1, help="so many from here on")] = None,
    max_usd: Annotated[float | None, typer.Option(min=0, help="so many dollars from here on")] = None,
    crew: Annotated[CrewName | None, typer.Option(help="who goes on (default: the same)")] = None,
    prompts: Annotated[str, typer.Option(help="with this style from here on")] = "",
    model: Model = None,
    notify: Notify = "",
) -> None:
    """Go on from any event, another way.

    A new session shares what came before the event, and goes on live, with other prompts, models or crew if you
    like. The old one stays as it is.
    """
    places: Places = context.obj
    old = opened(places, name)
    if at > len(old.records):
        raise Refused(f"{name} has only {len(old.records)} events")
    was = old.state.session
    chosen = crew or was.crew
    load(places.data)
    known = prompts_of(prompts or was.style or "default", model or []) if chosen != "optuna" else {}
    _check_models(known, None)
    send = sender(notify)
    new_name = fork_name or _new_name(places.sessions)
    repo = Repo(places.script, new_name)
    sandbox = places.sandbox()
    with _locked(places.sessions / new_name):
        session = old.fork(places.session(new_name), at)
        forked = Forked(
            parent=f"{was.name}@{at}",
            name=new_name,
            limits=_extended(session.state, hours=hours, experiments=max_experiments, usd=max_usd),
            crew=chosen,
            style=(prompts or was.style) if known else "",
            repairs=2 if known else 0,
            reflect_every=known["reflector"].manner.cadence if known else 1,
            prompts={agent: session.put(prompt.text) for agent, prompt in known.items()},
        )
        session.write("", forked)
        if session.state.fitted:
            repo.begin(session.state.base.commit)
        _run(session, places, repo, sandbox, send)


def _extended(state: State, **more: float | None) -> Limits:
    """The session's limits, those that are given counted from here on."""
    closed = sum(finding.experiment > 0 for finding in state.findings)
    used = {"hours": state.hours, "experiments": closed, "usd": state.usd}
    return state.session.limits.model_copy(update={k: round(used[k] + m, 4) for k, m in more.items() if m is not None})


@app.command()
def trial(
    context: typer.Context,
    prompts: Annotated[list[str], typer.Option(help="a style; give two or more")],
    repeats: Annotated[int, typer.Option(min=1, help="nights of each style")] = 3,
    hours: Hours = 1.0,
    max_experiments: Experiments = None,
    trial_name: Annotated[str, typer.Option("--name", help="what the sessions' names begin with")] = "trial",
) -> None:
    """Find out whether a style helps.

    Nights of each style in turn, with the same seeds and budgets; then they are compared.
    """
    places: Places = context.obj
    names: list[str] = []
    for repeat in range(repeats):
        for style in prompts:
            names.append(name := f"{trial_name}-{Path(style).name}-{repeat + 1}")
            if places.session(name).exists():
                print(f"{name} is there already")
                continue
            limit = ["--max-experiments", str(max_experiments)] if max_experiments else []
            words = ["--prompts", style, "--seed", str(repeat), "--session", name, "--hours", str(hours), *limit]
            where = [f"--{key}={value}" for key, value in asdict(places).items() if key != "unsafe"]
            where += ["--unsafe"] * places.unsafe
            subprocess.run([sys.executable, "-m", "orchestrator", *where, *words], check=True)
    subprocess.run(
        [sys.executable, "-m", "orchestrator", f"--sessions={places.sessions}", "compare", *names], check=True
    )


def _run(session: Session, places: Places, repo: Repo, sandbox: Sandbox, send: Send) -> None:
    """One life of a session, from here to its end or its interruption."""
    started, folder = session.state.session, session.path.parent
    onlookers = Onlookers(session, places.musings, send=send)
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    limits = watch.limits(started.profile, cores)
    runner = Runner(
        folder,
        places.data.resolve(),
        slots(started.slots, folder, cores, gpus() if started.profile.name != "cpu" else []),
        limits,
        session.put,
        sandbox=sandbox,
        exam=Exam.of(places.data.resolve()),
        second=Exam.of(places.data.resolve(), "confirm"),
        on_point=onlookers.progress,
    )
    repo.unlock()
    runner.reap()
    lab = Bench(repo, runner, session.put, profiles.of(load(places.data)))
    with onlookers:
        try:
            asyncio.run(night(session, crew_of(session, places.musings), lab, places.guidance, onlookers.say))
        except KeyboardInterrupt:
            onlookers.say(f"Stopped at once. Nothing is lost: python -m orchestrator resume {started.name}")
            raise SystemExit(130) from None
    onlookers.farewell(repo.branch)


def crew_of(
    log: Session | Tape,
    musings: Path,
    outside: Outside | None = None,
    texts: Mapping[str, Prompt] | None = None,
) -> Crew:
    """Who thinks, in the flesh; `outside` is what models and tools are to it, if not the real ones."""
    started, optimizer = log.state.session, Optimizer(log.get)
    if started.crew == "optuna":
        return optimizer
    beyond = Live(Claude(connect()), log) if outside is None else outside

    def suggest(state: State) -> list[str]:
        advice = optimizer.suggestions(state, SUGGESTIONS) if started.crew == "centaur" else []
        return [f"{proposal.title}: {proposal.rationale}" for proposal in advice]

    models = ClaudeCrew(
        log,
        lambda lane, experiment: Recording(beyond, log, lane, experiment),
        texts or {agent: parse(log.get(text), agent) for agent, text in started.prompts.items()},
        search=lambda words: "\n".join(f"{hit.title} ({hit.path}): {hit.snippet}" for hit in search(musings, words)),
        suggest=suggest,
    )
    return Centaur(models, optimizer) if started.crew == "centaur" else models


def opened(places: Places, name: str) -> Session:
    """The session of that name, or the file. Raises Refused, SessionError."""
    path = Path(name) if name.endswith(".db") else places.session(name)
    if not path.parent.is_dir():
        known = sorted(p.parent.name for p in places.sessions.glob("*/session.db"))
        hint = f"there are {', '.join(known[-5:])}" if known else f"there are none in {places.sessions}"
        raise Refused(f"there is no session {name!r}: {hint}")
    return Session(path, time.time)


def _new_name(sessions: Path) -> str:
    """The date and a word that is still free."""
    today = f"{datetime.now().astimezone():%Y-%m-%d}"
    free = [word for word in WORDS.split() if not (sessions / f"{today}-{word}").exists()]
    return f"{today}-{random.SystemRandom().choice(free)}" if free else f"{today}-{time.time():.0f}"


def _check_models(prompts: Mapping[str, Prompt], usd: float | None) -> None:
    """There is a key, a server that takes it, and each model; prices, where they matter. Raises Refused."""
    if not prompts:
        return
    if missing := key_missing():
        raise Refused(missing)
    for model in sorted({prompt.model for prompt in prompts.values()}):
        if found := asyncio.run(trouble(connect(), model)):
            raise Refused(f"{found} (--offline needs no model)")
        if usd is not None and not prices.known(model):
            print(f"The price of {model} is not known: --max-usd cannot hold it back.", file=sys.stderr)


def _check_disk(sessions: Path) -> None:
    """There is a folder that can be written, with room in it. Raises Refused."""
    there = next(path for path in [sessions.absolute(), *sessions.absolute().parents] if path.exists())
    if not os.access(there, os.W_OK):
        raise Refused(f"{there} cannot be written: choose another folder with --sessions")
    free = shutil.disk_usage(there).free
    if free < FREE_BYTES:
        raise Refused(f"only {free >> 20} MiB are free in {there}, and a night needs {FREE_BYTES >> 20}: make room")


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Hold the session, so that nobody else runs it. Raises Refused."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = (folder.parent / f".{folder.name}.lock").open("w")
    except OSError as error:
        raise Refused(f"{folder.parent} cannot be written: {error.strerror}") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"{folder.name} is running already, in another process") from None
        yield


def main() -> None:
    """Run a command. Whatever the user can mend is one line and exit code 2."""
    try:
        app(standalone_mode=False)
    except TyperException as error:
        _complain(error.format_message() if hasattr(error, "format_message") else str(error))
    except REFUSALS as error:
        _complain(str(error))


def _complain(message: str) -> None:
    print(f"nightshift: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
