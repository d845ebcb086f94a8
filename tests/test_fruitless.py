"""Rounds that lead nowhere are bounded, slowed and told; what was not done as proposed counts for nothing."""

from functools import partial
from types import SimpleNamespace

import pytest

from orchestrator.agents import briefing
from orchestrator.core import events as ev
from orchestrator.core.state import BASELINE, Candidate, Idea, Incumbent, State, fold
from orchestrator.loop import perform, run
from orchestrator.policy import thresholds
from orchestrator.policy.limits import explain_cap
from orchestrator.policy.steps import Edit
from orchestrator.session.recording import Live
from orchestrator.session.replay import Tape, replay
from orchestrator.session.store import Session
from orchestrator.views.musings import write_musings
from subagents.agent import NoAnswer, Reply
from tests.fakes import started
from tests.scripted import Scripted
from tests.simulated import SOURCE, Landscape
from tests.test_crew import make_crew
from tests.virtual import run_virtually, virtual_clock

TURNS = tuple((name, 1.1) for name in ("MATRIX_LR", "EMBEDDING_LR", "SCALAR_LR", "SOFTCAP", "WEIGHT_DECAY"))


class Player:
    """A model that plays the scripted server without a network."""

    def __init__(self, script, reflector=True):
        self.app, self.reflects, self.asked = Scripted(script, TURNS), reflector, []

    def at_most(self, request):
        return 0.01

    async def reply(self, request, on_wait):
        self.asked.append(request)
        if request.agent == "reflector" and not self.reflects:
            return Reply.from_error("failed", "the model is gone")
        play = {"system": request.system, "tools": request.tools, "messages": request.messages, "model": "m"}
        return Reply(self.app.message(play), usd=0.01)

    def count_openings(self, agent):
        return sum(request.agent == agent and len(request.messages) == 1 for request in self.asked)


class Still(Landscape):
    """A script without constants."""

    async def train(self, granted, source):
        return await super().train(granted, SOURCE)


def night(path, model, source=SOURCE, lab=Landscape, wide=None, **limits):
    async def go():
        session = Session(path / "s" / "session.db", virtual_clock, create=True)
        bounds = ev.SessionLimits(**{"hours": 0.2} | limits)
        session.write("", started(limits=bounds, crew="claude", **wide or {}))
        await run(session, make_crew(session, Live(model, session)), lab(session, source))
        return session

    return run_virtually(go())


def list_events(session, *kinds):
    return [record.event for record in session.records if isinstance(record.event, kinds)]


@pytest.mark.parametrize("kind", ["repeat", "abandon", "mute"])
def test_a_model_that_leads_nowhere_is_asked_a_few_times_and_then_the_optimizer_goes_on(tmp_path, kind):
    model = Player(["turn"] + [kind] * 500)

    session = night(tmp_path, model)

    (fell,) = list_events(session, ev.FellBack)
    assert f"the optimizer proposes from now on, since {thresholds.MAX_FRUITLESS} rounds in a row led" in fell.reason
    assert model.count_openings("researcher") == 1 + thresholds.MAX_FRUITLESS
    authors = [result.proposal.author for result in session.state.judged if result.scores and result.experiment]
    assert authors[0] == "researcher"
    assert set(authors[1:]) == {"optimizer"}
    assert session.state.ended == "the 0.2 hours are over"

    waits = list_events(session, ev.Waiting)
    assert [wait.reason for wait in waits][:1] == ["2 rounds in a row led to no run"]
    told = [request.messages[0]["content"][-1]["text"] for request in model.asked if request.agent == "researcher"]
    assert "The last 3 rounds led to no run; the latest because of this: «" in "".join(told)

    async def live(tape):
        await run(tape, make_crew(tape, tape), tape)

    assert not run_virtually(replay(Tape(session), live))


