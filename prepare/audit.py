"""The blind half of the audit: `python -m prepare.audit` loads a handed-over model and says what it expects.

It runs in a sandbox of its own, with nothing of the training left. Each row that it is shown is genuine up to one
position only; the logits there are its answer.
"""

import os
import pickle
from contextlib import nullcontext

import numpy as np
import torch

from prepare import channel
from prepare.loader import choose_device


@torch.no_grad()
def main() -> None:
    channel.send({"event": "ready"})  # what is imported is done with
    how = channel.receive()
    torch.set_float32_matmul_precision(how["precision"])
    torch.set_num_threads(how["threads"])
    descriptor = channel.shard("model")
    assert descriptor is not None
    with os.fdopen(descriptor, "rb") as file:
        model = pickle.load(file)  # noqa: S301 - this is the sandbox for it
    channel.send({"event": "loaded"})
    dtype = how["autocast"] and getattr(torch, how["autocast"])
    with torch.autocast(choose_device().type, dtype) if dtype else nullcontext():
        while (asked := channel.receive())["event"] == "rows":
            rows, length = asked["rows"], asked["length"]
            x = np.frombuffer(channel.take(8 * rows * length), dtype=np.int64).reshape(rows, length)
            places = torch.from_numpy(np.frombuffer(channel.take(8 * rows), dtype=np.int64).copy())
            logits = model(torch.from_numpy(x.copy()).to(choose_device()))
            answer = logits[torch.arange(rows), places.to(logits.device)].float().cpu().numpy()
            channel.send({"event": "logits", "bytes": answer.nbytes}, memoryview(np.ascontiguousarray(answer)))


if __name__ == "__main__":
    main()
    os._exit(0)  # there is nothing to tidy up, and torch would take its time over it
