"""Check everything that needs a GPU in less than 8 minutes, and print a table for docs/benchmarks.md: `make gpu-check`.

Exits with code 2 without a GPU, with 1 if a check fails.
"""

import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from orchestrator.agents.briefing import WORDS
from orchestrator.core.events import Aborted, Audit, Crashed, Scored
from orchestrator.core.text import flatten
from orchestrator.lab.sandbox import select
from orchestrator.session.store import Session
from prepare import manifest, profiles
from prepare.machine import list_gpus
from prepare.manifest import BudgetAmount, Manifest

ROOT = Path(__file__).resolve().parent.parent
MINUTES = 8.0
SHORT, LONG = 10.0, 30.0
"""Seconds of training."""
LAST_RUN = 150.0
"""Seconds for a run that starts just before the session's end."""
REPEATS = 5
Rows = Iterator[tuple[str, str]]


class CheckError(Exception):
    """A check has failed; the message says how."""


FAILURES = (CheckError, RuntimeError, OSError, subprocess.SubprocessError, manifest.DataError)
"""torch raises RuntimeError for whatever fails on a device."""


@dataclass(frozen=True)
class Workspace:
    """The working folder of the checks, and their time limit; one of the first prepares `data`."""

    folder: Path
    began: float

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def count_seconds_left(self) -> float:
        """Return the seconds until the time limit."""
        return 60 * MINUTES - (time.monotonic() - self.began)

    def run(self, *command: str, where: Path | None = None, **variables: str) -> str:
        """Return the output of a Python program. Raises CheckError with its last line if it fails."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTSHIFT_")}
        done = subprocess.run(
            [sys.executable, *command],
            cwd=where or self.folder,
            env=env | {"PYTHONPATH": str(ROOT)} | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=max(1.0, self.count_seconds_left()),
        )
        if done.returncode:
            raise CheckError(f"exit code {done.returncode}: {_last_line(done.stderr) or _last_line(done.stdout)}")
        return done.stdout

    def train(self, seconds: float, seed: int = 42) -> dict[str, float]:
        """Return the baseline's summary after training for so many seconds."""
        work = Path(tempfile.mkdtemp(dir=self.folder))
        stored = manifest.load(self.data)
        for name in stored.files:
            (work / name).symlink_to(self.data / name)
        short = replace(stored, budget=BudgetAmount(kind="time", amount=seconds, seconds=seconds))
        (work / manifest.MANIFEST_FILE).write_text(short.to_json())
        (work / "train.py").write_text(fit_baseline(stored))
        out = self.run("train.py", where=work, NIGHTSHIFT_DATA=str(work), NIGHTSHIFT_SEED=str(seed))
        _, _, summary = out.rpartition("---\n")
        return {name: float(value) for name, value in re.findall(r"^(\w+): +(\S+)$", summary, re.MULTILINE)}


def _last_line(words: str) -> str:
    """Return the last line, for a cell of the table."""
    return words.strip().rpartition("\n")[2].replace("|", "/")


def fit_baseline(stored: Manifest) -> str:
    return profiles.apply_to_script((ROOT / "train.py").read_text(), profiles.from_manifest(stored))


def machine(_: Workspace) -> Rows:
    import torch

    card = torch.cuda.get_device_properties(0)
    yield "card", f"{card.name}, {card.total_memory / 1e9:.1f} GB, sm{card.major}{card.minor}"
    yield "software", f"Python {sys.version.split()[0]}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def preparation(workspace: Workspace) -> Rows:
    """Prepare the data for all later checks, with the profile for this GPU."""
    began = time.monotonic()
    workspace.run("-m", "prepare", "--data", str(workspace.data), "--set", "seconds=300")
    yield "prepare docstrings", f"{time.monotonic() - began:.0f} s"
    yield "profile", manifest.load(workspace.data).profile


