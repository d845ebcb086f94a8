"""Write the researcher's briefing: a pure rendering of the state, each section within its own budget of tokens.

So it is as long at experiment 1,000 as at experiment 20. Tokens are estimated at 3.5 characters each, since Claude's
tokenizer is not public.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, takewhile
from statistics import fmean
from typing import get_args

from orchestrator.core import events as ev
from orchestrator.core.description import count_seeds
from orchestrator.core.state import Broken, Candidate, Decided, Idea, Stage, State, Training, get_proposal
from orchestrator.core.text import flatten, format_count, format_signed, shorten
from orchestrator.policy import thresholds
from orchestrator.policy.judge import describe_rule
from orchestrator.policy.limits import estimate_run_seconds
from orchestrator.policy.noise import estimate_sigma
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
EXPLAINED = 4
"""Of these, the latest ones are told with their whole explanation: cut short, it would lack its conclusion."""
SOURCE = 7_000
"""Tokens of train.py; the rest of a longer one is read with a tool."""
UNTESTED = ("refused", "abandoned", "not tested")
"""Ends of experiments that say nothing of their hypotheses."""
UNDER_WAY: Mapping[type[Stage], str] = {
    Idea: "is being implemented",
    Candidate: "waits for a run",
    Training: "is training",
    Broken: "has crashed, and may be repaired",
}
DIFF = 1_200
"""Tokens of a diff."""
QUOTATION = 450
"""Characters of a reason: all that a mechanic may say of why something is impossible."""


def clip(text: str, budget: int) -> str:
    """Return the text, cut to a budget of tokens."""
    limit = int(budget * CHARACTERS)
    return text if len(text) <= limit else text[: limit - 12] + "\n… cut here"


def brief_researcher(
    state: State, first: int, count: int, source: str, suggestions: Sequence[str] = ()
) -> dict[str, str]:
    """Return the facts of the researcher's opening, each long one with its budget of tokens.

    `source` is the train.py that proposals start from. Prompts, and those stored in sessions, know the facts by these
    names.
    """
    shown = _count_fitting(source.splitlines(), SOURCE)
    judged = [result for result in state.judged if result.experiment > 0]
    untested = [result for result in judged if result.status in UNTESTED]
    tested = [result for result in judged if result.status not in UNTESTED]
    posts = [(result.experiment, post) for result in tested if (post := result.postmortem)]
    return {
        "first": str(first),
        "count": str(count),
        "clock": describe_clock(state),
        "budget": describe_budget(state.session.profile),
        "standing": describe_standing(state),
        "silence": _describe_setback(state),
        "stall": _describe_stall(tested),
        "guidance": clip(state.guidance.strip(), 900),
        "source": "\n".join(source.splitlines()[:shown]),
        "rest": str(shown + 1) if shown < len(source.splitlines()) else "",
        "constants": _fit_rows(list_declarations(source), 1300),
        "outline": "",  # prompts of older sessions ask for it
        "branch": _fit_rows((_write_line(result) for result in tested if result.status == "kept"), 500),
        "calibration": _describe_calibration(tested),
        "recent": _fit_rows(_list_recent(tested[-RECENT:]), 3750),
        "families": _fit_rows(_summarize_families(tested), 450),
        "near_misses": _fit_rows(_list_near_misses(tested), 450),
        "refused": _fit_rows(map(_write_line, untested), 600),
        "in_flight": _fit_rows(_list_under_way(state), 350),
        "lessons": _fit_rows(_list_lessons(tested[:-RECENT]), 1100),
        "wishes": _fit_rows((f"after #{number}: {post.next}" for number, post in posts[-SUGGESTIONS:]), 400),
        "suggestions": _fit_rows(suggestions, 450),
    }


def describe_clock(state: State) -> str:
    """Return the time and the money that are left."""
    limits, left = state.session.limits, max(0.0, state.deadline - state.now)
    runs = int(left / max(1.0, estimate_run_seconds(state))) * state.session.slots
    parts = [f"{left / 3600:.1f} of {limits.hours:g} hours, enough for about {runs} runs"]
    if limits.experiments is not None:
        parts.append(f"{max(0, limits.experiments - state.next + 1)} of {limits.experiments} experiments")
    if state.session.slots > 1:
        parts.append(f"{len(state.slots) - len(state.running)} of {len(state.slots)} slots are free now")
    if limits.usd is not None:
        parts.append(f"${max(0.0, limits.usd - state.usd):.2f} of ${limits.usd:g}")
    return f"Left: {'; '.join(parts)}."


def describe_budget(profile: ev.SessionProfile) -> str:
    """Return what every run gets, and where it runs."""
    shape = f" in rows of {profile.seq_len:,}, from a vocabulary of {profile.vocab_size:,}" if profile.seq_len else ""
    place = f"The machine's profile is {profile.name}; text comes as tokens{shape}."
    if profile.budget_kind == "time":
        return f"{profile.budget:g} seconds of training on this machine. Slower steps mean fewer steps. {place}"
    return (
        f"{profile.budget:.3g} units of work; a whole run takes about {profile.expected_seconds:.0f} s here. A FLOP of "
        "a step, the optimizer's included, is one unit, each byte that an operation reads or writes 16, and each call "
        "10 million: about what they cost on this CPU, whatever else runs on it. More work per step means fewer steps. "
        f"{place}"
    )


def describe_standing(state: State) -> str:
    """Return the score to beat, the metrics of a run of the incumbent, the noise, and what is kept."""
    if (best := state.incumbent) is None:
        match state.open.get(0):  # a first proposal can be made before all of the baseline's scores are there
            case Candidate(scores=scores) | Training(Candidate(scores=scores)):
                return f"The baseline is still being measured. {_list_scores(scores)}".strip()
            case _:
                return "The baseline is still being measured."
    start = state.baseline_bpb
    base = f"; the baseline had {start:.4f}" if start is not None and best.experiment else ""
    return (
        f"The best is experiment {best.experiment} with val_bpb {best.score_to_beat:.4f}{base}. A run of it: "
        f"{describe_metrics(best.scores[-1].metrics)}. One run's σ over seeds is {estimate_sigma(state):.4f}. "
        f"{describe_rule(state)}"
    )


def describe_metrics(metrics: ev.RunMetrics) -> str:
    """Return the metrics of a run, as far as they are known."""
    counts = (
        f"{metrics.steps:,} steps" if metrics.steps else "",
        f"{format_count(metrics.tokens)} training tokens" if metrics.tokens else "",
        f"{metrics.parameters / 1e6:.1f}M parameters" if metrics.parameters else "",
        f"{metrics.memory_mb:,.0f} MB" if metrics.memory_mb else "",
        f"{metrics.train_seconds:.1f} s of training" if metrics.train_seconds else "",
    )
    return ", ".join(count for count in counts if count) or "nothing was measured"


def describe_experiment(result: Decided, change: str) -> str:
    """Return all that is known of one experiment; `change` is its diff."""
    proposal, post, commit = result.proposal, result.postmortem, result.commit
    parts = [
        _describe_result(result),
        f"What happened: {post.happened}" if post else "",
        f"Hypothesis: {proposal.hypothesis}",
        f"Rationale: {proposal.rationale}",
        f"Instructions: {proposal.instructions}",
        f"The mechanic departed from them: {commit.deviations}" if commit and commit.deviations else "",
        _list_scores(result.scores),
        f"The post-mortem's next experiment: {post.next}" if post else "",
        f"The change:\n{clip(change, DIFF)}" if change else "",
    ]
    return "\n".join(part for part in parts if part)


def list_experiments(results: Sequence[Decided]) -> str:
    """Return a line for each result, the latest ROWS of them."""
    head = f"{len(results)} experiments" + f", the last {ROWS}; filter more narrowly for others" * (len(results) > ROWS)
    return "\n".join([f"{head}:", *map(_write_line, results[-ROWS:])])


# Sections


def _list_scores(scores: Sequence[ev.Scored]) -> str:
    """Return the scores by seed, and the metrics of the last run."""
    if not scores:
        return ""
    values = ", ".join(f"{score.val_bpb:.4f}" for score in scores)
    return f"Seeds: {values}; a run of it: {describe_metrics(scores[-1].metrics)}."


def _write_line(result: Decided) -> str:
    """Return an experiment and what came of it, on one line."""
    proposal = result.proposal
    settings = f", {describe_settings(proposal)}" if proposal.settings else ""
    kind = f"{proposal.family}{shorten(settings, 60)}"
    return f"#{result.experiment} {shorten(proposal.title, 90)} ({kind}). {_describe_outcome(result)}"


def _list_recent(results: Sequence[Decided]) -> Iterator[str]:
    """Yield each experiment in full sentences, the latest ones with their explanations."""
    for i, result in enumerate(results):
        yield _describe_result(result, explained=i >= len(results) - EXPLAINED)


def _describe_result(result: Decided, *, explained: bool = True) -> str:
    """Return an experiment in full sentences, with what its author expected and what was learned."""
    post = result.postmortem
    parts = [f"{_write_line(result)} Expected {format_signed(result.proposal.expected_delta)}."]
    if post and post.implemented != "no":
        parts += [f"Why: {flatten(post.why)}"] * explained
        parts += [f"Lesson: {flatten(post.lesson)}"]
    return " ".join(parts)


def _describe_outcome(result: Decided) -> str:
    if result.status == "not tested" and result.postmortem:
        return f"Not tested, because the edit did something else: {_quote_sentences(result.postmortem.happened)}."
    match result.verdict:
        case ev.Kept() | ev.Discarded() as verdict:
            change = f"{format_signed(-verdict.gain)} ± {verdict.error:.4f} to {verdict.mean:.4f}"
            runs = f"{count_seeds(result.scores)}, a run of {describe_metrics(result.scores[-1].metrics)}"
            return f"{result.status.capitalize()}: {change} over {runs}; against #{result.incumbent}."
        case verdict:
            run = None if isinstance(verdict, ev.Refused | ev.Abandoned) else result.last_run.metrics
            measured = f" It had {describe_metrics(run)}." if run and run.train_seconds else ""
            return f"{result.status.capitalize()}: {_quote_sentences(verdict.reason)}.{measured}"


def _describe_calibration(results: Sequence[Decided]) -> str:
    """Return how the researcher's latest guesses compare with what was measured; empty where there is none."""
    guesses = [
        (result.proposal.expected_delta, -result.verdict.gain)
        for result in results
        if result.proposal.author == "researcher" and isinstance(result.verdict, ev.Evidence)
    ][-RECENT:]
    if not guesses:
        return ""
    expected, measured = (format_signed(fmean(values)) for values in zip(*guesses, strict=True))
    right = sum(guess * found > 0 for guess, found in guesses)
    which = f"last {len(guesses)} guesses" if len(guesses) > 1 else "one guess so far"
    signs = f"{right} of {len(guesses)} had the right sign"
    return f"Your {which}: mean {expected} expected, {measured} measured; {signs}."


