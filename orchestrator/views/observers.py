"""Show a session as it happens: terminal, musings, the files beside it, messages.

All are derived from the log and run behind one boundary: none can end or delay a night, whatever it raises. What could
not be written is tried again at the next event, and can be rebuilt from the log.
"""

import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TextIO, cast

from rich.console import Console

from orchestrator.core.events import Granted, Point
from orchestrator.core.text import flatten
from orchestrator.policy.limits import estimate_run_seconds
from orchestrator.session.store import Session
from orchestrator.views.experiments import LogReader, Snapshot, list_rows
from orchestrator.views.musings import list_musings, list_rationales
from orchestrator.views.notify import Notifier, Send
from orchestrator.views.output import Outlet
from orchestrator.views.render import File, render_template
from orchestrator.views.report import list_files, write_log
from orchestrator.views.summary import describe_trust, suggest_command, summarize
from orchestrator.views.terminal import Terminal
from orchestrator.views.usage import measure_utilization
from prepare.command import write_command
from prepare.files import write_atomically

SOON = 0.5  # seconds before the files follow the log, so that events in quick succession are one change
PACE = 1000.0
"""Seconds until a file is written again, for each second of CPU time that it took; but at most a run's length."""


class Observers:
    """Shows and writes down a session. Use as a context manager around the event loop."""

    def __init__(
        self,
        session: Session,
        musings: Path,
        console: Console | None = None,
        *,
        send: Send | None = None,
        command: Callable[..., str] = write_command,
        git: str = "git",
    ) -> None:
        """Watch the session; `command` completes a suggested command of ours, `git` begins one of git."""
        self.session, self.folder, self.command, self.git = session, session.path.parent, command, git
        console = console or Console(file=cast("TextIO", Outlet(sys.stdout)), highlight=False)
        self.terminal = Terminal(session, console, session.clock, str(self.folder / "report.html"))
        self.musings = musings / session.state.session.name
        self.notifier = Notifier(session, send, self.say, command("resume", session.state.session.name))
        self.shown: dict[Path, object] = {}
        self.due = defaultdict[Path, float](float)
        """When each file may be written again, on the session's clock."""
        self.late: list[float] = []  # these times of the files that had changed too early, at the last look
        self.logged = 0  # records that log.jsonl holds
        self.failures: set[str] = set()
        self.writer: asyncio.Task[None] | None = None
        session.watchers.append(self.update)

    def __enter__(self) -> Self:
        with self._guard("the live view"):
            self.terminal.open()
        self._write_all(list_musings(self.session, self.musings))
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.due.clear()
        self._write_files(self.session)
        with self._guard("the live view"):
            self.terminal.close()
        with self._guard("notifications"):
            self.notifier.close(error)

    def update(self) -> None:
        """Show what is new. Only rationales are written at once, since they must precede any edit."""
        self._write_all(list_rationales(self.session, self.musings))
        with self._guard("the live view"):
            self.terminal.update()
        with self._guard("notifications"):
            self.notifier.update()
        self._start_writer()

    def progress(self, granted: Granted, point: Point, rate: float) -> None:
        """Show how far a run has come; `rate` is in tokens per second."""
        with self._guard("the live view"):
            self.terminal.progress(granted, point, rate)

    def say(self, text: str) -> None:
        """Print a message to the user."""
        with self._guard("the live view"):
            self.terminal.say(text)

    def print_summary(self, history: str) -> None:
        """Print how the night ended and where its files are; `history` is the command that lists the keeps."""
        state = self.session.state
        with self._guard("the summary"):
            text = render_template(
                "ending.txt",
                summary=summarize(state),
                rows=list_rows(state),
                fallback=state.fallback,
                trust=describe_trust(self.session),
                used=measure_utilization(self.session.records, state.session.slots),
                folder=self.folder,
                history=history,
                musings=self.musings,
                command=suggest_command(self.session, self.command),
            )
            self.say(text.rstrip())

    def _start_writer(self) -> None:
        if self.writer is None or self.writer.done():
            self.writer = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        """Write the files that are due in a thread, one snapshot at a time, until the log shows the last record."""
        written = 0
        while written < len(self.session.records):
            await asyncio.sleep(SOON)
            records, state = list(self.session.records), self.session.state
            await asyncio.to_thread(self._write_files, Snapshot(state, records, self.session.get))
            written = len(records)
        if self.late:
            asyncio.get_running_loop().call_later(min(self.late) - self.session.clock(), self._start_writer)

    def _write_files(self, log: LogReader) -> None:
        self.late = []
        with self._guard("the files"):
            known, self.logged = self.logged, 0  # a failed append may leave half a line
            write_log(log, self.folder, known)
            self.logged = len(log.records)
        self._write_all(list_musings(log, self.musings))
        self._write_all(list_files(log, self.folder, self.command, self.git))

    def _write_all(self, files: Iterable[File]) -> None:
        with self._guard("the files"):
            for path, shows, render in (file for file in files if self.shown.get(file[0]) != file[1]):
                if self.due[path] > self.session.clock():
                    self.late.append(self.due[path])
                    continue
                with self._guard("the files"):
                    began = time.thread_time()
                    write_atomically(path, render())
                    self.shown[path] = shows
                    pause = min(PACE * (time.thread_time() - began), estimate_run_seconds(self.session.state))
                    self.due[path] = self.session.clock() + pause

    @contextmanager
    def _guard(self, view: str) -> Generator[None]:
        """Report what a view raises to the user, each distinct failure once."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - this is the boundary: a view may fail in any way
            failure = f"{view} failed: {type(error).__name__}: {flatten(str(error))}"
            if isinstance(error, OSError) and (path := error.filename2 or error.filename):
                failure = f"{path} cannot be written: {error.strerror}"
            if failure not in self.failures:
                self.failures.add(failure)
                self.say(f"{failure}; the session itself is safe, and `report` rebuilds what is missing from it")
