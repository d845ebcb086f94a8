"""Select and cut the facts of the researcher's briefing; `templates/briefing.txt` puts them into words.

It is pure, and as long at experiment 1,000 as at experiment 20: each section has its own budget of tokens.

What is settled comes first and only grows at its end, since a model reads the same beginning at a tenth of the price
(docs/decisions/0044). What may still change comes last.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import starmap
from operator import itemgetter
from statistics import fmean
from typing import get_args

from orchestrator.core import events as ev
from orchestrator.core.description import average_recent_loss, average_telemetry
from orchestrator.core.source import diff
from orchestrator.core.state import UNTESTED, Candidate, Decided, State, Training
from orchestrator.core.templates import Macros, load_templates
from orchestrator.core.text import flatten, shorten
from orchestrator.policy import thresholds
from orchestrator.policy.evidence import estimate_sigma
from orchestrator.policy.judge import describe_rule
from orchestrator.policy.limits import estimate_run_seconds, find_stall
from orchestrator.policy.proposals import describe_settings
from prepare.constants import list_declarations
from subagents.agent import CACHE
from subagents.logs import count_fitting, fence, quote

CHARACTERS = 3.5  # characters of one token, roughly: Claude's tokenizer is not public
GUESSES = 15  # guesses of the researcher that are compared with what was measured
EXPLAINED = 3  # latest post-mortems whose whole explanation is told: cut short, it would lack its conclusion
ROWS = 40  # rows of an answer from the ledger
SUGGESTIONS = 1  # latest post-mortems whose next experiment is passed on: older ones were before
NEAR_MISSES = 6
SOURCE = 7_000  # tokens of train.py; the rest of a longer one is read with a tool
DIFF = 2_400  # tokens of a diff
CHANGES = 1_500  # tokens of kept changes beside an older train.py; with more, a newer one is shown
TABLE, BLOCK, BLOCKS = 1_400, 5, 8
"""Tokens of the table of settled experiments, how many rows at a time leave it at its beginning, and most of these."""
PART = f"\n{CACHE}\n"
NOTEBOOK, DRAFTS = 1_100, 250  # tokens of the notebook, and of the drafts that came after it
BEFORE = {"branch": "included", "lessons": "older_lessons", "recent": "table"}
"""Facts that prompts of older sessions ask for, by the names of what stands in their place today."""
DECLARED = 200  # characters of a constant
QUOTATION = 450  # characters of a reason: all that a mechanic may say of why something is impossible


def clip(text: str, budget: int) -> str:
    """Return the text, cut to a budget of tokens."""
    limit = int(budget * CHARACTERS)
    return text if len(text) <= limit else text[: limit - 12] + "\n… cut here"


def quote_sentences(text: str) -> str:
    """Return a quotation of as many whole sentences as fit, without the last full stop; of a longer one, a part."""
    line = flatten(text)
    end = line.rfind(". ", 0, QUOTATION) if len(line) > QUOTATION else -1
    return quote((line[:end] if end > 0 else shorten(line, QUOTATION)).rstrip("."), QUOTATION)


TEMPLATES = load_templates(
    "orchestrator.agents",
    mean=fmean,
    quote=quote,
    fence=fence,
    sentences=quote_sentences,
    settings=describe_settings,
    recent_loss=average_recent_loss,
    telemetry=average_telemetry,
)
WORDS = Macros(TEMPLATES, "briefing.txt")


def brief_researcher(
    state: State, first: int, count: int, source: str, suggestions: Sequence[str] = ()
) -> dict[str, str]:
    """Return the facts of the researcher's opening, each long one with its budget of tokens.

    `source` is the train.py that proposals start from. Prompts, and those stored in sessions, know the facts by these
    names.
    """
    task, scores, lines = state.session.task, _list_scores(state), source.splitlines()
    known = state.tried if state.notebook else ()  # consolidated in part, or read by the notebook's author
    seen, read = ({result.experiment for result in known[:end]} for end in (_count_consolidated(state), state.noted))
    shown = count_fitting(lines, int(SOURCE * CHARACTERS), extra=1)
    declared = [shorten(row, DECLARED) for row in list_declarations(source)]
    visible = {line.partition(" ")[0] for line in lines[:shown]}
    settled = _tell_settled(state, {})
    tested = [result for result in state.judged if result.experiment > 0 and result.status not in UNTESTED]
    earlier = sorted(state.session.earlier, key=lambda past: (past.status == "kept", abs(past.gain or 0.0)))
    stalled, explained = find_stall(tested), [result for result in tested if result.postmortem][-EXPLAINED:]
    news = [result for result in explained if result.experiment not in read] or explained[-1:]  # at least the last
    measured = [result for result in tested if isinstance(result.verdict, ev.Evidence)]
    guessed = [result for result in measured if result.proposal.author == "researcher"][-GUESSES:]
    under_way = [(n, stage) for n, stage in state.open.items() if n and not isinstance(stage, Decided)]
    return {
        "first": str(first),
        "count": str(count),
        "night": state.session.name,
        "clock": WORDS.clock(state, estimate_run_seconds(state)),
        "task": WORDS.task(task),
        "budget": WORDS.budget(state.session.profile),
        "program": task.program.strip(),
        "standing": WORDS.standing(state, estimate_sigma(state), describe_rule(state), scores),
        "step": WORDS.cost(scores[0].telemetry, state.session.profile.budget, scores[0].metrics) if scores else "",
        "silence": WORDS.silence(state.fruitless, state.setback) if state.fruitless else "",
        "stall": WORDS.stall(stalled, thresholds.STALL) if stalled else "",
        "guidance": state.guidance.strip(),
        "source": "\n".join(lines[:shown]),
        "base": source,
        "rest": str(shown + 1) if shown < len(lines) else "",
        "constants": _fit_rows(declared, 1300),
        "beyond": _fit_rows((row for row in declared if row.partition(" ")[0] not in visible), 1300),
        "calibration": WORDS.calibration(guessed) if guessed else "",
        "earlier": _fit_rows((WORDS.earlier(past, task.metric, thresholds.CLEAR) for past in earlier), 800),
        "near_misses": _fit_rows(_list_near_misses([r for r in tested if r.experiment not in seen]), 450),
        "families": _fit_rows(_summarize_families(state, tested), 450),
        "in_flight": _fit_rows(starmap(WORDS.under_way, under_way), 350),
        "notebook": describe_notebook(state),
        "read": f"#{state.tried[state.noted - 1].experiment}" if state.noted else "",
        "wishes": _fit_rows((WORDS.quoted(result, "next") for result in news[-SUGGESTIONS:]), 400),
        "suggestions": _fit_rows(suggestions, 350),
        "pending": _fit_rows((WORDS.recent(r, beside=True) for r in tested if r.experiment in state.open), 900),
        "reasons": _fit_rows((WORDS.quoted(result, "why") for result in news), 1_100),
        **settled,
        **{name: settled[today] for name, today in BEFORE.items()},
        **dict.fromkeys(("outline", "refused"), ""),
    }


def _tell_settled(state: State, changes: Mapping[int, str]) -> dict[str, str]:
    """Return a table that only grows, what was learned before it, and the kept changes, by experiment, around it.

    What a consolidation has seen is in the notebook; only later lessons are told beside that.
    """
    settled, room = [replace(result, reverted=False) for result in state.tried], TABLE * CHARACTERS  # a row stays
    start = max(0, len(settled) // BLOCK - BLOCKS) * BLOCK
    rows = [f"- {WORDS.settled(result, '')}" for result in settled[start:]]
    while len(rows) > 2 * BLOCK and sum(map(len, rows)) > room:
        start, rows = start + BLOCK, rows[BLOCK:]
    numbers = [result.experiment for result in settled]
    unseen = settled[_count_consolidated(state) if state.notebook else 0 : start]
    taught = [r for r in unseen if r.status not in UNTESTED and r.postmortem and r.postmortem.implemented != "no"]
    clear = [r for r in taught if r.postmortem and r.postmortem.verdict != "inconclusive"] or taught  # worth most
    promoted = state.parents.keys() - {0, *changes}
    included = [result for result in state.judged if result.experiment in promoted and result.status == "kept"]
    kept = {r.experiment: WORDS.brief(r, changes[r.experiment]) for r in state.judged if r.experiment in changes}
    return {
        "included": _fit_rows(map(WORDS.brief, included), 500),
        "since": PART.join(kept[number] for number in changes if number in numbers[:start]),
        "older_lessons": _fit_rows((WORDS.quoted(result, "lesson") for result in clear), 300),
        "history": PART.join(f"- {WORDS.settled(r, changes.get(r.experiment))}" for r in settled[start:]),
        "newest": PART.join(kept[number] for number in changes if number not in numbers),
        "changes": PART.join(f"#{number}:\n\n```diff\n{change}\n```" for number, change in changes.items()),
        "table": PART.join(rows),
    }


def show_source(state: State, source: str, read: Callable[[ev.Digest], str]) -> dict[str, str]:
    """Return the facts of the best train.py: an older one in full, and what was kept since, in its order.

    The older one stays until the changes are too long, so that a keep leaves the beginning of an opening as it is. Any
    other source, of a candidate that is not kept say, is shown in full.
    """
    if read(state.parent.source) != source:
        return {"base": source.rstrip("\n"), "changes": ""}
    lineage = [state.parent]
    while lineage[0].experiment:
        lineage.insert(0, state.parents[lineage[0].parent])
    texts = [read(commit.source) for commit in lineage]
    base, changes = texts[0], dict[int, str]()
    for commit, old, new in zip(lineage[1:], texts, texts[1:], strict=False):
        changes[commit.experiment] = diff(old, new, context=1)
        if sum(map(len, changes.values())) > CHANGES * CHARACTERS:
            base, changes = new, {}
    is_long = len(texts[-1]) > SOURCE * CHARACTERS  # the researcher is shown its beginning, and the rest by a tool
    if is_long or [result.experiment for result in state.judged if result.experiment in changes] != [*changes]:
        base, changes = texts[-1], {}  # with slots, a later change may be told before one that it is made on
    return {"base": base.rstrip("\n"), **_tell_settled(state, changes)}


def describe_notebook(state: State) -> str:
    """Return the notebook and the drafts that came after it; empty while there is neither."""
    shown = list_drafts(state)
    rows, left = [f"- {WORDS.draft(draft)}" for draft in shown], len(state.shelved) - len(shown)
    return WORDS.notebook(state.notebook, "\n".join([*rows, *[f"- {WORDS.later(left)}"] * bool(left)])).strip()


def list_drafts(state: State) -> Sequence[ev.Proposal]:
    """Return the drafts that the author of the notebook is shown, the first ones; the others have to wait."""
    rows = (f"- {WORDS.draft(draft)}" for draft in state.shelved)
    return state.shelved[: count_fitting(rows, int(DRAFTS * CHARACTERS) - 80, extra=1)]


def _count_consolidated(state: State) -> int:
    """Return how many closed experiments are in the notebook: its latest author may have been told of fewer."""
    return min(state.digested, state.noted)


def _list_scores(state: State) -> Sequence[ev.Scored]:
    """Return the incumbent's scores; before there is one, what is known of the baseline's."""
    match state.open.get(0):  # a first proposal can be made before all of the baseline's scores are there
        case Candidate(scores=scores) | Training(Candidate(scores=scores)) | Decided(scores=scores):
            return scores
        case _:
            return state.incumbent.scores if state.incumbent else ()


def _summarize_families(state: State, results: Sequence[Decided]) -> Iterator[str]:
    """Yield a row for each family, the most tried first, and one for those of which no experiment is even under way."""
    counted = Counter[str](result.proposal.family for result in results)
    for family, _ in counted.most_common():
        yield WORDS.family(family, [result for result in results if result.proposal.family == family])
    begun = {*counted, *(stage.proposal.family for number, stage in state.open.items() if number)}
    if counted and (untried := [family for family in get_args(ev.Family) if family not in begun]):
        yield WORDS.untried(untried)


def _list_near_misses(results: Sequence[Decided]) -> list[str]:
    """Return discarded changes that looked like a gain, the most promising last."""
    found = [(v.gain / v.error, r) for r in results if isinstance(v := r.verdict, ev.Discarded) and v.error]
    ranked = sorted((row for row in found if row[0] > thresholds.NEAR_MISS), key=itemgetter(0))
    return [WORDS.brief(result) for _, result in ranked[-NEAR_MISSES:]]


def _fit_rows(rows: Iterable[str], budget: int) -> str:
    """Return the latest rows that fit into a budget of tokens, and how many were left out."""
    every = [f"- {row}" for row in rows]
    left_out = len(every) - count_fitting(every[::-1], int(budget * CHARACTERS) - 40, extra=1)
    note = [f"- {WORDS.left_out(left_out)}"] if left_out else []
    return "\n".join([*note, *every[left_out:]])
