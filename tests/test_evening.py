"""The wrong inputs of a user's evening: each is one line and its exit code, at the start, and leaves nothing behind."""

import contextlib
import os
import shutil
from dataclasses import replace

import pytest

from orchestrator.__main__ import main as begin
from orchestrator.cli.main import main
from orchestrator.cli.options import Options
from orchestrator.cli.preflight import Preflight
from subagents.claude import credentials_error
from tests.workplace import ROOT, TINY, begun, git, orchestrate, workplace

GOLDEN = str(ROOT / "tests/golden/offline-4.db")
OFFLINE = ("--offline", "--session", "night")
TASKS = (
    ("budget = 60\ntimeout = 10", "timeout 10 would end every run before its budget of 60"),
    ("budget = '60'", "budget: Input should be a valid number"),
    ("timeout = 1e300", "timeout: Input should be less than or equal to 1000000"),
    ("editable = 'fit.py'", "editable: Input should be a valid list"),
    ("editable = ['/fit.py']", "editable.0: '/fit.py' cannot be one"),
    ("command = ' '", "command: ' ' cannot be one"),
    ("metric = 'accuracy'", "metric: Input should be a valid table"),
    ("metric = {goal = 'maximize'}", "metric.goal: Input should be 'min' or 'max'"),
    ("seed = {env = ''}", "seed.env: '' cannot be one"),
    ("seed = {enviroment = 'X'}", "Input should be 'env' or 'argument'"),
    ("seed = {env = 'A=B'}", "seed.env: 'A=B' cannot name a variable"),
    ("command = 'python \"fit.py'", "a shell cannot read 'python \"fit.py'"),
    ('command = "fit\\u0000"', "command: 'fit\\x00' cannot be one"),
    ("checks = ['pytest (']", "a shell cannot read 'pytest ('"),
    ("metric = {pattern = '('}", "metric.pattern: Input should be a valid regular expression"),
    ("editable = ['../fit.py']", "editable.0: '../fit.py' cannot be one"),
    ("budget = 60 timeout = 10", "is not TOML"),
    ("data = ['nowhere']", "data: nowhere is not a folder"),
)
"""What people write into nightshift.toml, and what is said of it."""
PROMPT = "---\nmodel: m\n---\n{}<!-- opening -->\n{}\n"
STYLES = (
    ("hidden", ".researcher.md", PROMPT),
    ("nested", "researcher.md", PROMPT.format("<!-- include researcher.md -->\n", "")),
    ("missing", "researcher.md", PROMPT.format("<!-- include none.md -->\n", "")),
    ("key", "mechanic.md", "---\nmodel: m\nturns: 3\n---\n"),
    ("zero", "mechanic.md", "---\nmax_tokens: 0\n---\n"),
    ("huge", "mechanic.md", "---\nmax_tokens: 99999999999\n---\n"),
    ("division", "researcher.md", PROMPT.format("You are it.", "{{ 1 / 0 }}")),
)
"""Styles that cannot be used: their names, and the file and text of each."""
WRONG = {
    ("--hours", "-1"): "--hours",
    ("--hours", "eight"): "--hours",
    ("--offline", "--hours", "0"): "longer than one run",
    ("--hours",): "--hours",
    ("--max-experiments", "0"): "--max-experiments",
    ("--max-experiments", "2.5"): "--max-experiments",
    ("--max-usd", "-3"): "--max-usd",
    ("--max-usd", "$5"): "--max-usd",
    ("--seed", "x"): "--seed",
    ("--crew", "gemini"): "gemini",
    ("--nonsense",): "--nonsense",
    ("--offline", "--hours", "nan"): "--hours",
    ("--offline", "--hours", "inf"): "--hours",
    ("--offline", "--hours", "1e9"): "--hours",
    ("--max-usd", "inf"): "--max-usd",
    ("--max-usd-per-experiment", "1e99"): "--max-usd-per-experiment",
    ("--offline", "--seed", "-1"): "--seed",
    ("--offline", "--seed", "99999999999999999999"): "--seed",
    ("--offline", "--slots", "0"): "give a number of runs, or auto",
    ("--offline", "--slots", "9999"): "may be used here",
    ("--offline", "--max-usd", "3"): "--max-usd does nothing without models",
    ("--hours", "3", "sessions"): "No such option: --hours",
    ("dance",): "dance",
    ("--prompts", "unheard-of"): "unheard-of",
    ("--prompts", "empty"): "holds no prompt",
    ("--prompts", "typo"): "no agent reads reasercher.md",
    ("--prompts", "fault"): "researcher.md:6:4: no fact is called 'bset'",
    ("--model", "critic=m"): "no agent is called 'critic'",
    ("--session", "night"): "set ANTHROPIC_API_KEY",
    ("--fallback", "critic=m"): "no agent is called 'critic'",
    ("--prompts", "yaml"): "researcher.md:3:1: the front matter is not YAML",
    ("--offline", "--session", "a/b"): "cannot be a name",
    ("--offline", "--session", "no good~name"): "cannot be a name",
    ("--offline", "--session", "taken"): "choose another name",
    ("--offline", "--script", "none.py"): "none.py",
    ("--offline", "--script", "."): "is a directory",
    ("--offline", "--script", "toml/train.py"): "nightshift.toml: unknown key comand",
    ("--offline", "--script", "binary.py"): "binary.py is not UTF-8 text",
    ("--offline", "--script", "fault.py"): "fault.py",
    ("--offline", "--data", "nowhere"): "orchestrator prepare --data nowhere",
    ("--offline", "--data", "train.py"): "train.py",
    (*OFFLINE, "--sessions", "/proc/sessions"): "/proc",
    (*OFFLINE, "--sessions", "train.py"): "train.py",
    (*OFFLINE, "--notify", "not a url"): "URL",
    ("resume",): "name",
    ("resume", "nothing"): "no session is called 'nothing'",
    ("resume", "train.py"): "no session is called",
    ("fork", "nothing", "--at", "1"): "no session",
    ("fork", GOLDEN): "--at",
    ("fork", GOLDEN, "--at", "99999"): "has only",
    ("replay", "nothing"): "no session",
    ("replay", GOLDEN, "--show", "99999"): "has events 0 to",
    ("replay", GOLDEN, "--prompts", "none"): "--verify",
    ("replay", GOLDEN, "--verify", "--json"): "--verify",
    ("replay", GOLDEN, "--step"): "terminal",
    ("replay", GOLDEN, "--experiment", "999"): "no conversation about #999",
    ("replay", "broken.db"): "cannot be used as a session",
    ("report", GOLDEN, "--out", "train.py"): "train.py cannot be used",
    ("report", GOLDEN, "--to", "excel"): "excel",
    ("report", "train.db"): "no session",
    ("compare", "one", "two"): "no session",
    ("compare", GOLDEN, "broken.db"): "cannot be used as a session",
    ("compare", GOLDEN, GOLDEN, "--chart", "train.py/chart.html"): "train.py/chart.html cannot be written",
    ("musings", "find", "depth"): "musings search",
    ("musings", "search"): "musings search",
    ("trial", "--prompts", "default", "--prompts", "default"): "once",
    ("trial", "--prompts", "default", "--crew", "optuna"): "optuna",
    ("--model", ""): "--model is empty",
    ("--model=",): "--model is empty",
    ("--model", "mechanic="): "the model's name is missing",
    ("--model", "=m"): "no agent is called ''",
    ("--model", "cli:nosuch"): "cli:nosuch does not answer: No such file or directory: nosuch",
    ("--prompts", " "): "--prompts is empty",
    ("--offline", "--session", ""): "--session is empty",
    ("--offline", "--from", ""): "--from is empty",
    ("serve", "--token", ""): "--token is empty",
    (*OFFLINE, "--notify", "ntfy://"): "URL",
    (*OFFLINE, "--musings", "train.py"): "train.py",
    ("sessions", "--sessions", "train.py"): "train.py",
    ("serve", "--musings", "train.py"): "train.py",
    ("prepare", "--data", "train.py"): "train.py",
    ("--offline", "--hours", "0.0001"): "longer than one run",
    ("--hours", "8h"): "--hours",
    ("--hours", "0,5"): "--hours",
    ("--max-experiments", "1e3"): "--max-experiments",
    ("--max-usd", "5$"): "--max-usd",
    ("--hour", "3"): "--hours",
    ("-x",): "-x",
    ("--offline=yes",): "--offline",
    ("--crew", "Claude"): "'claude'",
    ("--offline", "--crew", "optuna"): "--crew does nothing with --offline",
    ("--offline", "resume", "night"): "No such option: --offline",
    ("--offline", "--slots", "two"): "give a number of runs, or auto",
    ("--offline", "--slots", "1.5"): "give a number of runs, or auto",
    ("--offline", "--session", "night.lock"): "cannot be a name",
    ("--offline", "--session", "x" * 300): "cannot be a name",
    ("--offline", "--session", "-n"): "cannot be a name",
    ("--offline", "--data", "empty"): "prepare --data empty",
    ("--offline", "--script", "bare.py"): "no constant to search in bare.py",
    ("--offline", "--script", "late.py"): "commit it first",
    ("--offline", "--script", "tabs.py"): "tabs.py has a syntax error in line 3",
    ("--offline", "--script", "/dev/null"): "not a Python script",
    ("--offline", "--from", "nothing"): "no session is called 'nothing'",
    ("--offline", "--from", "broken.db"): "cannot be used as a session",
    ("--offline", "--cluster", "nonsense"): "give auto, HOST:PORT or ray://HOST:PORT",
    ("resume", "a", "b"): "(b)",
    ("resume", "../night"): "no session is called '../night'",
    ("fork", GOLDEN, "--at", "0"): "--at",
    ("fork", GOLDEN, "--at", "5"): "cannot be read in",
    ("fork", GOLDEN, "--at", "5", "--crew", "none"): "'claude'",
    ("replay", GOLDEN, "--full"): "--full does nothing",
    ("replay", GOLDEN, "--agent", "nobody"): "'researcher'",
    ("replay", GOLDEN, "--agent", "mechanic"): "--agent does nothing",
    ("report", GOLDEN, "--to", "wandb"): "pip install wandb",
    ("report", GOLDEN, "--out", "/proc/out"): "/proc/out",
    ("report", GOLDEN, "--out", "yaml"): "yaml is here already, and holds no report of this session",
    ("--offline", "--script", "toml/given/other.py"): "names fit.py, not other.py: add it to editable, or give",
    ("init", "--script", "toml/given/third.py"): "names fit.py, not third.py: add it to editable, or give",
    ("init", "--script", "toml/ignoring/train.py"): ".gitignore cannot be used: Is a directory",
    ("--offline", "--fit", "--script", "bare.py"): "--fit and --no-fit do nothing for a script that reports its own",
    ("replay", GOLDEN, "--show", "3", "--json", "--full"): "--full does nothing with --json",
    ("prepare", "--set", "seconds=60", "--profile", "cpu"): "sets nothing: give a constant, seq_len, vocab_size (from",
    ("trial", "--prompts", "default", "--repeats", "9999"): "--repeats",
    ("trial", "--prompts", "none", "--of", GOLDEN, "--at-states", "2", "--fit"): "--fit does nothing with --at-states",
    ("compare", GOLDEN): "name two sessions or more",
    ("musings", "search", "depth", "--limit", "0"): "--limit",
    ("trial", "--prompts", "default", "--repeats", "0"): "--repeats",
    ("trial", "--prompts", "default", "--name", "a/b"): "cannot be a name",
    ("serve", "--port", "99999"): "--port",
    ("prepare", "--shards", "2"): "--shards is for --corpus climbmix: leave it out",
    ("--offline", "--data", "empty", "--script", "bare.py"): "--data does nothing for a script that reports its own",
    ("prepare", "--set", "DEPHT=6"): "train.py has no such constant",
    ("prepare", "--set", "DEPTH=x"): "--set DEPTH=x: 'x' is not a number",
    ("prepare", "--profile", "a100"): "no profile a100",
    ("init",): "is there already",
    ("sessions", "extra"): "extra",
    ("--max-usd", "0"): "--max-usd",
    ("fork", GOLDEN, "--at", "5", "--max-usd", "0"): "--max-usd",
    ("--offline", "--from", "/etc/passwd"): "no session is called",
    (*OFFLINE, "--musings", "/dev/null/x"): "/dev/null cannot be written (Not a directory): choose another folder with",
    ("prepare", "--set", "DEPTH"): "--set DEPTH: 'DEPTH' sets nothing",
    ("prepare", "--set", "seq_len=1.5"): "--set seq_len=1.5: ",
    ("prepare", "--work", "nan"): "--work",
    ("--offline", "--script", "odd/bare/train.py"): "has no work tree: clone the repository",
    ("--offline", "--script", "odd/unborn/train.py"): "has no commit yet: commit train.py first",
    ("--offline", "--script", "odd/all/link.py"): "link.py is a symbolic link",
    ("--offline", "--script", "odd/all/ignored.py"): "ignored.py does not exist in commit",
    ("--offline", "--script", "odd/all/deleted.py"): "deleted.py has edits that are not committed",
    ("--offline", "--script", "odd/all/staged.py"): "staged.py has edits that are not committed",
    ("--offline", "--script", "odd/all/null.py"): "null.py has a syntax error: source code string cannot contain null",
    ("--offline", "--script", "odd/all/pointer.py"): "pointer.py has a syntax error in line 1",
    ("--offline", "--script", "odd/sparse/left/out.py"): "left is not a folder",
    ("--offline", "--script", "odd/lost/train.py"): "git has no object",
    ("--offline", "--script", "odd/config/train.py"): "bad config line 1",
    ("--offline", "--slots", "9" * 5000): "give a number of runs, or auto",
    ("--offline", "--slots", "-1"): "give a number of runs, or auto",
    ("--offline", "--session", "a\nb"): "cannot be a name",
    ("--prompts", "."): "no agent reads",
    ("--prompts", "hidden"): "holds no prompt",
    ("--prompts", "nested"): "researcher.md:4:14: researcher.md is included, so it may include no other",
    ("--prompts", "missing"): "researcher.md:4:14: none.md is in no folder",
    ("--prompts", "key"): "mechanic.md:3:1: turns: Extra inputs are not permitted",
    ("--prompts", "zero"): "mechanic.md:2:1: max_tokens: Input should be greater than or equal to 256",
    ("--prompts", "huge"): "mechanic.md:2:1: max_tokens: Input should be less than or equal to 1000000",
    ("--prompts", "division"): "researcher.md:5:1: a prompt cannot be rendered: division by zero",
    ("--model", "cli:"): "the model's name is missing",
    ("--model", "mechanic=cli:"): "the model's name is missing",
    ("--search", "random"): "'random' is not one of",
    ("--offline", "--notify", "mailto://"): "URL",
    ("--offline", "--cluster", "127.0.0.1:x"): "give auto, HOST:PORT or ray://HOST:PORT",
    ("serve", "--host", "\udcff"): "no host has such a name",
    ("serve", "--token", "ü"): "a token is of letters",
    ("--offline", "--script", "~/train.py"): "~ is not a folder",
    ("--offline", "--script", "train.py "): "does not exist in commit",
    ("--offline", "--data", "x" * 300): "File name too long",
    ("replay", "empty.db"): "is not a session file",
    ("replay", "folder.db"): "no session is called 'folder.db'",
    ("replay", "a\x1b[31mb"): "no session is called 'a\\x1b[31mb'",
    ("replay", GOLDEN, "--show", "-1"): "--show",
    ("compare", GOLDEN, GOLDEN, "--chart", "empty"): "empty cannot be written (Is a directory)",
    ("trial", "--prompts", "default", "--of", GOLDEN): "--of and --at-states need each other",
    ("trial", "--prompts", "default", "--at-states", "1", "--of", GOLDEN): "--at-states",
    ("musings", "search", "x", "--limit", "-1"): "--limit",
    **{("--offline", "--script", f"toml/{number}/fit.py"): says for number, (_, says) in enumerate(TASKS)},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = workplace(tmp_path_factory.mktemp("evening") / "place")
    (place / "fault.py").write_text("DEPTH = = 3\n")
    (place / "binary.py").write_bytes(b"\xff\xfeLR = 1")
    (place / "broken.db").write_bytes(b"SQLite format 3\0" + b"?" * 5000)
    for name, text in (("toml/train.py", "LR = 0.1\n"), ("toml/nightshift.toml", 'comand = "x"\n')):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    (place / "bare.py").write_text("print('METRIC x=1')\n")
    (place / "tabs.py").write_text("def f():\n\tx = 1\n        y = 2\n")
    (place / "yaml").mkdir()
    (place / "yaml/researcher.md").write_text("---\nmodel: [\n---\n")
    for name, file in (("empty", ""), ("typo", "reasercher.md"), ("fault", "researcher.md")):
        (place / name).mkdir()
        if file:
            (place / name / file).write_text("---\nmodel: m\n---\nYou are it.\n<!-- opening -->\n{{ bset }}\n")
    for name, file, text in STYLES:
        (place / name).mkdir()
        (place / name / file).write_text(text)
    (place / "empty.db").touch()
    (place / "folder.db").mkdir()
    for number, (toml, _) in enumerate(TASKS):
        (place / f"toml/{number}").mkdir()
        (place / f"toml/{number}/fit.py").write_text("LR = 0.1  # 0.01..1 log\nprint('METRIC val_bpb=1')\n")
        (place / f"toml/{number}/nightshift.toml").write_text(toml)
    (place / "toml/given").mkdir()
    (place / "toml/given/nightshift.toml").write_text('editable = ["fit.py"]\n')
    (place / "toml/given/other.py").write_text("LR = 0.1  # 0.01..1 log\n")
    git(place, "add", ".")
    git(place, "commit", "-qm", "what a user has lying about")
    for name in (".gitignore", ".git"):
        (place / "toml/ignoring" / name).mkdir(parents=True)
    git(place, "branch", "research/taken")
    (place / "late.py").write_text("LR = 0.1  # 0.01..1 log\n")
    make_odd_repositories(place / "odd")
    return place


def make_repository(folder, **files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    git(folder, "init", "-q", "-b", "main")
    return folder


def make_odd_repositories(odd):
    """What git knows beside a clone with a clean work tree."""
    scripts = dict.fromkeys(("train", "deleted", "staged"), TINY)
    others = {"pointer": "version https://git-lfs.github.com/spec/v1\n", "null": "LR = 1\0\n"}
    whole = make_repository(odd / "all", **scripts, **others)
    (whole / "link.py").symlink_to("train.py")
    (whole / "left").mkdir()
    (whole / "left/out.py").write_text(TINY)
    git(whole, "add", ".")
    git(whole, "commit", "-qm", "begin")
    (whole / ".gitignore").write_text("ignored.py\n")
    (whole / "ignored.py").write_text(TINY)
    (whole / "staged.py").write_text(f"{TINY}# more\n")
    git(whole, "add", "staged.py")
    (whole / "deleted.py").unlink()
    for name in ("bare", "detached", "shallow"):
        how = {"bare": "--bare", "shallow": "--depth=1"}.get(name, "--no-tags")
        git(odd, "clone", "-q", how, f"file://{whole}", name)
    git(odd / "detached", "checkout", "-q", "--detach")
    (odd / "detached/train.py").chmod(0o755)
    git(odd / "shallow", "worktree", "add", "-q", "../beside")
    git(odd, "clone", "-q", "--no-checkout", f"file://{whole}", "sparse")
    git(odd / "sparse", "sparse-checkout", "set", "nothing")
    git(odd / "sparse", "checkout", "-q", "main")
    above = make_repository(odd / "above", readme="")
    git(above, "-c", "protocol.file.allow=always", "submodule", "add", "-q", f"file://{whole}", "below")
    make_repository(odd / "unborn", train=TINY)
    lost = make_repository(odd / "lost", train=TINY)
    git(lost, "add", ".")
    git(lost, "commit", "-qm", "begin")
    blob = git(lost, "rev-parse", "HEAD:train.py")
    (lost / ".git/objects" / blob[:2] / blob[2:]).unlink()
    (make_repository(odd / "config", train=TINY) / ".git/config").write_text("[core\n")


@pytest.mark.parametrize("script", ["detached", "shallow", "beside", "sparse", "above/below"])
def test_an_odd_repository_serves(place, script):
    script, paths = place / "odd" / script / "train.py", Options(place / "sessions", place / "data", place / "train.py")
    night = Preflight(replace(paths, script=script), "night", "optuna")
    night.check_name()
    assert night.source == TINY
    assert night.fit(night.source)


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_a_wrong_input_is_one_line(place, words, capsys):
    """In this process, since a hundred starts of Python would take longer than all else here."""
    keys = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(("ANTHROPIC_", "NIGHTSHIFT_"))}
    try:
        with contextlib.chdir(place), pytest.raises(SystemExit) as ended:
            main(words)
    finally:
        os.environ.update(keys)
    said = capsys.readouterr().err.strip()

    assert ended.value.code == 2
    assert len(said.splitlines()) == 1, said
    assert said.startswith(("nightshift: ", "prepare: "))
    assert WRONG[words] in said
    assert not (place / "sessions").exists(), "a refused start leaves nothing behind"
    assert not (place / "toml/given/third.py").exists()
    assert not (place / "toml/ignoring/train.py").exists()


def test_an_odd_environment_is_told_or_overcome(place):
    assert "There are no sessions" in orchestrate(place, "sessions", COLUMNS="0").stdout
    with begun(place, "sessions", TZ="UTC+99") as odd:
        printed, _ = odd.communicate(timeout=100)
    assert odd.returncode == 2
    assert printed.startswith("nightshift: TZ=UTC+99 is not a time zone")
    assert printed.count("\n") == 1


@pytest.mark.parametrize("url", ["localhost:8080", "http://", "ftp://x", " http://x"])
def test_an_address_that_is_none_is_said_before_it_is_asked(url, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
    assert "ANTHROPIC_BASE_URL is not an address" in credentials_error()


def test_a_folder_that_was_deleted_is_one_line(tmp_path, capsys):
    (tmp_path / "gone").mkdir()
    with contextlib.chdir(tmp_path / "gone"), pytest.raises(SystemExit) as ended:
        (tmp_path / "gone").rmdir()
        begin()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "nightshift: the folder that you are in was deleted: cd into one that exists\n"


def test_a_search_that_finds_nothing_says_so_by_its_exit_code(place, capsys):
    with contextlib.chdir(place), pytest.raises(SystemExit) as ended:
        main(["musings", "search", "zebra"])
    assert ended.value.code == 1
    assert "No musings match" in capsys.readouterr().out
    shutil.rmtree(place / "musings", ignore_errors=True)
