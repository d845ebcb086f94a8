"""The researcher's notebook: when it is rewritten from the evidence, and what becomes of it and of further drafts."""

import asyncio
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.agents.briefing import brief_researcher, describe_notebook
from orchestrator.agents.crew import ClaudeCrew
from orchestrator.agents.researcher import find_notebook_fault, make_note
from orchestrator.core.events import Abandoned, Notebook, Noted, Proposed, Record
from orchestrator.core.state import apply
from orchestrator.loop import perform
from orchestrator.policy import thresholds as th
from orchestrator.policy.evidence import explain_unsupported, list_verdicts
from orchestrator.policy.limits import explain_consolidation
from orchestrator.policy.steps import Propose, Reflect
from subagents.agent import NoAnswer
from subagents.prompts import load_prompts
from tests import synthetic
from tests.conversations import FakeWorld, call, says

BOOK = Notebook(
    beliefs=("Depth 2 is better by 0.05 (#3).",), questions=("Is the batch too large?",), ideas=("Halve it.",)
)


def add(state, *events):
    for event in events:
        state = apply(state, Record(seq=0, at=state.now, task_id="propose 9", event=event))
    return state


def make_state(n, every=20, **guess):
    """A night of so many experiments, none a surprise; with a guess, each is expected to change the score by that."""
    state = synthetic.log(n).state
    settings = {"consolidate_every": every}
    expect = [guess.get("expected", -getattr(result.verdict, "gain", 0.0)) for result in state.results]
    results = (
        replace(result, proposal=result.proposal.model_copy(update={"expected_delta": delta}))
        for result, delta in zip(state.results, expect, strict=True)
    )
    return replace(state, started=state.session.model_copy(update=settings), results=tuple(results))


def test_it_is_rewritten_after_so_many_experiments_and_then_not_again():
    state = make_state(20)
    assert "20 experiments have ended" in explain_consolidation(state)
    assert explain_consolidation(add(state, Noted(notebook=BOOK, reason="twenty"))) == ""
    assert explain_consolidation(add(state, Noted(notebook=None, reason="no answer"))) == ""
    assert "20 experiments" in explain_consolidation(add(state, Noted(notebook=BOOK))), "beside a proposal"


@pytest.mark.parametrize("n", [5, 60])
def test_a_session_without_notebooks_never_asks_for_one(n):
    assert explain_consolidation(make_state(n, every=0)) == ""


@cache
def find_first_stall():
    nights = (make_state(n, every=100) for n in range(th.STALL, 40))
    return next(state for state in nights if "nothing was kept" in explain_consolidation(state))


def test_a_stall_is_a_reason_once():
    first = find_first_stall()
    last = max((result.experiment for result in first.kept), default=0)
    since = [r for r in first.tried if r.experiment > last and r.status not in ("refused", "abandoned")]
    assert f"nothing was kept in the last {len(since)} experiments" in explain_consolidation(first)
    assert len(since) == th.STALL

    more = (replace(since[-1], experiment=100 + i) for i in range(th.CONSOLIDATION_GAP))
    later = replace(first, results=(*first.results, *more))
    assert "nothing was kept" in explain_consolidation(later)
    assert explain_consolidation(replace(later, consolidated=len(first.tried))) == ""


def test_a_keep_whose_post_mortem_is_being_written_ends_a_stall():
    first = find_first_stall()
    kept = replace(first.kept[-1], experiment=first.next, promoted=True)
    state = replace(first, open={first.next: kept})
    rule = th.KEEP_RULE.model_copy(update={"chronological": False})
    now, old = (state.session.model_copy(update={"rule": rule}) for rule in (th.KEEP_RULE, rule))

    assert explain_consolidation(replace(state, started=now)) == ""
    assert "nothing was kept" in explain_consolidation(replace(first, started=now))
    assert "nothing was kept" in explain_consolidation(replace(state, started=old)), "as it was before"


def test_a_surprise_is_a_reason_and_a_guess_within_the_noise_is_not():
    state = replace(make_state(th.CONSOLIDATION_GAP, every=100, expected=-1.0))
    assert "a surprise: #1, #2" in explain_consolidation(state)
    assert explain_consolidation(make_state(th.CONSOLIDATION_GAP, every=100)) == ""
    assert explain_consolidation(make_state(th.CONSOLIDATION_GAP - 1, every=100, expected=-1.0)) == ""


