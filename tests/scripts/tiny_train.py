"""A train.py without torch: its score follows its constants, and noise its seed. A run takes a moment."""

import os
import random
import sys
import time

# fmt: off
DEPTH = 3                # 1..5 – the true optimum is 2
MATRIX_LR = 0.04         # 0.005..0.4 log – best at 0.08
UNEMBEDDING_LR = 0.004   # 0.001..0.1 log – best at 0.016
EMBEDDING_LR = 0.2       # 0.05..1.0 log – best where it is
WARMDOWN_RATIO = 0.5     # 0.0..1.0 – best at 0.5
STEPS = 40
# fmt: on

luck = random.Random(int(os.environ.get("NIGHTSHIFT_SEED", "42")))
channel.ready()  # noqa: F821 - protocol.py comes before it
for step in range(STEPS):
    time.sleep(0.004)
    loss = 6.0 * 0.97**step + 2.0
    print(f"step {step:05d} ({100 * step / STEPS:.1f}%) | loss: {loss:.6f} | lrm: 1.00 | dt: 4ms | tok/sec: 1,000")
    sys.stdout.flush()
loss = 0.02 * abs(DEPTH - 2) + 0.25 * abs(MATRIX_LR - 0.08) + 2 * abs(UNEMBEDDING_LR - 0.016)
loss += 0.1 * abs(EMBEDDING_LR - 0.2) + 0.1 * abs(WARMDOWN_RATIO - 0.5)
score = 2.0 + 4 * loss + luck.gauss(0, 0.003)  # large effects: few runs and audits decide
finish(score)  # noqa: F821
print(f"---\nval_bpb:          {score:.6f}\nnum_steps:        {STEPS}\ntotal_tokens_M:   0.1\nnum_params_M:     0.1")