def test_after_a_pause_the_researcher_is_told_what_came_of_the_runs_meanwhile(tmp_path):
    model = Player(["turn"] * 2 + ["mute"] * 10 + ["turn"] * 500)
    wide = {"slots": 2, "rule": thresholds.KEEP_RULE}

    session = night(tmp_path, model, lab=partial(Landscape, seconds=50.0), experiments=3, wide=wide)

    paused, told = set(), []
    for n, record in enumerate(session.records):
        if isinstance(record.event, ev.Waiting):
            paused.add(record.task_id)
        elif isinstance(record.event, ev.ConversationOpened) and record.task_id in paused:
            now, opening = fold(session.records[:n]), session.get(record.event.opening)
            told += [briefing.WORDS.settled(result, "") in opening for result in now.tried]
    assert len(told) > 3
    assert all(told)

    async def live(tape):
        await run(tape, make_crew(tape, tape), tape)

    assert not run_virtually(replay(Tape(session), live))


def test_where_the_optimizer_cannot_help_the_night_ends_and_says_so(tmp_path):
    session = night(tmp_path, Player(["mute"]), source="import prepare\nprint(prepare)\n", lab=Still)

    assert session.state.ended.startswith(f"{thresholds.MAX_FRUITLESS} rounds in a row led to no run: ")


def test_no_model_is_asked_about_an_experiment_that_has_cost_enough(tmp_path):
    session = night(tmp_path, model := Player(["crash", "turn"]), experiments=2, experiment_usd=0.02)

    edited, turned = session.state.tried
    assert edited.verdict.reason == "models have cost $0.02 for it, and may cost $0.02"
    assert turned.scores
    assert not turned.postmortem
    assert {request.agent for request in model.asked} == {"researcher"}


def test_a_conversation_has_no_further_turn_once_its_experiment_has_cost_enough(tmp_path):
    """The researcher looks something up first: its second turn is one too many, round after round."""
    session = night(tmp_path, model := Player(["turn"]), experiments=2, experiment_usd=0.01)

    (fell,) = list_events(session, ev.FellBack)
    assert fell.reason.endswith("models have cost $0.01 for it, and may cost $0.01")
    assert all(len(request.messages) == 1 for request in model.asked)
    assert model.count_openings("researcher") == thresholds.MAX_FRUITLESS

    async def live(tape):
        await run(tape, make_crew(tape, tape), tape)

    assert not run_virtually(replay(Tape(session), live))


async def answer_nothing(*_):
    raise NoAnswer("nothing comes back")


BEFORE, KEPT, TRIED = (f"import prepare\nx = {value}\nLR = 0.1\n" for value in (1, 2, 3))


SILENT = SimpleNamespace(implement=answer_nothing)


def edit(make_stage, how="rebased", crew=SILENT, **known):
    """What comes of experiment 2, tried on the baseline, once experiment 1 has changed the same line for good."""
    texts = {"before": BEFORE, "kept": KEPT, "tried": TRIED}
    same = {"commit": "0" * 40, "parent": 0, "added": 1, "removed": 1}
    commits = [ev.Committed(experiment=i, source=name, fingerprint=name, **same) for i, name in enumerate(texts)]
    proposal = BASELINE.model_copy(update={"author": "researcher"})
    best, open_ = Incumbent(1, (), 1.0), {2: make_stage(proposal, commits[2])}
    parents = dict(enumerate(commits[:2]))
    state, told = State(parents=parents, incumbent=best, open=open_, **{"started": started(), **known}), []

    async def append(task_id, *events, last):
        told.extend(events)

    log = SimpleNamespace(append=append, state=state, get=texts.__getitem__)
    run_virtually(perform(Edit(2, "edit 2", how), state, log, crew, None))
    (event,) = told
    return event


def test_a_candidate_that_has_cost_enough_is_not_written_anew_where_it_does_not_merge():
    """It has no verdict, and cannot get one: what it was compared with is not the best any more."""
    limits = ev.SessionLimits(hours=1, experiment_usd=0.5)
    ended = edit(Candidate, started=started(limits=limits), costs={2: 0.6}, grants={2: 1})

    assert "does not fit the best as it is now, and models have cost $0.60" in ended.reason
    assert edit(Candidate, started=started(limits=limits), costs={2: 0.4}).reason == "nothing comes back"


