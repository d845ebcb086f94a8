"""Candidates of several files: one text inside, files wherever they are edited, compared, run and committed."""

import asyncio
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.agents.fidelity import find_deviation
from orchestrator.cli.options import Options
from orchestrator.cli.preflight import Preflight
from orchestrator.cli.task_file import find_task
from orchestrator.cli.wiring import build_crew
from orchestrator.core.events import Proposal
from orchestrator.core.source import compute_fingerprint, count_changes, diff, merge
from orchestrator.core.task import Task
from orchestrator.loop import run
from orchestrator.repo import Repo, RepoError
from orchestrator.session.replay import Tape, replay
from prepare.constants import list_declarations, read_values, with_constants
from prepare.tree import join_files, split_files
from subagents.files import EditedFiles
from subagents.tools import ToolCall
from tests.scripted import Scripted, _call, _opening, served
from tests.test_reported import SAFE, ground, opened, research
from tests.workplace import git, orchestrate

TRAIN = """import helper
from model.net import WIDTH, predict

LR = 0.5
print(f"METRIC loss={helper.DISTANCE * abs(WIDTH - 32) + predict(LR):.4f}")
"""
NET = """WIDTH = 64  # one of 16, 32, 64

def predict(rate):
    return 1.0
"""
FILES = {"train.py": TRAIN, "model/__init__.py": "", "model/net.py": NET, "helper.py": "DISTANCE = 0.1\n"}
TOML = "editable = ['train.py', 'model/*.py']\nmetric = {name = 'loss'}\n"
SEEDED = {"env": "NIGHTSHIFT_SEED"}
TREE = {path: text for path, text in FILES.items() if path != "helper.py"}
TASK = Task(form="reported", editable=("train.py", "model/*.py"), protected=("model/judge.py",))


@given(st.dictionaries(st.sampled_from(["b.py", "a/b c.txt", "a/ä.py", "a/b/c.py"]), st.text(max_size=60), min_size=1))
def test_files_come_back_from_one_text(files):
    assert split_files(join_files(files)) == files
    assert [*split_files(join_files(files))] == sorted(files, key=lambda path: (path.count("/"), path))


@pytest.mark.parametrize("text", ["", "LR = 1\n", "=== a.py (99 characters)\nx\n", "=== a.py (1 characters)\nx\nmore"])
def test_any_other_text_is_one_file(text):
    assert split_files(text) == {"": text}
    assert join_files({"": text}) == text


def test_a_diff_names_the_files_that_differ():
    new = {**TREE, "model/net.py": NET.replace("64  ", "32  "), "model/extra.py": "A = 1\nB = 2\n"}
    del new["model/__init__.py"]

    assert diff(join_files(TREE), join_files(new), context=0) == (
        "--- a/model/__init__.py\n+++ /dev/null\n"
        "--- /dev/null\n+++ b/model/extra.py\n@@ -0,0 +1,2 @@\n+A = 1\n+B = 2\n"
        "--- a/model/net.py\n+++ b/model/net.py\n@@ -1 +1 @@\n-WIDTH = 64  # one of 16, 32, 64\n"
        "+WIDTH = 32  # one of 16, 32, 64"
    )
    assert count_changes(join_files(TREE), join_files(new)) == (3, 1)


def test_comments_make_no_other_tree_and_a_new_place_does():
    same = TREE | {"model/net.py": NET + "# said\n"}
    moved = {path.replace("net", "nets"): text for path, text in TREE.items()}

    assert compute_fingerprint(join_files(same)) == compute_fingerprint(join_files(TREE))
    assert compute_fingerprint(join_files(moved)) != compute_fingerprint(join_files(TREE))


def merged(ours, theirs):
    found = merge(join_files(TREE), join_files(ours), join_files(theirs))
    return found if found is None else split_files(found)


