"""Everything that could spoil a night, looked at beforehand; each finding says what to do about it."""

import asyncio
import os
import platform
import shutil
import sys
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

from orchestrator.cli.options import UsageError
from orchestrator.lab.repo import Repo, RepoError
from orchestrator.lab.sandbox.select import NoSandboxError, select_sandbox
from prepare.manifest import DataError, load
from subagents import prices
from subagents.claude import check_model, connect, credentials_error
from subagents.prompts import Prompt

LEAST_FREE_BYTES = 1 << 30
"""Less free disk than this, and a night's logs and caches may not fit."""


def require_models(prompts: Mapping[str, Prompt], usd: float | None) -> None:
    """There is a key, a server that takes it, and each model; prices, where they matter. Raises Refused."""
    if not prompts:
        return
    if missing := credentials_error():
        raise UsageError(missing)
    for model in sorted({prompt.model for prompt in prompts.values()}):
        if found := asyncio.run(check_model(connect(), model)):
            raise UsageError(f"{found} (--offline needs no model)")
        if usd is not None and not prices.is_known(model):
            print(f"The price of {model} is not known: --max-usd cannot hold it back.", file=sys.stderr)


def require_disk(sessions: Path) -> None:
    """There is a folder that can be written, with room in it. Raises Refused."""
    there = next(path for path in [sessions.absolute(), *sessions.absolute().parents] if path.exists())
    if not os.access(there, os.W_OK):
        raise UsageError(f"{there} cannot be written: choose another folder with --sessions")
    free = shutil.disk_usage(there).free
    if free < LEAST_FREE_BYTES:
        raise UsageError(
            f"only {free >> 20} MiB are free in {there}, and a night needs {LEAST_FREE_BYTES >> 20}: make room"
        )


FREE_BYTES = 5 << 30
"""A night of a few hundred runs, with logs and compilers' caches."""
BUSY = 0.5
"""Of the cores: with more already in use, a run takes longer than expected."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """`bad` would spoil a night, `warn` might."""

    what: str
    state: Literal["good", "warn", "bad"]
    words: str


def check_machine(script: Path, data: Path, sessions: Path) -> Iterator[CheckResult]:
    """The machine, the folders, git and data."""
    yield from _check_python()
    yield from _check_repository(script)
    yield from _check_data(data)
    yield from _check_folders(sessions)
    yield from _check_hardware()
    yield from _check_sandbox()


async def check_models(prompts: Mapping[str, Prompt]) -> list[CheckResult]:
    """The key, each model and its price. Asks the server; costs nothing."""
    if missing := credentials_error():
        return [CheckResult("models", "warn", missing)]
    found: list[CheckResult] = []
    for model in sorted({prompt.model for prompt in prompts.values()}):
        agents = ", ".join(name for name, prompt in prompts.items() if prompt.model == model)
        if wrong := await check_model(connect(), model):
            found.append(CheckResult(model, "bad", f"{wrong} (for {agents})"))
        elif prices.is_known(model):
            found.append(CheckResult(model, "good", f"answers, and its price is known ({agents})"))
        else:
            found.append(
                CheckResult(model, "warn", f"answers, but its price is not known: --max-usd cannot hold ({agents})")
            )
    return found


def _check_python() -> Iterator[CheckResult]:
    try:
        yield CheckResult("python", "good", f"{platform.python_version()}, torch {version('torch')}")
    except PackageNotFoundError:
        yield CheckResult("python", "bad", "torch is not installed: pip install -e . in this folder")


def _check_repository(script: Path) -> Iterator[CheckResult]:
    try:
        repo = Repo(script, "doctor")
        repo.read_baseline()
        yield CheckResult("git", "good", f"{script} in its repository, at {repo.get_head()[:10]}")
    except RepoError as error:
        yield CheckResult("git", "bad", str(error))


def _check_data(data: Path) -> Iterator[CheckResult]:
    try:
        manifest = load(data, verify=True)
    except DataError as error:
        yield CheckResult("data", "bad", str(error))
        return
    seconds = manifest.budget.seconds
    words = f"{manifest.corpus} for profile {manifest.profile}, about {seconds:.0f} s a run; all hashes hold"
    yield CheckResult("data", "good", words)
    if _list_gpu_memory() and manifest.profile == "cpu":
        yield CheckResult(
            "data", "warn", "there is a GPU, but the data are for the cpu: python -m prepare --data elsewhere"
        )


def _check_sandbox() -> Iterator[CheckResult]:
    try:
        tier = select_sandbox().tier
    except NoSandboxError as reason:
        yield CheckResult("sandbox", "bad", str(reason))
        return
    yield CheckResult("sandbox", "good", f"{tier} holds, tried with a prisoner")


def _check_folders(sessions: Path) -> Iterator[CheckResult]:
    there = next(path for path in [sessions.absolute(), *sessions.absolute().parents] if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        yield CheckResult(
            "disk", "bad", f"{there} cannot be written ({error.strerror}): choose another with --sessions"
        )
        return
    free = shutil.disk_usage(there).free
    state = "good" if free > FREE_BYTES else "warn"
    yield CheckResult(
        "disk", state, f"{free / (1 << 30):.0f} GiB free for sessions; a long night may want {FREE_BYTES >> 30}"
    )


def _check_hardware() -> Iterator[CheckResult]:
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    busy = psutil.cpu_percent(interval=0.5) / 100
    memory = psutil.virtual_memory().available / (1 << 30)
    words = f"{cores} cores, {busy:.0%} busy; {memory:.0f} GiB of memory free"
    if busy > BUSY:
        yield CheckResult("machine", "warn", f"{words}: end what else is running, or runs take longer than expected")
    else:
        yield CheckResult("machine", "good" if memory > 2 else "warn", words)
    gpus = _list_gpu_memory()
    if not gpus:
        yield CheckResult("gpu", "good", "none; runs use the CPU")
    for name, used, total in gpus:
        state = "warn" if used > total // 4 else "good"
        yield CheckResult("gpu", state, f"{name}, {used >> 20} of {total >> 20} MiB in use")
    if gpus:
        yield check_compiler(Path(sysconfig.get_path("include")), os.environ.get("PATH", os.defpath))


def check_compiler(headers: Path, path: str) -> CheckResult:
    """What torch needs to compile for a GPU: a C compiler on the path, and Python's headers."""
    found = shutil.which("gcc", path=path) or shutil.which("clang", path=path)
    lacking = ["C compiler"] * (not found) + [str(headers / "Python.h")] * (not (headers / "Python.h").exists())
    if lacking:
        words = f"no {' and no '.join(lacking)}: every run would fail (on Debian: apt install gcc python3-dev)"
        return CheckResult("compiler", "bad", words)
    return CheckResult("compiler", "good", f"{found}, as torch needs it for a GPU")


def _list_gpu_memory() -> list[tuple[str, int, int]]:
    """Name, bytes in use and bytes in all, of each."""
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        memory = [(handle, pynvml.nvmlDeviceGetMemoryInfo(handle)) for handle in handles]
        return [(str(pynvml.nvmlDeviceGetName(handle)), int(m.used), int(m.total)) for handle, m in memory]
    return []
