"""Let a view rest after each drawing, so that it takes a bounded share of a core however much there is to draw."""

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from orchestrator.session.store import Session
from orchestrator.views.experiments import LogReader, Snapshot

SHARE = 1 / 2500
"""Share of a core that the pages may take, and as much for the logs: seconds of CPU time per second of the night."""
LIVE_SHARE = SHARE / 2  # share for the live view
LIVE_REST = 2.0  # seconds that the live view rests at most for each run under way
OLDEST = 1 / 4
"""Share of the time so far for which a view rests at most: a short night is watched, and the first drawing imports."""
SOON = 0.5  # seconds before files follow the log, so that events in quick succession are one change


class Pace:
    """Tells how long a view rests after a drawing."""

    def __init__(
        self, clock: Callable[[], float], share: float = SHARE, cpu: Callable[[], float] = time.thread_time
    ) -> None:
        self.clock, self.share, self.cpu, self.began = clock, share, cpu, clock()
        self.rest = 0.0  # seconds until the next drawing

    @contextmanager
    def measure(self) -> Generator[None]:
        """Measure a drawing by this thread, and set `rest`."""
        began = self.cpu()
        yield
        self.rest = min((self.cpu() - began) / self.share, OLDEST * (self.clock() - self.began))


class Follower:
    """Writes files in a thread whenever the log has grown, and rests in between."""

    def __init__(self, session: Session, write: Callable[[LogReader], None], pace: Pace) -> None:
        self.session, self.write, self.pace = session, write, pace
        self.task: asyncio.Task[None] | None = None
        self.rested = 0.0  # on the session's clock

    def start(self) -> None:
        """Write until the files show the last record; needs a running loop."""
        if self.task is None or self.task.done():
            self.task = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        written = 0
        while written < len(self.session.records):
            await asyncio.sleep(max(SOON, self.rested - self.session.clock()))
            log = Snapshot(self.session.state, list(self.session.records), self.session.get)
            await asyncio.to_thread(self._write, log)
            self.rested, written = self.session.clock() + self.pace.rest, len(log.records)

    def _write(self, log: LogReader) -> None:
        with self.pace.measure():
            self.write(log)
