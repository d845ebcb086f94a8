"""What the field knows of a script's constants, by their names: what each does, which way to look first, and why.

It is what the classical researcher argues from. A name that nothing fits gets the last entry.
"""

import re
from dataclasses import dataclass
from typing import Literal

from orchestrator.core.events import Family

ENOUGH_TOKENS = 10.0
"""Tokens per parameter below which a model has seen too little for its size. Hoffmann et al. (2022) find about 20
optimal, nanochat 12 without the embeddings; with all embeddings counted, as here, it is less."""

USUAL_EFFECT: dict[Family, float] = {
    "size": 6.0,
    "batch": 5.0,
    "MLP": 5.0,
    "optimizer": 4.0,
    "schedule": 3.0,
    "attention": 2.5,
    "init": 2.0,
    "regularisation": 2.0,
    "data order": 2.0,
    "simplification": 1.5,
    "other": 1.5,
}
"""How far one step on a constant of this family may move the score, in σ of one run: where to look first."""


@dataclass(frozen=True, slots=True)
class ConstantFamily:
    family: Family
    pattern: str
    up: str
    """A step up, in a word or two; a step down likewise."""
    down: str
    why: str
    first: Literal["up", "down", "budget"] = "up"
    """`budget`: down while the model has seen fewer than ENOUGH_TOKENS per parameter, otherwise up."""


