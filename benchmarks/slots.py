"""Nights of the real loop, policy and session with simulated researchers and machines, on a virtual clock.

Durations are those of published nights. An idea sets one line of train.py, whose values add up to the score; one in
five helps. The machine must never wait. With many slots, keeps overtake what still trains. `--landscapes` compares
nights with and without stacks where effects depend on each other.
"""

import asyncio
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from benchmarks.frontier import SETTINGS, Landscape
from orchestrator.core import events as ev
from orchestrator.core.source import compute_digest, compute_fingerprint
from orchestrator.core.state import Broken, Decided, State
from orchestrator.loop import run
from orchestrator.policy import steps
from orchestrator.policy.thresholds import BASELINE_RUNS, KEEP_RULE
from orchestrator.ports import Revision
from orchestrator.session.store import Session
from orchestrator.views.usage import list_runs
from tests.fakes import started
from tests.virtual import run_virtually, virtual_clock

HOURS = 8.0
NIGHTS = {1: HOURS, 8: HOURS, 16: HOURS, 64: HOURS, 256: 1.0}
"""Slots, and hours of their night: an event costs more with more slots, and there are more of them."""
RUN, PROPOSAL, FURTHER, EDIT, POSTMORTEM = 326.0, 60.0, 15.0, 40.0, 30.0
"""Seconds of a run (300 of training), of a first proposal and each further one of the same request, and so on."""
HELPS, SIGMA = 0.2, 0.0007
LINES, SPACING = 400, 5
"""Lines of train.py, and between the sites of a landscape, so that changes of two neighbours can be merged."""
SOURCE = "".join(["VALUES = '''\n", *(f"VALUE_{number} = 0.0\n" for number in range(LINES)), "'''\n"])
PROFILE = ev.SessionProfile(
    name="h100", budget_kind="time", budget=300.0, expected_seconds=RUN, data_hash="d" * 16, sigma=SIGMA,
    baseline_runs=BASELINE_RUNS,
)  # fmt: skip


@dataclass
class Simulation:
    """The crew and the executor of a night; `lock` lets one thing happen at a time."""

    log: Session
    lock: asyncio.Lock | None = None
    spread: float = 0.05
    """Share by which each duration varies."""
    land: Landscape | None = None
    """Where the effect of an idea depends on others; None where effects add up."""
    commits: int = field(default=0)

    async def spend(self, seconds: float, key: str) -> random.Random:
        luck = random.Random(f"{self.log.state.session.seed}/{key}")
        async with self.lock or nullcontext():
            await asyncio.sleep(seconds * luck.uniform(1 - self.spread, 1 + self.spread))
        return luck

    async def propose(self, state: State, step: steps.Propose) -> list[ev.Proposal]:
        await self.spend(PROPOSAL + FURTHER * (step.count - 1), step.task_id)
        values = read_values(self.log.get(state.parent.source))
        return [self.think(step.first + i, values) for i in range(step.count)]

    def think(self, number: int, values: list[float]) -> ev.Proposal:
        """Return the idea of that number, which is the same in every night of one seed."""
        luck = random.Random(f"{self.log.state.session.seed}/idea {number}")
        if self.land:
            line = SPACING * luck.randrange(len(self.land.alone))
            change = f"VALUE_{line} = {luck.choice([n for n in range(SETTINGS) if n != values[line]])}"
        else:
            effect = -luck.expovariate(1 / 0.002) if luck.random() < HELPS else luck.expovariate(1 / 0.003)
            change = f"VALUE_{luck.randrange(LINES)} = {effect:.6f}"
        return ev.Proposal(
            title=f"idea {number}",
            hypothesis="It helps.",
            rationale="It has not been tried.",
            expected_delta=-0.001,
            family="other",
            instructions=change,
        )

    async def implement(self, state: State, step: steps.Edit, proposal: ev.Proposal, source: str) -> Revision:
        del state
        await self.spend(EDIT, step.task_id)
        name = proposal.instructions.partition(" ")[0]
        return Revision(
            "".join(
                f"{proposal.instructions}\n" if line.startswith(f"{name} ") else line
                for line in source.splitlines(True)
            )
        )

    async def repair(self, state: State, step: steps.Edit, broken: Broken, source: str) -> Revision:
        raise NotImplementedError

    async def reflect(self, state: State, step: steps.Reflect, decided: Decided) -> ev.Postmortem:
        del state, decided
        await self.spend(POSTMORTEM, step.task_id)
        return ev.Postmortem(verdict="inconclusive", happened="it ran", why="chance", lesson="none", next="go on")

    async def commit_baseline(self) -> ev.BaselineCommitted:
        source = self.log.put(SOURCE)
        return ev.BaselineCommitted(commit="f" * 40, source=source, fingerprint=compute_fingerprint(SOURCE))

    async def commit(self, experiment: int, parent: str, source: str, message: str) -> str:
        return compute_digest(f"{experiment}{parent}{source}{message}") + "0" * 24

    async def promote(self, experiment: int, parent: str, source: str, message: str) -> str:
        return compute_digest(f"{experiment}{parent}{source}{message}") + "1" * 24

    async def train(self, granted: ev.Granted, source: str) -> ev.Outcome:
        luck = await self.spend(RUN, f"{granted.experiment}.{granted.run}")
        shared = random.Random(granted.seed).gauss(0, 0.9 * SIGMA)
        score = 1.0 + compute_effect(source, self.land) + shared + luck.gauss(0, 0.3 * SIGMA)
        metrics = ev.RunMetrics(train_seconds=300.0, total_seconds=RUN, steps=900, parameters=50_000_000)
        return ev.Scored(
            experiment=granted.experiment, run=granted.run, log=self.log.put("log"), curve=(), metrics=metrics,
            val_bpb=score, confirmed=score,
        )  # fmt: skip