def test_a_silent_conversation_leaves_the_costs_of_those_beside_it():
    limits = ev.SessionLimits(hours=1, experiment_usd=1)
    reply = {"agent": "researcher", "request": "", "message": {}, "tokens": ev.Tokens(input=1, output=1)}
    log = [
        ("", started(slots=16, limits=limits)),
        ("propose 1", ev.ModelReplied(experiment=1, usd=2, **reply)),
        ("propose 9.1", ev.ModelReplied(experiment=9, usd=5, **reply)),
        ("propose 1", ev.Unanswered(reason="silence")),
        ("propose 9.1", ev.Unanswered(reason="silence")),
    ]
    records = [ev.Record(seq=i, at=float(i), task_id=task, event=event) for i, (task, event) in enumerate(log)]

    assert explain_cap(fold(records[:-1]), 1) == ""
    assert "models have cost $5.00" in explain_cap(fold(records[:-1]), 9)
    assert explain_cap(fold(records), 9) == ""


@pytest.mark.parametrize("value", [10**400, "\ud800"])
def test_a_value_that_an_older_version_let_pass_ends_its_experiment_alone(value):
    def propose(proposal, _):
        return Idea(proposal.model_copy(update={"settings": {"LR": value}}))

    assert "LR: such a value cannot be kept" in edit(propose, "implemented").reason


def test_asked_again_after_a_resumption():
    log = [
        started(),
        *[ev.Unanswered(reason="silence")] * thresholds.MAX_FRUITLESS,
        ev.FellBack(reason="silence"),
        ev.Resumed(),
    ]
    records = [ev.Record(seq=i, at=float(i), task_id="t", event=event) for i, event in enumerate(log)]

    assert fold(records[:-1]).fallback == "silence"
    assert fold(records).fallback == ""


def test_a_reflector_that_always_fails_is_asked_ever_more_rarely(tmp_path):
    session = night(tmp_path, model := Player(["turn"], reflector=False))

    skipped = list_events(session, ev.ReflectionSkipped)
    failed = sum(event.failed for event in skipped)
    assert len(skipped) > 12
    assert failed == model.count_openings("reflector")
    assert 2**failed <= 2 * len(skipped)


def test_a_stray_edit_is_told_and_corrected(tmp_path):
    source = SOURCE.replace("HEAD_DIM = 32 ", "HEAD_DIM = 128 ").replace("MODEL_DIM = 96 ", "MODEL_DIM = 128 ")
    session = night(tmp_path, model := Player(["stray"]), source=source, experiments=1)

    (commit, *_) = list_events(session, ev.Committed)
    assert "HEAD_DIM = 128" in session.get(commit.source)
    assert commit.summary == "MATRIX_LR is 0.044 now."
    assert "HEAD_DIM has changed, which the proposal does not name" in str(model.asked)


def test_what_was_not_done_as_proposed_is_not_tested(tmp_path):
    session = night(tmp_path, Player(["turn", "unfaithful", "turn"]), experiments=3)
    state = session.state

    result = next(result for result in state.judged if "extra_line" in session.get(result.commit.source))
    assert result.status == "not tested"
    facts = briefing.brief_researcher(state, state.next, 1, SOURCE)
    assert f"- #{result.experiment} " in facts["history"]
    assert ". Not tested, because" in facts["history"]
    assert f"#{result.experiment} " not in facts["older_lessons"] + facts["families"]
    write_musings(session, tmp_path / "musings")
    (page,) = (tmp_path / "musings").glob(f"{result.experiment:03}-*.md")
    assert "**Not tested**: the run was not what was proposed" in page.read_text()
    assert "The mechanic's summary: " in page.read_text()
    assert "What we learned" not in page.read_text()


def test_a_night_that_cannot_pay_for_its_notebook_asks_no_researcher_either(tmp_path):
    class Dear(Player):
        def at_most(self, request):
            return 100.0 if request.agent == "notebook" else 0.01

    session = night(tmp_path, Dear(["turn"] * 50), wide={"consolidate_every": 3}, usd=5.0)

    events = [record.event for record in session.records]
    (asked,) = [i for i, event in enumerate(events) if isinstance(event, ev.StopAsked)]
    assert not [e for e in events[asked:] if isinstance(e, ev.ModelReplied) and e.agent == "researcher"]
