"""A script in the shape of autoresearch's train.py runs in examined form, on our `prepare` and unchanged."""

import math
import os
import re

import pytest
import torch

from orchestrator.core.events import EvaluationPlan, Granted
from orchestrator.lab.monitor import RunLimits
from orchestrator.lab.runner import Runner
from orchestrator.lab.sandbox.base import NoSandbox
from orchestrator.lab.scoring.claims import Scorer
from orchestrator.lab.slots import Slot
from prepare.evaluation import evaluate_bpb, get_token_bytes, hand_over
from prepare.manifest import BudgetAmount
from prepare.tokenizer import BOS_TOKEN, Tokenizer
from tests.small import small_data
from tests.workplace import SCRIPTS

SOURCE = (SCRIPTS / "on_our_ground.py").read_text()
PLAN = EvaluationPlan(audit="never", confirmed=False, incumbent=0, baseline_error="unmeasured")


@pytest.fixture
def kernels(tmp_path):
    """A folder of downloaded kernels: a package under a name that only the script gives it."""
    package = tmp_path / "kernels/build/fa3"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from . import interface\n")
    (package / "interface.py").write_text("def attend(x):\n    return x.cumsum(1) / x.shape[1]\n")
    return tmp_path / "kernels"


async def test_it_is_trained_and_scored_by_a_process_that_has_only_the_model(tmp_path, kernels):
    logs, folder = {}, tmp_path.resolve()
    data = small_data(folder / "data", BudgetAmount(kind="time", amount=0.3, seconds=0.3))
    runner = Runner(
        folder,
        [Slot(folder / "slot.lock", threads=1)],
        RunLimits(wall=150.0, quiet=5.0),  # less than it takes to compile
        Scorer.load(data),
        NoSandbox(),
        lambda text: logs.setdefault("0" * 64, text) and "0" * 64,
    )
    source = SOURCE.replace('os.environ["KERNELS_CACHE"]', repr(str(kernels)))

    outcome = await runner.run(Granted(experiment=0, run=1, slot=0, seed=1, plan=PLAN), source)

    assert outcome.kind == "scored", outcome
    assert 0 <= outcome.val_bpb < 8.1
    assert outcome.metrics.uncounted >= 8.0
    assert outcome.metrics.steps > 10
    (log,) = logs.values()
    assert re.search(r"^Nightshift: the first \d+ s do not count", log, re.MULTILINE)
    assert "so far" in log
    assert "every row is scored, at MAX_SEQ_LEN, on cpu; without seq_len=16, max_steps=" in log


@pytest.fixture
def tokenizer(tmp_path):
    saved, os.environ["NIGHTSHIFT_DATA"] = os.environ.get("NIGHTSHIFT_DATA"), str(small_data(tmp_path / "data"))
    yield Tokenizer.from_directory()
    del os.environ["NIGHTSHIFT_DATA"]
    os.environ |= {} if saved is None else {"NIGHTSHIFT_DATA": saved}


def test_special_tokens_have_names(tokenizer):
    bos = tokenizer.get_bos_token_id()
    assert tokenizer.encode(["a", ""], prepend=BOS_TOKEN) == [[bos, ord("a")], [bos]]
    with pytest.raises(ValueError, match=r"no special token '<\|bos\|>': one of <\|reserved_0\|>"):
        tokenizer.encode("a", prepend="<|bos|>")
    assert get_token_bytes().tolist() == [1] * 256 + [0] * 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": None, "max_steps": None}, ""),
        ({"device": "cuda:0", "seq_len": 8}, "without device=cuda:0, seq_len=8\n"),
    ],
)
def test_what_an_argument_cannot_do_is_said(tokenizer, capsys, options, said):
    bpb = evaluate_bpb(lambda x, y, reduction: torch.ones(y.shape), tokenizer, 64, **options)
    assert bpb == pytest.approx(1 / math.log(2))
    assert capsys.readouterr().err.partition("; ")[2] == said


def test_a_batch_size_that_is_no_whole_number_fails_where_it_is_given():
    with pytest.raises(TypeError, match="integer"):
        hand_over(None, 64.0)
