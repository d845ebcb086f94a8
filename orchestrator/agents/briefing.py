"""Write the researcher's briefing: a pure rendering of the state, each section within its own budget of tokens.

So it is as long at experiment 1,000 as at experiment 20. Tokens are estimated at 3.5 characters each, since Claude's
tokenizer is not public.
"""

import ast
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import get_args

from orchestrator.core import events as ev
from orchestrator.core.description import count_seeds
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
from orchestrator.core.text import format_signed, shorten
from orchestrator.policy import noise, thresholds
from orchestrator.policy.judge import describe_rule
from orchestrator.policy.limits import estimate_run_seconds
from orchestrator.policy.novelty import describe_settings
from prepare.constants import list_declarations
from subagents.logs import quote

CHARACTERS = 3.5
"""Characters of one token, roughly."""
RECENT = 15
"""Experiments told in full sentences; of all the forms tried elsewhere, this one helped most."""
ROWS = 40
"""Rows of an answer from the ledger."""
SUGGESTIONS = 3
"""Post-mortems whose next experiment is passed on; older ones are out of date."""
NEAR_MISSES = 6
WHY, LESSON = 230, 260
"""Characters of an explanation and of a lesson; a lesson without its end would mislead."""
DIFF = 1_200
"""Tokens of the diff of an experiment that is looked up."""

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
"""Tokens of each section. Prompts, and those stored in sessions, know the sections by these names."""


def count_tokens(text: str) -> int:
    """Return roughly how many tokens a text is."""
    return round(len(text) / CHARACTERS)


def clip(text: str, budget: int) -> str:
    """Return the text, cut to a budget of tokens."""
    limit = int(budget * CHARACTERS)
    return text if len(text) <= limit else text[: limit - 12] + "\n… cut here"


def brief_researcher(
    state: State, first: int, count: int, source: str, suggestions: Sequence[str] = ()
) -> dict[str, str]:
    """Return the facts of the researcher's opening; `source` is the train.py that proposals start from."""
    not_run = [result for result in state.tried if isinstance(result.verdict, ev.Refused | ev.Abandoned)]
    judged = [result for result in state.tried if result not in not_run]
    return {
        "first": str(first),
        "count": str(count),
        "clock": describe_clock(state),
        "budget": describe_budget(state.session.profile),
        "standing": describe_standing(state),
        "constants": _fit_rows(list_declarations(source), "constants"),
        "outline": _fit_rows(_list_definitions(source), "outline"),
        "branch": _fit_rows(map(_describe_kept, state.kept), "branch"),
        "recent": _fit_rows((_describe_result(result) for result in judged[-RECENT:]), "recent"),
        "families": _fit_rows(_summarize_families(judged), "families"),
        "near_misses": _fit_rows(_list_near_misses(judged), "near_misses"),
        "refused": _fit_rows(map(_describe_result, not_run), "refused"),
        "in_flight": _fit_rows((_describe_stage(n, stage) for n, stage in state.open.items() if n > 0), "in_flight"),
        "lessons": _fit_rows(_list_lessons(judged[:-RECENT]), "lessons"),
        "wishes": _fit_rows(_list_suggestions(judged), "wishes"),
        "silence": quote(state.silence, 300) if state.unanswered else "",
        "stall": _describe_stall(judged),
        "guidance": clip(state.guidance.strip(), BUDGET["guidance"]),
        "suggestions": _fit_rows(suggestions, "suggestions"),
    }


def describe_clock(state: State) -> str:
    """Return the time and the money that are left."""
    limits, left = state.session.limits, max(0.0, state.deadline - state.now)
    runs = int(left / max(1.0, estimate_run_seconds(state))) * state.session.slots
    parts = [f"{left / 3600:.1f} of {limits.hours:g} hours, enough for about {runs} runs"]
    if limits.experiments is not None:
        parts.append(f"{max(0, limits.experiments - state.next + 1)} of {limits.experiments} experiments")
    if limits.usd is not None:
        parts.append(f"${max(0.0, limits.usd - state.usd):.2f} of ${limits.usd:g}")
    return f"Left are {'; '.join(parts)}."


