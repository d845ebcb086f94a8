"""Fill a data folder: tokenizer, packed rows, budget, and finally the manifest.

Every file is renamed into place and depends only on the plan, so after a kill the next run keeps the finished files,
repeats the interrupted stage, and ends with the same bytes.
"""

import importlib.metadata
import json
import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import chain
from math import ceil
from pathlib import Path

from prepare import manifest, profiles
from prepare.build import calibration
from prepare.build.packing import TokenStore, write_rows
from prepare.corpus import BATCH, SPLITS, Corpus, track
from prepare.files import open_replacement, write_atomically
from prepare.manifest import BudgetAmount, DataError, Manifest, StoredFile
from prepare.profiles import Profile
from prepare.shards import choose_row_dtype
from prepare.tokenizer import TOKENIZER_FILE, Tokenizer

PLAN = "plan.json"


def build_folder(folder: Path, corpus: Corpus, profile: Profile, work: float | None = None) -> None:
    """Fill `folder` for runs of so much work; by default of the profile's budget, measured here. Raises DataError."""
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "rustbpe", "tiktoken", "torch")}
    versions["python"] = platform.python_version()
    plan = {"profile": asdict(profile), "corpus": corpus.name, "sha256": corpus.fingerprint, "versions": versions}
    plan |= {"shards": corpus.shards} if corpus.shards else {}
    _begin(folder, plan)
    tokenizer = _train_tokenizer(folder, corpus, profile)
    rows = {split: _write_split(folder, split, corpus, tokenizer, profile) for split in SPLITS}
    paths = [folder / name for name in (TOKENIZER_FILE, *(f"{split}.bin" for split in SPLITS))]
    built = Manifest(
        profile=profile.name,
        corpus=corpus.name,
        corpus_sha256=corpus.fingerprint,
        seq_len=profile.seq_len,
        vocab_size=tokenizer.get_vocab_size(),
        eval_tokens=rows["val"] * profile.seq_len,
        budget=profile.budget,
        rows=rows,
        files={path.name: StoredFile(path.stat().st_size, manifest.compute_sha256(path)) for path in paths},
        versions=versions,
        constants=profiles.find_changes(profile),
    )
    usual, seconds = profiles.CPU.budget, profile.budget.seconds
    if work:  # is given, and takes as long as on a usual machine
        seconds = float(f"{work / usual.amount * usual.seconds:.3g}")
    elif profile.budget.kind == "work":
        step_work, step_seconds = calibration.measure_step(folder, built, profile)
        work = float(f"{step_work / step_seconds * seconds:.3g}")
    if work:
        built = replace(built, budget=BudgetAmount("work", work, seconds))
    write_atomically(folder / manifest.MANIFEST_FILE, built.to_json())


def _begin(folder: Path, plan: Mapping[str, object]) -> None:
    """Keep the files of an interrupted run with the same plan, remove those of another. Raises DataError."""
    for stale in folder.glob(".*.part"):
        stale.unlink()
    for stale in folder.glob(f"{calibration.PREFIX}*"):
        shutil.rmtree(stale)
    path, text = folder / PLAN, json.dumps(plan)
    ours = {PLAN, TOKENIZER_FILE, *(f"{split}.bin" for split in SPLITS)}
    if path.exists() and path.read_bytes() == text.encode():
        return
    if foreign := {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")} - ours:
        raise DataError(f"{folder} holds other files ({min(foreign)}): give an empty folder with --data")
    for name in ours:
        (folder / name).unlink(missing_ok=True)
    write_atomically(path, text)


def _train_tokenizer(folder: Path, corpus: Corpus, profile: Profile) -> Tokenizer:
    if not (folder / TOKENIZER_FILE).exists():
        stage = f"learning {profile.vocab_size:,} tokens"
        texts = chain.from_iterable(corpus.read_batches("train"))
        learned = Tokenizer.train(track(texts, corpus.counts["train"], stage), profile.vocab_size)
        write_atomically(folder / TOKENIZER_FILE, learned.to_json())
    return Tokenizer.from_directory(folder)


def _write_split(folder: Path, split: str, corpus: Corpus, tokenizer: Tokenizer, profile: Profile) -> int:
    path = folder / f"{split}.bin"
    if not path.exists():
        batches = track(corpus.read_batches(split), ceil(corpus.counts[split] / BATCH), f"packing {split}")
        limit = None if split == "train" else profile.eval_tokens // profile.seq_len
        # The temporary file has no name: a kill leaves nothing behind.
        with tempfile.TemporaryFile(dir=folder) as file, open_replacement(path) as part:
            store = TokenStore(file, batches, tokenizer, profile.seq_len if profile.chunk else None)
            write_rows(part, store, profile.seq_len, shuffle=profile.chunk or not corpus.shuffled, limit=limit)
    row_bytes = (profile.seq_len + 1) * choose_row_dtype(tokenizer.get_vocab_size()).itemsize
    if not (rows := path.stat().st_size // row_bytes):
        raise DataError(f"too little text: no row of {profile.seq_len} tokens for {split}")
    return rows
