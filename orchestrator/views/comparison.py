"""Set sessions side by side: what each gained, and what it cost."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import fmean
from typing import Any

import plotly.graph_objects as go
import plotly.io
from plotly import subplots

from orchestrator.core import events as ev
from orchestrator.core.state import State, apply
from orchestrator.views.experiments import UNTRAINED
from orchestrator.views.summary import summarize

RESAMPLES = 2_000
"""Bootstrap samples: enough for two digits of an interval."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The best score so far, at a moment when it changed."""

    experiments: int
    hours: float
    usd: float
    best: float


@dataclass(frozen=True, slots=True)
class SessionFigures:
    """A session in figures."""

    name: str
    arm: str
    """Crew and style: sessions of one arm are repetitions of each other."""
    experiments: int
    """Experiments that were trained and judged."""
    kept: int
    crashes: int
    repeats: int
    """Refused before they were trained."""
    families: int
    baseline: float
    best: float
    hours: float
    usd: float | None
    tokens: int
    """Tokens read and written by all agents."""
    course: tuple[Progress, ...]

    @property
    def gain(self) -> float:
        return self.baseline - self.best

    @property
    def keep_rate(self) -> float:
        return self.kept / self.experiments if self.experiments else 0.0


def summarize_session(state: State, records: Sequence[ev.Record]) -> SessionFigures:
    """Return the figures of one session. Raises ValueError where it has no baseline yet."""
    if state.incumbent is None:
        raise ValueError(f"{state.session.name} has no baseline yet")
    summary, course = summarize(state), _trace_best(records)
    trained = [result for result in state.tried if result.status not in UNTRAINED]
    return SessionFigures(
        name=state.session.name,
        arm=f"{state.session.crew} {state.session.style}".rstrip(),
        experiments=len(trained),
        kept=summary.kept,
        crashes=summary.crashed,
        repeats=sum(result.status == "refused" for result in state.tried),
        families=len({result.proposal.family for result in trained}),
        baseline=course[0].best,
        best=state.incumbent.score_to_beat,
        hours=summary.hours,
        usd=summary.usd,
        tokens=sum(usage.input + usage.output for usage in state.usage.values()),
        course=course,
    )


def _trace_best(records: Sequence[ev.Record]) -> tuple[Progress, ...]:
    """Return the best so far by experiments, hours and dollars, from the baseline on."""
    state, moments = State(), list[Progress]()
    for record in records:
        state = apply(state, record)
        if state.incumbent and isinstance(record.event, ev.Promoted | ev.Proposed | ev.ModelReplied | ev.Kept):
            best = min(state.incumbent.score_to_beat, moments[-1].best) if moments else state.incumbent.score_to_beat
            tried = {*(result.experiment for result in state.results), state.best} - {0}
            moment = Progress(len(tried), state.hours, state.usd, best)
            if not moments or moment.best < moments[-1].best:
                moments.append(moment)
    if moments:
        moments.append(Progress(len(state.tried), state.hours, state.usd, moments[-1].best))
    return tuple(moments)


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return a 90 % bootstrap interval of the mean; of a single value, that value twice."""
    luck = random.Random(seed)  # noqa: S311 - statistics, no secret
    means = sorted(fmean(luck.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return means[RESAMPLES // 20], means[-RESAMPLES // 20]


def group_arms(rows: Sequence[SessionFigures]) -> Mapping[str, Sequence[SessionFigures]]:
    """Return repetitions together, in the order of their first appearance."""
    return {arm: [r for r in rows if r.arm == arm] for arm in dict.fromkeys(r.arm for r in rows)}


AXES: tuple[tuple[str, Callable[[Progress], float]], ...] = (
    ("experiments", lambda moment: moment.experiments),
    ("hours", lambda moment: moment.hours),
    ("dollars", lambda moment: moment.usd),
)
COLORS = ("#3b6fd4", "#d4553b", "#2f9e6e", "#8d5bc9", "#c08a1e", "#4a9fb5")


def render_comparison(rows: Sequence[SessionFigures]) -> str:
    """Return a page with one color for each arm and one stepped line for each session."""
    figure: Any = subplots.make_subplots(cols=len(AXES), shared_yaxes=True, horizontal_spacing=0.04)
    for color, (arm, members) in zip(cycle(COLORS), group_arms(rows).items(), strict=False):
        for row in members:
            for column, (_, along) in enumerate(AXES, 1):
                line: Any = go.Scatter(
                    x=[along(moment) for moment in row.course],
                    y=[moment.best for moment in row.course],
                    name=arm,
                    legendgroup=arm,
                    showlegend=column == 1 and row is members[0],
                    line={"color": color, "shape": "hv"},
                    mode="lines+markers",
                    hovertemplate=f"{row.name}<br>%{{x:.4g}}: %{{y:.4f}}<extra></extra>",
                )
                figure.add_trace(line, row=1, col=column)
    for column, (title, _) in enumerate(AXES, 1):
        figure.update_xaxes(title_text=title, row=1, col=column)
    figure.update_yaxes(title_text="best val_bpb so far", row=1, col=1)
    figure.update_layout(template="plotly_white", title="Sessions side by side", height=480)
    return str(plotly.io.to_html(figure, include_plotlyjs=True, full_html=True))
