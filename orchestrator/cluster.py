"""Train on a Ray cluster: each attempt is a detached actor, which a resumed driver finds again by its name.

Session, git and policy stay with the driver. A node gets this code and the data by their content hashes, and the
candidate as text.
"""

import asyncio
import os
import re
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from orchestrator.core import events as ev
from orchestrator.core.source import compute_digest
from orchestrator.lab import guardian
from orchestrator.lab.runner import BaseRunner, remove_folder
from orchestrator.lab.sandbox.base import TRUSTED, NoSandbox
from orchestrator.lab.sandbox.select import select_sandbox
from orchestrator.lab.slots import list_slots
from orchestrator.ports import Log
from prepare.command import UserError
from prepare.files import LockedError, hold_lock
from prepare.machine import THREADS, list_gpus
from prepare.manifest import MANIFEST_FILE, load

STORE = "NIGHTSHIFT_STORE"
"""Environment variable of a node: its folder for data and runs; ~/.cache/nightshift where it is not set."""
MODULES = [str(TRUSTED.parent / name) for name in ("orchestrator", "subagents", TRUSTED.name)]
"""What a node gets from the driver, so that both run the same code."""
ASK, SETTLE, REACH = 2.0, 10.0, 5.0
"""Seconds that one question waits for a run, before a lost run starts again, and to reach the head of a cluster."""
SILENT, UNPLACED = 300.0, 600.0
"""Seconds without a driver after which a run ends, and without a place after which a slot is given up."""
PIECE = 32 << 20  # bytes of data that are sent at once
_MODEL = "accelerator_type:"
Build = Callable[..., BaseRunner[Any]]
Result = tuple[ev.Outcome, Sequence[str], int]  # outcome, logs, and runs excused in a row


def connect(address: str) -> Any:
    """Return the library Ray, connected to "auto", HOST:PORT or ray://HOST:PORT. Raises UserError."""
    if not (place := re.fullmatch(r"auto|(?:ray://)?([\w.-]+):(\d{1,5})", address)):
        raise UserError(f"--cluster {address}: give auto, HOST:PORT or ray://HOST:PORT")
    try:
        import ray  # pyright: ignore[reportMissingImports]

        if place[1]:  # Ray itself would try for minutes
            socket.create_connection((place[1], int(place[2])), REACH).close()
        settings = {"namespace": "nightshift", "runtime_env": {"py_modules": MODULES}, "log_to_driver": False}
        if not ray.is_initialized():  # as it is in the later nights of a trial
            ray.init(address=address, logging_level="ERROR", **settings)
    except ImportError as error:
        raise UserError("--cluster needs Ray: pip install -e '.[cluster]' in this folder") from error
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        why = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UserError(f"--cluster {address}: no Ray cluster can be reached there ({why})") from error
    return cast("Any", ray)


