"""train.py from its first line to its summary, on a budget of a few steps."""

import ast
import inspect
import json
import re

import pytest
import torch

from prepare import manifest, profiles
from prepare.build import calibration
from prepare.channel import MAX_LINE
from tests.ground import ROOT, prepare, small_corpus, train

TRAIN = profiles.apply_to_script((ROOT / "train.py").read_text(), profiles.CPU)
SUMMARY = [
    "val_bpb",
    "training_seconds",
    "total_seconds",
    "peak_vram_mb",
    "mfu_percent",
    "total_tokens_M",
    "num_steps",
    "num_params_M",
    "depth",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data with work for about five steps of the baseline."""
    folder = tmp_path_factory.mktemp("train")
    assert prepare(folder / "data", small_corpus(folder / "text"), "--work", "2e11").returncode == 0
    return folder / "data"


def turned(**values):
    source = TRAIN
    for name, value in values.items():
        source, count = re.subn(rf"^{name} = [^#\n]*", f"{name} = {value} ", source, flags=re.MULTILINE)
        assert count == 1
    return source


@pytest.fixture(scope="module")
def first(data, tmp_path_factory):
    return train(TRAIN, data, tmp_path_factory.mktemp("first"))


def test_it_prints_steps_and_karpathys_summary(first):
    done, _ = first
    assert done.returncode == 0, done.stderr

    *steps, summary = done.stdout.split("---\n")
    lines = [line for line in "".join(steps).splitlines() if line.startswith("step ")]
    form = r"step \d{5} \(\d+\.\d%\) \| loss: \d+\.\d{3} \| lrm: \d\.\d\d \| dt: \d+ms \| tok/sec: [\d,]+"

    assert 1 <= len(lines) <= 100
    assert all(re.fullmatch(form, line) for line in lines)
    assert [line.split(":")[0] for line in summary.splitlines()] == SUMMARY
    assert "\r" not in done.stdout


def test_it_reports_its_work_its_start_and_its_score(first):
    done, reports = first

    reports = [report for report in reports if report["event"] != "telemetry"]
    assert [report["event"] for report in reports] == ["measured", "ready", "score"]
    assert f"val_bpb:          {reports[-1]['val_bpb']:.6f}\n" in done.stdout
    steps = int(re.search(r"num_steps: +(\d+)", done.stdout)[1])
    assert abs(steps * reports[0]["work"] - 2e11) <= reports[0]["work"] / 2


def test_it_reports_what_a_step_costs_and_what_happens_in_the_model(first):
    cost, *watched = (report for report in first[1] if report["event"] == "telemetry")
    kinds = {name: value for name, value in cost["values"].items() if name.startswith("step/")}

    assert sum(kinds.values()) == pytest.approx(first[1][0]["work"], rel=1e-3)
    assert {"part/blocks.attn", "part/blocks.mlp", "part/lm_head", "part/backward", "op/mm"} <= cost["values"].keys()
    assert [report["progress"] for report in watched] == sorted({report["progress"] for report in watched})
    assert len(watched) > 3
    for report in watched:
        assert {"gradient/blocks.mlp.fc", "update/lm_head", "scalar/x0_lambdas.2"} <= report["values"].keys()
        assert len(json.dumps(report)) < MAX_LINE
    assert watched[-1]["values"]["gradient/wte"] > 0
    assert 0 < watched[-1]["values"]["update/wte"] < watched[0]["values"]["update/wte"]


def test_a_machine_is_measured_by_the_steps_of_the_baseline(first, data):
    work, seconds = calibration.measure_step(data, manifest.load(data), profiles.CPU)

    assert work == first[1][0]["work"]
    assert seconds > 0
    assert not list(data.glob(f"{calibration.PREFIX}*"))


def test_it_learns(first):
    losses = [float(loss) for loss in re.findall(r"loss: ([\d.]+)", first[0].stdout)]

    assert losses[-1] < losses[0]


def test_the_seed_alone_decides_the_score_to_the_bit(first, data, tmp_path):
    """More warm-up and no telemetry change nothing, and nor does another time; another seed does."""
    source = re.sub(r" +with budget\.measure\(\):\n", f"{8 * ' '}train_step(random_batches(), 0.5)\n\\g<0>", TRAIN)
    assert source != TRAIN
    source = source.replace("with budget.watch(raw_model):", "if True:")
    assert "watch" not in source

    _, again = train(source, data, tmp_path)
    _, other = train(source, data, tmp_path, NIGHTSHIFT_SEED="7")
    assert first[1][-1] == again[-1]
    assert first[1][-1]["val_bpb"] != other[-1]["val_bpb"]


def test_out_of_memory_means_fewer_rows_and_the_same_batch(first, data, tmp_path):
    """As if the device held three rows."""
    taken = "        x, y, _ = next(batches)\n"
    source = TRAIN.replace(taken, f"{taken}        if len(x) > 3:\n            raise torch.OutOfMemoryError\n")
    assert source != TRAIN

    done, reports = train(source, data, tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["out of memory: 4 rows at a time", "out of memory: 2 rows at a time"]
    assert reports[0]["work"] > first[1][0]["work"], "more calls are more work"
    assert batch(done) == batch(first[0])
    assert first[1][-1]["val_bpb"] == pytest.approx(reports[-1]["val_bpb"], abs=0.1)


def batch(done):
    """Tokens of a step."""
    steps, tokens = (float(re.search(rf"{name}: +(\S+)", done.stdout)[1]) for name in ("num_steps", "total_tokens_M"))
    return round(1e6 * tokens / steps, -2)


@pytest.mark.parametrize(
    "values",
    (
        pytest.param(
            {"DEPTH": "1", "WARMUP_RATIO": "0.2", "MODEL_DIM": "64", "HEAD_DIM": "16"}, marks=pytest.mark.soak
        ),
        {"WINDOW_PATTERN": '"SL"', "TOTAL_BATCH_SIZE": "4096", "MOMENTUM_WARMUP": "0"},
    ),
)
def test_constants_can_be_turned(values, first, data, tmp_path):
    done, reports = train(turned(**values), data, tmp_path)

    assert done.returncode == 0, done.stderr
    assert first[1][-1]["val_bpb"] != reports[-1]["val_bpb"]


@pytest.mark.parametrize(
    "values",
    ({"MATRIX_LR": "float('nan')"}, {"LOGIT_SOFTCAP": "1e9", "UNEMBEDDING_LR": "1e6"}),
    ids=("nan", "explosion"),
)
def test_nan_and_explosion_end_it_at_once(values, data, tmp_path):
    done, reports = train(turned(**values), data, tmp_path)

    assert done.returncode == 1
    assert re.search(r"^FAIL: loss is \S+ at step \d+$", done.stdout, re.MULTILINE)
    assert "score" not in {report["event"] for report in reports}
    assert "---" not in done.stdout


def flash(q, k, v, q_ends, k_ends, q_most, k_most, *, window_size):
    """What torch documents of varlen_attn, slowly: (W, 0) is the token itself and the W before it, in its own row."""
    from torch.nn.attention.varlen import varlen_attn  # it takes a second, also of those who only collect tests

    inspect.signature(varlen_attn).bind(q, k, v, q_ends, k_ends, q_most, k_most, window_size=window_size)
    assert (q_ends.dtype, q.dtype, q.is_contiguous()) == (torch.int32, torch.bfloat16, True)
    assert torch.equal(q_ends, k_ends)
    assert q_most == k_most == int(q_ends.diff().max())
    left, right = window_size
    position = torch.arange(len(q))
    row = torch.bucketize(position, q_ends, right=True)
    far = position[:, None] - position
    seen = (row[:, None] == row) & (far <= left) & (far >= -right)
    scores = torch.einsum("qhd,khd->hqk", q.float(), k.float()) * q.size(-1) ** -0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v.float()).to(q.dtype)


@pytest.mark.parametrize("window", (0, 1, 5, 8, 16))
def test_every_kernel_sees_the_same_window(window):
    """Causal attention, its mask and flash attention are exchangeable."""
    tree = ast.parse(TRAIN)
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "attention")
    names = {"torch": torch, "F": torch.nn.functional, "varlen_attn": flash, "flash3": None}
    exec(compile(ast.Module([found], []), "train.py", "exec"), names)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 8, 3, 4, dtype=torch.bfloat16)
    plain, fused = (names["attention"](q, k, v, window) for names["bf16"] in (False, True))

    assert plain.shape == fused.shape == q.shape
    assert torch.allclose(plain.float(), fused.float(), atol=0.02)
    assert torch.equal(plain[:, :1], v[:, :1])
