"""One entry per experiment: all that is known of it, closed or under way. Files and views are written from it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from orchestrator.events import (
    Abandoned,
    Committed,
    Crashed,
    Discarded,
    Failed,
    Kept,
    Postmortem,
    Proposal,
    Refused,
    Scored,
    Verdict,
)
from orchestrator.state import BASELINE, Broken, Candidate, Decided, Finding, Idea, Remeasuring, Stage, State, Training

Status = Literal[
    "proposed", "ready", "training", "broken", "kept", "discarded", "hopeless", "failed", "refused", "abandoned"
]


@dataclass(frozen=True, slots=True)
class Entry:
    """An experiment as a row: what is not known yet is empty."""

    experiment: int
    status: Status
    proposal: Proposal
    against: int
    """The experiment whose train.py it is measured against."""
    made: Committed | None = None
    scores: tuple[Scored, ...] = ()
    crash: Crashed | None = None
    verdict: Verdict | Refused | Abandoned | None = None
    postmortem: Postmortem | None = None

    @property
    def val_bpb(self) -> float | None:
        return fmean(score.val_bpb for score in self.scores) if self.scores else None

    @property
    def gain(self) -> float | None:
        return self.verdict.gain if isinstance(self.verdict, Kept | Discarded) and self.experiment else None

    @property
    def error(self) -> float | None:
        return self.verdict.error if isinstance(self.verdict, Kept | Discarded) else None

    @property
    def memory_mb(self) -> float:
        ended = (*self.scores, *([self.crash] if self.crash else []))
        return max((outcome.measures.memory_mb for outcome in ended), default=0.0)

    @property
    def decided(self) -> bool:
        return self.status in ("kept", "discarded", "hopeless", "failed", "refused", "abandoned")


def entries(state: State) -> list[Entry]:
    """All experiments by number."""
    found = [_closed(finding) for finding in state.findings]
    found += _under_way(state)
    return sorted(found, key=lambda entry: entry.experiment)


def entry(state: State, experiment: int) -> Entry | None:
    """One of them; None where there is no such experiment."""
    for finding in reversed(state.findings):
        if finding.experiment == experiment:
            return _closed(finding)
    return next((found for found in _under_way(state) if found.experiment == experiment), None)


def hopefuls(found: Iterable[Entry]) -> list[Entry]:
    """Those that were worth a second seed: kept once confirmed, or refused after all."""
    return [e for e in found if e.experiment and len(e.scores) > 1 and isinstance(e.verdict, Kept | Discarded)]


def _under_way(state: State) -> Iterator[Entry]:
    best = state.best.experiment if state.best else 0
    for number, stage in state.open.items():
        if not isinstance(stage, Remeasuring):
            yield _open(number, stage, best)


def _closed(finding: Finding) -> Entry:
    return Entry(
        finding.experiment,
        _status(finding.verdict),
        finding.proposal,
        finding.against,
        finding.made,
        finding.scores,
        finding.crash,
        finding.verdict,
        finding.postmortem,
    )


def _open(number: int, stage: Stage, best: int) -> Entry:
    match stage:
        case Idea(proposal):
            return Entry(number, "proposed", proposal, best)
        case Candidate(proposal, made, scores):
            return Entry(number, "ready", proposal, made.base, made, scores)
        case Training(Candidate(proposal, made, scores)):
            return Entry(number, "training", proposal, made.base, made, scores)
        case Broken(Candidate(proposal, made, scores), crash):
            return Entry(number, "broken", proposal, made.base, made, scores, crash)
        case Decided(Candidate(proposal, made, scores), verdict, crash, against):
            return Entry(number, _status(verdict), proposal, against, made, scores, crash, verdict)
        case Remeasuring():
            return Entry(number, "training", BASELINE, best)


def _status(verdict: Verdict | Refused | Abandoned) -> Status:
    match verdict:
        case Kept():
            return "kept"
        case Discarded():
            return "discarded"
        case Failed(failure=failure):
            return "hopeless" if failure == "hopeless" else "failed"
        case Refused():
            return "refused"
        case Abandoned():
            return "abandoned"
