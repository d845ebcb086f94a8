"""What stands beside a session: results.tsv, ledger.parquet, log.jsonl and report.html, the last in a real browser."""

import asyncio
import csv
import dataclasses
import io
import json
import random
import re
import time
import types
from itertools import pairwise

import plotly.graph_objects as go
import pyarrow.parquet as pq
import pytest
from markupsafe import escape
from rich.console import Console

from orchestrator.cli.options import ExitCode
from orchestrator.cli.wiring import judge_night
from orchestrator.core import events as ev
from orchestrator.core.description import interpolate_loss
from orchestrator.core.source import compute_digest
from orchestrator.core.state import Usage, fold
from orchestrator.core.task import Metric
from orchestrator.core.text import flatten
from orchestrator.optimizer.search import SearchState, Trial, read_search
from orchestrator.optimizer.study import draw_constants
from orchestrator.ports import Log
from orchestrator.session.store import Session
from orchestrator.supervisor import ASKED
from orchestrator.views import charts, comparison, usage
from orchestrator.views.experiments import ExperimentRow, list_rows
from orchestrator.views.musings import render_index, render_musing
from orchestrator.views.render import format_time
from orchestrator.views.report import (
    _list_axes,
    _make_row,
    has_log,
    list_files,
    render_report,
    write_files,
    write_log,
    write_parquet,
    write_results,
)
from orchestrator.views.summary import suggest_command, summarize, tabulate
from orchestrator.views.terminal import Terminal
from orchestrator.views.usage import list_runs, measure_utilization
from prepare.constants import Constant, Numbers, Value, read_values
from prepare.files import write_atomically
from tests import synthetic
from tests.browser import CHROMIUM, Browser
from tests.fakes import started
from tests.simulated import SOURCE, Fragile, Landscape, Noisy, night

NASTY = '</script><script>document.title="owned"</script><img src=x onerror=document.title="owned">\t{{ 7 * 7 }}'


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return night(tmp_path_factory.mktemp("night") / "s" / "session.db", experiments=24, lab=Fragile, repairs=0)


