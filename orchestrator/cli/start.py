"""The commands that run nights: start, resume, fork and trial."""

import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from os.path import relpath
from pathlib import Path
from platform import python_version
from typing import Annotated, Any, Literal

import typer

from orchestrator.cli import options as opt
from orchestrator.cli.inspect import compare
from orchestrator.cli.preflight import Preflight, expect_run_seconds, inherit_models, list_programs, read_prompts
from orchestrator.cli.wiring import hold_session, hold_slots, run_session
from orchestrator.core.events import Forked, Proposed, Resumed, SessionLimits, SessionProfile, Started
from orchestrator.core.seeds import VARIABLE
from orchestrator.core.source import compute_digest
from orchestrator.core.state import PooledVariance, State, apply, fold
from orchestrator.core.text import count
from orchestrator.policy.evidence import calibrate_noise, compute_visible_difference
from orchestrator.policy.limits import is_over, measure_usage
from orchestrator.policy.thresholds import BASELINE_RUNS, KEEP_RULE, MAX_REPAIRS
from orchestrator.repo import Repo, RepoError
from orchestrator.session.inbox import take_controls
from orchestrator.session.memory import recall_results
from orchestrator.session.store import Session
from prepare import profiles
from prepare.manifest import Manifest
from prepare.shards import open_rows
from prepare.tokenizer import Tokenizer

WORDS = "amber birch cedar dune ember fjord glade heron iris juniper kestrel larch meadow north opal pine quartz reed"
PACKAGES = ("nightshift", "torch", "anthropic", "optuna", "numpy")


def start_night(night: Preflight) -> None:
    """Check all, create the session, which knows earlier results unless isolated, and run it. Raises UsageError."""
    night.require()
    profile = describe_ground(night)
    earlier, variance = (), PooledVariance()
    if night.options.memory:
        earlier, variance = recall_results(night.options.sessions, profile, night.task, night.gpu, night.repo)
    if earlier:
        names = ", ".join(dict.fromkeys(result.session for result in earlier))
        print(f"Begins with {count(len(earlier), 'result')} of {names} (or without, by --no-memory)")
    if night.beginning:
        print(f"Begins with experiment {night.beginning[0].experiment} of {night.beginning[0].session}, the best there")
    started = Started(
        slots=night.count_slots(),
        gpu=night.gpu,
        seed=random.SystemRandom().randrange(1 << 31) if night.options.seed is None else night.options.seed,
        commit=night.repo.get_start(),
        folder=str(night.repo.prefix),
        profile=calibrate_noise(profile, variance),
        rule=KEEP_RULE,
        earlier=earlier,
        task=night.task,
        origin=night.beginning and night.beginning[0],
        keeps_seed=night.keeps_seed,
        versions={"python": python_version()} | {package: version(package) for package in PACKAGES},
        **_describe_settings(night),
    )
    _begin(night, started, lambda path: Session(path, create=True))


def describe_ground(night: Preflight) -> SessionProfile:
    """Return what a session records of what its runs are measured on."""
    if not night.task.is_reported:
        rows = open_rows("val", night.options.data)[:, 1:]
        lengths = Tokenizer.from_directory(night.options.data).token_bytes[rows]  # 0 for a special token
        return describe_profile(night.manifest, float(lengths[lengths > 0].mean()), night.places[1])
    seconds = night.task.budget
    return SessionProfile(
        name="reported", budget_kind="time", budget=seconds, expected_seconds=1.25 * seconds, data_hash=""
    )


def describe_profile(manifest: Manifest, bytes_per_token: float, slots: int = 1) -> SessionProfile:
    """Return what a session records of the prepared data, and how long a run takes on a share of the machine."""
    budget = manifest.budget
    return SessionProfile(
        name=manifest.profile,
        budget_kind=budget.kind,
        budget=budget.amount,
        expected_seconds=expect_run_seconds(budget, slots),
        data_hash=manifest.digest,
        seq_len=manifest.seq_len,
        vocab_size=manifest.vocab_size,
        train_tokens=manifest.rows["train"] * manifest.seq_len,
        bytes_per_token=bytes_per_token,
        sigma=profiles.PROFILES[manifest.profile].sigma,
        baseline_runs=BASELINE_RUNS,
    )


