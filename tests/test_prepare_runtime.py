"""What training scripts import: batches, score and budget against plain, slow versions of themselves."""

import dataclasses
import math
import os
import subprocess
import sys
from collections import OrderedDict
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import DeviceType
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from prepare import kernels, loader, manifest
from prepare.budget import FLOPS_PER_BYTE, FLOPS_PER_CALL, Budget, TrafficCounter, compare_parameters
from prepare.evaluation import evaluate_bpb
from prepare.loader import make_dataloader
from prepare.manifest import BudgetAmount
from prepare.shards import open_rows
from prepare.tokenizer import Tokenizer
from tests.ground import environment, prepare, small_corpus, train

T = 256
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtime")
    assert prepare(folder / "data", small_corpus(folder / "text"), "--work", "1e10").returncode == 0
    saved, os.environ["NIGHTSHIFT_DATA"] = os.environ.get("NIGHTSHIFT_DATA"), str(folder / "data")
    yield folder / "data"
    del os.environ["NIGHTSHIFT_DATA"]
    os.environ |= {} if saved is None else {"NIGHTSHIFT_DATA": saved}


@pytest.fixture
def tokenizer(data):
    return Tokenizer.from_directory()


def batches(tokenizer, rows, length, count, split="train"):
    loader = make_dataloader(tokenizer, rows, length, split)
    return [next(loader) for _ in range(count)]


def test_batches_are_the_rows_in_order_for_ever(tokenizer):
    rows = open_rows("val").astype(np.int64)
    size = 7
    count = 2 * len(rows) // size + 1

    seen = batches(tokenizer, size, T, count, "val")

    endless = np.concatenate([rows] * 3)[: size * count]
    assert torch.equal(torch.cat([x for x, _, _ in seen]), torch.from_numpy(endless[:, :-1]))
    assert torch.equal(torch.cat([y for _, y, _ in seen]), torch.from_numpy(endless[:, 1:]))
    assert [1 + i * size // len(rows) for i in range(count)] == [epoch for _, _, epoch in seen]
    assert all(x.is_contiguous() and y.is_contiguous() and x.dtype == torch.int64 for x, y, _ in seen)


@pytest.mark.parametrize("length", (1, 64, 100, 1000))
def test_any_other_length_reads_the_same_stream(length, tokenizer):
    stream = open_rows("train").reshape(-1).astype(np.int64)

    (x, y, _), (following, _, _) = batches(tokenizer, 3, length, 2)

    assert x.shape == y.shape == (3, length)
    assert x.reshape(-1).tolist() == stream[: 3 * length].tolist()
    assert y.reshape(-1).tolist() == stream[1 : 3 * length + 1].tolist()
    assert following[0, 0] == stream[3 * length]


def test_a_batch_may_be_larger_than_the_split(tokenizer):
    x, _, _ = batches(tokenizer, 3 * len(open_rows("val")), T, 1, "val")[0]

    assert torch.equal(*x.reshape(3, -1, T)[:2])


def test_unknown_splits_are_named(tokenizer):
    with pytest.raises(ValueError, match="no split 'test': one of confirm, train, val"):
        batches(tokenizer, 1, T, 1, "test")


class Bigram(nn.Module):
    """The smallest model with karpathy's call: logits from the token alone."""

    def __init__(self, vocab_size):
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, x, y=None, reduction="mean"):
        logits = self.table(x)
        if y is None:
            return logits
        return functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction=reduction)


@pytest.mark.parametrize("batch_size", (1, 5, 64))
def test_the_score_is_that_of_a_plain_slow_count(batch_size, tokenizer):
    torch.manual_seed(0)
    model = Bigram(tokenizer.get_vocab_size())
    log_p = functional.log_softmax(model.table.weight.double(), dim=-1).detach().numpy()
    nats, nbytes = 0.0, 0
    for row in open_rows("val").tolist():
        for token, following in pairwise(row):
            if following < len(tokenizer.merges):
                nats -= log_p[token, following]
                nbytes += len(tokenizer.enc.decode_single_token_bytes(following))

    assert evaluate_bpb(model, tokenizer, batch_size) == pytest.approx(nats / math.log(2) / nbytes, abs=1e-6)


