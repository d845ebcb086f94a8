"""What the researcher is told: a pure rendering of the state, each section within its own budget of tokens.

So the briefing at experiment 1,000 is as long as at experiment 20. Tokens are estimated at 3.5 characters each, since
Claude's tokenizer is not public.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import sqrt
from typing import get_args

from orchestrator.core import events as ev
from orchestrator.core.state import (
    Broken,
    Candidate,
    Decided,
    ExperimentResult,
    Idea,
    Remeasuring,
    Stage,
    State,
    Training,
    get_proposal,
)
from orchestrator.policy import noise, thresholds
from orchestrator.policy.limits import estimate_run_seconds
from prepare.constants import read_constants
from subagents.logs import quote

CHARACTERS = 3.5
"""Of one token, roughly."""
RECENT = 15
"""Experiments told in full sentences. Full sentences for the last ones help most of all that was tried elsewhere."""
ROWS = 40
"""Of an answer from the ledger."""
SUGGESTIONS = 3
"""Post-mortems whose next experiment is passed on; older wishes are stale."""
WHY, LESSON = 230, 260
"""Characters of an explanation and of a lesson; a lesson that lost its end would mislead."""
DIFF = 1_200
"""Tokens of a diff that is looked up."""

BUDGET = {
    "clock": 150,
    "standing": 250,
    "constants": 1300,
    "outline": 450,
    "branch": 500,
    "recent": 3300,
    "families": 450,
    "near_misses": 450,
    "refused": 400,
    "in_flight": 350,
    "lessons": 1100,
    "wishes": 400,
    "guidance": 900,
    "suggestions": 450,
}
"""Tokens of each section."""


def count_tokens(text: str) -> int:
    """How many tokens a text is, roughly."""
    return round(len(text) / CHARACTERS)


def clip(text: str, budget: int) -> str:
    """The beginning of a text, in so many tokens."""
    limit = int(budget * CHARACTERS)
    return text if len(text) <= limit else text[: limit - 12] + "\n… cut here"


def brief_researcher(
    state: State, first: int, count: int, source: str, suggestions: Sequence[str] = ()
) -> dict[str, str]:
    """The facts of the researcher's opening; `source` is the train.py that proposals start from."""
    done = [result for result in state.results if result.experiment > 0]
    judged = [result for result in done if isinstance(result.verdict, ev.Kept | ev.Discarded | ev.Failed | ev.Pruned)]
    unrun = [result for result in done if isinstance(result.verdict, ev.Refused | ev.Abandoned)]
    return {
        "first": str(first),
        "count": str(count),
        "clock": describe_clock(state),
        "budget": describe_budget(state.session.profile),
        "standing": describe_standing(state),
        "constants": _fit_rows(_list_constants(source), "constants"),
        "outline": _fit_rows(_outline(source), "outline"),
        "branch": _fit_rows(map(_describe_kept, state.kept), "branch"),
        "recent": _fit_rows((_describe_result(result) for result in judged[-RECENT:]), "recent"),
        "families": _fit_rows(_summarize_families(judged), "families"),
        "near_misses": _fit_rows(_list_near_misses(judged), "near_misses"),
        "refused": _fit_rows(map(_describe_result, unrun), "refused"),
        "in_flight": _fit_rows(
            (_write_in_flight_line(n, stage) for n, stage in state.open.items() if n > 0), "in_flight"
        ),
        "lessons": _fit_rows(_list_lessons(judged[:-RECENT]), "lessons"),
        "wishes": _fit_rows(_list_suggestions(judged), "wishes"),
        "silence": quote(state.silence, 300) if state.unanswered else "",
        "stall": _describe_stall(judged),
        "guidance": clip(state.guidance.strip(), BUDGET["guidance"]),
        "suggestions": _fit_rows(suggestions, "suggestions"),
    }


def describe_clock(state: State) -> str:
    """Time and money left."""
    limits, left = state.session.limits, max(0.0, state.deadline - state.now)
    runs = int(left / max(1.0, estimate_run_seconds(state))) * state.session.slots
    parts = [f"{left / 3600:.1f} of {limits.hours:g} hours, enough for about {runs} runs"]
    if limits.experiments is not None:
        parts.append(f"{max(0, limits.experiments - state.next + 1)} of {limits.experiments} experiments")
    parts += _describe_money(state, limits)
    return f"Left are {'; '.join(parts)}."


