"""Write what the mechanic and the reflector are told of one experiment: its measurements, and excerpts of its log.

What the candidate printed is quoted in « » or fenced, so that no agent takes it for instructions.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite
from statistics import fmean, stdev

from orchestrator.agents.briefing import DIFF, WORDS, clip
from orchestrator.core import events as ev
from orchestrator.core.description import compare_metrics, interpolate_loss
from orchestrator.core.state import Broken, Decided, State
from prepare.constants import Value, read_values
from subagents.logs import extract_frames, fence, quote, split_lines

POINTS = tuple(i / 10 for i in range(1, 11))
"""Shares of the budget at which a packet shows the curves."""
SAME_PACE = 0.01
"""Relative difference below which two numbers of steps count as equal."""
AT_EQUAL_SHARES = 51
"""Characters of a row of the curve table before the comparison at equal steps, needless where the steps are equal."""
EXCERPT = 1_800
"""Characters of a log in a packet: about 500 tokens."""
LAST_LINES = 12


def pack_order(proposal: ev.Proposal) -> dict[str, str]:
    """Return the facts of the mechanic's opening, without the source."""
    return {"title": proposal.title, "instructions": proposal.instructions, "crash": "", "diff": ""}


def pack_repair(broken: Broken, log: str, change: str) -> dict[str, str]:
    """Return the same facts after a crash; `change` is the diff that caused it."""
    crash = "\n".join(_describe_crash(broken.crash, log))
    return pack_order(broken.candidate.proposal) | {"crash": crash, "diff": clip(change, DIFF)}


def pack_reflection(state: State, decided: Decided, log: str, change: str, source: str) -> dict[str, str]:
    """Return the facts of the reflector's opening, without the expected effect and earlier lessons.

    `source` is the incumbent's train.py.
    """
    proposal = decided.proposal
    assert decided.commit, "an experiment that is reflected on has run"
    timed = state.session.profile.budget_kind == "time"
    return {
        "title": proposal.title,
        "hypothesis": proposal.hypothesis,
        "task": WORDS.task(state.session.task),
        "budget": WORDS.budget(state.session.profile),
        "instructions": proposal.instructions,
        "edit": _describe_edit(proposal, decided.commit),
        "diff": clip(change, DIFF),
        "constants": _describe_constants(read_values(source)),
        "outcome": " ".join(_list_evidence(decided)),
        "packet": "\n".join(_write_packet(decided, log, timed=timed)),
    }


def write_curve_table(decided: Decided, shares: Iterable[float]) -> str:
    """Return a row per share of the budget: mean losses over seeds, their difference, the incumbent's σ over its seeds.

    If the numbers of steps differ, then follow the incumbent's loss after as many steps, and the difference from it. A
    dash stands where a run had ended, where the number of steps is not known, and where fewer than two seeds give no σ.
    """
    own, incumbent = _list_runs(decided), decided.compared
    every = decided.against.scores if decided.against else ()
    pace = _count_steps(own) / steps if (steps := _count_steps(incumbent)) else 0.0
    rows = ["share    this  incumbent  difference  incumbent's σ  incumbent at equal steps  difference"]
    for share in shares:
        ours, theirs = _get_losses(own, share), _get_losses(incumbent, share)
        level = _get_losses(incumbent, pace * share) if pace and pace * share <= 1 else []
        mean, other, equal = (f"{fmean(losses):.4f}" if losses else "–" for losses in (ours, theirs, level))
        gap, later = (f"{fmean(ours) - fmean(base):+.4f}" if ours and base else "–" for base in (theirs, level))
        sigma = f"{stdev(losses):.4f}" if len(losses := _get_losses(every, share)) > 1 else "–"
        rows.append(f"{share:5.2f} {mean:>7}    {other:>7}     {gap:>7}         {sigma:>6}  {equal:>24}     {later:>7}")
    return "\n".join(row[: AT_EQUAL_SHARES if abs(pace - 1) < SAME_PACE else None] for row in rows)


def _count_steps(runs: Sequence[ev.RunResult]) -> float:
    """Return the steps of a whole budget, mean over the runs that report them; 0 if none does."""
    counts = [run.metrics.steps / run.curve[-1].progress for run in runs if run.metrics.steps and run.curve]
    return fmean(counts) if counts else 0.0


