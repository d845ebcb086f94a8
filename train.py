"""
Train a small GPT on one device, within a fixed budget, and print its score. This is the one file to edit.
Usage: python train.py
"""

import copy
import gc
import importlib
import math
import os
import resource
import sys
import time
from contextlib import nullcontext

t_start = time.time()
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # the same bits in every process, wherever memory happens to lie

import torch
import torch.nn as nn
import torch.nn.functional as F

from prepare import MAX_SEQ_LEN, SEED, THREADS, Budget, Tokenizer, evaluate_bpb, make_dataloader

# --- Constants (edit these; comments give the range worth searching) --------------------------------------------------

# Model
DEPTH = 8                   # 2..16 – transformer blocks
MODEL_DIM = 512             # one of 256, 384, 512, 640, 768 – width, a multiple of HEAD_DIM
HEAD_DIM = 128              # one of 64, 128 – width of one attention head
MLP_RATIO = 4               # 1..6 – hidden width of the MLP over MODEL_DIM
WINDOW_PATTERN = "SSSL"     # one of "L", "SL", "SSL", "SSSL" – L sees the whole context, S half of it; the last is L
LOGIT_SOFTCAP = 15.0        # 5.0..60.0 log – logits are squeezed into ± this (0: they are not)
ROPE_BASE = 10_000.0        # 1_000.0..1_000_000.0 log – longest wavelength of the rotary embedding

# Batch
TOTAL_BATCH_SIZE = 524_288  # one of 131_072, 262_144, 524_288 – tokens per optimizer step
DEVICE_BATCH_SIZE = 128     # rows at a time on the device (less when out of memory)

# Optimizer
EMBEDDING_LR = 0.6          # 0.1..2.0 log – Adam, token and value embeddings
UNEMBEDDING_LR = 0.004      # 0.001..0.04 log – Adam, output layer
MATRIX_LR = 0.04            # 0.01..0.16 log – Muon, all matrices in blocks
SCALAR_LR = 0.5             # 0.1..1.5 log – Adam, per-layer scalars
WEIGHT_DECAY = 0.2          # 0.0..0.6 – Muon, falls to 0 over the run
ADAM_BETA1 = 0.8            # 0.6..0.95 – Adam, memory of gradients
ADAM_BETA2 = 0.95           # 0.9..0.99 – Adam, memory of their squares
MUON_MOMENTUM = 0.95        # 0.85..0.98 – after its warm-up from 0.85
MOMENTUM_WARMUP = 300       # 0..1000 – steps: a few steps cannot fill a long memory

# Schedule
WARMUP_RATIO = 0.0          # 0.0..0.2 – share of the budget
WARMDOWN_RATIO = 0.5        # 0.2..1.0 – share of the budget
FINAL_LR_FRAC = 0.0         # 0.0..0.2 – where the warm-down ends, over the peak

# --- Device -----------------------------------------------------------------------------------------------------------

torch.manual_seed(SEED)
if torch.cuda.is_available():
    torch.set_float32_matmul_precision("high")
    device, capability = torch.device("cuda"), torch.cuda.get_device_capability()
    bf16, fast = capability >= (8, 0), capability >= (7, 0)
    synchronize, device_name = torch.cuda.synchronize, torch.cuda.get_device_name()
elif torch.backends.mps.is_available():
    device, bf16, fast = torch.device("mps"), False, False
    synchronize, device_name = torch.mps.synchronize, "mps"
else:
    device, bf16, fast = torch.device("cpu"), False, False
    synchronize, device_name = (lambda: None), "cpu"
    torch.set_num_threads(THREADS)
autocast = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
maybe_compile = torch.compile(dynamic=False) if fast else (lambda function: function)

class FlashAttention3:
    """The kernel for Hopper, from $KERNELS_CACHE, a folder of fetched kernels."""

    def __init__(self):
        kernels = importlib.import_module("kernels")  # optional
        found = kernels.get_kernel("kernels-community/flash-attn3", revision="main")
        self.run = found.flash_attn_interface.flash_attn_func

    def __reduce__(self):  # loaded again wherever the model goes
        return FlashAttention3, ()


