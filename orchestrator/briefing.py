"""What the researcher is told: a pure rendering of the state, each section within its own budget of tokens.

So the briefing at experiment 1,000 is as long as at experiment 20. Tokens are estimated at 3.5 characters each, since
Claude's tokenizer is not public.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import sqrt
from typing import get_args

from orchestrator import policy
from orchestrator.constants import read
from orchestrator.events import (
    Abandoned,
    Discarded,
    Failed,
    Family,
    Kept,
    Knob,
    Limits,
    Measures,
    Profile,
    Refused,
    Scored,
    Verdict,
)
from orchestrator.state import (
    Broken,
    Candidate,
    Decided,
    Finding,
    Idea,
    Remeasuring,
    Stage,
    State,
    Training,
    proposal_of,
)
from subagents.logs import quoted

CHARACTERS = 3.5
"""Of one token, roughly."""
RECENT = 15
"""Experiments told in full sentences. Full sentences for the last ones help most of all that was tried elsewhere."""
ROWS = 40
"""Of an answer from the ledger."""
WISHES = 3
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


def tokens(text: str) -> int:
    """How many tokens a text is, roughly."""
    return round(len(text) / CHARACTERS)


def clipped(text: str, budget: int) -> str:
    """The beginning of a text, in so many tokens."""
    limit = int(budget * CHARACTERS)
    return text if len(text) <= limit else text[: limit - 12] + "\n… cut here"


def researcher(state: State, first: int, count: int, source: str, suggestions: Sequence[str] = ()) -> dict[str, str]:
    """The facts of the researcher's opening; `source` is the train.py that proposals start from."""
    done = [finding for finding in state.findings if finding.experiment > 0]
    judged = [finding for finding in done if isinstance(finding.verdict, Kept | Discarded | Failed)]
    unrun = [finding for finding in done if isinstance(finding.verdict, Refused | Abandoned)]
    return {
        "first": str(first),
        "count": str(count),
        "clock": clock(state),
        "budget": budget(state.session.profile),
        "standing": standing(state),
        "constants": _fit(_constants(source), "constants"),
        "outline": _fit(_outline(source), "outline"),
        "branch": _fit(map(_kept, state.kept), "branch"),
        "recent": _fit((_told(finding) for finding in judged[-RECENT:]), "recent"),
        "families": _fit(_families(judged), "families"),
        "near_misses": _fit(_near_misses(judged), "near_misses"),
        "refused": _fit(map(_told, unrun), "refused"),
        "in_flight": _fit((_flying(n, stage) for n, stage in state.open.items() if n > 0), "in_flight"),
        "lessons": _fit(_lessons(judged[:-RECENT]), "lessons"),
        "wishes": _fit(_wishes(judged), "wishes"),
        "silence": quoted(state.silence, 300) if state.unanswered else "",
        "stall": _stall(judged),
        "guidance": clipped(state.guidance.strip(), BUDGET["guidance"]),
        "suggestions": _fit(suggestions, "suggestions"),
    }


def clock(state: State) -> str:
    """Time and money left."""
    limits, left = state.session.limits, max(0.0, state.deadline - state.now)
    runs = int(left / max(1.0, policy.expected_seconds(state))) * state.session.slots
    parts = [f"{left / 3600:.1f} of {limits.hours:g} hours, enough for about {runs} runs"]
    if limits.experiments is not None:
        parts.append(f"{max(0, limits.experiments - state.next + 1)} of {limits.experiments} experiments")
    parts += _money(state, limits)
    return f"Left are {'; '.join(parts)}."


def budget(profile: Profile) -> str:
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


def standing(state: State) -> str:
    """Where the search stands: the mark to beat, what a run of it looks like, and the noise."""
    spread = policy.noise(state)
    sigma = policy.sigma(spread)
    if state.best is None:
        return f"The baseline is still being measured.{_first_runs(state)}"
    start = next((finding.val_bpb for finding in state.findings if finding.experiment == 0), None)
    base = f"; the baseline had {start:.4f}" if start is not None and state.best.experiment else ""
    known, most = len(state.best.scores), policy.MAX_RUNS
    few = policy.sure(spread.freedom) * sigma * sqrt(1 / policy.MIN_RUNS + 1 / known)
    many = policy.sure(spread.freedom + 2 * most - known - 1) * sigma * sqrt(2 / most)
    return (
        f"The best is experiment {state.best.experiment} with val_bpb {state.best.mark:.4f}{base}. "
        f"A run of it: {measured(state.best.scores[-1].measures)}. One run's σ over seeds is {sigma:.4f}. A gain of "
        f"{few:.4f} is kept after {policy.MIN_RUNS} seeds; a smaller one gets up to {most} seeds, and must then reach "
        f"about {many:.4f}. At no loss, {policy.SIMPLER_LINES} lines less are kept, too."
    )


