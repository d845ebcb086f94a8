"""One entry per experiment: all that is known of it, closed or under way. Files and views are written from it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean

from orchestrator.core import events as ev
from orchestrator.core.state import (
    BASELINE,
    Broken,
    Candidate,
    Decided,
    ExperimentResult,
    Idea,
    Remeasuring,
    Stage,
    State,
    Status,
    Training,
    name_status,
)


@dataclass(frozen=True, slots=True)
class ExperimentRow:
    """An experiment as a row: what is not known yet is empty."""

    experiment: int
    status: Status
    proposal: ev.Proposal
    incumbent: int
    """The experiment whose train.py it is measured against."""
    commit: ev.Committed | None = None
    scores: tuple[ev.Scored, ...] = ()
    crash: ev.Crashed | None = None
    verdict: ev.Verdict | ev.Refused | ev.Abandoned | None = None
    postmortem: ev.Postmortem | None = None

    @property
    def val_bpb(self) -> float | None:
        return fmean(score.val_bpb for score in self.scores) if self.scores else None

    @property
    def gain(self) -> float | None:
        return self.verdict.gain if isinstance(self.verdict, ev.Kept | ev.Discarded) and self.experiment else None

    @property
    def error(self) -> float | None:
        return self.verdict.error if isinstance(self.verdict, ev.Kept | ev.Discarded) else None

    @property
    def memory_mb(self) -> float:
        ended = (*self.scores, *([self.crash] if self.crash else []))
        return max((outcome.metrics.memory_mb for outcome in ended), default=0.0)

    @property
    def decided(self) -> bool:
        return self.status in ("kept", "discarded", "pruned", "crashed", "refused", "abandoned")


def list_rows(state: State) -> list[ExperimentRow]:
    """All experiments by number."""
    found = [_make_closed_row(result) for result in state.results]
    found += _list_open(state)
    return sorted(found, key=lambda entry: entry.experiment)


def find_row(state: State, experiment: int) -> ExperimentRow | None:
    """One of them; None where there is no such experiment."""
    for result in reversed(state.results):
        if result.experiment == experiment:
            return _make_closed_row(result)
    return next((found for found in _list_open(state) if found.experiment == experiment), None)


def select_retried(found: Iterable[ExperimentRow]) -> list[ExperimentRow]:
    """Those that were worth a second seed: kept once confirmed, or refused after all."""
    return [e for e in found if e.experiment and len(e.scores) > 1 and isinstance(e.verdict, ev.Kept | ev.Discarded)]


def _list_open(state: State) -> Iterator[ExperimentRow]:
    best = state.incumbent.experiment if state.incumbent else 0
    for number, stage in state.open.items():
        if not isinstance(stage, Remeasuring):
            yield _make_open_row(number, stage, best)


def _make_closed_row(result: ExperimentResult) -> ExperimentRow:
    return ExperimentRow(
        result.experiment,
        name_status(result.verdict),
        result.proposal,
        result.incumbent,
        result.commit,
        result.scores,
        result.crash,
        result.verdict,
        result.postmortem,
    )


def _make_open_row(number: int, stage: Stage, best: int) -> ExperimentRow:
    match stage:
        case Idea(proposal):
            return ExperimentRow(number, "proposed", proposal, best)
        case Candidate(proposal, commit, scores):
            return ExperimentRow(number, "ready", proposal, commit.parent, commit, scores)
        case Training(Candidate(proposal, commit, scores)):
            return ExperimentRow(number, "training", proposal, commit.parent, commit, scores)
        case Broken(Candidate(proposal, commit, scores), crash):
            return ExperimentRow(number, "broken", proposal, commit.parent, commit, scores, crash)
        case Decided(Candidate(proposal, commit, scores), verdict, crash, incumbent):
            return ExperimentRow(number, name_status(verdict), proposal, incumbent, commit, scores, crash, verdict)
        case Remeasuring():
            return ExperimentRow(number, "training", BASELINE, best)
