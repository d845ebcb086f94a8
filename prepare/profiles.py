"""A profile is what a kind of machine can train in one run: lengths, vocabulary, budget and the size of the baseline.

`fit` writes a profile's constants into a training script, so that there is one `train.py` for all devices.
Never imports torch.
"""

import re
from dataclasses import dataclass

from prepare.machine import gpu_memory, is_apple_silicon
from prepare.manifest import BudgetAmount

# NAME = value  # range – words
_DASH = " – "
_SPACE = rf"(?:one of .+?|[\d._e+-]+\.\.[\d._e+-]+(?: log)?)(?={_DASH}|$)"
_CONSTANT = re.compile(
    r"^(?P<name>[A-Z][A-Z0-9_]*) = (?P<value>[^#\n]*[^#\s])[ \t]*"
    rf"(?P<hash># *(?P<space>{_SPACE})?(?:{_DASH})?(?P<words>.*))?$",
    re.MULTILINE,
)

GIB = 1 << 30
FIVE_MINUTES = BudgetAmount(kind="time", amount=300, seconds=300)


@dataclass(frozen=True)
class Profile:
    """`chunk`: long documents become several, each with its own beginning, instead of being cropped to a row."""

    name: str
    seq_len: int
    vocab_size: int
    eval_tokens: int
    budget: BudgetAmount
    chunk: bool
    constants: str = ""


# SCALAR_LR: over seeds, val_bpb has σ 0.0135 at the 0.5 of large batches, 0.0048 at 0.05.
CPU = Profile(
    name="cpu",
    seq_len=256,
    vocab_size=2048,
    eval_tokens=1 << 16,
    # The amount is measured on the machine at hand; with start-up and evaluation a run takes about 20 seconds.
    budget=BudgetAmount(kind="work", amount=4e11, seconds=16.0),
    chunk=True,
    constants="""
DEPTH = 3                 # 1..5
MODEL_DIM = 96            # one of 64, 96, 128, 160
ASPECT_RATIO = 32
HEAD_DIM = 32             # one of 16, 32
WINDOW_PATTERN = "L"      # one of "L", "SL"
TOTAL_BATCH_SIZE = 2048   # one of 1024, 2048, 4096
DEVICE_BATCH_SIZE = 8
SCALAR_LR = 0.05          # 0.01..0.5 log
""",
)

MPS = Profile(
    name="mps",
    seq_len=512,
    vocab_size=8192,
    eval_tokens=1 << 20,
    budget=FIVE_MINUTES,
    chunk=True,
    constants="""
DEPTH = 4                 # 2..8
MODEL_DIM = 256           # one of 192, 256, 320, 384
HEAD_DIM = 64             # one of 32, 64
WINDOW_PATTERN = "L"      # one of "L", "SL"
TOTAL_BATCH_SIZE = 16384  # one of 8192, 16384, 32768
DEVICE_BATCH_SIZE = 16
""",
)

H100 = Profile(
    name="h100",
    seq_len=2048,
    vocab_size=8192,
    eval_tokens=40 * 524_288,
    budget=FIVE_MINUTES,
    chunk=False,
)

PROFILES = {profile.name: profile for profile in (CPU, MPS, H100)}


def detect() -> Profile:
    """The profile for this machine."""
    if (memory := gpu_memory()) is not None and memory >= 70 * GIB:
        return H100
    return MPS if is_apple_silicon() else CPU


def named(name: str) -> Profile:
    """Raises KeyError for a name that is neither a profile's nor "auto"."""
    return detect() if name == "auto" else PROFILES[name]


def fit(source: str, profile: str | Profile) -> str:
    """The script with the profile's values, and ranges, for those of its constants that the profile sets.

    Pure and idempotent; all other bytes stay, the words of the comments among them.
    """
    chosen = PROFILES[profile] if isinstance(profile, str) else profile
    ours = {line["name"]: line for line in _CONSTANT.finditer(chosen.constants)}

    def fitted(line: re.Match[str]) -> str:
        """The first line of each name; a later one is not on top of the script."""
        wanted = ours.pop(line["name"], None)
        return line[0] if wanted is None else _merged(line, wanted)

    return _CONSTANT.sub(fitted, source)


def _merged(line: re.Match[str], wanted: re.Match[str]) -> str:
    code = f"{line['name']} = {wanted['value']}"
    comment = _DASH.join(part for part in (wanted["space"] or line["space"], line["words"]) if part)
    column = max(line.start("hash") - line.start(), len(code) + 2)
    return f"{code.ljust(column)}# {comment}" if comment else code
