"""In the shape of autoresearch's train.py, names, order and prints; with what its variants ask of prepare.

It has its kernel from a file that no import finds, fixes its seed, asks for data before it compiles, does not count
its first steps, and knows nothing of Budget.
"""

import gc
import importlib.util
import math
import os
import sys
import time

import torch
from torch import nn
from torch.nn import functional

name, place = "fa3_5eed", os.environ["KERNELS_CACHE"]
spec = importlib.util.spec_from_file_location(name, f"{place}/build/fa3/__init__.py")
sys.modules[name] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
fa3 = package.interface

from prepare import (  # noqa: E402
    BOS_TOKEN,
    EVAL_TOKENS,
    MAX_SEQ_LEN,
    TIME_BUDGET,
    Tokenizer,
    evaluate_bpb,
    get_token_bytes,
    make_dataloader,
)


class GPT(nn.Module):
    def __init__(self, vocab_size, dim):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, dim)
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)
        self.is_compiled = False

    def forward(self, idx, targets=None, reduction="mean"):
        if not self.is_compiled:
            time.sleep(COMPILE_SECONDS)
            self.is_compiled = True
        logits = self.lm_head(fa3.attend(self.wte(idx))).float()
        if targets is None:
            return logits
        return functional.cross_entropy(
            logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1, reduction=reduction
        )


DEPTH = 2
DEVICE_BATCH_SIZE = 4
TOTAL_BATCH_SIZE = 2**8
MATRIX_LR = 0.04
COMPILE_SECONDS = 8.0

t_start = time.time()
torch.manual_seed(42)
torch.set_float32_matmul_precision("high")
tokenizer = Tokenizer.from_directory()
vocab_size = tokenizer.get_vocab_size()
print(f"Vocab size: {vocab_size:,}")
bos, token_bytes = tokenizer.get_bos_token_id(), get_token_bytes(device="cpu")
assert tokenizer.encode("a", prepend=BOS_TOKEN) == tokenizer.encode("a", prepend=bos) == [bos, *tokenizer.encode("a")]
assert token_bytes[bos] == 0 < token_bytes[tokenizer.encode("a")].item()
model = GPT(vocab_size, 16 * DEPTH)
optimizer = torch.optim.AdamW(model.parameters(), lr=MATRIX_LR)
grad_accum_steps = TOTAL_BATCH_SIZE // (DEVICE_BATCH_SIZE * MAX_SEQ_LEN)
assert tokenizer.encode(["a"], bos, num_threads=2) == [[tokenizer.bos_token_id, *tokenizer.encode("a")]]
train_loader = make_dataloader(tokenizer, DEVICE_BATCH_SIZE, MAX_SEQ_LEN, "train", buffer_size=10)
x, y, epoch = next(train_loader)
print(f"Time budget: {TIME_BUDGET}s")
print(f"Gradient accumulation steps: {grad_accum_steps}")

smooth_train_loss, total_training_time, step = 0, 0, 0
while True:
    t0 = time.time()
    for _ in range(grad_accum_steps):
        loss = model(x, y)
        train_loss = loss.detach()
        (loss / grad_accum_steps).backward()
        x, y, epoch = next(train_loader)
    progress = min(total_training_time / TIME_BUDGET, 1.0)
    optimizer.step()
    model.zero_grad(set_to_none=True)
    if math.isnan(train_loss.item()) or train_loss.item() > 100:
        print("FAIL")
        sys.exit(1)
    dt = time.time() - t0
    if step > 10:
        total_training_time += dt
    smooth_train_loss = 0.9 * smooth_train_loss + 0.1 * train_loss.item()
    debiased = smooth_train_loss / (1 - 0.9 ** (step + 1))
    print(
        f"\rstep {step:05d} ({100 * progress:.1f}%) | loss: {debiased:.6f} | lrm: 1.00 | dt: {dt * 1000:.0f}ms | "
        f"tok/sec: {int(TOTAL_BATCH_SIZE / dt):,} | mfu: 0.0% | epoch: {epoch} | "
        f"remaining: {max(0, TIME_BUDGET - total_training_time):.0f}s    ",
        end="",
        flush=True,
    )
    if step == 0:
        gc.collect()
        gc.freeze()
        gc.disable()
    step += 1
    if step == 12:
        print(f"so far {evaluate_bpb(model, tokenizer, DEVICE_BATCH_SIZE):.3f}")
    if step > 10 and total_training_time >= TIME_BUDGET:
        break
print()

model.eval()
steps = EVAL_TOKENS // (DEVICE_BATCH_SIZE * MAX_SEQ_LEN)
val_bpb = evaluate_bpb(model, tokenizer, DEVICE_BATCH_SIZE, seq_len=MAX_SEQ_LEN // 2, max_steps=steps)
print("---")
print(f"val_bpb:          {val_bpb:.6f}")
print(f"training_seconds: {total_training_time:.1f}")
print(f"total_seconds:    {time.time() - t_start:.1f}")
print(f"peak_vram_mb:     {0.0:.1f}")
print(f"mfu_percent:      {0.0:.2f}")
print(f"total_tokens_M:   {step * TOTAL_BATCH_SIZE / 1e6:.1f}")
print(f"num_steps:        {step}")
print(f"num_params_M:     {sum(p.numel() for p in model.parameters()) / 1e6:.1f}")
print(f"depth:            {DEPTH}")
