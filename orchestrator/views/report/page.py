"""report.html: a session on one page, in one file that asks nothing of any network.

Everything that agents wrote is untrusted text: Jinja escapes it, and the script only ever sets it as text.
"""

import base64
import gzip
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline
from markupsafe import Markup

from orchestrator.core import curves
from orchestrator.core.curves import thin_curve
from orchestrator.core.source import diff
from orchestrator.core.state import State, get_scores
from orchestrator.core.text import format_count, format_signed
from orchestrator.policy.noise import compute_sigma, pool_variance
from orchestrator.policy.pruning import count_false_prunes
from orchestrator.session.store import EventLog
from orchestrator.views.experiments import ExperimentRow, list_rows, select_retried
from orchestrator.views.usage import Run, list_runs, measure_utilization, summarize_trust

HERE = Path(__file__).parent
CURVE_POINTS = 48
DIFF_LINES = 80
REFRESH_SECONDS = 30
"""How often an open page looks for a newer one while the session lives."""
JUDGED = ("kept", "discarded", "pruned", "crashed")


class Page:
    """Builds the page from a log; what is said of a closed experiment is worked out once."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self.known: dict[int, dict[str, Any]] = {}

    def html(self) -> str:
        """The whole file as the log now stands."""
        state, held = self.log.state, list_runs(self.log.records)
        found, closed = list_rows(state), {result.experiment for result in state.results}
        experiments = [self.known.get(e.experiment) or describe_experiment(self.log, e, held) for e in found]
        self.known |= {e["number"]: e for e in experiments if e["number"] in closed}
        start = held[0].start if held else state.started_at
        data = {
            "experiments": experiments,
            "runs": [_describe_run(run, start) for run in held],
            "slots": state.session.slots,
            "sigma": compute_sigma(pool_variance(state)) if state.incumbent else 0.0,
            "budget": state.session.profile.budget_kind,
        }
        return _load_template().render(
            session=state.session,
            headline=describe_headline(self.log, found, held),
            experiments=experiments,
            lineage=[e for e in experiments if e["status"] == "kept" and e["number"] > 0],
            families=summarize_families(found),
            hopefuls=[describe_confirmation(entry) for entry in select_retried(found)],
            trust=summarize_trust(self.log.records, count_false_prunes(self.log.state)),
            spent=list_spending(state),
            lessons=[e for e in reversed(experiments) if e["lesson"] and e["status"] in ("kept", "discarded")][:40],
            live=not state.ended,
            refresh=REFRESH_SECONDS,
            css=Markup((HERE / "page.css").read_text()),  # noqa: S704 - our own
            script=Markup((HERE / "page.js").read_text()),  # noqa: S704 - our own
            plotly=_load_plotly(),
            data=pack(json.dumps(data, ensure_ascii=False, separators=(",", ":"))),
        )


def describe_experiment(log: EventLog, entry: ExperimentRow, held: Sequence[Run]) -> dict[str, Any]:
    """An experiment as the page's script wants it."""
    proposal, post, state = entry.proposal, entry.postmortem, log.state
    outcome = entry.scores[0] if entry.scores else entry.crash
    ended = [run.end for run in held if run.experiment == entry.experiment and run.outcome in ("scored", "crashed")]
    ended = ended[: len(entry.scores) or 1]  # later ones only measured the incumbent again
    return {
        "number": entry.experiment,
        "status": entry.status,
        "title": proposal.title,
        "hypothesis": proposal.hypothesis,
        "rationale": proposal.rationale,
        "family": proposal.family,
        "author": proposal.author,
        "expected": proposal.expected_delta,
        "base": entry.commit.parent if entry.commit else entry.incumbent,
        "against": entry.incumbent,
        "commit": entry.commit.commit[:12] if entry.commit else "",
        "lines": _count_lines(log, entry),
        "diff": _show_diff(log, entry),
        "score": entry.val_bpb,
        "seeds": [score.val_bpb for score in entry.scores],
        "gain": entry.gain,
        "error": entry.error,
        "reason": getattr(entry.verdict, "reason", ""),
        "tier": outcome.tier if outcome else "",
        "curve": [[round(p.progress, 4), round(p.loss, 4)] for p in thin_curve(outcome.curve, CURVE_POINTS)]
        if outcome
        else [],
        "measures": [
            [name, *pair] for name, *pair in curves.compare_metrics(entry.scores, get_scores(state, entry.incumbent))
        ],
        "memory": entry.memory_mb,
        "hours": (max(ended) - state.started_at) / 3600 if ended else None,
        "verdict": post.verdict if post else "",
        "happened": post.happened if post else "",
        "why": post.why if post else "",
        "lesson": post.lesson if post else "",
        "next": post.next if post else "",
    }


