"""An upstream-shaped script: the names, the order and the prints of autoresearch's train.py, and nothing to wait for."""

import random
import time

from model import Line

from prepare import MAX_SEQ_LEN, TIME_BUDGET, Tokenizer, evaluate_bpb, make_dataloader

DEPTH = 8               # number of layers
TOTAL_BATCH_SIZE = 2**4 # tokens per optimizer step
MATRIX_LR = 0.04        # learning rate
WEIGHT_DECAY = 0.2
ADAM_BETAS = (0.8, 0.95)

random.seed(42)
started = time.time()
tokenizer = Tokenizer.from_directory()
vocab_size = tokenizer.get_vocab_size()
model = Line(DEPTH)
for _ in range(3):
    model.compile()
loader = make_dataloader(tokenizer, 2, MAX_SEQ_LEN, "train")
x, y = next(loader)
step, total_training_time = 0, 0.0
while True:
    loss = model.step(x, y, MATRIX_LR * (1 - WEIGHT_DECAY) / ADAM_BETAS[0] / TOTAL_BATCH_SIZE)
    x, y = next(loader)
    total_training_time += 0.05
    share = 100 * min(total_training_time / TIME_BUDGET, 1.0)
    print(f"\rstep {step:05d} ({share:.1f}%) | loss: {loss:.6f} | lrm: 1.00 | dt: 50ms | tok/sec: 640 | mfu: 1.0% | "
          f"epoch: 1 | remaining: {TIME_BUDGET - total_training_time:.0f}s    ", end="", flush=True)
    step += 1
    if total_training_time >= TIME_BUDGET:
        break
print()
val_bpb = evaluate_bpb(model, tokenizer, 2)
print("---")
print(f"val_bpb:          {val_bpb:.6f}")
print(f"training_seconds: {total_training_time:.1f}")
print(f"total_seconds:    {time.time() - started:.1f}")
print(f"peak_vram_mb:     {0.0:.1f}")
print(f"mfu_percent:      {1.0:.2f}")
print(f"total_tokens_M:   {step * 32 / 1e6:.1f}")
print(f"num_steps:        {step}")
print(f"num_params_M:     {1.5:.1f}")
print(f"depth:            {DEPTH}")
