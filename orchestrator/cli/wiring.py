import asyncio
import contextlib
import fcntl
import os
from collections.abc import Generator, Mapping
from pathlib import Path

import psutil

from orchestrator.agents.crew import Centaur, ClaudeCrew
from orchestrator.cli.options import Paths, UsageError
from orchestrator.core.state import State
from orchestrator.lab.executor import LocalExecutor
from orchestrator.lab.limits import set_limits
from orchestrator.lab.repo import Repo
from orchestrator.lab.runner import Runner
from orchestrator.lab.sandbox.base import Sandbox
from orchestrator.lab.scoring.claims import Scorer
from orchestrator.lab.slots import list_slots
from orchestrator.optimizer.crew import Optimizer
from orchestrator.ports import Crew
from orchestrator.session.recording import Live, Outside, Recording
from orchestrator.session.replay import Tape
from orchestrator.session.store import Session
from orchestrator.supervisor import supervise
from orchestrator.views.musings_search import search
from orchestrator.views.notify import Send
from orchestrator.views.observers import Observers
from prepare import profiles
from prepare.machine import list_gpus
from prepare.manifest import load
from subagents.claude import Claude, connect
from subagents.prompts import Prompt, parse_prompt

SUGGESTIONS = 3
"""Of the optimizer, in the briefing of a centaur's researcher."""


def run_session(session: Session, places: Paths, repo: Repo, sandbox: Sandbox, send: Send) -> None:
    """One life of a session, from here to its end or its interruption."""
    started, folder = session.state.session, session.path.parent
    onlookers = Observers(session, places.musings, send=send)
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    runner = Runner(
        folder,
        list_slots(started.slots, folder, cores, list_gpus() if started.profile.name != "cpu" else []),
        set_limits(started.profile, cores),
        Scorer.load(places.data.resolve()),
        sandbox,
        session.put,
        onlookers.progress,
    )
    repo.unlock()
    runner.reap()
    lab = LocalExecutor(repo, runner, session.put, profiles.from_manifest(load(places.data)))
    with onlookers:
        try:
            asyncio.run(supervise(session, build_crew(session, places.musings), lab, places.guidance, onlookers.say))
        except KeyboardInterrupt:
            onlookers.say(f"Stopped at once. Nothing is lost: python -m orchestrator resume {started.name}")
            raise SystemExit(130) from None
    onlookers.print_summary(repo.branch)


def build_crew(
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
        lambda task_id, experiment: Recording(beyond, log, task_id, experiment),
        texts or {agent: parse_prompt(log.get(text), agent) for agent, text in started.prompts.items()},
        search=lambda words: "\n".join(f"{hit.title} ({hit.path}): {hit.snippet}" for hit in search(musings, words)),
        suggest=suggest,
    )
    return Centaur(models, optimizer) if started.crew == "centaur" else models


@contextlib.contextmanager
def lock_session(folder: Path) -> Generator[None]:
    """Hold the session, so that nobody else runs it. Raises Refused."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = (folder.parent / f".{folder.name}.lock").open("w")
    except OSError as error:
        raise UsageError(f"{folder.parent} cannot be written: {error.strerror}") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{folder.name} is running already, in another process") from None
        yield
