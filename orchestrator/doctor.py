"""Everything that could spoil a night, looked at beforehand; each finding says what to do about it."""

import os
import platform
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil
import pynvml

from orchestrator.lab.ladder import NoSandboxWorks, choose
from orchestrator.lab.repo import Repo, RepoError
from prepare.manifest import DataError, load
from subagents import prices
from subagents.claude import connect, key_missing, trouble
from subagents.prompts import Prompt

FREE_BYTES = 5 << 30
"""A night of a few hundred runs, with logs and compilers' caches."""
BUSY = 0.5
"""Of the cores: with more already in use, a run takes longer than expected."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`bad` would spoil a night, `warn` might."""

    what: str
    state: Literal["good", "warn", "bad"]
    words: str


def examine(script: Path, data: Path, sessions: Path) -> Iterator[Finding]:
    """The machine, the folders, git and data."""
    yield from _python()
    yield from _repository(script)
    yield from _data(data)
    yield from _folders(sessions)
    yield from _machine()
    yield from _sandbox()


async def examine_models(prompts: Mapping[str, Prompt]) -> list[Finding]:
    """The key, each model and its price. Asks the server; costs nothing."""
    if missing := key_missing():
        return [Finding("models", "warn", missing)]
    found: list[Finding] = []
    for model in sorted({prompt.model for prompt in prompts.values()}):
        agents = ", ".join(name for name, prompt in prompts.items() if prompt.model == model)
        if wrong := await trouble(connect(), model):
            found.append(Finding(model, "bad", f"{wrong} (for {agents})"))
        elif prices.known(model):
            found.append(Finding(model, "good", f"answers, and its price is known ({agents})"))
        else:
            found.append(
                Finding(model, "warn", f"answers, but its price is not known: --max-usd cannot hold ({agents})")
            )
    return found


def _python() -> Iterator[Finding]:
    try:
        yield Finding("python", "good", f"{platform.python_version()}, torch {version('torch')}")
    except PackageNotFoundError:
        yield Finding("python", "bad", "torch is not installed: pip install -e . in this folder")


def _repository(script: Path) -> Iterator[Finding]:
    try:
        repo = Repo(script, "doctor")
        repo.baseline()
        yield Finding("git", "good", f"{script} in its repository, at {repo.head()[:10]}")
    except RepoError as error:
        yield Finding("git", "bad", str(error))


def _data(data: Path) -> Iterator[Finding]:
    try:
        manifest = load(data, verify=True)
    except DataError as error:
        yield Finding("data", "bad", str(error))
        return
    seconds = manifest.budget.seconds
    words = f"{manifest.corpus} for profile {manifest.profile}, about {seconds:.0f} s a run; all hashes hold"
    yield Finding("data", "good", words)
    if _gpus() and manifest.profile == "cpu":
        yield Finding(
            "data", "warn", "there is a GPU, but the data are for the cpu: python -m prepare --data elsewhere"
        )


def _sandbox() -> Iterator[Finding]:
    try:
        tier = choose().tier
    except NoSandboxWorks as reason:
        yield Finding("sandbox", "bad", str(reason))
        return
    yield Finding("sandbox", "good", f"{tier} holds, tried with a prisoner")


def _folders(sessions: Path) -> Iterator[Finding]:
    there = next(path for path in [sessions.absolute(), *sessions.absolute().parents] if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        yield Finding("disk", "bad", f"{there} cannot be written ({error.strerror}): choose another with --sessions")
        return
    free = shutil.disk_usage(there).free
    state = "good" if free > FREE_BYTES else "warn"
    yield Finding(
        "disk", state, f"{free / (1 << 30):.0f} GiB free for sessions; a long night may want {FREE_BYTES >> 30}"
    )


def _machine() -> Iterator[Finding]:
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    busy = psutil.cpu_percent(interval=0.5) / 100
    memory = psutil.virtual_memory().available / (1 << 30)
    words = f"{cores} cores, {busy:.0%} busy; {memory:.0f} GiB of memory free"
    if busy > BUSY:
        yield Finding("machine", "warn", f"{words}: end what else is running, or runs take longer than expected")
    else:
        yield Finding("machine", "good" if memory > 2 else "warn", words)
    gpus = _gpus()
    if not gpus:
        yield Finding("gpu", "good", "none; runs use the CPU")
    for name, used, total in gpus:
        state = "warn" if used > total // 4 else "good"
        yield Finding("gpu", state, f"{name}, {used >> 20} of {total >> 20} MiB in use")
    if gpus:
        yield compiler(Path(sysconfig.get_path("include")), os.environ.get("PATH", os.defpath))


def compiler(headers: Path, path: str) -> Finding:
    """What torch needs to compile for a GPU: a C compiler on the path, and Python's headers."""
    found = shutil.which("gcc", path=path) or shutil.which("clang", path=path)
    lacking = ["C compiler"] * (not found) + [str(headers / "Python.h")] * (not (headers / "Python.h").exists())
    if lacking:
        words = f"no {' and no '.join(lacking)}: every run would fail (on Debian: apt install gcc python3-dev)"
        return Finding("compiler", "bad", words)
    return Finding("compiler", "good", f"{found}, as torch needs it for a GPU")


def _gpus() -> list[tuple[str, int, int]]:
    """Name, bytes in use and bytes in all, of each."""
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        memory = [(handle, pynvml.nvmlDeviceGetMemoryInfo(handle)) for handle in handles]
        return [(str(pynvml.nvmlDeviceGetName(handle)), int(m.used), int(m.total)) for handle, m in memory]
    return []
