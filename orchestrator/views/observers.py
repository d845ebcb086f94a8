"""Show a session as it happens: terminal, musings, the files beside it, messages.

All are derived from the log and run behind one boundary: none can end or delay a night, whatever it raises. What could
not be written is tried again at the next event, and can be rebuilt from the log.
"""

import asyncio
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TextIO, cast

from rich.console import Console

from orchestrator.core.events import Granted, Point
from orchestrator.core.text import flatten
from orchestrator.session.store import Session
from orchestrator.views.experiments import LogReader, list_rows
from orchestrator.views.musings import list_musings, list_overview, list_rationales
from orchestrator.views.notify import Notifier, Send
from orchestrator.views.output import Outlet
from orchestrator.views.pace import LIVE_REST, LIVE_SHARE, Follower, Pace
from orchestrator.views.render import File, render_template
from orchestrator.views.report import list_files, write_log
from orchestrator.views.summary import describe_trust, suggest_command, summarize
from orchestrator.views.terminal import Terminal
from orchestrator.views.usage import measure_utilization
from prepare.command import write_command
from prepare.files import write_atomically

TICK = 1.0  # seconds at least between two drawings of the live view


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
        self.logged = 0  # records that log.jsonl holds
        self.failures: set[str] = set()
        self.logs = Follower(session, self._write_logs, Pace(session.clock))
        self.pages = Follower(session, self._write_pages, Pace(session.clock))
        self.ticker: asyncio.Task[None] | None = None
        session.watchers.append(self.update)

    def __enter__(self) -> Self:
        self._write_all(list_musings(self.session, self.musings))
        self._write_all(list_overview(self.session, self.musings))
        with self._guard("the live view"):  # last: Ctrl-C may end what comes before, and no exit would follow
            self.terminal.open()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        with self._guard("the live view"):  # first: Ctrl-C may end what follows
            self.terminal.close()
        self._write_logs(self.session)
        self._write_pages(self.session, live=False)
        self._write_all(list_overview(self.session, self.musings))
        with self._guard("notifications"):
            self.notifier.close(error)

    def update(self) -> None:
        """Show what is new. Only rationales are written at once, since they must precede any edit."""
        self._write_all(list_rationales(self.session, self.musings))
        with self._guard("the live view"):
            self.terminal.update()
        with self._guard("notifications"):
            self.notifier.update()
        self.logs.start()
        self.pages.start()
        if self.terminal.is_live and self.ticker is None:
            self.ticker = asyncio.get_running_loop().create_task(self._draw_live())

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
            used = measure_utilization(self.session.records, state.session.slots)
            facts = {"summary": summarize(state), "rows": list_rows(state), "fallback": state.fallback, "used": used}
            facts |= {"trust": describe_trust(self.session), "command": suggest_command(self.session, self.command)}
            where = {"folder": self.folder, "history": history, "musings": self.musings}
            self.say(render_template("ending.txt", **facts, **where).rstrip())

    async def _draw_live(self) -> None:
        """Draw the live view again and again."""
        pace = Pace(self.session.clock, LIVE_SHARE)
        while True:
            with self._guard("the live view"), pace.measure():
                self.terminal.draw()
            await asyncio.sleep(max(TICK, min(pace.rest, LIVE_REST * len(self.session.state.running))))

    def _write_logs(self, log: LogReader) -> None:
        with self._guard("the files"):
            known, self.logged = self.logged, 0  # a failed append may leave half a line
            write_log(log, self.folder, known)
            self.logged = len(log.records)

    def _write_pages(self, log: LogReader, live: bool = True) -> None:
        self._write_all(list_musings(log, self.musings, live))
        how = {"command": self.command, "git": self.git, "rest": self.pages.pace.rest}
        self._write_all(list_files(log, self.folder, live, **how))

    def _write_all(self, files: Iterable[File]) -> None:
        with self._guard("the files"):
            for path, shows, render in (file for file in files if self.shown.get(file[0]) != file[1]):
                with self._guard("the files"):
                    write_atomically(path, render())
                    self.shown[path] = shows

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
