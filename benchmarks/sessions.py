"""Measure what a session takes to fold, verify and report in CPU time, and how large its file and its report are."""

import tempfile
import time
from pathlib import Path

from orchestrator.core.events import SessionLimits
from orchestrator.loop import run
from orchestrator.policy import schedule
from orchestrator.session.replay import Tape, replay
from orchestrator.session.store import Session
from orchestrator.views.report import render_report
from tests.fakes import FakeLab, InventiveCrew, started
from tests.virtual import run_virtually, virtual_clock


def night(path: Path, experiments: int) -> Session:
    async def go() -> Session:
        session = Session(path, virtual_clock, create=True)
        session.db.execute("pragma synchronous = off")  # it is the reading that is measured
        session.write("", started(limits=SessionLimits(hours=1e6, experiments=experiments)))
        await run(session, InventiveCrew(1), FakeLab(session, 1))
        return session

    return run_virtually(go())


def main() -> None:
    print("| experiments | events | file | fold and resume | replay | report | its page |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for experiments in (100, 1_000):
            path = Path(folder, str(experiments), "session.db")
            recorded = night(path, experiments)
            recorded.close()
            began = time.process_time()
            session = Session(path, time.time)
            schedule.find_due(session.state)
            folded = time.process_time() - began
            tape = Tape(session)
            began = time.process_time()
            assert not run_virtually(replay(tape, lambda tape: run(tape, InventiveCrew(1), tape)))
            played = time.process_time() - began
            began = time.process_time()
            page = render_report(session)
            rendered = time.process_time() - began
            assert len(session.state.tried) == experiments
            session.close()
            size = f"{path.stat().st_size / 1e6:.1f} MB | {folded:.2f} s | {played:.1f} s | {rendered:.1f} s"
            print(f"| {experiments:,} | {len(tape.records):,} | {size} | {len(page) / 1e6:.1f} MB |")
