"""Render report.html: a session on one page, in one file that asks nothing of any network.

Everything that agents wrote is untrusted text: Jinja escapes it, and the script only ever sets it as text.
"""

import base64
import gzip
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
from markupsafe import Markup

from orchestrator.core.curves import interpolate_loss
from orchestrator.core.description import FinishedRun
from orchestrator.core.state import diff_from_parent
from orchestrator.core.text import format_count, format_signed
from orchestrator.policy.pruning import count_false_prunes
from orchestrator.views.experiments import UNTRAINED, ExperimentRow, describe_row, list_rows, select_retried
from orchestrator.views.snapshot import LogReader
from orchestrator.views.summary import describe_controls, summarize
from orchestrator.views.usage import Run, list_runs, measure_utilization, summarize_trust

HERE = Path(__file__).parent
CURVE_POINTS = 48
DIFF_LINES = 80
LESSONS = 40
REFRESH_SECONDS = 30
"""Seconds between two looks of an open page for a newer one, while the session lives."""


class Page:
    """Renders the page; what it shows of a closed experiment is worked out once."""

    def __init__(self) -> None:
        self.known: dict[int, dict[str, Any]] = {}

    def render(self, log: LogReader) -> str:
        """Return the whole file as the log now stands."""
        state, runs, rows = log.state, list_runs(log.records), list_rows(log.state)
        experiments = [self.known.get(row.experiment) or describe_experiment(log, row, runs) for row in rows]
        closed = {result.experiment for result in state.results}
        self.known |= {e["number"]: e for e in experiments if e["number"] in closed}
        summary, start = summarize(state), runs[0].start if runs else state.started_at
        data = {
            "experiments": experiments,
            "runs": [_describe_run(run, start) for run in runs],
            "slots": state.session.slots,
            "sigma": summary.sigma,
        }
        trust = summarize_trust(log.records, count_false_prunes(state))
        return _load_template().render(
            session=state.session,
            summary=summary,
            runs=len(runs),
            used=measure_utilization(log.records, state.session.slots),
            stopping=state.stopping,
            waiting=[waiting.reason for waiting in state.waiting.values()],
            experiments=experiments,
            lineage=[e for e in experiments if e["status"] == "kept" and e["number"] > 0],
            families=summarize_families(rows),
            retried=[describe_confirmation(row) for row in select_retried(rows)],
            trust=trust,
            controls=describe_controls(trust),
            spending=sorted(state.usage.items(), key=lambda pair: -pair[1].usd),
            lessons=[e for e in reversed(experiments) if e["lesson"]][:LESSONS],
            live=not state.ended,
            refresh=REFRESH_SECONDS,
            css=Markup((HERE / "page.css").read_text()),  # noqa: S704 - our own
            script=Markup((HERE / "page.js").read_text()),  # noqa: S704 - our own
            plotly=_load_plotly(),
            data=pack(json.dumps(data, ensure_ascii=False, separators=(",", ":"))),
        )


def describe_experiment(log: LogReader, row: ExperimentRow, runs: Sequence[Run]) -> dict[str, Any]:
    """Return an experiment as the page's script reads it; `runs` are all runs of the session."""
    proposal, post, told = row.proposal, row.postmortem, describe_row(log.state, row)
    ends = [
        run.end for run in runs if run.experiment == row.experiment and run.outcome in ("scored", "crashed", "pruned")
    ]
    ends = ends[: len(row.scores) or 1]  # later ones only measured the incumbent again
    return {
        "number": row.experiment,
        "status": row.status,
        "title": proposal.title,
        "hypothesis": proposal.hypothesis,
        "rationale": proposal.rationale,
        "family": proposal.family,
        "author": proposal.author,
        "expected": proposal.expected_delta,
        "incumbent": row.incumbent,
        "commit": row.commit.commit[:12] if row.commit else "",
        "lines": len(log.get(row.commit.source).splitlines()) if row.commit else None,
        "diff": _show_diff(log, row),
        "score": told.val_bpb,
        "seeds": [score.val_bpb for score in row.scores],
        "gain": row.gain,
        "error": row.error,
        "reason": row.reason,
        "tier": row.runs[0].tier if row.runs else "",
        "curve": list(average_curve(row.runs)),
        "metrics": told.metrics,
        "memory": row.memory_mb,
        "hours": (max(ends) - log.state.started_at) / 3600 if ends else None,
        "happened": post.happened if post else "",
        "why": post.why if post else "",
        "lesson": post.lesson if post else "",
        "next": post.next if post else "",
    }


def average_curve(runs: Sequence[FinishedRun]) -> Iterator[tuple[float, float]]:
    """Yield share of the budget and mean loss of the runs, at CURVE_POINTS shares or fewer."""
    for share in (point / CURVE_POINTS for point in range(1, CURVE_POINTS + 1)):
        losses = [loss for run in runs if (loss := interpolate_loss(run.curve, share)) is not None]
        if losses:
            yield round(share, 4), round(fmean(losses), 4)


def summarize_families(rows: Sequence[ExperimentRow]) -> list[dict[str, Any]]:
    """Return what was trained by family, and what it gained, the most fruitful first."""
    families: dict[str, list[ExperimentRow]] = {}
    for row in rows:
        if row.experiment > 0 and row.is_decided and row.status not in UNTRAINED:
            families.setdefault(row.proposal.family, []).append(row)
    table = [_summarize_family(name, tried) for name, tried in families.items()]
    return sorted(table, key=lambda family: (-family["gain"], -family["tried"]))


def _summarize_family(name: str, tried: Sequence[ExperimentRow]) -> dict[str, Any]:
    kept = [row.gain or 0.0 for row in tried if row.status == "kept"]
    return {
        "name": name,
        "tried": len(tried),
        "kept": len(kept),
        "crashed": sum(row.status == "crashed" for row in tried),
        "gain": sum(kept),
        "best": max((row.gain for row in tried if row.gain is not None), default=None),
    }


def describe_confirmation(row: ExperimentRow) -> dict[str, Any]:
    """Return what more seeds showed of a change that looked better on its first; negative changes are better."""
    mean, gain = row.val_bpb or 0.0, row.gain or 0.0
    return {
        "number": row.experiment,
        "title": row.proposal.title,
        "status": row.status,
        "first": row.scores[0].val_bpb - (mean + gain),
        "change": -gain,
        "error": row.error,
        "seeds": len(row.scores),
        "reason": row.reason,
    }


def pack(text: str) -> str:
    """Return a text compressed, as a page can carry it; its script unpacks it by DecompressionStream."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


@cache
def _load_plotly() -> str:
    """Return plotly.js as its own Python package brings it: 4.8 MB, 2.0 MB packed."""
    from plotly.offline import get_plotlyjs  # takes a while to import

    return pack(get_plotlyjs())


@cache
def _load_template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"signed": format_signed, "count": format_count}
    return environment.get_template("page.html")


def _describe_run(run: Run, start: float) -> dict[str, Any]:
    return {
        "slot": run.slot,
        "from": round(run.start - start, 1),
        "to": round(run.end - start, 1),
        "trained": round(run.train_seconds, 1),
        "number": run.experiment,
        "run": run.run,
        "outcome": run.outcome,
    }


def _show_diff(log: LogReader, row: ExperimentRow) -> str:
    if row.commit is None or row.experiment == 0:
        return ""
    lines = diff_from_parent(log.state, row.commit, log.get, context=1).splitlines()
    cut = [f"… {len(lines) - DIFF_LINES} more lines"] if len(lines) > DIFF_LINES else []
    return "\n".join([*lines[:DIFF_LINES], *cut])
