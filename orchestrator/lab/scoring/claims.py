"""The arithmetic of trust: what claims add up to, where to look whether they are true, and what the look has shown.

A claim is −log p of one validation token, in nats. It is made by code that sees all the tokens, so it may be a lie. At
one secret place in every row a second, blind process says again what it expects. The score is the mean of the claims
plus the weighted mean of what the blind answers add: whatever was claimed, that is unbiased for the blind loss.
"""

import math
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prepare.manifest import MANIFEST_FILE, Manifest, load
from prepare.shards import open_rows
from prepare.tokenizer import TOKENIZER_FILE, Tokenizer

Rows = NDArray[np.int64]
Nats = NDArray[np.float32]

SUSPICION = 0.5
"""Share of the looks that go where a claim beats the reference's; the others go anywhere. Lies that pay are there."""
TOLERANCE = {"float32": 0.05, "bfloat16": 0.5, "float16": 0.5}
"""Nats that an honest claim may be better than the blind answer at one place, at least. The same code on the same
machine agrees within 1e-4 in float32; compiled and plain bfloat16 differ by some tenths at worst. Smaller lies are not
caught, but do not pay: the score corrects them."""
BASELINE_FACTOR = 3.0
"""Times what the baseline was off on this machine, if that is more."""
BASELINE_TOLERANCE = 2.0
"""Nats for the baseline itself: its audit measures what honest is, but a leak is a leak."""
MAX_GAIN = 20.0
"""Nats of a gain at one place that count: the reference may have been infinitely wrong there."""
BLOCK = 256
"""Rows that are worked on at a time."""
IMPOSSIBLE = -1e-3
"""Nats: a probability above 1, beyond rounding."""
WALL_SLACK, WALL_GRACE = 1.03, 10.0
"""A time budget may be exceeded by the step that was under way, and by writing the model down."""
WORK_SLACK = 2.0
"""Work cannot be counted from outside. CPU seconds for the same work differ by 15 % either way between honest models,
and by half again on a busy machine."""


class Disqualified(Exception):  # noqa: N818 - a verdict
    """The score is not to be believed; the message says why, in words."""


@dataclass(frozen=True, slots=True)
class CorrectedScore:
    """What the audit of one model has shown. Bits per byte, but `worst`, in nats."""

    val_bpb: float
    error: float
    """Its standard error: 0 where claims are exact."""
    worst: float
    """The most that a claim was better than the blind answer."""


def get_tolerance(dtype: str, baseline_error: float | Literal["unmeasured"]) -> float:
    """Return the nats by which a claim may be better than the blind answer, given what the baseline was off."""
    if baseline_error == "unmeasured":
        return BASELINE_TOLERANCE
    return max(TOLERANCE[dtype], BASELINE_FACTOR * baseline_error)


