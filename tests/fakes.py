"""Stand-ins for what thinks and what trains: quick, random by seed, and otherwise like the real ones."""

import asyncio
import random
from dataclasses import dataclass, field

from orchestrator.core import events as ev
from orchestrator.core.description import get_recent_loss
from orchestrator.core.source import compute_digest, compute_fingerprint
from orchestrator.ports import Log, Revision
from subagents.agent import NoAnswer

SOURCE = "\n".join(["from prepare import evaluate_bpb", *(f"KNOB_{i} = 0.0" for i in range(40)), "print('---')", ""])
PROFILE = ev.SessionProfile(name="cpu", budget_kind="work", budget=1e12, expected_seconds=25.0, data_hash="d" * 16)


def started(**changes) -> ev.Started:
    fields = {
        "name": "test",
        "limits": ev.SessionLimits(hours=1.0),
        "crew": "fake",
        "style": "default",
        "seed": 7,
        "repairs": 2,
        "reflect_every": 1,
        "commit": "c" * 40,
        "profile": PROFILE,
        "prompts": {},
        "versions": {},
    }
    return ev.Started(**(fields | changes))


@dataclass
class FakeCrew:
    """Turns one knob at a time, some by editing; now and then it has no answer, or repeats itself."""

    seed: int = 0
    trouble: float = 0.1

    def luck(self, task_id: str) -> random.Random:
        return random.Random(f"{self.seed}/{task_id}")

    async def propose(self, state, step):
        luck = self.luck(step.task_id)
        await asyncio.sleep(luck.uniform(0, 8))
        if luck.random() < self.trouble:
            raise NoAnswer("the researcher fell silent")
        return [_proposal(luck) for _ in range(step.count)]

    async def implement(self, state, step, proposal, source):
        luck = self.luck(step.task_id)
        await asyncio.sleep(luck.uniform(0, 8))
        if luck.random() < self.trouble:
            raise NoAnswer("the mechanic fell silent")
        return Revision(_turned(source, proposal.instructions), f"Set {proposal.instructions}.")

    async def repair(self, state, step, broken, source):
        luck = self.luck(step.task_id)
        await asyncio.sleep(luck.uniform(0, 8))
        if luck.random() < self.trouble:
            raise NoAnswer("beyond repair")
        return Revision(source + f"REPAIRED = {broken.candidate.repairs + 1}\n", "Repaired it.")

    async def reflect(self, state, step, decided):
        luck = self.luck(step.task_id)
        await asyncio.sleep(luck.uniform(0, 8))
        if luck.random() < self.trouble:
            raise NoAnswer("nothing to say")
        return ev.Postmortem(verdict="inconclusive", happened="it ran", why="chance", lesson="none", next="go on")


class InventiveCrew(FakeCrew):
    """Never runs out of values to try."""

    async def propose(self, state, step):
        luck, found = self.luck(f"{step.task_id}, finely"), []
        for proposal in await super().propose(state, step):
            name, value = proposal.instructions.split()[0], round(luck.uniform(1, 3), 6)
            settings = {name: value} if proposal.settings else {}
            words = {"title": f"set {name} to {value}", "instructions": f"{name} = {value}"}
            found.append(proposal.model_copy(update={"settings": settings, **words}))
        return found


def _proposal(luck: random.Random) -> ev.Proposal:
    name, value = f"KNOB_{luck.randrange(40)}", float(luck.choice([1, 2, 3]))
    by_code = luck.random() < 0.5
    return ev.Proposal(
        title=f"set {name} to {value}",
        hypothesis=f"{name} is too low.",
        rationale="It has not been tried.",
        expected_delta=-0.01,
        family="other",
        settings={name: value} if by_code else {},
        direction="set" if by_code else None,
        instructions=f"{name} = {value}",
    )


def _turned(source: str, setting: str) -> str:
    name, _, _ = setting.partition(" ")
    return "\n".join(setting if line.startswith(f"{name} =") else line for line in source.split("\n"))


@dataclass
class FakeLab:
    """Scores a source by its knobs, with noise by seed; crashes and machine trouble come by chance."""

    log: Log
    seed: int = 0
    trouble: float = 0.1
    noise: float = 0.004
    trained: list[tuple[int, int]] = field(default_factory=list)
    promoted: list[int] = field(default_factory=list)

    async def commit_baseline(self):
        await asyncio.sleep(0.1)
        return ev.BaselineCommitted(
            commit="f" * 40, source=self.log.put(SOURCE), fingerprint=compute_fingerprint(SOURCE)
        )

    async def commit(self, experiment, parent, source, message):
        await asyncio.sleep(0.01)
        return compute_digest(f"{experiment}{parent}{source}{message}") + "0" * 24

    async def promote(self, experiment, parent, source, message):
        await asyncio.sleep(0.01)
        self.promoted.append(experiment)
        return compute_digest(f"{parent}{source}{message}") + "0" * 24

    async def train(self, granted, source):
        self.trained.append((granted.experiment, granted.run))
        luck = random.Random(f"{self.seed}/{granted.experiment}/{granted.run}")
        await asyncio.sleep(luck.uniform(20, 30))
        key = {"experiment": granted.experiment, "run": granted.run, "log": self.log.put(f"log {luck.random()}")}
        if luck.random() < self.trouble / 3 and granted.experiment:
            return ev.Aborted(experiment=granted.experiment, run=granted.run, reason="the disk hiccuped")
        key |= {"metrics": ev.RunMetrics(train_seconds=20, total_seconds=25, steps=100, tokens=10**6)}
        shared = random.Random(granted.seed).gauss(0, 0.9 * self.noise)
        score = _true_score(source) + shared + luck.gauss(0, 0.4 * self.noise)
        key |= {"curve": _curve(score, luck)}
        if luck.random() < self.trouble and granted.experiment:
            return ev.Crashed(**key, failure="other", message="ValueError: it broke")
        plan = granted.plan
        pruned_at = next(
            (t.progress for t in plan.pruning_thresholds if get_recent_loss(key["curve"], t.progress) > t.loss), None
        )
        if pruned_at and not plan.control_run:
            return ev.Pruned(**key, reason=f"far behind after {pruned_at:.0%}")
        confirmed = score + 0.1 + luck.gauss(0, 0.0005) if plan.confirmed and plan.needs_audit(score) else None
        return ev.Scored(**key, val_bpb=score, confirmed=confirmed, would_prune_at=pruned_at)


def _curve(score: float, luck: random.Random) -> tuple[ev.Point, ...]:
    """It falls towards a loss of three times the score."""
    shares = [n / 25 for n in range(1, 26)]
    return tuple(
        ev.Point(seconds=20 * p, progress=p, loss=3 * score + 2 * (1 - p) + luck.gauss(0, 0.01)) for p in shares
    )


def _true_score(source: str) -> float:
    """Each knob has a secret best setting, worth up to 0.02."""
    score = 2.25
    for line in source.split("\n"):
        name, _, value = line.partition(" = ")
        if name.startswith("KNOB_"):
            secret = random.Random(name)
            score += 0.01 * (abs(float(value) - secret.choice([0, 1, 2])) > 0) * secret.random()
    return score