@pytest.fixture(scope="module")
def folder(session, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_files(session, folder)
    return folder


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """A session of a thousand experiments, and its page."""
    log, path = synthetic.log(1000, talk=True), tmp_path_factory.mktemp("thousand") / "report.html"
    path.write_text(render_report(log))
    return log, path


# ---------------------------------------------------------------- results.tsv


def autoresearch(text: str) -> list[dict]:
    """A reader to autoresearch's documented format: header, tabs, five columns, keep | discard | crash."""
    lines = text.splitlines()
    assert lines[0] == "commit\tval_bpb\tmemory_gb\tstatus\tdescription"
    rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    for row in rows:
        assert None not in row
        assert None not in row.values()
        assert re.fullmatch(r"[0-9a-f]{7}", row["commit"])
        assert re.fullmatch(r"\d+\.\d{6}", row["val_bpb"])
        assert re.fullmatch(r"\d+\.\d", row["memory_gb"])
        assert row["status"] in ("keep", "discard", "crash")
        if row["status"] == "crash":
            assert (row["val_bpb"], row["memory_gb"]) == ("0.000000", "0.0")
    return rows


def test_results_are_autoresearchs_own_format(session, folder):
    rows = autoresearch((folder / "results.tsv").read_text())

    results = sorted(session.state.results, key=lambda result: result.experiment)
    assert len(rows) == len(results) == 25
    assert rows[0]["description"] == "baseline"
    assert rows[0]["status"] == "keep"
    for row, result in zip(rows, results, strict=True):
        assert row["status"] == {ev.Kept: "keep", ev.Discarded: "discard", ev.Failed: "crash"}[type(result.verdict)]
        if result.scores:
            assert float(row["val_bpb"]) == pytest.approx(result.val_bpb, abs=1e-6)
    assert {row["status"] for row in rows} == {"keep", "discard", "crash"}


def test_the_name_of_a_metric_takes_the_place_of_no_other_column(session):
    for name in ("commit", "memory_gb", "status", "description"):
        task = session.state.session.task.model_copy(update={"metric": Metric(name=name)})
        began = session.state.session.model_copy(update={"task": task})
        header = write_results(dataclasses.replace(session.state, started=began)).split("\n")[0]
        assert header.split("\t") == ["commit", f"metric {name}", "memory_gb", "status", "description"]


def test_results_of_a_thousand(thousand):
    assert len(autoresearch(write_results(thousand[0].state))) == 883


# ---------------------------------------------------------------- ledger.parquet, log.jsonl


def test_the_ledger_holds_every_experiment(session, folder):
    rows = pq.read_table(folder / "ledger.parquet").to_pylist()

    assert [row["experiment"] for row in rows] == list(range(25))
    by_number = {result.experiment: result for result in session.state.results}
    for row in rows:
        result = by_number[row["experiment"]]
        assert row["title"] == result.proposal.title
        assert row["val_bpb"] == result.val_bpb
        assert len(row["scores"]) == len(result.scores)
        assert row["commit"] == session.state.parents.get(row["experiment"], result.commit).commit
    crashed = [row for row in rows if row["status"] == "crashed"]
    assert crashed
    assert all(row["val_bpb"] is None and row["failure"] in {"NaN", "other"} for row in crashed)


def test_the_ledger_counts_tokens_by_experiment():
    log = synthetic.log(20, talk=True)
    rows = pq.read_table(io.BytesIO(write_parquet(log))).to_pylist()
    total = sum(spent.output for spent in log.state.usage.values())
    assert sum(row["output_tokens"] for row in rows) == total > 0


def test_the_log_is_every_record(session, folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    assert [ev.Record.model_validate_json(line) for line in lines] == session.records
    told = (folder / "log.txt").read_text().splitlines()
    assert len(told) == len(lines)
    assert re.match(r" +0  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d  .*started", told[0])


def test_bit_by_bit_is_the_same_as_at_once(session, folder, tmp_path):
    log = Session(tmp_path / "s" / "session.db", lambda: 0.0, create=True)
    log.get = session.get
    for start in range(0, len(session.records), 29):
        log.fold(*session.records[start : start + 29])
        write_log(log, tmp_path / "files", start)
        for path, _, render in list_files(log, tmp_path / "files"):
            write_atomically(path, render())
    for name in ("results.tsv", "ledger.parquet", "log.jsonl", "log.txt", "report.html"):
        assert (tmp_path / "files" / name).read_bytes() == (folder / name).read_bytes(), name


def test_an_experiment_is_rendered_again_only_if_it_has_changed(session):
    log = Session(session.path.with_name("again.db"), lambda: 0.0, create=True)
    log.get = session.get
    ends = [record.seq + 1 for record in session.records if record.event.kind in ("reflected", "reflection_skipped")]
    before = dict[int, ExperimentRow]()
    for start, end in pairwise([0, *ends]):
        log.fold(*session.records[start:end])
        rows = {row.experiment: row for row in list_rows(log.state)}
        changed = {number for number, row in rows.items() if row is not before.get(number)}
        assert len(changed) <= 4, "what is under way, what was judged, and what is proposed"
        before = rows


# ---------------------------------------------------------------- figures


def record(seq: int, at: float, event) -> ev.Record:
    return ev.Record(seq=seq, at=at, task_id="", event=event)


def test_occupancy_and_duty_leave_out_the_time_away():
    grant = {"slot": 0, "seed": 1}
    ended = {"curve": (), "log": "x", "metrics": ev.RunMetrics(train_seconds=20)}
    records = [
        record(0, 0, ev.Granted(experiment=0, run=1, **grant)),
        record(1, 30, ev.Scored(experiment=0, run=1, val_bpb=2.0, **ended)),
        record(2, 30, ev.Granted(experiment=0, run=2, **grant)),
        record(3, 40, ev.Granted(experiment=9, run=1, slot=1, seed=1)),
        record(4, 1040, ev.Resumed()),
        record(5, 1040, ev.Granted(experiment=0, run=3, **grant)),
        record(6, 1070, ev.Crashed(experiment=0, run=3, failure="NaN", message="", **ended)),
        record(7, 1080, ev.Granted(experiment=1, run=1, **grant)),
        record(8, 1100, ev.Aborted(experiment=1, run=1, reason="disk")),
    ]
    held = list_runs(records)

    assert [run.outcome for run in held] == ["scored", "cut off", "cut off", "crashed", "aborted"]
    assert [run.end - run.start for run in held] == [30, 10, 0, 30, 20]
    assert measure_utilization(records, 1) == usage.Utilization(occupancy=0.9, duty=0.4)
    assert measure_utilization(records, 2) == usage.Utilization(occupancy=0.45, duty=0.2)
    assert measure_utilization([], 1) == usage.Utilization()


def test_losses_between_points_and_outside():
    curve = [ev.Point(seconds=p, progress=p, loss=loss) for p, loss in ((0.2, 4.0), (0.4, 3.0), (1.0, 2.4))]
    assert interpolate_loss(curve, 0.3) == pytest.approx(3.5)
    assert interpolate_loss(curve, 1.0) == 2.4
    assert interpolate_loss(curve, 0.2) == 4.0
    assert interpolate_loss(curve, 0.1) is None
    assert interpolate_loss(curve, 1.1) is None
    assert interpolate_loss([], 0.5) is None


# ---------------------------------------------------------------- report.html


def belief(log) -> str:
    return render_report(log).split('<section id="belief">')[1].split("</section>")[0]


def test_the_page_tells_what_was_kept_and_what_was_discarded_and_why(tmp_path):
    """With this seed, the luck of the first run raises hopes that a second one does not fulfil."""
    log = night(tmp_path / "s" / "session.db", experiments=60, lab=Noisy, repairs=0, seed=22)
    told = belief(log)
    again = [f for f in log.state.results if f.experiment and len(f.scores) > 1]
    refused = [f for f in again if isinstance(f.verdict, ev.Discarded)]

    assert f"{len(refused)} was discarded only after more than one seed" in told
    assert f"{len(log.state.kept)} changes were kept" in told
    certificate = log.state.certificate
    assert f"on {certificate.pairs} fresh seed" in told
    assert f"{certificate.gain:.4f} better" in told
    kept = told.split('<table class="steps">')[1].split("</table>")[0]
    assert kept.count("<svg") == 2 + len(log.state.kept)  # the baseline, each step, the best
    for result in again:
        assert escape(result.verdict.reason) in render_report(log)


AUDIT = ev.Audit(claimed=2.0, error=0.0, worst=0.0, looks=9, seconds=1.0, evaluation=1.0)


def test_audits_and_the_disqualified_are_told(session, tmp_path):
    log = Session(tmp_path / "s" / "session.db", lambda: 0.0, create=True)
    log.get = session.get
    log.fold(*session.records)
    last = next(record for record in session.records if isinstance(record.event, ev.Scored))
    crash = {"failure": "disqualified", "message": "", "metrics": ev.RunMetrics(), "curve": (), "log": last.event.log}
    for event in (
        last.event.model_copy(update={"audit": AUDIT.model_copy(update={"claimed": last.event.val_bpb + 0.01})}),
        ev.Crashed(experiment=3, run=9, tier="bubblewrap", **crash),
    ):
        log.records.append(record(len(log.records), last.at, event))

    told = belief(log)
    assert "1 audited, off by 0.01 at most" in told
    assert "1 disqualified (experiment 3)" in told
    assert "bubblewrap" in told


def test_the_order_is_what_a_reader_asks_for(session):
    html = render_report(session)
    titles = re.findall("<h2>(.*?)</h2>", html)
    assert titles == [
        "What was gained",
        "Can you believe it?",
        "What was kept",
        "What was learned",
        "What next",
        "How the night went",
        "Every experiment",
    ]
    base, head = session.state.parents[0].commit[:12], session.state.parent.commit[:12]
    picked = f"git cherry-pick --keep-redundant-commits {base}..{head}"
    for words in (f"git diff {base}..{head}", picked, suggest_command(session)):
        assert f'<pre class="copy">{words}</pre>' in html


def test_files_of_a_session_are_told_from_those_of_its_fork(session, folder, tmp_path):
    earlier, fork = Log(), Log()
    earlier.fold(*session.records[:60])
    settings = {name: getattr(session.state.session, name) for name in ev.SessionSettings.model_fields}
    forked = ev.Forked(parent="s@60", **settings)
    fork.fold(*earlier.records, ev.Record(seq=60, at=earlier.state.now, task_id="", event=forked))
    write_log(fork, tmp_path)
    assert [has_log(log, folder) for log in (session, earlier, fork)] == [True, True, False]
    assert [has_log(log, tmp_path) for log in (session, earlier, fork)] == [False, True, True]
    write_log(earlier, tmp_path)
    assert [has_log(log, tmp_path) for log in (session, earlier, fork)] == [True, True, False]


def test_a_night_that_was_killed_is_resumed_and_one_that_is_over_is_forked(session):
    log, told = Log(), list[str]()
    for record in session.records:
        log.fold(record)
        told.append(suggest_command(log).split(" -m orchestrator ")[-1].split()[0])
    assert told == ["resume"] * (len(told) - 1) + ["fork"]


def test_a_file_that_was_killed_is_forked_behind_its_last_event_with_the_limits_that_are_left(session):
    log = Log()
    log.fold(*session.records[:-1])
    assert suggest_command(log, file="mailed.db").endswith(f" fork mailed.db --at {len(log.records)}")


def test_a_fork_that_is_over_is_continued_by_what_it_had_itself():
    log, own = Log(), {"hours": 8, "experiments": 4, "usd": 20}
    reply = {"agent": "researcher", "request": "r", "message": {}, "tokens": ev.Tokens(input=1, output=1), "usd": 20}
    begin, spent, end = started(limits=ev.SessionLimits(**own)), ev.ModelReplied(experiment=1, **reply), "time is up"
    for hours, event in ((0, begin), (1, spent), (8, ev.Ended(reason=end))):
        log.fold(ev.Record(seq=len(log.records), at=3600 * hours, task_id="", event=event))
    first = suggest_command(log)
    both = begin.model_copy(update={"limits": ev.SessionLimits(hours=16, experiments=4, usd=40)})
    forked = ev.Forked(parent="s@2", **{name: getattr(both, name) for name in ev.SessionSettings.model_fields})
    for hours, event in ((8, forked), (16, ev.Ended(reason=end))):
        log.fold(ev.Record(seq=len(log.records), at=3600 * hours, task_id="", event=event))

    assert first.endswith("--at 2 --hours 8 --max-experiments 4 --max-usd 20")
    assert suggest_command(log).endswith("--at 4 --hours 8 --max-experiments 4 --max-usd 20")


def test_the_best_score_is_one_number_everywhere(session, tmp_path):
    """Page, stairs of the chart, index of the musings and comparison tell the same: the certificate's, once there."""
    summary = summarize(session.state)
    best = f"{summary.best:.4f}"
    stairs = charts.draw_progress(list_rows(session.state), {"experiment": {}}, summary)["data"][4]["y"]
    course = comparison.summarize_session(session.state, session.records)

    assert summary.gain == session.state.certificate.gain != summary.estimate
    assert summary.best == summary.baseline - summary.gain
    page, index = render_report(session), render_index(session)
    for text in (page, index):
        assert f"→ {best}" in text
        assert f"{summary.gain:.4f} better (90 % interval {summary.gain - summary.margin:.4f} to" in text
    assert f"had put the gain at {summary.estimate:.4f}" in page
    kept = [result.experiment for result in session.state.results if result.status == "kept"]
    assert course.places["experiments"][0] == 0 < course.places["experiments"][1], "a keep comes after its experiment"
    assert len(course.places["experiments"]) == len(kept) + 1
    for levels in (stairs, course.best):
        assert (levels[0], levels[-1]) == (summary.baseline, summary.best)
        assert levels[:-1] == sorted(levels[:-1], reverse=True)


class Uneven(Landscape):
    """Every third experiment takes its time, so that slots decide later ones before it."""

    async def train(self, granted, source):
        await asyncio.sleep(400.0 * (granted.experiment % 3 == 1))
        return await super().train(granted, source)


def test_with_slots_each_step_stands_on_those_before_it(tmp_path):
    """What was kept is told in the order of its keeps, which need not be that of the numbers."""
    session = night(tmp_path / "s" / "session.db", experiments=24, lab=Uneven, slots=4, seed=2)
    order, rows = [*session.state.former, session.state.best][1:], list_rows(session.state)
    assert order == [2, 8, 4, 1, 7]

    page, index = render_report(session), render_index(session)
    steps, lineage = page.partition('<table class="steps">')[2], page.partition('<ul class="lineage">')[2]
    for part, end in ((steps, "</table>"), (lineage, "</ul>")):
        assert [int(n) for n in re.findall(r'href="#(\d+)"', part.partition(end)[0])] == order
    course = index.partition("## The night as it went")[2].partition("##")[0]
    assert [int(n) for n in re.findall(r"^\d+\. .*?\]\(0*(\d+)-", course, re.MULTILINE)] == order
    assert course.count("Meanwhile") == 3

    decisions = [r.event for r in session.records if isinstance(r.event, ev.Kept | ev.Discarded) and r.event.experiment]
    terminal = Terminal(session, Console(file=io.StringIO(), width=100, height=60), lambda: session.state.now)
    terminal.console.print(terminal.render())
    listed = re.findall(r"^ +(\d+) .* (?:kept|discarded) ", terminal.console.file.getvalue(), re.MULTILINE)
    assert [int(number) for number in listed] == [event.experiment for event in reversed(decisions)]

    axes = {"experiment": {row.experiment: row.experiment for row in rows}}
    stairs = charts.draw_progress(rows, axes, summarize(session.state))["data"][4]
    assert stairs["x"] == [0, 2, 8, 8, 8, 8, rows[-1].experiment]
    assert stairs["y"][:-1] == sorted(stairs["y"][:-1], reverse=True)


def test_before_the_certificate_the_gain_is_an_estimate(session, tmp_path):
    log = Session(tmp_path / "s" / "session.db", lambda: 0.0, create=True)
    log.get = session.get
    log.fold(*(record for record in session.records if record.event.kind not in ("certified", "ended")))
    summary = summarize(log.state)

    assert summary.gain == summary.estimate == summary.baseline - log.state.incumbent.score_to_beat
    assert summary.margin > 0
    assert f"{summary.gain:.4f} better (90 % interval" in render_report(log)


def test_why_a_point_was_not_kept_stands_at_the_point(session):
    rows = list_rows(session.state)
    trace = charts.draw_progress(rows, {"experiment": {}}, summarize(session.state))["data"][2]
    told = dict(zip(trace["customdata"], trace["hovertext"], strict=True))
    for row in rows:
        if row.status == "discarded":
            assert row.reason[:30] in told[row.experiment].replace("<br>", " ")


def test_a_baseline_that_is_measured_again_is_no_gain(tmp_path):
    """Its further runs may lower the score to beat, which nothing that was kept has done."""
    log = synthetic.log(0)
    last = log.state.incumbent.scores[-1]
    granted = ev.Granted(experiment=0, run=4, slot=0, seed=4)
    for event in (granted, last.model_copy(update={"run": 4, "val_bpb": 2.1})):
        log.fold(ev.Record(seq=len(log.records), at=log.state.now, task_id="", event=event))

    summary = summarize(log.state)
    assert log.state.incumbent.score_to_beat < log.state.baseline_bpb
    assert summary.best == summary.baseline == log.state.baseline_bpb
    assert "Nothing was kept" in render_report(log)


def test_the_charts_are_figures_of_plotly(session):
    """Its own package checks names and values against its schema."""
    rows = list_rows(session.state)
    names = ["experiment", "hours", "MB of memory"]
    axes = {name: {row.experiment: float(row.experiment) for row in rows} for name in names}
    course = comparison.summarize_session(session.state, session.records)
    progress = charts.draw_progress(rows, axes, summarize(session.state))
    scored = [row for row in rows if row.scores]

    for figure in (
        progress,
        charts.draw_curves(scored[1]),
        *comparison.draw_courses([course, course]).values(),
    ):
        go.Figure(figure)
        json.dumps(figure, allow_nan=False)
    modes = [trace["mode"] for trace in progress["data"]]
    assert modes == [*["lines"] * 2, *["markers"] * 2, "lines", "markers"], "a thousand points hide no score to beat"
    labels = [button["label"] for button in progress["layout"]["updatemenus"][0]["buttons"]]
    assert labels == names
    bars = dict(zip(progress["data"][-1]["customdata"], progress["data"][-1]["error_y"]["array"], strict=True))
    sigma = summarize(session.state).sigma
    assert bars[0] == pytest.approx(2 * sigma / session.state.session.profile.baseline_runs**0.5)


def test_the_hours_of_the_chart_are_those_of_the_night_and_not_of_the_days_between_two_lives(session):
    judged = [record.seq for record in session.records if record.event.kind in ("kept", "discarded")]
    cut, pause = judged[3] + 1, 3 * 24 * 3600.0
    resumed = ev.Record(seq=cut, at=session.records[cut - 1].at + pause, task_id="", event=ev.Resumed())
    later = [record.model_copy(update={"at": record.at + pause}) for record in session.records[cut:]]
    records = [*session.records[:cut], resumed, *later]
    log = types.SimpleNamespace(records=records, state=fold(records), get=session.get)

    hours = _list_axes(log, list_rows(log.state))["hours"]

    assert hours == pytest.approx(_list_axes(session, list_rows(session.state))["hours"])
    assert max(hours.values()) <= log.state.hours < 24


def test_a_number_that_a_script_reports_takes_the_place_of_no_axis(session):
    numbers = {"hours": -1.0, "experiment": -1.0, "own": 7.0}
    rows = [
        dataclasses.replace(row, scores=tuple(score.model_copy(update={"reported": numbers}) for score in row.scores))
        for row in list_rows(session.state)
    ]
    axes = _list_axes(session, rows)
    assert -1.0 not in {*axes["hours"].values(), *axes["experiment"].values()}
    assert set(axes["own"].values()) == {7.0}


def test_the_inside_of_a_model_is_drawn_by_kind(session):
    """A name cannot take the place of another chart."""
    row = next(row for row in list_rows(session.state) if row.scores)
    told = {"gradient/wte": (0.5, 0.0, None, 0.25), "curve/x": (1.0,), "op/mm": (1.0,), "position": (3.0, 2.0, 2.5)}
    row = dataclasses.replace(row, scores=(row.scores[0].model_copy(update={"telemetry": told}),))

    found = charts.draw_telemetry(row)

    assert found.keys() == {f"gradient-{row.experiment}", f"position-{row.experiment}"}
    for figure in found.values():
        go.Figure(figure)
    line, along = (figure["data"][0] for figure in found.values())
    assert (line["name"], line["x"], line["y"]) == ("wte", [0, 10, 30], [0.5, None, 0.25])
    assert along["x"] == [0, 1, 2]


browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, as .ci/run installs it")


@pytest.fixture(scope="module")
def chromium():
    with Browser() as page:
        yield page


@pytest.fixture
def page(chromium):
    chromium.view()
    return chromium


def test_the_page_is_read_without_scripts(thousand):
    log, path = thousand
    html = path.read_text()

    assert path.stat().st_size < 10_000_000
    for result in log.state.results[::100]:
        assert flatten(result.proposal.title) in html
        assert result.proposal.rationale in html
    assert "http://" not in re.sub(r"xmlns='[^']+'", "", html)
    assert "https://" not in html


def hostile(path) -> Session:
    session = Session(path, lambda: 1.8e9, create=True)
    source = session.put(SOURCE)
    session.write("", started(name=NASTY), ev.BaselineCommitted(commit="f" * 40, source=source, fingerprint="f" * 16))
    scored = {"val_bpb": 2.2, "metrics": ev.RunMetrics(), "curve": (), "log": source}
    verdict = {"mean": 2.2, "gain": 0.1, "error": 0.01, "sigma": 0.004, "score_to_beat": 2.2, "reason": NASTY}
    proposal = ev.Proposal(
        title=NASTY[:110], hypothesis=NASTY, rationale=NASTY, expected_delta=-0.1, family="other", instructions=NASTY
    )
    commit = {"source": session.put(SOURCE + f"# {NASTY}\n"), "fingerprint": "a" * 16, "added": 1, "removed": 0}
    post = ev.Postmortem(verdict="supported", happened=NASTY, why=NASTY, lesson=NASTY, next=NASTY)
    for number in (0, 1):
        if number:
            session.write("", ev.Proposed(experiment=1, proposal=proposal))
            session.write("", ev.Committed(experiment=1, commit="a" * 40, parent=0, **commit))
        session.write(
            "", ev.Granted(experiment=number, run=1, slot=0, seed=1), ev.Scored(experiment=number, run=1, **scored)
        )
        session.write("", ev.Kept(experiment=number, **verdict), ev.Promoted(experiment=number, commit="a" * 40))
        session.write("", ev.Reflected(experiment=number, postmortem=post))
    return session


@browser
def test_what_agents_wrote_stays_text(page, tmp_path):
    session = hostile(tmp_path / "s" / "session.db")
    write_files(session, tmp_path)

    page.open(tmp_path / "report.html", fragment="#1")
    assert page.run("document.title").endswith("Nightshift")
    assert page.run("document.images.length") == 0
    assert NASTY.split("\t", maxsplit=1)[0] in page.text(EXPERIMENT.format(1))
    assert page.complaints() == []
    assert NASTY.replace("\t", " ")[:110] in write_results(session.state)


EXPERIMENT = "details[id='{}']"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A session of enough experiments for pictures of its constants, and its page."""
    log = night(tmp_path_factory.mktemp("tuned") / "s" / "session.db", experiments=30, lab=Fragile, repairs=0)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_report(log))
    return log, path


def test_the_constants_are_drawn_where_enough_experiments_set_them(tuned, session):
    measured = [row for row in list_rows(tuned[0].state) if row.val_bpb is not None]
    figures = draw_constants(read_search(tuned[0].state, tuned[0].get))
    lines = figures["parallel"]["data"]
    assert [line["meta"] for line in lines] == [row.experiment for row in measured]
    for line, row in zip(lines, measured, strict=True):
        values = {**read_values(tuned[0].get(row.commit.source))}
        assert float(line["customdata"][0][1]) == pytest.approx(row.val_bpb, abs=0.006)
        for name, shown in line["customdata"][1:]:
            assert float(shown) == pytest.approx(values[name], rel=0.01)
    shares = figures["importance"]["data"][0]["x"]
    assert sum(shares) == pytest.approx(1.0)
    assert "MATRIX_LR" in figures["importance"]["data"][0]["y"]
    for figure in figures.values():
        go.Figure(figure)
        json.dumps(figure)
    few = read_search(synthetic.log(3).state, synthetic.log(3).get)
    assert draw_constants(few) == {}


def test_names_of_constants_are_escaped():
    names = ("--<b>lr</b>", "--wd")
    constants = {name: Constant(name, 0.1, Numbers(0.01, 1.0, log=True)) for name in names}
    trials = [
        Trial(
            f"experiment {i}", {}, {names[0]: 0.1 * (1 + i), names[1]: 0.1 * (1 + i % 3)}, "discarded", val_bpb=2.0 - i
        )
        for i in range(9)
    ]
    text = json.dumps(draw_constants(SearchState(constants, trials, 0.1)))
    assert "<b>lr" not in text
    assert "&lt;b&gt;lr" in text


def test_values_of_several_kinds_are_drawn_as_texts():
    values: list[Value] = [0.5, "0.5", True, (1, 2), 10**400, -3, "0.5"]
    constants = {name: Constant(name, 0.1, Numbers(0.01, 1.0, log=True)) for name in ("a", "b")}
    trials = [Trial(f"{i}", {}, {"a": value, "b": i}, "discarded", val_bpb=2.0 - i) for i, value in enumerate(values)]
    lines = draw_constants(SearchState(constants, trials, 0.1))["parallel"]["data"]
    assert len({line["customdata"][1][1] for line in lines}) == len({*values})


@browser
def test_a_line_is_clicked_and_a_chart_is_saved(tuned, tmp_path):
    with Browser() as page:
        page.ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        page.open(tuned[1])
        page.wait("document.querySelectorAll('[data-figure=importance] .bars .point').length > 5")
        chart = "[data-figure=parallel]"
        where = f"""(() => {{ const chart = document.querySelector('{chart}');
            const path = [...chart.querySelectorAll('.scatterlayer .js-line')].at(-1);
            chart.scrollIntoView({{block: "center"}});
            const at = path.getPointAtLength(0).matrixTransform(path.getScreenCTM()); return [at.x, at.y]; }})()"""
        page.click_at(*page.run(where))
        page.wait("document.querySelector('#list > details[open]') !== null")
        for title in ("SVG", "PNG"):
            page.click(f"{chart} [data-title={title}]")
        deadline = time.monotonic() + 100
        while {path.suffix for path in tmp_path.iterdir()} != {".svg", ".png"}:
            assert time.monotonic() < deadline, [*tmp_path.iterdir()]
            page.run("1")
        assert page.complaints() == []


@browser
def test_an_experiment_is_clicked_and_read(page, session, folder):
    page.open(folder / "report.html")
    kept = session.state.kept[-1]
    assert f"{summarize(session.state).best:.4f}" in page.text("h1")
    result = next(f for f in session.state.results[3:] if isinstance(f.verdict, ev.Discarded))
    page.click(f"{EXPERIMENT.format(result.experiment)} summary")
    musing = page.text(EXPERIMENT.format(result.experiment))
    assert result.proposal.title in musing
    assert result.proposal.rationale in musing
    assert result.postmortem.lesson in musing
    page.wait("document.querySelectorAll('.musing .scatterlayer .trace').length === 2")

    page.click(f".lineage a[href='#{kept.experiment}']")
    page.wait(f'document.querySelector("{EXPERIMENT.format(kept.experiment)}").open')
    assert page.run("location.hash") == f"#{kept.experiment}"
    assert page.complaints() == []
    assert page.requests() == [(folder / "report.html").as_uri()]


@browser
def test_a_point_of_the_chart_is_clicked(page, folder):
    """The kept points are the last trace; a click on the first of them shows the baseline."""
    where = """(() => {
        const traces = document.querySelectorAll('[data-figure=progress] .scatterlayer .trace');
        const b = traces[traces.length - 1].querySelector('path.point').getBoundingClientRect();
        return [b.x + b.width / 2, b.y + b.height / 2]; })()"""
    page.open(folder / "report.html")
    page.click_at(*page.run(where))
    page.wait(f'document.querySelector("{EXPERIMENT.format(0)}").open')
    page.click("[data-figure=progress] .updatemenu-button:nth-of-type(2)")
    page.wait("document.querySelector('[data-figure=progress] .xtitle').textContent === 'hours'")
    assert page.complaints() == []


@browser
def test_the_list_can_be_filtered_by_any_word_of_a_musing(page, session, folder):
    page.open(folder / "report.html")
    result = session.state.results[4]
    page.run(f"document.getElementById('filter').value = {json.dumps(result.postmortem.lesson)}")
    page.run("document.getElementById('filter').dispatchEvent(new Event('input'))")
    seen = page.run("[...document.querySelectorAll('#experiments details')].filter(e => !e.hidden).map(e => +e.id)")
    assert result.experiment in seen
    assert len(seen) < 10
    assert page.run("location.hash").startswith("#?find=")


SHOWN = "[...document.querySelectorAll('#list > details')].filter(e => !e.hidden).map(e => +e.id)"


@browser
def test_an_address_holds_search_and_order(page, session, folder):
    changes = {row.experiment: row.gain for row in list_rows(session.state) if row.gain is not None}
    page.open(folder / "report.html", fragment="#?find=kept&sort=-change")
    seen = page.run(SHOWN)
    assert {result.experiment for result in session.state.kept} <= set(seen) < set(range(25))
    gains = [changes[number] for number in seen if number in changes]
    assert gains == sorted(gains)

    page.click("[data-sort=n]")
    assert page.run("location.hash") == "#?find=kept&sort=n"
    assert page.run(SHOWN) == sorted(seen)


@browser
def test_the_list_is_walked_by_keys(page, folder):
    def press(key, code=""):
        for kind in ("keyDown", "keyUp"):
            page.ask("Input.dispatchKeyEvent", type=kind, key=key, code=code, text="\r" if key == "Enter" else key[:1])

    page.open(folder / "report.html")
    for key in "jjk":
        press(key)
    first = page.run(SHOWN)[0]
    assert page.run("document.activeElement.closest('details').id") == str(first)
    press("Enter", "Enter")
    page.wait(f"document.querySelector('{EXPERIMENT.format(first).replace(chr(39), chr(34))}').open")
    press("/")
    assert page.run("document.activeElement.id") == "filter"


@browser
def test_chosen_curves_are_drawn_over_each_other(page, session, folder):
    for result in session.state.kept[:2]:
        page.open(folder / "report.html") if result is session.state.kept[0] else None
        page.click(f"{EXPERIMENT.format(result.experiment)} summary")
        page.click(f"[data-curve='{result.experiment}']")
    page.wait("document.querySelectorAll('[data-overlay] .scatterlayer .trace').length === 2")
    assert page.complaints() == []


NESTED = """[...document.querySelectorAll('main *')].filter(e => e.scrollWidth > e.clientWidth + 1
    && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX)).length"""


@browser
def test_on_a_phone_nothing_scrolls_within_the_page(page, session, folder, tmp_path):
    rows = [comparison.summarize_session(session.state, session.records)] * 3
    (tmp_path / "compare.html").write_text(comparison.render_comparison(rows))
    page.view(390, 844, dark=True)
    for path in (folder / "report.html", tmp_path / "compare.html"):
        page.open(path)
        page.run("document.querySelectorAll('details').forEach(e => { e.open = true; })")
        assert page.run("document.documentElement.scrollWidth") <= 390
        assert page.run(NESTED) == 0


@browser
def test_without_scripts_the_chart_is_there_and_nothing_is_offered_that_needs_them(folder):
    with Browser() as page:
        page.ask("Emulation.setScriptExecutionDisabled", value=True)
        page.ask("Page.navigate", url=(folder / "report.html").as_uri())
        while not page.run("document.readyState === 'complete' && document.querySelector('#filter') !== null"):
            time.sleep(0.05)  # timers of a page without scripts do not run
        assert page.run("document.querySelectorAll('.sketch path:not(.grid)').length") == 4
        assert page.run("document.querySelector('#filter').offsetParent === null")


@browser
@pytest.mark.parametrize(("late", "hidden"), [(60.0, True), (9000.0, False)])
def test_a_page_that_is_long_overdue_says_so(page, session, late, hidden, tmp_path):
    """It is the page of a night that died: it stops to reload, and names the command that continues."""
    log = Session(tmp_path / "s" / "session.db", lambda: 0.0, create=True)
    log.get = session.get
    shift = time.time() - late - session.records[30].at
    log.fold(*(record.model_copy(update={"at": record.at + shift}) for record in session.records[:31]))
    write_files(log, tmp_path)
    page.open(tmp_path / "report.html")
    assert page.run("document.getElementById('overdue').hidden") is hidden
    assert "to be written again by" in page.text("header")
    assert hidden or "resume test" in page.text("#overdue")


@browser
@pytest.mark.parametrize(("width", "dark"), [(1280, True), pytest.param(390, False, marks=pytest.mark.soak)])
def test_a_thousand_experiments_open_in_any_window(page, thousand, width, dark):
    page.view(width, 844, dark=dark)
    page.open(thousand[1], fragment="#500")
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("document.querySelectorAll('#experiments details').length") == 1001
    assert page.complaints() == []
    assert page.requests() == [thousand[1].as_uri()]


def test_what_waits_for_its_post_mortem_was_tested(session):
    end = max(record.seq for record in session.records if record.event.kind == "promoted") + 1
    records = session.records[:end]
    state = fold(records)

    table = comparison.summarize_session(state, records).table

    assert len(state.judged) == len(state.results) + 1
    assert table["not tested"] == str(summarize(state).untested)
    same = {name: getattr(state.session, name) for name in ev.SessionSettings.model_fields}
    fork = ev.Record(seq=end, at=state.now, task_id="", event=ev.Forked(parent="night@1", **same))
    cut_off = ev.Reserved(experiment=1, agent="mechanic", usd=5.0)
    records += [ev.Record(seq=end, at=state.now, task_id="implement 1", event=cut_off), fork]
    forked = comparison.summarize_session(fold(records), records).table
    assert (forked["shared with its parent"], forked["$ per experiment"]) == (table["experiments"], "0.000")


def test_a_fork_is_no_further_night_of_its_own(session):
    row = comparison.summarize_session(session.state, session.records)
    fork = dataclasses.replace(row, conditions=(*row.conditions[:-1], "first@3"))

    assert "mean of 2 nights" in comparison.list_findings([row, row])[0][0]
    assert [words for words, *_ in comparison.list_findings([row, fork])] == [f"{row.name} more than {row.name}"]


def test_gains_on_other_data_are_not_compared_and_a_copy_is_no_night(session):
    row = comparison.summarize_session(session.state, session.records)
    second = dataclasses.replace(row, name="second")
    assert comparison.drop_copies([row, second, row]) == [row, second]
    profile = session.state.session.profile.model_copy(update={"budget": 7.0})
    started = session.state.session.model_copy(update={"profile": profile, "name": "other"})
    other = comparison.summarize_session(dataclasses.replace(session.state, started=started), session.records)
    assert comparison.list_findings([row, other]) == []
    assert "budgets or tasks differ" in comparison.render_comparison([row, other])
    assert "budgets or tasks differ" not in comparison.render_comparison([row, row])
    first, second = (dataclasses.replace(row, gpu=gpu) for gpu in ("NVIDIA A100, 86 GB", "NVIDIA T4, 17 GB"))
    assert "GPUs" in comparison.explain_ground([row, first, second])
    assert not comparison.explain_ground([row, first]), "an older session did not record it"


def test_a_name_makes_no_link_in_a_chart(session):
    evil = "<a href='https://example.org'>x</a>"
    row = dataclasses.replace(comparison.summarize_session(session.state, session.records), arm=evil)
    score = session.state.results[0].scores[0]
    told = score.model_copy(update={"telemetry": {f"scalar/{evil}": (1.0,)}, "reported": {evil: 1.0}})
    rows = [dataclasses.replace(each, scores=(told,)) for each in list_rows(session.state)]
    axes = {name: {each.experiment: each.experiment for each in rows} for name in ("experiment", evil)}
    progress = charts.draw_progress(rows, axes, summarize(session.state))
    assert len(progress["layout"]["updatemenus"][0]["buttons"]) == 2
    assert "<a" not in json.dumps([comparison.draw_courses([row]), charts.draw_telemetry(rows[0]), progress])


@browser
@pytest.mark.parametrize("width", [1280, 390])
def test_sessions_side_by_side_fit_into_any_window(page, session, tmp_path, width):
    rows = [comparison.summarize_session(session.state, session.records)] * 2
    (tmp_path / "compare.html").write_text(comparison.render_comparison(rows))
    page.view(width, 844)
    page.open(tmp_path / "compare.html")
    assert page.run("document.documentElement.scrollWidth") <= width
    assert f"{rows[0].gain:.4f}" in page.text("table")
    assert page.run("document.querySelectorAll('.scatterlayer .trace').length") == 4  # no dollars were spent
    assert page.complaints() == []


@pytest.mark.parametrize("stage", range(1, 60, 7))
def test_there_is_a_page_at_every_stage(session, stage, tmp_path):
    log = Session(tmp_path / "s" / "session.db", lambda: 0.0, create=True)
    log.get = session.get
    log.fold(*session.records[:stage])
    write_files(log, tmp_path)
    assert session.state.session.name in (tmp_path / "report.html").read_text()
    json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])


class Fixed(Landscape):
    """Scripts that ignore the seed they are given."""

    async def train(self, granted, source):
        return await super().train(granted.model_copy(update={"seed": 0}), source)


def test_where_seeds_make_no_difference_runs_are_repeats(tmp_path):
    session = night(tmp_path / "s" / "session.db", experiments=4, lab=Fixed)
    page = render_report(session)
    told = [page[page.index("<header") :], *(render_musing(session, row) for row in list_rows(session.state))]
    assert session.state.session.task.noun == "repeat"
    assert session.state.certificate
    for text in told:
        assert not re.findall(r"(?:fresh|equal|same|other) seeds?|\d seeds?\b", text)
    assert "identical runs (their seeds made no difference)" in told[0]


# ---------------------------------------------------------------- odd nights


def more(n: int, *events) -> Log:
    """A synthetic night of n experiments, and what follows."""
    log = synthetic.log(n)
    log.fold(*(ev.Record(seq=i, at=log.state.now, task_id="", event=e) for i, e in enumerate(events, len(log.records))))
    return log


def test_a_gain_that_is_certainly_none_is_not_told_as_luck():
    best = synthetic.log(60).state.best
    worse = ev.Certified(experiment=best, gain=-0.01, low=-0.015, high=-0.005, pairs=3, heldout=True)
    page = flatten(render_report(more(60, worse, ev.Ended(reason="by hours"))))
    assert "0.0100 worse (90 % interval −0.0150 to −0.0050" in page
    assert "may be luck" not in page


def test_a_keep_that_is_not_promoted_counts_for_nothing_yet():
    numbers = {"mean": 2.0, "gain": 0.1, "error": 0.004, "sigma": 0.004, "reason": "by its score"}
    names = {"source": compute_digest(synthetic.source(60)), "fingerprint": "f" * 16}
    proposal = synthetic.proposal(random.Random(0), title="the last idea")
    earlier = synthetic.log(60)
    log = more(
        60,
        ev.Proposed(experiment=61, proposal=proposal),
        ev.Committed(experiment=61, commit="a" * 40, parent=earlier.state.best, added=1, removed=1, **names),
        ev.Granted(experiment=61, run=1, slot=0, seed=7),
        ev.Scored(experiment=61, run=1, val_bpb=2.0, metrics=ev.RunMetrics(), curve=(), log="l" * 16),
        ev.Kept(experiment=61, score_to_beat=2.0, **numbers),
        ev.Ended(reason="by hours"),
    )
    before, summary = summarize(earlier.state), summarize(log.state)
    assert (summary.kept, summary.margin, summary.gain) == (before.kept, before.margin, before.gain)
    assert summary.kept
    index = render_index(log)
    assert "the last idea" not in index.partition("## Surprises")[0]
    assert re.search(r"Kept, not yet on the branch: <a [^>]*>[^<]*the last idea", render_report(log))


def test_a_refused_proposal_is_no_baseline_that_failed():
    begun = synthetic.records(0)[:3]
    refused = [
        ev.Proposed(experiment=1, proposal=synthetic.proposal(random.Random(0))),
        ev.Refused(experiment=1, reason="it was tried"),
        ev.StopAsked(reason=ASKED),
        ev.Ended(reason=ASKED),
    ]
    then = [ev.Record(seq=i, at=1.8e9 + 60, task_id="", event=event) for i, event in enumerate(refused, len(begun))]
    state = fold([*begun, *then])
    assert len(state.results) == 1
    assert judge_night(state) == ExitCode.NOTHING_RAN


def test_the_ledger_expects_a_change_of_the_users_own_value():
    row, told = list_rows(synthetic.log(3).state)[1], list[float]()
    for goal in ("min", "max"):
        task = row.task.model_copy(update={"metric": Metric(name="accuracy", goal=goal)})
        told.append(_make_row("s", dataclasses.replace(row, task=task), Usage())["expected_delta"])
    assert told == [row.proposal.expected_delta, -row.proposal.expected_delta]


def test_a_night_that_has_ended_waits_for_no_model():
    waiting = ev.Waiting(until=1.9e9, reason="the model is rate limited")
    log, shown = more(60, waiting, ev.Ended(reason="by hours")), Console(file=io.StringIO(), width=100)
    shown.print(Terminal(log, shown, lambda: log.state.now).render())
    assert "waiting" not in shown.file.getvalue()
    assert "waiting: the model" not in render_report(log)
    assert "waiting: the model is rate limited" in render_report(more(60, waiting))


def test_what_was_not_tested_teaches_nothing_and_what_is_kept_is_not_missed():
    log = synthetic.log(60)
    near, wrong = [result.experiment for result in log.state.results if result.status == "discarded"][:2]

    def change(result, combines):
        updates = {"verdict": {"gain": 0.05}} if result.experiment in (near, wrong) else {}
        updates |= {"postmortem": {"implemented": "no", "lesson": "MINE"}} if result.experiment == wrong else {}
        updates |= {"proposal": {"combines": combines}} if result.experiment == log.state.best else {}
        parts = {name: getattr(result, name).model_copy(update=update) for name, update in updates.items()}
        return dataclasses.replace(result, **parts)

    for combines in ((), (near,)):
        results = tuple(change(result, combines) for result in log.state.results)
        log.state = dataclasses.replace(log.state, results=results)
        page, parts = render_report(log), list[str]()
        for name in ("learned", "next"):
            parts.append(page.partition(f'<section id="{name}">')[2].partition("</section>")[0])
        assert "MINE" not in parts[0]
        assert f'href="#{wrong}"' not in parts[0]
        assert (f'href="#{near}"' in parts[1].partition("Open questions")[0]) == (not combines)


def test_numbers_that_a_script_reports_are_means_over_seeds():
    row = list_rows(synthetic.log(1).state)[0]
    scores = [
        score.model_copy(update={"reported": {"f1": value}})
        for score, value in zip(row.scores, (0.1, 0.8, 0.9), strict=True)
    ]
    assert ("f1", "0.6", "0.1", "") in tabulate(dataclasses.replace(row, scores=scores, compared=scores[:1]))


def test_nights_of_one_arm_with_equal_seeds_are_one_side_of_a_pair():
    log = synthetic.log(3)
    row = comparison.summarize_session(log.state, log.records)
    seeds = row.conditions, (8, *row.conditions[1:])
    nights = (("A", 0, 0.02), ("A", 0, 0.04), ("B", 0, 0.01), ("B", 0, 0.03), ("A", 1, 0.05), ("B", 1, 0.01))
    rows = [
        dataclasses.replace(row, name=str(number), arm=arm, conditions=seeds[seed], gain=gain)
        for number, (arm, seed, gain) in enumerate(nights)
    ]
    words, gain, _ = comparison.list_findings(rows)[-1]
    assert words == "A more than B, 2 pairs of equal seeds"
    assert gain == pytest.approx((0.01 + 0.04) / 2)


def test_a_fork_begins_when_it_is_forked():
    log = synthetic.log(3)
    same = {name: getattr(log.state.session, name) for name in ev.SessionSettings.model_fields}
    fork = ev.Forked(parent="synthetic@9", **same | {"name": "fork"})
    log.fold(ev.Record(seq=len(log.records), at=log.state.now + 20 * 86_400, task_id="", event=fork))
    assert f"started: '{format_time(log.state.now)}'" in render_index(log)


def test_a_night_whose_keeps_were_all_reverted_gained_nothing():
    log = synthetic.log(60)
    *kept, last = (row.experiment for row in list_rows(log.state) if row.experiment and row.status == "kept")

    def change(result):
        if result.experiment == last:
            return dataclasses.replace(result, proposal=result.proposal.model_copy(update={"reverts": kept[0]}))
        return dataclasses.replace(result, reverted=result.experiment in kept)

    log.state = dataclasses.replace(log.state, results=tuple(map(change, log.state.results)))
    summary, page = summarize(log.state), render_report(log)
    assert (summary.kept, summary.gain, summary.estimate) == (0, 0.0, 0.0)
    assert summary.best == summary.baseline
    assert "All kept changes have been reverted" in page
    assert re.findall(r'data-label="kept">(\d+)<', page) == ["0"]
