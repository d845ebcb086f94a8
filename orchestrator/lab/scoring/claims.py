"""The arithmetic of trust: what claims add up to, where to check them, and what the check has shown.

A claim is −log p of one validation token, in nats, from code that sees all the tokens and may lie. At one secret
position in every row a blind process gives its own −log p. The mean of the claims plus the weighted mean of the
differences is unbiased for the blind loss, whatever was claimed. The score is that plus CAUTION standard errors, so
that no lottery of claims pays, or what was claimed, if that is worse.
"""

import math
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.lab.failures import Fault
from prepare.manifest import MANIFEST_FILE, DataError, Manifest, load
from prepare.shards import open_rows
from prepare.tokenizer import TOKENIZER_FILE, Tokenizer

Rows = NDArray[np.int64]
Nats = NDArray[np.float32]

SUSPICION = 0.5
"""Share of the checks that go where a claim beats the reference's: lies that pay are there. The others go anywhere."""
TOLERANCE = {"work": 0.25, "time": 0.5}
"""Nats by which a claim may always be better than the blind answer at one position, by the kind of budget: a script
cannot choose it. The same code on the same machine agrees within 1e-4 in float32; compiled and plain bfloat16, usual on
GPUs, differ by some tenths at worst. Smaller lies are not caught, but do not pay: the score corrects them."""
BASELINE_FACTOR = 3.0
"""Times the baseline's own difference on this machine, if that is more."""
BASELINE_TOLERANCE = 2.0
"""Nats for the baseline itself, and the most for anything: its audit measures how far honest claims are off, but a leak
is a leak."""
CAUTION = 2.0
"""Standard errors of the correction that are added to the score; an honest model's are some 1e-8."""
MAX_GAIN = 20.0
"""Nats of a gain at one position that count: the reference may have been infinitely wrong there."""
IMPOSSIBLE = -1e-3
"""Nats: a probability above 1, beyond rounding."""
ABSURD = 1e4
"""Nats that no model is ever wrong by: larger claims are made up, and so would be the variance of a correction."""
WALL_SLACK, WALL_GRACE = 1.03, 10.0
"""Factor and seconds beyond a time budget: the step that was under way, and writing the model."""
WORK_SLACK = 2.0
"""Times the expected CPU seconds: work cannot be counted from outside, and CPU time for the same work differs by 15 %
either way between honest models, and by half again on a busy machine."""


class Disqualified(Fault):
    """The score cannot be believed; the message is the reason."""

    def __init__(self, message: str) -> None:
        super().__init__("disqualified", message)


@dataclass(frozen=True, slots=True)
class AuditPositions:
    """One position in each row, and how many tokens the check there stands for."""

    at: Rows
    weight: NDArray[np.float64]