def test_changes_of_two_trees_are_merged_file_by_file():
    ours = TREE | {"model/net.py": NET.replace("64  ", "32  "), "model/a.py": "A = 1\n"}
    theirs = TREE | {"model/net.py": NET.replace("1.0", "rate"), "train.py": TRAIN.replace("0.5", "0.4")}
    without = {path: text for path, text in TREE.items() if path != "model/net.py"}

    both = {**ours, **theirs, "model/net.py": NET.replace("64  ", "32  ").replace("1.0", "rate")}
    assert merged(ours, theirs) == both
    assert merged(TREE, without) == without
    assert merged(without, without) == without
    assert merged(ours, without) is None
    assert merged(ours, TREE | {"model/a.py": "A = 2\n"}) is None


def test_constants_are_found_and_set_in_every_file():
    source = join_files(TREE | {"model/more.py": "LR = 0.1\nGAIN = 2.0\n", "model/notes.txt": "LR = = 1"})

    assert read_values(source) == {"train.py:LR": 0.5, "model/more.py:LR": 0.1, "WIDTH": 64, "GAIN": 2.0}
    assert "model/more.py:LR = 0.1" in list_declarations(source)
    after = split_files(with_constants(source, {"model/more.py:LR": 0.25, "WIDTH": 128}))
    assert after["model/more.py"] == "LR = 0.25\nGAIN = 2.0\n"
    assert after["model/net.py"].startswith("WIDTH = 128  # one of")
    assert after["train.py"] == TRAIN


@pytest.mark.parametrize(
    ("path", "may"),
    [
        ("train.py", True),
        ("model/net.py", True),
        ("model/deep/net.py", True),
        ("model/judge.py", False),
        ("helper.py", False),
        ("model/../helper.py", False),
        ("model/.hidden.py", False),
        ("model/net.py/x.py", False),
        ("/model/net.py", False),
        ("model/a\nb.py", False),
        ("notes/a.md", True),
        ("musings/night/001-a.md", False),
        ("corpus/a.md", False),
        ("rows.md", False),
        ("sessions/night/a.md", False),
    ],
)
def test_a_pattern_reaches_no_further_than_it_says(path, may):
    task = TASK.model_copy(update={"editable": (*TASK.editable, "*.md"), "data": ("./corpus/", "rows.md")})
    assert task.is_editable(path) is may


def test_two_stars_and_a_slash_also_stand_for_no_folder(tmp_path):
    lines = "editable = ['train.py', 'model/**/*.py']\nprotected = ['model/eval/**/**/*', '**/*.txt']\ncommand = 'x'"
    (tmp_path / "nightshift.toml").write_text(lines)
    task = find_task(tmp_path / "train.py")
    assert task.protected == ("model/eval/*", "*.txt")
    there = [f"model/{name}.py" for name in ("net", "a/b/net", "eval/judge", "eval/a/judge")]
    assert [name for name in there if task.is_editable(name)] == there[:2]


# The mechanic's tools


def used(tree, tool, **arguments):
    found = next(found for found in tree.tools if found.name == tool)
    return asyncio.run(found.run(ToolCall("1", tool, arguments))).text


def test_tools_take_a_path():
    tree = EditedFiles(TREE, None, TASK.is_editable, join_files)

    assert used(tree, "check") == "no file is changed."
    assert (
        used(tree, "view", path="model/net.py", first=1, last=1).splitlines()[1]
        == "   1│WIDTH = 64  # one of 16, 32, 64"
    )
    assert used(tree, "replace", path="model/net.py", old="WIDTH = 64", new="WIDTH = 32") == "Replaced at line 1."
    assert "No file 'helper.py' may change" in used(tree, "view", path="helper.py")
    assert "allows no 'helper.py'" in used(tree, "create", path="helper.py", text="")
    assert "exists already" in used(tree, "create", path="train.py", text="")
    loose = EditedFiles(TREE | {"model/deep/x.txt": ""}, None, Task(editable=("model/*",)).is_editable, join_files)
    for path in ("model/deep", "model/deep/x.txt/y", "model/__init__.pyc"):
        assert ("There is a file" in used(loose, "create", path=path, text="")) is ("deep" in path)
    for path in (f"model/{'ü' * 127}.py", f"model/{'x/' * 2_050}y.py"):
        assert "too long" in used(loose, "create", path=path, text="")
    assert used(tree, "create", path="model/extra.py", text="x = = 1\n") == "Created model/extra.py."
    assert "model/extra.py has a syntax error in line 1" in used(tree, "check")
    assert used(tree, "replace", path="model/extra.py", old="= = 1", new="= 1") == "Replaced at line 1."
    assert used(tree, "replace", path="train.py", old="import helper", new="import model.extra, numpy2\nimport helper")
    assert used(tree, "check") == "Not installed here, and nothing can be installed: numpy2."
    assert used(tree, "delete", path="model/__init__.py") == "Deleted model/__init__.py."
    assert split_files(tree.text).keys() == {"train.py", "model/net.py", "model/extra.py"}


