"""Those who watch a session: the terminal, the musings, the files beside it. All are projections of its log.

None of them can spoil a night: what cannot be written is said once, and can be rebuilt from the log.
"""

import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console

from orchestrator import figures, policy
from orchestrator.events import Granted, Point
from orchestrator.musings import Musings
from orchestrator.report.files import Files
from orchestrator.session import Session
from orchestrator.terminal import Terminal


class Onlookers:
    """Shows and writes down what happens in a session, as it happens. Use as a context."""

    def __init__(self, session: Session, musings: Path, console: Console | None = None) -> None:
        self.session, self.folder, self.trail = session, session.path.parent, musings / session.state.session.name
        self.terminal = Terminal(session, console or Console(highlight=False), time.time)
        self.musings = Musings(session, self.trail)
        self.files = Files(session, self.folder)
        self.trouble = ""
        session.watch(self.update)

    def __enter__(self) -> Self:
        self.terminal.__enter__()
        self.update()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.update()
        self.terminal.__exit__(kind, error, trace)

    def update(self) -> None:
        """Let each of them look: the musings first, since a rationale stands before anything is edited."""
        try:
            self.musings.update()
            self.files.update()
        except OSError as error:
            if self.trouble != (trouble := f"{error.filename} cannot be written: {error.strerror}"):
                self.trouble = trouble
                self.say(f"{trouble}; the session itself is safe, and this can be rebuilt from it")
        self.terminal.update()

    def progress(self, granted: Granted, point: Point, rate: float) -> None:
        """A run has come so far; `rate` in tokens per second."""
        self.terminal.progress(granted, point, rate)

    def say(self, text: str) -> None:
        """A word to the user."""
        self.terminal.say(text)

    def farewell(self, branch: str) -> None:
        """What came of it, and where everything is."""
        state, name = self.session.state, self.session.state.session.name
        use = figures.use(self.session.records, state.session.slots)
        baseline = next((f.val_bpb for f in state.findings if f.experiment == 0), None)
        tried = sum(finding.experiment > 0 for finding in state.findings)
        self.say(f"\nThe night is over: {state.ended}.")
        if state.best and baseline:
            gain, sigma = baseline - state.best.mark, policy.sigma(policy.noise(state))
            better = (
                f"{gain:.4f} better: {gain / sigma:.1f} times σ = {sigma:.4f}" if state.kept else "nothing was kept"
            )
            self.say(f"  val_bpb   {baseline:.4f} → {state.best.mark:.4f}   ({better})")
        self.say(f"  tried     {tried} experiments, kept {len(state.kept)}")
        self.say(f"  slots     occupied {use.occupancy:.1%} of the time; duty {use.duty:.1%}")
        self.say(f"  report    {self.folder / 'report.html'}")
        self.say(f"  branch    git log {branch}")
        self.say(f"  musings   {self.trail / 'index.md'}")
        self.say(f"  go on     python -m orchestrator resume {name}")
