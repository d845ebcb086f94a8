"""Write the learning trail: one Markdown file per experiment, and an index of them.

It is a projection of the log: the rationale is on disk before anything is edited, and all of it can be rebuilt.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from orchestrator.core.curves import CHECKED_SHARES
from orchestrator.core.events import Proposed
from orchestrator.core.state import State, diff_from_parent
from orchestrator.core.text import flatten, format_count, format_signed
from orchestrator.views.experiments import ExperimentRow, describe_row, list_open_rows, list_rows
from orchestrator.views.musings_search import read_musing
from orchestrator.views.snapshot import LogReader
from orchestrator.views.summary import format_change, format_score, summarize, write_headline
from prepare import atomic

DIFF_LINES = 60
"""A longer diff is cut: the commit holds all of it."""
ORIGINS = {"implemented": "", "repaired": ", repaired after a crash", "rebased": ", carried over to the new incumbent"}


class Musings:
    """Knows what the folder of one session holds, and writes what is missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: dict[int, ExperimentRow] = {}

    def list_rationales(self, log: LogReader) -> Iterator[Callable[[], None]]:
        """Yield a write for each experiment that is only proposed and has no file yet."""
        yield from self._list_changes(log, [row for row in list_open_rows(log.state) if row.status == "proposed"])

    def list_writes(self, log: LogReader) -> Iterator[Callable[[], object]]:
        """Yield a write for each file that is not up to date. Each raises OSError."""
        if log.state.baseline_commit is None:
            return
        rows = list_rows(log.state)
        yield from self._list_changes(log, rows)
        yield partial(atomic.write_atomically, self.folder / "index.md", render_index(log.state, rows))

    def write_overview(self) -> None:
        """Write the page over all sessions beside this one. Raises OSError."""
        atomic.write_atomically(self.folder.parent / "index.md", render_overview(self.folder.parent))

    def _list_changes(self, log: LogReader, rows: Iterable[ExperimentRow]) -> Iterator[Callable[[], None]]:
        changed = [row for row in rows if row != self.written.get(row.experiment)]
        times = {r.event.experiment: r.at for r in log.records if isinstance(r.event, Proposed)} if changed else {}
        for row in changed:
            yield partial(self._write, log, row, times.get(row.experiment))

    def _write(self, log: LogReader, row: ExperimentRow, proposed: float | None) -> None:
        atomic.write_atomically(self.folder / make_file_name(row), render_musing(log, row, proposed))
        self.written[row.experiment] = row


def write_musings(log: LogReader, folder: Path) -> None:
    """Write all musings of a session into its folder, and the overview beside it. Raises OSError."""
    musings = Musings(folder)
    for write in musings.list_writes(log):
        write()
    musings.write_overview()


def make_file_name(row: ExperimentRow) -> str:
    """Return the file's name: the number, and the title in characters that every file system accepts."""
    plain = unicodedata.normalize("NFKD", row.proposal.title).encode("ascii", "ignore").decode().lower()
    slug = "-".join(re.findall(r"[a-z0-9.]+", plain)).strip("-.")[:60].rstrip("-.")
    return f"{row.experiment:03d}-{slug or 'experiment'}.md"


def render_musing(log: LogReader, row: ExperimentRow, proposed: float | None) -> str:
    """Return the file of one experiment, as far as it has come; `proposed` is in seconds since the epoch."""
    parts = [
        _write_front_matter(_make_front_matter(log.state.session.name, row, proposed)),
        f"# {row.experiment}. {flatten(row.proposal.title)}",
        f"> {flatten(row.proposal.hypothesis)}",
        "## Why we believed it",
        row.proposal.rationale.strip(),
        _write_expectation(row),
        *_write_change(log, row),
        *_write_outcome(log.state, row),
        *_write_lesson(row),
    ]
    return _join(parts)


def render_index(state: State, rows: Sequence[ExperimentRow]) -> str:
    """Return the page of a session: where it stands, every experiment in a row, the lessons of what was kept."""
    session, summary = state.session, summarize(state)
    matter = {
        "session": session.name,
        "started": _format_time(state.started_at),
        "crew": session.crew,
        "experiments": summary.tried,
        "kept": summary.kept,
        "baseline": _round(summary.baseline),
        "best": _round(summary.best),
    }
    table = [
        "| # | experiment | family | outcome | val_bpb | change |",
        "|--:|---|---|---|--:|--:|",
        *map(_write_row, rows),
    ]
    kept = [row for row in rows if row.experiment and row.status == "kept"]
    lessons = [
        f"- {flatten(row.postmortem.lesson)} ([{row.experiment}]({make_file_name(row)}))"
        for row in kept
        if row.postmortem
    ]
    parts = [
        _write_front_matter(matter),
        f"# {session.name}",
        write_headline(summary),
        f"{summary.tried} experiments, {summary.kept} kept." + f" Ended: {state.ended}." * bool(state.ended),
        "\n".join(table),
        *(["## What was learned from what was kept", "\n".join(lessons)] if lessons else []),
    ]
    return _join(parts)


