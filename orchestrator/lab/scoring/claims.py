"""Turn claims into a score: add them up, choose where to audit them, and correct them by the audit.

A claim is −log p of one validation token, in nats, from code that sees all the tokens and may lie. At one secret
position in every row a blind process gives its own −log p. The mean of the claims plus the weighted mean of the
differences is an unbiased estimate of the blind loss, whatever was claimed. The score is that estimate plus CAUTION
standard errors, so that gambling with claims does not pay, or the claimed value if that is worse.
"""

import math
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.lab.failures import Fault, MachineError
from prepare.manifest import MANIFEST_FILE, DataError, Manifest, load
from prepare.shards import open_rows
from prepare.tokenizer import TOKENIZER_FILE, Tokenizer

Rows = NDArray[np.int64]
Nats = NDArray[np.float32]

SUSPICION = 0.5
"""Share of the checks where a claim beats the reference, since lies that pay are there; the others are anywhere."""
TOLERANCE = {"work": 0.25, "time": 0.5}
"""Nats by which a claim may always beat the blind answer at one position, by the kind of budget, which a script cannot
choose. The same code on the same machine agrees within 1e-4 in float32; compiled and eager bfloat16, usual on GPUs,
differ by a few tenths at worst. Smaller lies are not detected but corrected, so they do not pay."""
COMPANY, SPREAD = 0.02, 0.1
"""Shares of that tolerance by which the losses of rows that a fresh process sees alone may differ from the claims: on
average, and on average by absolute values, which a model cannot match without having learned the same before."""
ALONE = 16  # rows that the audit first shows whole, each by itself
BASELINE_FACTOR, BASELINE_CAP = 3.0, 2.0
"""Multiple of the baseline's own difference on this machine that is allowed, if that is more, and the multiple of
TOLERANCE up to which it is: a model may have written the baseline, too."""
BASELINE_TOLERANCE = 2.0  # nats allowed for the baseline, whose audit measures how far honest claims are off
CAUTION = 2.0  # standard errors of the correction added to the score; for an honest model they are about 1e-8
MAX_GAIN = 20.0
"""Most nats that count as a gain at one position, where the reference may have been infinitely wrong."""
IMPOSSIBLE = -1e-3  # nats below which a probability is above 1 by more than rounding
ABSURD = 1e4  # nats above which a claim is invented; it would only inflate the variance of the correction


class Disqualified(Fault):
    """The score cannot be trusted; the message is the reason."""

    def __init__(self, message: str) -> None:
        super().__init__("disqualified", message)


