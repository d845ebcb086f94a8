"""One run: train.py in a fresh folder with a clean environment, under a guardian, watched until it ends or must end."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import prepare
from orchestrator.events import Aborted, Crashed, Digest, Granted, Outcome, Point, Scored
from orchestrator.lab import failures, guardian
from orchestrator.lab.failures import Fault
from orchestrator.lab.sandbox import Command, NoSandbox, Sandbox
from orchestrator.lab.slots import Slot, SlotBusy, held
from orchestrator.lab.watch import Limits, Watch

OnPoint = Callable[[Granted, Point, float], None]
"""Called with each progress line as it comes: the point, and tokens per second."""
TRUSTED = Path(prepare.__file__).parent.parent
"""Holds the `prepare` that training code imports."""
TICK = 0.1
"""Seconds between two looks at a run."""
DRAIN = 5.0
"""Seconds for what is still in the pipes when everything has ended."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The guardian's report; all empty if it was killed."""

    status: int | None = None
    cpu: float = 0.0
    peak_mb: float = 0.0
    left: int = 0
    error: str = ""


class MachineTrouble(Exception):  # noqa: N818 - the trouble is the machine's
    """No fault of the candidate's."""


class Runner:
    """Trains candidates of one session, one at a time in each slot."""

    def __init__(
        self,
        folder: Path,
        data: Path,
        slots: Sequence[Slot],
        limits: Limits,
        put: Callable[[str], Digest],
        *,
        sandbox: Sandbox | None = None,
        on_point: OnPoint = lambda _granted, _point, _rate: None,
    ) -> None:
        """`folder` is the session's, `put` stores a log."""
        self.runs, self.data, self.slots, self.limits, self.put = folder.resolve() / "runs", data, slots, limits, put
        self.sandbox: Sandbox = sandbox or NoSandbox()
        self.on_point = on_point

    def reap(self) -> int:
        """End what an earlier life of this session left running, and remove its folders; how many processes it was."""
        left = len(guardian.tagged(f"{self.runs}/"))
        guardian.end(lambda: guardian.tagged(f"{self.runs}/"))
        _remove(self.runs)
        return left

    async def run(self, granted: Granted, source: str) -> Outcome:
        """Train once. Whatever is the machine's fault is an Aborted; cancelling ends every process of the run."""
        try:
            self._check_disk()
            place = self.runs / f"{granted.experiment}-{granted.run}"
            async with held(self.slots[granted.slot]) as lock, _workplace(place, source) as folder:
                return await self._train(granted, folder, lock)
        except (OSError, SlotBusy, MachineTrouble) as error:
            return Aborted(experiment=granted.experiment, run=granted.run, reason=_reason(error))

    async def _train(self, granted: Granted, folder: Path, lock: int) -> Outcome:
        watch = Watch(self.limits, on_point=lambda point, rate: self.on_point(granted, point, rate))
        output, printed = os.pipe()
        said, line = os.pipe()
        reading = [asyncio.create_task(_pump(output, watch.output)), asyncio.create_task(_pump(said, watch.said.feed))]
        try:
            process = await self._spawn(self._command(granted, folder, line), printed, lock)
        finally:
            os.close(printed)
            os.close(line)
        try:
            fault = await _attend(process, watch, reading)
            ending = await self._ending(process, f"{folder}/")
            await asyncio.wait(reading, timeout=DRAIN)
        finally:
            await _finish(process)
            for task in reading:
                task.cancel()
        watch.close()
        return self._outcome(granted, watch, fault or watch.broken, ending)

    def _command(self, granted: Granted, folder: Path, line: int) -> Command:
        slot = self.slots[granted.slot]
        env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(folder),
            "TMPDIR": str(folder / "tmp"),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(TRUSTED),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",  # the order of a set is no part of an experiment
            "OMP_WAIT_POLICY": "passive",
            "MKL_CBWR": "AUTO,STRICT",  # the same sums in the same order in every process
            # Never shared: a compiler's cache is code.
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "tmp/inductor"),
            "TRITON_CACHE_DIR": str(folder / "tmp/triton"),
            "CUDA_CACHE_PATH": str(folder / "tmp/cuda"),
            "NIGHTSHIFT_DATA": str(self.data.resolve()),
            "NIGHTSHIFT_SEED": str(granted.seed),
            "NIGHTSHIFT_FD": str(line),
            guardian.TAG: f"{folder}/",
        }
        if slot.threads:
            env["OMP_NUM_THREADS"] = str(slot.threads)
        if slot.devices:
            env |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": slot.devices}
        return self.sandbox.wrap(Command((sys.executable, "train.py"), env, folder, (line,)))

    async def _spawn(self, command: Command, printed: int, lock: int) -> Process:
        """A guardian with that command. Its environment is the command's, since the command can read it."""
        options = {"fds": command.fds, "cpu": round(self.limits.cpu), "grace": self.limits.grace}
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(guardian.PROGRAM),
            json.dumps(options),
            *command.argv,
            stdin=PIPE,
            stdout=PIPE,
            stderr=printed,
            cwd=command.folder,
            env=command.env,
            pass_fds=(*command.fds, lock),
            start_new_session=True,
        )

    async def _ending(self, process: Process, tag: str) -> Ending:
        """How it ended, once nothing of the run is left. Raises MachineTrouble where something is, or none began."""
        assert process.stdout
        report = await process.stdout.read()
        ending = Ending(**json.loads(report)) if report else Ending()
        left = ending.left
        if ending.status is None or sys.platform != "linux":
            # Its guardian was killed, or could not adopt: they are found by their tag.
            left = len(await asyncio.to_thread(guardian.end, lambda: guardian.tagged(tag)))
        if ending.error:
            raise MachineTrouble(f"the run could not be started: {ending.error}")
        if left:
            raise MachineTrouble(f"{left} processes of the run do not end")
        return ending

    def _outcome(self, granted: Granted, watch: Watch, fault: Fault | None, ending: Ending) -> Outcome:
        log = watch.transcript.log.text
        fault = fault or _fault(watch, ending.status, log)
        score = Scored(
            experiment=granted.experiment,
            run=granted.run,
            val_bpb=watch.said.score or 0.0,
            measures=watch.measures(None if self.slots[granted.slot].devices else ending.peak_mb),
            curve=watch.curve.points,
            log=self.put(log),
            tier=self.sandbox.tier,
        )
        if fault is None:
            return score
        facts = score.model_dump(exclude={"kind", "val_bpb"})
        return Crashed(failure=fault.kind, message=fault.message, **facts)

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self.runs.parent).free
        if free < self.limits.free_disk:
            raise MachineTrouble(f"a run needs {self.limits.free_disk >> 20} MB of disk; {free >> 20} MB are free")


