"""Set sessions side by side: what each gained, and what it cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from orchestrator.core import events as ev
from orchestrator.core.state import State, apply
from orchestrator.policy.noise import get_t_90
from orchestrator.views.charts import Course, draw_courses
from orchestrator.views.experiments import UNTRAINED
from orchestrator.views.render import render_page
from orchestrator.views.summary import Summary, summarize


@dataclass(frozen=True, slots=True)
class SessionFigures:
    """A session in figures."""

    name: str
    arm: str
    """Crew and style: sessions of one arm are repetitions of each other."""
    conditions: tuple[int, str, float, float]
    """Seed, data, budget and hours: nights that agree in these are paired."""
    summary: Summary
    experiments: int
    """Experiments that were trained and judged."""
    repeats: int
    """Refused before they were trained."""
    families: int
    tokens: int
    """Tokens read and written by all agents."""
    course: Course

    @property
    def gain(self) -> float:
        return self.summary.gain

    @property
    def keep_rate(self) -> float:
        return self.summary.kept / self.experiments if self.experiments else 0.0


FIGURES: Mapping[str, Callable[[SessionFigures], str]] = {
    "crew and style": lambda row: row.arm,
    "experiments": lambda row: str(row.experiments),
    "kept": lambda row: f"{row.summary.kept} ({row.keep_rate:.0%})",
    "crashed": lambda row: str(row.summary.crashed),
    "repeats refused": lambda row: str(row.repeats),
    "families tried": lambda row: str(row.families),
    "baseline": lambda row: f"{row.summary.baseline:.4f}",
    "best": lambda row: f"{row.summary.best:.4f}",
    "gain": lambda row: f"{row.gain:.4f}",
    "σ of one run": lambda row: f"{row.summary.sigma:.4f}",
    "hours": lambda row: f"{row.summary.hours:.2f}",
    "tokens/experiment": lambda row: f"{row.tokens // max(row.experiments, 1):,}",
    "$/experiment": lambda row: (
        "unknown" if row.summary.usd is None else f"{row.summary.usd / max(row.experiments, 1):.3f}"
    ),
}
"""What is told of a session, by its name in the table."""


def summarize_session(state: State, records: Sequence[ev.Record]) -> SessionFigures:
    """Return the figures of one session. Raises ValueError where it has no baseline yet."""
    if state.incumbent is None:
        raise ValueError(f"{state.session.name} has no baseline yet")
    profile = state.session.profile
    summary, arm = summarize(state), f"{state.session.crew} {state.session.style}".rstrip()
    trained = [result for result in state.tried if result.status not in UNTRAINED]
    return SessionFigures(
        name=state.session.name,
        arm=arm,
        conditions=(state.session.seed, profile.data_hash, profile.budget, state.session.limits.hours),
        summary=summary,
        experiments=len(trained),
        repeats=sum(result.status == "refused" for result in state.tried),
        families=len({result.proposal.family for result in trained}),
        tokens=sum(usage.input + usage.output for usage in state.usage.values()),
        course=_trace_best(arm, summary, records),
    )


def _trace_best(arm: str, summary: Summary, records: Sequence[ev.Record]) -> Course:
    """Return the best score from each keep on, along experiments, hours and dollars.

    Only keeps move it: runs that measure an incumbent again correct its score from its keep on.
    """
    state, moments = State(), list[State]()
    best: list[float] = []
    for record in records:
        state = apply(state, record)
        if isinstance(record.event, ev.Kept):
            moments.append(state)
            best.append(record.event.score_to_beat)
    best[0], best[-1] = summary.baseline or best[0], summary.best or best[-1]
    moments.append(state)
    places = {
        "experiments": [len({*(r.experiment for r in moment.results), moment.best} - {0}) for moment in moments],
        "hours": [moment.hours for moment in moments],
        "dollars": [moment.usd for moment in moments],
    }
    return Course(arm, state.session.name, [*best, best[-1]], places)


def compute_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 90 % interval of the mean by Student's t: of few nights it is wide, and holds what it says."""
    margin = get_t_90(len(values) - 1) * stdev(values) / sqrt(len(values))
    return fmean(values) - margin, fmean(values) + margin


def pair_gains(arm: Sequence[SessionFigures], other: Sequence[SessionFigures]) -> list[float]:
    """Return how much more one arm gained, for nights of equal seeds that were measured alike."""
    theirs = {row.conditions: row.gain for row in other}
    return [row.gain - theirs[row.conditions] for row in arm if row.conditions in theirs]


def group_arms(rows: Sequence[SessionFigures]) -> Mapping[str, Sequence[SessionFigures]]:
    """Return repetitions together, in the order of their first appearance."""
    return {arm: [r for r in rows if r.arm == arm] for arm in dict.fromkeys(r.arm for r in rows)}


def render_comparison(rows: Sequence[SessionFigures]) -> str:
    """Return a page with the table of figures, and one stepped line for each session in the color of its arm."""
    return render_page("compare.html", {"courses": draw_courses([row.course for row in rows])}, rows=rows, told=FIGURES)
