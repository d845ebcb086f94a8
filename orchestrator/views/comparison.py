"""Compare sessions side by side: what each gained, and what it cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, combinations, cycle
from math import hypot, sqrt
from statistics import fmean, stdev

from orchestrator.core import events as ev
from orchestrator.core.state import UNTESTED, State, apply, fold
from orchestrator.core.task import Metric
from orchestrator.policy.evidence import get_t_90
from orchestrator.session.memory import list_conditions
from orchestrator.views.charts import Figure, render_page
from orchestrator.views.summary import Summary, summarize
from prepare.command import UserError

DASHES = ("solid", "dash", "dot", "dashdot")
ARMS = ("#4f86e0", "#d9663c", "#2f9e6e", "#a06fd6", "#b98a1f", "#4a9fb5")


@dataclass(frozen=True, slots=True)
class SessionFigures:
    """The figures of one session."""

    arm: str  # crew and style; sessions of one arm are repetitions
    name: str
    metric: Metric
    began: float  # seconds since the epoch
    conditions: tuple[int, tuple[object, ...], float, str]
    """Seed, ground, hours, and for a fork its parent and event; sessions of two arms that agree are paired. The ground
    is all that must be equal for scores to be compared: data, budget and task."""
    gain: float
    margin: float  # half the width of the gain's 90 % interval
    step: float  # mean gain of its own experiments, each over what it changed; 0 where one was not measured
    best: Sequence[float]  # the baseline, the score to beat after each keep, and the last one twice
    places: Mapping[str, Sequence[float]]  # positions of the best scores, by axis
    table: Mapping[str, str]
    gpu: str = ""  # its model; empty where there is none, or where it was not recorded


def summarize_session(state: State, records: Sequence[ev.Record]) -> SessionFigures:
    """Return the figures of one session. Raises UserError if it has no baseline."""
    if state.incumbent is None:
        raise UserError(f"{state.session.name} has no baseline yet")
    summary, arm = summarize(state), f"{state.session.crew} {state.session.style}".rstrip()
    metric, forks = summary.task.metric, [at for at, each in enumerate(records) if isinstance(each.event, ev.Forked)]
    shared = fold(records[: max(forks, default=-1) + 1])  # what a fork has of its parent
    judged, inherited = ([r for r in each.judged if r.experiment and not r.is_lost] for each in (state, shared))
    tested, own = [r for r in judged if r.status not in UNTESTED], max(len(judged) - len(inherited), 1)
    verdicts = [r.verdict for r in judged if r.experiment >= shared.next or r.experiment in shared.skipped]
    step = sum(verdict.gain for verdict in verdicts if isinstance(verdict, ev.Evidence)) / max(len(verdicts), 1)
    tokens, before = (sum(u.input + u.output for u in each.usage.values()) for each in (state, shared))
    table = {
        "crew and style": arm,
        "experiments": f"{summary.tried:,}",
        "shared with its parent": str(len(inherited)),
        "not tested": str(summary.untested),
        "kept": f"{summary.kept} ({100 * summary.kept / max(summary.tried, 1):.0f} %)",
        "crashed": str(sum(result.status == "crashed" for result in judged)),
        "repeats refused": str(sum(result.status == "refused" for result in judged)),
        "families tried": str(len({result.proposal.family for result in tested})),
        "baseline": metric.format_score(summary.baseline),
        "best": metric.format_score(summary.best),
        "gain": metric.format_size(summary.gain),
        "± at 90 %": metric.format_size(summary.margin),
        "measured": "on fresh seeds" if summary.certificate else "by estimate",
        "σ of one run": metric.format_size(summary.sigma),
        "hours": f"{summary.hours:.2f}",
        "tokens per experiment": f"{(tokens - before) // own:,}",
        "$ per experiment": "unknown" if summary.usd is None else f"{(summary.usd - shared.usd) / own:.3f}",
    }
    night, best = state.session, _trace_best(summary, records)
    origin = next((each.event.parent for each in reversed(records) if isinstance(each.event, ev.Forked)), "")
    conditions = (night.seed, list_conditions(night.profile, night.task), night.limits.hours, origin)
    shown = arm, night.name, metric, state.started_at, conditions
    return SessionFigures(*shown, summary.gain, summary.margin, step, *best, table, night.gpu)


def _trace_best(summary: Summary, records: Sequence[ev.Record]) -> tuple[list[float], dict[str, Sequence[float]]]:
    """Return the best scores in order, and their positions along each axis."""
    state, moments, best, numbers = State(), list[State](), list[float](), list[int]()
    for record in records:
        state = apply(state, record)
        if isinstance(record.event, ev.Kept):  # only keeps: later runs correct the score from its keep on
            moments.append(state)
            best.append(record.event.score_to_beat)
            numbers.append(record.event.experiment)
    places: dict[str, Sequence[float]] = {
        "experiments": [*accumulate((*numbers, summary.tried), max)],  # slots may decide a later one first
        "hours": [moment.hours for moment in (*moments, state)],
        "dollars": [moment.usd for moment in (*moments, state)],
    }
    levels = (summary.baseline or 0.0, *best[1:], summary.best or 0.0)
    return [summary.task.metric.sign * level for level in levels], places


def drop_copies(rows: Sequence[SessionFigures]) -> list[SessionFigures]:
    """Return each session once: a copy of its file counts for nothing."""
    return [*{(row.name, row.conditions[0], row.began): row for row in rows}.values()]


def explain_ground(rows: Sequence[SessionFigures]) -> str:
    """Return why the gains of these sessions say nothing together; empty where they do."""
    differ = (
        any(row.conditions[1] != rows[0].conditions[1] for row in rows) or len({row.gpu for row in rows} - {""}) > 1
    )
    return "Their data, GPUs, budgets or tasks differ, so their gains are not compared." * differ


def _compute_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half its 90 % interval by Student's t, which is valid for few sessions, too."""
    return fmean(values), get_t_90(len(values) - 1) * stdev(values) / sqrt(len(values))


