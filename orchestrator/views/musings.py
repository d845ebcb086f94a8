"""The learning trail: one Markdown file per experiment, written to be read, and an index of them.

A projection of the log: `why we believed it` is on disk before anything is edited, and all of it can be written anew.
"""

import re
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from orchestrator.core import curves
from orchestrator.core.events import Abandoned, Discarded, Failed, Kept, Proposed, Pruned, Refused
from orchestrator.core.source import diff
from orchestrator.core.state import State, get_scores
from orchestrator.core.text import format_count, format_signed
from orchestrator.policy.noise import compute_sigma, pool_variance
from orchestrator.session.store import EventLog
from orchestrator.views.experiments import ExperimentRow, list_rows
from orchestrator.views.musings_search import FENCE, read_musing
from prepare import atomic

DIFF_LINES = 60
"""A longer diff is cut: the commit has the whole."""
AGENTS = ("opened", "replied", "used", "waiting")
"""Kinds of events that are agents' talk and change nothing that is shown here."""


class Musings:
    """Keeps the folder of one session up to date with its log."""

    def __init__(self, log: EventLog, folder: Path) -> None:
        self.log, self.folder = log, folder
        self.seen = 0
        self.proposed: dict[int, float] = {}

    def update(self) -> None:
        """Write what has changed since the last time; the first time, everything. Raises OSError."""
        records, self.seen = self.log.records[self.seen :], len(self.log.records)
        self.proposed |= {r.event.experiment: r.at for r in records if isinstance(r.event, Proposed)}
        records = [record for record in records if record.event.kind not in AGENTS]
        if not records or self.log.state.baseline_commit is None:
            return
        touched = {getattr(record.event, "experiment", 0) for record in records}
        found = list_rows(self.log.state)
        for entry in found:
            if entry.experiment in touched:
                atomic.write_atomically(
                    self.folder / make_file_name(entry),
                    render_musing(self.log, entry, self.proposed.get(entry.experiment)),
                )
        atomic.write_atomically(self.folder / "index.md", render_index(self.log.state, found))
        atomic.write_atomically(self.folder.parent / "index.md", render_overview(self.folder.parent))


def write_musings(log: EventLog, folder: Path) -> None:
    """Write all musings of a session anew into its folder."""
    Musings(log, folder).update()


def make_file_name(entry: ExperimentRow) -> str:
    """The file's name: the number, and the title in letters that every file system likes."""
    plain = unicodedata.normalize("NFKD", entry.proposal.title).encode("ascii", "ignore").decode().lower()
    slug = "-".join(re.findall(r"[a-z0-9.]+", plain)).strip("-.")[:60].rstrip("-.")
    return f"{entry.experiment:03d}-{slug or 'experiment'}.md"


