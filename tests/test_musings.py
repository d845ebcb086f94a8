import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import yaml

from orchestrator.cli.wiring import build_crew
from orchestrator.core.events import BaselineCommitted, KeepRule, Proposal, Proposed, Refused
from orchestrator.core.task import Metric, Task
from orchestrator.session.store import Session
from orchestrator.views import musings
from orchestrator.views.experiments import list_rows
from orchestrator.views.musings import search
from orchestrator.views.render import render_template
from prepare.command import UserError
from prepare.files import write_atomically
from subagents.prompts import Prompt
from tests.fakes import started
from tests.simulated import SOURCE, night


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return night(tmp_path_factory.mktemp("night") / "s" / "session.db", experiments=14)


@pytest.fixture(scope="module")
def folder(session, tmp_path_factory):
    folder = tmp_path_factory.mktemp("musings")
    musings.write_musings(session, folder / "test")
    return folder


def write_all(files) -> None:
    for path, _, render in files:
        write_atomically(path, render())


def read(path: Path) -> tuple[dict, str]:
    _, matter, body = path.read_text().split("---\n", 2)
    return yaml.safe_load(matter), body


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.md")}


def test_there_is_a_musing_for_every_experiment(session, folder):
    files = sorted((folder / "test").glob("[0-9]*.md"))
    assert [int(path.name[:3]) for path in files] == list(range(15))

    for path, result in zip(files, sorted(session.state.results, key=lambda f: f.experiment), strict=True):
        matter, body = read(path)
        assert matter["experiment"] == result.experiment
        assert matter["val_bpb"] == pytest.approx(result.val_bpb, abs=1e-6)
        assert result.proposal.rationale in body
        if result.experiment and result.scores:
            assert matter["delta"] == pytest.approx(-result.verdict.gain, abs=1e-6)
            for heading in ("believed it", "changed", "happened", "learned", "next"):
                assert heading in body
            assert "```diff\n" in body


def test_the_rationale_is_written_before_the_edit(session, tmp_path):
    """Told record by record, the file is there as soon as the proposal is."""
    log = Session(tmp_path / "s" / "session.db", lambda: 0.0, create=True)
    log.get = session.get
    for record in session.records:
        log.fold(record)
        write_all(musings.list_rationales(log, tmp_path / "musings" / "test"))
        if isinstance(record.event, Proposed):
            (path,) = (tmp_path / "musings" / "test").glob(f"{record.event.experiment:03d}-*.md")
            matter, body = read(path)
            assert matter["status"] == "proposed"
            assert "Why we believed it" in body
            assert "What we changed" not in body


def test_written_at_once_or_bit_by_bit_is_the_same(session, folder, tmp_path):
    log = Session(tmp_path / "s" / "session.db", lambda: 0.0, create=True)
    log.get = session.get
    for record in session.records:
        log.fold(record)
        write_all(musings.list_musings(log, tmp_path / "musings" / "test"))
        write_all(musings.list_overview(log, tmp_path / "musings" / "test"))
    assert contents(tmp_path / "musings") == contents(folder)


