"""The mechanic hands in an edited file, or says why not."""

import asyncio
import random
from pathlib import Path

import pytest

from orchestrator.agents import briefing, packets
from orchestrator.core.events import Committed, Crashed, RunMetrics
from orchestrator.core.state import Broken, Candidate
from subagents import mechanic
from subagents.agent import NoAnswer
from subagents.files import list_packages
from subagents.prompts import load_prompts
from tests import synthetic
from tests.conversations import FakeWorld, call, says

PROMPT = load_prompts(Path("prompts"))["mechanic"]
SOURCE = Path("train.py").read_text()
ORDER = {"title": "Deepen", "instructions": "Set DEPTH to 9.", "crash": "", "diff": ""}
EDIT = call("replace", old="DEPTH = 8 ", new="DEPTH = 9 ")
DONE = call("submit", summary="DEPTH is 9.")
TRACEBACK = """step 1\rstep 2\rTraceback (most recent call last):
  File "/somewhere/train.py", line 321, in <module>
    loss = train_step(batches, progress).item()
  File "/lib/torch/nn/modules/module.py", line 1, in _call_impl
    return forward_call(*args, **kwargs)
  File "/somewhere/train.py", line 150, in forward
    x = x @ y
RuntimeError: mat1 and mat2 shapes cannot be multiplied
"""


def edited(*replies, facts=ORDER):
    world = FakeWorld(list(replies))
    commit = asyncio.run(mechanic.edit(world, PROMPT, SOURCE, facts, list_packages()))
    return world, commit


def broken(log):
    proposal = synthetic.proposal(random.Random(1), title="Widen")
    commit = Committed(experiment=3, commit="c" * 40, parent=0, source="s", fingerprint="f", added=1, removed=1)
    crash = Crashed(
        experiment=3,
        run=1,
        failure="other",
        message="RuntimeError: «shapes»",
        metrics=RunMetrics(train_seconds=4),
        curve=(),
        log="l",
    )
    return Broken(Candidate(proposal, commit), crash), log


def test_one_message_is_enough():
    world, commit = edited(says(EDIT, DONE))

    assert commit == SOURCE.replace("DEPTH = 8 ", "DEPTH = 9 ")
    assert len(world.requests) == 1


def test_a_failed_edit_is_mended_before_anything_is_handed_in():
    wrong = call("replace", old="DEPTH = 7 ", new="DEPTH = 9 ")

    world, commit = edited(says(wrong, DONE), says(EDIT, DONE))

    assert "DEPTH = 9 " in commit
    assert world.used == ["replace", "replace"]


def test_an_unchanged_or_broken_file_is_not_accepted():
    world, _ = edited(
        says(DONE),
        says(call("replace", old="DEPTH = 8 ", new="DEPTH = = 9 "), DONE),
        says(call("replace", old="DEPTH = = 9 ", new="DEPTH = 9 "), DONE),
    )

    assert world.requests[1].messages[-1]["content"][0]["content"] == "Not accepted: train.py is unchanged"
    assert "syntax error" in world.heard()[1]


def test_the_impossible_is_said_and_given_up():
    with pytest.raises(NoAnswer, match="impossible: there is no such layer"):
        edited(says(call("submit", summary="", impossible="there is no such layer")))


def test_a_failed_check_goes_back_before_anything_is_handed_in():
    world, commit = edited(
        says(call("replace", old="DEPTH = 8 ", new="DEPTH = = 9 "), call("check"), DONE),
        says(call("replace", old="DEPTH = = 9 ", new="DEPTH = 10 "), call("check"), DONE),
    )

    assert "syntax error" in world.heard()[1]
    assert "DEPTH = 10" in commit


def test_the_opening_fits_and_the_code_comes_first():
    long = ORDER | {"instructions": "x" * 2500}

    opening = PROMPT.render_opening(long | {"source": SOURCE})

    assert briefing.count_tokens(PROMPT.system + opening) <= 14_000
    assert opening.index(SOURCE.strip()) < opening.index("<!-- cache -->") < opening.index("Deepen")
    assert "crashed" not in opening


def test_after_a_crash_it_is_told_where_in_its_own_file():
    stage, log = broken(TRACEBACK)

    facts = packets.pack_repair(stage, log, "-a\n+b")
    opening = PROMPT.render_opening(facts | {"source": SOURCE})

    assert "| line 321, in <module>: loss = train_step(batches, progress).item()" in opening
    assert "| line 150, in forward: x = x @ y" in opening
    assert "| RuntimeError: mat1 and mat2" in opening
    assert "_call_impl" not in opening
    assert "«RuntimeError: <shapes>»" in opening
    assert "-a\n+b" in opening


def test_a_crash_without_a_traceback_shows_the_end_of_the_log():
    stage, log = broken("\n".join(f"line {i}" for i in range(100)) + "\nKilled")

    crash = packets.pack_repair(stage, log, "")["crash"]

    assert "| Killed" in crash
    assert "| line 87" not in crash
    assert briefing.count_tokens(crash) < 700
