"""Count what the agents are sent: the openings at experiment 1 to 1,000, and what of whole nights the cache can give.

The night is the production loop in virtual time: real prompts, openings, tools and marks; made-up minds, runs and
scores. `tests.metering` counts by the API's rules. In openings, a token is 3.5 characters.
"""

import asyncio
import random
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.agents import briefing, packets
from orchestrator.agents.crew import ClaudeCrew
from orchestrator.cli.preflight import load_style
from orchestrator.core.events import (
    BaselineCommitted,
    Discarded,
    Granted,
    Kept,
    Point,
    RunMetrics,
    Scored,
    SessionLimits,
    Telemetry,
)
from orchestrator.core.source import compute_digest, compute_fingerprint, diff
from orchestrator.loop import run
from orchestrator.optimizer.crew import Optimizer
from orchestrator.session.recording import Live, Recording
from orchestrator.session.store import Session
from prepare import profiles
from prepare.constants import read_values
from subagents.agent import Reply, Request, count_tokens
from subagents.claude import make_arguments
from tests import synthetic
from tests.fakes import FakeLab, started
from tests.metering import MINIMUM, PromptCache, count_input, weigh
from tests.virtual import run_virtually, virtual_clock

TRAIN = Path(__file__).parent.parent / "train.py"
SOURCE = profiles.apply_to_script(TRAIN.read_text(), profiles.CPU)
RUN, REPLY = 300.0, 30.0  # seconds
SERIES = [
    f"{kind}/{part}" for kind in ("gradient", "update") for part in ("wte", "lm_head", "matrix", "scalar", "value")
]
COSTS: Telemetry = {
    "step/flops": (4.4e9,),
    "step/bytes": (1.1e10,),
    "step/calls": (9.6e9,),
    "part/attn": (5e9,),
    "part/mlp": (6e9,),
}
ANCHORS = [line for line in SOURCE.splitlines() if re.match(r"        \w.* = ", line) and SOURCE.count(line) == 1]


