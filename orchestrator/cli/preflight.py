"""Check everything that a night needs, before anything is written."""

import asyncio
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from functools import cached_property
from importlib.metadata import version
from itertools import chain, product
from os.path import normpath, relpath
from pathlib import Path
from platform import python_version
from typing import Any, Literal

import typer

from orchestrator.cli.options import PLACES, Options, UsageError, read_session
from orchestrator.cli.task_file import KEYS, PROGRAM_CHARACTERS, find_task
from orchestrator.cli.task_file import NAME as TASK_FILE
from orchestrator.cluster import connect, plan_shares
from orchestrator.core.events import Kept, Origin, SessionLimits
from orchestrator.core.seeds import VARIABLE, with_assigned_seed, with_literal_seed
from orchestrator.core.source import compute_digest, diff
from orchestrator.core.state import Decided, State
from orchestrator.core.task import EXAMINED, Task
from orchestrator.core.text import count, shorten
from orchestrator.lab.reported import TaskFolder
from orchestrator.lab.sandbox.base import NoSandbox, Sandbox
from orchestrator.lab.sandbox.select import NoSandboxError, select_sandbox
from orchestrator.lab.tree import ScriptTree, find_forgotten
from orchestrator.optimizer.space import explain_unsearchable, explain_untunable, find_fixed, list_tunable
from orchestrator.policy.limits import explain_end
from orchestrator.policy.thresholds import FINISH_MARGIN
from orchestrator.ports import Log
from orchestrator.repo import Repo, RepoError
from orchestrator.views.notify import make_sender
from orchestrator.views.output import print_safely
from prepare.build.calibration import read_baseline
from prepare.command import UserError, write_command
from prepare.constants import list_misread, read_values, with_originals
from prepare.files import list_by_age
from prepare.machine import Gpu, count_cores, count_roomy_cores, filter_model, list_gpus
from prepare.manifest import BudgetAmount, Manifest, load
from prepare.profiles import Profile, apply_to_script, from_manifest
from prepare.tree import split_files
from subagents import PromptError
from subagents.files import find_syntax_error
from subagents.prompts import PREFIX, Prompt, load_prompts, parse_prompt

PROMPTS = next(path for path in (at / "prompts" for at in Path(__file__).parents[1:]) if path.is_dir())
"""In a wheel they lie in the package, else at the top of the repository."""
NEEDED_BYTES = 1 << 30
"""Free disk that a night needs to start. Each run checks again (RunLimits.free_disk)."""
NAME = re.compile(r"(?!.*\.(db|lock)$)\w+([.-]\w+)*")
"""A new session's name: it becomes part of paths, of a branch, and of commands to paste into a shell."""
MAX_NAME_BYTES = 100
STARTUP = {"work": 15.0, "time": 60.0}
"""Seconds for imports, warm-up and evaluation beside the training; on GPUs, whose budget is time, for compilation."""
SHARES = (0.7, 0.95)
"""Experiments by run, at least and at most: other runs repeat, measure the noise, or certify."""
AMPLE_BYTES = 5 << 30  # free disk for a few hundred runs, with logs and compiler caches


@dataclass(frozen=True, slots=True)
class CheckResult:
    """`bad` means that it would spoil a night, `warn` that it might."""

    subject: str
    state: Literal["good", "warn", "bad"]
    message: str  # what was found, and what to do about it


