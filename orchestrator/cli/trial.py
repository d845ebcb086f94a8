"""The command that finds out whether a style helps: nights of each style in turn, then the comparison."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.cli import options as opt
from orchestrator.cli.compare import compare
from orchestrator.cli.start import plan_night, resume, start_night
from orchestrator.core.events import Record, Resumed, SessionLimits
from orchestrator.core.state import apply
from orchestrator.policy.limits import explain_stop


def trial(
    context: typer.Context,
    prompts: Annotated[list[str], typer.Option(help="a style; give two or more")],
    repeats: Annotated[int, typer.Option(min=1, help="nights of each style")] = 3,
    hours: opt.Hours = 1.0,
    max_experiments: opt.Experiments = None,
    max_usd: opt.Dollars = None,
    crew: Annotated[Literal["claude", "centaur"], typer.Option(help="who does the research")] = "claude",
    model: opt.Model = None,
    seed: Annotated[int, typer.Option(help="of the first repetition; the next has the next one")] = 0,
    notify: opt.Notify = "",
    trial_name: Annotated[str, typer.Option("--name", help="what the sessions' names begin with")] = "trial",
) -> None:
    """Find out whether a style helps.

    Nights of each style in turn, with the same seeds and limits; then they are compared. Given again, the command
    goes on where it was interrupted: python -m orchestrator trial --prompts default --prompts none --hours 2
    """
    paths: opt.Paths = context.obj
    styles = {Path(style).name: style for style in prompts}
    if len(styles) < len(prompts):
        raise opt.UsageError("--prompts: each style once, please, in folders of different names")
    limits = SessionLimits(hours=hours, experiments=max_experiments, usd=max_usd)
    nights = {
        f"{trial_name}-{style}-{repeat + 1}": (folder, seed + repeat)
        for repeat in range(repeats)
        for style, folder in styles.items()
    }
    begun = {path.parent.name for path in paths.sessions.glob("*/session.db")}
    planned = {
        name: plan_night(paths, name, limits, crew, folder, model or (), notify)
        for name, (folder, _) in nights.items()
        if name not in begun
    }
    for night in planned.values():
        night.require()
    for name, (folder, own_seed) in nights.items():
        if name in planned:
            start_night(planned[name], limits, crew, folder, own_seed)
        elif _is_over(paths, name):
            print(f"{name} is done already")
        else:
            resume(context, name, notify)
        if not _is_over(paths, name):
            print(f"{name} was stopped: give the same command again to go on with the trial")
            raise SystemExit(opt.ExitCode.INTERRUPTED)
    compare(context, list(nights))


def _is_over(paths: opt.Paths, name: str) -> bool:
    """Return whether the night would end at once if it were resumed. Raises SystemExit where it measured nothing."""
    with opt.read_session(paths, name) as session:
        state = session.state
    over = bool(explain_stop(apply(state, Record(seq=0, at=state.now, task_id="", event=Resumed()))))
    if over and state.incumbent is None:
        print(f"{name} measured nothing")
        raise SystemExit(opt.ExitCode.UNMEASURED)
    return over
