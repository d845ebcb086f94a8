"""Run a submitted model for the orchestrator: `python -m prepare.evaluator`, in a fresh sandbox, after its training.

It is sent rows of tokens, and returns either the model's losses or its logits at one position of each row. Torch is
imported only for a model that was trained with it; any other gets numpy arrays.
"""

import os
import pickle
import sys
import tempfile
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prepare import channel


class LoadedFiles(dict[str, str]):
    """Finds modules by the files that the training code loaded them from, where no import looks."""

    places: Sequence[str] = ()  # the run's own folders, in which imports look first, relative to its folder

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Return where the module is; None if it is none of these."""
        return spec_from_file_location(name, Path.home() / self[name]) if name in self else None


def main() -> None:
    """Load the model and answer requests until the orchestrator ends the evaluation."""
    tempfile.tempdir = os.environ.get("TMPDIR")  # otherwise a file would be written there, to try it
    request = channel.receive()
    if request["precision"]:
        set_up_torch(request)
    channel.send({"event": "ready"})
    channel.receive()  # its turn: until then nothing of the model is here
    if request["precision"]:
        torch, device = _import_torch()
        torch.zeros(1, device=device)  # what fails until here is the machine's fault
    channel.send({"event": "open"})
    descriptor = channel.shard("model")
    assert descriptor is not None
    with os.fdopen(descriptor, "rb") as file:
        while hasattr(model := pickle.load(file), "find_spec"):  # noqa: S301 - inside a sandbox
            sys.meta_path.append(model)
            sys.path[:0] = [str(Path.home() / place) for place in model.places]
    if "torch._dynamo" in sys.modules:
        torch, device = _import_torch()
        if device.type == "cpu":  # no compiler can be started for it
            torch.compiler.set_stance("force_eager")
    channel.send({"event": "loaded"})
    while (request := channel.receive())["event"] != "thanks":
        rows, length = request["rows"], request["length"]
        x = np.frombuffer(channel.take(8 * rows * length), dtype=np.int64).reshape(rows, length)
        if request["event"] == "losses":
            y = np.frombuffer(channel.take(8 * rows * length), dtype=np.int64).reshape(rows, length)
            answer = compute_losses(model, x, y)
        else:
            at = np.frombuffer(channel.take(8 * rows), dtype=np.int64)
            logits = _run(model, x)
            whole = tuple(logits.shape[:2]) == (rows, length)
            answer = _to_array(logits[np.arange(rows), at] if whole else logits)  # which is refused
        channel.send({"event": request["event"], "bytes": answer.nbytes}, answer.tobytes())


def _import_torch() -> tuple[Any, Any]:
    """Return torch and the device that the training ran on, where it was trained with torch."""
    import torch

    from prepare.loader import choose_device

    return torch, choose_device()


def set_up_torch(request: dict[str, Any]) -> None:
    """Make torch compute as it did where the model was trained."""
    torch, device = _import_torch()
    torch.set_grad_enabled(False)
    torch.set_float32_matmul_precision(request["precision"])
    torch.set_num_threads(request["threads"])
    if request["autocast"]:
        torch.autocast(device.type, getattr(torch, request["autocast"])).__enter__()


def compute_losses(model: Any, x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the model's losses, in nats per token; `x` and `y` are [rows, tokens]."""
    return _to_array(_run(model, x, y, reduction="none"))


def _run(model: Any, *arrays: NDArray[np.int64], **options: str) -> Any:
    if "torch" not in sys.modules:
        return model(*arrays, **options)
    torch, device = _import_torch()
    return model(*(torch.from_numpy(array.copy()).to(device) for array in arrays), **options)


def _to_array(values: Any) -> NDArray[np.float32]:
    return np.ascontiguousarray(values.float().cpu().numpy() if "torch" in sys.modules else values, dtype=np.float32)


if __name__ == "__main__":
    main()
    os._exit(0)  # torch's clean-up is slow and not needed
