"""The learning trail: one Markdown file per experiment, written to be read, and an index of them.

A projection of the log: `why we believed it` is on disk before anything is edited, and all of it can be written anew.
"""

import re
import sqlite3
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import yaml

from orchestrator import facts, paper
from orchestrator.events import Abandoned, Discarded, Failed, Kept, Proposed, Refused
from orchestrator.ledger import Entry, entries
from orchestrator.policy import noise, sigma
from orchestrator.session import Log
from orchestrator.source import diff
from orchestrator.state import State

DIFF_LINES = 60
"""A longer diff is cut: the commit has the whole."""
NEWLY = "---\n"
AGENTS = ("opened", "replied", "used", "waiting")
"""Kinds of events that are agents' talk and change nothing that is shown here."""


class Musings:
    """Keeps the folder of one session up to date with its log."""

    def __init__(self, log: Log, folder: Path) -> None:
        self.log, self.folder = log, folder
        self.seen = 0
        self.proposed: dict[int, float] = {}

    def update(self) -> None:
        """Write what has changed since the last time; the first time, everything. Raises OSError."""
        records, self.seen = self.log.records[self.seen :], len(self.log.records)
        self.proposed |= {r.event.experiment: r.at for r in records if isinstance(r.event, Proposed)}
        records = [record for record in records if record.event.kind not in AGENTS]
        if not records or self.log.state.fitted is None:
            return
        touched = {getattr(record.event, "experiment", 0) for record in records}
        found = entries(self.log.state)
        for entry in found:
            if entry.experiment in touched:
                paper.write(self.folder / name(entry), musing(self.log, entry, self.proposed.get(entry.experiment)))
        paper.write(self.folder / "index.md", index(self.log.state, found))
        paper.write(self.folder.parent / "index.md", overview(self.folder.parent))


def write(log: Log, folder: Path) -> None:
    """Write all musings of a session anew into its folder."""
    Musings(log, folder).update()


def name(entry: Entry) -> str:
    """The file's name: the number, and the title in letters that every file system likes."""
    plain = unicodedata.normalize("NFKD", entry.proposal.title).encode("ascii", "ignore").decode().lower()
    slug = "-".join(re.findall(r"[a-z0-9.]+", plain)).strip("-.")[:60].rstrip("-.")
    return f"{entry.experiment:03d}-{slug or 'experiment'}.md"


def musing(log: Log, entry: Entry, proposed: float | None) -> str:
    """The file of one experiment, as far as it has come."""
    session = log.state.session.name
    parts = [
        _front(_matter(session, entry, proposed)),
        f"# {entry.experiment}. {_line(entry.proposal.title)}",
        f"> {_line(entry.proposal.hypothesis)}",
        "## Why we believed it",
        entry.proposal.rationale.strip(),
        _expectation(entry),
        *_change(log, entry),
        *_outcome(log.state, entry),
        *_lesson(entry),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def index(state: State, found: list[Entry]) -> str:
    """The page of a session: where it stands, every experiment in a row, the lessons of what was kept."""
    session, best = state.session, state.best
    baseline = next((entry.val_bpb for entry in found if entry.experiment == 0), None)
    tried = [entry for entry in found if entry.experiment > 0]
    kept = [entry for entry in tried if entry.status == "kept"]
    matter = {
        "session": session.name,
        "started": _time(state.started_at),
        "crew": session.crew,
        "experiments": len([entry for entry in tried if entry.decided]),
        "kept": len(kept),
        "baseline": _rounded(baseline),
        "best": _rounded(best.mark if best else None),
    }
    rows = [
        "| # | experiment | family | outcome | val_bpb | change |",
        "|--:|---|---|---|--:|--:|",
        *(_row(entry) for entry in found),
    ]
    lessons = [f"- {_line(e.postmortem.lesson)} ([{e.experiment}]({name(e)}))" for e in kept if e.postmortem]
    parts = [
        _front(matter),
        f"# {session.name}",
        _headline(state, baseline, len(kept)),
        "\n".join(rows),
        *(["## What was learned from what was kept", "\n".join(lessons)] if lessons else []),
    ]
    return "\n\n".join(parts) + "\n"


def overview(folder: Path) -> str:
    """The page over all sessions in the folder, read from their indexes, the newest first."""
    matters = [matter for path in folder.glob("*/index.md") if (matter := _read(path)[0])]
    matters.sort(key=lambda matter: str(matter.get("started")), reverse=True)
    rows = ["| session | crew | experiments | kept | baseline | best |", "|---|---|--:|--:|--:|--:|"]
    for matter in matters:
        cells = [str(_or_dash(matter.get(key))) for key in ("crew", "experiments", "kept", "baseline", "best")]
        session = matter.get("session")
        rows.append(f"| [{session}]({session}/index.md) | {' | '.join(cells)} |")
    return "\n".join(["# Musings", "", "One folder per session, one file per experiment.", "", *rows, ""])


@dataclass(frozen=True, slots=True)
class Hit:
    """One musing that a search has found."""

    path: Path
    session: str
    experiment: int
    title: str
    status: str
    verdict: str
    family: str
    delta: float | None
    snippet: str
    """The words around what was found, which stands between ** and **."""


def search(
    folder: Path, query: str, *, family: str = "", verdict: str = "", session: str = "", limit: int = 10
) -> list[Hit]:
    """The musings under the folder that fit the words best, over all sessions.

    Filters are exact; `verdict` takes the reflector's (supported, …) or the judge's (kept, discarded, …). Musings with
    all the words come first; if there are none, those with any.
    """
    words = re.findall(r"\w+", query)
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("create virtual table m using fts5(path unindexed, title, body, tokenize = 'porter unicode61')")
        matters: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.glob("*/[0-9]*.md")):
            matter, body = _read(path)
            if _fits(matter, family, verdict, session):
                matters[str(path)] = matter
                title, _, rest = body.partition("\n")
                plain = re.sub(r"[*`|>#]|--:?", "", rest)
                db.execute("insert into m values (?, ?, ?)", (str(path), title.lstrip("# "), plain))
        for joint in (" AND ", " OR "):
            if rows := _matches(db, joint.join(f'"{word}"' for word in words), limit):
                return [_hit(Path(path), title, snippet, matters[path]) for path, title, snippet in rows]
    return []