@dataclass
class Preflight:
    """What is about to run. Its properties raise the error that `check` returns as a value."""

    options: Options
    name: str
    crew: str
    limits: SessionLimits = field(default_factory=lambda: SessionLimits(hours=8))
    state: State | None = None  # the state that the session goes on from; None for one that begins
    session: Log | None = None
    """The session that is resumed; None for a new one, whose name must still be free."""
    recorded: Mapping[str, Prompt] = field(default_factory=dict[str, Prompt])
    """What a fork goes on with, except their models, which its options name; without any, it has those of a style."""
    verify: bool = False  # check the data's hashes, not only its sizes
    find_gpus: Callable[[], list[Gpu]] = list_gpus

    @cached_property
    def commit(self) -> str:
        """Where the session begins, whatever the user commits while this checks; empty where there is no commit."""
        with suppress(RepoError):  # which is told elsewhere
            return self.state.session.commit if self.state else Repo(self.options.script, self.name).get_start()
        return ""

    @cached_property
    def task(self) -> Task:
        """How runs are scored, and given their seeds: also a script that reads the variable, or has fixed its seed."""
        task, own = self.state.session.task if self.state else find_task(self.options.script), ""
        if task.is_reported and "data" in self.options.given:
            raise UsageError("--data does nothing for a script that reports its own score: leave it out")
        if self.state:
            return task if self.options.own else check_foreign(task, self.options.script)
        is_read = False
        if task.is_reported and self.options.fit is not None:
            raise UsageError("--fit and --no-fit do nothing for a script that reports its own score: leave them out")
        with suppress(RepoError):  # which is told elsewhere
            repo = Repo(self.options.script, self.name, task, self.commit)
            own, is_read = repo.read_baseline(), repo.has_mention(VARIABLE)
        is_read = is_read or VARIABLE in own + task.command or self.assign_seed(own, task) != own
        reads = task.is_reported and is_read
        found: dict[str, Any] = {"fixed": find_fixed(own, task.command)} if task.is_reported else {}
        if reads and not task.seed:
            found["seed"] = {"env": VARIABLE}
        return task.model_copy(update=found)

    @cached_property
    def prompts(self) -> Mapping[str, Prompt]:
        """By agent: those that a session has recorded, else the style's; empty if the crew uses no model."""
        if self.session:
            return check_programs(read_prompts(self.session), self.options.programs)
        own = self.options
        if self.crew == "optuna":
            return {}
        style = load_style("default" if self.recorded else own.prompts, None, self.task)  # older forks lack an agent
        bare = {
            name: self.recorded.get(name, plain).model_copy(update={"model": plain.model, "fallback": plain.fallback})
            for name, plain in style.items()
        }
        return choose_models(bare, own.model, own.fallback)

    @cached_property
    def repo(self) -> Repo:
        return Repo(self.options.script, self.name, self.task, self.commit)

    @cached_property
    def beginning(self) -> tuple[Origin, str] | None:
        """The best script of another session, and its text as it is trained here; None for the user's own."""
        if not (origin := self.options.origin):
            return None
        with read_session(self.options, origin) as session:
            state, name = session.state, session.state.session.name
            task = state.session.task
            if not state.parents:
                raise UsageError(f"--from {origin}: {name} has no baseline yet")
            if (task.form, task.editable) != (self.task.form, self.task.editable):
                files = [", ".join(each.editable) or "a script" for each in (task, self.task)]
                raise UsageError(f"--from {origin}: {name} changed {files[0]}, and here {files[1]} may change")
            best, base = (session.get(commit.source) for commit in (state.parent, state.parents[0]))
        if not self.task.is_reported and self.options.fit is not False:
            profile = from_manifest(self.manifest)
            fitted = apply_to_script(base, profile)
            if self.profile or fitted == apply_to_script(read_baseline(), profile):
                best = with_originals(best, base, fitted)  # values that the session changed itself stay
        best = self.assign_seed(with_literal_seed(best), self.task)
        commit, source = state.parent.commit, compute_digest(best)
        return Origin(session=name, experiment=state.best, commit=commit, source=source), best

    @property
    def parent(self) -> str:
        """The commit that a session goes on from; empty for one that has no baseline yet."""
        return self.state.parent.commit if self.state and self.state.parents else ""

    @cached_property
    def source(self) -> str:
        """The script that the next experiment is edited from."""
        if self.parent:
            return self.repo.read_source(self.parent)
        own = self.own if self.state else self.repo.read_baseline()
        return self.beginning[1] if self.beginning else own

    @property
    def own(self) -> str:
        """The user's script in the commit that the session begins at, whatever was done to it since."""
        return self.repo.read_source(self.repo.get_start())

    @cached_property
    def tree(self) -> TaskFolder | ScriptTree:
        """What a run sees of the repository, as it was when the session began. Raises RepoError."""
        script, repo, commit = self.options.script, self.repo, self.repo.get_start()
        begins = split_files(self.source) if self.parent or self.beginning else {}  # a keep may have added files
        others = frozenset(repo.list_others(begins) if repo.task.has_tree else ())
        if self.task.is_reported:
            return TaskFolder(self.task, repo, commit, others)
        python = EXAMINED.model_copy(update={"editable": ("*.py", script.name)})
        files = split_files(Repo(script, self.name, python).read_source(commit))
        modules = {path: text for path, text in files.items() if not repo.task.is_editable(path)}
        return ScriptTree(repo.task, modules, others)

    @property
    def venv(self) -> str:
        """The .venv of runs, from the script's folder; empty where they have our own packages."""
        found = self.tree.venv if isinstance(self.tree, TaskFolder) else None
        return relpath(found, self.repo.folder) if found else ""

    @cached_property
    def manifest(self) -> Manifest:
        return load(self.options.data, verify=self.verify)

    @cached_property
    def sandbox(self) -> Sandbox:
        return NoSandbox() if self.options.unsafe else select_sandbox()

    @property
    def profile(self) -> Profile | None:
        """Whose constants replace the script's: by default where it has those of our train.py."""
        if self.task.is_reported:
            return None
        profile = from_manifest(self.manifest)
        own, default = (read_values(source) for source in (self.own, read_baseline()))
        is_untuned = all(own.get(name) == default.get(name) for name in profile.constants)
        return profile if self.options.fit or (is_untuned and self.options.fit is None) else None

    def assign_seed(self, source: str, task: Task) -> str:
        """Return a script with the seed of its run in place of one that it fixes, unless the user keeps that."""
        return source if self.options.keep_seed else with_assigned_seed(source, task)

    @property
    def keeps_seed(self) -> bool:
        """Whether runs have a seed that the script fixes."""
        own = with_literal_seed(self.source)
        return self.options.keep_seed and own != with_assigned_seed(own, self.task)

    def fit(self, own: str) -> str:
        """Return the user's script as it is trained."""
        fitted = apply_to_script(own, self.profile) if self.profile else own
        return self.assign_seed(fitted, self.task)

    def require(self) -> None:
        """Raise UsageError for the first check that is bad; print the warnings."""
        if is_asked := sys.stdin is not None and sys.stdin.isatty():
            self.ask_for_trust(typer.confirm)
        warnings: list[CheckResult] = []
        for result in self.check():
            if result.state == "bad":
                raise UsageError(result.message)
            warnings += [result] * (result.state == "warn")
        for warning in warnings:
            print_safely(f"nightshift: {warning.message}", sys.stderr)
        if is_asked and "constants" in (warning.subject for warning in warnings):
            self.ask_to_fit(typer.confirm)

    def ask_for_trust(self, confirm: Callable[[str], bool]) -> None:
        """Where no sandbox works, as on macOS, go on without one if the user says so."""
        try:
            _ = self.options.cluster or self.sandbox
        except NoSandboxError as error:
            if confirm(f"{error}.\nTrain without a sandbox?"):
                self.options = replace(self.options, unsafe=True)

    def ask_to_fit(self, confirm: Callable[[str], bool]) -> None:
        """Where the user's constants are not the profile's, which was shown, let the user choose, once for a script."""
        if self.options.fit is None and self.options.memory and not self.profile:
            found = list_by_age(self.options.sessions.glob(f"[!.]*/{PLACES}"))
            told = [at for at in map(self.options.recall, (path.parent for path in found)) if at.fit is not None]
            fit = {at.script.resolve(): at.fit for at in told}.get(self.options.script.resolve())
            question = f"Train with those of profile {self.manifest.profile}?"
            if fit is not None:
                print(f"{question} {'Yes' if fit else 'No'}, as before (--fit, --no-fit)", file=sys.stderr)
            self.options = replace(self.options, fit=confirm(question) if fit is None else fit)

    def check(self) -> Iterator[CheckResult]:
        """Check one thing after another; the models, which need the network, come last."""
        if (prompts := _attempt("prompts", lambda: ", ".join(self.prompts))).state == "bad":
            yield prompts
        yield _attempt("python", lambda: f"{python_version()}, torch {version('torch')}")
        yield (git := _attempt("git", self._describe_repository))
        yield _attempt("session", self._describe_session)
        if lacks := explain_unsearchable(self.options.search):
            yield CheckResult("search", "bad", lacks)
        yield (data := _attempt("scores", lambda: Task.describe(self.task)))
        if data.state == "good" and not self.task.is_reported:
            yield (data := _attempt("data", self._describe_data))
            if data.state == "good" and self.manifest.profile == "cpu" and self.find_gpus():
                command = write_command("prepare", "--data", "elsewhere")
                yield CheckResult("data", "warn", f"there is a GPU, but the data are for the CPU: {command}")
        if self.state and data.state == "good" and self.task.is_reported:
            yield from self._check_task_file()
        if git.state == data.state == "good":
            yield from chain(self._check_tree(), self._check_seed(), self._check_constants())
        if data.state == "good":
            yield (slots := _attempt("slots", lambda: f"{count(self.count_slots(), 'run')} at a time"))
            if slots.state == prompts.state == "good":
                yield _attempt(f"{self.limits.hours:g} hours", self.estimate)
            if self.state and not self.session:
                own = self.state.session.model_copy(update={"limits": self.limits, "certifies": False})
                if reason := explain_end(replace(self.state, started=own)):
                    words = "--hours, --max-experiments and --max-usd count from it on"
                    yield CheckResult("limits", "warn", f"this fork would end at once: {reason} ({words})")
        yield _check_disk(self.options)
        tier = "each node of the cluster selects its own" if self.options.cluster else ""
        if self.options.unsafe:
            yield CheckResult("sandbox", "warn", "runs train without a sandbox, because of --unsafe")
        else:
            yield _attempt("sandbox", lambda: tier or f"{self.sandbox.tier} passes its self-check")
        if url := self.options.notify:
            yield _attempt("notify", lambda: "Apprise can send to the URL" * bool(make_sender(url)))
        if prompts.state == "good" and self.prompts:
            yield from _check_models(self.prompts)

    def _check_task_file(self) -> Iterator[CheckResult]:
        """Yield what has changed in nightshift.toml, where the session goes on with what it began with."""
        with suppress(UsageError):
            now = find_task(self.options.script)
            if changed := sorted(key for key in KEYS - {"seed"} if getattr(now, key) != getattr(self.task, key)):
                words = "as at the beginning of the session, not as it is now: a new night takes that over"
                yield CheckResult(TASK_FILE, "warn", f"{', '.join(changed)} {words}")

    def estimate(self) -> str:
        """Return how far the night should come, and what it should cost, in a line. Raises UsageError."""
        slots, task, limits = self.count_slots(), self.task, self.limits
        usual = 1.25 * task.budget if task.is_reported else expect_run_seconds(self.manifest.budget, self.places[1])
        if not self.state and 3600 * limits.hours < FINISH_MARGIN * usual:
            words = f"--hours {limits.hours:g}: a night must be longer than one run of about {usual:.0f} s"
            raise UsageError(words + ": give its budget in nightshift.toml, if it takes less" * task.is_reported)
        runs = slots * 3600 * limits.hours / usual
        low, high = (min(round(share * runs), limits.experiments or round(runs)) for share in SHARES)
        tried = f"{low:,} to {count(high, 'experiment')}" if low < high else count(low, "experiment")
        usable = [] if self.options.cluster else self.list_gpus()
        idle, others = len(usable) - slots, len(self.find_gpus()) - len(usable) if usable else 0
        parts = [*[f"about {count(round(runs), 'run')}"] * (low < high), tried]
        parts += [f"{count(idle, 'GPU')} idle (--slots auto trains on all)"] * (idle > 0)
        parts += [f"{count(others, 'GPU')} of other models unused (choose by CUDA_VISIBLE_DEVICES)"] * (others > 0)
        if self.prompts:
            from subagents.prices import estimate_experiment

            costs = estimate_experiment({name: prompt.model for name, prompt in self.prompts.items()})
            dollars = [min(n * cost, limits.usd or n * cost) for n, cost in zip((low, high), costs or (), strict=False)]
            parts.append(f"${dollars[0]:.1f} to ${dollars[1]:.1f}" if dollars else "at an unknown price")
        end = datetime.now().astimezone() + timedelta(hours=limits.hours)
        return f"until {end:%H:%M}: {', '.join(parts)}"

    def _describe_repository(self) -> str:
        folder, here = self.state.session.folder if self.state else "", str(self.repo.prefix)
        if folder not in {"", here}:  # which older sessions did not record
            raise UsageError(
                f"{self.name} is of the folder {folder} of its repository: give the script there, not in {here}"
            )
        script, source, commit = self.repo.script, self.source, self.parent or self.repo.get_start()
        files = {name or script.name: text for name, text in split_files(source).items()}
        for name, text in files.items() if not self.parent else ():
            if name.endswith(".py") and (fault := find_syntax_error(text, name)):
                raise UsageError(f"{fault}: fix it")
        seen = self._seen
        if not self.parent and (missing := find_forgotten(seen or files, self.repo.list_untracked())):
            remedy = self.repo.write_command("add", *missing)
            words = f"imports {', '.join(missing)}, which is not committed: `{remedy}`, then commit"
            raise UsageError(f"{script.name} {words}")
        there = self.repo.list_committed() if seen and not self.parent else ()
        if linked := find_forgotten(seen, (at for at in there if (self.repo.home / at).is_symlink())):
            words = f"imports {', '.join(linked)}, which is a symbolic link, and a run follows none"
            raise UsageError(f"{script.name} {words}: commit the file in its place")
        if self.task.is_reported:
            self.repo.check_whole()
        return f"{', '.join(str(self.repo.home / name) for name in files)} in its repository, at {commit[:10]}"

    @property
    def _seen(self) -> Mapping[str, str]:
        """The files of the baseline's run by path; none in reported form, where it sees all that is committed."""
        return self.tree.select(self.source) if isinstance(self.tree, ScriptTree) else {}

    def _check_tree(self) -> Iterator[CheckResult]:
        """Check what lies here and in no run: edits, except those of data and of what the start itself reads."""
        seen = {str(self.repo.prefix / name) for name in self._seen}
        beside = (*self.task.data, "nightshift.toml", "program.md")
        shown = tuple(f"{normpath(self.repo.prefix / at)}/" for at in beside)
        unseen = [name for name in self.repo.list_changed() if self.task.is_reported or name in seen]
        if unseen := sorted(name for name in unseen if not f"{name}/".startswith(shown)):
            words = "take no part: a run sees what is committed"
            yield CheckResult("git", "warn", f"uncommitted changes of {shorten(', '.join(unseen), 200)} {words}")
        if absent := [*self.repo.list_absent()] if self.task.is_reported else []:
            which = "what git tracks as a submodule, by a filter, as LFS, or as a link that leads out is in no run"
            words = f"data = {shorten(json.dumps(absent, ensure_ascii=False), 200)} in nightshift.toml"
            yield CheckResult("git", "warn", f"{which}: {words} shows it as it lies here")
        if Path(TASK_FILE).is_file() and not self.options.script.with_name(TASK_FILE).is_file():
            words = f"{TASK_FILE} is not read: it does not lie beside {self.options.script}"
            yield CheckResult("scores", "warn", words)
        if len(self.task.program) == PROGRAM_CHARACTERS:
            words = f"{PROGRAM_CHARACTERS:,} characters of program.md are read, and no more"
            yield CheckResult("scores", "warn", words)
        files = split_files(self.source) if self.task.has_tree else {}
        if idle := [at for at in self.task.editable if files and not any(fnmatchcase(name, at) for name in files)]:
            yield CheckResult("git", "warn", f"no committed file is {' or '.join(idle)}, which is editable")
        there = self.repo.list_committed() if self.task.protected and not self.state else []
        if idle := [at for at in self.task.protected if there and not any(fnmatchcase(name, at) for name in there)]:
            words = f"{TASK_FILE}: no committed file is {' or '.join(idle)}, which is protected"
            yield CheckResult("git", "bad", f"{words}: name files of the repository, or folders")

    def _describe_session(self) -> str:
        had, has = self.options.venv, self.venv
        if had is not None and had != has:  # scores by other packages would be compared with those that are recorded
            before, now = (f"the packages of {at or 'Nightshift itself'}" for at in (had, has))
            raise UsageError(f"earlier runs had {before}, and now they would have {now}: put .venv back as it was")
        if self.session:
            if (state := self.session.state).parents:
                known = [commit.commit for number, commit in state.parents.items() if number != state.best]
                decided = [stage for stage in state.open.values() if isinstance(stage, Decided)]
                is_due = any(isinstance(stage.verdict, Kept) and not stage.promoted for stage in decided)
                self.repo.check_kept([*known, state.parent.commit], is_due=is_due)
            return f"{self.name} continues"
        self.check_name()
        return f"{self.name} is free, and so is the branch {self.repo.branch}"

    def check_name(self) -> None:
        """Raise UsageError or RepoError where a new session cannot have this name."""
        if not NAME.fullmatch(self.name) or len(self.name.encode()) > MAX_NAME_BYTES:
            words = "a session's name is letters and digits, with single . or - between them, and not too long"
            raise UsageError(f"{self.name!r} cannot be a name: {words}")
        if (folder := self.options.sessions / self.name).exists():
            raise UsageError(f"there is a session in {folder} already: resume it, or choose another name")
        if any((pages := self.options.musings / self.name).glob("[0-9]*.md")):
            # agents would read them as this night's
            words = f"holds pages of an earlier session called {self.name}: move them away, or choose another name"
            raise UsageError(f"{pages} {words}")
        self.repo.check_free()

    def list_gpus(self) -> list[Gpu]:
        """Return the GPUs that runs can use, of one model: none where the data are for the CPU. Raises UsageError."""
        if not self.task.is_reported and self.manifest.profile == "cpu":
            return []
        found, before = self.find_gpus(), self.state.session.gpu if self.state else ""
        if before and not filter_model(found, before):
            here = ", ".join(sorted({gpu.model for gpu in found})) or "no GPU"
            raise UsageError(f"{self.name} was measured on {before}, and compares with no other: here is {here}")
        return filter_model(found, before)

    @property
    def gpu(self) -> str:
        """The model of GPU that all runs use, as it is recorded; empty where there is none."""
        here = [] if self.options.cluster else self.list_gpus()
        return here[0].model if here else self.places[2].get("accelerator_type", "")

    @cached_property
    def places(self) -> tuple[int, int, dict[str, Any]]:
        """Runs at a time, those on one machine, and the options of each on a cluster. Raises UserError."""
        if not self.options.cluster:
            return (here := self.count_slots()), here, {}
        nodes = [node["Resources"] for node in connect(self.options.cluster).nodes() if node["Alive"]]
        cpu = not self.task.is_reported and self.manifest.profile == "cpu"
        model, wanted = (self.state.session.gpu, self.state.session.slots) if self.state else ("", self.options.slots)
        return plan_shares(nodes, str(wanted), model, cpu=cpu, fewer=bool(self.state))

    def count_slots(self) -> int:
        """Return the number of runs at a time. Raises UsageError where the machine has no room for so many."""
        if self.options.cluster:
            return self.places[0]
        gpus, wanted = len(self.list_gpus()), str(self.state.session.slots) if self.state else self.options.slots
        if wanted == "auto":
            is_timed = self.task.is_reported or self.manifest.budget.kind == "time"  # then runs disturb each other
            return gpus or (1 if is_timed else count_roomy_cores())
        if not re.fullmatch(r"0*[1-9]\d{0,5}", wanted):
            raise UsageError(f"--slots {wanted}: give a number of runs, or auto")
        most, what = (gpus, "GPU") if gpus else (count_cores(), "core")
        if int(wanted) > most:
            raise UsageError(f"{wanted} slots need as many {what}s, and {most} may be used here")
        return int(wanted)

    def _describe_data(self) -> str:
        manifest, state = self.manifest, self.state
        if state and state.session.profile.data_hash != manifest.digest:
            other = f"{self.options.data} holds other data than {state.session.name} was measured on"
            raise UsageError(f"{other}: pass the right folder with --data")
        hashes = "; all hashes match" * self.verify
        name = from_manifest(manifest).name
        return f"{manifest.corpus} for profile {name}, about {manifest.budget.seconds:.0f} s a run{hashes}"

    def _check_seed(self) -> Iterator[CheckResult]:
        """Check whether the baseline fixes its seed, and show what is trained instead."""
        own = with_literal_seed(self.source)
        if self.parent or not (change := diff(own, with_assigned_seed(own, self.task), 0)):
            return
        words = f"each run reads its own, commits keep yours (--keep-seed: runs, too)\n{change}"
        if self.options.keep_seed:
            words = "--keep-seed leaves it, and no run tells the noise of seeds"
        yield CheckResult("seed", "warn", f"{self.repo.script.name} has a fixed seed: {words}")

    def _check_constants(self) -> Iterator[CheckResult]:
        """Check what the profile sets, and in the baseline that results what the optimizer will change."""
        source, change = self.source, ""
        if not (self.parent or self.beginning or self.task.is_reported or self.options.fit is False):
            change = diff(source, apply_to_script(source, from_manifest(self.manifest)), 0)
        if change:
            name, source = self.manifest.profile, self.fit(source)
            whose = f"those of profile {name}, commits keep yours (--no-fit: runs, too)"
            whose = whose if self.profile else f"yours; with --fit, those of profile {name}"
            words = f"constants of {self.repo.script.name}: runs have {whose}\n{change}"
            yield CheckResult("constants", "warn", words)
        if misread := list_misread(source):
            words = "write low..high, low..high log or one of A, B, and a dash with spaces around it before other words"
            yield CheckResult("ranges", "warn", f"not read as ranges: {shorten('; '.join(misread), 300)}: {words}")
        if self.crew == "optuna":
            is_old = bool(self.state) and not self.state.session.rule.as_declared
            found = list_tunable(source, self.task.is_reported, self.task.fixed, is_old=is_old)
            words = f"{len(found)} for the optimizer to search: {', '.join(found)}"
            words = words if found else explain_untunable(source, self.repo.script.name)
            yield CheckResult("constants", "good" if found else "bad", words)


