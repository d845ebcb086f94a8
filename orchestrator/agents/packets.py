"""What the mechanic and the reflector are told of one experiment: measurements and the few lines that matter.

Never a raw log. What the candidate printed is quoted in « » or fenced, so that no agent takes it for a word to itself.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isfinite
from statistics import fmean, stdev

from orchestrator.agents.briefing import clip, describe_budget
from orchestrator.core import events as ev
from orchestrator.core.curves import interpolate_loss
from orchestrator.core.state import Broken, Decided, State, get_scores
from subagents.logs import extract_frames, fence, quote, split_lines

Curve = Sequence[ev.Point]
POINTS = tuple(i / 10 for i in range(1, 11))
"""Of the curve in a packet, as shares of the budget."""
EXCERPT = 1_800
"""Characters of a log in a packet: about 500 tokens."""
LAST_LINES = 12
DIFF = 1_200
"""Tokens."""


def pack_order(proposal: ev.Proposal) -> dict[str, str]:
    """The facts of the mechanic's opening, but for the source."""
    return {"title": proposal.title, "instructions": proposal.instructions, "crash": "", "diff": ""}


def pack_repair(broken: Broken, log: str, change: str) -> dict[str, str]:
    """The same after a crash; `change` is the diff that brought it about."""
    crash = "\n".join(_describe_crash(broken.crash, log))
    return pack_order(broken.candidate.proposal) | {"crash": crash, "diff": clip(change, DIFF)}


def pack_reflection(state: State, decided: Decided, log: str, change: str) -> dict[str, str]:
    """The facts of the reflector's opening: no hopes beyond the hypothesis, and no lessons so far."""
    proposal = decided.candidate.proposal
    base = get_scores(state, decided.incumbent)
    return {
        "title": proposal.title,
        "hypothesis": proposal.hypothesis,
        "budget": describe_budget(state.session.profile),
        "diff": clip(change, DIFF),
        "outcome": _describe_outcome(decided, base),
        "packet": "\n".join(_write_packet(decided, base, log, timed=state.session.profile.budget_kind == "time")),
    }


def make_curve_table(state: State, decided: Decided) -> Callable[[Sequence[float]], str]:
    """The table of the run's losses and its base's, at shares of the budget yet to be chosen."""
    own, other = _get_curves(decided), _collect_curves(get_scores(state, decided.incumbent))
    return lambda shares: write_curve_table(own, other, shares)


def write_curve_table(own: Sequence[Curve], other: Sequence[Curve], shares: Iterable[float]) -> str:
    """A row for each share of the budget: both mean losses over seeds, their difference, the base's spread over seeds.

    A dash stands where a run had ended, and where fewer than two seeds give no spread.
    """
    rows = ["share   this    base   difference  σ over the base's seeds"]
    for share in shares:
        ours, theirs = _get_losses(own, share), _get_losses(other, share)
        difference = f"{fmean(ours) - fmean(theirs):+.4f}" if ours and theirs else "–".rjust(7)
        spread = f"{stdev(theirs):.4f}" if len(theirs) > 1 else "–"
        rows.append(f"{share:5.2f} {_format_losses(ours)} {_format_losses(theirs)}    {difference}     {spread}")
    return "\n".join(rows)


def _describe_outcome(decided: Decided, base: Sequence[ev.Scored]) -> str:
    match decided.verdict:
        case ev.Kept() | ev.Discarded() as verdict:
            scores = ", ".join(f"{score.val_bpb:.4f}" for score in decided.candidate.scores)
            others = ", ".join(f"{score.val_bpb:.4f}" for score in base)
            return (
                f"{verdict.kind.capitalize()}: {verdict.reason}. val_bpb by seed: {scores}; the base's: {others}. "
                f"Gain (positive is better): {verdict.gain:+.4f} ± {verdict.error:.4f}. "
                f"One run's σ over seeds: {verdict.sigma:.4f}."
            )
        case ev.Failed(reason=reason) | ev.Pruned(reason=reason):
            return f"No score. The run ended with {quote(reason)}."


def _write_packet(decided: Decided, base: Sequence[ev.Scored], log: str, *, timed: bool) -> Iterator[str]:
    if own := _get_curves(decided):
        yield "Training loss by share of the budget, each a mean over the last few batches and over seeds:"
        yield write_curve_table(own, _collect_curves(base), POINTS)
    yield from _list_metrics(decided.last_run.metrics, base[-1].metrics if base else ev.RunMetrics(), timed)
    match decided.last_run:
        case ev.Pruned(reason=reason, metrics=metrics):
            yield f"It was ended {_tell_when(metrics)}, being too far behind: {quote(reason)}."
        case ev.Crashed() as crash:
            yield from _describe_crash(crash, log)
        case ev.Scored():
            pass


def _list_metrics(own: ev.RunMetrics, base: ev.RunMetrics, timed: bool) -> Iterator[str]:
    """Throughput where time is the budget, steps, memory and size, each beside the base's."""
    yield "Measured, with the base's in brackets:"
    for name, mine, theirs in (
        *([("tokens per second", _compute_speed(own), _compute_speed(base))] * timed),
        ("optimizer steps", own.steps, base.steps),
        ("peak memory, MB", own.memory_mb, base.memory_mb),
        ("parameters", own.parameters, base.parameters),
    ):
        if mine or theirs:
            yield f"{name}: {mine:,.0f} ({theirs:,.0f})"


def _describe_crash(crash: ev.Crashed, log: str) -> Iterator[str]:
    """What failed, and where in train.py; where that is not known, the end of the log."""
    kind = f"{crash.failure}, " * (crash.failure != "other")
    yield f"It failed {_tell_when(crash.metrics)}: {kind}{quote(crash.message)}."
    shown = split_lines(log)
    if frames := extract_frames(shown):
        yield f"The frames of train.py in its last traceback:\n{fence(frames, EXCERPT)}"
    else:
        yield f"The end of its log:\n{fence(shown[-LAST_LINES:], EXCERPT)}"


def _tell_when(metrics: ev.RunMetrics) -> str:
    seconds = metrics.train_seconds
    return f"after {seconds:.0f} s of training" if seconds else "before its training began"


def _get_curves(decided: Decided) -> list[Curve]:
    run = decided.last_run
    return _collect_curves(decided.candidate.scores) if isinstance(run, ev.Scored) else [run.curve] * bool(run.curve)


def _collect_curves(scores: Sequence[ev.Scored]) -> list[Curve]:
    return [score.curve for score in scores if score.curve]


def _get_losses(curves: Sequence[Curve], share: float) -> list[float]:
    """The losses of those runs that had come so far."""
    return [loss for curve in curves if (loss := _get_loss(curve, share)) is not None and isfinite(loss)]


def _get_loss(curve: Sequence[ev.Point], share: float) -> float | None:
    """The loss at a share of the budget; a run's first and last points stand for the moments beside them."""
    if not curve or share > curve[-1].progress + 0.05:
        return None
    return interpolate_loss(curve, min(max(share, curve[0].progress), curve[-1].progress))


def _format_losses(losses: Sequence[float]) -> str:
    return f"{fmean(losses):7.4f}" if losses else "–".rjust(7)


def _compute_speed(measures: ev.RunMetrics) -> float:
    return measures.tokens / measures.train_seconds if measures.train_seconds else 0.0
