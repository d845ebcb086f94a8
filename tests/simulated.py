"""Whole nights of the classical crew on a made-up landscape: the shape of a small GPT's, without the training.

The effects are those measured on the cpu profile; scores get noise by seed, as real runs do.
"""

import asyncio
import hashlib
import random
from math import exp, log, log2

from orchestrator.core.events import BaselineCommitted, Crashed, Point, RunMetrics, Scored, SessionLimits
from orchestrator.core.source import compute_digest, compute_fingerprint
from orchestrator.loop import run
from orchestrator.optimizer.crew import Optimizer
from orchestrator.session.store import Session
from prepare import constants
from tests.fakes import started
from tests.virtual import run_virtually, virtual_clock

SOURCE = '''"""Trains a small GPT."""

from prepare import evaluate_bpb

DEPTH = 3                 # 1..5 – transformer blocks
MODEL_DIM = 96            # one of 64, 96, 128, 160 – width, a multiple of HEAD_DIM
HEAD_DIM = 32             # one of 16, 32, 64 – width of one attention head
MLP_RATIO = 4             # 1..6 – hidden width of the MLP over MODEL_DIM
WINDOW_PATTERN = "L"      # one of "L", "SL" – L sees the whole context
SOFTCAP = 15.0            # 5.0..60.0 log – logits are squeezed into ± this
ROPE_BASE = 10_000.0      # 1_000.0..1_000_000.0 log – longest wavelength
TOTAL_BATCH_SIZE = 2048   # one of 1024, 2048, 4096 – tokens per optimizer step
DEVICE_BATCH_SIZE = 8
EMBEDDING_LR = 0.6        # 0.1..2.0 log – Adam, token and value embeddings
UNEMBEDDING_LR = 0.004    # 0.001..0.04 log – Adam, output layer
MATRIX_LR = 0.04          # 0.01..0.16 log – Muon, all matrices in blocks
SCALAR_LR = 0.5           # 0.1..1.5 log – Adam, per-layer scalars
WEIGHT_DECAY = 0.2        # 0.0..0.6 – Muon, falls to 0 over the run
ADAM_BETA1 = 0.8          # 0.6..0.95
WARMUP_RATIO = 0.0        # 0.0..0.2 – share of the budget
WARMDOWN_RATIO = 0.5      # 0.2..1.0 – share of the budget

train([DEPTH, MODEL_DIM, HEAD_DIM, MLP_RATIO], WINDOW_PATTERN, SOFTCAP, ROPE_BASE, TOTAL_BATCH_SIZE, DEVICE_BATCH_SIZE)
train([EMBEDDING_LR, UNEMBEDDING_LR, MATRIX_LR, SCALAR_LR], WEIGHT_DECAY, ADAM_BETA1, WARMUP_RATIO, WARMDOWN_RATIO)
print("---")
'''
SIGMA = 0.0045
DEPTHS = {1: 0.02, 2: -0.051, 3: 0.0, 4: 0.035, 5: 0.07}
WIDTHS = {64: -0.02, 96: 0.0, 128: 0.052, 160: 0.10}
HIDDEN = {1: 0.01, 2: -0.04, 3: -0.025, 4: 0.0, 5: 0.02, 6: 0.04}
BATCHES = {1024: 0.051, 2048: 0.0, 4096: 0.101}


def true_score(source: str) -> float:
    """val_bpb without noise. Raises ValueError where the values do not go together."""
    c = constants.read_values(source)
    if c["MODEL_DIM"] % c["HEAD_DIM"]:
        raise ValueError("MODEL_DIM must be a multiple of HEAD_DIM")
    muon = log2(c["MATRIX_LR"] / 0.04)
    score = (
        2.2475 + DEPTHS[c["DEPTH"]] + WIDTHS[c["MODEL_DIM"]] + HIDDEN[c["MLP_RATIO"]] + BATCHES[c["TOTAL_BATCH_SIZE"]]
    )
    score += 0.006 * (log2(c["UNEMBEDDING_LR"] / 0.016) ** 2 - 4) + 0.0105 * muon**2 - 0.0255 * muon
    score += 0.2 * c["WARMUP_RATIO"] + 0.29 * max(0.0, c["WARMDOWN_RATIO"] - 0.5) ** 1.5
    return score + 0.002 * abs(log(c["SOFTCAP"] / 15)) + 0.003 * abs(c["ADAM_BETA1"] - 0.8)


