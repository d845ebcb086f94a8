"""Those who watch a session: the terminal, the musings, the results and the report. All are projections of its log."""

from pathlib import Path
from types import TracebackType

from orchestrator.events import Granted, Point
from orchestrator.session import Session


class Onlookers:
    """Shows and writes down what happens in a session, as it happens."""

    def __init__(self, session: Session, folder: Path, musings: Path) -> None:
        self.session, self.folder, self.musings = session, folder, musings
        self.shown = len(session.records)
        session.watch(self.look)

    def __enter__(self) -> "Onlookers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.look()

    def look(self) -> None:
        for record in self.session.records[self.shown :]:
            print(
                f"{record.at - self.session.state.started_at:7.1f} {record.lane:16} {record.event.kind}",
                str(record.event)[:150],
            )
        self.shown = len(self.session.records)

    def progress(self, granted: Granted, point: Point, rate: float) -> None:
        del granted, point, rate

    def say(self, text: str) -> None:
        print(text)

    def farewell(self, branch: str) -> None:
        name = self.session.state.session.name
        print(f"{self.session.state.ended}: see {branch}; python -m orchestrator resume {name} goes on")