def describe_budget(profile: ev.SessionProfile) -> str:
    """What every run gets, and where it runs."""
    shape = f" in rows of {profile.seq_len:,}, from a vocabulary of {profile.vocab_size:,}" if profile.seq_len else ""
    place = f"The machine's profile is {profile.name}; text comes as tokens{shape}."
    if profile.budget_kind == "time":
        return f"{profile.budget:g} seconds of training on this machine. What makes a step slower costs steps. {place}"
    return (
        f"{profile.budget:.3g} units of work (about {profile.expected_seconds:.0f} s here). Counted are the FLOPs of a "
        "whole step, the optimizer's included, 16 for each byte that an operation reads or writes and 10 million for "
        f"calling it: about what it costs this CPU, however busy that is. What adds to it costs steps. {place}"
    )


def describe_standing(state: State) -> str:
    """Where the search stands: the mark to beat, what a run of it looks like, and the noise."""
    spread = noise.pool_variance(state)
    sigma = noise.compute_sigma(spread)
    if state.incumbent is None:
        return f"The baseline is still being measured.{_describe_first_runs(state)}"
    best, start = state.incumbent, next((result.val_bpb for result in state.results if result.experiment == 0), None)
    base = f"; the baseline had {start:.4f}" if start is not None and best.experiment else ""
    known, most = len(best.scores), thresholds.MAX_RUNS
    few = noise.t_critical(spread.dof) * sigma * sqrt(1 / thresholds.MIN_RUNS + 1 / known)
    many = noise.t_critical(spread.dof + 2 * most - known - 1) * sigma * sqrt(2 / most)
    return (
        f"The best is experiment {best.experiment} with val_bpb {best.score_to_beat:.4f}{base}. "
        f"A run of it: {describe_metrics(best.scores[-1].metrics)}. One run's σ over seeds is {sigma:.4f}. A gain of "
        f"{few:.4f} is kept after {thresholds.MIN_RUNS} seeds; a smaller one gets up to {most} seeds, and must then "
        f"reach about {many:.4f}. At no loss, {thresholds.SIMPLER_LINES} lines less are kept, too."
    )


def describe_metrics(measures: ev.RunMetrics) -> str:
    """A run in numbers, as far as they are known."""
    counts = (
        f"{measures.steps:,} optimizer steps" if measures.steps else "",
        f"{measures.parameters / 1e6:.1f}M parameters" if measures.parameters else "",
        f"{measures.memory_mb:,.0f} MB at the peak" if measures.memory_mb else "",
    )
    return ", ".join(count for count in counts if count) or "nothing was measured"


def describe_experiment(result: ExperimentResult, change: str) -> str:
    """All that is known of one experiment, for whoever looks it up."""
    proposal, post = result.proposal, result.postmortem
    parts = [
        _describe_result(result, long=True),
        f"Hypothesis: {proposal.hypothesis}",
        f"Rationale: {proposal.rationale}",
        f"Instructions: {proposal.instructions}",
        _list_scores(result.scores),
        f"Next, it was said: {post.next}" if post else "",
        f"The change:\n{clip(change, DIFF)}" if change else "",
    ]
    return "\n".join(part for part in parts if part)


def list_experiments(results: Sequence[ExperimentResult]) -> str:
    """A row for each finding, the latest ROWS of them."""
    rows = [_write_row(result) for result in results[-ROWS:]]
    head = [f"{len(results)} experiments" + (f", the last {ROWS}:" if len(results) > ROWS else ":")]
    return "\n".join([*head, "  # | family | change | verdict | Δval_bpb ± error", *rows])


# Sections


def _describe_money(state: State, limits: ev.SessionLimits) -> Iterator[str]:
    if limits.usd is not None:
        yield f"${max(0.0, limits.usd - state.usd):.2f} of ${limits.usd:g}"