def render_musing(log: EventLog, entry: ExperimentRow, proposed: float | None) -> str:
    """The file of one experiment, as far as it has come."""
    session = log.state.session.name
    parts = [
        _write_front_matter(_make_front_matter(session, entry, proposed)),
        f"# {entry.experiment}. {_flatten(entry.proposal.title)}",
        f"> {_flatten(entry.proposal.hypothesis)}",
        "## Why we believed it",
        entry.proposal.rationale.strip(),
        _write_expectation(entry),
        *_write_change(log, entry),
        *_write_outcome(log.state, entry),
        *_write_lesson(entry),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def render_index(state: State, found: list[ExperimentRow]) -> str:
    """The page of a session: where it stands, every experiment in a row, the lessons of what was kept."""
    session, best = state.session, state.incumbent
    baseline = next((entry.val_bpb for entry in found if entry.experiment == 0), None)
    tried = [entry for entry in found if entry.experiment > 0]
    kept = [entry for entry in tried if entry.status == "kept"]
    matter = {
        "session": session.name,
        "started": _format_time(state.started_at),
        "crew": session.crew,
        "experiments": len([entry for entry in tried if entry.decided]),
        "kept": len(kept),
        "baseline": _round(baseline),
        "best": _round(best.score_to_beat if best else None),
    }
    rows = [
        "| # | experiment | family | outcome | val_bpb | change |",
        "|--:|---|---|---|--:|--:|",
        *(_write_row(entry) for entry in found),
    ]
    lessons = [
        f"- {_flatten(e.postmortem.lesson)} ([{e.experiment}]({make_file_name(e)}))" for e in kept if e.postmortem
    ]
    parts = [
        _write_front_matter(matter),
        f"# {session.name}",
        _write_headline(state, baseline, len(kept)),
        "\n".join(rows),
        *(["## What was learned from what was kept", "\n".join(lessons)] if lessons else []),
    ]
    return "\n\n".join(parts) + "\n"


def render_overview(folder: Path) -> str:
    """The page over all sessions in the folder, read from their indexes, the newest first."""
    matters = [matter for path in folder.glob("*/index.md") if (matter := read_musing(path)[0])]
    matters.sort(key=lambda matter: str(matter.get("started")), reverse=True)
    rows = ["| session | crew | experiments | kept | baseline | best |", "|---|---|--:|--:|--:|--:|"]
    for matter in matters:
        cells = [str(_show(matter.get(key))) for key in ("crew", "experiments", "kept", "baseline", "best")]
        session = matter.get("session")
        rows.append(f"| [{session}]({session}/index.md) | {' | '.join(cells)} |")
    return "\n".join(["# Musings", "", "One folder per session, one file per experiment.", "", *rows, ""])


def _make_front_matter(session: str, entry: ExperimentRow, proposed: float | None) -> dict[str, Any]:
    verdict = entry.verdict
    judged = verdict if isinstance(verdict, Kept | Discarded) else None
    return {
        "session": session,
        "experiment": entry.experiment,
        "status": entry.status,
        "verdict": entry.postmortem.verdict if entry.postmortem else None,
        "family": entry.proposal.family,
        "val_bpb": _round(entry.val_bpb),
        "delta": None if entry.gain is None else _round(-entry.gain),
        "error": _round(judged.error if judged else None),
        "sigma": _round(judged.sigma if judged else None),
        "seeds": len(entry.scores),
        "base": entry.commit.parent if entry.commit else entry.incumbent,
        "commit": entry.commit.commit[:12] if entry.commit else None,
        "author": entry.proposal.author,
        "proposed": _format_time(proposed) if proposed else None,
    }


def _write_expectation(entry: ExperimentRow) -> str:
    if entry.experiment == 0:
        return ""
    if entry.proposal.expected_delta:
        return f"Expected change of val_bpb: {format_signed(entry.proposal.expected_delta)} (negative is better)."
    return "How much it would change val_bpb, nobody could say beforehand."


def _write_change(log: EventLog, entry: ExperimentRow) -> Iterator[str]:
    """What we changed: where from, and a short diff."""
    commit = entry.commit
    if commit is None or entry.experiment == 0:
        return
    lines = diff(log.get(log.state.parents[commit.parent].source), log.get(commit.source), context=1).splitlines()
    shown = lines[:DIFF_LINES]
    if len(lines) > DIFF_LINES:
        shown.append(f"… {len(lines) - DIFF_LINES} more lines in commit {commit.commit[:12]}")
    body = "\n".join(shown)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", body)), default=0))
    yield "## What we changed"
    how = {"implemented": "", "repaired": ", repaired after a crash", "rebased": ", carried over to the new best"}
    yield f"In the train.py of experiment {commit.parent} (commit `{commit.commit[:12]}`{how[commit.how]}):"
    yield f"{fence}diff\n{body}\n{fence}"


def _write_outcome(state: State, entry: ExperimentRow) -> Iterator[str]:
    """What happened: the judgement, the numbers, the facts."""
    match entry.verdict:
        case None if not entry.scores:
            return
        case None:
            said = f"Not judged yet; so far {', '.join(f'{score.val_bpb:.4f}' for score in entry.scores)}."
        case Kept(reason=reason):
            said = f"**Kept**: {reason}."
        case Discarded(reason=reason):
            said = f"**Discarded**: {reason}."
        case Pruned(reason=reason):
            said = f"**Ended early**: {_flatten(reason)}."
        case Failed(reason=reason):
            said = f"**Crashed**: {_flatten(reason)}."
        case Refused(reason=reason):
            said = f"**Refused** before it cost any training: {_flatten(reason)}."
        case Abandoned(reason=reason):
            said = f"**Abandoned**: {_flatten(reason)}."
    yield "## What happened"
    yield said
    yield _write_table(state, entry)
    if entry.postmortem:
        yield entry.postmortem.happened.strip()


def _write_table(state: State, entry: ExperimentRow) -> str:
    """Score, seeds, measures and losses beside the base's."""
    if not entry.scores:
        return ""
    scores = entry.scores
    if entry.experiment == 0:
        rows = [f"| val_bpb | {entry.val_bpb:.4f} |", f"| by seed | {_list_scores(entry)} |"]
        rows += [f"| {label} | {format_count(mine)} |" for label, mine, _ in curves.compare_metrics(scores, ()) if mine]
        return "\n".join(["| | baseline |", "|---|--:|", *rows])
    base = get_scores(state, entry.incumbent)
    rows = [f"| by seed | {_list_scores(entry)} | | |"]
    if entry.gain is not None and entry.val_bpb is not None:
        change = f"{format_signed(-entry.gain)} ± {entry.error:.4f}"
        rows.insert(0, f"| **val_bpb** | {entry.val_bpb:.4f} | {entry.val_bpb + entry.gain:.4f} | {change} |")
    for label, mine, other in curves.compare_metrics(scores, base):
        if mine and other:
            rows.append(f"| {label} | {format_count(mine)} | {format_count(other)} | {mine / other - 1:+.0%} |")
    if base:
        gaps = curves.compute_gaps(scores[0].curve, base[0].curve)
        rows += [
            f"| training loss at {curves.CHECKED_SHARES[moment]} | | | {gap:+.3f} |" for moment, gap in gaps.items()
        ]
    return "\n".join([f"| | this | experiment {entry.incumbent} | change |", "|---|--:|--:|--:|", *rows])


def _write_lesson(entry: ExperimentRow) -> Iterator[str]:
    if (post := entry.postmortem) is None:
        return
    yield "## What we learned"
    yield post.why.strip()
    yield f"**{_flatten(post.lesson)}** ({post.verdict})"
    yield "## What next"
    yield post.next.strip()


def _write_headline(state: State, baseline: float | None, kept: int) -> str:
    if baseline is None or state.incumbent is None:
        return "The baseline is being measured."
    fall = state.incumbent.score_to_beat - baseline
    return (
        f"val_bpb {baseline:.4f} → **{state.incumbent.score_to_beat:.4f}** ({format_signed(fall)}, σ of one run "
        f"{compute_sigma(pool_variance(state)):.4f}), {kept} kept." + (f" Ended: {state.ended}." if state.ended else "")
    )


def _write_row(entry: ExperimentRow) -> str:
    score = f"{entry.val_bpb:.4f}" if entry.val_bpb is not None else ""
    change = format_signed(-entry.gain) if entry.gain is not None else ""
    title = _flatten(entry.proposal.title).replace("|", "\\|").replace("[", "\\[").replace("]", "\\]")
    bold = "**" if entry.status == "kept" else ""
    cells = (f"[{title}]({make_file_name(entry)})", entry.proposal.family, f"{bold}{entry.status}{bold}", score, change)
    return f"| {entry.experiment} | {' | '.join(cells)} |"


def _list_scores(entry: ExperimentRow) -> str:
    return ", ".join(f"{score.val_bpb:.4f}" for score in entry.scores)


def _write_front_matter(matter: dict[str, Any]) -> str:
    return FENCE + yaml.safe_dump(matter, sort_keys=False, allow_unicode=True) + "---"


def _flatten(text: str) -> str:
    """On one line, whatever somebody wrote."""
    return " ".join(text.split())


def _format_time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _round(number: float | None) -> float | None:
    return None if number is None else round(number, 6)


def _show(value: object) -> object:
    return "–" if value is None else value
