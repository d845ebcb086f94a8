"""Hostile training code against the whole lab: no false score, nothing read, nothing left."""

import shutil
from dataclasses import replace

import pytest

from orchestrator.core.events import Scored
from orchestrator.lab.failures import MAX_MESSAGE
from orchestrator.lab.monitor import RunLimits
from orchestrator.lab.sandbox import select
from orchestrator.lab.sandbox.bubblewrap import Bubblewrap
from orchestrator.lab.sandbox.landlock import Landlock
from tests.hostile.enemies import CORRECTED, ENEMIES
from tests.hostile.world import FALSE, PATIENT, TRUTH, World

LIMITS = RunLimits(wall=900, free_disk=1 << 20, file=32 << 20, memory=3 << 30, output=4 << 20, processes=100)
HONEST = "model = train(Model())\nevaluate_bpb(model, tokenizer, 16)\n"
SANDBOXES = {"bubblewrap": lambda: Bubblewrap(size=64 << 20), "landlock": Landlock}
WEAK = {tier: select.self_check(sandbox()) for tier, sandbox in SANDBOXES.items()}
TIERS = [
    pytest.param(tier, marks=pytest.mark.skipif(bool(WEAK[tier]), reason=f"{tier} does not hold here: {WEAK[tier]}"))
    for tier in SANDBOXES
]


async def met(folder, tier, enemy, seen):
    short = enemy.end == "timeout"
    limits = replace(LIMITS, wall=1.0) if short else LIMITS
    if "memory" in enemy.end:
        limits = replace(limits, memory=512 << 20)
    if enemy.end == "disk full" and tier == "landlock":
        limits = replace(limits, reserve=shutil.disk_usage(folder).free - (64 << 20))
    budget = {"kind": "time", "amount": enemy.seconds} if enemy.seconds else {}
    world = World(folder, SANDBOXES[tier](), limits, **budget)
    outcome, wrong = await world.meet(enemy.code, enemy.begins, enemy.times)
    why = f"{outcome.val_bpb:.3f}" if isinstance(outcome, Scored) else f"{outcome.failure}: {outcome.message}"
    seen(f"{enemy.name:52} {tier:11} {outcome.kind:9} {why[:110]}")
    assert not wrong, why
    assert len(outcome.model_dump_json()) < 20_000, "what it says fits into the session's file"
    assert len(getattr(outcome, "message", "")) <= MAX_MESSAGE
    assert enemy.end in f"{outcome.kind}: {why}", why


@pytest.mark.parametrize("enemy", [enemy for enemy in ENEMIES if enemy.quick], ids=lambda enemy: enemy.name)
async def test_an_enemy_gets_nothing(tmp_path, enemy):
    tier = next((tier for tier, weakness in WEAK.items() if not weakness), None)
    if tier is None:
        pytest.skip(f"no sandbox holds here: {WEAK}")
    await met(tmp_path, tier, enemy, print)


@pytest.mark.soak
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("enemy", ENEMIES, ids=lambda enemy: enemy.name)
async def test_no_enemy_gets_anything(tmp_path, enemy, tier, table):
    await met(tmp_path, tier, enemy, table)


@pytest.fixture
def table(capsys):
    """Prints a row of the table, past pytest."""

    def row(text):
        with capsys.disabled():
            print(f"\n{text}", end="")

    return row


@pytest.mark.parametrize("tier", [TIERS[0], pytest.param("landlock", marks=[*TIERS[1].marks, pytest.mark.soak])])
async def test_honest_code_scores_what_it_claims(tmp_path, tier):
    world = World(tmp_path, SANDBOXES[tier](), LIMITS)
    outcome, wrong = await world.meet(HONEST, "honest", plan=PATIENT)
    assert not wrong
    assert isinstance(outcome, Scored), outcome
    assert outcome.audit
    assert TRUTH < outcome.val_bpb < TRUTH + 0.6
    assert abs(outcome.val_bpb - outcome.audit.claimed) < 1e-4
    assert outcome.audit.error < 1e-4
    assert outcome.confirmed == pytest.approx(outcome.val_bpb, abs=0.3)
    assert outcome.confirmed != outcome.val_bpb
    assert (outcome.tier, outcome.audit.looks, outcome.metrics.train_seconds > 0) == (tier, 64, True)


def test_a_false_score_is_below_the_truth():
    assert FALSE < TRUTH
    assert CORRECTED == "scored"
    assert len({enemy.name for enemy in ENEMIES}) == len(ENEMIES) >= 30