def _list_constants(source: str) -> Iterator[str]:
    """The constants that may be turned, as train.py states them."""
    known = read_constants(source)
    for line in source.splitlines():
        if line.partition(" ")[0] in known:
            yield " ".join(line.split())


def _outline(source: str) -> Iterator[str]:
    """Where its functions and classes stand."""
    for node in ast.parse(source).body:
        match node:
            case ast.ClassDef(body=body):
                methods = [f"{part.name} {part.lineno}" for part in body if isinstance(part, ast.FunctionDef)]
                yield f"{node.lineno}–{node.end_lineno} {node.name}" + (f": {', '.join(methods)}" if methods else "")
            case ast.FunctionDef():
                yield f"{node.lineno}–{node.end_lineno} {node.name}()"
            case _:
                pass


def _describe_first_runs(state: State) -> str:
    """The baseline's runs so far: while they go on, a first proposal can already be made."""
    match state.open.get(0):
        case (Candidate() as baseline) | Training(baseline) if baseline.scores:
            return f" {_list_scores(baseline.scores)}"
        case _:
            return ""


def _list_scores(scores: Sequence[ev.Scored]) -> str:
    """The scores by seed, and what a run looked like."""
    if not scores:
        return ""
    values = ", ".join(f"{score.val_bpb:.4f}" for score in scores)
    return f"Seeds: {values}; a run of it: {describe_metrics(scores[-1].metrics)}."


def _describe_kept(result: ExperimentResult) -> str:
    verdict = result.verdict
    assert isinstance(verdict, ev.Kept)
    title = _shorten(result.proposal.title, 90)
    return f"#{result.experiment} {title}: {_format_delta(-verdict.gain)} to {verdict.mean:.4f}"


def _describe_result(result: ExperimentResult, *, long: bool = False) -> str:
    """A finding in full sentences."""
    proposal, post = result.proposal, result.postmortem
    knob = f", {_describe_settings(proposal)}" if proposal.settings else ""
    parts = [f"#{result.experiment} {_shorten(proposal.title, 90)} ({proposal.family}{_shorten(knob, 60)})."]
    parts.append(f"{_describe_outcome(result)} Expected {_format_delta(proposal.expected_delta)}.")
    if post:
        parts += [post.happened] * long
        parts += [f"Why: {post.why if long else _shorten(post.why, WHY)} Lesson: {_shorten(post.lesson, LESSON)}"]
    return " ".join(parts)


def _describe_settings(proposal: ev.Proposal) -> str:
    """Return which constants it sets: `MATRIX_LR up to 0.06`."""
    way = {"up": "up to", "down": "down to"}.get(proposal.direction or "", "=")
    return ", ".join(f"{name} {way} {value}" for name, value in proposal.settings.items())


def _describe_outcome(result: ExperimentResult) -> str:
    return _describe_verdict(result.verdict, result.scores, result.incumbent)


def _describe_verdict(
    verdict: ev.Verdict | ev.Refused | ev.Abandoned, scores: Sequence[ev.Scored], incumbent: int
) -> str:
    match verdict:
        case ev.Kept() | ev.Discarded():
            seeds = f"{len(scores)} seed{'s' * (len(scores) > 1)}"
            word = "Kept" if isinstance(verdict, ev.Kept) else "Discarded"
            return f"{word}: {_format_delta(-verdict.gain)} ± {verdict.error:.4f} over {seeds}, against #{incumbent}."
        case ev.Pruned(reason=reason):
            return f"Ended early: {quote(reason)}."
        case ev.Failed(reason=reason):
            return f"Crashed: {quote(reason)}."
        case refused:
            return f"{refused.kind.capitalize()}: {quote(refused.reason, 200)}."


def _summarize_families(results: Sequence[ExperimentResult]) -> Iterator[str]:
    """For each family: how often it was tried, what came of it, its best gain."""
    groups: dict[str, list[ExperimentResult]] = defaultdict(list)
    for result in results:
        groups[result.proposal.family].append(result)
    for family, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        gains = [f.verdict.gain for f in group if isinstance(f.verdict, ev.Kept | ev.Discarded)]
        kept = sum(isinstance(f.verdict, ev.Kept) for f in group)
        crashed = sum(f.status == "crashed" for f in group)
        best = _format_delta(-max(gains)) if gains else "–"
        yield f"{family}: tried {len(group)}, kept {kept}, crashed {crashed}, best {best}, last #{group[-1].experiment}"
    if groups and (untried := [family for family in get_args(ev.Family) if family not in groups]):
        yield f"never: {', '.join(untried)}"


