"""Those who watch a session: terminal, musings, the files beside it, notices. All are projections of its log.

None of them can spoil a night: what cannot be written is said once, and can be rebuilt from the log.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console

from orchestrator.core.events import Discarded, Granted, Point, Record, Resumed
from orchestrator.core.state import ExperimentResult, apply
from orchestrator.policy import noise, pruning
from orchestrator.policy.limits import explain_stop
from orchestrator.session.store import Session
from orchestrator.views import usage
from orchestrator.views.musings import Musings
from orchestrator.views.notify import Notifier, Send, send_nothing
from orchestrator.views.report.files import Files
from orchestrator.views.terminal import Terminal

SOON = 0.5
"""Seconds until the files follow the log."""


class Observers:
    """Shows and writes down what happens in a session, as it happens. Use as a context."""

    def __init__(
        self, session: Session, musings: Path, console: Console | None = None, *, send: Send = send_nothing
    ) -> None:
        self.session, self.folder, self.trail = session, session.path.parent, musings / session.state.session.name
        self.terminal = Terminal(session, console or Console(highlight=False), time.time)
        self.musings = Musings(session, self.trail)
        self.files = Files(session, self.folder)
        self.notice = Notifier(session, send, self.say)
        self.trouble = ""
        self.later: asyncio.TimerHandle | None = None
        session.subscribe(self.update)

    def __enter__(self) -> Self:
        self.terminal.__enter__()
        self._write(self.musings.update)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write(self.musings.update)
        self._write_files()
        self.terminal.__exit__(kind, error, trace)
        self.notice.close(error)

    def update(self) -> None:
        """Let each of them look: the musings at once, since a rationale stands before anything is edited.

        The larger files wait a moment: what is due is started first, and events that come together are one change.
        """
        self._write(self.musings.update)
        self.terminal.update()
        self.notice.update()
        if self.later is None:
            self.later = asyncio.get_running_loop().call_later(SOON, self._write_files)

    def _write_files(self) -> None:
        self.later = None
        self._write(self.files.update)

    def _write(self, update: Callable[[], None]) -> None:
        try:
            update()
        except OSError as error:
            if self.trouble != (trouble := f"{error.filename} cannot be written: {error.strerror}"):
                self.trouble = trouble
                self.say(f"{trouble}; the session itself is safe, and this can be rebuilt from it")

    def progress(self, granted: Granted, point: Point, rate: float) -> None:
        """A run has come so far; `rate` in tokens per second."""
        self.terminal.progress(granted, point, rate)

    def say(self, text: str) -> None:
        """A word to the user."""
        self.terminal.say(text)

    def print_summary(self, branch: str) -> None:
        """What came of it, and where everything is."""
        state = self.session.state
        use = usage.measure_utilization(self.session.records, state.session.slots)
        baseline = next((f.val_bpb for f in state.results if f.experiment == 0), None)
        tried = sum(result.experiment > 0 for result in state.results)
        self.say(f"\nThe night is over: {state.ended}.")
        if state.incumbent and baseline:
            gain, sigma = baseline - state.incumbent.score_to_beat, noise.compute_sigma(noise.pool_variance(state))
            better = (
                f"{gain:.4f} better: {gain / sigma:.1f} times σ = {sigma:.4f}" if state.kept else "nothing was kept"
            )
            self.say(f"  val_bpb   {baseline:.4f} → {state.incumbent.score_to_beat:.4f}   ({better})")
        seeds = min((len(result.scores) for result in state.kept), default=0)
        self.say(
            f"  tried     {tried} experiments, kept {len(state.kept)}" + f", on {seeds} seeds or more" * bool(seeds)
        )
        if refused := _count_late_discards(state.results):
            self.say(f"  refused   {refused}")
        trust = usage.summarize_trust(self.session.records, pruning.count_false_prunes(state))
        self.say(f"  trust     {_describe_trust(trust)}")
        self.say(f"  slots     occupied {use.occupancy:.1%} of the time; duty {use.duty:.1%}")
        self.say(f"  report    {self.folder / 'report.html'}")
        self.say(f"  branch    git log {branch}")
        self.say(f"  musings   {self.trail / 'index.md'}")
        self.say(f"  go on     python -m orchestrator {self._how_on()}")

    def _how_on(self) -> str:
        """The command that goes on: where the limits are spent, a resumed session would end at once."""
        state, last = self.session.state, len(self.session.records) - 1
        name, limits = state.session.name, state.session.limits
        back = apply(state, Record(seq=last + 1, at=state.now, task_id="", event=Resumed()))
        if not explain_stop(back):
            return f"resume {name}"
        number = f" --max-experiments {limits.experiments}" if limits.experiments else ""
        dollars = f" --max-usd {limits.usd:g}" if limits.usd else ""
        return f"fork {name} --at {last} --hours {limits.hours:g}{number}{dollars}"


def _count_late_discards(results: Sequence[ExperimentResult]) -> str:
    """What looked good on its first seed, and why it was not kept after all."""
    late = [f.verdict for f in results if isinstance(f.verdict, Discarded) and len(f.scores) > 1]
    reasons = Counter(verdict.reason.partition(":")[0] for verdict in late)
    words = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f"{len(late)} that looked good on the first seed: {words}" if late else ""


def _describe_trust(trust: usage.TrustSummary) -> str:
    shut = "no sandbox" if trust.tiers <= {"none"} else " and ".join(sorted(trust.tiers))
    audits = f"{trust.audited} audited, off by {trust.correction:.1g} at most" if trust.audited else "none audited"
    names = f" (experiment {', '.join(map(str, trust.disqualified))})" if trust.disqualified else ""
    fresh = f", {trust.confirmed} examined on fresh text" * (trust.confirmed > 0)
    early = f"; {trust.pruned} ended early" * (trust.pruned > 0)
    spared = f"; of {trust.control_run} spared, {trust.wrong} proved good" * (trust.control_run > 0)
    return f"{shut}; {audits}{fresh}; {len(trust.disqualified)} disqualified{names}{early}{spared}"