def test_constants_of_every_file_are_held_to_the_proposal():
    proposal = Proposal(
        title="Set WIDTH to 32", hypothesis="h", rationale="r", expected_delta=0.0, family="size", instructions="i"
    )
    before, after = join_files(TREE), join_files(TREE | {"train.py": TRAIN.replace("LR = 0.5", "LR = 0.4")})

    assert "put `LR = 0.5` back" in find_deviation(proposal, before, after)
    options = [f"parser.add_argument('--lr', default={rate})\n" for rate in (0.5, 0.4)]
    assert "put `--lr = 0.5` back" in find_deviation(proposal, *options)
    assert find_deviation(proposal, before, with_constants(before, {"WIDTH": 32})) == ""


# git


def test_a_commit_has_all_changed_files_and_the_run_sees_them(tmp_path):
    place = ground(tmp_path / "place", {f"deep/{path}": text for path, text in FILES.items()} | {"deep/run.sh": "x"})
    repo = Repo(place / "deep/train.py", "may", TASK)
    head, source = repo.get_start(), repo.read_baseline()
    new = {path: text for path, text in TREE.items() if path != "model/__init__.py"} | {"model/extra.py": "A = 1\n"}

    assert split_files(source) == TREE
    commit = repo.commit(1, head, join_files(new), "candidate")
    assert repo.commit(1, head, join_files(new), "candidate") == commit
    changed = git(place, "diff", "--name-status", head, commit).split()
    assert changed == ["D", "deep/model/__init__.py", "A", "deep/model/extra.py"]
    assert split_files(repo.read_source(commit)) == new
    (tmp_path / "run").mkdir()
    repo.extract(head, tmp_path / "run/work", join_files(new))
    found = {
        path.relative_to(tmp_path / "run" / "work" / "deep").as_posix(): path.read_text()
        for path in (tmp_path / "run").rglob("*.*")
        if path.is_file() and ".index" not in path.name and "deep" in path.parts
    }
    assert found == {**new, "helper.py": FILES["helper.py"], "run.sh": "x"}
    (place / "deep/helper.py").write_text("DISTANCE = 2\n")
    assert repo.list_changed() == ["deep/helper.py"]


def test_a_run_has_what_is_committed_whatever_gitattributes_and_gitmodules_say_now(tmp_path):
    place = ground(tmp_path / "place", {"deep/train.py": "", "rows.txt": "a\n", ".gitmodules": ""})
    (place / "sub").mkdir()
    git(place, "config", "-f", ".gitmodules", "submodule.sub.path", "sub")
    git(place, "update-index", "--add", "--cacheinfo", f"160000,{git(place, 'rev-parse', 'HEAD')},sub")
    git(place, "commit", "-qam", "a submodule")
    (place / ".gitattributes").write_text("*.txt text eol=crlf\n")
    with (place / ".gitmodules").open("a") as file:
        file.write("# edited\n")
    for name in ("sub", "rows.txt"):
        repo = Repo(place / "deep/train.py", "may", Task(form="reported", data=(f"../{name}",)))
        repo.extract(repo.get_start(), work := tmp_path / name, "LR = 1\n")
        left = {"rows.txt": ["deep/train.py", "sub"], "sub": ["deep/train.py", "rows.txt"]}[name]
        assert [at for at in ("deep/train.py", "rows.txt", "sub") if (work / at).exists()] == left
    assert (work.with_name("sub") / "rows.txt").read_bytes() == b"a\n"