class Landscape:
    """A lab whose training is a formula, a minute of virtual time long."""

    def __init__(self, log: Session, source: str = SOURCE, seconds: float = 21.0) -> None:
        self.log, self.source, self.seconds = log, source, seconds

    async def commit_baseline(self):
        return BaselineCommitted(
            commit="f" * 40, source=self.log.put(self.source), fingerprint=compute_fingerprint(self.source)
        )

    async def commit(self, experiment, parent, source, message):
        return compute_digest(f"{experiment}{parent}{source}{message}") + "0" * 24

    async def promote(self, experiment, parent, source, message):
        return compute_digest(f"{parent}{source}{message}") + "1" * 24

    async def train(self, granted, source):
        await asyncio.sleep(self.seconds)
        key = {"experiment": granted.experiment, "run": granted.run, "log": self.log.put("step 1\nstep 2\n")}
        luck = random.Random(f"{granted.seed}")
        try:
            score, c = true_score(source), constants.read_values(source)
            steps = round(140 * (3 / c["DEPTH"]) ** 0.5 * 2048 / c["TOTAL_BATCH_SIZE"])
        except (ValueError, LookupError, TypeError, ArithmeticError) as error:  # a constant is gone, or no number
            return Crashed(**key, failure="other", message=str(error), metrics=RunMetrics(total_seconds=3), curve=())
        measures = RunMetrics(
            train_seconds=20.0,
            total_seconds=self.seconds,
            steps=steps,
            tokens=steps * c["TOTAL_BATCH_SIZE"],
            parameters=200_000 + 150_000 * c["DEPTH"],
            memory_mb=300.0 + 60 * c["DEPTH"],
        )
        own = random.Random(f"{granted.seed}/{hashlib.sha256(source.encode()).hexdigest()}")
        score += luck.gauss(0, 0.8 * SIGMA) + own.gauss(0, 0.6 * SIGMA)  # experiments share part of a seed's luck
        return Scored(**key, val_bpb=score, metrics=measures, curve=curve(score, luck))


class Fragile(Landscape):
    """Like it, but a faster Muon does not survive."""

    async def train(self, granted, source):
        if constants.read_values(source)["MATRIX_LR"] > 0.04:
            key = {"experiment": granted.experiment, "run": granted.run, "log": self.log.put("boom")}
            return Crashed(**key, failure="NaN", message="loss is NaN", metrics=RunMetrics(), curve=())
        return await super().train(granted, source)


class Uneven(Landscape):
    """Like it, but now and then a run takes many times as long."""

    async def train(self, granted, source):
        luck = random.Random(f"{granted.experiment}/{granted.run}")
        await asyncio.sleep(luck.choice([0, 0, 30, 400, 900]))
        return await super().train(granted, source)


def curve(score: float, luck: random.Random) -> tuple[Point, ...]:
    places = [(i + 1) / 60 for i in range(60)]
    return tuple(
        Point(seconds=20 * p, progress=p, loss=round(1.98 * score + 3.5 * exp(-6 * p) + luck.gauss(0, 0.02), 4))
        for p in places
    )


def night(path, *, experiments=16, hours=8.0, lab=Landscape, **changes) -> Session:
    """A session of the classical crew from beginning to end."""

    async def go():
        session = Session(path, virtual_clock, create=True)
        session.write("", started(limits=SessionLimits(hours=hours, experiments=experiments), crew="optuna", **changes))
        await run(session, Optimizer(session.get), lab(session))
        return session

    return run_virtually(go())


class Noisy(Fragile):
    """Luck that no two experiments share."""

    async def train(self, granted, source):
        outcome = await super().train(granted, source)
        own = random.Random(f"{granted.seed}/{granted.experiment}").gauss(0, 0.012)
        return outcome if outcome.kind == "crashed" else outcome.model_copy(update={"val_bpb": outcome.val_bpb + own})
