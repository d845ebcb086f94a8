"""Sort a script's constants into families by their names, with a label for a step up and a step down.

No direction is expected to be better: over 24 simulated experiments the textbook's directions gained 0.150 bits per
byte, none 0.146, and the reverse of the textbook's 0.148.
"""

import re
from dataclasses import dataclass

from orchestrator.core.events import Family

USUAL_EFFECT: dict[Family, float] = {
    "size": 6.0,
    "batch": 5.0,
    "MLP": 5.0,
    "optimizer": 4.0,
    "schedule": 3.0,
    "attention": 2.5,
    "init": 2.0,
    "regularisation": 2.0,
    "simplification": 1.5,
    "other": 1.5,
}
"""Usual effect of one step on a constant of a family, in σ of one run: the order in which constants are tried."""
CHEAPER_DOWN = {"size", "MLP", "attention"}
"""Families whose smaller values need less compute: unless measurements favor up, down is tried first."""


@dataclass(frozen=True, slots=True)
class ConstantFamily:
    """A family, the pattern of its constants' names, and the labels of a step up and a step down."""

    family: Family
    pattern: str
    up: str
    down: str


FAMILIES = (
    ConstantFamily("size", r"DEPTH|N_?LAYER", "Deeper", "Shallower"),
    ConstantFamily("size", r"HEAD_DIM", "Fewer, wider heads", "More, narrower heads"),
    ConstantFamily("size", r"DIM|WIDTH|ASPECT|EMBD|CHANNEL", "Wider", "Narrower"),
    ConstantFamily("MLP", r"MLP|FFN?_|HIDDEN|EXPANSION", "A wider MLP", "A narrower MLP"),
    ConstantFamily("batch", r"BATCH|ACCUM", "A larger batch", "A smaller batch"),
    ConstantFamily("attention", r"WINDOW|PATTERN|CONTEXT", "A longer window", "A shorter window"),
    ConstantFamily("attention", r"ROPE|ROTARY|THETA", "Slower rotations", "Faster rotations"),
    ConstantFamily("optimizer", r"UNEMBED.*LR|LM_HEAD.*LR|HEAD_LR", "A faster output layer", "A slower output layer"),
    ConstantFamily("optimizer", r"EMBED.*LR", "Faster embeddings", "Slower embeddings"),
    ConstantFamily("optimizer", r"MATRIX|MUON_LR|HIDDEN_LR", "A faster Muon", "A slower Muon"),
    ConstantFamily(
        "optimizer", r"(^|_)(LR|LEARNING_RATE)(?!.*(FRAC|MIN|FINAL))", "A higher learning rate", "A lower learning rate"
    ),
    ConstantFamily("optimizer", r"MOMENTUM.*WARM", "A longer momentum warm-up", "A shorter momentum warm-up"),
    ConstantFamily("optimizer", r"MOMENTUM|BETA_?1", "A longer memory", "A shorter memory"),
    ConstantFamily("optimizer", r"BETA_?2|EPS", "A steadier scale", "A quicker scale"),
    ConstantFamily("schedule", r"WARMDOWN|COOLDOWN|DECAY_(RATIO|FRAC|STEPS)", "A longer decay", "A shorter decay"),
    ConstantFamily("schedule", r"WARMUP", "A longer warm-up", "A shorter warm-up"),
    ConstantFamily("schedule", r"(FINAL|MIN).*(LR|FRAC)|LR.*(FINAL|MIN)", "A higher last rate", "A lower last rate"),
    ConstantFamily("regularisation", r"DECAY|DROPOUT|SMOOTHING", "More regularisation", "Less regularisation"),
    ConstantFamily("regularisation", r"CAP|CLIP|Z_?LOSS", "A looser bound", "A tighter bound"),
    ConstantFamily("init", r"INIT|STD|SCALE|GAIN|LAMBDA", "A larger scale", "A smaller scale"),
    ConstantFamily("other", r"", "More", "Less"),
)
"""The first entry whose pattern matches a name counts; the last one matches every name."""


def find_family(name: str) -> ConstantFamily:
    """Return the family of a constant."""
    words = name.rpartition(":")[2].upper().replace("-", "_")
    return next(entry for entry in FAMILIES if re.search(entry.pattern, words))


def get_usual_effect(name: str) -> float:
    """Return the usual effect of one step on a constant, in σ of one run."""
    return USUAL_EFFECT[find_family(name).family]