def test_a_repository_that_was_made_where_names_have_no_case_keeps_both_files(tmp_path):
    place = ground(tmp_path / "place", FILES)
    git(place, "config", "core.ignoreCase", "true")
    repo, files = Repo(place / "train.py", "may", TASK), TREE | {"model/Net.py": "WIDTH = 1\n"}
    commit = repo.commit(1, repo.get_start(), join_files(files), "candidate")
    assert split_files(repo.read_source(commit)) == files
    assert repo.commit(1, repo.get_start(), join_files(files), "candidate") == commit


def test_a_file_may_lie_where_a_folder_was_and_a_folder_where_a_file_was(tmp_path):
    task = Task(form="reported", editable=("train.py", "m*", "n*"))
    place = ground(tmp_path / "place", {f"deep/{name}": "" for name in ("train.py", "m/a/x.py", "n", "other")})
    repo, files = Repo(place / "deep/train.py", "may", task), {"train.py": "1", "m": "2", "n/b": "3"}
    commit = repo.commit(1, repo.get_start(), join_files(files), "candidate")
    assert split_files(repo.read_source(commit)) == files
    for some, folders in ((files, ["n"]), ({"train.py": "1"}, [])):
        work = tmp_path / f"{len(some)}"
        repo.extract(repo.get_start(), work, join_files(some))
        there = {path.relative_to(work / "deep").as_posix() for path in (work / "deep").rglob("*")}
        assert there == {*some, *folders, "other"}


def test_no_candidate_leaves_the_folder_of_its_run(tmp_path):
    place = ground(tmp_path / "place", FILES)
    repo, outside = Repo(place / "train.py", "may", TASK), tmp_path / "outside"
    outside.mkdir()
    (place / "link").symlink_to(outside)
    git(place, "add", ".")
    git(place, "commit", "-qm", "a link")
    for path in ("../x.py", "helper.py"):
        with pytest.raises(RepoError, match="not editable"):
            repo.extract(repo.get_start(), tmp_path / "work", join_files(TREE | {path: "x"}))
    linked = Repo(place / "train.py", "may", Task(form="reported", editable=("train.py", "link/*.py")))
    linked.extract(repo.get_start(), tmp_path / "work2", join_files({"train.py": "", "link/x.py": "x"}))
    assert (tmp_path / "work2/link/x.py").read_text() == "x"
    assert not list(outside.iterdir())


@pytest.mark.parametrize("line", ["", "import prepare"])
def test_no_candidate_takes_the_place_of_what_the_user_has_there(tmp_path, line):
    toml = "editable = ['train.py', '*.py']\n"
    files = {"train.py": line, "nightshift.toml": toml, "forced/net.py": ""}
    place = ground(tmp_path / "place", files | {".gitignore": "own.py\n/out/\n"})
    (place / ".gitignore").write_text("own.py\n/out/\n/forced/\n")
    (place / "link").symlink_to("elsewhere")
    git(place, "update-index", "--add", "--cacheinfo", f"160000,{git(place, 'rev-parse', 'HEAD')},sub")
    git(place, "add", "link")
    git(place, "commit", "-qm", "what a candidate would replace")
    for name in ("model/own.py", "out/x"):
        (place / name).parent.mkdir()
        (place / name).write_text("hours of work")
    git(place, "rm", "-q", "--cached", "forced/net.py")  # as on another branch
    night = Preflight(Options(script=place / "train.py"), "night", "optuna")
    tree = night.tree
    assert tree.others - {*night.repo.list_others(["out/deep/kept.py"])} == {"out"}, "the best has a file in it"

    tree.lay_out(tmp_path / "good", join_files({"train.py": "", "model/x.py": "", "forced/net.py": ""}))
    for number, name in enumerate(("sub/x.py", "link/x.py", "model/own.py", "out/y.py")):
        with pytest.raises(FileExistsError, match=name):
            tree.lay_out(tmp_path / f"{number}", join_files({"train.py": "", name: ""}))


