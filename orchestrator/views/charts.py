"""Build the report's charts as plotly figures, which the page styles and draws.

Colors are readable on white and on black, since the page follows the reader's system. Text by agents is escaped.
"""

import base64
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from html import escape
from itertools import accumulate
from math import inf, sqrt
from operator import attrgetter
from statistics import fmean
from typing import Any

from markupsafe import Markup

from orchestrator.core import events as ev
from orchestrator.core.description import average_telemetry, interpolate_losses
from orchestrator.policy.limits import remember_each
from orchestrator.views.experiments import ExperimentRow
from orchestrator.views.render import TEMPLATES, render_template
from orchestrator.views.summary import Summary

Figure = dict[str, Any]  # in plotly's own schema: `data`, a list of traces, and `layout`
ACCENT, GOOD, BAD, GREY = "#7a70e8", "#1f9d72", "#d9534f", "#8b90a3"
BAND = "rgba(122,112,232,0.16)"
CURVE_POINTS = 48
CROWD = 150  # points above which their error bars get thinner, or they would hide each other
STEPPED = ("experiment", "hours")  # axes along which the score to beat is drawn as steps
SHARE = {"title": {"text": "% of the budget"}}
BESIDE = {"showlegend": True, "legend": {"x": 1.02, "xanchor": "left"}}
INSIDE: Mapping[str, Figure] = {
    "position": {"xaxis": {"title": {"text": "position in the row"}, "type": "category"}},
    **{kind: {"xaxis": SHARE, "yaxis": {"type": "log"}, **BESIDE} for kind in ("gradient", "update")},
    "scalar": {"xaxis": SHARE, **BESIDE},
}
"""Layouts of what is drawn of the inside of a model, by kind."""
Places = Mapping[int, float | None]  # position along an axis by experiment
STAIRS = {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "line": {"shape": "hv", "width": 0}}


