"""Check everything that a night needs, before anything is written."""

import ast
import asyncio
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Literal

from orchestrator.cli.options import Paths, UsageError
from orchestrator.core.events import SessionLimits
from orchestrator.core.state import State
from orchestrator.lab.repo import Repo
from orchestrator.lab.sandbox.base import NoSandbox, Sandbox
from orchestrator.lab.sandbox.select import select_sandbox
from orchestrator.optimizer.space import explain_untunable, list_tunable
from orchestrator.views.notify import Send, make_sender
from orchestrator.views.render import count
from prepare.errors import UserError
from prepare.machine import list_gpus
from prepare.manifest import BudgetAmount, Manifest, load
from prepare.profiles import apply_to_script, from_manifest
from subagents.files import find_syntax_error, list_imports
from subagents.prompts import Prompt, load_prompts

PROMPTS = Path(__file__).parent.parent.parent / "prompts"
NEEDED_BYTES = 1 << 30
"""Free disk that a night needs to start. Each run checks again (RunLimits.free_disk)."""
NAME = re.compile(r"(?!.*\.(db|lock)$)\w+([.-]\w+)*")
"""A new session's name: it becomes part of paths, of a branch, and of commands to paste into a shell."""
MAX_NAME_BYTES = 100
STARTUP = {"work": 15.0, "time": 60.0}
"""Seconds for imports, warm-up and evaluation beside the training; on GPUs, whose budget is time, for compilation."""
SHARES = (0.7, 0.95)
"""Experiments by run, at least and at most: other runs repeat, measure the noise, or certify."""
AMPLE_BYTES = 5 << 30
"""Free disk for a few hundred runs, with logs and compiler caches."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """`bad` means that it would spoil a night, `warn` that it might."""

    subject: str
    state: Literal["good", "warn", "bad"]
    message: str
    """What was found, and what to do about it."""


@dataclass
class Preflight:
    """What is about to run. Its properties raise the error that `check` returns as a value."""

    paths: Paths
    name: str
    prompts: Mapping[str, Prompt]
    """By agent; empty if the crew uses no model."""
    state: State | None = None
    """The state that the session goes on from; None for one that begins."""
    notify: str = ""
    """The Apprise URL; empty for no notifications."""
    is_new: bool = True
    """The name must still be free."""
    verify: bool = False
    """Check the data's hashes, not only its sizes."""

    @cached_property
    def repo(self) -> Repo:
        return Repo(self.paths.script, self.name)

    @cached_property
    def manifest(self) -> Manifest:
        return load(self.paths.data, verify=self.verify)

    @cached_property
    def sandbox(self) -> Sandbox:
        return NoSandbox() if self.paths.unsafe else select_sandbox()

    @property
    def send(self) -> Send:
        return make_sender(self.notify)

    def require(self) -> None:
        """Raise UsageError for the first check that is bad; print the warnings."""
        warnings: list[str] = []
        for result in self.check():
            if result.state == "bad":
                raise UsageError(result.message)
            warnings += [result.message] * (result.state == "warn")
        for warning in warnings:
            print(f"nightshift: {warning}", file=sys.stderr)

    def check(self) -> Iterator[CheckResult]:
        """Check one thing after another; the models, which need the network, come last."""
        yield _attempt("python", _describe_python)
        yield (git := _attempt("git", self._describe_repository))
        yield _attempt("session", self._describe_session)
        yield (data := _attempt("data", self._describe_data))
        if data.state == "good" and self.manifest.profile == "cpu" and list_gpus():
            remedy = "there is a GPU, but the data are for the CPU: python -m prepare --data elsewhere"
            yield CheckResult("data", "warn", remedy)
        if git.state == data.state == "good" and not self.prompts:
            yield _attempt("constants", self._describe_constants)
        if data.state == "good":
            night = SessionLimits(hours=8)
            yield _attempt("8 hours", lambda: self.estimate(night))
        yield _check_disk(self.paths.sessions)
        yield _attempt("sandbox", self._describe_sandbox)
        if self.notify:
            yield _attempt("notify", lambda: "Apprise can send to the URL" * bool(self.send))
        if self.prompts:
            yield from _check_models(self.prompts)

    def estimate(self, limits: SessionLimits) -> str:
        """Return how far a night of these limits should come, and what it should cost, in a line."""
        runs = 3600 * limits.hours / expect_run_seconds(self.manifest.budget)
        low, high = (min(round(share * runs), limits.experiments or round(runs)) for share in SHARES)
        tried = f"{low:,} to {high:,} experiments" if low < high else count(low, "experiment")
        parts = [f"about {runs:,.0f} runs", tried]
        if self.prompts:
            from subagents.prices import estimate_experiment

            costs = estimate_experiment({name: prompt.model for name, prompt in self.prompts.items()})
            dollars = [min(n * cost, limits.usd or n * cost) for n, cost in zip((low, high), costs or (), strict=False)]
            parts.append(f"${dollars[0]:.1f} to ${dollars[1]:.1f}" if dollars else "at an unknown price")
        end = datetime.now().astimezone() + timedelta(hours=limits.hours)
        return f"until {end:%H:%M}: {', '.join(parts)}"

    def _describe_repository(self) -> str:
        script = self.paths.script
        if self.state and self.state.baseline_commit:
            commit = self.state.parent.commit
            self.repo.read_source(commit)
            return f"{script} in its repository, at {commit[:10]}"
        source, head = self.repo.read_baseline(), self.repo.get_head()
        if fault := find_syntax_error(source):
            raise UsageError(f"{fault.replace('train.py', script.name, 1)}: fix it")
        if missing := find_neighbours(source, script.parent):
            raise UsageError(
                f"{script.name} imports {', '.join(missing)}, which lies beside it, but a run sees only {script.name}: "
                "move the code into it, or install it as a package"
            )
        return f"{script} in its repository, at {head[:10]}"

    def _describe_session(self) -> str:
        if not self.is_new:
            return f"{self.name} continues"
        self.check_name()
        return f"{self.name} is free, and so is the branch {self.repo.branch}"

    def check_name(self) -> None:
        """Raise UsageError or RepoError where a new session cannot have this name."""
        if not NAME.fullmatch(self.name) or len(self.name.encode()) > MAX_NAME_BYTES:
            words = "a session's name is letters and digits, with single . or - between them, and not too long"
            raise UsageError(f"{self.name!r} cannot be a name: {words}")
        if (folder := self.paths.sessions / self.name).exists():
            raise UsageError(f"there is a session in {folder} already: resume it, or choose another name")
        self.repo.check_free()

    def _describe_data(self) -> str:
        manifest, state = self.manifest, self.state
        if state and state.session.profile.data_hash != manifest.digest:
            other = f"{self.paths.data} holds other data than {state.session.name} was measured on"
            raise UsageError(f"{other}: pass the right folder with --data")
        hashes = "; all hashes match" * self.verify
        return f"{manifest.corpus} for profile {manifest.profile}, about {manifest.budget.seconds:.0f} s a run{hashes}"

    def _describe_constants(self) -> str:
        """Return what the optimizer will change, in the script that will be committed as the baseline."""
        if self.state and self.state.baseline_commit:
            source = self.repo.read_source(self.state.parent.commit)
        else:
            source = apply_to_script(self.repo.read_baseline(), from_manifest(self.manifest))
        if not (found := list_tunable(source)):
            raise UsageError(explain_untunable(source))
        return f"{len(found)} for the optimizer to search: {', '.join(found)}"

    def _describe_sandbox(self) -> str:
        return "none, because of --unsafe" if self.paths.unsafe else f"{self.sandbox.tier} passes its self-check"