def render_overview(folder: Path) -> str:
    """Return the page over all sessions in the folder, read from their indexes, the newest first."""
    found = [(path.parent.name, read_musing(path)[0]) for path in folder.glob("*/index.md")]
    sessions = [(name, matter) for name, matter in found if "session" in matter]
    rows = ["| session | crew | experiments | kept | baseline | best |", "|---|---|--:|--:|--:|--:|"]
    for name, matter in sorted(sessions, key=lambda pair: str(pair[1].get("started")), reverse=True):
        values = [matter.get(key) for key in ("session", "crew", "experiments", "kept", "baseline", "best")]
        session, *cells = ["–" if value is None else _escape(str(value)) for value in values]
        rows.append(f"| [{session}]({name}/index.md) | {' | '.join(cells)} |")
    return "\n".join(["# Musings", "", "One folder per session, one file per experiment.", "", *rows, ""])


def _make_front_matter(session: str, row: ExperimentRow, proposed: float | None) -> dict[str, Any]:
    return {
        "session": session,
        "experiment": row.experiment,
        "status": row.status,
        "verdict": row.postmortem.verdict if row.postmortem else None,
        "family": row.proposal.family,
        "val_bpb": _round(row.val_bpb),
        "delta": None if row.gain is None else _round(-row.gain),
        "error": _round(row.error),
        "sigma": _round(row.sigma),
        "seeds": len(row.scores),
        "base": row.commit.parent if row.commit else row.incumbent,
        "commit": row.commit.commit[:12] if row.commit else None,
        "author": row.proposal.author,
        "proposed": _format_time(proposed) if proposed else None,
    }


def _write_expectation(row: ExperimentRow) -> str:
    if row.experiment == 0:
        return ""
    if row.proposal.expected_delta:
        return f"Expected change of val_bpb: {format_signed(row.proposal.expected_delta)} (negative is better)."
    return "No change of val_bpb was predicted."


def _write_change(log: LogReader, row: ExperimentRow) -> Iterator[str]:
    """Yield what we changed: where from, and a short diff."""
    commit = row.commit
    if commit is None or row.experiment == 0:
        return
    lines = diff_from_parent(log.state, commit, log.get, context=1).splitlines()
    shown = lines[:DIFF_LINES]
    if len(lines) > DIFF_LINES:
        shown.append(f"… {len(lines) - DIFF_LINES} more lines in commit {commit.commit[:12]}")
    body = "\n".join(shown)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", body)), default=0))
    yield "## What we changed"
    yield f"In the train.py of experiment {commit.parent} (commit `{commit.commit[:12]}`{ORIGINS[commit.how]}):"
    yield f"{fence}diff\n{body}\n{fence}"
    if commit.summary:
        yield f"The mechanic's summary: {flatten(commit.summary)}"
    if commit.deviations:
        yield f"Where the mechanic departed from the proposal: {flatten(commit.deviations)}"


def _write_outcome(state: State, row: ExperimentRow) -> Iterator[str]:
    """Yield what happened: the verdict, the numbers, the facts."""
    if row.status == "not tested":
        verdict = f"**Not tested**: what ran is not what was proposed, and it was {flatten(row.reason)}."
    elif row.is_decided:
        verdict = f"**{row.status.capitalize()}**: {flatten(row.reason)}."
    elif row.scores:
        verdict = f"Not judged yet; so far {_list_scores(row)}."
    else:
        return
    yield "## What happened"
    yield verdict
    yield _write_table(state, row)
    if row.postmortem:
        yield row.postmortem.happened.strip()


def _write_table(state: State, row: ExperimentRow) -> str:
    """Return scores, measurements and losses beside the incumbent's, all means over seeds."""
    told = describe_row(state, row)
    if told.val_bpb is None:
        return ""
    rows = [f"| by seed | {_list_scores(row)} | | |"]
    if told.incumbent_bpb is None:
        rows.insert(0, f"| **val_bpb** | {told.val_bpb:.4f} | | |")
    else:
        change = f"{format_change(row)} ± {told.error:.4f}"
        rows.insert(0, f"| **val_bpb** | {told.val_bpb:.4f} | {told.incumbent_bpb:.4f} | {change} |")
    for label, ours, other in told.metrics:
        if ours and other:
            rows.append(f"| {label} | {format_count(ours)} | {format_count(other)} | {ours / other - 1:+.0%} |")
        elif ours:
            rows.append(f"| {label} | {format_count(ours)} | | |")
    rows += [f"| training loss at {CHECKED_SHARES[share]} | | | {gap:+.3f} |" for share, gap in told.gaps.items()]
    beside = f"experiment {row.incumbent}" if row.experiment else ""
    return "\n".join([f"| | this | {beside} | change |", "|---|--:|--:|--:|", *rows])


def _write_lesson(row: ExperimentRow) -> Iterator[str]:
    if (post := row.postmortem) is None or post.implemented == "no":
        return
    yield "## What we learned"
    yield post.why.strip()
    yield f"**{flatten(post.lesson)}** ({post.verdict})"
    yield "## What next"
    yield post.next.strip()


def _write_row(row: ExperimentRow) -> str:
    bold = "**" if row.status == "kept" else ""
    link = f"[{_escape(row.proposal.title)}]({make_file_name(row)})"
    cells = (link, row.proposal.family, f"{bold}{row.status}{bold}", format_score(row), format_change(row))
    return f"| {row.experiment} | {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """Return a text that stays within its cell of a table."""
    return flatten(text).replace("|", "\\|").replace("[", "\\[").replace("]", "\\]")


def _list_scores(row: ExperimentRow) -> str:
    return ", ".join(f"{score.val_bpb:.4f}" for score in row.scores)


def _write_front_matter(matter: dict[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)}---"


def _join(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _format_time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _round(number: float | None) -> float | None:
    return None if number is None else round(number, 6)
