"""A model that refuses or is out: another takes over, no proposal is blamed, and no night is held open."""

import asyncio
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from orchestrator.agents import briefing
from orchestrator.cli.preflight import load_style
from orchestrator.core import events as ev
from orchestrator.core.state import Broken, Candidate, Idea
from orchestrator.loop import run
from orchestrator.session.recording import Live
from orchestrator.session.replay import Tape, replay
from orchestrator.session.store import Session
from orchestrator.supervisor import SILENCE
from subagents.agent import Outage, Reply
from subagents.claude import ATTEMPTS, Claude, connect
from tests.fakes import FakeCrew, started
from tests.scripted import Scripted, events
from tests.test_claude import Asking, refusal, server, whole
from tests.test_crew import KEY, SOURCE, Lab, make_crew
from tests.test_fruitless import Player, edit, list_events
from tests.test_fruitless import night as play
from tests.test_supervisor import Stalled, live
from tests.test_terminal import shown, told

RETIRED = refusal(400, "invalid_request_error", "this model is retired")
REFUSED = whole(stop="refusal")


def played(session, prompts):
    """The session once more, from its tape alone."""

    async def live(tape):
        await run(tape, replace(make_crew(tape, tape), prompts=prompts), tape)

    async def go():
        tape = Tape(session)
        assert not await replay(tape, live)
        return tape

    return asyncio.run(go())


def night(path, answer, *fallbacks, experiments):
    """A night whose agents are the model `first`, which as mechanic only ever gives this answer."""
    prompts, app = load_style("default", ["first"], fallbacks=fallbacks), Scripted(("crash", "turn"))
    session = Session(path / "night/session.db", time.time, create=True)

    def reply(asked):
        request = asked["body"]
        is_mechanic = any(tool["name"] == "replace" for tool in request["tools"])
        return answer if request["model"] == "first" and is_mechanic else list(events(app.message(request)))

    async def go(url):
        session.write("", started(limits=ev.SessionLimits(hours=1, experiments=experiments)))
        async with connect(base_url=url, api_key=KEY) as client:
            crew = make_crew(session, Live(Claude(client), session))
            await run(session, replace(crew, prompts=prompts), Lab(session))

    with server(reply) as (url, _):
        asyncio.run(go(url))
    assert played(session, prompts).records == session.records
    return session


@pytest.mark.parametrize(("answer", "why"), [(REFUSED, "the mechanic's model refused"), (RETIRED, "is retired")])
def test_another_model_takes_over(tmp_path, answer, why):
    session = night(tmp_path, answer, "mechanic=second", experiments=1)

    changes = list_events(session, ev.ModelReplaced)
    begun = [opened.model for opened in list_events(session, ev.ConversationOpened) if opened.agent == "mechanic"]
    assert begun == ["first"] * len(changes), "each conversation is begun with the first model"
    assert changes
    assert all(change.reason.startswith("second takes over: ") and why in change.reason for change in changes)
    assert [result.scores != () for result in session.state.tried] == [True]
    assert any("replaced   1: second takes over: " in line for line in told(session))


def test_without_another_the_proposal_is_not_blamed_and_not_counted(tmp_path):
    session = night(tmp_path, RETIRED, experiments=1)
    state = session.state

    assert state.ended == "1 experiment is done"
    assert len(state.tried) == 1
    lost = [result for result in state.results if result.is_lost]
    assert lost
    assert all(result.status == "abandoned" and "is retired" in result.verdict.reason for result in lost)
    assert "Abandoned" not in briefing.brief_researcher(state, 9, 1, SOURCE)["history"]


def test_what_has_run_counts_though_no_model_would_go_on_with_it():
    """Else a night of crashes without repair has no end but its hours, and the researcher learns nothing."""

    async def refuse(*_):
        raise Outage("the model refused to answer")

    def crash(proposal, commit):
        log = {"metrics": ev.RunMetrics(), "curve": (), "log": "before"}
        return Broken(Candidate(proposal, commit), ev.Crashed(experiment=2, run=1, failure="other", message="", **log))

    crew = SimpleNamespace(implement=refuse, repair=refuse)
    assert edit(lambda proposal, _: Idea(proposal), "implemented", crew).outage
    assert edit(Candidate, "rebased", crew).outage, "it waits for its first run"
    assert not edit(Candidate, "rebased", crew, grants={2: 1}).outage
    assert not edit(crash, "repaired", crew, grants={2: 1}).outage


def test_another_model_takes_over_within_a_minute():
    with server(refusal(529, "overloaded_error", "busy")) as (url, asked):
        asking = Asking(url)
        asking.claude = replace(asking.claude, replaceable=frozenset({("tester", "first")}))
        reply = asking(model="first")

    assert reply.stop_reason == "failed"
    assert not asking.waits, "no pause of a minute or more"
    assert len(asked) < ATTEMPTS


def test_a_night_whose_models_are_gone_goes_on_with_the_optimizer_and_says_so(tmp_path):
    class Gone(Player):
        async def reply(self, request, on_wait):
            return Reply.from_error("failed", "no such model")

    session = play(tmp_path, Gone([]))

    assert session.state.fallback.endswith("no such model")
    assert session.state.ended == "the 0.2 hours are over"
    assert sum(result.proposal.author == "optimizer" for result in session.state.judged) > 5
    assert "the optimizer proposes from now on" in shown(session)


def test_no_silent_model_holds_the_night_open_after_the_deadline(tmp_path):
    session, said = live(tmp_path, Stalled())
    state = session.state

    assert state.ended == "the 0.3 hours are over"
    assert state.deadline < state.now <= state.deadline + SILENCE + 30
    (told,) = said
    assert told.startswith("The time is up. Awaited: ")
    assert "reflect 1" in told
    assert "two minutes" in told
    assert live(tmp_path / "other", FakeCrew())[1] == [], "nothing is awaited"