def load_style(
    style: str, models: Sequence[str] | None, task: Task = EXAMINED, fallbacks: Sequence[str] | None = None
) -> dict[str, Prompt]:
    """Load the style's prompts for the task, each for its model. Raises PromptError, UsageError."""
    prompts = load_prompts(PROMPTS, style, "default/reported" if task.is_reported else "default")
    return choose_models(prompts, models, fallbacks)


def choose_models(
    prompts: dict[str, Prompt], models: Sequence[str] | None, fallbacks: Sequence[str] | None
) -> dict[str, Prompt]:
    """Return the prompts, each for the model that options give it. Raises UsageError."""
    for which, entry in [*product(["model"], models or ()), *product(["fallback"], fallbacks or ())]:
        is_for_one = "=" in entry and not entry.startswith(PREFIX)
        agent, _, model = entry.partition("=") if is_for_one else ("", "", entry)
        if not model.removeprefix(PREFIX).strip():
            raise UsageError(f"--{which} {entry}: the model's name is missing")
        if is_for_one and agent not in prompts:
            raise UsageError(f"--{which} {entry}: no agent is called {agent!r}; the agents are {', '.join(prompts)}")
        chosen = {"": list(prompts), "researcher": ["researcher", "notebook"]}.get(agent, [agent])
        prompts |= {name: prompts[name].model_copy(update={which: model}) for name in chosen}
    return prompts