FAMILIES = (
    ConstantFamily(
        "size",
        r"DEPTH|N_?LAYER",
        "Deeper",
        "Shallower",
        "Depth buys composition: each block can build on what the last one found. But a deeper model costs more "
        "per token, so a fixed budget shows it fewer tokens. Scaling laws (Kaplan et al. 2020; Hoffmann et al. "
        "2022) say that size and tokens should grow together; a model too large for its budget ends undertrained,"
        " one too small ends saturated.",
        "budget",
    ),
    ConstantFamily(
        "size",
        r"HEAD_DIM",
        "Fewer, wider heads",
        "More, narrower heads",
        "At a fixed width, the size of a head sets how many there are. Wide heads match queries and keys more "
        "precisely; many narrow ones attend to more things at once. In short contexts few dimensions are enough "
        "to tell positions apart.",
        "down",
    ),
    ConstantFamily(
        "size",
        r"DIM|WIDTH|ASPECT|EMBD|CHANNEL",
        "Wider",
        "Narrower",
        "Width is capacity in every matrix at once, and compute grows with its square. With few tokens per "
        "parameter the extra capacity is never filled, and the steps it costs are missed (Hoffmann et al. 2022).",
        "budget",
    ),
    ConstantFamily(
        "MLP",
        r"MLP|FFN?_|HIDDEN|EXPANSION",
        "A wider MLP",
        "A narrower MLP",
        "The MLP holds most of a block's weights and compute; the factor 4 is a convention from the first "
        "Transformer (Vaswani et al. 2017), not an optimum. Where the budget is short, compute saved here becomes"
        " more steps.",
        "budget",
    ),
    ConstantFamily(
        "batch",
        r"BATCH|ACCUM",
        "A larger batch",
        "A smaller batch",
        "A larger batch gives a cleaner gradient but fewer steps from the same tokens. Below the critical batch "
        "size (McCandlish et al. 2018), which is small early in training, steps are worth more than clean "
        "gradients; far below it, the noise eats the gain.",
        "down",
    ),
    ConstantFamily(
        "attention",
        r"WINDOW|PATTERN|CONTEXT",
        "A longer window",
        "A shorter window",
        "Most of what predicts the next token stands close by. A short window saves compute and lets layers "
        "specialise; too short a one hides what only the far context tells.",
    ),
    ConstantFamily(
        "attention",
        r"ROPE|ROTARY|THETA",
        "Slower rotations",
        "Faster rotations",
        "Rotary embeddings (Su et al. 2021) encode distance by rotation; the base sets the longest wavelength. A "
        "base made for long contexts leaves most channels nearly still within a short one, a small base makes "
        "distant positions alike.",
        "down",
    ),
    ConstantFamily(
        "optimizer",
        r"UNEMBED.*LR|LM_HEAD.*LR|HEAD_LR",
        "A faster output layer",
        "A slower output layer",
        "The output layer turns features into log-probabilities. It starts near zero, and until it has grown no "
        "useful gradient reaches the blocks; in a short run it may be what everything else waits for. Too fast, "
        "and frequent tokens dominate it.",
    ),
    ConstantFamily(
        "optimizer",
        r"EMBED.*LR",
        "Faster embeddings",
        "Slower embeddings",
        "A rare token's embedding is only touched when the token occurs, so embeddings bear, and in short runs "
        "need, a far higher rate than dense matrices. Too high a rate keeps frequent tokens from settling.",
    ),
    ConstantFamily(
        "optimizer",
        r"MATRIX|MUON_LR|HIDDEN_LR",
        "A faster Muon",
        "A slower Muon",
        "Muon (Jordan 2024) orthogonalises the momentum, so every direction of a weight matrix moves by the same "
        "amount, and the rate alone says how far. With few steps each has to go further; too far, and the steps "
        "undo one another.",
    ),
    ConstantFamily(
        "optimizer",
        r"(^|_)(LR|LEARNING_RATE)(?!.*(FRAC|MIN|FINAL))",
        "A higher learning rate",
        "A lower learning rate",
        "The learning rate trades speed against noise at the end. In a run of few steps distance matters more, "
        "and the decay takes the noise out again; beyond the edge of stability (Cohen et al. 2021) the loss stops"
        " falling.",
    ),
    ConstantFamily(
        "optimizer",
        r"MOMENTUM.*WARM",
        "A longer momentum warm-up",
        "A shorter momentum warm-up",
        "Early gradients turn quickly, and a long memory would average directions that no longer hold; so "
        "momentum starts low. The longer it stays low, the less averaging the later steps get.",
        "down",
    ),
    ConstantFamily(
        "optimizer",
        r"MOMENTUM|BETA_?1",
        "A longer memory",
        "A shorter memory",
        "Momentum averages the gradient over about 1/(1 − β) steps: less noise, but a slower turn. In a run of a "
        "few hundred steps a long memory never pays itself back; with noisy small batches it may.",
        "down",
    ),
    ConstantFamily(
        "optimizer",
        r"BETA_?2|EPS",
        "A steadier scale",
        "A quicker scale",
        "Adam divides by a running scale of the gradient over about 1/(1 − β₂) steps (Kingma and Ba 2014). A "
        "memory longer than the run's own changes makes early steps too small; one too short makes them jumpy.",
        "down",
    ),
    ConstantFamily(
        "schedule",
        r"WARMDOWN|COOLDOWN|DECAY_(RATIO|FRAC|STEPS)",
        "A longer decay",
        "A shorter decay",
        "While the rate is high the weights explore, while it falls they settle, and most of the visible gain "
        "comes then (Hu et al. 2024; Hägele et al. 2024). Too long a decay gives away distance, too short a one "
        "leaves noise.",
        "down",
    ),
    ConstantFamily(
        "schedule",
        r"WARMUP",
        "A longer warm-up",
        "A shorter warm-up",
        "Warm-up protects the first steps, when gradients are large and Adam's scale is not known yet. Every step"
        " of it is a step at less than full rate, which a short run can ill afford.",
        "down",
    ),
    ConstantFamily(
        "schedule",
        r"(FINAL|MIN).*(LR|FRAC)|LR.*(FINAL|MIN)",
        "A higher last rate",
        "A lower last rate",
        "A decay to zero leaves the last steps with nothing to do; ending a little above keeps them useful, at "
        "the price of some noise in the final weights (Bergsma et al. 2025 find that zero wins for long runs).",
    ),
    ConstantFamily(
        "regularisation",
        r"DECAY|DROPOUT|SMOOTHING",
        "More regularisation",
        "Less regularisation",
        "Weight decay keeps weights small, so that the same rate turns them faster. With less than one pass over "
        "the data nothing can be memorised yet, and what is left of its use is this effect on the effective rate.",
        "down",
    ),
    ConstantFamily(
        "regularisation",
        r"CAP|CLIP|Z_?LOSS",
        "A looser bound",
        "A tighter bound",
        "Squeezing the logits keeps early predictions from being overconfident and the gradients tame (Gemma 2, "
        "2024). A tight bound also keeps the model from saying what it knows.",
    ),
    ConstantFamily(
        "init",
        r"INIT|STD|SCALE|GAIN|LAMBDA",
        "A larger scale",
        "A smaller scale",
        "The scale at the start sets how large the first updates are relative to the weights. Small scales let "
        "features form early (Yang and Hu 2021), tiny ones waste steps on growing.",
        "down",
    ),
    ConstantFamily(
        "other", r"", "More", "Less", "Nothing is known of this constant beforehand; its effect is to be measured."
    ),
)


def find_family(name: str) -> ConstantFamily:
    """The first entry that fits the name."""
    return next(entry for entry in FAMILIES if re.search(entry.pattern, name))
