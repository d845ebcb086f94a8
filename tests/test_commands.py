"""Hold docs/commands.md to the commands' own help. `python -m tests.test_commands` writes it anew."""

import importlib
import os
import re
import subprocess
import sys

import pytest
from typer import Typer
from typer.testing import CliRunner

from orchestrator.cli.main import COMMANDS, app
from orchestrator.cli.options import ExitCode
from tests.workplace import ROOT, environment

PAGE = ROOT / "docs/commands.md"
OPENING = """# The commands

The help of every command. `docs/first-night.md` shows them in use. `nightshift` and `python -m orchestrator` are the
same; in a folder with an `orchestrator.py` of your own, use `nightshift`. Options go before or after a command; one
that would do nothing is refused. `nightshift --install-completion` makes your shell complete commands and options;
`--show-completion` prints what it would install.

A session remembers `--data`, `--script`, `--musings` and `--unsafe` in `sessions/NAME/places.json`, so `resume NAME`
and `fork NAME --at N` need none of them. Give them again only where something has moved, the session's folder included.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | `replay --verify` found an event that this version would write differently, or `musings search` found nothing |
| 2 | wrong usage, or a problem that you can fix: a one-line message says what to do |
| 3 | `doctor` found something that would spoil a night |
| 4 | the baseline does not train |
| 5 | nothing ran: the time was up, you stopped it, or the machine failed, before the first experiment |
| 6 | no model answered with anything usable, and the optimizer went on in its place |
| 130 | interrupted: continue with `resume` |

| environment variable | meaning |
|---|---|
| `ANTHROPIC_API_KEY` | the API key for Claude; other variables that Anthropic's SDK reads work, too |
| `ANTHROPIC_BASE_URL` | a server of your own that speaks the Messages API; it needs no key |
| `NIGHTSHIFT_DATA`, `NIGHTSHIFT_NOTIFY`, `NIGHTSHIFT_TOKEN` | defaults of `--data`, `--notify` and `--token` |
| `CUDA_VISIBLE_DEVICES` | the GPUs to use, as for any CUDA program; of several models, a night uses the most frequent |
| `KERNELS_CACHE` | the folder of downloaded attention kernels, on Hopper |
| `OMP_NUM_THREADS` | threads of a run on a CPU; part of the experiment, since sums change with it |
| `XDG_CACHE_HOME` | the folder under which `prepare` keeps downloaded shards of climbmix |
"""
HEAVY = {"anthropic", "apprise", "genai_prices", "optuna", "plotly", "pyarrow", "ray", "torch", "trackio"}
WIDTH = 78
"""Columns of help on any terminal of 80 or more."""


def help_of(command: Typer, *words: str) -> str:
    """Return a section of the page."""
    calm = CliRunner(env={"NIGHTSHIFT_DATA": None, "NIGHTSHIFT_NOTIFY": None})
    done = calm.invoke(command, [*words[1:], "--help"], prog_name=words[0], terminal_width=WIDTH)
    assert done.exit_code == 0, done.output
    return section(" ".join(words), done.output)


def section(title: str, text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return f"\n## {title}\n\n```text\n{lines}\n```\n"


def page() -> str:
    return OPENING + "".join(help_of(app, "nightshift", *words) for words in [(), *((name,) for name in COMMANDS)])


def test_the_page_is_what_the_commands_say():
    assert PAGE.read_text() == page(), "write it anew: python -m tests.test_commands"


@pytest.mark.parametrize("words", [["orchestrator", "fork"], ["orchestrator", "prepare"], ["prepare"]])
def test_a_process_says_the_same_by_its_own_name(words):
    environment = {"PATH": os.environ["PATH"], "COLUMNS": "100", "NO_COLOR": "1", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *words, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    known = re.search(rf"## nightshift {words[-1]}\n\n```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
    said = " ".join(done.stdout.split()).replace(" ".join(["python -m", *words]), f"nightshift {words[-1]}")
    assert " ".join(known[1].split()) == said


def test_on_windows_one_line_says_where_it_runs():
    code = "import sys; sys.platform = 'win32'; from orchestrator.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "WSL" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_command_says(name):
    module, text, _ = COMMANDS[name]
    command = getattr(importlib.import_module(module, "orchestrator.cli"), name)
    assert command.__doc__.splitlines()[0] == text


@pytest.mark.parametrize("code", ExitCode)
def test_every_exit_code_is_documented(code):
    assert f"\n| {code} | " in PAGE.read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["sessions"],
        ["musings", "search", "depth"],
        ["replay", str(ROOT / "tests/golden/agents-1.db"), "--show", "5"],
        ["doctor", "--help"],
        ["resume", "--help"],
    ],
)
def test_a_command_imports_only_what_it_needs(words, tmp_path):
    code = (
        f"import sys; sys.argv = ['orchestrator', *{words!r}]\n"
        "from orchestrator.cli.main import main\n"
        f"try: main()\nfinally: assert not {HEAVY!r} & set(sys.modules), {HEAVY!r} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert "Error" not in done.stderr
    assert done.returncode == (words[0] == "musings"), done.stderr  # which finds nothing here


if __name__ == "__main__":
    PAGE.write_text(page())
