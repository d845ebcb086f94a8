"""Fills a data folder: text, tokenizer, packed rows, budget, and last the manifest.

Every file is committed by a rename and depends on nothing but the plan, so that after a kill the next run keeps what is
there and ends with the same bytes.
"""

import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from math import ceil
from pathlib import Path

from prepare import manifest, profiles
from prepare.atomic import open_replacement
from prepare.build import calibration
from prepare.build.packing import write_rows
from prepare.build.token_store import TokenStore
from prepare.corpus.base import BATCH, SPLITS, Corpus
from prepare.manifest import BudgetAmount, DataError, Manifest, StoredFile
from prepare.profiles import Profile
from prepare.progress import Progress, track
from prepare.shards import choose_row_dtype
from prepare.tokenizer import TOKENIZER_FILE, Tokenizer

PLAN = "plan.json"
LOCK = ".lock"
SPOOL = ".spool-"


def build_folder(
    folder: Path,
    corpus: Corpus,
    profile: Profile,
    budget: BudgetAmount | None,
    progress: Progress,
    *,
    probe: bool = False,
) -> Manifest:
    """Prepares `folder`; `budget` None means: measure; `probe`: choose the size of the model, too.

    Raises DataError where the folder or the corpus is of no use.
    """
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "rustbpe", "tiktoken", "torch")}
    versions["python"] = platform.python_version()
    plan = {"profile": asdict(profile), "corpus": corpus.name, "sha256": corpus.fingerprint, "versions": versions}
    _begin(folder, plan)
    tokenizer = _train_tokenizer(folder, corpus, profile, progress)
    rows = {split: _write_splits(folder, split, corpus, tokenizer, profile, progress) for split in SPLITS}
    files = {name: _describe_file(folder / name) for name in (TOKENIZER_FILE, *(f"{split}.bin" for split in SPLITS))}
    made = Manifest(
        profile=profile.name,
        corpus=corpus.name,
        corpus_sha256=corpus.fingerprint,
        seq_len=profile.seq_len,
        vocab_size=tokenizer.get_vocab_size(),
        eval_tokens=rows["val"] * profile.seq_len,
        budget=budget or profile.budget,
        rows=rows,
        files=files,
        versions=versions,
        constants=profiles.find_changes(profile),
    )
    if probe:
        made = calibration.probe(folder, made, profile, progress)
    elif budget is None and made.budget.kind == "work":
        made = calibration.calibrate(folder, made, profile, progress)
    with open_replacement(folder / manifest.MANIFEST_FILE) as part:
        part.write_text(made.to_json())
    return made


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """One process at a time; a second is told so at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another `{manifest.COMMAND}` is at work in {folder}: wait for it") from None
        yield
    finally:
        os.close(lock)


def _begin(folder: Path, plan: Mapping[str, object]) -> None:
    """Keeps what an interrupted run with the same plan has left, and removes what any other has."""
    for stale in folder.glob(".*.part"):
        stale.unlink()
    for stale in folder.glob(f"{calibration.PREFIX}*"):
        shutil.rmtree(stale)
    path = folder / PLAN
    ours = {PLAN, TOKENIZER_FILE, *(f"{split}.bin" for split in SPLITS)}
    if path.exists() and json.loads(path.read_text()) == plan:
        return
    if foreign := {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")} - ours:
        raise DataError(f"{folder} holds other things ({min(foreign)}): give an empty folder with --data")
    for stale in (*(folder / name for name in ours), *folder.glob(f"{SPOOL}*")):
        stale.unlink(missing_ok=True)
    with open_replacement(path) as part:
        part.write_text(json.dumps(plan))


def _train_tokenizer(folder: Path, corpus: Corpus, profile: Profile, progress: Progress) -> Tokenizer:
    if not (folder / TOKENIZER_FILE).exists():
        stage = f"learning {profile.vocab_size:,} tokens"
        texts = chain.from_iterable(corpus.batches("train"))
        learned = Tokenizer.train(track(texts, corpus.count("train"), stage, progress), profile.vocab_size)
        with open_replacement(folder / TOKENIZER_FILE) as part:
            part.write_text(learned.to_json())
    return Tokenizer.from_directory(folder)


def _write_splits(
    folder: Path, split: str, corpus: Corpus, tokenizer: Tokenizer, profile: Profile, progress: Progress
) -> int:
    """Packs a split into its shard, unless it is there already; returns how many rows it has."""
    path = folder / f"{split}.bin"
    spool = TokenStore(folder / f"{SPOOL}{split}", tokenizer, profile.seq_len if profile.chunk else None)
    if not path.exists():
        batches = track(corpus.batches(split), ceil(corpus.count(split) / BATCH), f"packing {split}", progress)
        spool.fill(batches)
        limit = None if split == "train" else profile.eval_tokens // profile.seq_len
        with open_replacement(path) as part:
            write_rows(part, spool, profile.seq_len, shuffle=profile.chunk or not corpus.mixed, limit=limit)
    spool.remove()
    row_bytes = (profile.seq_len + 1) * choose_row_dtype(tokenizer.get_vocab_size()).itemsize
    if not (rows := path.stat().st_size // row_bytes):
        raise DataError(f"too little text: no row of {profile.seq_len} tokens for {split}")
    return rows


def _describe_file(path: Path) -> StoredFile:
    return StoredFile(bytes=path.stat().st_size, sha256=manifest.compute_sha256(path))