def test_further_drafts_wait_in_the_backlog_until_it_is_rewritten():
    drafts = [synthetic.proposal(random.Random(i), title=f"Draft {i}") for i in range(3)]
    written, state = [], synthetic.log(5).state

    async def propose(state, step):
        return drafts

    async def append(task_id, *events, last):
        written.extend(events)

    crew, log = SimpleNamespace(propose=propose), SimpleNamespace(append=append, state=state)
    asyncio.run(perform(Propose(6, 1, 0), state, log, crew, None))

    assert [type(event) for event in written] == [Proposed]
    state = add(state, *written)
    assert state.shelved == tuple(drafts[1:])
    assert "Draft 0" not in describe_notebook(state)
    assert "- Draft 1 (" in describe_notebook(state)
    assert describe_notebook(add(state, Noted(notebook=BOOK))).splitlines() == [
        *("Beliefs, with their evidence:", "- Depth 2 is better by 0.05 (#3)."),
        *("Open questions:", "- Is the batch too large?"),
        *("Backlog, best first:", "- Halve it."),
    ]
    assert "Draft 1" in describe_notebook(add(state, Noted(notebook=None, reason="no answer")))


@pytest.mark.parametrize(
    ("gain", "expected", "verdict", "carried"),
    [
        (-1.5, 0.0, "refuted", False),
        (-2.1, 0.0, "refuted", True),
        (-0.5, -1.0, "refuted", False),
        (0.0, -2.5, "refuted", True),
        (1.5, -1.0, "supported", False),
        (2.5, -1.0, "supported", True),
        (0.1, -9.0, "inconclusive", True),
        (-2.5, -1.0, "supported", False),
    ],
)
def test_a_post_mortem_may_say_what_the_measurements_carry(gain, expected, verdict, carried):
    """Gains and guesses in standard errors."""
    result = next(result for result in synthetic.log(9).state.tried if result.verdict.kind == "discarded")
    error = result.verdict.error
    found = result.verdict.model_copy(update={"gain": gain * error})
    proposal = result.proposal.model_copy(update={"expected_delta": expected * error})
    post = result.postmortem.model_copy(update={"verdict": verdict})

    fault = explain_unsupported(replace(result, verdict=found, proposal=proposal), post)

    assert (fault == "") == carried == (verdict in list_verdicts(replace(result, verdict=found, proposal=proposal)))
    assert carried or ("refuted" if gain < -2 else "inconclusive") in fault


def test_a_reflector_is_told_what_the_measurements_do_not_carry():
    log = synthetic.log(9)
    result = next(result for result in log.state.tried if result.verdict.kind == "discarded")
    result = replace(result, verdict=result.verdict.model_copy(update={"gain": -result.verdict.error}))
    result = replace(result, proposal=result.proposal.model_copy(update={"expected_delta": 0.0}))
    answers = [{**result.postmortem.model_dump(), "verdict": verdict} for verdict in ("refuted", "inconclusive")]
    world = FakeWorld([says(call("submit", **answer)) for answer in answers])
    crew = ClaudeCrew(log, lambda *_: world, load_prompts(Path("prompts")), lambda: None, str, lambda *page: "")

    post = asyncio.run(crew.reflect(log.state, Reflect(result.experiment, "reflect"), result))

    assert "By these numbers the hypothesis is inconclusive." in world.openings[0]
    assert "too small to call it refuted: it is inconclusive" in world.heard()[0]
    assert post.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("reach", "reason"),
    [
        (lambda: make_state(20), "20 experiments have ended since the last time"),
        (find_first_stall, f"nothing was kept in the last {th.STALL} experiments"),
        (lambda: make_state(th.CONSOLIDATION_GAP, 100, expected=-1.0), "a surprise: #1, #2"),
    ],
    ids=["cadence", "stall", "surprise"],
)
def test_a_consolidation_that_fails_leaves_the_notebook_and_the_proposal_follows(reach, reason):
    state = reach()
    log = synthetic.log(len(state.results) - 1)
    log.state, noted = replace(state, notebook=BOOK), []

    async def append(task_id, *events, last=False):
        noted.extend(events)

    log.append = append
    draft = synthetic.proposal(random.Random(1), settings={}, direction=None, family="MLP").model_dump()
    draft = {name: value for name, value in draft.items() if name not in ("author", "reverts", "settings", "direction")}
    world = FakeWorld([says(stop="refusal"), says(call("submit", proposals=[draft]))])
    crew = ClaudeCrew(log, lambda *_: world, load_prompts(Path("prompts")), lambda: None, str, lambda *page: "")

    (proposal,) = asyncio.run(crew.propose(log.state, Propose(log.state.next, 1, 0)))

    assert [(event.notebook, event.reason.startswith(reason)) for event in noted] == [(None, True)]
    told, asked = world.openings
    assert told.rpartition("\n")[2].startswith(f"Rewrite it now, because of this: {reason}")
    assert all(f"#{result.experiment} " in told for result in state.tried[-th.CONSOLIDATION_GAP :])
    assert "- MATRIX_LR = " in told
    assert "```python" not in told, "the script is shown to whoever proposes"
    assert "- Halve it." in told
    assert "- Halve it." in asked
    assert "```python" in asked
    assert proposal.title == draft["title"]


