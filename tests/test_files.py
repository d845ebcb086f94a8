"""One file in memory: edits are exact, and nothing leads out of it."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.source import restore_lines
from subagents.files import (
    EditedFiles,
    find_missing_packages,
    find_syntax_error,
)
from subagents.tools import RESULT_BYTES, ToolCall

SOURCE = """import torch

DEPTH = 8  # 2..16 – blocks
LR = 0.1

for step in range(DEPTH):
    print(step)
    print(step)
"""


def edited(text=SOURCE):
    return EditedFiles({"train.py": text})


def used(file, name, **arguments):
    tool = next(tool for tool in file.tools if tool.name == name)
    return asyncio.run(tool.run(ToolCall("1", name, arguments)))


def checked(text):
    file = edited()
    file.files["train.py"] = text
    return used(file, "check")


def test_a_passage_is_replaced_where_it_occurs_once():
    file = edited()

    result = used(file, "replace", old="LR = 0.1", new="LR = 0.2")

    assert result.text == "Replaced at line 4."
    assert file.text == SOURCE.replace("0.1", "0.2")


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_what_an_agent_writes_ends_its_lines_as_the_file_in_memory_does(end):
    """A commit restores the ends of the file's own lines: with a second one, a line that goes on would not parse."""
    file = EditedFiles({"train.py": SOURCE}, is_allowed=lambda _: True, join="".join)

    old, new = f"DEPTH = 8  # 2..16 – blocks{end}LR", f"DEPTH = 8 + \\{end}1{end}LR"
    used(file, "replace", path="train.py", old=old, new=new)
    used(file, "create", path="more.py", text=f"a = 1{end}b = 2{end}")

    assert file.files["more.py"] == "a = 1\nb = 2\n"
    source = SOURCE.replace("8  # 2..16 – blocks", "8 + \\\n1")
    assert file.files["train.py"] == source
    assert restore_lines(source, SOURCE.replace("\n", "\r\n")) == source.replace("\n", "\r\n")


@pytest.mark.parametrize(
    ("old", "says"),
    [
        ("LR = 0.3", "does not occur"),
        ("LR=0.1", "Line 4 is close"),
        ("    print(step)\n", "occurs 2 times, at lines 7, 8"),
        ("", "does not occur"),
    ],
)
def test_what_cannot_be_replaced_is_said_with_a_way_out(old, says):
    file = edited()

    result = used(file, "replace", old=old, new="x")

    assert result.is_error
    assert says in result.text
    assert file.text == SOURCE


def test_overlapping_finds_are_not_one():
    file = edited("aaa")

    assert "occurs 2 times, at lines 1. " in used(file, "replace", old="aa", new="b").text
    assert "at lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …" in used(edited("x\n" * 12), "replace", old="x", new="").text


@given(st.text(max_size=40), st.text(max_size=8), st.text(max_size=8))
def test_a_replacement_touches_nothing_else(text, old, new):
    file = edited(text)

    result = used(file, "replace", old=old, new=new)

    assert file.text == (text if result.is_error else text.replace(old, new, 1))


def test_a_view_is_numbered_and_short_enough_whatever_is_asked():
    file = edited("x = 1\n" * 100_000)

    page = ["(lines 2 to 3 of 100000)", "   2│x = 1", "   3│x = 1"]
    assert used(file, "view", first=2, last=3).text.splitlines() == page
    head, *shown = used(file, "view").text.splitlines()
    assert head.endswith(f"; go on with first={len(shown) + 1})")
    assert used(file, "view", first=len(shown) + 1).text.splitlines()[1].startswith(f"{len(shown) + 1:4}│")
    assert len(used(file, "view", first=1, last=100_000).text.encode()) <= RESULT_BYTES
    assert used(file, "view", first=0).is_error
    assert used(file, "view", first=100_001, last=100_002).is_error
    assert used(file, "view", path="/etc/passwd").is_error


def test_a_check_finds_what_would_not_run():
    assert checked(SOURCE).text == "train.py is unchanged."
    assert "syntax error in line 10" in checked(SOURCE + "\nx = (").text
    assert "outside function" in checked(SOURCE + "return 1\n").text
    assert "Not installed here, and nothing can be installed: numpy2" in checked("import numpy2.linalg\n" + SOURCE).text
    assert "null bytes" in find_syntax_error("\0")
    in_order = "Syntax and imports are in order. It was not run: check the shapes."
    assert checked(SOURCE.replace("8", "9")).text == in_order


def test_a_guarded_import_may_be_missing_and_relative_ones_are_not_packages():
    source = "try:\n    import rare\nexcept ImportError:\n    rare = None\nfrom . import near\n"

    assert find_missing_packages(source) == []


def test_our_own_train_py_is_in_order():
    source = Path("train.py").read_text()

    assert find_syntax_error(source) == ""
    assert find_missing_packages(source) == []