def _matches(db: sqlite3.Connection, match: str, limit: int) -> list[tuple[str, str, str]]:
    """The best first; without words, the latest."""
    if not match:
        newest = "select path, title, substr(body, 1, 160) from m order by path desc limit ?"
        return db.execute(newest, (limit,)).fetchall()
    around = "snippet(m, -1, '**', '**', '…', 24)"
    best = f"select path, title, {around} from m where m match ? order by bm25(m, 0, 4, 1) limit ?"
    return db.execute(best, (match, limit)).fetchall()


def _hit(path: Path, title: str, snippet: str, matter: dict[str, Any]) -> Hit:
    return Hit(
        path=path,
        session=str(matter.get("session", "")),
        experiment=int(matter.get("experiment", 0)),
        title=title,
        status=str(matter.get("status", "")),
        verdict=str(matter.get("verdict") or ""),
        family=str(matter.get("family", "")),
        delta=matter.get("delta"),
        snippet=" ".join(snippet.split()),
    )


def _fits(matter: dict[str, Any], family: str, verdict: str, session: str) -> bool:
    return (
        family in ("", matter.get("family"))
        and verdict in ("", matter.get("verdict"), matter.get("status"))
        and session in ("", matter.get("session"))
    )


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """Front matter and body; no matter where a person has written something else into the folder."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith(NEWLY):
        return {}, text
    head, _, body = text.removeprefix(NEWLY).partition(f"\n{NEWLY}")
    try:
        matter = yaml.load(head, yaml.CSafeLoader)
    except yaml.YAMLError:
        return {}, text
    return (cast("dict[str, Any]", matter), body.lstrip()) if isinstance(matter, dict) else ({}, text)


def _matter(session: str, entry: Entry, proposed: float | None) -> dict[str, Any]:
    verdict = entry.verdict
    judged = verdict if isinstance(verdict, Kept | Discarded) else None
    return {
        "session": session,
        "experiment": entry.experiment,
        "status": entry.status,
        "verdict": entry.postmortem.verdict if entry.postmortem else None,
        "family": entry.proposal.family,
        "val_bpb": _rounded(entry.val_bpb),
        "delta": None if entry.gain is None else _rounded(-entry.gain),
        "error": _rounded(judged.error if judged else None),
        "sigma": _rounded(judged.sigma if judged else None),
        "seeds": len(entry.scores),
        "base": entry.made.base if entry.made else entry.against,
        "commit": entry.made.commit[:12] if entry.made else None,
        "author": entry.proposal.author,
        "proposed": _time(proposed) if proposed else None,
    }


def _expectation(entry: Entry) -> str:
    if entry.experiment == 0:
        return ""
    if entry.proposal.expected_delta:
        return f"Expected change of val_bpb: {facts.signed(entry.proposal.expected_delta)} (negative is better)."
    return "How much it would change val_bpb, nobody could say beforehand."


def _change(log: Log, entry: Entry) -> Iterator[str]:
    """What we changed: where from, and a short diff."""
    made = entry.made
    if made is None or entry.experiment == 0:
        return
    lines = diff(log.get(log.state.bases[made.base].source), log.get(made.source), context=1).splitlines()
    shown = lines[:DIFF_LINES]
    if len(lines) > DIFF_LINES:
        shown.append(f"… {len(lines) - DIFF_LINES} more lines in commit {made.commit[:12]}")
    body = "\n".join(shown)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", body)), default=0))
    yield "## What we changed"
    how = {"implemented": "", "repaired": ", repaired after a crash", "rebased": ", carried over to the new best"}
    yield f"In the train.py of experiment {made.base} (commit `{made.commit[:12]}`{how[made.how]}):"
    yield f"{fence}diff\n{body}\n{fence}"


def _outcome(state: State, entry: Entry) -> Iterator[str]:
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
        case Failed(reason=reason, failure="hopeless"):
            said = f"**Ended early**: {_line(reason)}."
        case Failed(reason=reason):
            said = f"**Crashed**: {_line(reason)}."
        case Refused(reason=reason):
            said = f"**Refused** before it cost any training: {_line(reason)}."
        case Abandoned(reason=reason):
            said = f"**Abandoned**: {_line(reason)}."
    yield "## What happened"
    yield said
    yield _table(state, entry)
    if entry.postmortem:
        yield entry.postmortem.happened.strip()


def _table(state: State, entry: Entry) -> str:
    """Score, seeds, measures and losses beside the base's."""
    if not entry.scores:
        return ""
    scores = entry.scores
    if entry.experiment == 0:
        rows = [f"| val_bpb | {entry.val_bpb:.4f} |", f"| by seed | {_seeds(entry)} |"]
        rows += [f"| {label} | {facts.count(mine)} |" for label, mine, _ in facts.measures(scores, ()) if mine]
        return "\n".join(["| | baseline |", "|---|--:|", *rows])
    base = facts.scores_of(state, entry.against)
    rows = [f"| by seed | {_seeds(entry)} | | |"]
    if entry.gain is not None and entry.val_bpb is not None:
        change = f"{facts.signed(-entry.gain)} ± {entry.error:.4f}"
        rows.insert(0, f"| **val_bpb** | {entry.val_bpb:.4f} | {entry.val_bpb + entry.gain:.4f} | {change} |")
    for label, mine, other in facts.measures(scores, base):
        if mine and other:
            rows.append(f"| {label} | {facts.count(mine)} | {facts.count(other)} | {mine / other - 1:+.0%} |")
    if base:
        gaps = facts.gaps_at(scores[0].curve, base[0].curve)
        rows += [f"| training loss at {facts.MOMENTS[moment]} | | | {gap:+.3f} |" for moment, gap in gaps.items()]
    return "\n".join([f"| | this | experiment {entry.against} | change |", "|---|--:|--:|--:|", *rows])