def draw_progress(rows: Sequence[ExperimentRow], axes: Mapping[str, Places], summary: Summary) -> Figure:
    """Draw every experiment's score with its error bar, and the score to beat within the noise band of one run.

    The chart opens along the first of STEPPED; buttons switch to the other axes on which experiments differ.
    """
    scored = [row for row in rows if row.scores]
    kept = sorted((row for row in scored if row.status == "kept"), key=attrgetter("promotion"))
    others = [row for row in scored if row.status != "kept"]
    failed = [row for row in rows if row.status in ("crashed", "pruned")]
    scores, metric = sorted(row.val_bpb or 0.0 for row in scored) or [0.0], summary.task.metric
    sign, usual, low = metric.sign, scores[int(0.9 * (len(scores) - 1))], scores[0]
    top = max(usual if summary.baseline is None else summary.baseline, usual) + 4 * summary.sigma
    levels = [row.verdict.score_to_beat for row in kept if isinstance(row.verdict, ev.Kept)]
    if levels and summary.baseline is not None and summary.best is not None:
        levels = [summary.baseline, *levels[1:], summary.best]  # a line begins and ends as the summary tells
    noise = 2 * summary.sigma
    told = {row.experiment: text for row, text in zip(rows, _describe_point(rows), strict=True)}
    draw = partial(_draw_points, told=told, top=top, noise=noise)
    traces: list[Figure] = [
        STAIRS | {"y": [level - noise for level in levels]},
        STAIRS | {"y": [level + noise for level in levels], "fill": "tonexty", "fillcolor": BAND},
        draw(others, color=GREY, size=max(4, 7 - len(scored) // 50)),
        draw(failed, color=BAD, size=8),
        STAIRS | {"y": levels, "line": {"shape": "hv", "width": 2, "color": ACCENT}},  # many points would hide it
        draw(kept, color=GOOD, size=11),
    ]
    offered = {
        axis: _place(axis, places, (others, failed, kept))
        for axis, places in axes.items()
        if axis == STEPPED[0] or len({places.get(row.experiment) for row in scored}) > 1
    }
    buttons = [
        {"label": escape(axis), "method": "update", "args": [{"x": along}, {"xaxis.title.text": escape(axis)}]}
        for axis, along in offered.items()
    ]
    margin = 0.06 * (top - low) + noise
    layout = {
        "xaxis": {"title": {"text": STEPPED[0]}},
        "yaxis": {"title": {"text": metric.name}, "range": sorted((sign * (low - margin), sign * (top + margin)))},
        "updatemenus": [{"buttons": buttons}] if len(buttons) > 1 else [],
        "margin": {"t": 44},
    }
    data = [
        trace | {"x": x, "y": [sign * y for y in trace["y"]]}
        for trace, x in zip(traces, offered[STEPPED[0]], strict=True)
    ]
    return {"data": data, "layout": layout}


def draw_curves(row: ExperimentRow) -> Figure | None:
    """Draw the mean training loss of an experiment, and dotted that of its incumbent; return None without points."""
    traces, settled = list[Figure](), list[float]()
    shown = ((row.experiment, row.runs, ACCENT, "solid"), (row.incumbent, row.compared, GREY, "dot"))
    for n, runs, color, dash in shown[: 2 if row.experiment else 1]:
        points = list(_average_curve(runs))
        settled += [loss for share, loss in points if share > 8 or len(points) < 6]
        x, y = [share for share, _ in points], [loss for _, loss in points]
        line = {"color": color, "dash": dash}
        traces.append({"type": "scatter", "mode": "lines", "name": f"experiment {n}", "x": x, "y": y, "line": line})
    if not settled:
        return None
    margin = 0.05 * (max(settled) - min(settled))
    layout = {
        "xaxis": SHARE,
        "yaxis": {"title": {"text": "training loss"}, "range": [min(settled) - margin, max(settled) + margin]},
        "showlegend": True,
        "hovermode": "x",
    }
    return {"data": traces, "layout": layout}


def draw_telemetry(row: ExperimentRow) -> dict[str, Figure]:
    """Draw what an experiment's runs reported of themselves, and the loss along a row: a figure for each kind."""
    figures = dict[str, Figure]()
    for name, points in average_telemetry(row.runs).items():
        kind, _, part = name.partition("/")
        if kind in INSIDE:
            x = [2**i // 2 if kind == "position" else round(100 * share) for i, (share, _) in enumerate(points)]
            y = [value if value or kind == "scalar" else None for _, value in points]  # 0 has no logarithm
            trace = {"type": "scatter", "name": escape(part), "x": x, "y": y}
            figures.setdefault(f"{kind}-{row.experiment}", {"data": [], "layout": INSIDE[kind]})["data"].append(trace)
    return figures


def render_page(
    name: str, figures: Mapping[str, Figure], written: Iterable[str] = (), **facts: object
) -> Iterator[str]:
    """Yield a page in parts, with its charts, also those that are written as JSON, and the library that draws them."""
    inside = ",".join(text[1:-1] for text in (json.dumps(figures), *written) if text != "{}")
    packed = {"figures": _pack(f"{{{inside}}}"), "plotly": _load_plotly()}
    return TEMPLATES.get_template(name).generate(packed=packed, figures=figures, **facts)


def _pack(text: str) -> Markup:
    """Return a text gzipped and in base64; the page's script unpacks it."""
    return Markup(base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode())  # noqa: S704 - base64


@cache
def _load_plotly() -> Markup:
    """Return plotly.js from its Python package, packed from 4.8 MB to 2.0 MB."""
    from plotly.offline import get_plotlyjs  # takes a while to import

    return _pack(get_plotlyjs())


def _draw_points(
    rows: Sequence[ExperimentRow], *, told: Mapping[int, str], top: float, noise: float, color: str, size: int
) -> Figure:
    """Draw experiments with error bars of two standard errors; failures and those off the scale at its top."""
    scores = [inf if row.val_bpb is None else row.val_bpb for row in rows]
    errors = [noise / sqrt(len(row.scores)) if score <= top else 0.0 for row, score in zip(rows, scores, strict=True)]
    width = CROWD / max(len(rows), CROWD)
    symbols = ["circle" if score <= top else "triangle-up" if score < inf else "x" for score in scores]
    return {
        "type": "scatter",
        "mode": "markers",
        "y": [min(score, top) for score in scores],
        "error_y": {"type": "data", "array": errors, "color": color, "thickness": width, "width": 0},
        "marker": {"color": color, "size": size, "symbol": symbols},
        "customdata": [row.experiment for row in rows],
        "hovertext": [told[row.experiment] for row in rows],
        "hoverinfo": "text",
    }


@remember_each
def _describe_point(row: ExperimentRow) -> str:
    return render_template("point.txt", row=row)


def _place(axis: str, places: Places, groups: Iterable[Sequence[ExperimentRow]]) -> list[list[float | None]]:
    """Return the positions of all traces along an axis: the band's and the line's are the steps of the last group."""
    points = [[places.get(row.experiment) for row in group] for group in groups]
    last = max((at for at in places.values() if at is not None), default=None)
    steps = accumulate((at or 0.0 for at in points[-1]), max)  # slots may decide a later one first
    stairs = [*steps, last] if axis in STEPPED else []
    return [stairs, stairs, *points[:-1], stairs, points[-1]]


def _average_curve(runs: Sequence[ev.RunResult]) -> Iterator[tuple[float, float]]:
    """Yield percent of the budget and mean loss of the runs, at most CURVE_POINTS times."""
    shares = [point / CURVE_POINTS for point in range(1, CURVE_POINTS + 1)]
    for share, *losses in zip(shares, *(interpolate_losses(run.curve, shares) for run in runs), strict=True):
        if known := [loss for loss in losses if loss is not None]:
            yield round(100 * share, 1), round(fmean(known), 4)