def _begin(night: Preflight, first: Started | Forked, create: Callable[[Path], Session]) -> None:
    """Create the session with its prompts and its first new event, and run it. Raises UsageError."""
    folder = night.options.sessions / night.name
    draft = folder.with_name(f".{folder.name}.new")
    with hold_session(folder), hold_slots(night) as slots:
        night.check_name()  # another process may have taken it since the checks
        shutil.rmtree(draft, ignore_errors=True)
        try:
            session = create(draft / "session.db")
            for prompt in night.prompts.values():
                session.put(prompt.text)
            session.put(night.beginning[1] if night.beginning else "")
            session.write("", first)
            session.close()
            replace(night.options, programs=list_programs(night.prompts), venv=night.venv).remember(draft)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        run_session(Session(folder / "session.db"), night, slots)


def _describe_settings(night: Preflight) -> dict[str, Any]:
    """Return what the first event of a new session and of a fork have in common: the fields of SessionSettings."""
    prompts = night.prompts
    return {
        "name": night.name,
        "limits": night.limits,
        "isolated": not night.options.memory,
        "measures_steps": not night.options.cluster,
        "asks_after_promotion": night.crew != "optuna",
        "crew": night.crew,
        "search": night.options.search,
        "style": night.options.prompts if prompts else "",
        "repairs": MAX_REPAIRS if prompts else 0,
        "reflect_every": prompts["reflector"].cadence if prompts else 1,
        "consolidate_every": prompts["notebook"].cadence if prompts else 0,
        "prompts": {agent: compute_digest(prompt.text) for agent, prompt in prompts.items()},
    }


def resume(context: typer.Context, name: Annotated[str, typer.Argument(help="name of the session")]) -> None:
    """Continue an interrupted session.

    Nothing is lost or counted twice; hours, dollars and experiments continue from where they were. `sessions` lists the
    names. To extend a night that is over, use `fork`.
    """
    options: opt.Options = context.obj
    with opt.read_session(options, name) as known:
        folder = opt.get_own_folder(known)
    options = replace(options, sessions=folder.parent).recall(folder, context)
    with hold_session(folder):
        session = Session(folder / "session.db", known=known)
        take_controls(folder)  # those of a life before are out of date
        own = session.state.session
        options = replace(options, search=own.search)
        night = Preflight(options, own.name, own.crew, own.limits, state=session.state, session=session)
        with opt.wrap_damage(session.path):
            night.require()
        with hold_slots(night) as slots:
            options.remember(folder)
            session.write("", Resumed())
            run_session(session, night, slots)


def fork(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="the session to fork")],
    at: Annotated[int, typer.Option(min=1, help="number of the first event that is not shared (see `replay`)")],
    hours: Annotated[
        float | None, typer.Option(min=0, max=1e4, help="hours from the fork on (default: those left)")
    ] = None,
    crew: Annotated[opt.CrewName | None, typer.Option(help="crew from the fork on (default: the same)")] = None,
    prompts: Annotated[str, typer.Option(help="style from the fork on (default: the same)")] = "",
) -> None:
    """Start a new session from an event of another.

    The new session shares everything before the event and continues live, with other prompts, models or crew if you
    like; its limits count from there. The old one is not changed: nightshift fork NAME --at 120 --prompts socratic
    """
    options: opt.Options = replace(context.obj, prompts=prompts)
    more = {"hours": hours, "experiments": options.max_experiments, "usd": options.max_usd}
    with opt.read_session(options, name, salvage=options.salvage) as old:
        night = _plan_fork(context, old, at, more, Preflight(options, options.session, crew or ""))
    _start_fork(night, old, at)


def _plan_fork(
    context: typer.Context, old: Session, at: int, more: Mapping[str, float | None], plan: Preflight
) -> Preflight:
    """Return a plan with what its fork has from an event of a session on: what neither it nor its style names."""
    if at > len(old.records):
        raise opt.UsageError(f"{old.state.session.name} has only {len(old.records)} events")
    state, options = fold(old.records[:at]), plan.options
    if old.path.name == "session.db":  # any other file may have come from elsewhere, also beside it
        options = options.recall(old.path.parent, context)
    crew = opt.choose_crew(context, plan.crew or state.session.crew)
    name = plan.name or invent_name(options)
    prompts = {} if crew == "optuna" else read_prompts(old, state)
    options = options if crew == "optuna" else inherit_models(options, prompts, state.session.task)
    recorded = {} if options.prompts else prompts
    style = options.prompts or state.session.style or "default"
    options = replace(options, prompts=style, search=state.session.search, memory=False)
    return Preflight(options, name, crew, _extend_limits(state, more), state, recorded=recorded)