def read_prompts(log: Log, state: State | None = None) -> dict[str, Prompt]:
    """Return the prompts that a session has recorded, by agent, or those of an earlier state. Raises PromptError."""
    texts = (state or log.state).session.prompts
    return {agent: parse_prompt(log.get(text), agent) for agent, text in texts.items()}


def list_programs(prompts: Mapping[str, Prompt]) -> list[str]:
    """Return the models that are programs."""
    models = {model for prompt in prompts.values() for model in (prompt.model, prompt.fallback)}
    return sorted(model for model in models if model.startswith(PREFIX))


def check_programs(prompts: Mapping[str, Prompt], programs: Sequence[str]) -> Mapping[str, Prompt]:
    """Return a session's prompts. Raises UsageError where a model is a program that is none of these."""
    if foreign := set(list_programs(prompts)).difference(programs):
        words = "the session's file names a program that no night began with here: fork it with a --model"
        raise UsageError(f"{words} ({', '.join(sorted(foreign))})")
    return prompts


def list_models(prompts: Mapping[str, Prompt], programs: Sequence[str], which: str = "model") -> list[str]:
    """Return each agent's model, or fallback, in the form of an option; of models that are programs only these."""
    known: dict[str, str] = {agent: getattr(prompt, which) for agent, prompt in prompts.items()}
    may = {agent: name for agent, name in known.items() if name in programs or not name.startswith(PREFIX)}
    return [f"{agent}={name}" for agent, name in may.items() if name]