flash3 = None
if device.type == "cuda" and capability == (9, 0) and os.environ.get("KERNELS_CACHE"):
    try:
        flash3 = FlashAttention3()
    except Exception as error:  # that package may raise anything, and torch has kernels, too
        print(f"no FlashAttention 3: {error}")

if bf16:  # flash attention with a window; the import takes a second
    from torch.nn.attention.varlen import varlen_attn

# --- Model ------------------------------------------------------------------------------------------------------------

def norm(x):
    return F.rms_norm(x, (x.size(-1),))


def rotate(x, cos, sin):
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos + right * sin, right * cos - left * sin), dim=-1)


def attention(q, k, v, window):
    """Return causal attention of (B, T, heads, head_dim) over the last `window` positions."""
    B, T, H, D = q.shape
    if flash3:
        return flash3.run(*(t.to(torch.bfloat16) for t in (q, k, v)), causal=True, window_size=(window, 0))
    if bf16 and window < T:
        ends = torch.arange(0, B * T + 1, T, dtype=torch.int32, device=q.device)
        q, k, v = (t.reshape(B * T, H, D).to(torch.bfloat16) for t in (q, k, v))
        return varlen_attn(q, k, v, ends, ends, T, T, window_size=(window, 0)).view(B, T, H, D)
    q, k, v = (t.to(v.dtype).transpose(1, 2) for t in (q, k, v))
    if window >= T:  # torch takes the fastest kernel that it has for the card
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    position = torch.arange(T, device=q.device)
    distance = position[:, None] - position[None, :]
    mask = (distance >= 0) & (distance <= window)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.q = nn.Linear(MODEL_DIM, MODEL_DIM, bias=False)
        self.k = nn.Linear(MODEL_DIM, MODEL_DIM, bias=False)
        self.v = nn.Linear(MODEL_DIM, MODEL_DIM, bias=False)
        self.proj = nn.Linear(MODEL_DIM, MODEL_DIM, bias=False)
        self.gate_dim = min(32, MODEL_DIM)
        self.gate = nn.Linear(self.gate_dim, MODEL_DIM // HEAD_DIM, bias=False) if has_value_embedding(layer) else None

    def forward(self, x, value_embedding, cos, sin, window):
        B, T, C = x.shape
        q, k, v = (project(x).view(B, T, -1, HEAD_DIM) for project in (self.q, self.k, self.v))
        if self.gate is not None:  # each head mixes in an embedding of its own input token, as much as the gate says
            gate = 2 * torch.sigmoid(self.gate(x[..., : self.gate_dim]))
            v = v + gate.unsqueeze(-1) * value_embedding.view(B, T, -1, HEAD_DIM)
        q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))
        return self.proj(attention(q, k, v, window).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(MODEL_DIM, MLP_RATIO * MODEL_DIM, bias=False)
        self.proj = nn.Linear(MLP_RATIO * MODEL_DIM, MODEL_DIM, bias=False)

    def forward(self, x):
        return self.proj(F.relu(self.fc(x)).square())


class Block(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.attn = Attention(layer)
        self.mlp = MLP()

    def forward(self, x, value_embedding, cos, sin, window):
        x = x + self.attn(norm(x), value_embedding, cos, sin, window)
        return x + self.mlp(norm(x))


def has_value_embedding(layer):
    return layer % 2 == (DEPTH - 1) % 2  # every other layer, the last among them


class GPT(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, MODEL_DIM)
        self.blocks = nn.ModuleList(Block(layer) for layer in range(DEPTH))
        self.value_embeds = nn.ModuleDict({
            str(layer): nn.Embedding(vocab_size, MODEL_DIM)
            for layer in range(DEPTH) if has_value_embedding(layer)
        })
        self.lm_head = nn.Linear(MODEL_DIM, vocab_size, bias=False)
        self.resid_lambdas = nn.Parameter(torch.ones(DEPTH))
        self.x0_lambdas = nn.Parameter(torch.full((DEPTH,), 0.1))
        pattern = [WINDOW_PATTERN[layer % len(WINDOW_PATTERN)] for layer in range(DEPTH - 1)] + ["L"]
        self.windows = [MAX_SEQ_LEN if kind == "L" else MAX_SEQ_LEN // 2 for kind in pattern]
        frequencies = ROPE_BASE ** -torch.arange(0, 1, 2 / HEAD_DIM)
        angles = torch.outer(torch.arange(MAX_SEQ_LEN), frequencies)[None, :, None, :]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        bound = (3 / MODEL_DIM) ** 0.5
        nn.init.normal_(self.wte.weight)
        nn.init.normal_(self.lm_head.weight, std=0.001)
        for block in self.blocks:
            for linear in (block.attn.q, block.attn.k, block.attn.v, block.mlp.fc):
                nn.init.uniform_(linear.weight, -bound, bound)
            for linear in (block.attn.proj, block.mlp.proj, block.attn.gate):
                if linear is not None:
                    nn.init.zeros_(linear.weight)
        for embedding in self.value_embeds.values():
            nn.init.uniform_(embedding.weight, -bound, bound)
        if bf16:
            self.cos, self.sin = self.cos.bfloat16(), self.sin.bfloat16()
            for embedding in (self.wte, *self.value_embeds.values()):
                embedding.to(torch.bfloat16)

    def forward(self, idx, targets=None, reduction="mean"):
        T = idx.size(1)
        cos, sin = self.cos[:, :T], self.sin[:, :T]
        x = x0 = norm(self.wte(idx))
        for layer, block in enumerate(self.blocks):
            x = self.resid_lambdas[layer] * x + self.x0_lambdas[layer] * x0
            value_embedding = self.value_embeds[str(layer)](idx) if str(layer) in self.value_embeds else None
            x = block(x, value_embedding, cos, sin, self.windows[layer])
        logits = self.lm_head(norm(x)).float()
        if LOGIT_SOFTCAP:
            logits = LOGIT_SOFTCAP * torch.tanh(logits / LOGIT_SOFTCAP)
        if targets is None:
            return logits
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1), reduction=reduction)

# --- Optimizer (Muon for matrices, AdamW for the rest) ----------------------------------------------------------------

# Polar Express (arXiv 2505.16932): five quintic steps that send all singular values to about 1
POLAR = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


@maybe_compile
def adamw_step(p, grad, mean, square, step, lr, beta1, beta2, eps):
    mean.lerp_(grad, 1 - beta1)
    square.lerp_(grad.square(), 1 - beta2)
    denominator = (square / (1 - beta2 ** step)).sqrt() + eps
    p.sub_(lr / (1 - beta1 ** step) * mean / denominator)


@maybe_compile
def muon_step(p, grad, velocity, variance, lr, momentum, weight_decay):
    """Take one step for matrices of one shape, stacked (K, rows, cols)."""
    velocity.mul_(momentum).add_(grad * (1 - momentum))
    g = grad * (1 - momentum) + velocity * momentum
    x = g.bfloat16() if bf16 else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    for a, b, c in POLAR:
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    g = (x.mT if tall else x).to(p.dtype)
    # NorMuon (arXiv 2510.05491): evens out the size of the update over neurons and keeps its norm
    mean_square = g.square().mean(dim=-1 if tall else -2, keepdim=True)
    variance.lerp_(mean_square, 0.05)
    scaled = g * variance.clamp_min(1e-10).rsqrt()
    g = scaled * (g.norm(dim=(-2, -1), keepdim=True) / scaled.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-10))
    p.sub_(lr * g + lr * weight_decay * p * (g * p >= 0))  # decays only where the step agrees


