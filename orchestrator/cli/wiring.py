"""Build what a night runs on, and run it. Models, optimizer and charts are imported only where a night needs them."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Generator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from orchestrator.cli.options import ExitCode, UsageError
from orchestrator.cli.preflight import Preflight
from orchestrator.core.state import State
from orchestrator.lab.executor import LocalExecutor
from orchestrator.lab.limits import set_limits
from orchestrator.lab.runner import Runner
from orchestrator.lab.scoring.claims import Scorer
from orchestrator.lab.slots import list_slots
from orchestrator.policy.thresholds import CENTAUR_SHARE
from orchestrator.ports import Crew
from orchestrator.session.recording import Live, Recording
from orchestrator.session.replay import Tape
from orchestrator.session.store import Session
from orchestrator.supervisor import supervise
from prepare import profiles
from prepare.locks import LockedError, hold_lock
from prepare.machine import list_gpus
from subagents.prompts import Prompt, parse_prompt

if TYPE_CHECKING:
    from orchestrator.optimizer.crew import Optimizer
    from orchestrator.views.observers import Observers

SUGGESTIONS = 3
"""Of the optimizer, in the briefing of a centaur's researcher."""


def run_session(session: Session, night: Preflight) -> State:
    """Run a session from here to its end, and return its state. Raises SystemExit when interrupted."""
    from orchestrator.views.observers import Observers

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a night outlives its terminal
    paths, repo, name = night.paths, night.repo, session.state.session.name
    observers = Observers(session, paths.musings, send=night.send, command=paths.write_command)
    runner = _build_runner(session, night, observers)
    repo.unlock()
    runner.reap()
    if session.state.baseline_commit:
        repo.begin_branch(session.state.parent.commit)
    lab = LocalExecutor(repo, runner, session.put, profiles.from_manifest(night.manifest), observers.say)
    try:
        with observers:
            crew, guidance = build_crew(session, paths.musings), paths.script.parent / "guidance.md"
            asyncio.run(supervise(session, crew, lab, guidance, observers.say))
        if session.state.baseline_commit:
            repo.advance_branch()
        observers.print_summary(repo.write_command("log", repo.kept if repo.trouble else repo.branch))
        if repo.trouble:
            observers.say(f"\n{repo.trouble}")
    except KeyboardInterrupt:
        observers.say(f"Stopped at once. Nothing is lost: {paths.write_command('resume', name)}")
        raise SystemExit(ExitCode.INTERRUPTED) from None
    return session.state


def _build_runner(session: Session, night: Preflight, observers: "Observers") -> Runner:
    started, folder, data = session.state.session, session.path.parent, night.paths.data.resolve()
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return Runner(
        folder,
        list_slots(started.slots, folder, cores, list_gpus() if started.profile.name != "cpu" else []),
        set_limits(started.profile, cores),
        Scorer.load(data),
        night.sandbox,
        session.put,
        observers.progress,
    )


def build_crew(
    log: Session | Tape,
    musings: Path,
    prompts: Mapping[str, Prompt] | None = None,
) -> Crew:
    """Build the session's crew; `prompts` replace the recorded. A tape answers in the place of models and tools."""
    started = log.state.session
    if started.crew == "optuna":
        return _build_optimizer(log)
    from orchestrator.agents.crew import ClaudeCrew, WithOptimizer
    from orchestrator.views.musings_search import search

    get_optimizer = cache(lambda: _build_optimizer(log))
    share = CENTAUR_SHARE if started.crew == "centaur" else 0
    if isinstance(log, Tape):
        outside = log
    else:
        from subagents.claude import Claude, connect

        outside = Live(Claude(connect()), log)

    def suggest(state: State) -> list[str]:
        advice = get_optimizer().suggest(state, SUGGESTIONS) if share else []
        return [f"{proposal.title}: {proposal.rationale}" for proposal in advice]

    models = ClaudeCrew(
        log,
        lambda task_id, experiment: Recording(outside, log, task_id, experiment),
        prompts or {agent: parse_prompt(log.get(text), agent) for agent, text in started.prompts.items()},
        search=lambda words: "\n".join(f"{hit.title} ({hit.path}): {hit.snippet}" for hit in search(musings, words)),
        suggest=suggest,
    )
    return WithOptimizer(models, get_optimizer, share)


def _build_optimizer(log: Session | Tape) -> "Optimizer":
    from orchestrator.optimizer.crew import Optimizer

    return Optimizer(log.get)


@contextlib.contextmanager
def hold_session(folder: Path) -> Generator[None]:
    """Hold the session, so that no other process runs it. Raises UsageError."""
    with _hold(folder.with_name(f".{folder.name}.lock"), f"{folder.name} is running already"):
        yield


@contextlib.contextmanager
def hold_branch(night: Preflight) -> Generator[None]:
    """Hold the branch, so that no session in another folder moves it. Raises UsageError."""
    lock = night.repo.common / "nightshift" / f"{night.name}.lock"
    with _hold(lock, f"another session called {night.name} is running in this repository"):
        yield


@contextlib.contextmanager
def _hold(lock: Path, taken: str) -> Generator[None]:
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(hold_lock(lock))
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except LockedError:
            raise UsageError(f"{taken}, as process {lock.read_text().strip()}") from None
        except OSError as error:
            raise UsageError(f"{lock.parent} cannot be written: {error.strerror}") from error
        yield