@dataclass(frozen=True)
class Scorer:
    """Scores models on one split of a data folder."""

    folder: Path
    rows: NDArray[np.unsignedinteger]
    """[rows, length + 1] tokens of the split."""
    decoys: NDArray[np.unsignedinteger]
    """The same of training text, which hides the future in the audit."""
    lengths: NDArray[np.int32]
    """Bytes of each token of the vocabulary; tokens of 0 bytes do not count."""
    manifest: Manifest
    split: str = "val"
    heldout: "Scorer | None" = None
    """Scores on text that no decision has used."""

    @classmethod
    def load(cls, folder: Path) -> "Scorer":
        """Open a data folder, and make its shards read-only. Raises DataError."""
        manifest = load(folder)
        if missing := {"train", "val", "confirm"} - manifest.rows.keys():
            raise DataError(f"{folder} has no {min(missing)} rows: prepare it again, in an empty folder")
        for split in manifest.rows:
            # A run that is given a file to read could open it again for writing, unless the file is read-only.
            with suppress(PermissionError):  # another user's
                (folder / f"{split}.bin").chmod(0o444)
        lengths, decoys = Tokenizer.from_directory(folder).token_bytes, open_rows("train", folder)
        heldout = cls(folder, open_rows("confirm", folder), decoys, lengths, manifest, "confirm")
        return cls(folder, open_rows("val", folder), decoys, lengths, manifest, heldout=heldout)

    def lay_out(self, folder: Path) -> Path:
        """Make the data folder that a run sees: everything but the shards, which it is sent when they are due."""
        folder.mkdir()
        files = {TOKENIZER_FILE: self.manifest.files[TOKENIZER_FILE]}
        (folder / MANIFEST_FILE).write_text(replace(self.manifest, files=files).to_json())
        shutil.copyfile(self.folder / TOKENIZER_FILE, folder / TOKENIZER_FILE)
        return folder

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and tokens of a row: the shape of claims."""
        return self.rows.shape[0], self.rows.shape[1] - 1

    def parse_claims(self, data: bytes) -> Nats:
        """Return the claims, an array of `shape`. Raises Disqualified for impossible ones."""
        claims = np.frombuffer(data, dtype=np.float32).reshape(self.shape)
        if not np.isfinite(claims).all():
            raise Disqualified("some of its claims are no numbers")
        if (lowest := float(claims.min())) < IMPOSSIBLE:
            raise Disqualified(f"it claimed a probability above 1 (a loss of {lowest:.3g} nats)")
        if (highest := float(claims.max())) > ABSURD:
            raise Disqualified(f"it claimed a loss of {highest:.3g} nats")
        return np.maximum(claims, np.float32(0))

    def compute_bpb(self, claims: Nats, correction: float = 0.0) -> float:
        """Return the bits per byte of claims; `correction` is added to their sum, in nats."""
        counted = self.lengths[self.rows[:, 1:]] > 0
        total = float(claims[counted].sum(dtype=np.float64)) + correction
        return total / self._nats_per_bpb

    def explain_overtime(self, wall: float, cpu: float, threads: int) -> str:
        """Return why the training, in seconds by our own clocks, was too long; empty where it was not."""
        budget = self.manifest.budget
        if budget.kind == "time":
            most = WALL_SLACK * budget.amount + WALL_GRACE
            return f"it trained for {wall:.0f} s of {budget.amount:g}" if wall > most else ""
        most = WORK_SLACK * budget.seconds * max(1, threads) + WALL_GRACE
        return f"it trained for {cpu:.0f} s of CPU time, more than {most:.0f}" if cpu > most else ""

    def draw_positions(self, claims: Nats, reference: Nats | None, rng: np.random.Generator) -> AuditPositions:
        """Draw one secret position in every row; `reference` are another model's claims.

        Its weight is one over its chance, 0 in rows in which nothing counts.
        """
        at, weights = np.zeros(len(claims), dtype=np.int64), np.zeros(len(claims))
        for row, counted in enumerate(self.lengths[self.rows[:, 1:]] > 0):
            chances = counted / max(int(counted.sum()), 1)
            if reference is not None:
                gains = np.clip(reference[row] - claims[row], 0, MAX_GAIN, dtype=np.float64) * counted
                if (total := gains.sum()) > 0:
                    chances = (1 - SUSPICION) * chances + SUSPICION * gains / total
            steps = np.cumsum(chances)
            at[row] = place = min(int((steps <= rng.random() * steps[-1]).sum()), len(steps) - 1)
            if chances[place] > 0:
                weights[row] = 1 / chances[place]
        return AuditPositions(at, weights)

    def mask(self, first: int, last: int, positions: AuditPositions, rng: np.random.Generator) -> Rows:
        """Return those rows' inputs, validation text up to their positions, then training text."""
        other = self.decoys[rng.integers(len(self.decoys), size=last - first), :-1]
        genuine = np.arange(self.shape[1]) <= positions.at[first:last, None]
        return np.where(genuine, self.rows[first:last, :-1], other).astype(np.int64)

    def score_blind(self, logits: NDArray[np.float32], first: int, positions: AuditPositions) -> NDArray[np.float64]:
        """Return −log p, in nats, of the true tokens at the positions of the rows from `first`. Raises Disqualified.

        `logits` are [rows, vocabulary], those at the positions.
        """
        if logits.shape[1] != len(self.lengths):
            raise Disqualified(f"its logits are for {logits.shape[1]} tokens of {len(self.lengths)}")
        if not np.isfinite(logits.max(1)).all() or np.isnan(logits).any():
            raise Disqualified("shown only the past, it gives no probabilities")
        rows = np.arange(first, first + len(logits))
        true = self.rows[rows, positions.at[rows] + 1]
        wide = logits.astype(np.float64)
        wide -= wide.max(1, keepdims=True)
        return np.log(np.exp(wide).sum(1)) - wide[np.arange(len(wide)), true]

    def get_tolerance(self, baseline_error: float | Literal["unmeasured"]) -> float:
        """Return the nats by which a claim may be better than the blind answer, given what the baseline was off."""
        if baseline_error == "unmeasured":
            return BASELINE_TOLERANCE
        return min(max(TOLERANCE[self.manifest.budget.kind], BASELINE_FACTOR * baseline_error), BASELINE_TOLERANCE)

    def correct(
        self, claims: Nats, blind: NDArray[np.float64], positions: AuditPositions, allowed: float
    ) -> tuple[float, float, float]:
        """Return the score as the blind answers correct it, never for the better, and the correction's standard error.

        The third is by how many nats a claim beats an answer, at most. Raises Disqualified where it is over `allowed`.
        """
        rows = np.arange(len(blind))
        gaps = np.where(positions.weight > 0, blind - claims[rows, positions.at], 0.0)
        worst, claimed = float(gaps.max()), self.compute_bpb(claims)
        if not worst <= allowed:
            caught = int((gaps > allowed).sum())
            raise Disqualified(
                f"it claimed {claimed:.4f}, but shown only the past it does worse at {caught} of {len(gaps)} places,"
                f" by up to {worst:.2f} nats: the model sees what it is to predict, or the claims are not its own"
            )
        terms = positions.weight * gaps
        error = math.sqrt(len(terms)) * float(terms.std()) / self._nats_per_bpb
        corrected = self.compute_bpb(claims, float(terms.sum())) + CAUTION * error
        return max(claimed, corrected), error, worst

    @property
    def _nats_per_bpb(self) -> float:
        return math.log(2) * int(self.lengths[self.rows[:, 1:]].sum())