def measured(measures: Measures) -> str:
    """A run in numbers, as far as they are known."""
    counts = (
        f"{measures.steps:,} optimizer steps" if measures.steps else "",
        f"{measures.parameters / 1e6:.1f}M parameters" if measures.parameters else "",
        f"{measures.memory_mb:,.0f} MB at the peak" if measures.memory_mb else "",
    )
    return ", ".join(count for count in counts if count) or "nothing was measured"


def experiment(finding: Finding, change: str) -> str:
    """All that is known of one experiment, for whoever looks it up."""
    proposal, post = finding.proposal, finding.postmortem
    parts = [
        _told(finding, long=True),
        f"Hypothesis: {proposal.hypothesis}",
        f"Rationale: {proposal.rationale}",
        f"Instructions: {proposal.instructions}",
        _seeds(finding.scores),
        f"Next, it was said: {post.next}" if post else "",
        f"The change:\n{clipped(change, DIFF)}" if change else "",
    ]
    return "\n".join(part for part in parts if part)


def ledger(findings: Sequence[Finding]) -> str:
    """A row for each finding, the latest ROWS of them."""
    rows = [_row(finding) for finding in findings[-ROWS:]]
    head = [f"{len(findings)} experiments" + (f", the last {ROWS}:" if len(findings) > ROWS else ":")]
    return "\n".join([*head, "  # | family | change | verdict | Δval_bpb ± error", *rows])


def verdict_name(finding: Finding) -> str:
    """kept, discarded, hopeless, crashed, refused or abandoned."""
    match finding.verdict:
        case Failed(failure=failure):
            return "hopeless" if failure == "hopeless" else "crashed"
        case verdict:
            return verdict.kind


# Sections


def _money(state: State, limits: Limits) -> Iterator[str]:
    if limits.usd is not None:
        yield f"${max(0.0, limits.usd - state.usd):.2f} of ${limits.usd:g}"


def _constants(source: str) -> Iterator[str]:
    """The constants that may be turned, as train.py states them."""
    known = read(source)
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


def _first_runs(state: State) -> str:
    """The baseline's runs so far: while they go on, a first proposal can already be made."""
    match state.open.get(0):
        case (Candidate() as baseline) | Training(baseline) if baseline.scores:
            return f" {_seeds(baseline.scores)}"
        case _:
            return ""


def _seeds(scores: Sequence[Scored]) -> str:
    """The scores by seed, and what a run looked like."""
    if not scores:
        return ""
    values = ", ".join(f"{score.val_bpb:.4f}" for score in scores)
    return f"Seeds: {values}; a run of it: {measured(scores[-1].measures)}."


def _kept(finding: Finding) -> str:
    verdict = finding.verdict
    assert isinstance(verdict, Kept)
    return f"#{finding.experiment} {_short(finding.proposal.title, 90)}: {_signed(-verdict.gain)} to {verdict.mean:.4f}"


def _told(finding: Finding, *, long: bool = False) -> str:
    """A finding in full sentences."""
    proposal, post = finding.proposal, finding.postmortem
    knob = f", {_turned(proposal.knob)}" if proposal.knob else ""
    parts = [f"#{finding.experiment} {_short(proposal.title, 90)} ({proposal.family}{_short(knob, 60)})."]
    parts.append(f"{_outcome(finding)} Expected {_signed(proposal.expected_delta)}.")
    if post:
        parts += [post.happened] * long
        parts += [f"Why: {post.why if long else _short(post.why, WHY)} Lesson: {_short(post.lesson, LESSON)}"]
    return " ".join(parts)


def _turned(knob: Knob) -> str:
    """What was turned which way: `MATRIX_LR up to 0.06`."""
    way = {"up": "up to", "down": "down to", "set": "="}[knob.direction]
    return f"{knob.parameter} {way} {knob.value}" if knob.value else f"{knob.parameter} {knob.direction}"


