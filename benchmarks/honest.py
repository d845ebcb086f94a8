"""Count false disqualifications: run honest variants of train.py on a small profile, each against the same baseline.

`python -m benchmarks honest [--runs=300] [--first=0] [--data=FOLDER] [--compile=yes]`. Every run is audited, as a
possible keep is. It prints what became of each, and at the end a row for each kind. With `--compile`, all are compiled,
and so is the baseline.
"""

import asyncio
import random
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from orchestrator.core.events import Aborted, Crashed, EvaluationPlan, Granted, Outcome, Scored
from orchestrator.lab.monitor import RunLimits
from orchestrator.lab.runner import Runner
from orchestrator.lab.sandbox import select
from orchestrator.lab.scoring.claims import Scorer
from orchestrator.lab.slots import list_slots
from orchestrator.policy.evaluation_plan import describe_runs
from prepare import profiles
from prepare.build.folder import build_folder
from prepare.constants import Value
from prepare.corpus import open_corpus
from prepare.machine import THREADS

SMALL = ("seq_len=128", "vocab_size=512", "eval_tokens=8192", "DEPTH=2", "MODEL_DIM=64", "TOTAL_BATCH_SIZE=1024")
WORK = 3e11
"""Of a run: a second or two of training."""
BASELINES = 2
SHAPES: dict[str, tuple[Value, ...]] = {
    "DEPTH": (1, 2, 3, 4),
    "MODEL_DIM": (32, 64, 96, 128),
    "HEAD_DIM": (16, 32),
    "MLP_RATIO": (1, 2, 4, 6),
    "TOTAL_BATCH_SIZE": (512, 1024, 2048),
    "DEVICE_BATCH_SIZE": (1, 2, 4, 8),
    "LOGIT_SOFTCAP": (0.0, 15.0),
    "WINDOW_PATTERN": ("L", "SL"),
}
"""Constants that each run draws; a smaller DEVICE_BATCH_SIZE accumulates gradients."""
OPTIMIZER = "optimizer = MuonAdamW(raw_model)"
WRAPPED = """class Plain:
    steps = 0
    def __init__(self, model):
        self.inner = {make}
    def step(self, lrm, momentum, weight_decay):
        self.steps += 1
        for group in self.inner.param_groups:
            group["lr"] = {lr} * lrm
        self.inner.step()
"""
STEPPED = "    raw_model.zero_grad(set_to_none=True)\n    return total"
BLOCK = "x = block(x, value_embedding, cos, sin, self.windows[layer])"
READY = "        self.init_weights()\n"
SQUARED = "self.proj(F.relu(self.fc(x)).square())"
AUTOCAST = "autocast = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()"
AVERAGED = """    for old, new in zip(mean_model.parameters(), raw_model.parameters()):
        old.data.lerp_(new.data, 0.05)
"""
HANDED = "val_bpb = evaluate_bpb(model, tokenizer, micro_rows)"


def make_optimizer(make: str, lr: float) -> tuple[tuple[str, str], ...]:
    """Return the edits that train with another optimizer."""
    tokenizer = "tokenizer = Tokenizer.from_directory()"
    return ((tokenizer, WRAPPED.format(make=make, lr=lr) + tokenizer), (OPTIMIZER, "optimizer = Plain(raw_model)"))


KINDS: dict[str, tuple[tuple[str, str], ...]] = {
    "shapes and batches only": (),
    "bf16 autocast": ((AUTOCAST, 'autocast = torch.autocast("cpu", torch.bfloat16)'),),
    "AdamW": make_optimizer("torch.optim.AdamW(model.parameters())", 2e-3),
    "SGD": make_optimizer("torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)", 0.1),
    "activation checkpointing": (
        ("import torch.nn as nn\n", "import torch.nn as nn\nfrom torch.utils.checkpoint import checkpoint\n"),
        (BLOCK, "x = checkpoint(block, x, value_embedding, cos, sin, self.windows[layer], use_reentrant=False)"),
    ),
    "tied weights": (
        (READY, f"{READY}        self.lm_head.weight = self.wte.weight\n"),
        ("*model.wte.parameters(), *model.value_embeds", "*model.value_embeds"),
    ),
    "averaged weights handed over": (
        (f"{OPTIMIZER}\nbudget", f"mean_model = copy.deepcopy(raw_model)\n{OPTIMIZER}\nbudget"),
        (STEPPED, AVERAGED + STEPPED),
        (HANDED, HANDED.replace("(model", "(mean_model.eval()")),
    ),
    "dropout in training": ((SQUARED, SQUARED.replace("self.proj", "F.dropout(self.proj") + ", 0.1, self.training)"),),
    "a batch of another size for the evaluation": ((HANDED, HANDED.replace("micro_rows", "2 * micro_rows + 1")),),
    "LayerNorm and GELU": (
        ("F.rms_norm(x, (x.size(-1),))", "F.layer_norm(x, (x.size(-1),))"),
        ("F.relu(self.fc(x)).square()", "F.gelu(self.fc(x))"),
    ),
    "attention without the fused kernel": (("    if window >= T:", "    if False:"),),
}
COMPILED = (" if fast else (lambda function: function)", "")