def _start_fork(night: Preflight, old: Session, at: int, **settings: Any) -> None:
    """Check all, and run the fork that was planned of a session, which may be closed. Raises UsageError."""
    with opt.wrap_damage(old.path):
        night.require()
        forked = Forked(parent=f"{old.state.session.name}@{at}", **_describe_settings(night) | settings)

    def copy(path: Path) -> Session:
        with closing(Session(old.path, read_only=True, salvage=old.salvage, known=old)) as log:
            return log.fork(path, at)  # a night that still runs could not put all into its file while we read it

    _begin(night, forked, copy)


def _extend_limits(state: State, more: Mapping[str, float | None]) -> SessionLimits:
    """Return the limits of a fork of a state, which count from there; it keeps those that are None."""
    used = measure_usage(state)
    longer = {limit: round(used[limit] + n, 4) for limit, n in more.items() if n is not None}
    return state.session.limits.model_copy(update=longer)


def trial(
    context: typer.Context,
    prompts: Annotated[list[str], typer.Option(help="a style; repeat for each")],
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="nights per style")] = 3,
    hours: Annotated[float, typer.Option(min=0, max=1e4, help="length of a night in hours")] = 1.0,
    crew: Annotated[Literal["claude", "centaur"], typer.Option(help="who does the research")] = "claude",
    seed: Annotated[int, typer.Option(min=0, max=10**9, help="seed of the first repetition; others add 1 each")] = 0,
    trial_name: Annotated[str, typer.Option("--name", help="prefix of the sessions' names")] = "trial",
    of: Annotated[str, typer.Option(metavar="SESSION", help="a session, for --at-states")] = "",
    at_states: Annotated[int | None, typer.Option(min=2, help="one experiment per style at so many states")] = None,
) -> None:
    """Compare prompt styles over several nights.

    Runs nights of each style in turn, with the same seeds and limits, then compares them. Run the same command again to
    continue an interrupted trial: nightshift trial --prompts default --prompts none --hours 2

    Cheaper, and closer: what does each style make of the same states of a recorded night? A fork of it at each state
    and in each style has one experiment: nightshift trial --prompts default --prompts none --of NAME --at-states 8
    """
    chosen: opt.Options = replace(context.obj, memory=False)
    styles = {Path(style).name: style for style in prompts}
    if len(styles) < len(prompts):
        raise opt.UsageError("--prompts: name each style only once; folders must have different names")
    limits = SessionLimits(hours=hours, experiments=1 if at_states else chosen.max_experiments, usd=chosen.max_usd)
    points = _list_states(context, of, at_states) if of or at_states else range(1, repeats + 1)
    nights = [
        Preflight(replace(chosen, prompts=folder, seed=seed + point - 1), f"{trial_name}-{style}-{point}", crew, limits)
        for point in points
        for style, folder in styles.items()
    ]
    parent: Session | None = None
    if at_states:
        with opt.read_session(chosen, of) as parent:  # an edit of a style from now on is in none of the forks
            nights = [_plan_fork(context, parent, _get_point(each), limits.model_dump(), each) for each in nights]
    planned = [night for night in nights if not (chosen.sessions / night.name / "session.db").exists()]
    if other := [night.name for night in nights if night not in planned and _is_other(night, parent)]:
        raise opt.UsageError(f"{other[0]} was begun with other options or files: give the same, or another --name")
    assert all(night.prompts for night in planned)  # a fault of any style is told before a model is asked
    for night in planned * (not at_states):
        night.require()
    sees = [
        f"{n} see {compute_visible_difference(n):.1f}" if n > 1 else "1 sees none" for n in sorted({len(points), 10})
    ]
    print(f"Nights per style, and the difference that they see with 80 % power, in σ of one night: {'; '.join(sees)}")
    measured = list[str]()
    for night in nights:
        if (has := None if night in planned else _has_measured(chosen, night.name)) is not None:
            print(f"{night.name} {'is done already' if has else 'measured nothing'}")
        else:
            if night not in planned:
                resume(context, night.name)
            elif parent:
                _start_fork(night, parent, _get_point(night), certifies=False)
            else:
                start_night(night)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which the end of a night ignores
            _check_end(chosen, night.name)
        measured += [night.name] * (has is not False)
    if len(measured) > 1:
        compare(context, measured)