def _summarize_families(results: Sequence[Decided]) -> Iterator[str]:
    """Yield for each family how often it was tried, kept and crashed, and its best gain."""
    groups: dict[str, list[Decided]] = defaultdict(list)
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


def _list_near_misses(results: Sequence[Decided]) -> list[str]:
    """Return discarded changes that looked like a gain, the most promising last."""
    ranked = [
        (verdict.gain / verdict.error, _write_line(result))
        for result in results
        if isinstance(verdict := result.verdict, ev.Discarded)
        and verdict.error
        and verdict.gain > thresholds.NEAR_MISS * verdict.error
    ]
    return [line for _, line in sorted(ranked)[-NEAR_MISSES:]]


def _list_under_way(state: State) -> Iterator[str]:
    """Yield the experiments that wait for a verdict, and how far each has come."""
    for number, stage in state.open.items():
        if number and (progress := UNDER_WAY.get(type(stage))):
            yield f"#{number} {shorten(get_proposal(stage).title, 90)} {progress}."


def _list_lessons(results: Sequence[Decided]) -> list[str]:
    """Return the lessons of clear results, which are worth most; all lessons where no result is clear."""
    posts = [(result.experiment, post) for result in results if (post := result.postmortem)]
    lessons = [(number, post) for number, post in posts if post.implemented != "no"]
    clear = [(number, post) for number, post in lessons if post.verdict != "inconclusive"]
    return [f"#{number}: {flatten(post.lesson)}" for number, post in clear or lessons]


