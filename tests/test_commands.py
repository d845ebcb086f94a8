"""docs/commands.md says what every command says of itself. `python -m tests.test_commands` writes it anew."""

import os
import subprocess
import sys

import pytest
from typer import Typer
from typer.testing import CliRunner

from orchestrator.cli import inspect, start  # noqa: F401 - they register their commands
from orchestrator.cli.main import app
from prepare.__main__ import app as prepare
from tests.workplace import ROOT

PAGE = ROOT / "docs/commands.md"
OPENING = """# The commands

What `--help` says of each. `docs/first-night.md` shows them at work. Options that say where things are (`--sessions`,
`--data`, `--script`, `--musings`) stand before the command: `python -m orchestrator --sessions elsewhere resume NAME`.
"""
WIDTH = 78
"""Columns of help on any terminal of 80 or more."""


def help_of(command: Typer, *words: str) -> str:
    """A section of the page."""
    calm = CliRunner(env={"NIGHTSHIFT_DATA": None, "NIGHTSHIFT_NOTIFY": None})
    done = calm.invoke(command, [*words[3:], "--help"], prog_name=" ".join(words[:3]), terminal_width=WIDTH)
    assert done.exit_code == 0, done.output
    return section(" ".join(words), done.output)


def section(title: str, text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return f"\n## {title}\n\n```text\n{lines}\n```\n"


def page() -> str:
    ours = ("python", "-m", "orchestrator")
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    parts = [help_of(prepare, "python", "-m", "prepare"), help_of(app, *ours), *(help_of(app, *ours, n) for n in names)]
    return OPENING + "".join(parts)


def test_the_page_is_what_the_commands_say():
    assert PAGE.read_text() == page(), "write it anew: python -m tests.test_commands"


@pytest.mark.parametrize("words", [["-m", "orchestrator", "fork"], ["-m", "prepare"]])
def test_a_process_says_the_same(words):
    environment = {"PATH": os.environ["PATH"], "COLUMNS": "100", "NO_COLOR": "1", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, *words, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert section(" ".join(["python", *words]), done.stdout) in PAGE.read_text()


if __name__ == "__main__":
    PAGE.write_text(page())
