"""Run the user's own command on a candidate, and read the score from its output: reported, not audited.

Each run has a fresh folder with everything that git tracks at the session's first commit, and the candidate in its
place, so that no candidate changes its judge. A protected file that a run has changed nevertheless disqualifies it.
"""

import asyncio
import os
import re
import shlex
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from stat import S_ISREG
from typing import Any

from orchestrator.core import events as ev
from orchestrator.core.task import Task
from orchestrator.core.text import shorten
from orchestrator.lab.failures import MAX_MESSAGE, Fault, MachineError, find_message
from orchestrator.lab.log import NumberReader
from orchestrator.lab.monitor import ABSURD_NUMBER, RunLimits, set_limits
from orchestrator.lab.remedies import find_remedy
from orchestrator.lab.runner import Attempt, BaseRunner, Runner
from orchestrator.lab.sandbox.base import Command, list_parts
from orchestrator.lab.scoring.claims import Scorer
from orchestrator.lab.slots import Slot
from orchestrator.lab.tree import ScriptTree, check_places
from orchestrator.repo import Repo
from prepare.files import resolve_home
from prepare.manifest import compute_sha256
from subagents.logs import quote

LEAST_TIMEOUT = 600.0
"""Seconds that a run may take where no timeout is set, at least: autoresearch's own rule."""


_MAPPING = re.compile(r"^MAPPING\b.*", re.MULTILINE)
_MAPPED = re.compile(r"'([\w.]+)': '([^']+)'")
"""Where an editable install by setuptools says which module lies where, and one of these."""


def find_score(reader: NumberReader, last: str = "") -> float:
    """Return the score that was reported, lower is better. Raises Fault where none was: `last` is what was printed."""
    name, pattern = reader.metric.name, reader.metric.pattern
    if reader.fault:
        raise Fault("other", reader.fault)
    if (value := reader.numbers.get(name)) is None:
        usual = f"`METRIC {name}=1.23`, or `{name}: 1.23` below `---`"
        wanted = f"that matches {pattern!r}" if pattern else usual
        raise Fault("other", f"it ended without a number for {name}: a line {wanted}; it printed {quote(last)}")
    if not abs(value) <= ABSURD_NUMBER:
        raise Fault("NaN", f"its {name} is {value}")
    return reader.metric.sign * value if abs(value) * ABSURD_NUMBER >= 1 else 0.0  # squares of less would vanish


def find_change(before: Mapping[Path, tuple[int, str]]) -> Path | None:
    """Return one of the files, given with size and digest, that is not as it was; None if all are.

    Sizes are compared first, since a run may have put gigabytes there that cost it nothing.
    """

    def is_same(path: Path, size: int, digest: str = "") -> bool:
        with suppress(OSError):
            facts = path.lstat()
            return S_ISREG(facts.st_mode) and facts.st_size == size and (not digest or compute_sha256(path) == digest)
        return False

    resized = (path for path, (size, _) in before.items() if not is_same(path, size))
    return next(chain(resized, (path for path, facts in before.items() if not is_same(path, *facts))), None)


@dataclass(slots=True)
class TaskFolder:
    """What a run of a task sees: the tree of a commit, the folders of its data, the environment of its command."""

    task: Task
    repo: Repo
    commit: str
    others: frozenset[str] = frozenset()
    """Where no candidate may have a file: see check_places."""
    venv: Path | None = field(init=False)
    """The .venv beside the script, or above it in the repository: found once, since a run without it would be scored
    like any."""

    def __post_init__(self) -> None:
        found = (home / ".venv" for home in self._homes)
        self.venv = next((path for path in found if path.is_dir()), None)

    @property
    def python(self) -> Path:
        """The interpreter of a run: that of the .venv, or our own, which on a node of a cluster may lie elsewhere."""
        return self.venv / "bin/python" if self.venv else Path(sys.executable)

    def lay_out(self, work: Path, source: str) -> dict[Path, tuple[int, str]]:
        """Fill the folder of a run; return size and digest of what it may not change.

        Raises RepoError, MachineError, OSError.
        """
        for name in (os.path.relpath(self.python, self.repo.folder), *self.task.data):
            if not self._find_data(name).exists():  # a share or a disk that is away, a .venv that is being made anew
                raise MachineError(f"{name}, which a run needs, is not there")
        check_places(source, self.others)
        self.repo.extract(self.commit, work, source)
        if (tmp := work / "tmp").is_symlink():  # as on clusters, to a folder of the user's
            tmp.unlink()
        here = work / self.repo.prefix
        for name in self.task.data:
            link = work / name[2:] if name.startswith("~/") else here / name
            if not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(self._find_data(name))
        files, patterns = [at for at in work.rglob("*") if at.is_file() and not at.is_symlink()], self.task.protected
        names = {path: name for path in files if not self.task.is_editable(name := os.path.relpath(path, here))}
        kept = (at for at, name in names.items() if any(fnmatch(name, pattern) for pattern in patterns or "*"))
        return {path: (path.stat().st_size, compute_sha256(path)) for path in kept}

    def build_command(self, work: Path, slot: Slot, seed: int, kept: Collection[Path]) -> Command:
        """Return what runs the checks and the command in a folder that was laid out, and may not change these files."""
        task, env, python = self.task, slot.make_env(work), self.python
        whole, shown = list[Path](), list[Path]()
        if venv := self.venv:
            env |= {"VIRTUAL_ENV": str(venv), "UV_PROJECT_ENVIRONMENT": str(venv)}
            whole = [venv, venv.resolve()]
            prefixes = dict.fromkeys(path.parent.parent for path in _follow(python))
            shown += [part for prefix in prefixes if prefix not in whole for part in list_parts(prefix)]
        if uv := shutil.which("uv"):
            whole += [Path(uv), Path(uv).resolve()]
        shown += [*whole, *(self._find_data(name) for name in task.data)]
        env |= {"PATH": f"{python.parent}{os.pathsep}{env['PATH']}", "UV_NO_SYNC": "1", "UV_OFFLINE": "1"}
        env |= {name: str(seed) for name in ("NIGHTSHIFT_SEED", task.seed.get("env", "NIGHTSHIFT_SEED"))}
        given = f" {task.seed['argument']} {seed}".replace("= ", "=") if "argument" in task.seed else ""
        fails = "echo error: check {} failed: {}; exit 1"
        checks = [f"({run}\n) || {{ {fails.format(i, shlex.quote(run))}; }}" for i, run in enumerate(task.checks, 1)]
        path = f"export PYTHONPATH={shlex.quote(_find_installed(python, self._homes[-1], work))}"
        script = [f"cd {shlex.quote(str(work / self.repo.prefix))}", path, *checks, task.command.strip() + given]
        words = ("/bin/sh", "-c", "\n".join(script))
        return Command(words, env, work, (), slot.nodes, slot.cpus, tuple(shown), protected=kept, hidden=frozenset())

    @property
    def _homes(self) -> Sequence[Path]:
        """The folders from the script's up to the top of the repository."""
        return [self.repo.folder, *self.repo.folder.parents][: len(self.repo.prefix.parts) + 1]

    def _find_data(self, name: str) -> Path:
        return (self.repo.folder / resolve_home(name)).resolve()