def describe_budget(profile: ev.SessionProfile) -> str:
    """Return what every run gets, and where it runs."""
    shape = f" in rows of {profile.seq_len:,}, from a vocabulary of {profile.vocab_size:,}" if profile.seq_len else ""
    place = f"The machine's profile is {profile.name}; text comes as tokens{shape}."
    if profile.budget_kind == "time":
        return f"{profile.budget:g} seconds of training on this machine. Slower steps mean fewer steps. {place}"
    return (
        f"{profile.budget:.3g} units of work (about {profile.expected_seconds:.0f} s here): the FLOPs of a whole step, "
        "the optimizer's included, 16 units for each byte that an operation reads or writes and 10 million for each "
        f"call. That is about its cost on this CPU, whatever else runs. More work per step means fewer steps. {place}"
    )


def describe_standing(state: State) -> str:
    """Return the score to beat, the metrics of a run of the incumbent, and the noise."""
    sigma = noise.estimate_sigma(state)
    if state.incumbent is None:
        return f"The baseline is still being measured.{_describe_first_runs(state)}"
    best, start = state.incumbent, state.baseline_bpb
    base = f"; the baseline had {start:.4f}" if start is not None and best.experiment else ""
    return (
        f"The best is experiment {best.experiment} with val_bpb {best.score_to_beat:.4f}{base}. "
        f"A run of it: {describe_metrics(best.scores[-1].metrics)}. One run's σ over seeds is {sigma:.4f}. "
        f"{describe_rule(state)}"
    )


def describe_metrics(metrics: ev.RunMetrics) -> str:
    """Return the metrics of a run, as far as they are known."""
    counts = (
        f"{metrics.steps:,} optimizer steps" if metrics.steps else "",
        f"{metrics.parameters / 1e6:.1f}M parameters" if metrics.parameters else "",
        f"{metrics.memory_mb:,.0f} MB at the peak" if metrics.memory_mb else "",
    )
    return ", ".join(count for count in counts if count) or "nothing was measured"


def describe_experiment(result: ExperimentResult, change: str) -> str:
    """Return all that is known of one experiment; `change` is its diff."""
    proposal, post = result.proposal, result.postmortem
    parts = [
        _describe_result(result, long=True),
        f"Hypothesis: {proposal.hypothesis}",
        f"Rationale: {proposal.rationale}",
        f"Instructions: {proposal.instructions}",
        _list_scores(result.scores),
        f"The post-mortem's next experiment: {post.next}" if post else "",
        f"The change:\n{clip(change, DIFF)}" if change else "",
    ]
    return "\n".join(part for part in parts if part)


def list_experiments(results: Sequence[ExperimentResult]) -> str:
    """Return a row for each result, the latest ROWS of them."""
    rows = [_write_row(result) for result in results[-ROWS:]]
    head = [f"{len(results)} experiments" + (f", the last {ROWS}:" if len(results) > ROWS else ":")]
    return "\n".join([*head, "  # | family | change | verdict | Δval_bpb ± error", *rows])


# Sections


def _list_definitions(source: str) -> Iterator[str]:
    """Yield the lines of each function and class of a source."""
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
    """Return the baseline's scores so far: a first proposal can be made before all of them are there."""
    match state.open.get(0):
        case (Candidate() as baseline) | Training(baseline) if baseline.scores:
            return f" {_list_scores(baseline.scores)}"
        case _:
            return ""


def _list_scores(scores: Sequence[ev.Scored]) -> str:
    """Return the scores by seed, and the metrics of the last run."""
    if not scores:
        return ""
    values = ", ".join(f"{score.val_bpb:.4f}" for score in scores)
    return f"Seeds: {values}; a run of it: {describe_metrics(scores[-1].metrics)}."


def _describe_kept(result: ExperimentResult) -> str:
    verdict = result.verdict
    assert isinstance(verdict, ev.Kept)
    title = shorten(result.proposal.title, 90)
    return f"#{result.experiment} {title}: {format_signed(-verdict.gain)} to {verdict.mean:.4f}"


def _describe_result(result: ExperimentResult, *, long: bool = False) -> str:
    """Return an experiment in full sentences."""
    proposal, post = result.proposal, result.postmortem
    settings = f", {describe_settings(proposal)}" if proposal.settings else ""
    parts = [f"#{result.experiment} {shorten(proposal.title, 90)} ({proposal.family}{shorten(settings, 60)})."]
    parts.append(f"{_describe_outcome(result)} Expected {format_signed(proposal.expected_delta)}.")
    if post:
        parts += [post.happened] * long
        parts += [f"Why: {post.why if long else shorten(post.why, WHY)} Lesson: {shorten(post.lesson, LESSON)}"]
    return " ".join(parts)


def _describe_outcome(result: ExperimentResult) -> str:
    return _describe_verdict(result.verdict, result.scores, result.incumbent)