def _list_near_misses(results: Sequence[ExperimentResult]) -> list[str]:
    """Discarded changes that looked like a gain, the most promising first."""
    ranked = [
        (verdict.gain / verdict.error, result)
        for result in results
        if isinstance(verdict := result.verdict, ev.Discarded)
        and verdict.error
        and verdict.gain > thresholds.NEAR_MISS * verdict.error
    ]
    ranked.sort(key=lambda entry: -entry[0])
    return [
        f"#{result.experiment} {_shorten(result.proposal.title, 80)}: {_describe_outcome(result)}"
        for _, result in ranked[:6]
    ][::-1]


def _write_in_flight_line(number: int, stage: Stage) -> str:
    title = _shorten(get_proposal(stage).title, 90)
    match stage:
        case Idea():
            return f"#{number} {title} is being implemented."
        case Candidate():
            return f"#{number} {title} waits for a slot."
        case Training():
            return f"#{number} {title} is training."
        case Broken():
            return f"#{number} {title} has crashed, and may be repaired."
        case Remeasuring():
            return f"#{number}, the best, is being measured on one more seed."
        case Decided(candidate, verdict, incumbent=against):
            return f"#{number} {title} was just judged. {_describe_verdict(verdict, candidate.scores, against)}"


def _list_lessons(results: Sequence[ExperimentResult]) -> list[str]:
    """Lessons older than what is told in full: those of keeps and clear refutations are worth most."""
    told = [(result, result.postmortem) for result in results if result.postmortem]
    worth = [(f, post) for f, post in told if post.verdict != "inconclusive"] or told
    return [f"#{result.experiment}: {_shorten(post.lesson, LESSON)}" for result, post in worth]


def _list_suggestions(results: Sequence[ExperimentResult]) -> list[str]:
    """What the last post-mortems would do next."""
    asked = [(result, result.postmortem) for result in results if result.postmortem]
    return [f"after #{result.experiment}: {post.next}" for result, post in asked[-SUGGESTIONS:]]


def _describe_stall(results: Sequence[ExperimentResult]) -> str:
    """A word when nothing has been kept for a while; empty otherwise."""
    since = 0
    for result in reversed(results):
        if isinstance(result.verdict, ev.Kept):
            break
        since += 1
    if since < thresholds.STALL:
        return ""
    tired = sorted({result.proposal.family for result in results[-thresholds.STALL :]})
    return f"Nothing was kept in the last {since} experiments, which were of the families {', '.join(tired)}."


# Words


def _write_row(result: ExperimentResult) -> str:
    verdict = result.verdict
    gain = (
        f"{_format_delta(-verdict.gain)} ± {verdict.error:.4f}" if isinstance(verdict, ev.Kept | ev.Discarded) else "–"
    )
    title = _shorten(result.proposal.title, 70)
    return f"{result.experiment:3} | {result.proposal.family} | {title} | {result.status} | {gain}"


def _format_delta(delta: float) -> str:
    """A change of val_bpb; negative is better."""
    return f"{delta + 0.0:+.4f}".replace("-", "−")


def _shorten(text: str, limit: int) -> str:
    words = " ".join(text.split())
    return words if len(words) <= limit else words[: limit - 1].rstrip() + "…"


def _fit_rows(rows: Iterable[str], section: str) -> str:
    """The latest rows that fit into the section's budget, and how many were left out."""
    every = [f"- {row}" for row in rows]
    kept: list[str] = []
    room = BUDGET[section] * CHARACTERS - 40
    for row in reversed(every):
        room -= len(row) + 1
        if room < 0:
            break
        kept.append(row)
    note = [f"- ({len(every) - len(kept)} earlier ones left out)"] if len(kept) < len(every) else []
    return "\n".join([*note, *reversed(kept)])
