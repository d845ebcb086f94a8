"""Build what a night runs on, and run it. Models, optimizer and charts are imported only where a night needs them."""

import asyncio
import os
import signal
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path

import psutil

from orchestrator.agents.crew import Adviser, ClaudeCrew
from orchestrator.cli.options import ExitCode, UsageError
from orchestrator.cli.preflight import Preflight
from orchestrator.core.state import State
from orchestrator.lab.executor import LocalExecutor
from orchestrator.lab.monitor import set_limits
from orchestrator.lab.runner import Runner
from orchestrator.lab.scoring.claims import Scorer
from orchestrator.lab.slots import list_slots
from orchestrator.ports import Crew
from orchestrator.session.recording import Live, Recording
from orchestrator.session.replay import Tape
from orchestrator.session.store import Session
from orchestrator.supervisor import ASKED, supervise
from orchestrator.views.musings_search import search
from prepare import profiles
from prepare.files import LockedError, hold_lock
from prepare.machine import list_gpus
from subagents.prompts import Prompt, parse_prompt


def run_session(session: Session, night: Preflight) -> None:
    """Run a session to its end. Raises SystemExit if it was interrupted, or did not do its work."""
    from orchestrator.views.observers import Observers

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a night outlives its terminal
    paths, repo, started, folder = night.paths, night.repo, session.state.session, session.path.parent
    observers = Observers(session, paths.musings, send=night.send, command=paths.write_command)
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    runner = Runner(
        folder,
        list_slots(started.slots, folder, cores, list_gpus() if started.profile.name != "cpu" else []),
        set_limits(started.profile, cores),
        Scorer.load(paths.data.resolve()),
        night.sandbox,
        session.put,
        observers.progress,
    )
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
        observers.say(f"Stopped at once. Nothing is lost: {paths.write_command('resume', started.name)}")
        raise SystemExit(ExitCode.INTERRUPTED) from None
    if code := judge_night(session.state):
        raise SystemExit(code)


def judge_night(state: State) -> ExitCode | None:
    """Return the exit code of a night that did not do its work; None where it did."""
    if state.incumbent is None:
        return ExitCode.BASELINE_FAILED if state.results else ExitCode.NOTHING_RAN
    if state.fallback:
        return ExitCode.NO_MODEL
    return None if state.ended == ASKED or any(state.grants) else ExitCode.NOTHING_RAN


def build_crew(
    log: Session | Tape,
    musings: Path,
    prompts: Mapping[str, Prompt] | None = None,
) -> Crew:
    """Build the session's crew; `prompts` replace the recorded ones. A tape answers in place of models and tools."""
    started = log.state.session

    @cache
    def get_optimizer() -> Adviser:
        from orchestrator.optimizer.crew import Optimizer

        return Optimizer(log.get)

    if started.crew == "optuna":
        return get_optimizer()
    if isinstance(log, Tape):
        outside = log
    else:
        from subagents.claude import Claude, connect

        outside = Live(Claude(connect()), log)
    return ClaudeCrew(
        log,
        lambda task_id, experiment: Recording(outside, log, task_id, experiment),
        prompts or {agent: parse_prompt(log.get(text), agent) for agent, text in started.prompts.items()},
        get_optimizer,
        lambda words: "\n".join(f"{hit.title} ({hit.path}): {hit.snippet}" for hit in search(musings, words)),
    )


def hold_session(folder: Path) -> AbstractContextManager[None]:
    """Lock the session, so that no other process runs it. Raises UsageError."""
    return _hold(folder.with_name(f".{folder.name}.lock"), f"{folder.name} is running already")


def hold_branch(night: Preflight) -> AbstractContextManager[None]:
    """Lock the branch, so that no session in another folder moves it. Raises UsageError."""
    lock = night.repo.common / "nightshift" / f"{night.name}.lock"
    return _hold(lock, f"another session called {night.name} is running in this repository")


@contextmanager
def _hold(lock: Path, taken: str) -> Generator[None]:
    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(hold_lock(lock))
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except LockedError:
            raise UsageError(f"{taken}, as process {lock.read_text().strip()}") from None
        except OSError as error:
            raise UsageError(f"{lock.parent} cannot be written: {error.strerror}") from error
        yield