def _describe_verdict(
    verdict: ev.Verdict | ev.Refused | ev.Abandoned, scores: Sequence[ev.Scored], incumbent: int
) -> str:
    match verdict:
        case ev.Kept() | ev.Discarded():
            word = "Kept" if isinstance(verdict, ev.Kept) else "Discarded"
            seeds = count_seeds(scores)
            return f"{word}: {format_signed(-verdict.gain)} ± {verdict.error:.4f} over {seeds}, against #{incumbent}."
        case ev.Pruned(reason=reason):
            return f"Pruned: {quote(reason)}."
        case ev.Failed(reason=reason):
            return f"Crashed: {quote(reason)}."
        case refused:
            return f"{refused.kind.capitalize()}: {quote(refused.reason, 200)}."


def _summarize_families(results: Sequence[ExperimentResult]) -> Iterator[str]:
    """Yield for each family how often it was tried, kept and crashed, and its best gain."""
    groups: dict[str, list[ExperimentResult]] = defaultdict(list)
    for result in results:
        groups[result.proposal.family].append(result)
    for family, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        gains = [result.verdict.gain for result in group if isinstance(result.verdict, ev.Kept | ev.Discarded)]
        statuses = Counter(result.status for result in group)
        counts = ", ".join(f"{status} {statuses[status]}" for status in ("kept", "pruned", "crashed"))
        best = format_signed(-max(gains)) if gains else "–"
        yield f"{family}: tried {len(group)}, {counts}, best {best}, last #{group[-1].experiment}"
    if groups and (untried := [family for family in get_args(ev.Family) if family not in groups]):
        yield f"never: {', '.join(untried)}"


def _list_near_misses(results: Sequence[ExperimentResult]) -> list[str]:
    """Return discarded changes that looked like a gain, the most promising last."""
    ranked = [
        (verdict.gain / verdict.error, result)
        for result in results
        if isinstance(verdict := result.verdict, ev.Discarded)
        and verdict.error
        and verdict.gain > thresholds.NEAR_MISS * verdict.error
    ]
    ranked.sort(key=lambda entry: entry[0])
    return [
        f"#{result.experiment} {shorten(result.proposal.title, 80)}: {_describe_outcome(result)}"
        for _, result in ranked[-NEAR_MISSES:]
    ]


def _describe_stage(number: int, stage: Stage) -> str:
    """Return how far an open experiment has come."""
    title = shorten(get_proposal(stage).title, 90)
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
            return f"#{number}, the incumbent, is being measured on one more seed."
        case Decided(candidate, verdict, incumbent=incumbent):
            return f"#{number} {title} was just judged. {_describe_verdict(verdict, candidate.scores, incumbent)}"


def _list_lessons(results: Sequence[ExperimentResult]) -> list[str]:
    """Return the lessons of clear results, which are worth most; all lessons where no result is clear."""
    lessons = [(result.experiment, post) for result in results if (post := result.postmortem)]
    clear = [(number, post) for number, post in lessons if post.verdict != "inconclusive"]
    return [f"#{number}: {shorten(post.lesson, LESSON)}" for number, post in clear or lessons]


def _list_suggestions(results: Sequence[ExperimentResult]) -> list[str]:
    """Return what the last post-mortems would try next."""
    nexts = [f"after #{result.experiment}: {post.next}" for result in results if (post := result.postmortem)]
    return nexts[-SUGGESTIONS:]


def _describe_stall(results: Sequence[ExperimentResult]) -> str:
    """Return since when nothing has been kept, and in which families; empty where that is not long."""
    since = list(takewhile(lambda result: result.status != "kept", reversed(results)))
    if len(since) < thresholds.STALL:
        return ""
    families = sorted({result.proposal.family for result in since[: thresholds.STALL]})
    return f"Nothing was kept in the last {len(since)} experiments, the latest of the families {', '.join(families)}."


# Words


def _write_row(result: ExperimentResult) -> str:
    verdict = result.verdict
    gain = "–"
    if isinstance(verdict, ev.Kept | ev.Discarded):
        gain = f"{format_signed(-verdict.gain)} ± {verdict.error:.4f}"
    title = shorten(result.proposal.title, 70)
    return f"{result.experiment:3} | {result.proposal.family} | {title} | {result.status} | {gain}"


def _fit_rows(rows: Iterable[str], section: str) -> str:
    """Return the latest rows that fit into the section's budget, and how many were left out."""
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