def describe_headline(log: EventLog, found: Sequence[ExperimentRow], held: Sequence[Run]) -> dict[str, Any]:
    """What one wants to know first."""
    state, best = log.state, log.state.incumbent
    used = measure_utilization(log.records, state.session.slots)
    judged = [entry for entry in found if entry.experiment > 0 and entry.status in JUDGED]
    baseline = found[0].val_bpb if found else None
    deviation = compute_sigma(pool_variance(state)) if best else 0.0
    fall = baseline - best.score_to_beat if best and baseline else 0.0
    return {
        "baseline": baseline,
        "best": best.score_to_beat if best else None,
        "fall": fall,
        "percent": 100 * fall / baseline if baseline else 0.0,
        "sigma": deviation,
        "sigmas": fall / deviation if deviation else 0.0,
        "judged": len(judged),
        "kept": sum(entry.status == "kept" for entry in judged),
        "seeds": min((len(entry.scores) for entry in judged if entry.status == "kept"), default=0),
        "crashed": sum(entry.status == "crashed" for entry in judged),
        "pruned": sum(entry.status == "pruned" for entry in judged),
        "unrun": sum(entry.status in ("refused", "abandoned") for entry in found),
        "runs": len(held),
        "hours": (state.now - state.started_at - state.away) / 3600,
        "occupancy": used.occupancy,
        "duty": used.duty,
        "usd": state.usd,
        "unpriced": sum(spent.unpriced for spent in state.usage.values()),
        "ended": state.ended,
        "stopping": state.stopping,
        "waiting": [waiting.reason for waiting in state.waiting.values()],
    }


def summarize_families(found: Sequence[ExperimentRow]) -> list[dict[str, Any]]:
    """What was tried by family, and what it yielded, the most fruitful first."""
    names: dict[str, list[ExperimentRow]] = {}
    for entry in found:
        if entry.experiment > 0 and entry.status in JUDGED:
            names.setdefault(entry.proposal.family, []).append(entry)
    rows: list[dict[str, Any]] = []
    for name, tried in names.items():
        kept = [entry.gain or 0.0 for entry in tried if entry.status == "kept"]
        gains = [entry.gain for entry in tried if entry.gain is not None]
        rows.append(
            {
                "name": name,
                "tried": len(tried),
                "kept": len(kept),
                "crashed": sum(entry.status == "crashed" for entry in tried),
                "gain": sum(kept),
                "best": max(gains, default=None),
            }
        )
    return sorted(rows, key=lambda row: (-row["gain"], -row["tried"]))


def describe_confirmation(entry: ExperimentRow) -> dict[str, Any]:
    """What more seeds made of a change that looked good on its first; changes of val_bpb, negative is better."""
    mean, gain = entry.val_bpb or 0.0, entry.gain or 0.0
    return {
        "number": entry.experiment,
        "title": entry.proposal.title,
        "status": entry.status,
        "first": entry.scores[0].val_bpb - (mean + gain),
        "change": -gain,
        "error": entry.error,
        "seeds": len(entry.scores),
        "reason": getattr(entry.verdict, "reason", ""),
    }


def list_spending(state: State) -> list[dict[str, Any]]:
    """Tokens and dollars by agent."""
    rows = [
        {"agent": agent, "input": s.input, "cached": s.cached, "output": s.output, "usd": s.usd, "unpriced": s.unpriced}
        for agent, s in state.usage.items()
    ]
    return sorted(rows, key=lambda row: -row["usd"])


def pack(text: str) -> str:
    """Compressed, as a page can carry it; its script unpacks it by DecompressionStream."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


@cache
def _load_plotly() -> str:
    """Plotly, as its own Python package brings it: 4.8 MB, 2.0 MB packed."""
    return pack(plotly.offline.get_plotlyjs())


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


def _show_diff(log: EventLog, entry: ExperimentRow) -> str:
    if entry.commit is None or entry.experiment == 0:
        return ""
    base = log.get(log.state.parents[entry.commit.parent].source)
    lines = diff(base, log.get(entry.commit.source), context=1).splitlines()
    cut = [f"… {len(lines) - DIFF_LINES} more lines"] if len(lines) > DIFF_LINES else []
    return "\n".join([*lines[:DIFF_LINES], *cut])


def _count_lines(log: EventLog, entry: ExperimentRow) -> int | None:
    """Lines of its train.py."""
    return len(log.get(entry.commit.source).splitlines()) if entry.commit else None