def test_every_batch_of_the_evaluation_has_one_shape(tokenizer):
    """A compiled model is not compiled again for the last of them."""
    model, shapes = Bigram(tokenizer.get_vocab_size()), set()
    model.register_forward_pre_hook(lambda _, given: shapes.add(given[0].shape))
    assert len(open_rows("val")) % 4

    evaluate_bpb(model, tokenizer, 4)
    assert shapes == {(4, T)}


def test_bytes_are_those_of_the_text(tokenizer):
    """Bytes beyond ASCII count once each, whether or not a token is a whole character."""
    ids = np.array(tokenizer.encode("naïve – 你好 ✓"))

    assert len("naïve – 你好 ✓".encode()) == tokenizer.token_bytes[ids].sum()
    assert tokenizer.token_bytes[tokenizer.get_bos_token_id() :].tolist() == [0] * 4


def work(amount):
    return Budget(BudgetAmount(kind="work", amount=amount, seconds=1.0))


@pytest.mark.parametrize("masked", (False, True))
def test_attention_and_products_are_counted_forward_and_back(masked):
    heads, length, dim = 6, 64, 32
    q, k, v = (torch.randn(2, heads // 2, length, dim, requires_grad=True) for _ in range(3))
    weight = torch.randn(dim, dim, requires_grad=True)
    mask = torch.ones(length, length, dtype=torch.bool).tril() if masked else None
    budget = work(1e9)

    def step():
        y = functional.scaled_dot_product_attention(q @ weight, k, v, attn_mask=mask, is_causal=not masked)
        y.sum().backward()

    step()  # the first backward makes the gradients, the others add to them
    with budget.measure():
        step()
    with TrafficCounter() as traffic:
        step()
    product, attention = 2 * heads * length * dim * dim, 2 * 2 * heads * length * length * dim
    assert budget.step_work == 3 * product + attention + attention * 5 // 2 + traffic.work


@given(st.integers(1, 64))
def test_bytes_and_calls_are_counted_and_views_are_not(size):
    budget, x = work(1e9), torch.ones(size, size)
    with budget.measure():
        x.unsqueeze(0)[0].t() @ x
    assert budget.step_work == 2 * size**3 + FLOPS_PER_CALL + FLOPS_PER_BYTE * 3 * 4 * size**2


@pytest.mark.parametrize("overload", ["default", "out"])
def test_a_product_of_halves_is_that_of_floats_rounded_once_where_the_cpu_has_no_instruction_for_it(overload):
    x, out = torch.arange(64.0).view(8, 8).sin(), torch.empty(8, 8, dtype=torch.bfloat16)
    multiply = loader._round_from_float(torch.ops.aten.mm.default, getattr(torch.ops.aten.mm, overload))
    half = multiply(CPU, x.bfloat16(), x.bfloat16(), **{"out": out} if overload == "out" else {})
    assert torch.equal(half, (x.bfloat16().float() @ x.bfloat16().float()).bfloat16())
    if overload == "default":
        assert torch.equal(multiply(CPU, x, x), x @ x)


def test_a_step_of_halves_counts_as_much_work_as_it_reads_and_multiplies():
    x = torch.ones(8, 8, dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as flops, TrafficCounter(flops) as traffic:
        x @ x
    assert (flops.get_total_flops(), traffic.work) == (2 * 8**3, FLOPS_PER_CALL + FLOPS_PER_BYTE * 3 * 2 * 64)


def test_the_work_of_a_step_is_told_by_kind_operation_and_part():
    model = nn.Sequential(OrderedDict(wte=nn.Embedding(8, 4), head=nn.Linear(4, 8)))
    with FlopCounterMode(display=False) as flops, TrafficCounter(flops) as traffic:
        model(torch.arange(4)).sum().backward()
    costs, whole = traffic.costs, flops.get_total_flops() + traffic.work

    for kind in ("step/", "op/", "part/"):
        assert sum(cost for name, cost in costs.items() if name.startswith(kind)) == whole
    assert {name for name in costs if name.startswith("part/")} == {
        "part/wte",
        "part/head",
        "part/rest",
        "part/backward",
    }
    assert costs["op/addmm"] > costs["step/calls"] / 100


def test_operations_have_names_that_fit_into_a_report():
    x = torch.ones(1, 1, 8, 8, requires_grad=True)
    with FlopCounterMode(display=False) as flops, TrafficCounter(flops) as traffic:
        functional.scaled_dot_product_attention(x, x, x).sum().backward()

    assert {"op/flash_attention", "op/flash_attention_backward"} < traffic.costs.keys()


def test_kernels_are_summed_by_kind_and_by_part():
    """As a profiler gives them: marks of the optimizer's step, by the CPU's clock and the GPU's, and operations."""

    def event(name, start, end, device=DeviceType.CUDA, mark=False):
        times = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(name=name, device_type=device, is_user_annotation=mark, time_range=times)

    found = kernels.sum_kernels(
        [
            event("nvjet_tst_128x256_64x4_bf16", 0, 4000),
            event("void flash::FlashAttnFwdSm90<cutlass::bfloat16_t>", 4000, 6000),
            event("triton_red_fused__softmax_3", 6000, 7000),
            event("aten::mm", 0, 5, DeviceType.CPU),
            event("optimizer", 8000, 10000, DeviceType.CPU, True),
            event("optimizer", 8100, 9900, DeviceType.CUDA, True),
            event("sm80_xmma_gemm_bf16", 8100, 9000),
            event("Memcpy DtoD (Device -> Device)", 9000, 9100),
        ]
    )

    assert found == pytest.approx(
        {
            "part/model": 7.0,
            "kernel/matmul": 4.9,
            "kernel/attention": 2.0,
            "kernel/fused": 1.0,
            "part/optimizer": 1.0,
            "kernel/copy": 0.1,
        }
    )
    assert next(iter(found)) == "part/model"


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_a_step_without_kernels_is_traced_and_reports_nothing():
    told, waits = [], []
    with kernels.trace_step(lambda: waits.append(1), told.append), kernels.mark_optimizer(lambda: waits.append(2)):
        torch.ones(3) @ torch.ones(3)

    assert waits == [2, 2, 1]
    assert told == []
    with pytest.raises(torch.OutOfMemoryError), kernels.trace_step(lambda: None, told.append):
        raise torch.OutOfMemoryError


def test_an_update_is_compared_with_what_it_changes():
    """The layers are one part, and only few numbers are told one by one."""
    model = nn.Module()
    model.gate, model.blocks = nn.Parameter(torch.tensor([3.0, 4.0])), nn.ModuleList(nn.Linear(5, 5) for _ in range(2))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model.gate.grad = torch.tensor([0.6, 0.8])
    with torch.no_grad():
        model.gate.sub_(model.gate.grad)
        model.blocks[1].weight.mul_(0)

    found = compare_parameters(model, before)

    assert found["update/blocks"] == pytest.approx((before[3].norm() / before[1].norm()).item(), rel=1e-5)
    assert {name: value for name, value in found.items() if "gate" in name} == pytest.approx(
        {"gradient/gate": 1.0, "update/gate": 0.25, "scalar/gate.0": 2.4, "scalar/gate.1": 3.2}
    )
    assert {name.split("/")[1] for name in found if name.startswith("gradient/")} == {"gate", "blocks", "blocks.bias"}
    assert sum(name.startswith("scalar/blocks.bias.") for name in found) == 10


@given(st.floats(0.6, 1e4), st.integers(1, 64))
def test_steps_end_as_near_to_the_amount_as_they_can(amount, size):
    x = torch.ones(size, size)
    budget = work(amount * (2 * size**3 + FLOPS_PER_CALL + FLOPS_PER_BYTE * 3 * 4 * size**2))
    with budget.measure():
        x @ x
    progress, steps = [budget.progress], 0
    while not budget.done and steps < 20_000:
        budget.step()
        steps += 1
        progress.append(budget.progress)

    assert abs(steps - amount) <= 0.5
    assert progress == sorted(progress)
    assert progress[0] == 0
    assert progress[-1] <= 1


def test_work_must_be_measured_and_must_be_some():
    with pytest.raises(RuntimeError, match="measure"):
        work(1e9).step()
    with pytest.raises(RuntimeError, match="below half a step"), work(1.0).measure():
        torch.ones(3)
    with pytest.raises(RuntimeError, match="did nothing"), work(1e9).measure():
        pass


def test_wall_time_counts_from_the_first_real_batch(data, tmp_path):
    script = """
import time
from prepare import Budget, Tokenizer, make_dataloader
from prepare.manifest import BudgetAmount
budget = Budget(BudgetAmount(kind="time", amount=0.2, seconds=0.2))
with budget.measure():
    time.sleep(0.3)
assert budget.progress == 0 and not budget.done, "warm-up is free"
loader = make_dataloader(Tokenizer.from_directory(), 2, 256, "train")
assert budget.progress == 0, "so is making a loader"
next(loader)
while not budget.done:
    budget.step()
assert budget.progress == 1 and budget.spent >= 0.2
"""
    done, reports = train(script, data, tmp_path)

    assert done.returncode == 0, done.stderr
    assert reports == [{"event": "ready"}]


def test_an_orchestrator_that_has_gone_stops_nothing(data, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    script = "from prepare import channel; channel.ready(); channel.send({'event': 'measured'}); print('done')"

    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(NIGHTSHIFT_FD=str(writing)),
        pass_fds=[writing],
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(writing)

    assert done.stdout == "done\n"


KARPATHY_STYLE = '''
"""In the manner of autoresearch: knows nothing of Budget, prints with carriage returns, and a summary."""
import gc, sys, time
t_start = time.time()
import torch
import torch.nn as nn
import torch.nn.functional as F
from prepare import MAX_SEQ_LEN, TIME_BUDGET, Tokenizer, make_dataloader, evaluate_bpb

class GPT(nn.Module):
    def __init__(self, vocab_size, dim=32):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, dim)
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)
    def forward(self, idx, targets=None, reduction="mean"):
        logits = self.lm_head(F.rms_norm(self.wte(idx), (32,))).float()
        if targets is None:
            return logits
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1, reduction=reduction)

DEVICE_BATCH_SIZE = 4
torch.manual_seed(42)
tokenizer = Tokenizer.from_directory()
vocab_size = tokenizer.get_vocab_size()
model = GPT(vocab_size)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
train_loader = make_dataloader(tokenizer, DEVICE_BATCH_SIZE, MAX_SEQ_LEN, "train")
x, y, epoch = next(train_loader)
total_training_time, step = 0, 0
while True:
    t0 = time.time()
    loss = model(x, y)
    loss.backward()
    x, y, epoch = next(train_loader)
    optimizer.step()
    model.zero_grad(set_to_none=True)
    dt = time.time() - t0
    if step > 10:
        total_training_time += dt
    pct_done = 100 * min(total_training_time / TIME_BUDGET, 1.0)
    print(f"\\rstep {step:05d} ({pct_done:.1f}%) | loss: {loss.item():.6f} | epoch: {epoch}    ", end="", flush=True)
    step += 1
    if step > 10 and total_training_time >= TIME_BUDGET:
        break
print()
model.eval()
val_bpb = evaluate_bpb(model, tokenizer, DEVICE_BATCH_SIZE)
print("---")
print(f"val_bpb:          {val_bpb:.6f}")
print(f"total_seconds:    {time.time() - t_start:.1f}")
print(f"num_steps:        {step}")
'''


def test_a_script_written_for_autoresearch_runs_as_it_is(data, tmp_path):
    stored = manifest.load(data)
    short = dataclasses.replace(stored, budget=dataclasses.replace(stored.budget, seconds=0.3))
    folder = tmp_path / "data"
    folder.mkdir()
    for name in stored.files:
        (folder / name).symlink_to(data / name)
    (folder / "manifest.json").write_text(short.to_json())

    done, reports = train(KARPATHY_STYLE, folder, tmp_path)

    assert done.returncode == 0, done.stderr
    assert [report["event"] for report in reports] == ["ready", "score"]
    assert f"val_bpb:          {reports[1]['val_bpb']:.6f}\n" in done.stdout
    assert reports[1]["tokens"] == stored.eval_tokens
    assert 0 < reports[1]["val_bpb"] < math.log2(stored.vocab_size)