def test_what_ends_while_the_notebook_is_rewritten_is_still_to_be_read():
    early, late = make_state(20), make_state(28)
    known, new = (synthetic.proposal(random.Random(i), title=f"Draft {i}") for i in range(2))
    early, late = replace(early, shelved=(known,)), replace(late, shelved=(known, new))
    log, noted = synthetic.log(28), []
    log.state = early

    async def append(task_id, *events, last=False):
        noted.extend(events)

    log.append = append
    draft = synthetic.proposal(random.Random(1), settings={}, direction=None, family="MLP").model_dump()
    draft = {name: value for name, value in draft.items() if name not in ("author", "reverts", "settings", "direction")}
    rewritten = call("rewrite_notebook", **BOOK.model_dump())
    world = FakeWorld(
        [says(call("submit", **BOOK.model_dump())), says(rewritten), says(call("submit", proposals=[draft]))]
    )
    crew = ClaudeCrew(log, lambda *_: world, load_prompts(Path("prompts")), lambda: None, str, lambda *page: "")

    asyncio.run(crew.propose(early, Propose(early.next, 1, 0)))

    assert [event.told for event in noted] == [20, 20], "in a conversation of its own, and beside a proposal"
    state = add(late, *noted)
    assert (state.consolidated, state.noted, state.shelved) == (20, 20, (new,))
    unread = brief_researcher(state, state.next, 1, "")
    assert unread["read"] == f"#{early.tried[-1].experiment}"
    assert unread["near_misses"]
    old = add(late, noted[0].model_copy(update={"told": None, "drafts": None}))
    assert (old.consolidated, old.noted, old.shelved) == (28, 28, ()), "as it was before that was recorded"


@pytest.mark.parametrize("told", [5, 50])
def test_what_was_to_be_consolidated_is_told_on_when_there_was_no_answer(told):
    """Beside a proposal the notebook had been rewritten before, by an author who is not to put all into it."""
    state = add(make_state(60), Noted(notebook=BOOK, told=told))
    failed = add(state, Noted(notebook=None, reason="20 experiments have ended", told=60))

    assert (failed.consolidated, failed.noted) == (60, told)
    for name in ("near_misses", "older_lessons"):
        before, still = (brief_researcher(one, one.next, 1, "")[name] for one in (state, failed))
        assert before == still != "", name