def _fault(watch: Watch, status: int | None, log: str) -> Fault | None:
    """What was wrong with a run that has ended by itself."""
    if status is None:
        return Fault("other", "it killed its guardian")
    if status:
        return failures.fault(status, log)
    if watch.said.val_bpb is None:
        return Fault("other", "it ended without a score")
    if watch.said.score is None:
        return Fault("NaN", f"val_bpb is {watch.said.val_bpb}")
    return None


async def _attend(process: Process, watch: Watch, reading: Sequence[asyncio.Task[None]]) -> Fault | None:
    """Wait for the end; ask for it as soon as something is wrong, and return what."""
    assert process.stdin
    ended = asyncio.ensure_future(process.wait())
    while not ended.done():
        for task in reading:
            if task.done():
                task.result()
        if fault := watch.fault:
            process.stdin.write(b"t")
            await ended
            return fault
        await asyncio.wait({ended}, timeout=TICK)
    return None


async def _finish(process: Process) -> None:
    """The guardian ends everything when its input closes; even a second cancelling does not keep it from that."""
    assert process.stdin
    process.stdin.close()
    await asyncio.shield(process.wait())


async def _pump(descriptor: int, feed: Callable[[bytes], None]) -> None:
    """Read the descriptor to its end, and close it."""
    reader = asyncio.StreamReader()
    pipe = os.fdopen(descriptor, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        while data := await reader.read(1 << 16):
            feed(data)
    finally:
        transport.close()


def _reason(error: Exception) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)


@asynccontextmanager
async def _workplace(folder: Path, source: str) -> AsyncGenerator[Path]:
    """A fresh folder with nothing but train.py, removed in the end."""
    await asyncio.to_thread(_remove, folder)
    (folder / "tmp").mkdir(parents=True)
    (folder / "train.py").write_text(source, encoding="utf-8")
    try:
        yield folder
    finally:
        await asyncio.to_thread(_remove, folder)


def _remove(folder: Path) -> None:
    """Remove a folder that hostile code has filled: of any depth, and without permissions."""
    if folder.exists():
        subprocess.run(["chmod", "-R", "u+rwx", "--", folder], check=False, capture_output=True)
        subprocess.run(["rm", "-rf", "--", folder], check=False, capture_output=True)