def main() -> None:
    _print_openings()
    print("\n| night | agent | conversations | requests | input | from the cache | cost of the input |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for experiments, every in ((12, 4), (60, 6), (200, 10), (1000, 50)):
        mind = play_night(experiments, every)
        for agent in sorted(mind.usages, reverse=True):
            print(_write_row(f"{experiments}, {experiments // every} kept", agent, mind.usages[agent], 1))
        usages = [usage for found in mind.usages.values() for usage in found]
        print(_write_row(f"{experiments}, {experiments // every} kept", "all, per experiment", usages, experiments))


def _write_row(night: str, agent: str, usages: list[dict[str, Any]], by: int) -> str:
    total, read = sum(map(count_input, usages)), sum(usage["cache_read_input_tokens"] for usage in usages)
    opened = sum(usage["opens"] for usage in usages)
    cells = f"{opened / by:.3g} | {len(usages) / by:.3g} | {total / by:,.0f} | {read / total:.0%}"
    return f"| {night} | {agent} | {cells} | {sum(map(weigh, usages)) / total:.2f} |"


def _print_openings() -> None:
    prompts = load_style("default", [])
    print("| experiment | researcher | mechanic | reflector |")
    print("|---|---|---|---|")
    for number in (1, 10, 100, 1000):
        log = synthetic.log(number)
        state = log.state
        judged = ((r, r.commit) for r in reversed(state.results) if isinstance(r.verdict, Kept | Discarded))
        last, commit = next((r, commit) for r, commit in judged if commit)
        change = diff(log.get(state.parents[commit.parent].source), log.get(commit.source))
        shown = briefing.show_source(state, log.get(state.parent.source), log.get) | {"base": SOURCE}
        facts = {
            "researcher": briefing.brief_researcher(state, state.next, 1, SOURCE) | shown,
            "mechanic": packets.pack_order(last.proposal) | shown,
            "reflector": packets.pack_reflection(state, last, log.get(last.scores[-1].log), change, SOURCE),
        }
        cells = [synthetic.count_tokens(prompts[a].system + prompts[a].render_opening(facts[a])) for a in facts]
        print(f"| {number:,} | " + " | ".join(f"{tokens:,}" for tokens in cells) + " |")


def play_night(experiments: int, every: int, minimum: int = MINIMUM) -> "Mind":
    """Play a night in which every so many experiments one is kept; return its mind, which has counted."""
    mind, prompts = Mind(every, minimum), load_style("default", [])

    async def go(folder: str) -> None:
        session = Session(Path(folder, "s", "session.db"), virtual_clock, create=True)
        session.db.execute("pragma synchronous = off")
        limits = SessionLimits(hours=1e6, experiments=experiments)
        profile = make_profile()
        session.write(
            "", started(limits=limits, crew="claude", consolidate_every=20, asks_after_promotion=True, profile=profile)
        )
        live = Live(mind, session)

        async def meter(_: str) -> Telemetry | str:
            return COSTS

        crew = ClaudeCrew(
            session,
            lambda task_id, number: Recording(live, session, task_id, number),
            prompts,
            lambda: Optimizer(session.get),
            lambda words: f"Nothing fits {words}.",
            lambda *page: str(page),
            meter,
        )
        await run(session, crew, Lab(session))
        session.close()

    with tempfile.TemporaryDirectory() as folder:
        run_virtually(go(folder))
    return mind


def make_profile() -> Any:
    known = {"seq_len": 256, "vocab_size": 2048, "train_tokens": 5_528_832, "bytes_per_token": 2.78, "sigma": 0.0048}
    return started().profile.model_copy(update={"budget": 2.7e12, "expected_seconds": RUN, **known})


class Lab(FakeLab):
    """Trains our own train.py; what a proposal calls a gain is one."""

    async def commit_baseline(self) -> BaselineCommitted:
        return BaselineCommitted(commit="f" * 40, source=self.log.put(SOURCE), fingerprint=compute_fingerprint(SOURCE))

    async def train(self, granted: Granted, source: str) -> Scored:
        await asyncio.sleep(RUN)
        luck, shared = random.Random(f"{granted.seed}/{compute_digest(source)}"), random.Random(granted.seed)
        score = 2.8 - 0.03 * source.count("gain") + shared.gauss(0, 0.0036) + luck.gauss(0, 0.0016)
        curve = tuple(
            Point(seconds=i, progress=i / 50, loss=7 - 3 * (i / 50) ** 0.5 + luck.gauss(0, 0.02)) for i in range(1, 51)
        )
        telemetry: Telemetry = {name: tuple(luck.gauss(1, 0.2) for _ in range(8)) for name in SERIES} | COSTS
        return Scored(
            experiment=granted.experiment,
            run=granted.run,
            val_bpb=score,
            log=self.log.put("\n".join(f"step {i:05d} | loss: {7 - i / 30:.4f}" for i in range(90))),
            metrics=RunMetrics(
                train_seconds=RUN, total_seconds=RUN + 20, steps=100, tokens=10**5, parameters=10**6, memory_mb=600.0
            ),
            curve=curve,
            telemetry=telemetry,
        )


class Mind:
    """A model that says what a model might, at that length, and counts what it is sent."""

    def __init__(self, every: int, minimum: int) -> None:
        self.every, self.cache = every, PromptCache(minimum)
        self.usages = defaultdict[str, list[dict[str, Any]]](list)
        self.luck = random.Random(0)

    def at_most(self, request: Request) -> float:  # noqa: ARG002 - as a model is asked
        return 0.0

    async def reply(self, request: Request, on_wait: object) -> Reply:  # noqa: ARG002
        usage = self.cache.count(make_arguments(request, request.effort), virtual_clock())
        usage["opens"] = len(request.messages) == 1
        self.usages[request.agent].append(usage)
        await asyncio.sleep(REPLY)
        opening = "\n".join(part["text"] for part in request.messages[0]["content"])
        calls = getattr(self, request.agent)(opening, len(request.messages) // 2)
        content = [
            {"type": "tool_use", "id": f"t{self.luck.random()}", "name": name, "input": given} for name, given in calls
        ]
        message = {"role": "assistant", "content": content, "stop_reason": "tool_use", "usage": usage}
        return Reply(message, count_tokens(usage), 0.0)

    def write(self, characters: int) -> str:
        return synthetic.sentence(self.luck, characters)

    def researcher(self, opening: str, turn: int) -> Iterator[tuple[str, dict[str, Any]]]:
        number = int(re.findall(r"will be experiment (\d+)", opening)[-1])
        if number % 4 == 0 and not turn:
            yield "look_up_experiment", {"number": 0}
            yield "profile_step", {"settings": {"DEPTH": 2}}
            return
        if number % 3 == 1:
            book = {"beliefs": [f"#0 {self.write(200)}" for _ in range(6)], "questions": [self.write(150)] * 4}
            yield "rewrite_notebook", book | {"ideas": [self.write(160) for _ in range(8)]}
        name, value = self.luck.choice([(n, v) for n, v in read_values(SOURCE).items() if isinstance(v, float) and v])
        texts = {"hypothesis": 220, "rationale": 1100, "instructions": 900}
        draft = {key: self.write(length) for key, length in texts.items()}
        draft |= {
            "title": f"{number} {self.write(70)}",
            "family": self.luck.choice(["attention", "MLP", "optimizer", "init"]),
        }
        if number % self.every != 1 and self.luck.random() < 0.6:
            turned = round(value * self.luck.uniform(0.5, 2), 6)
            draft |= {"settings": {name: turned}, "instructions": f"{name} = {turned}"}
        elif number % self.every == 1:
            draft["instructions"] = f"Add a gain. {draft['instructions']}"
        guess = -0.025 if "Add a gain." in draft["instructions"] else -0.005
        yield "submit", {"proposals": [draft | {"expected_delta": guess}]}

    def mechanic(self, opening: str, _turn: int) -> Iterator[tuple[str, dict[str, Any]]]:
        anchor, word = self.luck.choice(ANCHORS), "gain" if "Add a gain." in opening else "mixed"
        lines = [
            f"        {word if not i else 'other'}_{self.luck.randrange(10**6)} = {i}.0 * self.scale(x)"
            for i in range(6)
        ]
        yield "replace", {"old": anchor, "new": "\n".join([anchor, *lines])}
        yield "submit", {"summary": self.write(160)}

    def reflector(self, _opening: str, turn: int) -> Iterator[tuple[str, dict[str, Any]]]:
        if not turn and self.luck.random() < 0.1:
            yield "compare_curves", {"points": 20}
            return
        lengths = {"happened": 420, "why": 600, "lesson": 190, "next": 250}
        texts = {name: self.write(length) for name, length in lengths.items()}
        yield "submit", {"implemented": "yes", "verdict": "inconclusive", **texts}

    def notebook(self, _opening: str, _turn: int) -> Iterator[tuple[str, dict[str, Any]]]:
        beliefs = [f"#0 {self.write(220)}" for _ in range(7)]
        yield "submit", {"beliefs": beliefs, "questions": [self.write(160)] * 5, "ideas": [self.write(150)] * 8}