def _describe_constants(values: Mapping[str, Value]) -> str:
    """Return the constants, and when the learning rate is full, if train.py defines that by the usual names."""
    listed = ", ".join(f"{name} = {value!r}" for name, value in values.items())
    match values:
        case {"WARMUP_RATIO": int() | float() as warmup, "WARMDOWN_RATIO": int() | float() as warmdown}:
            turns = f"is full from share {warmup:.2f} of the budget on, and falls from {1 - warmdown:.2f} on"
            return f"{listed}.\nBy WARMUP_RATIO and WARMDOWN_RATIO, its learning rate {turns}."
        case _:
            return f"{listed}." if listed else "It has no plain constants."


def _describe_edit(proposal: ev.Proposal, commit: ev.Committed) -> str:
    """Return who edited train.py, and what the mechanic said about it."""
    if proposal.settings and not commit.summary:
        return "Code set the constants to exactly the proposed values."
    deviations = f"It declared deviations: {quote(commit.deviations.rstrip('.'), 700)}." if commit.deviations else ""
    return f"The mechanic: {quote(commit.summary.rstrip('.'), 400)}. {deviations or 'It declared no deviation.'}"


def _list_evidence(decided: Decided) -> Iterator[str]:
    """Yield the numbers that the verdict rests on, a sentence each; all changes have the metric's own sign."""
    if not isinstance(verdict := decided.verdict, ev.Kept | ev.Discarded):
        yield f"No score. The run ended with {quote(verdict.reason, 300)}."
        return
    metric, noun, sides = decided.task.metric, decided.task.noun, (decided.scores, decided.compared)
    ours, theirs = (", ".join(metric.format_score(score.val_bpb) for score in runs) for runs in sides)
    same = " at the same seeds" * (bool(verdict.differences) and noun == "seed")
    yield f"{verdict.kind.capitalize()}: {verdict.reason}."
    yield f"{metric.name} by {noun}: {ours}; the incumbent's{same}: {theirs}."
    if verdict.differences:
        yield f"Change by {noun}: {', '.join(metric.format_change(-gap) for gap in verdict.differences)}."
    if verdict.expected is not None:
        yield f"Change to expect, given what ideas have brought so far: {metric.format_change(-verdict.expected)}."
    yield f"One run's σ over {noun}s: {metric.format_size(verdict.sigma)}."


def _write_packet(decided: Decided, log: str, *, timed: bool) -> Iterator[str]:
    runs = _list_runs(decided)
    if any(run.curve for run in runs):
        yield "Training loss by share of the budget, as printed (mostly smoothed over ten steps), means over seeds:"
        yield write_curve_table(decided, POINTS)
    yield "Measured, means over seeds, with the incumbent's in brackets:"
    for name, own, other in compare_metrics(runs, decided.compared):
        if (own or other) and (timed or name != "tokens per second"):
            yield f"{name}: {own:,.0f} ({other:,.0f})"
    match decided.last_run:
        case ev.Pruned(reason=reason, metrics=metrics):
            yield f"It was pruned {_describe_end(metrics)}, being too far behind: {quote(reason)}."
        case ev.Crashed() as crash:
            yield from _describe_crash(crash, log)
        case ev.Scored():
            pass


def _describe_crash(crash: ev.Crashed, log: str) -> Iterator[str]:
    """Yield what failed, and where in train.py; if that is unknown, the end of the log."""
    kind = f"{crash.failure}, " * (crash.failure != "other")
    yield f"It failed {_describe_end(crash.metrics)}: {kind}{quote(crash.message, 300)}."
    lines = split_lines(log)
    if frames := extract_frames(lines):
        yield f"The frames of train.py in its last traceback:\n{fence(frames, EXCERPT)}"
    else:
        yield f"The end of its log:\n{fence(lines[-LAST_LINES:], EXCERPT)}"


def _describe_end(metrics: ev.RunMetrics) -> str:
    seconds = metrics.train_seconds
    return f"after {seconds:.0f} s of training" if seconds else "before its training began"


def _list_runs(decided: Decided) -> Sequence[ev.RunResult]:
    """Return the runs that the verdict is about: all scored ones, or the one that crashed or was pruned."""
    return decided.scores if isinstance(decided.last_run, ev.Scored) else [decided.last_run]


def _get_losses(runs: Sequence[ev.RunResult], share: float) -> list[float]:
    """Return the losses of the runs that reached the share; just beyond a curve's ends, those of its ends."""
    reached = [run.curve for run in runs if run.curve and share <= run.curve[-1].progress + 0.05]
    losses = (interpolate_loss(c, min(max(share, c[0].progress), c[-1].progress)) for c in reached)
    return [loss for loss in losses if loss is not None and isfinite(loss)]
