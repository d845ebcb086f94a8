"""Build what a night runs on, and run it. Models, optimizer and charts are imported only where a night needs them."""

import asyncio
import os
import signal
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path

from orchestrator.agents.crew import Adviser, ClaudeCrew
from orchestrator.cli.options import NO_NIGHT, ExitCode, UsageError
from orchestrator.cli.preflight import Preflight, read_prompts
from orchestrator.cluster import ClusterRunner, connect
from orchestrator.core.source import compute_digest
from orchestrator.core.state import State
from orchestrator.executor import LocalExecutor
from orchestrator.lab.reported import build_runner
from orchestrator.lab.slots import Slot, list_slots
from orchestrator.ports import Crew, StepMeter
from orchestrator.repo import Repo
from orchestrator.session.recording import Live, Recording
from orchestrator.session.replay import Tape
from orchestrator.session.store import Session
from orchestrator.supervisor import ASKED, supervise
from orchestrator.views.musings import find_page, search
from orchestrator.views.notify import make_sender
from orchestrator.views.render import render_template
from prepare.files import LockedError, hold_lock
from prepare.machine import THREADS, read_birth
from subagents.prompts import Prompt

GIT_PATIENCE = 20.0  # seconds that a night waits for git once it has ended


def run_session(session: Session, night: Preflight, slots: Sequence[Slot]) -> None:
    """Run a session to its end. Raises SystemExit if it was interrupted, or did not do its work."""
    from orchestrator.views.observers import Observers

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a night outlives its terminal
    paths, repo, started, folder = night.options, night.repo, session.state.session, session.path.parent
    send, git = make_sender(paths.notify) if paths.notify else None, repo.write_command()
    observers = Observers(session, paths.musings, send=send, command=paths.write_command, git=git)
    session.say = observers.say
    build = partial(build_runner, started.profile, night.tree, night.places[1])
    if paths.cluster:
        names = f"{started.name}-{compute_digest(started.model_dump_json())}"
        data = None if started.task.is_reported else paths.data
        parts = build, data, session.put, observers.progress, paths.unsafe
        runner = ClusterRunner(connect(paths.cluster), names, night.places[2], *parts)
        session.watchers.append(lambda: runner.end_recorded(session.finished))
    else:
        parts = {"folder": folder, "slots": slots, "sandbox": night.sandbox, "put": session.put}
        runner = build(paths.data.resolve(), on_point=observers.progress, **parts)
        runner.reap()
    repo.unlock()
    begun = session.state.parents.get(0)
    lab = LocalExecutor(repo, runner, session.put, night.fit, observers.say, lambda: bool(session.state.stopping))
    if started.origin:
        lab.origin = started.origin, session.get(started.origin.source)
    if not begun:
        observers.say(night.estimate())  # before the live view, so that it stays
    else:
        repo.restore_branch(session.state.parent.commit)
        lab.own, lab.fitted = repo.read_source(begun.commit), session.get(begun.source)
    try:
        with _keep_branch(repo, session), observers:
            if started.task.is_reported or started.task.has_tree:
                observers.say(started.task.describe())
            meter, guidance = getattr(runner, "measure_step", None), paths.script.parent / "guidance.md"
            crew = build_crew(session, paths.musings, night.prompts, meter)
            asyncio.run(supervise(session, crew, lab, guidance))
        observers.print_summary(repo.write_command("log", repo.kept if repo.trouble else repo.branch))
        if repo.trouble:
            observers.say(f"\n{repo.trouble}")
    except KeyboardInterrupt:
        observers.say(f"Stopped at once. Nothing is lost: {paths.write_command('resume', started.name)}")
        raise SystemExit(ExitCode.INTERRUPTED) from None
    finally:
        session.close()  # so that its file alone holds all of it
        if isinstance(runner, ClusterRunner):
            runner.reap()
    if code := judge_night(session.state):
        raise SystemExit(code)


@contextmanager
def _keep_branch(repo: Repo, session: Session) -> Generator[None]:
    """Bring the branch to the last keep at the end, however it comes, and whatever was done to it since then."""
    try:
        yield
    finally:
        if session.state.parents:
            repo.restore_branch(session.state.parent.commit, GIT_PATIENCE if session.state.ended else 0)


def judge_night(state: State) -> ExitCode | None:
    """Return the exit code of a night that did not do its work; None where it did."""
    if state.incumbent is None:
        failed = any(result.experiment == 0 for result in state.results)
        return ExitCode.BASELINE_FAILED if failed else ExitCode.NOTHING_RAN
    if state.fallback:
        return ExitCode.NO_MODEL
    return None if state.ended == ASKED or any(state.grants) else ExitCode.NOTHING_RAN


def build_crew(
    log: Session | Tape, musings: Path, prompts: Mapping[str, Prompt] | None = None, meter: StepMeter | None = None
) -> Crew:
    """Build the session's crew; `prompts` replace the recorded ones. A tape answers in place of models and tools."""
    started = log.state.session

    @cache
    def get_optimizer() -> Adviser:
        from orchestrator.optimizer.crew import Optimizer

        return Optimizer(log.get)

    if started.crew == "optuna":
        return get_optimizer()
    prompts = prompts or read_prompts(log)
    if isinstance(log, Tape):
        outside = log
    else:
        from subagents.claude import Claude, connect

        others = [(name, prompt) for name, prompt in prompts.items() if prompt.fallback not in ("", prompt.model)]
        replaceable = frozenset((name, prompt.model) for name, prompt in others)
        outside = Live(Claude(connect(), clock=log.clock, replaceable=replaceable), log)
    fence = started.name if started.isolated else ""
    return ClaudeCrew(
        log,
        lambda task_id, experiment: Recording(outside, log, task_id, experiment),
        prompts,
        get_optimizer,
        lambda words: render_template("hits.txt", hits=search(musings, words, session=fence)),
        lambda night, number: find_page(musings, night, number) if fence in ("", night) else "",
        meter,
    )


def hold_session(folder: Path, *, runs: bool = True) -> AbstractContextManager[None]:
    """Lock the session, so that no other process runs it; `runs` is whether this one does. Raises UsageError."""
    return _hold(folder.with_name(f".{folder.name}.lock"), f"{folder.name} is running already", runs=runs)


@contextmanager
def hold_slots(night: Preflight) -> Generator[Sequence[Slot]]:
    """Lock the branch and the GPUs against sessions in other folders, and yield the slots. Raises UsageError."""
    lock = night.repo.common / "nightshift" / f"{night.name}.lock"
    folder, gpus = night.options.sessions / night.name, [] if night.options.cluster else night.list_gpus()
    slots = list_slots(night.count_slots(), folder, THREADS, gpus)  # those of a cluster have no lock here
    with ExitStack() as stack:
        stack.enter_context(_hold(lock, f"another session called {night.name} is running in this repository"))
        for slot in slots:
            if slot.devices:
                taken = f"{slot.devices} is in use by another session (CUDA_VISIBLE_DEVICES chooses others)"
                stack.enter_context(_hold(slot.lock.with_suffix(".session"), taken))
        yield slots


@contextmanager
def _hold(lock: Path, taken: str, *, runs: bool = True) -> Generator[None]:
    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(hold_lock(lock))
            birth = read_birth(os.getpid()) if runs else NO_NIGHT
            own = f"{os.getpid():<20}{birth:<20}\n"
            os.pwrite(descriptor, own.encode(), 0)  # at once, over whatever id was there
        except LockedError:
            raise UsageError(f"{taken}, as process {lock.read_text()[:20].strip()}") from None
        except OSError as error:
            raise UsageError(f"{lock.parent} cannot be written: {error.strerror}") from error
        yield
