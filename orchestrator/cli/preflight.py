"""Check everything that a night needs, before anything is written."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Literal

from orchestrator.cli.options import Paths, UsageError
from orchestrator.core.state import State
from orchestrator.lab.repo import Repo, RepoError
from orchestrator.lab.sandbox.base import NoSandbox, Sandbox
from orchestrator.lab.sandbox.select import NoSandboxError, select_sandbox
from orchestrator.optimizer.space import explain_untunable, list_tunable
from prepare.machine import list_gpus
from prepare.manifest import DataError, Manifest, load
from prepare.profiles import apply_to_script, from_manifest
from subagents.files import find_syntax_error
from subagents.prompts import Prompt, load_prompts

if TYPE_CHECKING:
    from orchestrator.views.notify import Send

PROMPTS = Path(__file__).parent.parent.parent / "prompts"
NEEDED_BYTES = 1 << 30
"""Free disk without which no night starts. Each run checks again (RunLimits.free_disk)."""
AMPLE_BYTES = 5 << 30
"""Free disk for a few hundred runs, with logs and compilers' caches."""


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
    """By agent; empty where no model is asked."""
    state: State | None = None
    """The state that the session goes on from; None for one that begins."""
    notify: str = ""
    """The Apprise URL; empty to send no word."""
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
    def send(self) -> "Send":
        return _make_sender(self.notify)

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
            remedy = "there is a GPU, but the data are for the cpu: python -m prepare --data elsewhere"
            yield CheckResult("data", "warn", remedy)
        if git.state == data.state == "good" and not self.prompts:
            yield _attempt("constants", self._describe_constants)
        yield _check_disk(self.paths.sessions)
        yield _attempt("sandbox", self._describe_sandbox)
        if self.notify:
            yield _attempt("notify", self._describe_notify)
        if self.prompts:
            yield from _check_models(self.prompts)

    def _describe_repository(self) -> str:
        script = self.paths.script
        if self.state and self.state.baseline_commit:
            commit = self.state.parent.commit
            self.repo.read_source(commit)
            return f"{script} in its repository, at {commit[:10]}"
        if fault := find_syntax_error(self.repo.read_baseline()):
            raise UsageError(f"{fault}: repair it")
        return f"{script} in its repository, at {self.repo.get_head()[:10]}"

    def _describe_session(self) -> str:
        if not self.is_new:
            return f"{self.name} goes on"
        if "/" in self.name:
            raise UsageError(f"{self.name!r} names a folder in a folder: choose a session name without /")
        if (folder := self.paths.sessions / self.name).exists():
            raise UsageError(f"there is a session in {folder} already: resume it, or choose another name")
        if self.repo.find_branch():
            raise UsageError(f"the branch {self.repo.branch} exists already: choose another name, or delete it")
        return f"{self.name} is free, and so is the branch {self.repo.branch}"

    def _describe_data(self) -> str:
        manifest, state = self.manifest, self.state
        if state and state.session.profile.data_hash != manifest.digest:
            name = state.session.name
            raise UsageError(
                f"{self.paths.data} holds other data than {name} was measured on: give its folder as --data"
            )
        hashes = "; all hashes hold" if self.verify else ""
        return f"{manifest.corpus} for profile {manifest.profile}, about {manifest.budget.seconds:.0f} s a run{hashes}"

    def _describe_constants(self) -> str:
        """Return what the optimizer will change, in the script as the baseline will be committed."""
        if self.state and self.state.baseline_commit:
            source = self.repo.read_source(self.state.parent.commit)
        else:
            source = apply_to_script(self.repo.read_baseline(), from_manifest(self.manifest))
        try:
            if not (found := list_tunable(source)):
                raise UsageError(explain_untunable(source))
        except (SyntaxError, ValueError) as error:
            raise UsageError(f"{self.paths.script} is not valid Python: {error}") from error
        return f"{len(found)} for the optimizer to search: {', '.join(found)}"

    def _describe_sandbox(self) -> str:
        if self.paths.unsafe:
            return "none, as --unsafe says"
        return f"{self.sandbox.tier} passes its self-check"

    def _describe_notify(self) -> str:
        _make_sender(self.notify)
        return "Apprise can send to the URL"


def load_style(style: str, models: Sequence[str]) -> dict[str, Prompt]:
    """Load the style's prompts, each for its model. Raises PromptError, UsageError."""
    prompts = load_prompts(PROMPTS, style)
    for entry in models:
        agent, _, model = entry.rpartition("=")
        if agent and agent not in prompts:
            raise UsageError(f"--model {entry}: no agent is called {agent!r}: there are {', '.join(prompts)}")
        chosen = [agent] if agent else list(prompts)
        prompts |= {name: prompts[name].asking(model) for name in chosen}
    return prompts


def _attempt(subject: str, describe: Callable[[], str]) -> CheckResult:
    """Return what was found as good, or the reason why it cannot be used as bad."""
    try:
        return CheckResult(subject, "good", describe())
    except (UsageError, RepoError, DataError, NoSandboxError) as error:
        return CheckResult(subject, "bad", str(error))


def _make_sender(url: str) -> "Send":
    """Make what sends to the URL; its module is slow to import. Raises UsageError."""
    from orchestrator.views.notify import NotifyError, make_sender

    try:
        return make_sender(url)
    except NotifyError as error:
        raise UsageError(str(error)) from error


def _describe_python() -> str:
    try:
        return f"{python_version()}, torch {version('torch')}"
    except PackageNotFoundError as error:
        raise UsageError("torch is not installed: pip install -e . in this folder") from error


def _check_disk(sessions: Path) -> CheckResult:
    folder = next(path for path in [sessions.absolute(), *sessions.absolute().parents] if path.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        remedy = f"{folder} cannot be written ({error.strerror}): choose another folder with --sessions"
        return CheckResult("disk", "bad", remedy)
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        needed = f"a night needs {NEEDED_BYTES >> 20} MiB"
        return CheckResult("disk", "bad", f"only {free >> 20} MiB are free in {folder}, and {needed}: make room")
    state = "good" if free > AMPLE_BYTES else "warn"
    return CheckResult(
        "disk", state, f"{free / (1 << 30):.0f} GiB free for sessions; a long night may want {AMPLE_BYTES >> 30}"
    )


def _check_models(prompts: Mapping[str, Prompt]) -> Iterator[CheckResult]:
    """Check the key, each model and its price. Asks the server; costs nothing."""
    from subagents import prices
    from subagents.claude import check_model, connect, credentials_error

    if missing := credentials_error():
        yield CheckResult("models", "bad", missing)
        return
    for model in sorted({prompt.model for prompt in prompts.values()}):
        agents = ", ".join(name for name, prompt in prompts.items() if prompt.model == model)
        if wrong := asyncio.run(check_model(connect(), model)):
            yield CheckResult(model, "bad", f"{wrong} (for {agents}; --offline needs no model)")
        elif prices.is_known(model):
            yield CheckResult(model, "good", f"answers, and its price is known ({agents})")
        else:
            words = f"{model} answers, but its price is not known: --max-usd cannot hold it back ({agents})"
            yield CheckResult(model, "warn", words)
