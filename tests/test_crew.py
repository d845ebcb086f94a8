"""A whole night with three agents over real HTTP: quiet, through chaos, and played back without a network."""

import asyncio
import itertools
import random
import time
import zlib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from llmock.chaos import ChaosSettings
from llmock.middleware import LLMockMiddleware
from llmock.scenarios import Fail, Plan, ScenarioQueue, StreamFault
from llmock.state import LLMockState

from orchestrator.agents.crew import ClaudeCrew
from orchestrator.core.events import BaselineCommitted, Crashed, Point, RunMetrics, Scored, SessionLimits
from orchestrator.core.source import compute_fingerprint
from orchestrator.loop import run
from orchestrator.optimizer.crew import Optimizer
from orchestrator.session.recording import Live, Recording
from orchestrator.session.replay import Tape, replay
from orchestrator.session.store import Session
from subagents.agent import split_opening
from subagents.claude import Claude, connect
from subagents.prompts import load_prompts
from tests.fakes import PROFILE, FakeLab, started
from tests.scripted import MISFIT, Scripted, served

KEY = "sk-secret-0123456789"
PROMPTS = load_prompts(Path("prompts"))
SOURCE = Path("train.py").read_text()
LOG_TEXT = """step 1\rstep 2
Traceback (most recent call last):
  File "/x/train.py", line 57, in <module>
    raise
RuntimeError: scripted crash
"""


class Lab(FakeLab):
    """Trains our own train.py in no time; one constant matters."""

    async def commit_baseline(self):
        return BaselineCommitted(commit="f" * 40, source=self.log.put(SOURCE), fingerprint=compute_fingerprint(SOURCE))

    async def train(self, granted, source):
        await asyncio.sleep(0.1)
        known = {"experiment": granted.experiment, "run": granted.run, "log": self.log.put(LOG_TEXT)}
        known |= {"telemetry": {"step/calls": (2e10,), "gradient/wte": (1.0, 0.5)}}
        known |= {"metrics": RunMetrics(train_seconds=20, total_seconds=25, steps=100, tokens=10**6)}
        known |= {"curve": (Point(seconds=1, progress=0.05, loss=6.0), Point(seconds=20, progress=1.0, loss=3.0))}
        if "scripted crash" in source:
            return Crashed(**known, failure="other", message="RuntimeError: scripted crash")
        gain = 0.02 * ("MATRIX_LR = 0.08" in source)
        return Scored(**known, val_bpb=2.25 - gain + random.Random(granted.seed).gauss(0, 0.003))


async def price(source):
    if MISFIT in source:
        return "AssertionError: </log> scripted\nline 4, in <module>: assert"
    return {"step/calls": (1e10 * source.count("MUON_MOMENTUM = 0.5"),)}


def make_crew(log, outside, meter=None):
    def connect(task_id, number):
        return Recording(outside, log, task_id, number)

    return ClaudeCrew(log, connect, PROMPTS, lambda: Optimizer(log.get), str, lambda *page: str(page), meter)


def night(path, url, experiments, stall=5.0, profile=PROFILE):
    """A session of so many experiments against the server at the address."""

    async def quick(seconds):
        await asyncio.sleep(min(seconds, 0.001))

    async def go():
        limits = SessionLimits(hours=1, experiments=experiments, usd=20)
        session.write("", started(limits=limits, consolidate_every=5, profile=profile))
        async with connect(base_url=url, api_key=KEY, stall=stall) as client:
            live = Live(Claude(client, sleep=quick), session)
            await run(session, make_crew(session, live, price), Lab(session))

    session = Session(path / "night" / "session.db", time.time, create=True)
    asyncio.run(go())
    return session


def played(session):
    """The session once more, from its tape alone."""

    async def live(tape):
        return await run(tape, make_crew(tape, tape), tape)

    async def go():
        tape = Tape(session)
        assert not await replay(tape, live)
        return tape

    return asyncio.run(go())


def kinds(session):
    return Counter(record.event.kind for record in session.records)


def assert_no_tool_ran_twice(session):
    used = [(r.task_id, r.event.call) for r in session.records if r.event.kind == "used"]
    assert len(used) == len(set(used))