def _describe_stall(results: Sequence[Decided]) -> str:
    """Return since when nothing has been kept, and in which families; empty where that is not long."""
    since = list(takewhile(lambda result: result.status != "kept", reversed(results)))
    if len(since) < thresholds.STALL:
        return ""
    families = sorted({result.proposal.family for result in since[: thresholds.STALL]})
    return f"Nothing was kept in the last {len(since)} experiments, the latest of the families {', '.join(families)}."


def _describe_setback(state: State) -> str:
    """Return why the latest rounds led to no run; empty where the last one did."""
    if not state.fruitless:
        return ""
    rounds = "The last round" if state.fruitless == 1 else f"The last {state.fruitless} rounds"
    return f"{rounds} led to no run; the latest because of this: {_quote_sentences(state.setback)}"


# Words


def _quote_sentences(text: str) -> str:
    """Return a quotation that ends with a sentence, but without its full stop."""
    return quote(_keep_sentences(text, QUOTATION).rstrip("."), QUOTATION)


def _keep_sentences(text: str, limit: int) -> str:
    """Return as many whole sentences as fit; of a first one that is longer, its beginning."""
    line = flatten(text)
    end = line.rfind(". ", 0, limit)
    return line[: end + 1] if len(line) > limit and end > 0 else shorten(line, limit)


def _fit_rows(rows: Iterable[str], budget: int) -> str:
    """Return the latest rows that fit into a budget of tokens, and how many were left out."""
    every = [f"- {row}" for row in rows]
    left_out = len(every) - _count_fitting(every[::-1], budget, reserve=40)
    note = [f"- ({left_out} earlier ones left out)"] if left_out else []
    return "\n".join([*note, *every[left_out:]])


def _count_fitting(lines: Sequence[str], budget: int, reserve: int = 0) -> int:
    """Return how many of the lines, from the first on, fit into a budget of tokens less a few characters."""
    return sum(size <= budget * CHARACTERS - reserve for size in accumulate(len(line) + 1 for line in lines))