def _list_states(context: typer.Context, name: str, count: int | None) -> list[int]:
    """Return the events at which a session began to ask for proposals, spread over the night. Raises UsageError."""
    if not (name and count):
        raise opt.UsageError("--of and --at-states need each other: the session, and at how many of its states")
    useless = "repeats", "seed", "slots", "max_experiments", "fit", "keep_seed"
    opt.refuse(context, "with --at-states", *useless)
    with opt.read_session(context.obj, name) as session:
        state, begun, proposed = State(), dict[str, int](), set[str]()
        for record in session.records:
            begun.setdefault(record.task_id, record.seq * (state.incumbent is not None))
            if isinstance(record.event, Proposed) and record.event.proposal.is_idea:
                proposed.add(record.task_id)
            state = apply(state, record)
    found = sorted(begun[task_id] for task_id in proposed if begun[task_id])
    if len(found) < count:
        raise opt.UsageError(f"--at-states {count}: {name} was asked for proposals only {len(found)} times")
    return [found[each * (len(found) - 1) // (count - 1)] for each in range(count)]


def _get_point(night: Preflight) -> int:
    """Return at which event a fork of a trial begins."""
    return int(night.name.rpartition("-")[2])


def _is_other(night: Preflight, parent: Session | None = None) -> bool:
    """Return whether the session of that name is another than the night that is planned, or fork of the parent."""
    plan, origin = night.options, f"{parent.state.session.name}@{_get_point(night)}" if parent else ""
    with opt.read_session(plan, night.name) as session:
        own, before = session.state.session, plan.recall(session.path.parent)
        begun = next((r.event.parent for r in reversed(session.records) if isinstance(r.event, Forked)), "")
    settings = _describe_settings(night) | {"certifies": not parent}
    if begun != origin or any(getattr(own, name) != value for name, value in settings.items()):
        return True
    if parent:  # which the rest is from
        return False
    data = own.profile.data_hash if night.task.is_reported else night.manifest.digest
    tasks = [t.model_dump(exclude={"fixed"}) | {"seed": t.seed or {"env": VARIABLE}} for t in (night.task, own.task)]
    planned = plan.seed, data, plan.fit, plan.keep_seed, own.gpu and night.gpu, tasks[0]
    if planned != (own.seed, own.profile.data_hash, before.fit, before.keep_seed, own.gpu, tasks[1]):
        return True
    if plan.slots not in {"auto", str(own.slots)} or before.venv not in {None, night.venv}:
        return True
    if not night.repo.has_begun(own.commit, own.folder):
        return True
    ours = f"{relpath(plan.musings, plan.script.parent)}/"
    changed = [at for at in night.repo.list_changed_since(own.commit) if not at.startswith(ours)]
    return any(night.task.is_reported or night.repo.task.is_editable(at) or at.endswith(".py") for at in changed)


def _has_measured(paths: opt.Paths, name: str) -> bool | None:
    """Return whether a night measured something, and a fork what it proposed itself; None where it is not over."""
    with opt.read_session(paths, name) as session:
        state, records = session.state, session.records
    begun = max((at for at, record in enumerate(records) if isinstance(record.event, Forked)), default=0)
    shared = fold(records[:begun])
    tried = {each.experiment for each in state.judged if each.status != "vetoed" and not each.is_lost}
    has_own = any(number >= shared.next or number in shared.skipped for number in tried)
    return (state.incumbent is not None and (has_own or not begun)) if is_over(state) else None


def _check_end(paths: opt.Paths, name: str) -> None:
    """Raise SystemExit if a night that has just run was stopped, or measured nothing, as perhaps all others would."""
    has = _has_measured(paths, name)
    if not has:
        told = "was stopped: run the same command again to continue the trial" if has is None else "measured nothing"
        print(f"{name} {told}")
        raise SystemExit(opt.ExitCode.INTERRUPTED if has is None else opt.ExitCode.NOTHING_RAN)


def invent_name(paths: opt.Paths) -> str:
    """Return a new name: the date and a word that is not taken yet, here or in the repository."""
    today, words = f"{datetime.now().astimezone():%Y-%m-%d}", WORDS.split()
    for name in (f"{today}-{word}" for word in random.SystemRandom().sample(words, len(words))):
        with suppress(RepoError):
            if not (paths.sessions / name).exists():
                Repo(paths.script, name).check_free()
                return name
    return f"{today}-{time.time():.0f}"
