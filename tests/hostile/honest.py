"""An honest train.py in miniature: a table of which token follows which. The enemies begin with it."""

import torch
import torch.nn.functional as F  # noqa: N812 - as in train.py
from torch import nn

from prepare import MAX_SEQ_LEN, Tokenizer, evaluate_bpb, make_dataloader  # noqa: F401 - for what follows

torch.manual_seed(0)
tokenizer = Tokenizer.from_directory()
V = tokenizer.get_vocab_size()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(V, V)
        nn.init.zeros_(self.table.weight)

    def logits(self, x):
        return self.table(x)

    def forward(self, x, targets=None, reduction="mean"):
        logits = self.logits(x)
        if targets is None:
            return logits
        return F.cross_entropy(logits.view(-1, V), targets.reshape(-1), reduction=reduction)


def train(model, steps=30):
    batches = make_dataloader(tokenizer, 16, MAX_SEQ_LEN, "train")
    for step in range(steps):
        x, y, _ = next(batches)
        loss = model(x, y)
        (slope,) = torch.autograd.grad(loss, [model.table.weight])
        with torch.no_grad():  # by hand, since importing an optimizer takes longer than all else here
            model.table.weight -= 60.0 * slope
        print(f"step {step:05d} ({100 * step / steps:.1f}%) | loss: {loss.item():.3f} | tok/sec: 1,000")
    return model