def inherit_models(options: Options, parent: Mapping[str, Prompt], task: Task = EXAMINED) -> Options:
    """Return a fork's options with its parent's models, where neither they nor the style name others.

    Raises PromptError, and UsageError where a program would be replaced by one that was not chosen.
    """
    if not options.model:
        check_programs(parent, options.programs)
    plain, style = (load_style(name, None, task) for name in ("default", options.prompts or "default"))
    lists = dict[str, list[str]]()
    for which, given in (("model", options.model), ("fallback", options.fallback)):
        same = [agent for agent in style if getattr(style[agent], which) == getattr(plain[agent], which)]
        kept = list_models({agent: parent[agent] for agent in same if agent in parent}, options.programs, which)
        lists[which] = [*kept, *(given or [])]
    return replace(options, model=lists["model"], fallback=lists["fallback"])


def check_foreign(task: Task, script: Path) -> Task:
    """Return the task of a file from elsewhere. Raises UsageError where a run would use what the user did not name."""
    own = find_task(script) if task.is_reported else task
    for key in ("command", "checks", "data", "seed"):
        theirs, mine = (getattr(each, key) or ({"env": VARIABLE} if key == "seed" else "") for each in (task, own))
        if theirs != mine:
            there, here = (shorten(json.dumps(value, ensure_ascii=False), 200) for value in (theirs, mine))
            remedy = f"if you trust it, write the same into {script.with_name(TASK_FILE)}"
            raise UsageError(f"the session is of no night in its folder, and has {key} {there}, not {here}: {remedy}")
    return task


