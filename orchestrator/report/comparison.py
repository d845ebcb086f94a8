"""compare.html: the best so far of several sessions, by experiments, hours and dollars, in one file."""

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import plotly.graph_objects as go
import plotly.io
from plotly import subplots

from orchestrator.compare import Moment, Row, arms

AXES: tuple[tuple[str, Callable[[Moment], float]], ...] = (
    ("experiments", lambda moment: moment.experiments),
    ("hours", lambda moment: moment.hours),
    ("dollars", lambda moment: moment.usd),
)
COLORS = ("#3b6fd4", "#d4553b", "#2f9e6e", "#8d5bc9", "#c08a1e", "#4a9fb5")


def comparison(rows: Sequence[Row]) -> str:
    """The page: one color for each arm, one stepped line for each session."""
    figure: Any = subplots.make_subplots(cols=len(AXES), shared_yaxes=True, horizontal_spacing=0.04)
    for color, (arm, members) in zip(cycle(COLORS), arms(rows).items(), strict=False):
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
