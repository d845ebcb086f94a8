"""Choose a profile: what a kind of machine can train in one run, from lengths to budget. No torch."""

import platform
from ast import literal_eval
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from prepare.constants import Choices, Numbers, Setting, Value, with_settings
from prepare.machine import Gpu, filter_model, list_gpus
from prepare.manifest import BudgetAmount, DataError, Manifest
from prepare.tree import NOT_PYTHON

SMALLEST = {"seq_len": 1, "vocab_size": 260, "eval_tokens": 1}  # a vocabulary holds all bytes and four special tokens
FIVE_MINUTES = BudgetAmount(kind="time", amount=300, seconds=300)


@dataclass(frozen=True)
class Profile:
    """Lengths, vocabulary, budget and baseline for one kind of machine."""

    name: str
    seq_len: int
    vocab_size: int
    eval_tokens: int
    budget: BudgetAmount
    chunk: bool  # split long documents, each part with its own BOS, instead of cropping them to a row
    constants: Mapping[str, Setting] = field(default_factory=dict[str, Setting])  # of the training script
    sigma: float = 0.0  # standard deviation of val_bpb over seeds; 0 if not measured (docs/benchmarks.md)


CPU = Profile(
    name="cpu",
    seq_len=256,
    vocab_size=2048,
    eval_tokens=1 << 16,
    # The amount is measured on each machine; with start-up, evaluation and audit a run takes about 20 s.
    budget=BudgetAmount(kind="work", amount=1.8e12, seconds=10.0),
    chunk=True,
    sigma=0.008,
    constants={
        "DEPTH": Setting(3, Numbers(1, 5)),
        "MODEL_DIM": Setting(96, Choices((64, 96, 128, 160))),
        "ASPECT_RATIO": Setting(32),
        "HEAD_DIM": Setting(32, Choices((16, 32))),
        "WINDOW_PATTERN": Setting("L", Choices(("L", "SL"))),
        "TOTAL_BATCH_SIZE": Setting(2048, Choices((1024, 2048, 4096))),
        "DEVICE_BATCH_SIZE": Setting(8),
        # Not fused with the loss, it costs a twelfth of a step's work, and gains less than that.
        "LOGIT_SOFTCAP": Setting(0.0, Choices((0.0, 15.0, 30.0))),
        # With 0.5, upstream's value for large batches, val_bpb varies three times as much over seeds.
        "SCALAR_LR": Setting(0.05, Numbers(0.01, 0.5, log=True)),
    },
)


H100 = Profile("h100", seq_len=2048, vocab_size=8192, eval_tokens=40 * 524_288, budget=FIVE_MINUTES, chunk=False)


