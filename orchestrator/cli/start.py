"""The commands. The only place that builds concrete things, and the only one that turns errors into a line."""

import platform
import random
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.doctor import require_disk, require_models
from orchestrator.cli.main import HELP, app
from orchestrator.cli.options import (
    CrewName,
    Data,
    Dollars,
    Experiments,
    Hours,
    Model,
    Musings,
    Name,
    Notify,
    Paths,
    Script,
    Seed,
    Sessions,
    Style,
    Unsafe,
    UsageError,
    load_style,
    open_session,
)
from orchestrator.cli.wiring import lock_session, run_session
from orchestrator.core.events import Forked, Resumed, SessionLimits, Started
from orchestrator.core.state import State
from orchestrator.lab import executor
from orchestrator.lab.repo import Repo
from orchestrator.session.store import Session
from orchestrator.views.notify import make_sender
from prepare.manifest import load
from subagents.prompts import parse_prompt

WORDS = "amber birch cedar dune ember fjord glade heron iris juniper kestrel larch meadow north opal pine quartz reed"
PACKAGES = ("nightshift", "torch", "anthropic", "optuna", "numpy")


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
    places = Paths(sessions, data, script, musings, unsafe)
    context.obj = places
    if context.invoked_subcommand:
        return
    if hours <= 0:
        raise UsageError(f"--hours {hours:g}: a night needs more than no time")
    chosen: CrewName = "optuna" if offline else crew
    texts = {} if chosen == "optuna" else load_style(prompts, model or [])
    require_models(texts, max_usd)
    send = make_sender(notify)
    name = name or _invent_name(sessions)
    repo = Repo(script, name)
    repo.read_baseline()
    profile = executor.describe_profile(load(data))
    require_disk(sessions)
    sandbox = places.sandbox()
    with lock_session(sessions / name):
        session = Session(places.session(name), time.time, create=True)
        started = Started(
            name=name,
            limits=SessionLimits(hours=hours, experiments=max_experiments, usd=max_usd),
            crew=chosen,
            style=prompts if texts else "",
            seed=random.SystemRandom().randrange(1 << 31) if seed is None else seed,
            repairs=2 if texts else 0,
            reflect_every=texts["reflector"].settings.cadence if texts else 1,
            commit=repo.get_head(),
            profile=profile,
            prompts={agent: session.put(prompt.text) for agent, prompt in texts.items()},
            versions={"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        )
        session.write("", started)
        run_session(session, places, repo, sandbox, send)


@app.command()
def resume(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="the session's name")],
    notify: Notify = "",
) -> None:
    """Go on after any interruption.

    Nothing is lost or counted twice; hours, dollars and experiments go on from where they stood.
    """
    places: Paths = context.obj
    session = open_session(places, name)
    started = session.state.session
    require_models({agent: parse_prompt(session.get(text), agent) for agent, text in started.prompts.items()}, None)
    if started.profile.data_hash != load(places.data).digest:
        raise UsageError(f"{places.data} holds other data than {name} was measured on: give its folder with --data")
    send, sandbox = make_sender(notify), places.sandbox()
    with lock_session(places.sessions / name):
        session.write("", Resumed())
        run_session(session, places, Repo(places.script, name), sandbox, send)


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
    places: Paths = context.obj
    old = open_session(places, name)
    if at > len(old.records):
        raise UsageError(f"{name} has only {len(old.records)} events")
    was = old.state.session
    chosen = crew or was.crew
    load(places.data)
    known = load_style(prompts or was.style or "default", model or []) if chosen != "optuna" else {}
    require_models(known, None)
    send = make_sender(notify)
    new_name = fork_name or _invent_name(places.sessions)
    repo = Repo(places.script, new_name)
    sandbox = places.sandbox()
    with lock_session(places.sessions / new_name):
        session = old.fork(places.session(new_name), at)
        forked = Forked(
            parent=f"{was.name}@{at}",
            name=new_name,
            limits=_extend_limits(session.state, hours=hours, experiments=max_experiments, usd=max_usd),
            crew=chosen,
            style=(prompts or was.style) if known else "",
            repairs=2 if known else 0,
            reflect_every=known["reflector"].settings.cadence if known else 1,
            prompts={agent: session.put(prompt.text) for agent, prompt in known.items()},
        )
        session.write("", forked)
        if session.state.baseline_commit:
            repo.create_branch(session.state.parent.commit)
        run_session(session, places, repo, sandbox, send)


def _extend_limits(state: State, **more: float | None) -> SessionLimits:
    """The session's limits, those that are given counted from here on."""
    closed = sum(result.experiment > 0 for result in state.results)
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
    places: Paths = context.obj
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


def _invent_name(sessions: Path) -> str:
    """The date and a word that is still free."""
    today = f"{datetime.now().astimezone():%Y-%m-%d}"
    free = [word for word in WORDS.split() if not (sessions / f"{today}-{word}").exists()]
    return f"{today}-{random.SystemRandom().choice(free)}" if free else f"{today}-{time.time():.0f}"