def load_style(style: str, models: Sequence[str]) -> dict[str, Prompt]:
    """Load the style's prompts, each for its model. Raises PromptError, UsageError."""
    prompts = load_prompts(PROMPTS, style)
    for entry in models:
        agent, _, model = entry.rpartition("=")
        if agent and agent not in prompts:
            raise UsageError(f"--model {entry}: no agent is called {agent!r}; the agents are {', '.join(prompts)}")
        chosen = [agent] if agent else list(prompts)
        prompts |= {name: prompts[name].model_copy(update={"model": model}) for name in chosen}
    return prompts


def expect_run_seconds(budget: BudgetAmount) -> float:
    """Return the wall seconds that a run should take on the machine that the data were prepared on."""
    return STARTUP[budget.kind] + 1.25 * budget.seconds


def find_neighbours(source: str, folder: Path) -> list[str]:
    """Return the modules beside the script that it imports at the top level and that no package provides."""
    names = [name for node in ast.parse(source).body for name in list_imports(node)]
    elsewhere = [str(PROMPTS.parent), *(path for path in sys.path if Path(path).resolve() != folder.resolve())]
    heads = dict.fromkeys(name.partition(".")[0] for name in names)
    beside = [head for head in heads if (folder / f"{head}.py").is_file() or any((folder / head).glob("*.py"))]
    return [head for head in beside if PathFinder.find_spec(head, elsewhere) is None]


def _attempt(subject: str, describe: Callable[[], str]) -> CheckResult:
    """Return the description as a good result, or the error as a bad one."""
    try:
        return CheckResult(subject, "good", describe())
    except UserError as error:
        return CheckResult(subject, "bad", str(error))


def _describe_python() -> str:
    try:
        return f"{python_version()}, torch {version('torch')}"
    except PackageNotFoundError as error:
        raise UsageError("torch is not installed: pip install -e . in this folder") from error


def _check_disk(sessions: Path) -> CheckResult:
    folder = next(path for path in [sessions.absolute(), *sessions.absolute().parents] if path.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        remedy = f"{folder} cannot be written ({error.strerror}): choose another folder with --sessions"
        return CheckResult("disk", "bad", remedy)
    if free < NEEDED_BYTES:
        needed = f"a night needs at least {NEEDED_BYTES >> 20} MiB"
        return CheckResult("disk", "bad", f"only {free >> 20} MiB are free in {folder}, and {needed}: make room")
    words = f"{free / (1 << 30):.0f} GiB free for sessions; a long night may need {AMPLE_BYTES >> 30}"
    return CheckResult("disk", "good" if free > AMPLE_BYTES else "warn", words)


def _check_models(prompts: Mapping[str, Prompt]) -> Iterator[CheckResult]:
    """Check the key, each model and its price. Each is asked to call a small tool, for a fraction of a cent."""
    from subagents import prices
    from subagents.claude import Claude, connect, credentials_error

    if missing := credentials_error():
        yield CheckResult("models", "bad", missing)
        return
    for model in sorted({prompt.model for prompt in prompts.values()}):
        agents = ", ".join(name for name, prompt in prompts.items() if prompt.model == model)
        effort = next(prompt.effort for prompt in prompts.values() if prompt.model == model)
        passes, wrong = asyncio.run(Claude(connect()).check(model, effort))
        if wrong:
            yield CheckResult(model, "warn" if passes else "bad", f"{wrong} (for {agents}; --offline needs no model)")
        elif prices.estimate_most(model, 0, 0) is not None:
            yield CheckResult(model, "good", f"called a tool, and its price is known ({agents})")
        else:
            words = f"{model} called a tool, but its price is not known, so --max-usd cannot limit it ({agents})"
            yield CheckResult(model, "warn", words)
