"""Every command of ours in the sh blocks of README.md and docs/: run where it only reads, else parsed as it stands."""

import re
import shlex
import shutil
import subprocess

import pytest
import typer

from orchestrator.cli.main import COMMANDS, app
from tests.workplace import ROOT, orchestrate

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OURS = re.compile(r"(?:^|[\s/])(?:nightshift|make|python3?)\s")
READERS = {"sessions", "replay", "report", "compare", "musings"}
PARSED = {"--step", "--verify"}
"""Options with which a reader waits for keys, or takes long."""
REAL = {"NAME": "first", "OTHER": "second", "HEAD:6379": "127.0.0.1:6379"}
"""What a user would put in place of the words in capitals."""


def list_lines(page):
    """Return the lines of a page's sh blocks that run something of ours."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if OURS.search(line.partition("#")[0] + " ")]


def split_line(line):
    """Return the program and its words, without what only starts it or takes its output."""
    words = [REAL.get(word, word) for word in shlex.split(line, comments=True)]
    names = [word.rpartition("/")[2] for word in words]
    first = next(i for i, name in enumerate(names) if name in {"nightshift", "make", "python", "python3"})
    last = next((i for i, word in enumerate(words) if word in {">", ">>", "2>&1", "&", "|", "&&"}), len(words))
    return names[first], *words[first + 1 : last]


LINES = {split_line(line): line for page in PAGES for line in list_lines(page)}


def parse(words):
    """Return the command's name, empty for a night; raises what a user would be told for a word that is not known."""
    group = typer.main.get_command(app)
    context = group.make_context("nightshift", list(words))
    rest = [*context._protected_args, *context.args]
    if not rest:
        return ""
    name, command, words = group.resolve_command(context, rest)
    command.make_context(name, words, parent=context)
    return name


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two recorded sessions."""
    place = tmp_path_factory.mktemp("blocks")
    for name, golden in {"first": "agents-2", "second": "offline-4"}.items():
        (place / "sessions" / name).mkdir(parents=True)
        shutil.copyfile(ROOT / f"tests/golden/{golden}.db", place / "sessions" / name / "session.db")
    assert orchestrate(place, "report", "first").returncode == 0  # writes the musings that are searched
    return place


def test_there_are_lines_of_many_commands():
    named = {words[0] for name, *words in LINES if name == "nightshift" and words}
    assert len(named & COMMANDS.keys()) >= 9
    assert {page.name for page in PAGES if list_lines(page)} >= {"README.md", "first-night.md", "models.md", "serve.md"}


@pytest.mark.parametrize(("program", "words", "line"), [(name, words, line) for (name, *words), line in LINES.items()])
def test_a_line_of_the_documentation_is_understood(program, words, line, place):
    if program == "make":  # says what it would do
        subprocess.run(["make", "-n", *words], cwd=ROOT, check=True, capture_output=True)
        return
    if program != "nightshift":
        assert words[:2] == ["-m", "orchestrator"], f"nothing here tries {line!r}"
        words = words[2:]
    name = parse(words)
    if name in READERS and not PARSED & set(words):
        done = orchestrate(place, *words)
        nothing_found = name == "musings" and done.returncode == 1
        assert done.returncode == 0 or nothing_found, done.stderr


@pytest.mark.parametrize(
    "words", [["--hour", "8"], ["dance"], ["replay", "first", "--sow", "3"], ["serve", "--hours", "1"]]
)
def test_a_line_that_is_not_understood_is_noticed(words):
    with pytest.raises(typer.exceptions.TyperException):
        parse(words)