class MuonAdamW:
    def __init__(self, model):
        scale = (MODEL_DIM / 768) ** -0.5
        betas = (ADAM_BETA1, ADAM_BETA2)
        self.adam = [  # (parameters, learning rate, betas)
            (list(model.lm_head.parameters()), UNEMBEDDING_LR * scale, betas),
            ([*model.wte.parameters(), *model.value_embeds.parameters()], EMBEDDING_LR * scale, betas),
            ([model.resid_lambdas], SCALAR_LR * 0.01, betas),
            ([model.x0_lambdas], SCALAR_LR, (0.96, 0.95)),
        ]
        matrices = list(model.blocks.parameters())
        shapes = sorted({p.shape for p in matrices})
        self.muon = [[p for p in matrices if p.shape == shape] for shape in shapes]
        self.state = {}
        self.steps = 0

    @torch.no_grad()
    def step(self, lrm, momentum, weight_decay):
        self.steps += 1
        number = torch.tensor if fast else (lambda value: value)  # as a tensor, so that compiled code is not specialized to it
        for params, lr, (beta1, beta2) in self.adam:
            for p in params:
                if p not in self.state:
                    self.state[p] = torch.zeros_like(p), torch.zeros_like(p)
                mean, square = self.state[p]
                adamw_step(p, p.grad, mean, square, number(float(self.steps)), number(lr * lrm), beta1, beta2, 1e-10)
        for params in self.muon:
            stacked, grad = torch.stack(list(params)), torch.stack([p.grad for p in params])
            rows, cols = stacked.shape[-2:]
            if params[0] not in self.state:
                reduced = (len(params), rows, 1) if rows > cols else (len(params), 1, cols)
                self.state[params[0]] = torch.zeros_like(stacked), stacked.new_zeros(reduced)
            velocity, variance = self.state[params[0]]
            lr = MATRIX_LR * lrm * max(1, rows / cols) ** 0.5
            muon_step(stacked, grad, velocity, variance, number(lr), number(momentum), number(weight_decay))
            torch._foreach_copy_(params, list(stacked.unbind()))

