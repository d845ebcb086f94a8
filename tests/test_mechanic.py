"""The mechanic hands in an edited file, or says why not."""

import asyncio
import json
import random
from functools import partial
from pathlib import Path

import pytest

from orchestrator.agents import packets
from orchestrator.agents.fidelity import find_deviation
from orchestrator.core.events import Committed, Crashed, RunMetrics
from orchestrator.core.state import Broken, Candidate
from subagents import mechanic
from subagents.agent import NoAnswer
from subagents.files import EditedFiles
from subagents.prompts import load_prompts
from tests import synthetic
from tests.conversations import FakeWorld, call, says

PROMPT = load_prompts(Path("prompts"))["mechanic"]
SOURCE = Path("train.py").read_text()
ORDER = {"title": "Deepen", "instructions": "Set DEPTH to 9.", "crash": "", "diff": ""}
PROPOSAL = synthetic.proposal(
    random.Random(1), title="Deepen", instructions="Set DEPTH to 9.", settings={}, direction=None
)
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
    check = partial(find_deviation, PROPOSAL, SOURCE)
    commit, _ = asyncio.run(mechanic.edit(world, PROMPT, EditedFiles({"train.py": SOURCE}), facts, check))
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


@pytest.mark.parametrize("words", ["None", "N/A", "no.", " none "])
def test_a_word_for_nothing_does_not_give_up_an_edit(words):
    _, commit = edited(says(EDIT, call("submit", summary="DEPTH is 9.", impossible=words)))
    assert "DEPTH = 9 " in commit


def test_a_failed_check_goes_back_before_anything_is_handed_in():
    world, commit = edited(
        says(call("replace", old="DEPTH = 8 ", new="DEPTH = = 9 "), call("check"), DONE),
        says(call("replace", old="DEPTH = = 9 ", new="DEPTH = 9 "), call("check"), DONE),
    )

    assert "syntax error" in world.heard()[1]
    assert "DEPTH = 9 " in commit


def test_the_opening_fits_and_the_code_comes_first():
    long = ORDER | {"instructions": "x" * 2500}

    opening = PROMPT.render_opening(long | {"base": SOURCE, "changes": ""})

    assert synthetic.count_tokens(PROMPT.system + opening) <= 14_000
    assert opening.index(SOURCE.strip()) < opening.index("<!-- cache -->") < opening.index("Deepen")
    assert "crashed" not in opening


def test_after_a_crash_it_is_told_where_in_its_own_file():
    stage, log = broken(TRACEBACK)

    facts = packets.pack_repair(stage, log, "-a\n+b")
    opening = PROMPT.render_opening(facts | {"base": SOURCE, "changes": ""})

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
    assert synthetic.count_tokens(crash) < 700


def started(*replies, fault="RuntimeError: shapes\nline 7, in forward: x @ y"):
    """What becomes of these messages where a source that sets DEPTH to 9 and does not mend it has this fault."""
    tried = []

    async def start(source):
        tried.append(source)
        return {"step/calls": (1.0,)} if "MENDED" in source else fault

    world, check = FakeWorld(list(replies)), partial(find_deviation, PROPOSAL, SOURCE)
    text, _ = asyncio.run(mechanic.edit(world, PROMPT, EditedFiles({"train.py": SOURCE}, start), ORDER, check))
    return world, text, len(tried)


MENDED = call("replace", old="DEPTH = 9 ", new="_ = 'MENDED'\nDEPTH = 9 ")
FAILS = "It fails before its training begins:\n<log>\n| RuntimeError: shapes\n| line 7, in forward: x @ y\n</log>"


def test_a_check_runs_the_file_where_that_costs_no_run():
    world, text, tried = started(says(EDIT, call("check"), DONE), says(MENDED, call("check"), DONE))

    assert "run it up to where its training begins" in json.dumps(world.requests[0].tools)
    assert world.heard()[1] == FAILS
    assert "MENDED" in text
    assert tried == 2, "what has been checked is not checked again"