def state_of_the_notebook(session):
    """The open questions of the notebook, which the last opening of the researcher must show, where all may change."""
    told = [r.event for r in session.records if r.event.kind == "opened" and r.event.agent == "researcher"]
    opening, book = session.get(told[-1].opening), session.state.notebook
    last = split_opening(opening)[-1]
    assert all(f"- {entry}" in last for entry in (*book.beliefs, *book.questions, *book.ideas))
    return book.questions


def test_a_night_of_three_agents(tmp_path):
    app = Scripted()
    with served(app) as url:
        session = night(tmp_path, url, 12)

    assert session.state.ended == "12 experiments are done"
    happened = kinds(session)
    assert happened["refused"] == 1
    assert happened["abandoned"] == 1
    repaired = next(r.event.experiment for r in session.records if getattr(r.event, "how", "") == "repaired")
    assert next(f for f in session.state.results if f.experiment == repaired).scores
    judged = [f for f in session.state.results if f.experiment and f.verdict.kind in ("kept", "discarded")]
    assert all(result.postmortem for result in judged)
    assert len(judged) == 10
    assert 1 <= happened["noted"] <= 2, "by how the proposals and the post-mortems happen to overlap"
    assert state_of_the_notebook(session) == ("Why?",)
    assert_no_tool_ran_twice(session)
    priced = [r.event for r in session.records if r.event.kind == "used" and r.event.tool == "profile_step"]
    assert len(priced) > 10, "each researcher measured a step"
    assert all(used.result.startswith("A step of it costs 1e+10 units of work: ") for used in priced)

    input_tokens = sum(spent.input for spent in session.state.usage.values()) / 12
    output_tokens = sum(spent.output for spent in session.state.usage.values()) / 12
    assert input_tokens <= 40_000
    assert output_tokens <= 6_000

    assert played(session).records == session.records


def test_a_wrong_shape_is_mended_before_it_costs_a_run(tmp_path):
    with served(Scripted(script=["misfit"])) as url:
        session = night(tmp_path, url, 1, profile=PROFILE.model_copy(update={"baseline_runs": 1}))

    checks = [r.event for r in session.records if r.event.kind == "used" and r.event.tool == "check"]
    assert [used.is_error for used in checks] == [True, False]
    assert checks[0].result.splitlines()[1:3] == ["<log>", "| AssertionError: </log> scripted"]
    assert kinds(session)["crashed"] == 0
    assert played(session).records == session.records


def test_no_key_is_in_a_session(tmp_path):
    app = Scripted(script=["crash", "turn"])
    with served(app) as url:
        session = night(tmp_path, url, 2)

    assert all(KEY in headers["authorization"] for headers in app.headers)
    texts = [zlib.decompress(body) for (body,) in session.db.execute("select body from texts")]
    session.close()
    stored = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert stored
    assert not any(KEY.encode() in data for data in [*stored, *texts])


FAULTS = [
    Plan(fail=Fail(400, code="invalid_request_error", message="prompt is too long: 210000 tokens > 200000 maximum")),
    *(Plan(fail=Fail(status)) for status in (429, 500, 503, 529)),
    *(Plan(stream_fault=StreamFault(kind, 2, 4.0)) for kind in ("disconnect", "truncate", "malformed", "stall")),
]


class Turns(ScenarioQueue):
    """Goes through every fault in turn, with two good answers between, whoever asks first."""

    def __init__(self):
        super().__init__()
        self.turns = itertools.cycle(plan for fault in FAULTS for plan in (fault, Plan(), Plan()))

    def plan_for(self, info):
        return next(self.turns)


@contextmanager
def hostile(app):
    """The application behind a third party's faults: every third request goes wrong, in every way there is."""
    state = LLMockState(ChaosSettings())
    state.scenarios = Turns()
    with served(LLMockMiddleware(app, state)) as url:
        yield f"{url}/anthropic", state


def test_a_night_through_chaos_loses_nothing(tmp_path):
    app = Scripted(script=["turn", "turn", "crash", "turn", "abandon"])
    with hostile(app) as (url, state):
        session = night(tmp_path, url, 5, stall=3.0)
        requests = state.journal.records(wait=2.0)

    faults = Counter((record.fault or "").split("@")[0] for record in requests)
    assert session.state.ended == "5 experiments are done"
    assert {result.experiment for result in session.state.results} == set(range(6))
    assert len(requests) - faults[""] >= 0.25 * len(requests)
    assert len(faults) >= 7, "the last of them need many requests"
    assert_no_tool_ran_twice(session)
    assert played(session).records == session.records