@dataclass(frozen=True)
class Scorer:
    """Scores models on one split of a data folder."""

    folder: Path
    rows: NDArray[np.unsignedinteger]  # [rows, length + 1] tokens of the split
    decoys: NDArray[np.unsignedinteger]  # the same of training text, which replaces the future in the audit
    lengths: NDArray[np.int32]  # bytes of each token, [vocabulary]; tokens of 0 bytes do not count
    manifest: Manifest
    heldout: "Scorer | None" = None  # scores models on text that no decision has used

    @classmethod
    def load(cls, folder: Path) -> "Scorer":
        """Open a data folder, and make its shards read-only. Raises DataError."""
        manifest = load(folder)
        if missing := {"train", "val", "confirm"} - manifest.rows.keys():
            raise DataError(f"{folder} has no {min(missing)} rows: prepare it again, in an empty folder")
        for split in manifest.rows:
            # Otherwise a run could reopen the descriptor of a shard for writing.
            with suppress(PermissionError):  # the file is another user's
                (folder / f"{split}.bin").chmod(0o444)
        lengths, decoys = Tokenizer.from_directory(folder).token_bytes, open_rows("train", folder)
        heldout = cls(folder, open_rows("confirm", folder), decoys, lengths, manifest)
        return cls(folder, open_rows("val", folder), decoys, lengths, manifest, heldout)

    def lay_out(self, folder: Path) -> Path:
        """Make the data folder that a run sees: all but the shards, which the server hands out when they are due.

        Raises OSError, and MachineError where the data are not those that the session's scores are measured on.
        """
        try:
            is_same = load(self.folder) == self.manifest
        except DataError:
            is_same = False
        if not is_same:
            raise MachineError("the data were deleted, damaged or prepared anew while the night runs: put them back")
        folder.mkdir(exist_ok=True)
        files = {TOKENIZER_FILE: self.manifest.files[TOKENIZER_FILE]}
        (folder / MANIFEST_FILE).write_text(replace(self.manifest, files=files).to_json())
        shutil.copyfile(self.folder / TOKENIZER_FILE, folder / TOKENIZER_FILE)
        return folder

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of claims: [rows, tokens to predict in a row]."""
        return self.rows.shape[0], self.rows.shape[1] - 1

    def check_claims(self, claims: Nats) -> Nats:
        """Return the claims, an array of `shape`, none below 0. Raises Disqualified for impossible values."""
        if not np.isfinite(claims).all():
            raise Disqualified("some of its claims are not numbers")
        if (lowest := float(claims.min())) < IMPOSSIBLE:
            raise Disqualified(f"it claimed a probability above 1 (a loss of {lowest:.3g} nats)")
        if (highest := float(claims.max())) > ABSURD:
            raise Disqualified(f"it claimed a loss of {highest:.3g} nats")
        if self.compute_bpb(claims) <= 0:
            raise Disqualified("it claims a loss of zero")
        return np.maximum(claims, np.float32(0))

    def compute_bpb(self, claims: Nats, correction: float = 0.0) -> float:
        """Return the claims' bits per byte; `correction`, in nats, is added to their sum."""
        counted = self.lengths[self.rows[:, 1:]] > 0
        total = float(claims[counted].sum(dtype=np.float64)) + correction
        return total / self.nats_per_bpb

    def compute_by_position(self, claims: Nats) -> tuple[float, ...]:
        """Return the claims' bits per byte at positions 0, 1, 2 to 3, 4 to 7 and so on of a row."""
        lengths = self.lengths[self.rows[:, 1:]]
        first = [0, *(2**i for i in range((self.shape[1] - 1).bit_length()))]
        nats = np.add.reduceat(np.where(lengths > 0, claims, 0).sum(0, dtype=np.float64), first)
        return tuple((nats / np.maximum(np.add.reduceat(lengths.sum(0), first), 1) / math.log(2)).tolist())

    def plan_audit(self, claims: Nats, reference: Nats | None, rng: np.random.Generator, alone: int = ALONE) -> "Exam":
        """Draw one secret position in every row, weighted by the inverse of its probability; 0 where nothing counts.

        `reference` are another model's claims: positions where `claims` are better are drawn more often. The rows that
        are shown alone have no weight, and the others represent them.
        """
        at, weight = np.zeros(len(claims), dtype=np.int64), np.zeros(len(claims))
        for row, counted in enumerate(self.lengths[self.rows[:, 1:]] > 0):
            if not counted.any():
                continue
            chances = counted / counted.sum()
            if reference is not None:
                gains = np.clip(reference[row] - claims[row], 0, MAX_GAIN, dtype=np.float64) * counted
                if (total := gains.sum()) > 0:
                    chances = (1 - SUSPICION) * chances + SUSPICION * gains / total
            at[row] = rng.choice(len(chances), p=chances)
            weight[row] = 1 / chances[at[row]]
        chosen = rng.permutation(len(claims))[: min(alone, len(claims) // 4)]
        weight[chosen] = 0.0
        return Exam(self, claims, at, weight * len(claims) / (len(claims) - len(chosen)), chosen)

    def get_tolerance(self, baseline_error: float | Literal["unmeasured"]) -> float:
        """Return the nats by which a claim may beat the blind answer, given by how many the baseline's claims did."""
        if baseline_error == "unmeasured":
            return BASELINE_TOLERANCE
        least = TOLERANCE[self.manifest.budget.kind]
        return min(max(least, BASELINE_FACTOR * baseline_error), BASELINE_CAP * least)

    @property
    def nats_per_bpb(self) -> float:
        return math.log(2) * int(self.lengths[self.rows[:, 1:]].sum())


@dataclass(frozen=True, slots=True)
class Exam:
    """An audit of claims: where the blind process is asked, and how its answers are judged."""

    scorer: Scorer
    claims: Nats
    at: Rows  # one position in each row
    weight: NDArray[np.float64]  # of the check there: the number of tokens that it represents
    alone: Rows  # rows that are first shown whole, each by itself

    def mask(self, chosen: Rows, rng: np.random.Generator) -> Rows:
        """Return the inputs of the chosen rows: validation text up to the position, then training text."""
        other = self.scorer.decoys[rng.integers(len(self.scorer.decoys), size=len(chosen)), :-1]
        genuine = np.arange(self.scorer.shape[1]) <= self.at[chosen, None]
        return np.where(genuine, self.scorer.rows[chosen, :-1], other).astype(np.int64)

    def score_blind(self, logits: NDArray[np.float32], chosen: Rows) -> NDArray[np.float64]:
        """Return −log p, in nats, of the true tokens of the chosen rows. Raises Disqualified.

        `logits` are those at the positions, [rows, vocabulary].
        """
        if logits.shape[1] != len(self.scorer.lengths):
            raise Disqualified(f"its logits are for {logits.shape[1]} tokens of {len(self.scorer.lengths)}")
        if not np.isfinite(logits.max(1)).all() or np.isnan(logits).any():
            raise Disqualified("shown only the past, its logits give no probabilities")
        true = self.scorer.rows[chosen, self.at[chosen] + 1]
        wide = logits.astype(np.float64)
        wide -= wide.max(1, keepdims=True)
        return np.log(np.exp(wide).sum(1)) - wide[np.arange(len(wide)), true]

    def check_company(self, alone: Nats, tolerance: float) -> None:
        """Raise Disqualified if the losses of rows that are seen alone are not those claimed.

        `alone` are these losses, [rows, tokens]. A model that adapts to other rows is caught by this. It may lie here,
        too, so a loss that is too low counts like one that is too high.
        """
        compared = self.scorer.lengths[self.scorer.rows[self.alone, 1:]] > 0
        if not compared.any():
            return
        apart = (alone - self.claims[self.alone])[compared].astype(np.float64)
        worse, spread = float(apart.mean()), float(np.abs(apart).mean())
        if not (abs(worse) <= COMPANY * tolerance and spread <= SPREAD * tolerance):
            raise Disqualified(
                f"its rows do {worse:.3f} nats per token worse alone than among others ({spread:.3f} apart): the model"
                " learns from the text that it is evaluated on, or its losses are random: `model.eval()` ends dropout"
            )

    def correct(self, blind: NDArray[np.float64], allowed: float) -> tuple[float, float, float]:
        """Return the corrected score, never below the claimed one, the correction's standard error, and the worst gap.

        The gap is by how many nats a claim beats the blind answer. Raises Disqualified if one exceeds `allowed`.
        """
        rows = np.arange(len(blind))
        gaps = np.where(self.weight > 0, blind - self.claims[rows, self.at], 0.0)
        worst, claimed = float(gaps.max()), self.scorer.compute_bpb(self.claims)
        if not worst <= allowed:
            caught = int((gaps > allowed).sum())
            raise Disqualified(
                f"it claimed {claimed:.4f}, but shown only the past it does worse at {caught} of {len(gaps)} positions,"
                f" by up to {worst:.2f} nats: the model sees what it should predict, or the claims are not its own"
            )
        terms = self.weight * gaps
        error = math.sqrt(len(terms)) * float(terms.std()) / self.scorer.nats_per_bpb
        corrected = self.scorer.compute_bpb(self.claims, float(terms.sum())) + CAUTION * error
        return max(claimed, corrected), error, worst
