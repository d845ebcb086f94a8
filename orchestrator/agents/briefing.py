"""Write the researcher's briefing: a pure rendering of the state, each section within its own budget of tokens.

It is as long at experiment 1,000 as at experiment 20.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from math import log
from statistics import fmean
from typing import get_args

from orchestrator.core import events as ev
from orchestrator.core.description import count_seeds
from orchestrator.core.state import UNTESTED, Broken, Candidate, Decided, Idea, Stage, State, Training
from orchestrator.core.task import Metric, Task
from orchestrator.core.text import flatten, format_count, shorten
from orchestrator.policy import thresholds
from orchestrator.policy.evidence import estimate_sigma
from orchestrator.policy.judge import describe_rule
from orchestrator.policy.limits import estimate_run_seconds
from orchestrator.policy.proposals import describe_settings
from prepare.constants import list_declarations
from subagents.logs import count_fitting, quote

CHARACTERS = 3.5
"""Characters of one token, roughly: Claude's tokenizer is not public."""
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
UNDER_WAY: Mapping[type[Stage], str] = {
    Idea: "is being implemented",
    Candidate: "waits for a run",
    Training: "is training",
    Broken: "has crashed, and may be repaired",
}
DIFF = 2_400
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
    shown = count_fitting(source.splitlines(), int(SOURCE * CHARACTERS), extra=1)
    judged = [result for result in state.judged if result.experiment > 0]
    untested = [result for result in judged if result.status in UNTESTED]
    tested = [result for result in judged if result.status not in UNTESTED]
    posts = [(result.experiment, post) for result in tested if (post := result.postmortem)]
    recent = [_describe_result(result, explained=False) for result in tested[-RECENT:-EXPLAINED]]
    recent += map(_describe_result, tested[-EXPLAINED:])
    return {
        "first": str(first),
        "count": str(count),
        "clock": describe_clock(state),
        "task": describe_task(state.session.task),
        "budget": describe_budget(state.session.profile),
        "program": clip(state.session.task.program.strip(), 1500),
        "standing": describe_standing(state),
        "silence": _describe_setback(state),
        "stall": _describe_stall(tested),
        "guidance": clip(state.guidance.strip(), 900),
        "source": "\n".join(source.splitlines()[:shown]),
        "rest": str(shown + 1) if shown < len(source.splitlines()) else "",
        "constants": _fit_rows(list_declarations(source), 1300),
        "outline": "",  # prompts of older sessions ask for it
        "branch": _fit_rows((_write_line(result, brief=True) for result in tested if result.status == "kept"), 500),
        "calibration": _describe_calibration(tested),
        "earlier": _fit_rows(_list_earlier(state.session.earlier, state.session.task.metric), 1000),
        "recent": _fit_rows(recent, 3750),
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


def describe_task(task: Task) -> str:
    """Return what a run is scored by."""
    if not task.is_reported:
        return "val_bpb, lower is better."
    return f"{task.describe()}. Candidates may change {', '.join(task.editable)}, and no other file."


def describe_budget(profile: ev.SessionProfile) -> str:
    """Return what every run gets, and where it runs."""
    if profile.name == "reported":
        return f"about {profile.budget:g} seconds on this machine, by the script's own clock."
    shape = f" in rows of {profile.seq_len:,}, from a vocabulary of {profile.vocab_size:,}" if profile.seq_len else ""
    place = f"The machine's profile is {profile.name}; text comes as tokens{shape}."
    if profile.bytes_per_token:
        place += (
            f" The training text has {format_count(profile.train_tokens)} tokens. A token of the validation text has "
            f"{(size := profile.bytes_per_token):.2f} bytes: 1 nat per token is {1 / log(2) / size:.3f} bits per byte."
        )
    if profile.budget_kind == "time":
        return f"{profile.budget:g} seconds of training on this machine. Slower steps mean fewer steps. {place}"
    return (
        f"{profile.budget:.3g} units of work. A FLOP of a step, the optimizer's included, is one unit, each byte that "
        "an operation reads or writes 16, and each call 10 million: about what they cost on this CPU, whatever else "
        f"runs on it. More work per step means fewer steps. {place}"
    )


def describe_standing(state: State) -> str:
    """Return the score to beat, the metrics of a run of the incumbent, the noise, and what is kept."""
    task, metric = state.session.task, state.session.task.metric
    noise = f"One run's σ over {task.noun}s is {metric.format_size(estimate_sigma(state))}. {describe_rule(state)}"
    if (best := state.incumbent) is None:
        match state.open.get(0):  # a first proposal can be made before all of the baseline's scores are there
            case Candidate(scores=scores) | Training(Candidate(scores=scores)):
                return f"The baseline is still being measured. {_list_scores(scores, task)} {noise}"
            case _:
                return f"The baseline is still being measured. {noise}"
    start, mean = state.baseline_bpb, fmean(score.val_bpb for score in best.scores)
    base = f"; the baseline had {metric.format_score(start)}" if start is not None and best.experiment else ""
    expected, ran = metric.format_score(best.score_to_beat), count_seeds(best.scores, task.noun)
    luck = f"On other {task.noun}s expect {expected} of it: a winner has usually been lucky. " * bool(base)
    return (
        f"The best is experiment {best.experiment} with {metric.name} {metric.format_score(mean)} over {ran}{base}. "
        f"{luck}A run of it: {describe_metrics(best.scores[-1].metrics)}. {noise}"
    )


def describe_metrics(metrics: ev.RunMetrics) -> str:
    """Return the metrics of a run, as far as they are known."""
    counts = (
        f"{metrics.steps:,} steps" if metrics.steps else "",
        f"{format_count(metrics.tokens)} training tokens" if metrics.tokens else "",
        f"{metrics.parameters / 1e6:.1f}M parameters" if metrics.parameters else "",
        f"{metrics.memory_mb:,.0f} MB" if metrics.memory_mb else "",
    )
    return ", ".join(count for count in counts if count) or "nothing was measured"


def describe_experiment(result: Decided, change: str) -> str:
    """Return all that is known of one experiment; `change` is its diff."""
    proposal, post, commit = result.proposal, result.postmortem, result.commit
    parts = [
        _describe_result(result),
        f"What happened: {post.happened}" if post and post.implemented != "partly" else "",
        f"Hypothesis: {proposal.hypothesis}",
        f"Rationale: {proposal.rationale}",
        f"Instructions: {proposal.instructions}",
        f"The mechanic departed from them: {commit.deviations}" if commit and commit.deviations else "",
        _list_scores(result.scores, result.task),
        f"The post-mortem's next experiment: {post.next}" if post else "",
        f"The change:\n{clip(change, DIFF)}" if change else "",
    ]
    return "\n".join(part for part in parts if part)


def list_experiments(results: Sequence[Decided]) -> str:
    """Return a line for each result, the latest ROWS of them."""
    head = f"{len(results)} experiments" + f", the last {ROWS}; filter more narrowly for others" * (len(results) > ROWS)
    return "\n".join([f"{head}:", *map(_write_line, results[-ROWS:])])


# Sections


def _list_scores(scores: Sequence[ev.Scored], task: Task) -> str:
    """Return the scores by seed, the metrics of the last run, and the other numbers that it reported."""
    if not scores:
        return ""
    values = ", ".join(task.metric.format_score(score.val_bpb) for score in scores)
    others = "".join(f" {shorten(name, 40)} {number:g}." for name, number in scores[-1].reported.items())
    return f"{task.noun.capitalize()}s: {values}; a run of it: {describe_metrics(scores[-1].metrics)}.{others}"


def _write_line(result: Decided, *, brief: bool = False) -> str:
    """Return an experiment and what came of it, on one line; in brief, without the metrics of a run."""
    proposal = result.proposal
    settings = f", {describe_settings(proposal)}" if proposal.settings else ""
    kind = f"{proposal.family}{shorten(settings, 60)}"
    partly = " Implemented only in part." if result.postmortem and result.postmortem.implemented == "partly" else ""
    return f"#{result.experiment} {shorten(proposal.title, 90)} ({kind}). {_describe_outcome(result, brief)}{partly}"


def _describe_result(result: Decided, *, explained: bool = True) -> str:
    """Return an experiment in full sentences, with what its author expected and what was learned."""
    post = result.postmortem
    parts = [f"{_write_line(result)} Expected {result.task.metric.format_change(result.proposal.expected_delta)}."]
    if not post:
        parts += ["No post-mortem so far."]
    elif post.implemented != "no":
        parts += [f"What happened: {flatten(post.happened)}"] * (post.implemented == "partly")
        parts += [f"Why: {flatten(post.why)}"] * explained
        parts += [f"Lesson: {flatten(post.lesson)}"]
    return " ".join(parts)


def _describe_outcome(result: Decided, brief: bool) -> str:
    if result.status == "not tested" and result.postmortem:
        return f"Not tested, because the edit did something else: {_quote_sentences(result.postmortem.happened)}."
    match result.verdict:
        case ev.Kept() | ev.Discarded() as verdict:
            metric, error = result.task.metric, result.task.metric.format_size(verdict.error)
            change = f"{metric.format_change(-verdict.gain)} ± {error} to {metric.format_score(verdict.mean)}"
            ran, last = count_seeds(result.scores, result.task.noun), describe_metrics(result.scores[-1].metrics)
            ran += f", a run of {last}" * (not brief)
            return f"{result.status.capitalize()}: {change} over {ran}; against #{result.incumbent}."
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
    expected, measured = (results[0].task.metric.format_change(fmean(v)) for v in zip(*guesses, strict=True))
    right = sum(guess * found > 0 for guess, found in guesses)
    which = f"last {len(guesses)} guesses: mean" if len(guesses) > 1 else "one guess so far:"
    signs = f"{right} of {len(guesses)} had the right sign"
    return f"Your {which} {expected} expected, {measured} measured; {signs}."


def _summarize_families(results: Sequence[Decided]) -> Iterator[str]:
    """Yield for each family how often it was tried, kept and crashed, and its best gain."""
    counted = Counter[str](result.proposal.family for result in results)
    for family, count in counted.most_common():
        group = [result for result in results if result.proposal.family == family]
        gains = [result.verdict.gain for result in group if isinstance(result.verdict, ev.Kept | ev.Discarded)]
        statuses = Counter(result.status for result in group)
        counts = ", ".join(f"{status} {statuses[status]}" for status in ("kept", "pruned", "crashed"))
        best = group[0].task.metric.format_change(-max(gains)) if gains else "–"
        yield f"{family}: tried {count}, {counts}, best {best}, last #{group[-1].experiment}"
    if counted and (untried := [family for family in get_args(ev.Family) if family not in counted]):
        yield f"never: {', '.join(untried)}"


def _list_near_misses(results: Sequence[Decided]) -> list[str]:
    """Return discarded changes that looked like a gain, the most promising last."""
    ranked = [
        (verdict.gain / verdict.error, _write_line(result, brief=True))
        for result in results
        if isinstance(verdict := result.verdict, ev.Discarded)
        and verdict.error
        and verdict.gain > thresholds.NEAR_MISS * verdict.error
    ]
    return [line for _, line in sorted(ranked)[-NEAR_MISSES:]]


def _list_earlier(results: Sequence[ev.EarlierResult], metric: Metric) -> Iterator[str]:
    """Yield what earlier sessions found: what did best there last, since the end of a long list is what is shown."""
    for past in sorted(results, key=lambda past: (past.status == "kept", past.gain or 0.0, past.experiment)):
        steps = "".join(f", {name} {past.before[name]} → {value}" for name, value in past.changes.items())
        change = "" if past.gain is None else f", {metric.format_change(-past.gain)} ± {metric.format_size(past.error)}"
        what = f"{shorten(past.title, 90)} ({past.family}{steps})"
        yield f"{past.session}: {what}: {past.status}{change}. {flatten(past.lesson)}".strip()


def _list_under_way(state: State) -> Iterator[str]:
    """Yield the experiments that wait for a verdict, and how far each has come."""
    for number, stage in state.open.items():
        if number and (progress := UNDER_WAY.get(type(stage))):
            yield f"#{number} {shorten(stage.proposal.title, 90)} {progress}."


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
    rounds, latest = ("round", "") if state.fruitless == 1 else (f"{state.fruitless} rounds", "; the latest")
    return f"The last {rounds} led to no run{latest} because of this: {_quote_sentences(state.setback)}"


# Words


def _quote_sentences(text: str) -> str:
    """Return a quotation of as many whole sentences as fit, without the last full stop; of a longer one, a part."""
    line = flatten(text)
    end = line.rfind(". ", 0, QUOTATION) if len(line) > QUOTATION else -1
    return quote((line[:end] if end > 0 else shorten(line, QUOTATION)).rstrip("."), QUOTATION)


def _fit_rows(rows: Iterable[str], budget: int) -> str:
    """Return the latest rows that fit into a budget of tokens, and how many were left out."""
    every = [f"- {row}" for row in rows]
    left_out = len(every) - count_fitting(every[::-1], int(budget * CHARACTERS) - 40, extra=1)
    note = [f"- ({left_out} earlier ones left out)"] if left_out else []
    return "\n".join([*note, *every[left_out:]])