def read_values(source: str) -> list[float]:
    return [float(line.partition(" = ")[2]) for line in source.splitlines()[1:-1]]


def compute_effect(source: str, land: Landscape | None = None) -> float:
    values = read_values(source)
    return -SIGMA * land.measure(tuple(map(int, values[::SPACING][: len(land.alone)]))) if land else sum(values)


def simulate(
    path: Path,
    slots: int,
    *,
    hours: float = HOURS,
    sequential: bool = False,
    land: Landscape | None = None,
    crew: type[Simulation] = Simulation,
    watch: Callable[[Session], AbstractContextManager[object]] = nullcontext,
    **changes: object,
) -> Session:
    """Run a night under the eyes of a watcher, and return its session."""

    session = Session(path, virtual_clock, create=True)
    session.db.execute("pragma synchronous = off")  # its cost is the disk's, and is spent waiting
    limits = ev.SessionLimits(hours=hours)
    session.write("", started(slots=slots, profile=PROFILE, **({"limits": limits, "rule": KEEP_RULE} | changes)))
    simulation = crew(session, asyncio.Lock() if sequential else None, land=land)

    async def go() -> None:  # asyncio would write out the state, if that were the result
        await run(session, simulation, simulation)

    with watch(session):
        run_virtually(go())
    return session


@dataclass(frozen=True)
class Figures:
    """What became of the slots' time, as shares of the whole night."""

    busy: float
    lost: float
    """Spent on runs whose scores were thrown away, since the candidate was rebased."""
    experiments: int
    kept: int
    runs: int
    gain: float


def measure(session: Session, hours: float = HOURS, land: Landscape | None = None) -> Figures:
    state, runs = session.state, list_runs(session.records)
    spent, since, lost = {(run.experiment, run.run): run.end - run.start for run in runs}, dict[int, list[float]](), 0.0
    for record in session.records:
        match record.event:
            case ev.Committed(experiment=number, how="rebased"):
                lost += sum(since.pop(number, []))
            case ev.Scored(experiment=number, run=one):
                since.setdefault(number, []).append(spent[number, one])
            case _:
                pass
    whole = 3600 * hours * state.session.slots
    tested = sum(bool(result.scores) for result in state.tried)
    gain = -compute_effect(session.get(state.parent.source), land) / SIGMA
    return Figures(sum(spent.values()) / whole, lost / whole, tested, len(state.kept), len(runs), gain)


def compare_stacks(folder: str) -> None:
    """Print the gain with and without stacks on each landscape of `frontier`, by seed and on average."""
    print("| landscape | slots | hours | without stacks, σ | with stacks, σ |")
    print("|---|--:|--:|---|---|")
    for slots, hours in ((4, 6.0), (16, 3.0)):
        for kind in ("additive", "interacting", "deceptive"):
            row = f"| {kind} | {slots} | {hours:g} |"
            for stacks in (False, True):
                gains, rule = list[float](), KEEP_RULE.model_copy(update={"stacks": stacks})
                for seed in (1, 2, 3):
                    path, land = Path(folder, f"{kind}-{slots}-{stacks}-{seed}", "session.db"), Landscape(kind, seed)
                    session = simulate(path, slots, hours=hours, land=land, seed=seed, rule=rule)
                    gains.append(measure(session, hours, land).gain)
                    session.close()
                row += f" {fmean(gains):.1f} ({', '.join(f'{gain:.1f}' for gain in gains)}) |"
            print(row, flush=True)


def compare_slots(folder: str) -> None:
    """Print what became of the slots' time in a night, by number of slots."""
    heads = (
        "slots",
        "hours",
        "busy",
        "experiments",
        "kept",
        "runs",
        "lost to rebases",
        "gain, σ",
        "CPU ms per experiment",
    )
    print(f"| {' | '.join((*heads, 'peak MB'))} |")
    print("|---" * 10 + "|")
    for slots, hours, sequential in [(1, HOURS, True), *((*night, False) for night in NIGHTS.items())]:
        path, began = Path(folder, f"{slots}-{sequential}", "session.db"), time.process_time()
        session = simulate(path, slots, hours=hours, sequential=sequential)
        cpu = time.process_time() - began
        found = measure(session, hours)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        row = f"| {'1, sequential' if sequential else slots} | {hours:g} | {found.busy:.1%} | {found.experiments}"
        row += f" | {found.kept} | {found.runs} | {found.lost:.1%} | {found.gain:.1f}"
        print(f"{row} | {1000 * cpu / max(found.experiments, 1):.1f} | {peak:.0f} |", flush=True)
        session.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (compare_stacks if "--landscapes" in sys.argv else compare_slots)(folder)