def test_after_a_consolidation_the_researcher_is_told_what_came_of_the_runs_meanwhile():
    early, late = make_state(20), make_state(28)
    rule = th.KEEP_RULE.model_copy(update={"chronological": True})
    early, late = (replace(one, started=one.session.model_copy(update={"rule": rule})) for one in (early, late))
    log = synthetic.log(28)
    log.state = early

    async def append(task_id, *events, last=False):
        log.state = add(late, *events)

    log.append = append
    draft = synthetic.proposal(random.Random(1), settings={}, direction=None, family="MLP").model_dump()
    draft = {name: value for name, value in draft.items() if name not in ("author", "reverts", "settings", "direction")}
    world = FakeWorld([says(call("submit", **BOOK.model_dump())), says(call("submit", proposals=[draft]))])
    crew = ClaudeCrew(log, lambda *_: world, load_prompts(Path("prompts")), lambda: None, str, lambda *page: "")

    asyncio.run(crew.propose(early, Propose(early.next, 1, 0)))

    assert f"experiment {late.best} " in world.openings[1]
    assert f"#{late.tried[-1].experiment} " in world.openings[1]


@pytest.mark.parametrize("change", [{"stopping": "you asked to stop"}, {"fallback": "models are out"}])
def test_no_model_is_asked_after_a_pause_in_which_that_became_needless(change):
    state = make_state(5)
    rule = th.KEEP_RULE.model_copy(update={"chronological": True})
    state = replace(state, started=state.session.model_copy(update={"rule": rule}), fruitless=4)
    log, world = synthetic.log(5), FakeWorld([])
    log.state = state

    async def pause(seconds, until, reason):
        log.state = replace(state, **change)

    async def propose(state, step):
        return ["the optimizer's"]

    world.pause, optimizer = pause, SimpleNamespace(propose=propose)
    crew = ClaudeCrew(log, lambda *_: world, load_prompts(Path("prompts")), lambda: optimizer, str, lambda *page: "")

    if "stopping" in change:
        with pytest.raises(NoAnswer, match="you asked to stop"):
            asyncio.run(crew.propose(state, Propose(state.next, 1, 0)))
    else:
        assert asyncio.run(crew.propose(state, Propose(state.next, 1, 0))) == ["the optimizer's"]
    assert not world.openings


def test_drafts_that_were_not_shown_outlive_a_rewriting():
    drafts = [synthetic.proposal(random.Random(i), title=f"Draft {i}", hypothesis="x" * 190) for i in range(7)]
    state = replace(make_state(5), shelved=tuple(drafts))

    told = describe_notebook(state)
    later = add(state, make_note(state, BOOK))

    assert "Draft 0" in told
    assert f"({len(later.shelved)} later ones, to be shown after" in told
    assert 0 < len(later.shelved) < 7
    assert all((f"Draft {i}" in told) != (draft in later.shelved) for i, draft in enumerate(drafts))


def test_an_idea_that_an_outage_ended_is_not_forgotten():
    state = make_state(5)
    idea = synthetic.proposal(random.Random(1), title="A precious idea", author="researcher")
    number = state.next

    state = add(state, Proposed(experiment=number, proposal=idea))
    assert not add(state, Abandoned(experiment=number, reason="no")).shelved
    assert "A precious idea" in describe_notebook(add(state, Abandoned(experiment=number, reason="no", outage=True)))


def test_an_empty_notebook_forgets_nothing():
    empty = Notebook(beliefs=(), questions=(), ideas=())
    assert find_notebook_fault(make_state(5), empty)
    assert not find_notebook_fault(make_state(0), empty)
    book = empty.model_copy(update={"beliefs": ("Experiment 7 of calm-fox: depth 2 is better.",)})
    assert not find_notebook_fault(make_state(5), book)


def test_a_consolidation_that_has_cost_enough_is_followed_by_no_further_conversation():
    state = make_state(20)
    limits = state.session.limits.model_copy(update={"experiment_usd": 0.5})
    started = state.session.model_copy(update={"limits": limits})
    log = synthetic.log(len(state.results) - 1)
    log.state = replace(state, started=started, costs={state.next: 0.6})

    async def append(task_id, *events, last=False):
        pass

    log.append, world = append, FakeWorld([says(stop="refusal")])
    crew = ClaudeCrew(log, lambda *_: world, load_prompts(Path("prompts")), lambda: None, str, lambda *page: "")

    with pytest.raises(NoAnswer, match=r"models have cost \$0.60"):
        asyncio.run(crew.propose(log.state, Propose(log.state.next, 1, 0)))
    assert len(world.openings) == 1