# --- Schedules (progress runs from 0 to 1 over the budget, step counts from 0) ----------------------------------------

def lr_multiplier(progress):
    if progress < WARMUP_RATIO:
        return progress / WARMUP_RATIO
    if progress < 1 - WARMDOWN_RATIO:
        return 1.0
    left = (1 - progress) / WARMDOWN_RATIO
    return left + (1 - left) * FINAL_LR_FRAC


def muon_momentum(step):
    warm = min(step / MOMENTUM_WARMUP, 1.0) if MOMENTUM_WARMUP else 1.0
    return 0.85 + (MUON_MOMENTUM - 0.85) * warm


def weight_decay(progress):
    return WEIGHT_DECAY * (1 - progress)

# --- Set-up and warm-up (on random tokens: compile, count the work of a step, and leave no trace in the weights) ------

tokenizer = Tokenizer.from_directory()
vocab_size = tokenizer.get_vocab_size()
raw_model = GPT(vocab_size).to(device)
model = maybe_compile(raw_model)
optimizer = MuonAdamW(raw_model)
budget = Budget()

rows = TOTAL_BATCH_SIZE // MAX_SEQ_LEN
micro_rows = min(DEVICE_BATCH_SIZE, rows)
accumulation = rows // micro_rows
assert accumulation * micro_rows * MAX_SEQ_LEN == TOTAL_BATCH_SIZE, "TOTAL_BATCH_SIZE must be whole micro-batches"

num_params = sum(p.numel() for p in raw_model.parameters())
embedding_params = raw_model.wte.weight.numel() + sum(e.weight.numel() for e in raw_model.value_embeds.values())
flops_per_token = 6 * (num_params - embedding_params) + 12 * MODEL_DIM * sum(raw_model.windows)


def train_step(batches, progress):
    """Take one optimizer step and return the mean loss over its micro-batches, still on the device."""
    total = 0.0
    for _ in range(accumulation):
        x, y, _ = next(batches)
        with autocast:
            loss = model(x, y) / accumulation
        loss.backward()
        total = total + loss.detach()
    with budget.watch(raw_model):
        optimizer.step(lr_multiplier(progress), muon_momentum(optimizer.steps), weight_decay(progress))
    raw_model.zero_grad(set_to_none=True)
    return total