@dataclass(frozen=True)
class Scorer:
    """What a data folder examines models with."""

    folder: Path
    rows: NDArray[np.unsignedinteger]
    """[rows, length + 1] tokens of the split."""
    decoys: NDArray[np.unsignedinteger]
    """The same of training text: what hides the future in the audit."""
    lengths: NDArray[np.int32]
    """Bytes of each token of the vocabulary; 0 does not count."""
    manifest: Manifest
    split: str = "val"

    @classmethod
    def of(cls, folder: Path, split: str = "val") -> "Scorer | None":
        """On one split's rows; None for a folder without them. Raises DataError."""
        found = load(folder)
        if not {"train", split} <= found.rows.keys():
            return None
        for name in ("train", split):
            # Who is shown a file may open it anew for writing, unless it is nobody's to write.
            with suppress(PermissionError):  # somebody else's
                (folder / f"{name}.bin").chmod(0o444)
        lengths = Tokenizer.from_directory(folder).token_bytes
        return cls(folder, open_rows(split, folder), open_rows("train", folder), lengths, found, split)

    def lay_out(self, folder: Path) -> Path:
        """A data folder for a run: what it may know from the beginning. The shards are shown when they are due."""
        folder.mkdir()
        files = {TOKENIZER_FILE: self.manifest.files[TOKENIZER_FILE]}
        (folder / MANIFEST_FILE).write_text(replace(self.manifest, files=files).to_json())
        shutil.copyfile(self.folder / TOKENIZER_FILE, folder / TOKENIZER_FILE)
        return folder

    @property
    def training(self) -> Path:
        return self.folder / "train.bin"

    @property
    def shard(self) -> Path:
        return self.folder / f"{self.split}.bin"

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.shape[0], self.rows.shape[1] - 1

    @property
    def claim_bytes(self) -> int:
        return 4 * math.prod(self.shape)

    def claims(self, data: bytes) -> Nats:
        """The claims as they came, [rows, length]. Raises Disqualified for what cannot be claims."""
        if len(data) != self.claim_bytes:
            raise Disqualified(f"it claimed {len(data):,} bytes for {math.prod(self.shape):,} tokens")
        claims = np.frombuffer(data, dtype=np.float32).reshape(self.shape)
        if np.isnan(claims).any() or (claims == -math.inf).any():
            raise Disqualified("some of its claims are no numbers")
        if (lowest := float(claims.min())) < IMPOSSIBLE:
            raise Disqualified(f"it claimed a probability above 1 (a loss of {lowest:.3g} nats)")
        return claims

    def bpb(self, claims: Nats, correction: float = 0.0) -> float:
        """Bits per byte of claims, with `correction` nats in all."""
        counted = self._counted
        total = float(claims[counted].sum(dtype=np.float64)) + correction
        return total / self._nats_per_bpb

    def overtime(self, wall: float, cpu: float, threads: int) -> str:
        """Why the training was too long; empty where it was not. Seconds by our own clocks."""
        budget = self.manifest.budget
        if budget.kind == "time":
            most = WALL_SLACK * budget.amount + WALL_GRACE
            return f"it trained for {wall:.0f} s of {budget.amount:g}" if wall > most else ""
        most = WORK_SLACK * budget.seconds * max(1, threads) + WALL_GRACE
        return f"it trained for {cpu:.0f} s of CPU time, more than {most:.0f}" if cpu > most else ""

    def places(self, claims: Nats, reference: Nats | None, rng: np.random.Generator) -> "AuditPositions":
        """One secret place in every row; `reference` are another model's claims."""
        at, weights = np.zeros(len(claims), dtype=np.int64), np.zeros(len(claims))
        for first in range(0, len(claims), BLOCK):
            some = slice(first, first + BLOCK)
            counted = (self.lengths[self.rows[some, 1:]] > 0).astype(np.float64)
            gains = None if reference is None else np.clip(reference[some] - claims[some], 0, MAX_GAIN) * counted
            at[some], weights[some] = _draw_positions(counted, gains, rng)
        return AuditPositions(at, weights)

    def masked(self, first: int, last: int, places: "AuditPositions", rng: np.random.Generator) -> Rows:
        """Those rows' inputs, genuine up to their places, then somebody else's text: never validation text."""
        x = self.rows[first:last, :-1].astype(np.int64)
        other = self.decoys[rng.integers(len(self.decoys), size=len(x)), :-1].astype(np.int64)
        for row, genuine in enumerate(places.at[first:last] + 1):
            x[row, genuine:] = other[row, genuine:]
        return x

    def blind(self, logits: NDArray[np.float32], first: int, places: "AuditPositions") -> NDArray[np.float64]:
        """−log p of the true tokens at the places of the rows from `first`. Raises Disqualified."""
        if logits.shape[1] != len(self.lengths):
            raise Disqualified(f"its logits are for {logits.shape[1]} tokens of {len(self.lengths)}")
        if not np.isfinite(logits.max(1)).all() or np.isnan(logits).any():
            raise Disqualified("shown only the past, it gives no probabilities")
        rows = np.arange(first, first + len(logits))
        true = self.rows[rows, places.at[rows] + 1]
        wide = logits.astype(np.float64)
        wide -= wide.max(1, keepdims=True)
        return np.log(np.exp(wide).sum(1)) - wide[np.arange(len(wide)), true]

    def corrected(
        self, claims: Nats, blind: NDArray[np.float64], places: "AuditPositions", allowed: float
    ) -> CorrectedScore:
        """The corrected score. Raises Disqualified where claims were better at some place by more than `allowed`."""
        rows = np.arange(len(blind))
        gaps = np.where(places.weight > 0, blind - claims[rows, places.at], 0.0)
        terms = places.weight * gaps
        score, claimed = self.bpb(claims, float(terms.sum())), self.bpb(claims)
        worst = float(gaps.max())
        if not worst <= allowed:
            caught = int((gaps > allowed).sum())
            raise Disqualified(
                f"it claimed {claimed:.4f}, but shown only the past it does worse at {caught} of {len(gaps)} places,"
                f" by up to {worst:.2f} nats: the model sees what it is to predict, or the claims are not its own"
            )
        error = math.sqrt(len(terms)) * float(terms.std()) / self._nats_per_bpb
        return CorrectedScore(score, error, worst)

    @property
    def _counted(self) -> NDArray[np.bool_]:
        return self.lengths[self.rows[:, 1:]] > 0

    @property
    def _nats_per_bpb(self) -> float:
        return math.log(2) * int(self.lengths[self.rows[:, 1:]].sum())


@dataclass(frozen=True, slots=True)
class AuditPositions:
    """Where each row is looked at, and how many tokens that look stands for."""

    at: Rows
    weight: NDArray[np.float64]


def _draw_positions(
    counted: NDArray[np.float64], gains: NDArray[np.float64] | None, rng: np.random.Generator
) -> tuple[Rows, NDArray[np.float64]]:
    """A place in each row, and one over its chance; weight 0 for rows in which nothing counts."""
    chances = counted / np.maximum(counted.sum(1, keepdims=True), 1)
    if gains is not None:
        sums = gains.sum(1, keepdims=True)
        share = np.where(sums > 0, SUSPICION, 0.0)
        chances = (1 - share) * chances + share * gains / np.where(sums > 0, sums, 1)
    steps = np.cumsum(chances, axis=1)
    drawn = rng.random((len(steps), 1)) * steps[:, -1:]
    at = np.minimum((steps <= drawn).sum(1), steps.shape[1] - 1)
    found = chances[np.arange(len(at)), at]
    return at, np.divide(1.0, found, out=np.zeros_like(found), where=found > 0)