def loader(workspace: Workspace) -> Rows:
    """Check that batches on a busy GPU are the rows: no buffer is reused while it is still being copied."""
    import torch

    from prepare.loader import make_dataloader
    from prepare.shards import open_rows
    from prepare.tokenizer import Tokenizer

    os.environ["NIGHTSHIFT_DATA"] = str(workspace.data)
    rows, tokenizer = np.asarray(open_rows("train")), Tokenizer.from_directory()
    length, size = rows.shape[1] - 1, min(128, len(rows))
    batches = make_dataloader(tokenizer, size, length, "train")
    busy = torch.randn(8192, 8192, device="cuda")
    seen = []
    for _ in range(12):
        seen.append(next(batches)[0])
        for _ in range(8):
            busy = torch.tanh(busy @ busy)
    endless = np.concatenate([rows] * (1 + 12 * size // len(rows)))[: 12 * size, :-1].astype(np.int64)
    if not np.array_equal(torch.cat(seen).cpu().numpy(), endless):
        raise CheckError("batches on a busy GPU are not the rows")
    torch.cuda.synchronize()
    began, count = time.monotonic(), 200
    for _ in range(count):
        next(batches)
    torch.cuda.synchronize()
    rate = count * size * length / (time.monotonic() - began)
    yield f"loader, {size} × {length}", f"{rate / 1e6:.0f} M tokens/s; batches on a busy GPU are right"


def evaluation(workspace: Workspace) -> Rows:
    """Compare the score on the GPU with a slow, plain computation."""
    import torch
    from torch import nn
    from torch.nn import functional

    from prepare.evaluation import evaluate_bpb
    from prepare.shards import open_rows
    from prepare.tokenizer import Tokenizer

    class Bigram(nn.Module):
        def __init__(self, vocab_size: int) -> None:
            super().__init__()
            self.table = nn.Embedding(vocab_size, vocab_size)

        def forward(self, x: torch.Tensor, y: torch.Tensor | None = None, reduction: str = "mean") -> torch.Tensor:
            logits = self.table(x)
            if y is None:
                return logits
            return functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction=reduction)

    os.environ["NIGHTSHIFT_DATA"] = str(workspace.data)
    tokenizer = Tokenizer.from_directory()
    torch.manual_seed(0)
    model = Bigram(tokenizer.get_vocab_size())
    log_p = functional.log_softmax(model.table.weight.double(), dim=-1).detach().numpy()
    nats, nbytes = 0.0, 0
    for row in open_rows("val").tolist():
        for token, following in pairwise(row):
            if following < len(tokenizer.merges):
                nats -= log_p[token, following]
                nbytes += len(tokenizer.enc.decode_single_token_bytes(following))
    began = time.monotonic()
    gap = abs(evaluate_bpb(model.cuda(), tokenizer, 16) - nats / math.log(2) / nbytes)
    if not gap < 1e-5:
        raise CheckError(f"evaluation is {gap:.1e} bits per byte away from a plain count")
    yield "evaluation against a plain count", f"{gap:.1e} bpb apart, {time.monotonic() - began:.1f} s"


def attention(_: Workspace) -> Rows:
    """Compare torch's windowed attention with a mask, forward and backward."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        yield "varlen attention", "not in this torch: causal attention with the full window"
        return
    if torch.cuda.get_device_capability() < (8, 0):
        yield "varlen attention", "needs sm80"
        return
    B, T, H, D, window = 2, 512, 4, 128, 200
    q, k, v = (torch.randn(B, T, H, D, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    ends = torch.arange(0, B * T + 1, T, dtype=torch.int32, device="cuda")
    joined_q, joined_k, joined_v = (t.reshape(B * T, H, D) for t in (q, k, v))
    ours = varlen_attn(joined_q, joined_k, joined_v, ends, ends, T, T, window_size=(window, 0))
    assert isinstance(ours, torch.Tensor)  # without auxiliary outputs, which nobody asked for
    position = torch.arange(T, device="cuda")
    distance = position[:, None] - position[None, :]
    mask = (distance >= 0) & (distance <= window)
    plain = scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), attn_mask=mask).transpose(1, 2)
    weight = torch.randn_like(plain)
    gradients = [torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (ours.view(B, T, H, D), plain)]
    pairs = [(ours.view(B, T, H, D), plain), *zip(*gradients, strict=True)]
    gap = max((a - b).abs().max().item() for a, b in pairs)
    if not gap < 0.1:
        raise CheckError(f"windowed attention is {gap:.2g} away from a mask")
    yield "varlen attention against a mask", f"{gap:.1g} apart, gradients included"


def training(workspace: Workspace) -> Rows:
    for seconds in (SHORT, LONG):
        done = workspace.train(seconds)
        overhead = done["total_seconds"] - done["training_seconds"]
        rate = done["total_tokens_M"] / done["training_seconds"]
        speed = f"{done['num_steps']:.0f} steps, {rate:.2f} M tokens/s, MFU {done['mfu_percent']:.1f} %"
        cost = f"{done['peak_vram_mb'] / 1e3:.1f} GB, {overhead:.0f} s around it"
        yield f"train.py, {seconds:.0f} s", f"val_bpb {done['val_bpb']:.4f}, {speed}, {cost}"


def noise(workspace: Workspace) -> Rows:
    """Measure σ over identical runs, and over runs that differ only in the seed."""
    for what, seeds in (("identical runs", [42] * REPEATS), ("runs with other seeds", range(REPEATS))):
        scores = []
        for seed in seeds:
            if workspace.count_seconds_left() < 180:
                break
            scores.append(workspace.train(SHORT, seed)["val_bpb"])
        if len(scores) > 1:
            yield f"σ over {len(scores)} {what} of {SHORT:.0f} s", f"{statistics.stdev(scores):.5f}"


def session(workspace: Workspace) -> Rows:
    """Run a short offline night, with sandbox, scoring and audit."""
    project = workspace.folder / "project"
    project.mkdir()
    stored = manifest.load(workspace.data)
    short = replace(stored, budget=BudgetAmount(kind="time", amount=SHORT, seconds=SHORT))
    (workspace.data / manifest.MANIFEST_FILE).write_text(short.to_json())
    (project / "train.py").write_text((ROOT / "train.py").read_text())
    who = ("-c", "user.name=gpu-check", "-c", "user.email=gpu-check@localhost")
    for words in (("init", "-q"), ("add", "train.py"), (*who, "commit", "-qm", "baseline")):
        subprocess.run(["git", *words], cwd=project, check=True, capture_output=True)
    try:
        tier, trust = select.select_sandbox().tier, ()
    except select.NoSandboxError as reason:
        tier, trust = f"none: {reason}", ("--unsafe",)
    yield "sandbox", tier
    began = time.monotonic()
    hours = min(0.05, (workspace.count_seconds_left() - LAST_RUN) / 3600)  # a run in progress then may finish
    options = ("--offline", f"--hours={hours:.4f}", "--max-experiments=1", "--session=gpu-check", *trust)
    workspace.run("-m", "orchestrator", *options, "--data", str(workspace.data), where=project)
    runs = [record.event for record in Session(project / "sessions/gpu-check/session.db", time.time).records]
    for run in runs:
        match run:
            case Scored(audit=Audit() as audit):
                audited = f"audit ±{audit.error:.1g}, worst of {audit.looks} looks {audit.worst:.2f} nats"
                yield "audited run", f"{_describe_run(run)}; {audited}, {audit.seconds:.0f} s"
                yield "a step", flatten(WORDS.cost(run.telemetry, SHORT, run.metrics)) or "no kernels were timed"
            case Scored():
                yield "run", _describe_run(run)
            case Crashed() | Aborted():
                raise CheckError(f"a run failed: {getattr(run, 'message', '') or getattr(run, 'reason', '')}")
            case _:
                pass
    if not any(isinstance(run, Scored) for run in runs):
        raise CheckError("the session trained nothing")
    yield "offline session", f"{time.monotonic() - began:.0f} s"


def _describe_run(run: Scored) -> str:
    spent = run.metrics.total_seconds - run.metrics.train_seconds
    steps = f"{run.metrics.steps} steps, {run.metrics.mfu:.1f} % MFU"
    return f"val_bpb {run.val_bpb:.4f}, {steps}, {spent:.0f} s around training, all compiled anew"


CHECKS: tuple[Callable[[Workspace], Rows], ...] = (
    machine,
    preparation,
    attention,
    loader,
    evaluation,
    training,
    session,
    noise,
)
NEED: dict[Callable[[Workspace], Rows], float] = {session: 240.0}
"""Seconds that a check needs, 60 by default; on a slow machine the last checks are skipped."""


def main() -> int:
    if not list_gpus():
        print("gpu-check: no NVIDIA GPU here, so there is nothing to check", file=sys.stderr)
        return 2
    import torch

    if not torch.cuda.is_available():
        print(f"gpu-check: torch {torch.__version__} cannot use the GPU here: install one for CUDA", file=sys.stderr)
        return 1
    failures = 0
    print("| check | result |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder), time.monotonic())
        for check in CHECKS:
            if workspace.count_seconds_left() < NEED.get(check, 60.0):
                print(f"| {check.__name__} | skipped: out of time |")
                continue
            try:
                for what, result in check(workspace):
                    print(f"| {what} | {result} |", flush=True)
            except FAILURES as error:
                failures += 1
                print(f"| {check.__name__} | FAILED: {_last_line(str(error)) or type(error).__name__} |", flush=True)
            torch.cuda.empty_cache()  # the next check may train in another process
        print(f"\nin {(time.monotonic() - workspace.began) / 60:.1f} minutes")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
