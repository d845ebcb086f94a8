"""Where the enemies are let loose: a project with secrets around it, small data, a lab with a sandbox."""

import socket
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from orchestrator.core.events import EvaluationPlan, Granted, Scored
from orchestrator.core.source import compute_digest
from orchestrator.lab import guardian
from orchestrator.lab.monitor import RunLimits
from orchestrator.lab.runner import Runner
from orchestrator.lab.scoring.claims import Scorer
from orchestrator.lab.slots import Slot
from prepare.manifest import BudgetAmount
from tests.small import LENGTH, small_data

HERE = Path(__file__).parent
LETTERS, FOLLOWERS = 32, 4
TRUTH = 2.0
"""Bits per byte that nobody can do without: each letter has four followers, one as likely as the other."""
FALSE = 1.9
"""A score below this is a lie."""
PATIENT = EvaluationPlan(audit="always", confirmed=True, incumbent=7, startup_cpu=300.0, evaluation=90.0)
"""For honest code on a slow machine."""
STRICT = EvaluationPlan(audit="always", confirmed=True, incumbent=7, startup_cpu=5.0, evaluation=1.5)


def data(folder: Path, kind: str = "work", amount: float = 1.0, seconds: float = 1.0) -> Path:
    """A data folder of made-up text."""
    luck = np.random.default_rng(0)
    followers = np.stack([luck.permutation(LETTERS)[:FOLLOWERS] for _ in range(LETTERS)]) + 97

    def make_rows(count):
        rows = np.full((count, LENGTH + 1), 97)
        for place in range(1, LENGTH + 1):
            rows[:, place] = followers[rows[:, place - 1] - 97, luck.integers(FOLLOWERS, size=count)]
        return rows

    return small_data(folder, BudgetAmount(kind, amount, seconds), make_rows)


class World:
    """Somebody's machine."""

    def __init__(self, folder: Path, sandbox, limits: RunLimits, **budget) -> None:
        self.project, self.home, self.logs = folder / "project", folder / "home", {}
        data(self.project / "data", **budget)
        for path, text in (
            (self.project / ".git/hooks/pre-commit", "good"),
            (self.project / "sessions/night/session.db", "hush"),
            (self.home / ".ssh/id", "hush"),
        ):
            path.parent.mkdir(parents=True)
            path.write_text(text)
        self.session = self.project / "sessions/now"
        self.session.mkdir()
        self.runner = Runner(
            self.session,
            [Slot(self.session / "slot.lock", threads=2)],
            limits,
            Scorer.load(self.project / "data"),
            sandbox,
            self.put,
        )
        self.before = self._look()

    def put(self, text: str) -> str:
        self.logs[compute_digest(text)] = text
        return compute_digest(text)

    async def meet(self, code: str, begins: str = "", times: int = 1, plan: EvaluationPlan = STRICT):
        """The outcome, and what is wrong: empty where the enemy got nothing."""
        with _bystanders(self.project) as (port, letters, process):
            words = {"WORLD": self.project, "HOME": self.home, "PORT": port, "PARENT": process.pid}
            source = (HERE / f"{begins}.py").read_text() if begins else ""
            source += code
            for word, value in words.items():
                source = source.replace(word, str(value))
            for run in range(times):
                granted = Granted(experiment=7, run=run + 1, slot=0, seed=1, plan=plan)
                outcome = await self.runner.run(granted, source)
            wrong = list(self._wrong(outcome, letters, process))
        return outcome, wrong

    def _wrong(self, outcome, letters, process):
        if isinstance(outcome, Scored) and outcome.val_bpb < FALSE:
            yield f"a false score, {outcome.val_bpb:.3f}"
        if isinstance(outcome, Scored) and (outcome.confirmed or 0.0) < FALSE:
            yield f"a false score on held-out text, {outcome.confirmed}"
        if not hasattr(outcome, "log"):
            yield f"the machine is blamed: {outcome.reason}"
        elif "GOT IT" in self.logs[outcome.log] + getattr(outcome, "message", ""):
            yield "it got what it wanted"
        if self._look() != self.before:
            yield "files have changed"
        if guardian.find_tagged(f"{self.session}/") or list((self.session / "runs").iterdir()):
            yield "something is left"
        if process.poll() is not None:
            yield "it ended another process"
        for box in letters:
            with suppress(BlockingIOError):
                box.recv(1)
                yield "a letter arrived"

    def _look(self):
        """All files but the lab's own, byte by byte."""
        files = [path for path in self.project.parent.rglob("*") if path.is_file() and "now" not in path.parts]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode) for path in files}


@contextmanager
def _bystanders(folder: Path):
    """Two sockets on one port, two in a folder, and a process with a secret."""
    path, box = folder / "socket", folder / "letterbox"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as letters,
        socket.socket(socket.AF_UNIX) as local,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as local_letters,
        subprocess.Popen(["cat"], env={"SECRET": "hush"}, stdin=subprocess.PIPE) as process,
    ):
        port = server.getsockname()[1]
        letters.bind(("127.0.0.1", port))
        letters.setblocking(False)
        local.bind(str(path))
        local.listen()
        local_letters.bind(str(box))
        local_letters.setblocking(False)
        yield port, (letters, local_letters), process
        process.stdin.close()
    path.unlink()
    box.unlink()