def random_batches():
    generator = torch.Generator().manual_seed(0)
    while True:
        tokens = torch.randint(vocab_size, (2, micro_rows, MAX_SEQ_LEN), generator=generator).to(device)
        yield tokens[0], tokens[1], 0


initial = copy.deepcopy(raw_model.state_dict())
while True:
    try:
        train_step(random_batches(), 0.5)  # compiles, and makes the optimizer's state
        with budget.measure():
            train_step(random_batches(), 0.5)
        break
    except torch.OutOfMemoryError:
        if micro_rows == 1:
            raise
    raw_model.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    micro_rows = max(fewer for fewer in range(1, micro_rows // 2 + 1) if rows % fewer == 0)
    accumulation = rows // micro_rows
    print(f"out of memory: {micro_rows} rows at a time", flush=True)
raw_model.load_state_dict(initial)
optimizer = MuonAdamW(raw_model)
del initial
gc.collect()
gc.freeze()
gc.disable()  # a collection in the middle costs as much as a step
synchronize()
print(f"{device_name}: {num_params / 1e6:.1f}M parameters, {TOTAL_BATCH_SIZE:,} tokens per step, {time.time() - t_start:.1f}s to start")

# --- Training ---------------------------------------------------------------------------------------------------------

live = sys.stdout.isatty()
batches = make_dataloader(tokenizer, micro_rows, MAX_SEQ_LEN, "train")
step, smooth, printed, t_train = 0, 0.0, -1, time.time()

while not budget.done:
    t0 = time.time()
    progress = budget.progress
    loss = train_step(batches, progress).item()
    synchronize()
    dt = time.time() - t0
    if not loss <= 100:  # also true for NaN
        print(f"\nFAIL: loss is {loss} at step {step}", flush=True)
        sys.exit(1)
    budget.step()
    step += 1
    smooth += (loss - smooth) * max(0.1, 1 / step)
    if live or int(budget.progress * 100) > printed or budget.done:
        printed = int(budget.progress * 100)
        line = (f"step {step:05d} ({100 * budget.progress:.1f}%) | loss: {smooth:.3f} | lrm: {lr_multiplier(progress):.2f} | "
                f"dt: {1000 * dt:.0f}ms | tok/sec: {TOTAL_BATCH_SIZE / dt:,.0f}")
        print(f"\r{line}    " if live else line, end="" if live else "\n", flush=True)

training_seconds = time.time() - t_train
if live:
    print()

# --- Score and summary ------------------------------------------------------------------------------------------------

raw_model.eval()
with autocast:
    val_bpb = evaluate_bpb(model, tokenizer, micro_rows)
if not math.isfinite(val_bpb):
    print(f"FAIL: val_bpb is {val_bpb}", flush=True)
    sys.exit(1)

PEAK_TFLOPS = {  # dense bf16 with fp32 sums; the first name that fits
    "B300": 2250, "B200": 2250, "GH200": 989, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312,
    "A10G": 70, "A10": 125, "L40S": 362, "L40": 181, "L4": 121, "5090": 210, "4090": 165, "3090": 71,
}
peak = next((tflops * 1e12 for name, tflops in PEAK_TFLOPS.items() if name in device_name), math.inf) if bf16 else math.inf
total_tokens = step * TOTAL_BATCH_SIZE
peak_memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print("---")
print(f"val_bpb:          {val_bpb:.6f}")
print(f"training_seconds: {training_seconds:.1f}")
print(f"total_seconds:    {time.time() - t_start:.1f}")
print(f"peak_vram_mb:     {peak_memory / 2**20:.1f}")
print(f"mfu_percent:      {100 * flops_per_token * total_tokens / training_seconds / peak:.2f}")
print(f"total_tokens_M:   {total_tokens / 1e6:.3f}")
print(f"num_steps:        {step}")
print(f"num_params_M:     {num_params / 1e6:.3f}")
print(f"depth:            {DEPTH}")