def _outcome(finding: Finding) -> str:
    return _result(finding.verdict, finding.scores, finding.against)


def _result(verdict: Verdict | Refused | Abandoned, scores: Sequence[Scored], against: int) -> str:
    match verdict:
        case Kept() | Discarded():
            seeds = f"{len(scores)} seed{'s' * (len(scores) > 1)}"
            word = "Kept" if isinstance(verdict, Kept) else "Discarded"
            return f"{word}: {_signed(-verdict.gain)} ± {verdict.error:.4f} over {seeds}, against #{against}."
        case Failed(reason=reason, failure="hopeless"):
            return f"Ended early: {quoted(reason)}."
        case Failed(reason=reason):
            return f"Crashed: {quoted(reason)}."
        case refused:
            return f"{refused.kind.capitalize()}: {quoted(refused.reason, 200)}."


def _families(findings: Sequence[Finding]) -> Iterator[str]:
    """For each family: how often it was tried, what came of it, its best gain."""
    groups: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.proposal.family].append(finding)
    for family, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        gains = [f.verdict.gain for f in group if isinstance(f.verdict, Kept | Discarded)]
        kept = sum(isinstance(f.verdict, Kept) for f in group)
        crashed = sum(verdict_name(f) == "crashed" for f in group)
        best = _signed(-max(gains)) if gains else "–"
        yield f"{family}: tried {len(group)}, kept {kept}, crashed {crashed}, best {best}, last #{group[-1].experiment}"
    if groups and (untried := [family for family in get_args(Family) if family not in groups]):
        yield f"never: {', '.join(untried)}"


def _near_misses(findings: Sequence[Finding]) -> list[str]:
    """Discarded changes that looked like a gain, the most promising first."""
    ranked = [
        (verdict.gain / verdict.error, finding)
        for finding in findings
        if isinstance(verdict := finding.verdict, Discarded)
        and verdict.error
        and verdict.gain > policy.NEAR * verdict.error
    ]
    ranked.sort(key=lambda entry: -entry[0])
    return [
        f"#{finding.experiment} {_short(finding.proposal.title, 80)}: {_outcome(finding)}" for _, finding in ranked[:6]
    ][::-1]


def _flying(number: int, stage: Stage) -> str:
    title = _short(proposal_of(stage).title, 90)
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
        case Decided(candidate, verdict, against=against):
            return f"#{number} {title} was just judged. {_result(verdict, candidate.scores, against)}"


def _lessons(findings: Sequence[Finding]) -> list[str]:
    """Lessons older than what is told in full: those of keeps and clear refutations are worth most."""
    told = [(finding, finding.postmortem) for finding in findings if finding.postmortem]
    worth = [(f, post) for f, post in told if post.verdict != "inconclusive"] or told
    return [f"#{finding.experiment}: {_short(post.lesson, LESSON)}" for finding, post in worth]


def _wishes(findings: Sequence[Finding]) -> list[str]:
    """What the last post-mortems would do next."""
    asked = [(finding, finding.postmortem) for finding in findings if finding.postmortem]
    return [f"after #{finding.experiment}: {post.next}" for finding, post in asked[-WISHES:]]


def _stall(findings: Sequence[Finding]) -> str:
    """A word when nothing has been kept for a while; empty otherwise."""
    since = 0
    for finding in reversed(findings):
        if isinstance(finding.verdict, Kept):
            break
        since += 1
    if since < policy.STALL:
        return ""
    tired = sorted({finding.proposal.family for finding in findings[-policy.STALL :]})
    return f"Nothing was kept in the last {since} experiments, which were of the families {', '.join(tired)}."


# Words


def _row(finding: Finding) -> str:
    verdict = finding.verdict
    gain = f"{_signed(-verdict.gain)} ± {verdict.error:.4f}" if isinstance(verdict, Kept | Discarded) else "–"
    title = _short(finding.proposal.title, 70)
    return f"{finding.experiment:3} | {finding.proposal.family} | {title} | {verdict_name(finding)} | {gain}"


def _signed(delta: float) -> str:
    """A change of val_bpb; negative is better."""
    return f"{delta + 0.0:+.4f}".replace("-", "−")


def _short(text: str, limit: int) -> str:
    words = " ".join(text.split())
    return words if len(words) <= limit else words[: limit - 1].rstrip() + "…"


def _fit(rows: Iterable[str], section: str) -> str:
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