def _average_equals(rows: Sequence[SessionFigures]) -> dict[tuple[object, ...], tuple[float, float]]:
    """Return gain and step by conditions, each the mean of the sessions that agree in them: one side of a pair."""
    equals = {row.conditions: [each for each in rows if each.conditions == row.conditions] for row in rows}
    return {each: (fmean(r.gain for r in same), fmean(r.step for r in same)) for each, same in equals.items()}


def list_findings(rows: Sequence[SessionFigures]) -> list[tuple[str, float, float]]:
    """Return what the sessions show together: each a sentence, a gain, and half its 90 % interval.

    Repetitions are averaged, and arms compared by pairs: of nights with equal seeds, or of what the experiments of
    forks from one event have gained. Where there are none, each session is compared with the first, both with the
    errors of their own; nothing where data or budgets differ. Raises UserError if they are scored differently.
    """
    if any(row.metric != rows[0].metric for row in rows):
        metrics = ", ".join(f"{row.name} by {row.metric.name} ({row.metric.goal})" for row in rows)
        raise UserError(f"these sessions are scored differently: {metrics}")
    if explain_ground(rows):
        return []
    found = list[tuple[str, float, float]]()
    arms = {arm: [row for row in rows if row.arm == arm] for arm in dict.fromkeys(row.arm for row in rows)}
    for arm, members in arms.items():
        if len(nights := [row.gain for row in members if not row.conditions[-1]]) > 1:  # a fork is none of its own
            found.append((f"{arm}, mean of {len(nights)} nights", *_compute_interval(nights)))
    sides = {arm: _average_equals(members) for arm, members in arms.items()}
    for (arm, ours), (other, theirs) in combinations(sides.items(), 2):
        shared = [conditions for conditions in ours if conditions in theirs]
        whole = [ours[each][0] - theirs[each][0] for each in shared if not each[-1]]
        single = [ours[each][1] - theirs[each][1] for each in shared if each[-1]]
        if len(whole) > 1:
            found.append((f"{arm} more than {other}, {len(whole)} pairs of equal seeds", *_compute_interval(whole)))
        if len(single) > 1:
            words = f"an experiment of {arm} more than one of {other}, from {len(single)} equal states"
            found.append((words, *_compute_interval(single)))
    return found or [
        (f"{row.name} more than {rows[0].name}", row.gain - rows[0].gain, hypot(row.margin, rows[0].margin))
        for row in rows[1:]
    ]


def draw_courses(courses: Sequence[SessionFigures]) -> dict[str, Figure]:
    """Draw the best scores of sessions, in one color per arm: a chart for each axis that is not all zero."""
    colors = dict(zip(dict.fromkeys(course.arm for course in courses), cycle(ARMS), strict=False))
    lines = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": escape(f"{course.name} ({course.arm})"),  # plotly makes links of a text that has some
            "y": course.best,
            "line": {"color": colors[course.arm], "shape": "hv", "dash": dash},
        }
        for course, dash in zip(courses, cycle(DASHES), strict=False)
    ]
    legend = {"showlegend": True, "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.25}}
    return {
        axis: {
            "data": [line | {"x": course.places[axis]} for line, course in zip(lines, courses, strict=True)],
            "layout": {"xaxis": {"title": {"text": axis}}, "yaxis": {"title": {"text": "best so far"}}, **legend},
        }
        for axis in courses[0].places
        if any(max(course.places[axis]) for course in courses)
    }


def render_comparison(rows: Sequence[SessionFigures]) -> str:
    """Return a page with the gains and what they show, the charts of best scores and the table of figures."""
    found, differ = list_findings(rows), explain_ground(rows)
    return "".join(render_page("compare.html", draw_courses(rows), rows=rows, found=found, differ=differ))
