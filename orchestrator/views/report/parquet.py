"""ledger.parquet: everything that is known of every experiment, for pandas, DuckDB and their like."""

import io
import json
from collections.abc import Mapping
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.core.events import Discarded, Kept
from orchestrator.core.state import Usage
from orchestrator.session.store import EventLog
from orchestrator.views.experiments import ExperimentRow, list_rows
from orchestrator.views.usage import sum_usage

SCHEMA = cast(
    "Any",
    pa.schema(
        [
            ("session", pa.string()),
            ("experiment", pa.int64()),
            ("status", pa.string()),
            ("title", pa.string()),
            ("hypothesis", pa.string()),
            ("rationale", pa.string()),
            ("family", pa.string()),
            ("parameter", pa.string()),
            ("direction", pa.string()),
            ("value", pa.string()),
            ("expected_delta", pa.float64()),
            ("instructions", pa.string()),
            ("author", pa.string()),
            ("base", pa.int64()),
            ("against", pa.int64()),
            ("commit", pa.string()),
            ("fingerprint", pa.string()),
            ("added", pa.int64()),
            ("removed", pa.int64()),
            ("how", pa.string()),
            ("scores", pa.list_(pa.float64())),
            ("val_bpb", pa.float64()),
            ("gain", pa.float64()),
            ("error", pa.float64()),
            ("sigma", pa.float64()),
            ("reason", pa.string()),
            ("failure", pa.string()),
            ("message", pa.string()),
            ("train_seconds", pa.float64()),
            ("total_seconds", pa.float64()),
            ("steps", pa.int64()),
            ("tokens", pa.int64()),
            ("parameters", pa.int64()),
            ("memory_mb", pa.float64()),
            ("tier", pa.string()),
            ("verdict", pa.string()),
            ("happened", pa.string()),
            ("why", pa.string()),
            ("lesson", pa.string()),
            ("next", pa.string()),
            ("input_tokens", pa.int64()),
            ("cached_tokens", pa.int64()),
            ("output_tokens", pa.int64()),
            ("usd", pa.float64()),
        ]
    ),
)
"""Seconds, steps and tokens are of the first run; gain is positive where better; unknown is null, never 0."""


def write_parquet(log: EventLog) -> bytes:
    """The content of the file."""
    session, spent = log.state.session.name, sum_usage(log.records)
    rows = [_make_row(session, entry, spent.get(entry.experiment, Usage())) for entry in list_rows(log.state)]
    buffer = io.BytesIO()
    table = cast("Any", pa.Table.from_pylist(rows, schema=SCHEMA))
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _make_row(session: str, entry: ExperimentRow, spent: Usage) -> Mapping[str, Any]:
    proposal, judged = entry.proposal, entry.verdict
    outcome = entry.scores[0] if entry.scores else entry.crash
    row = {"session": session, "experiment": entry.experiment, "status": entry.status, "against": entry.incumbent}
    row |= proposal.model_dump(exclude={"settings"})
    row |= {"scores": [score.val_bpb for score in entry.scores], "val_bpb": entry.val_bpb, "gain": entry.gain}
    row |= {"input_tokens": spent.input, "cached_tokens": spent.cached, "output_tokens": spent.output}
    row |= {"usd": None if spent.unpriced else spent.usd, "reason": judged.reason if judged else None}
    if proposal.settings:
        values = list(proposal.settings.values())
        value = json.dumps(values[0] if len(values) == 1 else proposal.settings, ensure_ascii=False)
        row |= {"parameter": " + ".join(proposal.settings), "value": value}
    if entry.commit:
        row |= entry.commit.model_dump(include={"commit", "fingerprint", "added", "removed", "how"})
        row["base"] = entry.commit.parent
    if isinstance(judged, Kept | Discarded):
        row |= {"error": judged.error, "sigma": judged.sigma}
    if entry.crash:
        row |= {"failure": entry.crash.failure, "message": entry.crash.message}
    if outcome:
        row |= {name: value or None for name, value in outcome.metrics.model_dump().items()} | {"tier": outcome.tier}
    if entry.postmortem:
        row |= entry.postmortem.model_dump()
    return row