def expect_run_seconds(budget: BudgetAmount, slots: int) -> float:
    """Return the wall seconds that a run should take in one of the slots of the machine that prepared the data."""
    share = slots if budget.kind == "work" else 1
    return STARTUP[budget.kind] + 1.25 * budget.seconds * share


def _attempt(subject: str, describe: Callable[[], str]) -> CheckResult:
    """Return the description as a good result, or the error as a bad one."""
    try:
        return CheckResult(subject, "good", describe())
    except (UserError, PromptError) as error:
        return CheckResult(subject, "bad", str(error))


def _check_disk(options: Options) -> CheckResult:
    folder, free = options.sessions, 0
    for name, wanted in (("musings", options.musings.absolute()), ("sessions", options.sessions.absolute())):
        folder = next(path for path in [wanted, *wanted.parents] if path.exists())
        try:
            with tempfile.TemporaryFile(dir=folder):
                free = shutil.disk_usage(folder).free
        except OSError as error:
            remedy = f"{folder} cannot be written ({error.strerror}): choose another folder with --{name}"
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

    uses = [(each, name) for name, prompt in prompts.items() for each in (prompt.model, prompt.fallback) if each]
    if not all(model.startswith(PREFIX) for model, _ in uses) and (missing := credentials_error()):
        yield CheckResult("models", "bad", missing)
        return
    for model in sorted({model for model, _ in uses}):
        names = [name for used, name in uses if used == model]
        agents = ", ".join(names)
        passes, wrong = asyncio.run(Claude(connect()).check(model, prompts[names[0]].effort))
        if wrong:
            yield CheckResult(model, "warn" if passes else "bad", f"{wrong} (for {agents}; --offline needs no model)")
        elif model.startswith(PREFIX):
            yield CheckResult(model, "good", f"called a tool; --max-usd counts the dollars that it reports ({agents})")
        elif prices.estimate_most(model, 0, 0) is not None:
            yield CheckResult(model, "good", f"called a tool, and its price is known ({agents})")
        else:
            words = f"{model} called a tool, but its price is not known, so --max-usd cannot limit it ({agents})"
            yield CheckResult(model, "warn", words)
