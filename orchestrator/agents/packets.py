"""Write what the mechanic and the reflector are told of one experiment: measurements and the few lines that matter.

Never a raw log: what the candidate printed is quoted in « » or fenced, so that no agent takes it for instructions.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import isfinite
from statistics import fmean, stdev

from orchestrator.agents.briefing import DIFF, clip, describe_budget
from orchestrator.core import events as ev
from orchestrator.core.description import FinishedRun, compare_metrics, interpolate_loss
from orchestrator.core.state import Broken, Decided, State, get_scores
from subagents.logs import extract_frames, fence, quote, split_lines

POINTS = tuple(i / 10 for i in range(1, 11))
"""Shares of the budget at which a packet shows the curves."""
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


def pack_reflection(state: State, decided: Decided, log: str, change: str) -> dict[str, str]:
    """Return the facts of the reflector's opening: no hopes beyond the hypothesis, and no earlier lessons."""
    proposal, incumbent = decided.proposal, get_scores(state, decided.incumbent)
    assert decided.commit, "what is reflected upon has run"
    timed = state.session.profile.budget_kind == "time"
    return {
        "title": proposal.title,
        "hypothesis": proposal.hypothesis,
        "budget": describe_budget(state.session.profile),
        "instructions": proposal.instructions,
        "edit": _describe_edit(proposal, decided.commit),
        "diff": clip(change, DIFF),
        "outcome": _describe_outcome(decided, incumbent),
        "packet": "\n".join(_write_packet(decided, incumbent, log, timed=timed)),
    }


def write_curve_table(own: Sequence[FinishedRun], incumbent: Sequence[FinishedRun], shares: Iterable[float]) -> str:
    """Return a row per share of the budget: mean losses over seeds, their difference, the incumbent's σ over seeds.

    A dash stands where a run had ended, and where fewer than two seeds give no σ.
    """
    rows = ["share    this  incumbent  difference  σ over the incumbent's seeds"]
    for share in shares:
        ours, theirs = _get_losses(own, share), _get_losses(incumbent, share)
        mean, other = (f"{fmean(losses):.4f}" if losses else "–" for losses in (ours, theirs))
        difference = f"{fmean(ours) - fmean(theirs):+.4f}" if ours and theirs else "–"
        sigma = f"{stdev(theirs):.4f}" if len(theirs) > 1 else "–"
        rows.append(f"{share:5.2f} {mean:>7}    {other:>7}     {difference:>7}  {sigma}")
    return "\n".join(rows)


def _describe_edit(proposal: ev.Proposal, commit: ev.Committed) -> str:
    """Return who edited train.py, and what the mechanic said of it."""
    if proposal.settings and not commit.summary:
        return "Code set the constants to exactly the proposed values."
    deviations = f"It declared deviations: {quote(commit.deviations.rstrip('.'), 700)}." if commit.deviations else ""
    return f"The mechanic: {quote(commit.summary.rstrip('.'), 400)}. {deviations or 'It declared no deviation.'}"


def _describe_outcome(decided: Decided, incumbent: Sequence[ev.Scored]) -> str:
    match decided.verdict:
        case ev.Kept() | ev.Discarded() as verdict:
            scores = ", ".join(f"{score.val_bpb:.4f}" for score in decided.scores)
            others = ", ".join(f"{score.val_bpb:.4f}" for score in incumbent)
            return (
                f"{verdict.kind.capitalize()}: {verdict.reason}. val_bpb by seed: {scores}; the incumbent's: {others}. "
                f"Gain (positive is better): {verdict.gain:+.4f} ± {verdict.error:.4f}. "
                f"One run's σ over seeds: {verdict.sigma:.4f}."
            )
        case verdict:
            return f"No score. The run ended with {quote(verdict.reason)}."


def _write_packet(decided: Decided, incumbent: Sequence[ev.Scored], log: str, *, timed: bool) -> Iterator[str]:
    runs = list_runs(decided)
    if any(run.curve for run in runs):
        yield "Training loss by share of the budget, smoothed over the last few steps, means over seeds:"
        yield write_curve_table(runs, incumbent, POINTS)
    yield "Measured, means over seeds, with the incumbent's in brackets:"
    for name, own, other in compare_metrics(runs, incumbent):
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
    """Yield what failed, and where in train.py; if that is not known, the end of the log."""
    kind = f"{crash.failure}, " * (crash.failure != "other")
    yield f"It failed {_describe_end(crash.metrics)}: {kind}{quote(crash.message)}."
    lines = split_lines(log)
    if frames := extract_frames(lines):
        yield f"The frames of train.py in its last traceback:\n{fence(frames, EXCERPT)}"
    else:
        yield f"The end of its log:\n{fence(lines[-LAST_LINES:], EXCERPT)}"


def _describe_end(metrics: ev.RunMetrics) -> str:
    seconds = metrics.train_seconds
    return f"after {seconds:.0f} s of training" if seconds else "before its training began"


def list_runs(decided: Decided) -> Sequence[FinishedRun]:
    """Return the runs that the verdict is about: all scored ones, or the one that crashed or was pruned."""
    return decided.scores if isinstance(decided.last_run, ev.Scored) else [decided.last_run]


def _get_losses(runs: Sequence[FinishedRun], share: float) -> list[float]:
    """Return the losses of the runs that reached the share; a curve's ends stand for the moments beside them."""
    reached = [run.curve for run in runs if run.curve and share <= run.curve[-1].progress + 0.05]
    losses = (interpolate_loss(c, min(max(share, c[0].progress), c[-1].progress)) for c in reached)
    return [loss for loss in losses if loss is not None and isfinite(loss)]
