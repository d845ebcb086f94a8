"""Measure what the views of a night with 16 slots add in CPU time and memory, and whether an event costs more later.

The night is that of `slots`, with conversations, long texts and curves; its terminal is 120 × 50. `--hours HOURS` plays
a shorter one.
"""

import argparse
import os
import random
import resource
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from benchmarks.slots import HOURS, Simulation, simulate
from orchestrator.core import events as ev
from orchestrator.core.state import Decided, State
from orchestrator.policy import steps
from orchestrator.ports import Revision
from orchestrator.session.store import Session
from orchestrator.views.musings import write_musings
from orchestrator.views.observers import Observers
from tests import synthetic
from tests.simulated import curve

SLOTS, NIGHTS = 16, {"none": 0, "all": 0, "all, ten earlier nights": 10, "without a terminal": 0}
"""Which views there are, and the number of earlier nights."""


@dataclass
class Wordy(Simulation):
    """A night with all that views show."""

    async def say(self, agent: str, task_id: str, experiment: int) -> random.Random:
        luck = random.Random(task_id)
        for _, event in synthetic.converse(task_id, agent, experiment, luck):
            await self.log.append(task_id, event)
        return luck

    async def propose(self, state: State, step: steps.Propose) -> list[ev.Proposal]:
        luck = await self.say("researcher", step.task_id, step.first)
        words = {name: getattr(synthetic.proposal(luck), name) for name in ("title", "hypothesis", "rationale")}
        return [proposal.model_copy(update=words) for proposal in await super().propose(state, step)]

    async def implement(self, state: State, step: steps.Edit, proposal: ev.Proposal, source: str) -> Revision:
        await self.say("mechanic", step.task_id, step.experiment)
        return await super().implement(state, step, proposal, source)

    async def reflect(self, state: State, step: steps.Reflect, decided: Decided) -> ev.Postmortem:
        await super().reflect(state, step, decided)
        return synthetic.postmortem(await self.say("reflector", step.task_id, step.experiment))

    async def train(self, granted: ev.Granted, source: str) -> ev.Outcome:
        outcome = await super().train(granted, source)
        assert isinstance(outcome, ev.Scored)
        return outcome.model_copy(update={"curve": curve(outcome.val_bpb, random.Random(granted.seed))})


@dataclass
class Watch:
    """Watches a night with some of the views, and notes the CPU time at each append."""

    views: str
    place: Path
    marks: list[float] = field(default_factory=list[float])
    rest: float = 0.0

    def __call__(self, session: Session) -> AbstractContextManager[object]:
        session.watchers.append(lambda: self.marks.append(time.process_time()))
        if self.views == "none":
            return nullcontext()
        environment = {"TERM": "dumb" if "terminal" in self.views else "xterm-256color"}
        sink = Path(os.devnull).open("w")  # noqa: SIM115 - as long as this process lives
        console = Console(file=sink, width=120, height=50, force_terminal=True, _environ=environment)
        observers = Observers(session, self.place / "musings", console)
        session.watchers.append(lambda: setattr(self, "rest", observers.pages.pace.rest))
        return observers


def play(views: str, place: Path, hours: float) -> str:
    """Play a night and return its row."""
    for number in range(NIGHTS[views]):
        write_musings(synthetic.log(100, seed=number), place / "musings" / f"earlier-{number}")
    began, watch = time.process_time(), Watch(views, place)
    session = simulate(place / "session.db", SLOTS, hours=hours, crew=Wordy, watch=watch)
    spent, count, marks = time.process_time() - began, len(session.state.tried), watch.marks
    quarters = (marks[len(marks) * n // 4 : len(marks) * (n + 1) // 4] for n in range(4))
    costs = ", ".join(f"{1000 * (part[-1] - part[0]) / len(part):.1f}" for part in quarters)
    session.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row = f"| {views} | {count:,} | {len(session.records):,} | {1000 * spent / count:.1f} | {costs}"
    return f"{row} | {watch.rest / 60:.1f} | {peak:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hours", type=float, default=HOURS)
    chosen, _ = parser.parse_known_args()
    print(
        "| views | experiments | events | CPU ms per experiment | of an append, by quarter | rest, minutes | peak MB |"
    )
    print("|---|--:|--:|--:|---|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for views in NIGHTS:
            print(play(views, Path(folder, views), chosen.hours), flush=True)