def edit(source: str, edits: tuple[tuple[str, str], ...]) -> str:
    """Return the source with all edits. Raises ValueError where one does not apply."""
    for before, after in edits:
        if before not in source:
            raise ValueError(f"train.py has no {before!r}")
        source = source.replace(before, after)
    return source


def draw_source(plain: str, profile: profiles.Profile, kind: str, luck: random.Random) -> str:
    """Return an honest train.py of a kind, with constants drawn by chance; half of them are as they were."""
    drawn = {name: luck.choice(values) for name, values in SHAPES.items() if luck.random() < 0.5}
    return profiles.apply_to_script(edit(plain, KINDS[kind]), profiles.with_constants(profile, drawn))


def plan(baselines: list[Scored]) -> EvaluationPlan:
    """Return how every other run is evaluated, by what the baselines took."""
    return EvaluationPlan(audit="always", confirmed=False, incumbent=0, **describe_runs(baselines))


def train(runner: Runner, number: int, source: str, how: EvaluationPlan) -> Outcome:
    """Return what became of one run, with a seed of its own."""
    return asyncio.run(runner.run(Granted(experiment=number, run=1, slot=0, seed=number, plan=how), source))


def main() -> None:
    given = dict(re.findall(r"--(\w+)=(\S+)", " ".join(sys.argv)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = Path(given.get("data", folder / "data"))
        profile = profiles.with_overrides(profiles.CPU, SMALL)
        if not data.exists():
            data.mkdir(parents=True)
            build_folder(data, open_corpus("docstrings", 10), profile, WORK)
        parts = list_slots(1, folder, THREADS), RunLimits(wall=1200), Scorer.load(data)
        logs = list[str]()
        runner = Runner(folder, *parts, select.select_sandbox(), lambda log: logs.append(log) or "")
        plain = Path("train.py").read_text()
        if "compile" in given:
            plain = edit(plain, (COMPILED,))
        unmeasured = EvaluationPlan(audit="always", confirmed=False, incumbent=0, baseline_error="unmeasured")
        source = profiles.apply_to_script(plain, profile)
        began = [train(runner, number, source, unmeasured) for number in range(BASELINES)]
        how = plan([run for run in began if isinstance(run, Scored)])
        print(how.model_dump_json(exclude_defaults=True), flush=True)
        tell(
            runner, profile, plain, how, range(first := int(given.get("first", 0)), first + int(given.get("runs", 300)))
        )


def tell(runner: Runner, profile: profiles.Profile, plain: str, how: EvaluationPlan, numbers: Iterable[int]) -> None:
    """Run the variants in turn, and print what became of them."""
    seen, paces, apart = defaultdict[str, Counter[str]](Counter), defaultdict[str, list[float]](list), 0.0
    for number in numbers:
        kind = [*KINDS][number % len(KINDS)]
        outcome = train(runner, BASELINES + number, draw_source(plain, profile, kind, random.Random(number)), how)
        failure = outcome.failure if isinstance(outcome, Crashed) else outcome.kind
        seen[kind][failure] += 1
        if not isinstance(outcome, Aborted):
            paces[kind].append(outcome.metrics.train_cpu / (how.train_cpu or 1))
        if isinstance(outcome, Scored) and outcome.audit:
            apart = max(apart, abs(outcome.val_bpb - outcome.audit.claimed))
        print(f"run {number}, {kind}: {failure} {getattr(outcome, 'message', '')}", flush=True)
    print("\n| kind | runs | scored | disqualified | other | CPU time over the baseline's |\n" + "|---" * 6 + "|")
    for kind, ends in seen.items():
        total, scored, caught, pace = ends.total(), ends["scored"], ends["disqualified"], sorted(paces[kind])
        row = f"| {kind} | {total} | {scored} | {caught} | {total - scored - caught}"
        print(f"{row} | {pace[0]:.2f} to {pace[-1]:.2f} |")
    print(f"\nlargest difference of an audited score from its claims: {apart:.1e} bits per byte")
