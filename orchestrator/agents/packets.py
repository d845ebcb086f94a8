"""Select what the mechanic and the reflector are told of one experiment; `templates/packets.txt` puts it into words.

What the candidate printed is quoted in « » or fenced, so that no agent takes it for instructions.
"""

from collections.abc import Iterable, Sequence
from math import isfinite
from statistics import fmean, stdev

from orchestrator.agents import briefing
from orchestrator.core import events as ev
from orchestrator.core.description import NEARLY, compare_metrics, interpolate_loss
from orchestrator.core.state import Broken, Decided, State
from orchestrator.core.task import EXAMINED, Task
from orchestrator.core.templates import Macros
from orchestrator.policy.evidence import list_verdicts
from prepare.constants import read_values
from prepare.tree import split_files
from subagents.logs import extract_frames, fence, split_lines

POINTS = tuple(i / 10 for i in range(1, 11))  # shares of the budget at which a packet shows the curves
SAME_PACE = 0.01  # relative difference below which two numbers of steps count as equal
MANY_STEPS = 300  # steps from which the last tenth of a run has so much text that it does not matter which
MAIN = 4  # columns of the curve table that always stand there; of the others, those that show something
EXCERPT = 1_800  # characters of a log in a packet: about 500 tokens
LAST_LINES = 12
WORDS = Macros(briefing.TEMPLATES, "packets.txt")


def pack_order(proposal: ev.Proposal) -> dict[str, str]:
    """Return the facts of the mechanic's opening, without the source."""
    return {"title": proposal.title, "instructions": proposal.instructions, "crash": "", "diff": ""}


def pack_repair(broken: Broken, log: str, change: str, source: str = "", task: Task = EXAMINED) -> dict[str, str]:
    """Return the same facts after a crash of `source`; `change` is the diff that caused it."""
    facts = {"crash": _describe_crash(broken.crash, log, source, task), "diff": briefing.clip(change, briefing.DIFF)}
    return pack_order(broken.candidate.proposal) | facts


def pack_reflection(state: State, decided: Decided, log: str, change: str, source: str) -> dict[str, str]:
    """Return the facts of the reflector's opening, which tell no expected effect; `source` is the incumbent's."""
    proposal, session = decided.proposal, state.session
    assert decided.commit, "an experiment that is reflected on has run"
    return {
        "title": proposal.title,
        "hypothesis": proposal.hypothesis,
        "task": briefing.WORDS.task(session.task),
        "budget": briefing.WORDS.budget(session.profile),
        "instructions": proposal.instructions,
        "edit": WORDS.edit(proposal, decided.commit),
        "diff": briefing.clip(change, briefing.DIFF),
        "constants": WORDS.constants(read_values(source)),
        "outcome": WORDS.outcome(decided, list_verdicts(decided)),
        "packet": _describe_runs(decided, log, source, session.profile),
    }


def write_curve_table(decided: Decided, shares: Iterable[float]) -> str:
    """Return a row per share of the budget: mean losses over seeds, their difference, the incumbent's σ over its seeds.

    If the numbers of steps differ, then follow the incumbent's loss after as many steps, and the difference from it. A
    dash stands where a run had ended; a column without a number is left out, such as σ where there is one seed.
    """
    own, incumbent = decided.runs, decided.compared
    every = decided.against.scores if decided.against else ()
    pace = _count_steps(own) / steps if (steps := _count_steps(incumbent)) else 0.0
    titles = ("share", "this", "incumbent", "difference", "incumbent's σ", "incumbent at equal steps", "difference")
    table: list[tuple[str, ...]] = [titles]
    last = min((run.curve[-1].progress for run in (*own, *incumbent) if run.curve), default=1.0)
    for row in shares:
        share = last if row == 1.0 and last > NEARLY else row  # where both curves have a point
        ours, theirs = _get_losses(own, share), _get_losses(incumbent, share)
        level = _get_losses(incumbent, pace * share) if abs(pace - 1) >= SAME_PACE and 0 < pace * share <= 1 else []
        mean, other, equal = (f"{fmean(losses):.4f}" if losses else "–" for losses in (ours, theirs, level))
        gap, later = (f"{fmean(ours) - fmean(base):+.4f}" if ours and base else "–" for base in (theirs, level))
        sigma = f"{stdev(losses):.4f}" if len(losses := _get_losses(every, share)) > 1 else "–"
        table.append((f"{share:.2f}", mean, other, gap, sigma, equal, later))
    columns = [cells for at, cells in enumerate(zip(*table, strict=True)) if at < MAIN or {*cells[1:]} != {"–"}]
    widths = [max(map(len, cells)) for cells in columns]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in zip(*columns, strict=True))


def _count_steps(runs: Sequence[ev.RunResult]) -> float:
    """Return the steps of a whole budget, mean over the runs that report them; 0 if none does."""
    begun = [run for run in runs if run.curve and run.curve[-1].progress]
    counts = [run.metrics.steps / run.curve[-1].progress for run in begun if run.metrics.steps]
    return fmean(counts) if counts else 0.0


def _describe_runs(decided: Decided, log: str, source: str, profile: ev.SessionProfile) -> str:
    """Return the curves and the metrics, and what ended a run early."""
    runs, last = decided.runs, decided.last_run
    curves = write_curve_table(decided, POINTS) if any(run.curve for run in runs) else ""
    measured = [row for row in compare_metrics(runs, decided.compared) if row[1] or row[2]]
    crash = _describe_crash(last, log, source, decided.task) if isinstance(last, ev.Crashed) else ""
    steps, other_steps = _count_steps(runs), _count_steps(decided.compared)
    is_alike = min(steps, other_steps) >= MANY_STEPS or abs(steps - other_steps) <= SAME_PACE * other_steps
    return WORDS.packet(decided, runs, curves, measured, crash, profile.bytes_per_token if is_alike else 0.0)


def _describe_crash(crash: ev.Crashed, log: str, source: str, task: Task) -> str:
    """Return what failed, and where in the files of `source`; if that is unknown, the end of the log."""
    lines = split_lines(log)
    frames = extract_frames(lines, [*split_files(source), *task.editable])
    return WORDS.crash(crash, bool(frames), fence(frames or lines[-LAST_LINES:], EXCERPT))


def _get_losses(runs: Sequence[ev.RunResult], share: float) -> list[float]:
    """Return the losses of the runs that reached the share; just beyond a curve's ends, those of its ends."""
    reached = [run.curve for run in runs if run.curve and share <= run.curve[-1].progress + 0.05]
    losses = (interpolate_loss(c, min(max(share, c[0].progress), c[-1].progress)) for c in reached)
    return [loss for loss in losses if loss is not None and isfinite(loss)]