def test_nothing_is_rewritten_without_need(session, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.md")}
    musings.write_musings(session, folder / "test")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.md")} == before


def test_the_indexes_lead_everywhere(session, folder):
    matter, body = read(folder / "test" / "index.md")
    assert matter["experiments"] == 14
    assert matter["kept"] == len(session.state.kept)
    for path in (folder / "test").glob("[0-9]*.md"):
        assert f"({path.name})" in body
    assert "[test](test/index.md)" in (folder / "index.md").read_text()


def test_the_overview_opens_with_what_is_known(session, folder, tmp_path):
    text = (folder / "index.md").read_text()
    known = text.partition("## All sessions")[0]
    kept = [result for result in session.state.results if result.experiment and result.status == "kept"]
    assert kept
    assert known.count("```diff") == len(kept)
    for result in kept:
        assert f"[experiment {result.experiment} of test: " in known.partition("### Undecided")[0]
    assert "](test/000-" not in known
    refuted = [r for r in session.state.results if r.postmortem and r.postmortem.verdict == "refuted"]
    assert all(f"[experiment {r.experiment} of test" in known.partition("### Refuted")[2] for r in refuted)

    for path in folder.glob("test/0*.md"):
        other = path.read_text().replace("profile: cpu", "profile: h100").replace("session: test", "session: other")
        write_atomically(tmp_path / "other" / path.name, other.replace("commit: ", "commit: 0"))
        write_atomically(tmp_path / "test" / path.name, path.read_text())
    write_atomically(tmp_path / "test" / "099-mine.md", "A note of my own about depth.\n")
    for matter in ("experiment: 3", "experiment: 3\nstatus: kept\nsession: mine", "experiment: [1]\nstatus: {}"):
        write_atomically(tmp_path / f"test/2024-11-{len(matter)} notes.md", f"---\n{matter}\n---\nWhat I thought.\n")
    assert "test: A note of my own" in render_template("hits.txt", hits=search(tmp_path, "own note"))
    for name in ("test", "other"):
        write_atomically(tmp_path / name / "index.md", (folder / "test/index.md").read_text())
    known = musings.render_overview(tmp_path, "cpu")
    assert 0 < known.index("on profile cpu") < known.index("on profile h100")
    assert "What I thought" not in known
    assert 0 < musings.render_overview(tmp_path, "h100").index("h100") < known.index("on profile h100")


def test_a_users_own_index_stays(session, tmp_path):
    (tmp_path / "index.md").write_text("MINE\n")
    musings.write_musings(session, tmp_path / "test")
    assert (tmp_path / "index.md").read_text() == "MINE\n"
    assert (tmp_path / "test/index.md").exists()
    assert search(tmp_path, '"*') == []


def test_what_a_fork_shares_is_found_once(folder, tmp_path):
    for name in ("one", "two"):
        for path in folder.glob("test/*.md"):
            write_atomically(tmp_path / name / path.name, path.read_text())

    numbers = [hit.matter["experiment"] for hit in search(tmp_path, "depth", limit=50)]
    assert len(set(numbers) - {0}) > 1
    assert max(map(numbers.count, set(numbers) - {0})) == 1
    one, two = (search(tmp_path, "depth", session=name, limit=50) for name in ("one", "two"))
    assert [hit.path.name for hit in one] == [hit.path.name for hit in two]


def test_the_numbers_of_another_night_are_never_bare(folder, tmp_path):
    for path in folder.glob("test/005-*.md"):
        text = path.read_text().replace(
            "## Why we believed it", "## Why we believed it\n\nMuon zebra, as #3 showed: '#1f77b4'."
        )
        write_atomically(tmp_path / "first" / path.name, text)

    (hit,) = search(tmp_path, "zebra")
    assert "as experiment 3 of first showed" in hit.snippet
    assert render_template("hits.txt", hits=[hit]).startswith("experiment 5 of first: ")
    note = hit.path.with_name("007-mine.md")
    note.write_text("A quagga of my own.\n")
    assert [found.path for found in search(tmp_path, "quagga")] == [note], "it was written since the last search"
    hit.path.write_text(hit.path.read_text().replace("zebra", "okapi"))
    note.unlink()
    assert [found.path for found in search(tmp_path, "okapi")] == [hit.path]
    assert search(tmp_path, "quagga") == search(tmp_path, "zebra") == []
    assert "as experiment 3 of first showed: '#1f77b4'." in musings.find_page(tmp_path, "first", 5)
    assert musings.find_page(tmp_path, "../first", 5) == musings.find_page(tmp_path, "first", 6) == ""


def hostile(path) -> Session:
    session = Session(path, lambda: 1.8e9, create=True)
    session.write("", started(), BaselineCommitted(commit="f" * 40, source=session.put(SOURCE), fingerprint="f" * 16))
    proposal = Proposal(
        title="../../etc/passwd | [x](y)\n# Ωmega ```",
        hypothesis="one\n---\ntwo",
        rationale="because",
        expected_delta=-0.1,
        family="other",
        settings={"X": ""},
        direction="up",
        instructions="none",
    )
    session.write("", Proposed(experiment=1, proposal=proposal), Refused(experiment=1, reason="again"))
    return session


def test_hostile_titles_stay_in_their_place(tmp_path):
    session = hostile(tmp_path / "s" / "session.db")
    musings.write_musings(session, tmp_path / "m" / "test")

    (path,) = (tmp_path / "m" / "test").glob("001-*.md")
    assert path.name == "001-etc-passwd-x-y-mega.md"
    matter, body = read(path)
    assert matter["status"] == "refused"
    assert "Refused" in body
    assert len((tmp_path / "m" / "test" / "index.md").read_text().split("---\n")) == 3


def test_search_finds_by_words_and_filters(folder):
    hits = search(folder, "shallower depth")
    assert all("Shallower: DEPTH" in hit.title for hit in hits[:2])
    assert hits[0].matter["session"] == "test"
    assert hits[0].snippet.count("**") % 2 == 0
    assert "**" in hits[0].snippet
    found = hits[0].matter
    change = f"{found['delta']:+.4f} ± {found['error']:.4f}".replace("-", "−")
    outcome = f"{found['status']} {change}, {found['verdict']}"
    assert (
        render_template("hits.txt", hits=hits[:1]).strip()
        == f"experiment {hits[0].title.replace('. ', ' of test: ', 1)} ({outcome}): {hits[0].snippet}"
    )
    assert {hit.matter["family"] for hit in search(folder, "learning rate", family="optimizer")} == {"optimizer"}
    assert all(hit.matter["status"] == "kept" for hit in search(folder, "noise", verdict="kept"))
    assert all(hit.matter["verdict"] == "refuted" for hit in search(folder, "noise", verdict="refuted"))
    assert search(folder, "noise", session="another") == []
    assert len(search(folder, "", limit=3)) == 3


def test_search_does_not_match_the_words_of_the_template(tmp_path):
    (tmp_path / "one").mkdir()
    page = "---\nexperiment: 1\n---\n\n# 1. A title\n\n## What we learned\n\nZebras help.\n\n| training loss | 1 |\n"
    (tmp_path / "one/001-a.md").write_text(page)
    assert [hit.title for hit in search(tmp_path, "zebra")] == ["1. A title"]
    assert search(tmp_path, "learning") == search(tmp_path, "loss") == []


def test_search_falls_back_to_any_word_and_knows_word_forms(folder):
    assert search(folder, "muon zebra")
    assert search(folder, "zebra") == []
    assert [hit.path for hit in search(folder, "orthogonalising")] == [
        hit.path for hit in search(folder, "orthogonalises")
    ]


@pytest.mark.parametrize("query", ['"', "AND", "a OR", "NEAR(", "title:x", "-", "*", "'; drop table m", "(("])
def test_search_takes_any_text(folder, query):
    search(folder, query)


def test_search_passes_by_what_people_put_there(folder, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "001-notes.md").write_text("my own muon notes")
    (tmp_path / "x" / "002-broken.md").write_text("---\n: [\n---\nmuon")
    (tmp_path / "x" / "003-latin.md").write_bytes(b"---\nsession: x\n---\n# m\xfcon\n")
    assert len(search(tmp_path, "muon")) == 2


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_atomically(path, "one")
    before = path.stat()
    write_atomically(path, "one")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # reading it is allowed
    write_atomically(path, b"two")
    assert path.read_text() == "two"
    write_atomically(path, (word for word in ("thr", "ee")))
    assert path.read_text() == "three"
    with pytest.raises(ZeroDivisionError):
        write_atomically(path, (str(1 // number) for number in (1, 0)))
    assert path.read_text() == "three"
    assert list(path.parent.iterdir()) == [path]


def test_a_device_is_written_to_and_never_replaced(tmp_path):
    """A pipe stands for it: root may replace /dev/null by a file, and would."""
    os.mkfifo(path := tmp_path / "pipe")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(path, "one")
    assert path.is_fifo()
    assert os.read(reader, 10) == b"one"
    os.close(reader)


def test_every_number_of_a_page_and_of_the_index_is_the_verdicts(tmp_path):
    """A change and its error never stand anywhere in two versions; scores are means over the runs of the verdict."""
    session = night(tmp_path / "s" / "session.db", experiments=14, rule=KeepRule(two_seeds=1))
    musings.write_musings(session, tmp_path / "test")
    rows, index = [row for row in list_rows(session.state) if row.gain is not None], read(tmp_path / "test/index.md")[1]
    assert any(len(row.scores) > 1 for row in rows)
    for row in rows:
        (path,) = (tmp_path / "test").glob(f"{row.experiment:03}-*.md")
        (matter, body), verdict, metric = read(path), row.verdict, row.task.metric
        change, error = metric.format_change(-verdict.gain), metric.format_size(verdict.error)
        told = set(re.findall(r"([+−]?\d+\.\d+) ± (\d+\.\d+)", body))
        assert told <= {(change, error)}
        assert bool(told) == bool(row.experiment)
        assert matter["val_bpb"] == pytest.approx(verdict.mean, abs=1e-6)
        assert matter["error"] == pytest.approx(verdict.error, abs=1e-6)
        assert f"| val_bpb | {metric.format_score(verdict.mean)} |" in body
        assert fmean(score.val_bpb for score in row.scores) == pytest.approx(verdict.mean)
        assert f"| {metric.format_score(verdict.mean)} | {change} |" in index


def test_the_name_of_a_metric_takes_the_place_of_no_other_key(session, tmp_path):
    row = next(row for row in list_rows(session.state) if row.gain is not None and row.experiment)
    path = tmp_path / "page.md"
    path.write_text(musings.render_musing(session, row))
    own = {key: value for key, value in read(path)[0].items() if key != "val_bpb"}
    assert len(own) == 16
    for name in own:
        path.write_text(musings.render_musing(session, replace(row, task=Task(metric=Metric(name=name)))))
        assert read(path)[0] == own | {f"metric {name}": pytest.approx(row.value, abs=1e-6)}


def test_an_arm_of_a_trial_reads_its_own_musings_only(session, folder, tmp_path):
    (tmp_path / "m").mkdir()
    for name in ("test", "rival"):
        shutil.copytree(folder / "test", tmp_path / "m" / name)
    began = session.records[0].event
    for isolated, readable in ((True, {"test"}), (False, {"test", "rival"})):
        own = Session(tmp_path / f"{isolated}.db", lambda: 1.8e9, create=True)
        own.write("", began.model_copy(update={"name": "test", "crew": "claude", "isolated": isolated}))
        crew = build_crew(own, tmp_path / "m", {"researcher": Prompt(model="m", system="", template="")})
        assert {name for name in ("test", "rival") if crew.find_page(name, 1)} == readable
        own_number = re.findall(r"^experiment \d+ of (\w+)", crew.search("rival depth"), re.MULTILINE)
        assert "test" in own_number or not isolated
        assert set(own_number) <= readable


def test_a_change_that_is_not_the_plain_difference_says_why(session):
    for row in (row for row in list_rows(session.state) if row.gain is not None):
        plain, metric = fmean(score.val_bpb for score in row.compared) - row.val_bpb, row.task.metric
        told = "The change is corrected for the luck that experiment" in musings.render_musing(session, row)
        assert told == (metric.format_change(plain) != metric.format_change(row.gain))


def test_an_index_that_has_no_room_is_told_in_a_line(tmp_path):
    (tmp_path / "night").mkdir()
    (tmp_path / "night/001-a.md").write_text("---\nstatus: kept\n---\n# 1. A\nDeeper.\n")
    assert search(tmp_path, "deeper")
    musings._Words(tmp_path).db.close()  # as an index that is written to a full disk
    with pytest.raises(UserError, match="the musings cannot be searched: "):
        search(tmp_path, "deeper")


def test_changes_have_the_decimals_of_their_metric(tmp_path):
    lines = "session: mine", "experiment: 1", "status: kept", "verdict: null", "delta: -2.0e-05", "error: 1.0e-06"
    for name, told in (("loss", "−2e−05 ± 1e−06"), ("val_bpb", "+0.0000 ± 0.0000")):
        text = "\n".join(["---", *lines, "profile: cpu", f"{name}: 0.002", "---", "# 1. A change of depth", ""])
        write_atomically(tmp_path / name / "mine/001-change.md", text)
        write_atomically(tmp_path / name / "mine/index.md", "---\nsession: mine\n---\n")
        (hit,) = search(tmp_path / name, "depth")
        assert hit.outcome == f"kept {told}"
        assert f"](mine/001-change.md) {told}" in musings.render_overview(tmp_path / name, "cpu")