def test_a_script_that_may_not_change_reads_the_seed_of_a_run_too(tmp_path):
    toml = "command = 'python train.py'\neditable = ['model.py']\n"
    for name, line, seed in (("a", "print(1)", {}), ("b", "print(os.environ['NIGHTSHIFT_SEED'])", SEEDED)):
        place = ground(tmp_path / name, {"model.py": "A = 1", "train.py": line, "nightshift.toml": toml})
        assert Preflight(Options(script=place / "train.py"), "night", "optuna").task.seed == seed


def test_what_a_run_would_not_see_is_said(tmp_path):
    place = ground(tmp_path / "place", FILES)
    repo = Repo(place / "train.py", "may", TASK)

    (place / "model/new.py").write_text("")
    with pytest.raises(RepoError, match=r"model/new\.py may change, but is not committed: `git -C"):
        repo.read_baseline()
    (place / "model/new.py").unlink()
    (place / "model/net.py").write_text("WIDTH = 1\n")
    with pytest.raises(RepoError, match=r"net\.py has edits that are not committed"):
        repo.read_baseline()
    with pytest.raises(RepoError, match=r"gone\.py does not exist"):
        Repo(place / "train.py", "may", Task(editable=("train.py", "gone.py"))).read_baseline()
    with pytest.raises(RepoError, match=r"/nets/\*\.py does not exist in commit \w+: choose another"):
        Repo(place / "train.py", "may", Task(editable=("nets/*.py",))).read_baseline()
    git(place, "stash")
    night = Preflight(Options(script=place / "train.py"), "night", "optuna")
    (place / "nightshift.toml").write_text("editable = ['train.py', 'modle/*.py']")
    assert "no committed file is modle/*.py, which is editable" in [result.message for result in night.check()]
    night = Preflight(Options(script=place / "train.py"), "night", "optuna")
    (place / "nightshift.toml").write_text("editable = ['*.py']\nprotected = ['model/', './*.md', 'modle']")
    assert night.task.protected == ("model/*", "*.md", "modle")
    assert not night.task.is_editable("model/net.py")
    refused = next(result for result in night.check() if result.state == "bad")
    assert "no committed file is *.md or modle, which is protected" in refused.message
    for name in ("train.py", "model/link.py"):
        (place / name).unlink(missing_ok=True)
        (place / name).symlink_to(place / "model/net.py")
        git(place, "add", name)
        git(place, "commit", "-qm", "a link")
        with pytest.raises(RepoError, match=rf"{name} is a symbolic link or a submodule, which no candidate can"):
            repo.read_baseline()


def test_each_file_keeps_its_line_endings_and_its_byte_order_mark(tmp_path):
    place = ground(tmp_path / "place", {**FILES, "model/with space.py": "A = 1\n"})
    repo, spelled = Repo(place / "train.py", "may", TASK), {"model/net.py": b"\xef\xbb\xbfWIDTH = 64\n"}
    spelled |= {"train.py": b"LR = 1\r\nGO = 2\r\n"}
    for name, data in spelled.items():
        (place / name).write_bytes(data)
    git(place, "commit", "-qam", "as editors write it")
    source = repo.read_baseline()

    assert [*read_values(source)] == ["LR", "GO", "WIDTH", "A"]
    commit = repo.commit(1, repo.get_start(), with_constants(source, {"WIDTH": 32, "GO": 3}), "candidate")
    repo.extract(commit, tmp_path / "run/work", repo.read_source(commit))
    for name, data in spelled.items():
        assert (tmp_path / "run/work" / name).read_bytes() == data.replace(b"64", b"32").replace(b"= 2", b"= 3")
    (place / "model/net.py").write_bytes("# Größe\n".encode("latin-1"))
    git(place, "commit", "-qam", "in Latin-1")
    with pytest.raises(RepoError, match=r"net\.py is not UTF-8 text: save it as UTF-8"):
        repo.read_baseline()


