"""Compute the metric: bits per byte of validation text, independent of the vocabulary. Lower is better.

Under an orchestrator a script only hands its model over. It is scored after the script has ended, by processes that
have not trained it (`prepare.evaluator`): no script ever sees validation text.
"""

import math
import operator
import pickle
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

import cloudpickle
import numpy as np
import torch
from numpy.typing import NDArray

from prepare import channel
from prepare.evaluator import LoadedFiles, compute_losses
from prepare.loader import choose_device
from prepare.shards import open_rows
from prepare.tokenizer import Tokenizer

PREVIEW_ROWS = 4  # training rows that a run evaluates itself: few, since uncompiled code takes more memory


@torch.no_grad()
def evaluate_bpb(model: torch.nn.Module, tokenizer: Tokenizer, batch_size: int, **upstream: object) -> float:
    """Return the bits per byte of all validation rows; `model(x, y, reduction="none")` returns nats per token.

    Special tokens count neither as loss nor as bytes. `model(x)` must return logits [rows, tokens, vocabulary]. Under
    an orchestrator, hand the model over, of which the last counts, and return the bits per byte of a few training rows.
    Other arguments change nothing, and are named in a line: `device`, `seq_len` and `max_steps` in forks of upstream.
    """
    if ignored := ", ".join(f"{name}={value}" for name, value in upstream.items() if value is not None):
        print(f"prepare: every row is scored, at MAX_SEQ_LEN, on {choose_device()}; without {ignored}", file=sys.stderr)
    is_run = channel.answers()
    if is_run:
        model = getattr(model, "_orig_mod", model)  # without the wrapper of torch.compile
        channel.ready()  # some scripts also evaluate before their first batch
        hand_over(model, batch_size)
    rows = open_rows("train")[:PREVIEW_ROWS] if is_run else open_rows("val")
    lengths = tokenizer.token_bytes[rows[:, 1:]]
    nbytes = int(lengths.sum())
    losses = _compute_all_losses(model, rows, batch_size)
    bpb = float(losses[lengths > 0].sum(dtype=np.float64)) / (math.log(2) * nbytes)
    if not is_run:
        channel.send({"event": "score", "val_bpb": bpb, "tokens": losses.size, "bytes": nbytes})
    return bpb


def get_token_bytes(device: str | torch.device = "cpu") -> torch.Tensor:
    """Return the bytes of each token, int32 [vocabulary]; 0 for special tokens."""
    return torch.from_numpy(Tokenizer.from_directory().token_bytes).to(device)


def _compute_all_losses(model: torch.nn.Module, rows: NDArray[np.unsignedinteger], size: int) -> NDArray[np.float32]:
    losses = np.empty((len(rows), rows.shape[1] - 1), dtype=np.float32)
    size = min(size, len(rows))
    for first in range(0, len(rows), size):
        # The last batch is filled up from the first: another shape would compile the model again.
        block = rows.take(np.arange(first, first + size), axis=0, mode="wrap").astype(np.int64)
        found = compute_losses(model, block[:, :-1], block[:, 1:]).reshape(size, -1)
        losses[first : first + size] = found[: len(rows) - first]
    return losses


def hand_over(model: torch.nn.Module, batch_size: int) -> None:
    """Submit the model and how to run it; return once the orchestrator has it."""
    pickled = pickle.dumps(find_loaded_files()) + cloudpickle.dumps(model)
    kind = choose_device().type
    autocast = str(torch.get_autocast_dtype(kind)).removeprefix("torch.") if torch.is_autocast_enabled(kind) else None
    header: dict[str, object] = {
        "event": "model",
        "bytes": len(pickled),
        "batch_size": operator.index(batch_size),
        "autocast": autocast,
        "precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
    }
    channel.send(header, pickled)
    channel.receive()


def find_loaded_files() -> LoadedFiles:
    """Return the files of modules that no import would find, such as downloaded kernels, by the modules' names.

    With them goes where the run's own modules are, which imports find. Paths in the run's folder are relative to it,
    since an evaluator has another.
    """
    specs = [getattr(module, "__spec__", None) for module in [*sys.modules.values()]]
    files = {spec.name: spec.origin or "" for spec in specs if isinstance(spec, ModuleSpec) and spec.has_location}
    own = {name: Path(files[name]) for name in files if "." not in name and PathFinder.find_spec(name) is None}
    home, places = Path.home(), [Path(place).absolute() for place in sys.path]
    found = LoadedFiles({n: str(at.relative_to(home) if at.is_relative_to(home) else at) for n, at in own.items()})
    found.places = [str(place.relative_to(home)) for place in places if place.is_relative_to(home)]
    return found