def test_an_unchecked_file_is_checked_once_when_it_is_handed_in():
    world, text, tried = started(says(EDIT, DONE), says(DONE))

    assert world.heard()[-1] == f"Not accepted: {FAILS}"
    assert world.used == ["replace", "check"]
    assert "DEPTH = 9 " in text, "the mechanic insists: perhaps the check is wrong"
    assert tried == 1
    assert started(says(EDIT, DONE), says(MENDED, DONE))[2] == 2


def test_a_machine_that_cannot_run_a_step_stops_no_edit():
    assert started(says(EDIT, *[call("check")] * 20), says(MENDED, DONE), fault={})[2] == 8
    _, text, tried = started(says(EDIT, call("check"), DONE), fault={})

    assert "DEPTH = 9 " in text
    assert tried == 1


WRONG_VALUE = call("replace", old="DEPTH = 8 ", new="DEPTH = 90 ")
SECOND_CONSTANT = call("replace", old="MATRIX_LR = 0.04 ", new="MATRIX_LR = 0.05 ")
LAYOUT = call("replace", old="DEPTH = 8 ", new="DEPTH = 8  ")
LATER = call("replace", old="DEPTH = 8 ", new="MATRIX_LR *= 2\nDEPTH = 9 ")


@pytest.mark.parametrize(
    ("edits", "says_back"),
    [
        ([WRONG_VALUE], "the proposal gives no such value"),
        (
            [EDIT, SECOND_CONSTANT],
            "MATRIX_LR has changed, which the proposal does not name: put `MATRIX_LR = 0.04` back",
        ),
        ([LATER], "MATRIX_LR has changed"),
        ([LAYOUT], "nothing but comments or layout has changed"),
    ],
)
def test_an_edit_that_is_not_the_proposal_goes_back(edits, says_back):
    world = FakeWorld([says(*edits, DONE), says(call("submit", summary="", impossible="I cannot"))])
    check = partial(find_deviation, PROPOSAL, SOURCE)

    with pytest.raises(NoAnswer):
        asyncio.run(mechanic.edit(world, PROMPT, EditedFiles({"train.py": SOURCE}), ORDER, check))

    assert says_back in world.heard()[-1]


def test_a_value_that_is_derived_may_be_declared():
    doubled = PROPOSAL.model_copy(update={"instructions": "Double DEPTH."})
    after = SOURCE.replace("DEPTH = 8 ", "DEPTH = 16 ")

    assert "no such value" in find_deviation(doubled, SOURCE, after)
    assert not find_deviation(doubled, SOURCE, after, "DEPTH is 16, twice 8.")


def test_a_new_constant_has_a_value_that_the_proposal_gives_or_that_is_declared():
    after = SOURCE.replace("DEPTH = 8 ", "GATE_LR = 1.0\nDEPTH = 8 ")
    gated = PROPOSAL.model_copy(update={"instructions": "Add GATE_LR = 0.1."})

    assert "`GATE_LR = 1.0`: the proposal gives no such value" in find_deviation(gated, SOURCE, after)
    assert not find_deviation(gated, SOURCE, after.replace("GATE_LR = 1.0", "GATE_LR = 0.1"))
    assert not find_deviation(gated, SOURCE, after, "GATE_LR is 1.0, as in the paper.")


def test_a_repair_keeps_what_was_proposed_and_declares_what_it_changes():
    proposal = PROPOSAL.model_copy(update={"settings": {"DEPTH": 9}})
    crashed = SOURCE.replace("DEPTH = 8 ", "DEPTH = 9 ")
    shallower = crashed.replace("DEPTH = 9 ", "DEPTH = 4 ")
    smaller = crashed.replace("DEVICE_BATCH_SIZE = ", "DEVICE_BATCH_SIZE = 1 + ")

    assert "sets DEPTH to 9" in find_deviation(proposal, crashed, shallower, "DEPTH is 4", repair=True)
    assert "DEVICE_BATCH_SIZE has changed" in find_deviation(proposal, crashed, smaller, repair=True)
    assert not find_deviation(proposal, crashed, smaller, "DEVICE_BATCH_SIZE is 1 larger", repair=True)
    assert "put" in find_deviation(proposal, crashed, smaller, "DEVICE_BATCH_SIZE is 1 larger")