# Nights


def assert_replays(place):
    session = opened(place)
    tape = Tape(session)

    async def live(tape):
        await run(tape, build_crew(tape, place / "musings"), tape)

    assert asyncio.run(replay(tape, live)) == []
    assert not tape.upcoming


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    place = ground(tmp_path_factory.mktemp("trees") / "place", FILES | {"nightshift.toml": TOML})
    return place, research(place, experiments=1)


def test_the_optimizer_tunes_a_constant_of_another_file(tuned):
    place, _ = tuned

    assert [result.status for result in opened(place).state.results] == ["kept", "kept"]
    assert git(place, "diff", "--name-only", "main", "research/night") == "model/net.py"
    assert git(place, "show", "research/night:model/net.py").startswith("WIDTH = 32  # one of")
    musing = next((place / "musings/night").glob("001-*.md")).read_text()
    page = (place / "sessions/night/report.html").read_text()
    for told in (musing, page):
        assert "+++ b/model/net.py" in told
    assert_replays(place)


@pytest.mark.soak
def test_a_fork_goes_on_from_the_tree(tuned):
    place, _ = tuned
    last = len(opened(place).records) - 1

    words = ("fork", "night", "--at", str(last), "--session", "later", "--max-experiments", "2")
    done = orchestrate(place, *words, "--hours", "1", **SAFE)

    assert done.returncode == 0, done.stdout + done.stderr
    assert git(place, "show", "research/later:model/net.py").startswith("WIDTH = 32  # one of")


class Builder(Scripted):
    """Plays the agents: a new module that two files use, and a crash on the way."""

    def draft(self, number, known):
        return {
            "title": "Move the distance into a module",
            "hypothesis": "A module of its own lowers the loss.",
            "rationale": "It is shorter.",
            "expected_delta": -1.0,
            "family": "other",
            "settings": {},
            "direction": None,
            "instructions": "Write model/extra.py and use it in train.py and model/net.py.",
        }

    def mechanic(self, request):
        opening = _opening(request)
        if "# It has crashed" in opening:
            assert "model/net.py, line 1, in <module>: from model.extra import rise" in opening
            edits = [_call("replace", path="model/extra.py", old="def raise_", new="def rise")]
            return [*edits, _call("submit", summary="The name is right now.")], "tool_use"
        edits = [
            _call("create", path="model/extra.py", text="def raise_(rate):\n    return 0.25 * rate\n"),
            _call("replace", path="model/net.py", old="    return 1.0", new="    return rise(rate)"),
            _call("replace", path="model/net.py", old="WIDTH = 64", new="from model.extra import rise\n\nWIDTH = 64"),
            _call("replace", path="train.py", old="import helper\n", new="import model.extra\n\nimport helper\n"),
        ]
        return [*edits, _call("check"), _call("submit", summary="It is there.", deviations="0.25")], "tool_use"


def test_three_agents_add_a_file_and_edit_two(tmp_path):
    place, app = ground(tmp_path / "place", FILES | {"nightshift.toml": TOML}), Builder(("turn",))

    with served(app) as url:
        words = ("--hours", "1", "--session", "night", "--seed", "3", "--max-experiments", "1")
        done = orchestrate(place, *words, ANTHROPIC_BASE_URL=url, ANTHROPIC_API_KEY="none", **SAFE)

    assert done.returncode == 0, done.stdout + done.stderr
    assert [result.status for result in opened(place).state.results] == ["kept", "kept"]
    assert git(place, "diff", "--name-only", "main", "research/night").split() == [
        "model/extra.py",
        "model/net.py",
        "train.py",
    ]
    told = json.dumps(app.requests)
    for words in ("=== model/net.py (", "Candidates may change train.py, model/*.py", "+++ b/model/extra.py"):
        assert words in told
    reflected = next(request for request in app.requests if "compare_curves" in json.dumps(request["tools"]))
    assert re.search(r"--- /dev/null\\n\+\+\+ b/model/extra.py", json.dumps(reflected["messages"]))
    assert_replays(place)