def _make_gpu_profile(
    name: str, depth: int, dim: int, seq_len: int, *, rows: int, batch: int, eval_tokens: int, head: int = 128
) -> Profile:
    """Return a profile for five minutes on a GPU; rows of 2048 crop long documents, as upstream does."""
    constants = {
        "DEPTH": Setting(depth, Numbers(2, 12)),
        "MODEL_DIM": Setting(dim, Choices((256, 384, 512, 640))),
        "HEAD_DIM": Setting(head, Choices((64, 128))),
        "WINDOW_PATTERN": Setting("L" if seq_len < 1024 else "SSSL", Choices(("L", "SL", "SSSL"))),
        "TOTAL_BATCH_SIZE": Setting(batch, Choices((batch // 2, batch, 2 * batch))),
        "DEVICE_BATCH_SIZE": Setting(rows),
    }
    return replace(H100, name=name, seq_len=seq_len, eval_tokens=eval_tokens, chunk=seq_len < 2048, constants=constants)


MPS = _make_gpu_profile("mps", 4, 256, 512, rows=16, batch=1 << 14, eval_tokens=1 << 20, head=64)
# Least memory in decimal GB: a "6 GB" card has 6.2 or 6.4, an "80 GB" one 85.
GPUS = (
    (70.0, H100),
    (38.0, _make_gpu_profile("gpu40", 8, 512, 2048, rows=64, batch=1 << 18, eval_tokens=1 << 22)),
    (19.0, _make_gpu_profile("gpu24", 6, 384, 2048, rows=32, batch=1 << 16, eval_tokens=1 << 21)),
    (15.0, _make_gpu_profile("gpu16", 6, 384, 2048, rows=16, batch=1 << 16, eval_tokens=1 << 21)),
    (9.5, _make_gpu_profile("gpu12", 6, 384, 2048, rows=16, batch=1 << 15, eval_tokens=1 << 20)),
    (7.5, _make_gpu_profile("gpu8", 4, 256, 1024, rows=32, batch=1 << 15, eval_tokens=1 << 20)),
    (5.5, _make_gpu_profile("gpu6", 4, 256, 512, rows=32, batch=1 << 14, eval_tokens=1 << 19)),
    (3.5, _make_gpu_profile("gpu4", 4, 256, 256, rows=32, batch=1 << 14, eval_tokens=1 << 18)),
)

PROFILES = {profile.name: profile for profile in (CPU, MPS, *(profile for _, profile in GPUS))}


def find_profile(name: str) -> Profile:
    """Return the profile of that name; for "auto", this machine's. Raises KeyError."""
    if name != "auto":
        return PROFILES[name]
    if (cards := filter_model(list_gpus())) and (found := choose_for_gpu(cards[0])):
        return found
    return MPS if (platform.system(), platform.machine()) == ("Darwin", "arm64") else CPU


def choose_for_gpu(card: Gpu) -> Profile | None:
    """Return the profile for a GPU; None if it is too small."""
    chosen = next((profile for least, profile in GPUS if card.memory >= least * 1e9), None)
    if chosen is None or chosen is H100:
        return chosen
    if card.capability < (8, 0):  # no windowed attention
        chosen = with_constants(chosen, {"WINDOW_PATTERN": "L"})
    if card.capability < (7, 0):  # without torch.compile, which takes up to 2.3 times the memory
        chosen = with_constants(chosen, {"DEVICE_BATCH_SIZE": get_values(chosen)["DEVICE_BATCH_SIZE"] // 2})
    return chosen


def get_values(profile: Profile) -> dict[str, Any]:
    """Return the value of each constant that the profile sets."""
    return {name: setting.value for name, setting in profile.constants.items()}


def with_constants(profile: Profile, changes: Mapping[str, Value]) -> Profile:
    """Return the profile with other values, and with ranges widened to include them. Raises ValueError."""
    constants = dict(profile.constants)
    for name, value in changes.items():
        space = constants[name].space if name in constants else None
        constants[name] = Setting(value, space.include(value) if space else None)
    return replace(profile, constants=constants)


def find_changes(profile: Profile) -> dict[str, Value]:
    """Return the constants whose values differ from those of the named profile."""
    usual = get_values(PROFILES[profile.name])
    return {name: value for name, value in get_values(profile).items() if usual.get(name) != value}


def from_manifest(manifest: Manifest) -> Profile:
    """Return the profile that a data folder was prepared with. Raises DataError where there is none such."""
    sizes = {name: getattr(manifest, name) for name in (*SMALLEST, "budget")}
    try:
        return with_constants(replace(PROFILES[manifest.profile], **sizes), manifest.constants)
    except (LookupError, TypeError, ValueError):
        words = f"profile {manifest.profile} with such constants is not known to this version"
        raise DataError(f"the data cannot be used: {words}: prepare them again, in an empty folder") from None


def with_overrides(profile: Profile, settings: Iterable[str]) -> Profile:
    """Return the profile with settings such as "DEPTH=6" or "seq_len=512". Raises ValueError."""
    for setting in settings:
        name, _, written = setting.partition("=")
        try:
            value = literal_eval(written)
        except NOT_PYTHON:
            value = written
        number = value if isinstance(value, int | float) and -inf < value < inf else 0
        if name.isupper() and name.isidentifier() and (value == number or (isinstance(value, str) and value)):
            profile = with_constants(profile, {name: value})
        elif type(value) is int and value >= SMALLEST.get(name, inf):
            profile = replace(profile, **{name: value})
        elif name == "seconds" and number > 0 and profile.budget.kind == "time":
            profile = replace(profile, budget=BudgetAmount(kind="time", amount=number, seconds=number))
        else:
            known = "a constant, seq_len, vocab_size (from 260), eval_tokens"
            budget = ", seconds" if profile.budget.kind == "time" else "; --work sets the budget"
            raise ValueError(f"{setting!r} sets nothing: give {known}{budget}")
    return profile


def apply_to_script(source: str, profile: Profile) -> str:
    """Return the script with the profile's values and ranges; unchanged if it does not parse."""
    return with_settings(source, profile.constants)
