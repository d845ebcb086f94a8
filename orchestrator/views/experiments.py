"""Give each experiment, closed or open, a row with all that is known about it; every view is written from rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from statistics import fmean

from orchestrator.core import events as ev
from orchestrator.core import state as st
from orchestrator.core.task import EXAMINED, Task
from orchestrator.core.text import flatten, make_printable, shorten
from orchestrator.policy.limits import remember, remember_each
from orchestrator.ports import Log

UNFINISHED: Mapping[type[st.Stage], st.Status] = {
    st.Idea: "proposed",
    st.Candidate: "ready",
    st.Training: "training",
    st.Broken: "broken",
}
REASON = 1_000  # characters of a verdict's reason
DIFF_LINES, DIFF_CHARACTERS = 80, 20_000  # longer diffs are cut; the commit holds the whole


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A log as it stood at one moment, from which views can be rendered in any thread."""

    state: st.State
    records: Sequence[ev.Record]
    get: Callable[[ev.Digest], str]


LogReader = Log | Snapshot


@dataclass(frozen=True, slots=True)
class ExperimentRow:
    """An experiment; what is not known yet is empty."""

    experiment: int
    status: st.Status
    proposal: ev.Proposal
    incumbent: int  # the experiment whose train.py it is measured against
    commit: ev.Committed | None = None
    scores: tuple[ev.Scored, ...] = ()
    crash: ev.Crashed | None = None
    verdict: ev.Verdict | ev.Refused | ev.Abandoned | ev.Vetoed | None = None
    """None while the experiment is under way."""
    postmortem: ev.Postmortem | None = None
    compared: tuple[ev.Scored, ...] = ()  # the incumbent's runs that the verdict compares with
    task: Task = EXAMINED
    promotion: float = inf  # its place in the order of keeps, which is not that of the numbers where there are slots

    @property
    def title(self) -> str:
        return make_printable(flatten(self.proposal.title))

    @property
    def is_gain(self) -> bool:
        """Whether the branch holds it as a gain: it is promoted, has not been reverted, and reverts nothing."""
        return self.status == "kept" and self.proposal.reverts is None and self.promotion < inf

    @property
    def value(self) -> float | None:
        return None if self.val_bpb is None else self.task.metric.sign * self.val_bpb

    @property
    def val_bpb(self) -> float | None:
        return fmean(score.val_bpb for score in self.scores) if self.scores else None

    @property
    def gain(self) -> float | None:
        return getattr(self.verdict, "gain", None) if self.experiment else None

    @property
    def error(self) -> float | None:
        return getattr(self.verdict, "error", None)

    @property
    def reason(self) -> str:
        return make_printable(shorten(getattr(self.verdict, "reason", ""), REASON))

    @property
    def runs(self) -> Sequence[ev.RunResult]:
        """The scored runs; if there are none, the run that crashed or was pruned."""
        return self.scores or [run for run in (self.crash, self.verdict) if isinstance(run, ev.Crashed | ev.Pruned)]


@remember
def list_rows(state: st.State) -> Sequence[ExperimentRow]:
    """Return all experiments by number."""
    commits = [state.parents.get(result.experiment) for result in state.judged]
    order = {number: place for place, number in enumerate([*state.former, state.best])}
    rows = _make_rows(state.judged, commits, [order.get(result.experiment, inf) for result in state.judged])
    return [row for _, row in sorted({row.experiment: row for row in (*rows, *list_open_rows(state))}.items())]


def list_open_rows(state: st.State, *stages: type[st.Stage]) -> list[ExperimentRow]:
    """Return the experiments without a verdict, or those of them in one of the stages."""
    return [_make_open_row(state, *item) for item in state.open.items() if type(item[1]) in (stages or UNFINISHED)]


@remember_each
def _make_rows(decided: st.Decided, promoted: ev.Committed | None, promotion: float) -> ExperimentRow:
    known = {field.name: getattr(decided, field.name) for field in fields(ExperimentRow) if field.name != "promotion"}
    row = ExperimentRow(**known, promotion=promotion)
    return replace(row, commit=promoted) if promoted and row.status in ("kept", "reverted") else row


def show_diff(log: LogReader, row: ExperimentRow) -> str:
    """Return the diff from the parent's train.py, cut if it is long; empty for the baseline."""
    if row.commit is None or row.experiment == 0:
        return ""
    lines = make_printable(st.diff_from_parent(log.state, row.commit, log.get, context=1)).split("\n")
    cut = [f"… {len(lines) - DIFF_LINES} more lines in commit {row.commit.commit[:12]}"] * (len(lines) > DIFF_LINES)
    return make_printable("\n".join([*lines[:DIFF_LINES], *cut]).rstrip("\n"), DIFF_CHARACTERS)


def _make_open_row(state: st.State, number: int, stage: st.Stage) -> ExperimentRow:
    commit, candidate = stage.commit, getattr(stage, "candidate", stage)
    parent = commit.parent if commit else state.best
    scores, crash = getattr(candidate, "scores", ()), getattr(stage, "crash", None)
    status, task = UNFINISHED[type(stage)], state.session.task
    return ExperimentRow(number, status, stage.proposal, parent, commit, scores, crash, task=task)