def _follow(path: Path) -> Iterator[Path]:
    """Yield a path, where each link from it leads, and the file at the end."""
    yield path
    while path.is_symlink():
        yield (path := Path(os.path.normpath(path.parent.resolve() / path.readlink())))
    yield path.resolve()


def _find_installed(python: Path, top: Path, work: Path) -> str:
    """Return where a run has the folders of the repository that were installed editable, as a path for imports."""
    packages = [*python.parent.parent.glob("lib/python*/site-packages/*")]
    texts = {path: path.read_text(errors="replace") for path in packages if path.suffix == ".pth"}
    found = [Path(line) for text in texts.values() for line in text.splitlines() if line.startswith("/")]
    for path in (path for path in packages if fnmatch(path.name, "__editable___*_finder.py")):  # setuptools'
        for name, place in _MAPPED.findall((_MAPPING.search(path.read_text(errors="replace")) or [""])[0]):
            if place.endswith(end := "/" + name.replace(".", "/")):
                found.append(Path(place.removesuffix(end) or "/"))
    inside = [at for path in dict.fromkeys(found) if (at := path.resolve()).is_relative_to(top)]
    return os.pathsep.join(str(work / path.relative_to(top)) for path in inside)


class ReportedRunner(BaseRunner[TaskFolder]):
    """Runs the command of a task, and takes the number that it prints."""

    async def _score(self, run: Attempt) -> ev.Scored:
        try:
            return await self._run_command(run)
        except Fault as fault:
            parts = (fault, run.log, run.work, self.scorer.repo, self.scorer.python)
            if not run.granted.experiment and (remedy := find_remedy(*parts)):
                fault.message = f"{shorten(fault.message.rstrip('.'), MAX_MESSAGE - len(remedy) - 2)}; {remedy}"
            raise

    async def _run_command(self, run: Attempt) -> ev.Scored:
        task, monitor, reader = self.scorer.task, run.monitor, NumberReader(self.scorer.task.metric)
        with self._check_names(run):
            before = await asyncio.to_thread(self.scorer.lay_out, run.work, run.source)
        monitor.transcript.reader = reader
        command = self.scorer.build_command(run.work, run.slot, run.granted.seed, before)

        async def begin() -> None:
            monitor.training_began = monitor.launched

        await self._train(run, command, begin)
        run.check_ending(task.budget)
        if changed := await asyncio.to_thread(find_change, before):
            raise Fault("disqualified", f"it changed {changed.name}, which is protected")
        score, numbers = find_score(reader, find_message(run.log) or "nothing"), reader.numbers.items()
        others = {name: number for name, number in numbers if name != task.metric.name and abs(number) <= ABSURD_NUMBER}
        return ev.Scored(val_bpb=score, reported=others, would_prune_at=monitor.would_prune_at, **vars(run.result))


def set_reported_limits(task: Task) -> RunLimits:
    """Return limits by the task's own timeout; silence is not a hang, since only the user knows what a run prints.

    Nor is a large loss, which may be a sum.
    """
    wall = task.timeout or max(LEAST_TIMEOUT, 2 * task.budget)
    return RunLimits(wall=wall, quiet=2 * wall, loss=ABSURD_NUMBER)


def build_runner(
    profile: ev.SessionProfile, tree: TaskFolder | ScriptTree, share: int, data: Path, **parts: Any
) -> BaseRunner[Any]:
    """Return what trains candidates, `share` at a time here. Raises DataError."""
    if isinstance(tree, TaskFolder):
        return ReportedRunner(limits=set_reported_limits(tree.task), scorer=tree, **parts)
    return Runner(limits=set_limits(profile, share), scorer=Scorer.load(data), tree=tree, **parts)
