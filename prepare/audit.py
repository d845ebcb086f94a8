"""Answer the blind audit: `python -m prepare.audit` loads a submitted model and returns logits.

It runs in a sandbox of its own, without anything from the training. Each row that it receives is genuine up to one
position only; it returns the logits at that position.
"""

import os
import pickle

import numpy as np
import torch

from prepare import channel
from prepare.loader import choose_device


@torch.no_grad()
def main() -> None:
    """Load the model and answer requests for logits until the orchestrator ends the audit."""
    channel.send({"event": "ready"})  # torch is imported
    request = channel.receive()
    torch.set_float32_matmul_precision(request["precision"])
    torch.set_num_threads(request["threads"])
    descriptor = channel.shard("model")
    assert descriptor is not None
    with os.fdopen(descriptor, "rb") as file:
        model = pickle.load(file)  # noqa: S301 - inside a sandbox
    channel.send({"event": "loaded"})
    dtype = getattr(torch, request["autocast"] or "float32")
    with torch.autocast(choose_device().type, dtype, enabled=dtype != torch.float32):
        while (request := channel.receive())["event"] == "rows":
            rows, length = request["rows"], request["length"]
            x = np.frombuffer(channel.take(8 * rows * length), dtype=np.int64).reshape(rows, length)
            positions = torch.from_numpy(np.frombuffer(channel.take(8 * rows), dtype=np.int64).copy())
            logits = model(torch.from_numpy(x.copy()).to(choose_device()))
            answer = logits[torch.arange(rows), positions.to(logits.device)].float().cpu().numpy()
            channel.send({"event": "logits", "bytes": answer.nbytes}, np.ascontiguousarray(answer).data)


if __name__ == "__main__":
    main()
    os._exit(0)  # torch's clean-up is slow and not needed