def _lesson(entry: Entry) -> Iterator[str]:
    if (post := entry.postmortem) is None:
        return
    yield "## What we learned"
    yield post.why.strip()
    yield f"**{_line(post.lesson)}** ({post.verdict})"
    yield "## What next"
    yield post.next.strip()


def _headline(state: State, baseline: float | None, kept: int) -> str:
    if baseline is None or state.best is None:
        return "The baseline is being measured."
    fall = state.best.mark - baseline
    return (
        f"val_bpb {baseline:.4f} → **{state.best.mark:.4f}** ({facts.signed(fall)}, σ of one run "
        f"{sigma(noise(state)):.4f}), {kept} kept." + (f" Ended: {state.ended}." if state.ended else "")
    )


def _row(entry: Entry) -> str:
    score = f"{entry.val_bpb:.4f}" if entry.val_bpb is not None else ""
    change = facts.signed(-entry.gain) if entry.gain is not None else ""
    title = _line(entry.proposal.title).replace("|", "\\|").replace("[", "\\[").replace("]", "\\]")
    bold = "**" if entry.status == "kept" else ""
    cells = (f"[{title}]({name(entry)})", entry.proposal.family, f"{bold}{entry.status}{bold}", score, change)
    return f"| {entry.experiment} | {' | '.join(cells)} |"


def _seeds(entry: Entry) -> str:
    return ", ".join(f"{score.val_bpb:.4f}" for score in entry.scores)


def _front(matter: dict[str, Any]) -> str:
    return NEWLY + yaml.safe_dump(matter, sort_keys=False, allow_unicode=True) + "---"


def _line(text: str) -> str:
    """On one line, whatever somebody wrote."""
    return " ".join(text.split())


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 6)


def _or_dash(value: object) -> object:
    return "–" if value is None else value
