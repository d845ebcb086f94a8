"""Say what to do where the user's own command fails because a run lacks something that it has outside of one."""

import os
import re
from pathlib import Path

from orchestrator.lab.failures import SEARCHED, Fault
from orchestrator.repo import Repo
from prepare.files import resolve_home

_WHERE_SET = {
    "timeout": "timeout in nightshift.toml allows a run more",
    "disqualified": "`protected` in nightshift.toml can leave it out",
}
"""What settings do about a kind of failure."""
_LACKS = {
    r"\d: ([^\s:/]+): (?:command )?not found": "no run has the program {0}",
    r"name resolution|Name or service not|esolve host|is unreachable|Connect(ion)?Error|couldn.t connect|URLError": (
        "a run has no network: download before the night, and name the folder in `data`"
    ),
    r"SemLock|shm_open|torch_shm_manager": "processes that share memory need bubblewrap",
    r"not a git repository": "a run has the files that git tracks, and no .git",
    r"No module named": "python is {python}; a .venv beside the script would come first",
}
"""What no run has, by the lines that tell of it."""
_ABSENT = re.compile(r"No such file|[Nn]ot ?[Ff]ound|[Pp]ermission ?(denied|Error)|Read-only file|does not exist")
_PATH = re.compile(r"""'[^']+'|"[^"]+"|[^\s:,'"]*[./][^\s:,'"]*""")


def find_remedy(fault: Fault, log: str, work: Path, repo: Repo, python: Path) -> str:
    """Return what lets the command of a failed run do better, as far as its log tells; else an empty string."""
    if fault.kind in _WHERE_SET:
        return _WHERE_SET[fault.kind]
    lines = log.splitlines()[-SEARCHED:]
    for name in re.findall(r"No module named '(\w+(?:\.\w+)*)'", "\n".join(lines)):
        stems = [f"{folder}{name.replace('.', '/')}" for folder in ("", "src/")]
        files = [path for stem in stems for end in ("", ".py", ".*.so") for path in repo.folder.glob(stem + end)]
        for path in (str(path.relative_to(repo.folder)) for path in files):
            if not (work / repo.prefix / path).exists():
                return _find_remedy_for(path, "", work, repo)
    for pattern, words in _LACKS.items():
        if found := next(filter(None, (re.search(pattern, line) for line in lines)), None):
            return words.format(*found.groups(), python=python)
    if (wanted := re.search(r"KeyError: '(\w+)'", fault.message)) and wanted[1] in os.environ:
        return f"a run has no variable {wanted[1]}: begin the command with `{wanted[1]}=… `"
    message = next(filter(_ABSENT.search, reversed(lines)), "")
    words = (word.strip("'\"").removeprefix(f"{repo.folder}/") for word in _PATH.findall(message))
    names = filter(None, words)
    remedies = (_find_remedy_for(name, message, work, repo) for name in names)
    unnamed = "metric in nightshift.toml may name another, or a pattern" * ("without a number" in fault.message)
    return next(filter(None, remedies), unnamed)


def _find_remedy_for(name: str, message: str, work: Path, repo: Repo) -> str:
    """Return what to do about a path that a message names."""
    here, exists, parent, is_inside = work / repo.prefix, os.path.exists, name.rpartition("/")[0], name[0] != "/"
    is_data = not Path(os.path.realpath(here / name)).is_relative_to(work.resolve())
    is_denied = "ermission denied" in message
    if "Read-only" in message or (is_inside and is_data and is_denied):
        return f"a run may only read {name}: let it write elsewhere, or `protected` leave that out"
    if is_inside and is_denied:
        return "a run may execute what it makes only under bubblewrap, started by a user other than root"
    if is_inside and exists(work / name) and not exists(here / name):
        return f"a run begins in {repo.prefix}: put nightshift.toml to the top, with a command for there"
    for home, path in (("", repo.folder / name), ("~/", resolve_home(f"~/{name}"))):
        if exists(path):
            shown = home + (name if not parent or (is_inside and exists(here / parent)) else parent)
            return f'{shown} is here and in no run: data = ["{shown}"] in nightshift.toml lets it read that'
    if parent and exists(repo.folder / parent) and not (is_inside and exists(here / parent)):
        remedy = f"let the command make it, `mkdir -p {parent} && …`" if is_inside else "$TMPDIR can be written"
        return f"no run has the folder {parent}: {remedy}"
    return ""