def plan_shares(
    nodes: Sequence[Mapping[str, float]], wanted: str, model: str = "", *, cpu: bool = False, fewer: bool = False
) -> tuple[int, int, dict[str, Any]]:
    """Return how many runs fit at a time, how many on one node, and Ray's options for each. Raises UserError.

    `nodes` are their resources, `wanted` is a number or auto. Scores on different GPUs cannot be compared, so all runs
    use one model: `model`, or the most frequent. Without GPUs, or for `cpu`, auto is one run on each node.
    With `fewer`, as many as there are will do.
    """
    if wanted != "auto" and not wanted.isdecimal():
        raise UserError(f"--slots {wanted}: give a number of runs, or auto")
    gpus, cpus = Counter[str](), [n for node in nodes if (n := int(node.get("CPU", 0)))]
    for node in () if cpu else nodes:
        gpus[next((name.removeprefix(_MODEL) for name in node if _MODEL in name), "")] += int(node.get("GPU", 0))
    model = model or max(gpus, key=gpus.__getitem__, default="")
    most = gpus[model] or sum(cpus) * (not model)
    slots = int(wanted) if wanted.isdecimal() else gpus[model] or len(cpus)
    slots = min(slots, most) if fewer else slots
    if not 0 < slots <= most:
        raise UserError(f"--slots {wanted}: the cluster has {most} {model or ('GPUs' if gpus[model] else 'CPUs')}")
    if gpus[model]:
        return slots, 1, {"num_gpus": 1} | ({"accelerator_type": model} if model else {})
    size = max(k for k in range(1, most + 1) if sum(n // k for n in cpus) >= slots)
    return slots, max(cpus) // size, {"num_cpus": size}


def name_attempt(session: str, granted: ev.Granted, source: str) -> str:
    """Return the name of the actor that does this work: the same in a later life, where the run has another number."""
    confirmed = bool(granted.plan and granted.plan.confirmed)
    return f"{session}-{granted.experiment}-{compute_digest(f'{granted.seed} {confirmed} {source}')}"


class RemoteAttempt:
    """One attempt on its node, in a process of its own. When that is killed, the guardian ends the run."""

    def __init__(self, name: str, data: str, silent: float) -> None:
        """Hold a folder; the process ends `silent` seconds after the last word of a driver."""
        store = Path(os.environ.get(STORE) or "~/.cache/nightshift").expanduser().resolve()
        self.folder, self.data, self.silent = store / "runs" / name, store / "data" / data, silent
        self.points, self.held = list[tuple[ev.Point, float]](), ExitStack()
        self.pool, self.training = ThreadPoolExecutor(1), cast("Future[Result] | None", None)
        self.held.enter_context(hold_lock(self.folder.with_name(f"{name}.lock")))
        _erase(self.folder)  # of an attempt of the same name, which was ended
        for lock in self.folder.parent.glob("*.lock"):
            with suppress(LockedError), hold_lock(lock):  # its process is gone
                _erase(lock.with_suffix(""))
                lock.unlink()
        self.heard = time.monotonic()  # removing may have taken longer than the patience with silence
        threading.Thread(target=self._watch, daemon=True).start()

    def report(self) -> tuple[str, bool, list[tuple[ev.Point, float]], Result | None]:
        """Wait a moment for the result; return the data's place, if they are there, new progress, and the result."""
        self.heard = time.monotonic()
        result = self.training.result() if self.training and wait({self.training}, ASK).done else None
        points, self.points = self.points, []
        return f"{socket.gethostname()}:{self.data}", (self.data / MANIFEST_FILE).exists(), points, result

    def receive(self, name: str, piece: bytes, first: bool) -> None:
        """Begin or append to a file of the data. By the last, the manifest, they are checked and put in their place."""
        self.heard, part = time.monotonic(), self.folder / "data"
        for folder in (part, self.data.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with (part / name).open("wb" if first else "ab") as file:
            file.write(piece)
        if name == MANIFEST_FILE and load(part, verify=True).digest == self.data.name:
            part.replace(self.data)

    def train(self, *work: Any) -> None:
        """Begin to train, once, however often it is asked for."""
        self.training = self.training or self.pool.submit(self._train, *work)

    def _train(self, build: Build, granted: ev.Granted, source: str, excuses: int, gpu: bool, unsafe: bool) -> Result:
        log, claims = Log(), self.folder.parents[1] / "claims" / self.folder.name.rsplit("-", 2)[0]
        for folder in (self.folder, claims):
            folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "claims").symlink_to(claims)  # of the session's other runs here
        slots = list_slots(1, self.folder, THREADS, list_gpus() if gpu else ())
        parts = {"slots": slots, "sandbox": NoSandbox() if unsafe else select_sandbox(), "put": log.put}
        runner = build(self.data, on_point=self._add_point, folder=self.folder, **parts)
        runner.excuses[granted.experiment] = excuses
        outcome = asyncio.run(runner.run(granted.model_copy(update={"slot": 0}), source))
        remove_folder(self.folder)
        return outcome, list(log.texts.values()), runner.excuses[granted.experiment]

    def _add_point(self, _: ev.Granted, point: ev.Point, rate: float) -> None:
        self.points.append((point, rate))

    def _watch(self) -> None:
        while time.monotonic() < self.heard + self.silent:
            time.sleep(0.5)
        os._exit(0)


def _erase(folder: Path) -> None:
    """Remove what an attempt left: its processes and its folder."""
    guardian.kill_all(partial(guardian.find_tagged, f"{folder}/"))
    remove_folder(folder)


@dataclass(slots=True)
class ClusterRunner:
    """Runs candidates of one session on a cluster; a lost node is Aborted, and never the candidate's failure."""

    ray: Any
    session: str  # begins the names of its actors
    options: Mapping[str, Any]
    build: Build  # builds the runner of a node, from the parts that differ there
    data: Path | None
    put: Callable[[str], ev.Digest]
    on_point: Callable[[ev.Granted, ev.Point, float], None]
    unsafe: bool = False
    silent: float = SILENT
    ended: dict[str, Any] = field(default_factory=dict[str, Any])
    """Actors whose outcome is not on disk yet, by task id."""
    excuses: Counter[int] = field(default_factory=Counter[int])
    shipping: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    def reap(self) -> None:
        """End every attempt of the session."""
        for name in self.ray.util.list_named_actors():
            if name.startswith(f"{self.session}-"):
                with suppress(ValueError):  # it has ended
                    self.ray.kill(self.ray.get_actor(name))

    def end_recorded(self, finished: set[str]) -> None:
        """End the actors whose tasks have appended their outcome."""
        for task_id in finished & self.ended.keys():
            self.ray.kill(self.ended.pop(task_id))

    async def run(self, granted: ev.Granted, source: str) -> ev.Outcome:
        """Train once on any node, or wait for a run of an earlier life that does so; cancelling ends it."""
        number, run, errors = granted.experiment, granted.run, self.ray.exceptions
        lost, result, actor = partial(ev.Aborted, experiment=number, run=run), None, None
        try:
            actor = await asyncio.to_thread(self._find, name_attempt(self.session, granted, source))
            await self._place(actor)
            work = self.build, granted, source, self.excuses[number], "num_gpus" in self.options, self.unsafe
            await self._ask(actor, actor.train.remote(*work))
            while not result:
                *_, points, result = await self._ask(actor, actor.report.remote())
                for point, rate in points:
                    self.on_point(granted, point, rate)
            outcome, texts, self.excuses[number] = result
        except TimeoutError:
            return lost(reason=f"no node of the cluster had a place for {UNPLACED:.0f} s", quarantined=True)
        except errors.RayError as error:
            if actor and not isinstance(error, errors.ActorUnavailableError):  # it may be found again
                self.ray.kill(actor)
            await asyncio.sleep(SETTLE)
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return lost(reason=f"lost on the cluster: {lines[-isinstance(error, errors.RayTaskError)][:300]}")
        for text in texts:
            self.put(text)
        self.ended[f"train {number}.{run}"] = actor
        return outcome.model_copy(update={"run": run})

    def _find(self, name: str) -> Any:
        """Return the actor of that name, created where there is none."""
        options = {"name": name, "lifetime": "detached", "get_if_exists": True, "max_restarts": 0, **self.options}
        actor = self.ray.remote(RemoteAttempt).options(**options)
        return actor.remote(name, load(self.data).digest if self.data else "", self.silent)

    async def _place(self, actor: Any) -> None:
        """Wait until the actor runs, and send the data where its node has none. Raises TimeoutError."""
        node, ready, *_ = await self._ask(actor, actor.report.remote())
        while self.shipping[node].locked():  # an actor that heard nothing while it waits would end
            await asyncio.sleep(ASK)
            await self._ask(actor, actor.report.remote())
        async with self.shipping[node]:
            if ready or not self.data or (await self._ask(actor, actor.report.remote()))[1]:
                return
            for name in (*load(self.data).files, MANIFEST_FILE):
                with (self.data / name).open("rb") as file:
                    while piece := file.read(PIECE):
                        await self._ask(actor, actor.receive.remote(name, piece, file.tell() <= PIECE))

    async def _ask(self, actor: Any, question: Any) -> Any:
        """Return an answer, or end the actor, since Ray's client cannot cancel a question. Raises TimeoutError."""
        answer = asyncio.ensure_future(question)
        try:
            return await asyncio.wait_for(asyncio.shield(answer), UNPLACED)
        except (TimeoutError, asyncio.CancelledError):
            self.ray.kill(actor)
            with suppress(self.ray.exceptions.RayError, TimeoutError):
                await asyncio.wait_for(answer, REACH)
            raise
