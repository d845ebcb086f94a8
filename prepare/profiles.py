"""A profile is what a kind of machine can train in one run: lengths, vocabulary, budget and the size of the baseline.

`fit` writes a profile's constants into a training script, so that there is one `train.py` for all devices.
Never imports torch.
"""

import json
import re
from ast import literal_eval
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from prepare.machine import Gpu, is_apple_silicon, list_gpus
from prepare.manifest import BudgetAmount, Constant, Manifest

# NAME = value  # range – words
_DASH = " – "
_SPACE = rf"(?:one of .+?|[\d._e+-]+\.\.[\d._e+-]+(?: log)?)(?={_DASH}|$)"
_CONSTANT = re.compile(
    r"^(?P<name>[A-Z][A-Z0-9_]*) = (?P<value>[^#\n]*[^#\s])[ \t]*"
    rf"(?P<hash># *(?P<space>{_SPACE})?(?:{_DASH})?(?P<words>.*))?$",
    re.MULTILINE,
)

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
    sigma: float = 0.0
    """The spread of val_bpb over seeds, where it was measured (docs/benchmarks.md)."""


# SCALAR_LR: over seeds, val_bpb varies three times as much at the 0.5 of large batches as at 0.05.
CPU = Profile(
    name="cpu",
    seq_len=256,
    vocab_size=2048,
    eval_tokens=1 << 16,
    # The amount is measured on the machine at hand; with start-up, evaluation and audit a run takes about 20 s.
    budget=BudgetAmount(kind="work", amount=1.8e12, seconds=10.0),
    chunk=True,
    sigma=0.008,
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


def _make_gpu_profile(
    name: str, depth: int, dim: int, seq_len: int, rows: int, batch: int, eval_tokens: int, pattern: str = "SSSL"
) -> Profile:
    """What is trained for five minutes on a GPU; whole documents in long rows, as upstream packs them."""
    return Profile(
        name=name,
        seq_len=seq_len,
        vocab_size=8192,
        eval_tokens=eval_tokens,
        budget=FIVE_MINUTES,
        chunk=seq_len < 2048,
        constants=f"""
DEPTH = {depth}  # 2..12
MODEL_DIM = {dim}  # one of 256, 384, 512, 640
HEAD_DIM = 128  # one of 64, 128
WINDOW_PATTERN = "{pattern}"  # one of "L", "SL", "SSSL"
TOTAL_BATCH_SIZE = {batch}  # one of {batch // 2}, {batch}, {2 * batch}
DEVICE_BATCH_SIZE = {rows}
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
# GB of memory at least, in decimal: a card of "6 GB" has 6.2 or 6.4, one of "80 GB" 85.
GPUS = (
    (70.0, H100),
    (38.0, _make_gpu_profile("gpu40", 8, 512, 2048, rows=64, batch=1 << 18, eval_tokens=1 << 22)),
    (19.0, _make_gpu_profile("gpu24", 6, 384, 2048, rows=32, batch=1 << 16, eval_tokens=1 << 21)),
    (15.0, _make_gpu_profile("gpu16", 6, 384, 2048, rows=16, batch=1 << 16, eval_tokens=1 << 21)),
    (9.5, _make_gpu_profile("gpu12", 6, 384, 2048, rows=16, batch=1 << 15, eval_tokens=1 << 20)),
    (7.5, _make_gpu_profile("gpu8", 4, 256, 1024, rows=32, batch=1 << 15, eval_tokens=1 << 20)),
    (5.5, _make_gpu_profile("gpu6", 4, 256, 512, rows=32, batch=1 << 14, eval_tokens=1 << 19, pattern="L")),
    (3.5, _make_gpu_profile("gpu4", 4, 256, 256, rows=32, batch=1 << 14, eval_tokens=1 << 18, pattern="L")),
)

PROFILES = {profile.name: profile for profile in (CPU, MPS, *(profile for _, profile in GPUS))}


def detect() -> Profile:
    """The profile for this machine."""
    if (cards := list_gpus()) and (found := choose_for_gpu(cards[0])):
        return found
    return MPS if is_apple_silicon() else CPU


def find_profile(name: str) -> Profile:
    """Raises KeyError for a name that is neither a profile's nor "auto"."""
    return detect() if name == "auto" else PROFILES[name]


def choose_for_gpu(card: Gpu) -> Profile | None:
    """The profile for a card, with as many rows at a time as fit in it; None where it is too small."""
    chosen = next((profile for least, profile in GPUS if card.memory >= least * 1e9), None)
    if chosen is None or chosen is H100:
        return chosen
    if card.capability < (8, 0):  # its attention has no window
        chosen = with_constants(chosen, {"WINDOW_PATTERN": "L"})
    return with_constants(chosen, {"DEVICE_BATCH_SIZE": count_fitting_rows(chosen, card)})


def count_fitting_rows(profile: Profile, card: Gpu) -> int:
    """A power of two, never more than the profile has: memory per token and parameter as measured on real cards."""
    size = get_values(profile)
    depth, dim, vocab = size["DEPTH"], size["MODEL_DIM"], profile.vocab_size
    compiled = card.capability >= (7, 0)
    per_token = 26 * depth * dim + 8 * vocab if compiled else 60 * depth * dim + 18 * vocab
    usable = 0.9 * (card.memory - 1e9) - 16 * count_parameters(depth, dim, vocab)
    fitting = max(1, int(usable / (per_token * profile.seq_len)))
    return min(1 << fitting.bit_length() - 1, size["DEVICE_BATCH_SIZE"])


def count_parameters(depth: int, dim: int, vocab: int) -> int:
    """Of the baseline: blocks, two embeddings, and a value embedding in every other block."""
    return 12 * depth * dim**2 + (2 + (depth + 1) // 2) * vocab * dim


def scaled_to(profile: Profile, tokens_per_second: float) -> Profile:
    """The profile with depth, width and batch for a machine that trains the profile's own model so fast.

    At most as deep as sees about 10 tokens per parameter in the budget, in at least 800 steps: on small cards the
    throughput decides what can be learned, not the memory.
    """
    size, vocab = get_values(profile), profile.vocab_size
    work = tokens_per_second * profile.budget.seconds * _count_flops(size["DEPTH"], size["MODEL_DIM"], vocab)
    depth, dim = 2, _choose_width(2)
    for deeper in range(2, size["DEPTH"] + 1):
        if work / _count_flops(deeper, _choose_width(deeper), vocab) >= 9 * count_parameters(
            deeper, _choose_width(deeper), vocab
        ):
            depth, dim = deeper, _choose_width(deeper)
    per_step = int(work / _count_flops(depth, dim, vocab) / 800)
    batch = min(max(1 << per_step.bit_length() - 1, 4 * profile.seq_len), size["TOTAL_BATCH_SIZE"])
    return with_constants(profile, {"DEPTH": depth, "MODEL_DIM": dim, "TOTAL_BATCH_SIZE": batch})


def _choose_width(depth: int) -> int:
    return -(-64 * depth // 128) * 128


def _count_flops(depth: int, dim: int, vocab: int) -> int:
    """Of a token, but for attention, up to a constant."""
    return 12 * depth * dim**2 + vocab * dim


def get_values(profile: Profile) -> dict[str, Any]:
    """What the profile sets the constants of a script to."""
    return {line["name"]: literal_eval(line["value"]) for line in _CONSTANT.finditer(profile.constants)}


def with_constants(profile: Profile, wanted: Mapping[str, Constant]) -> Profile:
    """The profile with other values; its ranges grow where a value lies outside."""
    left = dict(wanted)

    def line(found: re.Match[str]) -> str:
        if found["name"] not in left:
            return found[0]
        value = left.pop(found["name"])
        space = _grow_space(found["space"], value) if found["space"] else ""
        return f"{found['name']} = {_format_value(value)}" + (f"  # {space}" if space else "")

    constants = _CONSTANT.sub(line, profile.constants)
    added = "".join(f"{name} = {_format_value(value)}\n" for name, value in left.items())
    return replace(profile, constants=constants + added)


def find_changes(profile: Profile) -> dict[str, Constant]:
    """The constants that are not those of the profile's name."""
    usual = get_values(PROFILES[profile.name])
    return {name: value for name, value in get_values(profile).items() if usual.get(name) != value}


def from_manifest(manifest: Manifest) -> Profile:
    """The profile that some data was prepared with."""
    prepared = replace(
        PROFILES[manifest.profile],
        seq_len=manifest.seq_len,
        vocab_size=manifest.vocab_size,
        eval_tokens=manifest.eval_tokens,
        budget=manifest.budget,
    )
    return with_constants(prepared, manifest.constants)


def with_overrides(profile: Profile, settings: Iterable[str]) -> Profile:
    """With settings such as "DEPTH=6", a constant of the script, or "seq_len=512". Raises ValueError."""
    for setting in settings:
        name, _, written = setting.partition("=")
        try:
            value = literal_eval(written)
        except (ValueError, SyntaxError):
            value = written
        if name.isupper() and name.isidentifier() and isinstance(value, Constant) and written:
            profile = with_constants(profile, {name: value})
        elif name in {"seq_len", "vocab_size", "eval_tokens"} and isinstance(value, int) and value > 0:
            profile = replace(profile, **{name: value})
        elif name == "seconds" and isinstance(value, int | float) and value > 0 and profile.budget.kind == "time":
            profile = replace(profile, budget=BudgetAmount(kind="time", amount=value, seconds=value))
        else:
            raise ValueError(f"{setting!r} sets nothing: give a constant, seq_len, vocab_size, eval_tokens or seconds")
    return profile


def _grow_space(space: str, value: Constant) -> str:
    if space.startswith("one of "):
        choices = [literal_eval(choice) for choice in space.removeprefix("one of ").split(", ")]
        return "one of " + ", ".join(map(_format_value, choices if value in choices else sorted([*choices, value])))
    bounds, *log = space.split(" ")
    low, high = map(literal_eval, bounds.split(".."))
    return " ".join([f"{min(low, value)}..{max(high, value)}", *log])


def _format_value(value: Constant) -> str:
    return json.dumps(value)


def apply_to_script(source: str, profile: str | Profile) -> str:
    """The script with the profile's values, and ranges, for those of its constants that the profile sets.

    Pure and idempotent; all other bytes stay, the words of the comments among them.
    """
    chosen = PROFILES[profile] if isinstance(profile, str) else profile
    ours = {line["name"]: line for line in _CONSTANT.finditer(chosen.constants)}

    def fitted(line: re.Match[str]) -> str:
        """The first line of each name; a later one is not on top of the script."""
        wanted = ours.pop(line["name"], None)
        return line[0] if wanted is None else _merge_line(line, wanted)

    return _CONSTANT.sub(fitted, source)


def _merge_line(line: re.Match[str], wanted: re.Match[str]) -> str:
    code = f"{line['name']} = {wanted['value']}"
    comment = _DASH.join(part for part in (wanted["space"] or line["space"], line["words"]) if part)
    column = max(line.start("hash") - line.start(), len(code) + 2)
    return f"{code.ljust(column)}# {comment}" if comment else code
