"""The lab's git, against real repositories."""

import asyncio
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.executor import LocalExecutor
from orchestrator.repo import Repo, RepoError
from tests.workplace import environment

ENV = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    **{f"GIT_{who}_{what}": "user@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


def git(folder, *arguments):
    done = subprocess.run(["git", *arguments], cwd=folder, env=ENV, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def project(folder, name="train.py"):
    """A repository with one commit: the script and two other files."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q", "-b", "main")
    (folder / name).write_text("LR = 1\n")
    (folder / "other").mkdir()
    (folder / "other/ä notes.txt").write_text("mine\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "mine")
    return folder


@pytest.fixture
def folder(tmp_path):
    return project(tmp_path)


@pytest.fixture
def repo(folder):
    return Repo(folder / "train.py", "may")


def outside_refs(folder):
    """Everything in work tree and git folder, byte for byte, but objects, refs and their reflogs."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = ((path, path.relative_to(folder).as_posix()) for path in paths)
    return {
        name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path, name in names
        if not name.startswith((".git/objects/", ".git/refs/", ".git/logs/refs/"))
    }


def dirty(folder):
    """Staged, unstaged and untracked changes at once."""
    (folder / "train.py").write_text("LR = 1  # staged\n")
    git(folder, "add", "train.py")
    (folder / "train.py").write_text("LR = 1  # edited\n")
    (folder / "new.txt").write_text("untracked\n")


def night(repo):
    """The refs of a little night: a baseline, a candidate, a keep."""
    base = repo.commit(0, repo.get_start(), "LR = 2\n", "fit")
    repo.advance_branch(base)
    candidate = repo.commit(1, base, "LR = 3\n", "candidate 1")
    return base, candidate, repo.promote(base, "LR = 3\n", "better")


def test_a_night_leaves_work_tree_and_index_as_they_were(folder, repo):
    dirty(folder)
    status = git(folder, "status", "--porcelain", "--untracked-files=all")
    before = outside_refs(folder)
    night(repo)
    assert outside_refs(folder) == before
    assert git(folder, "status", "--porcelain", "--untracked-files=all") == status
    assert git(folder, "log", "--format=%s", "research/may") == "better\nfit\nmine"
    assert git(folder, "fsck", "--strict", "--no-dangling") == ""


def test_what_an_agent_writes_into_a_message_cuts_off_and_controls_nothing(folder, repo):
    message = "LR\0 up \x1b]0;owned\x07\u202e\ud800\n\nWhy.\r\n\nExperiment: 4\n"

    commit = repo.commit(4, repo.get_start(), "LR = 2\n", message)

    assert repo.commit(4, repo.get_start(), "LR = 2\n", message) == commit
    told = "LR� up �]0;owned���\n\nWhy.\n\nExperiment: 4"
    assert git(folder, "log", "-1", "--format=%B", commit) == told
    assert git(folder, "log", "-1", "--format=%(trailers:key=Experiment,valueonly)", commit) == "4"
    assert git(folder, "fsck", "--strict", "--no-dangling") == ""


def test_only_the_script_changes(folder, repo):
    base, _, kept = night(repo)
    assert git(folder, "diff", "--raw", "--name-only", repo.get_start(), kept) == "train.py"
    assert git(folder, "ls-tree", "-r", "-z", kept).split("\0")[0].startswith("100644")
    assert "100755" in git(folder, "ls-tree", kept, "run.sh")
    assert repo.read_source(kept) == "LR = 3\n"
    assert repo.read_source(base) == "LR = 2\n"


def test_on_a_detached_head_without_an_identity(folder):
    git(folder, "checkout", "-q", "--detach")
    repo = Repo(folder / "train.py", "may")
    _, _, kept = night(repo)
    assert git(folder, "log", "-1", "--format=%an %cn", kept) == "Nightshift Nightshift"
    assert git(folder, "rev-parse", "HEAD") == repo.get_start()


def test_doing_it_again_after_a_crash_changes_nothing(folder, repo):
    first = night(repo)
    refs = git(folder, "for-each-ref")
    again = Repo(folder / "train.py", "may")
    again.unlock()
    base = again.commit(0, again.get_start(), "LR = 2\n", "fit")
    assert (base, again.commit(1, base, "LR = 3\n", "candidate 1")) == first[:2]
    assert again.promote(base, "LR = 3\n", "better") == first[2]
    assert git(folder, "for-each-ref") == refs


def test_another_candidate_of_the_same_experiment_gets_its_own_ref(folder, repo):
    head = repo.get_start()
    commits = [repo.commit(7, head, source, "candidate") for source in ("a\n", "b\n", "c\n", "b\n")]
    assert commits[3] == commits[1]
    refs = git(folder, "for-each-ref", "--format=%(refname) %(objectname)", "refs/nightshift/may").splitlines()
    assert refs == [
        f"refs/nightshift/may/{name} {commit}" for name, commit in zip(("7", "7-2", "7-3"), commits[:3], strict=True)
    ]


def test_a_branch_that_somebody_moved_is_not_touched(folder, repo):
    _, _, kept = night(repo)
    git(folder, "branch", "-f", "research/may", git(folder, "commit-tree", f"{kept}^{{tree}}", "-m", "mine"))
    theirs = git(folder, "rev-parse", "research/may")
    head = repo.promote(kept, "LR = 4\n", "next")
    assert git(folder, "rev-parse", "research/may") == theirs
    assert "was moved by another program" in repo.trouble
    subprocess.run(repo.trouble.partition(" as it is: ")[2], shell=True, env=ENV, check=True)
    assert git(folder, "rev-parse", "research/may") == head
    assert repo.promote(head, "LR = 5\n", "and on") == git(folder, "rev-parse", "research/may")
    assert repo.trouble == ""


def test_a_branch_that_was_deleted_or_set_back_is_brought_up_again(folder, repo):
    base, _, kept = night(repo)
    for words in (["-D", "research/may"], ["-f", "research/may", base]):
        git(folder, "branch", *words)
        kept = repo.promote(kept, f"LR = 4  # {words}\n", "next")
        assert git(folder, "rev-parse", "research/may") == kept
        assert repo.trouble == ""


@pytest.mark.parametrize("lost", ["research/may", "refs/nightshift/may/kept", "research/may refs/nightshift/may/kept"])
def test_refs_that_are_missing_at_the_end_of_a_night_are_made_again(folder, repo, lost):
    base, _, kept = night(repo)
    for name in lost.split():
        git(folder, "update-ref", "-d", name if name.startswith("refs") else f"refs/heads/{name}")
    repo.restore_branch(kept)
    assert git(folder, "rev-parse", "research/may", repo.kept).split() == [kept, kept]

    git(folder, "branch", "-f", "research/may", base)
    (folder / ".git").rename(folder / ".git-away")
    with ThreadPoolExecutor() as pool:
        settling = pool.submit(repo.restore_branch, kept, 60)
        while not repo.trouble:
            time.sleep(0.01)
        (folder / ".git-away").rename(folder / ".git")
        settling.result()
    assert git(folder, "rev-parse", "research/may") == kept
    assert repo.trouble == ""


@pytest.mark.parametrize("linked", [False, True])
def test_a_branch_that_is_checked_out_stays_as_it_is_until_it_is_free(folder, repo, tmp_path_factory, linked):
    _, _, kept = night(repo)
    tree = folder
    if linked:
        tree = tmp_path_factory.mktemp("linked") / "a tree"
        git(folder, "worktree", "add", "-q", tree, "research/may")
    else:
        git(folder, "switch", "-q", "research/may")
    head = repo.promote(kept, "LR = 4\n", "next")
    assert git(tree, "status", "--porcelain") == ""
    assert git(folder, "rev-parse", "research/may") == kept
    assert "is checked out" in repo.trouble
    subprocess.run(repo.trouble.partition(" as it is: ")[2], shell=True, env=ENV, check=True, stdout=subprocess.DEVNULL)
    assert git(tree, "rev-parse", "HEAD") == head

    later = repo.promote(head, "LR = 5\n", "later")
    git(tree, "switch", "-q", "--detach")
    repo.advance_branch(later)
    assert git(folder, "rev-parse", "research/may") == later
    assert repo.trouble == ""


async def test_a_repository_that_is_away_or_collects_garbage_is_waited_for(folder, repo):
    lab, away, said = LocalExecutor(repo, None, None, say=print), folder / ".git-away", []
    lab = replace(lab, say=said.append, patience=2)

    head = repo.get_start()
    (folder / ".git").rename(away)
    committing = asyncio.create_task(lab.commit(1, head, "LR = 2\n", "fit"))
    while not said:
        await asyncio.sleep(0.01)
    away.rename(folder / ".git")
    commit = await committing
    assert repo.read_source(commit) == "LR = 2\n"
    assert "It is tried again until it works" in said[0]

    collector = subprocess.Popen(
        ["sh", "-c", "while :; do git gc -q --prune=now; done"],
        cwd=folder,
        env=ENV,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        repo.advance_branch(commit)
        for number in range(2, 12):
            await lab.commit(number, commit, f"LR = {number}\n", "candidate")
            commit = await lab.promote(1, commit, f"LR = {number}  # kept\n", "keep")
    finally:
        os.killpg(collector.pid, signal.SIGKILL)
        collector.wait()
    Repo(folder / "train.py", "may").unlock()
    repo.advance_branch(commit)
    assert git(folder, "rev-parse", "research/may") == commit
    assert repo.trouble == ""


async def test_git_that_never_returns_is_killed_and_tried_again(folder, repo):
    """It waits for a writer of a named pipe, as it would for a server of files that is gone."""
    said, stopping, config, head = [], [], folder / ".git/config", repo.get_start()
    lab = LocalExecutor(repo, None, None, say=said.append, is_stopping=lambda: bool(stopping), patience=0)
    text, repo.timeout = config.read_text(), 0.6
    config.unlink()
    os.mkfifo(config)

    def let_go():
        writer = os.open(config, os.O_RDWR)
        config.unlink()
        config.write_text(text)
        os.close(writer)

    limit = threading.Timer(60, let_go)  # else it would be waited for until the end of days
    limit.start()
    committing = asyncio.create_task(lab.commit(1, head, "LR = 2\n", "fit"))
    while not (said or committing.done()):
        await asyncio.sleep(0.01)
    limit.cancel()
    assert "did not end in 0.01 minutes. It is tried again until it works" in "".join(said)
    stopping.append("the hours are over")
    with pytest.raises(RepoError, match="did not end"):
        await committing

    let_go()
    repo.timeout = 600.0
    assert repo.read_source(await lab.commit(1, head, "LR = 2\n", "fit")) == "LR = 2\n"


def test_text_survives_byte_for_byte(repo):
    text = 'NAME = "Δ→é"\r\n\n\n# no newline at the end'
    name = f"{repo.commit(1, repo.get_start(), text, 'Δ σ')}:train.py"
    words = ["git", "cat-file", "blob", name]
    assert subprocess.run(words, cwd=repo.folder, capture_output=True, check=True).stdout == text.encode()


def test_edits_that_are_not_committed_are_refused_with_both_ways_on(folder, repo):
    dirty(folder)
    with pytest.raises(RepoError, match="has edits that are not committed") as caught:
        repo.read_baseline()
    take, leave = re.findall("`(.+?)`", str(caught.value))
    subprocess.run(leave, shell=True, check=True, env=ENV)
    assert repo.read_baseline() == "LR = 1\n"
    git(folder, "stash", "pop")
    subprocess.run(take, shell=True, check=True, env=ENV)
    assert repo.read_baseline() == "LR = 1  # edited\n"
    (folder / "train.py").unlink()
    for words in (["status"], ["rm", "-q", "train.py"]):
        git(folder, *words)
        with pytest.raises(RepoError, match="has edits that are not committed") as caught:
            repo.read_baseline()
    take, leave = re.findall("`(.+?)`", str(caught.value))
    subprocess.run(leave, shell=True, check=True, env=ENV)
    assert repo.read_baseline() == "LR = 1  # edited\n"
    git(folder, "mv", "train.py", "moved.py")
    with pytest.raises(RepoError, match="has edits that are not committed"):
        repo.read_baseline()
    subprocess.run(take, shell=True, check=True, env=ENV)
    with pytest.raises(RepoError, match="does not exist in commit"):
        repo.read_baseline()


def test_a_script_in_a_subfolder(tmp_path):
    folder = project(tmp_path, "deep/down/train.py")
    repo = Repo(folder / "deep/down/train.py", "may")
    assert repo.read_source(night(repo)[2]) == "LR = 3\n"
    assert git(folder, "diff", "--name-only", repo.get_start(), "research/may") == "deep/down/train.py"


def test_a_script_with_an_odd_name_that_can_be_executed(tmp_path):
    folder = project(tmp_path, 'a "ä\\ b.py')
    (folder / 'a "ä\\ b.py').chmod(0o755)
    git(folder, "commit", "-qam", "mode")
    repo = Repo(folder / 'a "ä\\ b.py', "may")
    kept = night(repo)[2]
    assert repo.read_source(kept) == "LR = 3\n"
    assert git(folder, "diff", "--summary", repo.get_start(), kept) == ""
    assert len(git(folder, "ls-tree", "-r", kept).splitlines()) == 3


def test_a_script_that_was_never_committed_is_refused(folder):
    (folder / "mine.py").write_text("LR = 9\n")
    with pytest.raises(RepoError, match="commit it first") as caught:
        Repo(folder / "mine.py", "may").read_baseline()
    (folder / ".gitignore").write_text("mine.py\n")
    subprocess.run(re.findall("`(.+?)`", str(caught.value)), shell=True, check=True, env=ENV)
    git(folder, "commit", "-qm", "mine")
    assert Repo(folder / "mine.py", "may").read_baseline() == "LR = 9\n"


def test_no_setting_of_the_repository_starts_a_program(folder, repo):
    trap = folder / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {folder}/sprung\n")
    trap.chmod(0o755)
    hooks = folder / ".git/hooks"
    for hook in ("reference-transaction", "post-commit", "pre-commit", "post-index-change"):
        (hooks / hook).write_bytes(trap.read_bytes())
        (hooks / hook).chmod(0o755)
    for setting in (
        "core.fsmonitor",
        "gpg.program",
        "filter.x.clean",
        "filter.x.smudge",
        "filter.x.process",
        "filter.y=z.clean",
        "filter.y=z.smudge",
        "filter.y=z.process",
        "core.pager",
        "core.editor",
    ):
        git(folder, "config", setting, str(trap))
    (folder / "sub").mkdir()
    for where, names in ((folder / "sub", ["notes.txt"]), (folder, ["notes.txt", "sub"])):
        git(where, "init", "-q")
        (where / "notes.txt").write_text("one")
        git(where, "add", *names)
        git(where, "commit", "-qm", "notes")
    git(folder / "sub", "config", "filter.own.clean", str(trap))
    (folder / "sub/.git/info/attributes").write_text("* filter=own\n")
    (folder / ".git/info/attributes").write_text("* filter=x\nnotes.txt filter=y=z\n")
    git(folder, "config", "commit.gpgSign", "true")
    git(folder, "config", "filter.x.required", "true")
    (folder / "sprung").unlink(missing_ok=True)
    night(repo)
    repo.extract(repo.get_start(), folder / "run", "LR = 2\n")
    (folder / "train.py").write_text("LR = 3\n")
    with pytest.raises(RepoError, match="its filter x is not run here: set -filter"):
        repo.read_baseline()
    assert not (folder / "sprung").exists()
    (folder / "notes.txt").write_text("two")
    os.utime(folder / "sub/notes.txt", (1, 1))
    assert repo.list_changed() == ["notes.txt"]
    assert not (folder / "sprung").exists()


def test_git_variables_of_the_caller_do_not_lead_astray(folder, tmp_path_factory):
    other = project(tmp_path_factory.mktemp("other"))
    program = (
        "import sys; from pathlib import Path; from orchestrator.repo import Repo;"
        "repo = Repo(Path(sys.argv[1]), 'may'); print(repo.commit(1, repo.get_start(), 'x = 1', 'note'))"
    )
    strays = {"GIT_DIR": f"{other}/.git", "GIT_INDEX_FILE": f"{other}/.git/index", "GIT_WORK_TREE": str(other)}
    stray = os.environ | strays
    subprocess.run([sys.executable, "-c", program, folder / "train.py"], env=stray, check=True, capture_output=True)
    assert git(folder, "for-each-ref", "refs/nightshift")
    assert not git(other, "for-each-ref", "refs/nightshift")


def test_of_the_users_home_only_what_git_ignores_there_is_read(folder, tmp_path_factory):
    homes, trap = tmp_path_factory.mktemp("homes"), f"fsmonitor = touch {folder}/sprung\n"
    for name, settings in {
        "broken": "[this is no setting\n",
        "default": "",
        "named": f"[core]\n{trap}excludesFile = ~/mine\n",
        "missing": "[core]\nexcludesFile = ~/nowhere\n",
        "none": "[core]\nexcludesFile =\n",
    }.items():
        home = homes / name
        (home / ".config/git").mkdir(parents=True)
        (home / ".gitconfig").write_text(settings)
        (home / ("mine" if name == "named" else ".config/git/ignore")).write_text("/scratch.py\n")
    (folder / "scratch.py").touch()
    git(folder, "config", "core.hooksPath", "~/hooks")
    git(folder, "config", "include.path", "~/more")
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom orchestrator.repo import Repo\n"
        "for home in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    os.environ['HOME'], repo = str(home), Repo(Path(sys.argv[2]), 'may')\n"
        "    print(home.name, *repo.list_untracked(), [*repo.list_others()].count('scratch.py'))\n"
    )
    unset = ("XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL")
    env = {name: value for name, value in environment(GIT_CONFIG_NOSYSTEM="1").items() if name not in unset}
    said = subprocess.check_output([sys.executable, "-c", program, homes, folder / "train.py"], env=env, text=True)
    rows = ["broken 1", "default 1", "missing scratch.py 0", "named 1", "none scratch.py 0"]
    assert said.splitlines() == rows
    assert not (folder / "sprung").exists()


def test_a_filter_of_which_only_the_users_own_settings_know_is_told(folder, repo):
    (folder / ".git/info/attributes").write_text("*.py filter=tidy\n")
    (folder / "train.py").write_text("LR = 1 # as it is shown\n")
    with pytest.raises(RepoError, match="its filter tidy is not run here: set -filter"):
        repo.read_baseline()


def test_stale_locks_of_our_own_refs_are_removed_and_no_others(folder, repo):
    _, _, kept = night(repo)
    ours = [folder / ".git/refs/heads/research/may.lock", folder / ".git/refs/nightshift/may/2.lock"]
    others = [folder / ".git/refs/heads/main.lock", folder / ".git/index.lock"]
    for lock in [*ours, *others]:
        lock.touch()
    with pytest.raises(RepoError, match="lock"):
        repo.commit(2, kept, "LR = 4\n", "candidate 2")
    head = repo.promote(kept, "LR = 4\n", "next")
    assert "lock" in repo.trouble
    repo.unlock()
    assert repo.promote(kept, "LR = 4\n", "next") == head == git(folder, "rev-parse", "research/may")
    assert repo.commit(2, kept, "LR = 4\n", "candidate 2")
    assert [lock.exists() for lock in [*ours, *others]] == [False, False, True, True]


def test_in_a_linked_work_tree(folder, tmp_path_factory):
    linked = tmp_path_factory.mktemp("linked") / "tree"
    git(folder, "worktree", "add", "-q", "--detach", linked)
    night(Repo(linked / "train.py", "may"))
    lock = folder / ".git/refs/heads/research/may.lock"
    lock.touch()
    Repo(linked / "train.py", "may").unlock()
    assert not lock.exists()
    assert git(folder, "log", "--format=%s", "research/may") == "better\nfit\nmine"


def test_bad_repositories_are_told_in_one_line(tmp_path, folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    bare = tmp_path / "bare"
    bare.mkdir()
    git(bare, "init", "-q", "--bare")
    alone = Path(os.path.realpath("/")) / "train.py"
    cases = {
        "is not a folder": lambda: Repo(folder / "no/train.py", "may"),
        "not in a git repository": lambda: Repo(alone, "may"),
        "no commit yet": lambda: Repo(empty / "train.py", "may").get_start(),
        "does not exist": lambda: Repo(folder / "typo.py", "may").read_baseline(),
        "has no work tree": lambda: Repo(bare / "train.py", "may"),
        "no work tree:": lambda: Repo(folder / ".git/train.py", "may"),
    }
    for words, broken in cases.items():
        with pytest.raises(RepoError, match=words) as caught:
            broken()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["research", "research/may/june"])
def test_a_branch_in_the_way_is_named_with_what_to_do(folder, repo, name):
    repo.check_free()
    git(folder, "branch", name)
    with pytest.raises(RepoError, match=f"the branch {name} conflicts with") as caught:
        repo.check_free()
    subprocess.run(str(caught.value).split("`")[1], shell=True, cwd=folder, env=ENV, check=True)
    repo.unlock()
    repo.check_free()
    night(repo)
    with pytest.raises(RepoError, match="exists already"):
        repo.check_free()
    git(folder, "branch", "-D", repo.branch)
    with pytest.raises(RepoError, match="an earlier session called may: choose another name") as caught:
        repo.check_free()  # a night of this name would begin at the last keep of that one
    subprocess.run(str(caught.value).split("`")[1], shell=True, cwd=folder, env=ENV, check=True)
    repo.check_free()


def test_locks_that_others_left_do_not_matter(folder, repo):
    for lock in ("HEAD.lock", "packed-refs.lock", "index.lock", "config.lock"):
        (folder / ".git" / lock).touch()
    _, _, kept = night(repo)
    assert git(folder, "rev-parse", "research/may") == kept
    assert repo.trouble == ""


def test_a_submodule_and_a_repository_of_another_user(folder, tmp_path_factory):
    outer = project(tmp_path_factory.mktemp("outer"))
    git(outer, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(folder), "inner")
    repo = Repo(outer / "inner/train.py", "may")
    assert repo.common.resolve() == (outer / ".git/modules/inner").resolve()
    night(repo)
    assert git(outer / "inner", "rev-parse", "research/may")

    if os.geteuid() == 0:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, 1234, 1234)
        night(Repo(folder / "train.py", "june"))


@pytest.mark.parametrize("mark", (b"", b"\xef\xbb\xbf"))
@pytest.mark.parametrize("endings", (b"\r\n", b"\r", b"\n"))
def test_a_commit_changes_no_more_lines_than_were_changed(folder, mark, endings):
    committed = mark + b"LR = 1\n\nDEPTH = 3\nWIDTH = 4\n".replace(b"\n", endings)
    (folder / "train.py").write_bytes(committed)
    git(folder, "commit", "-qam", "as an editor of another system writes it")
    repo = Repo(folder / "train.py", "may")

    source = repo.read_baseline()
    base = repo.commit(0, repo.get_start(), source.replace("LR = 1", "LR = 2"), "fit")
    repo.advance_branch(base)
    kept = repo.promote(base, source.replace("LR = 1\n", "LR = 3\nNEW = 5\n"), "better")

    assert source == "LR = 1\n\nDEPTH = 3\nWIDTH = 4\n"
    assert (folder / "train.py").read_bytes() == committed
    found = subprocess.check_output(["git", "cat-file", "blob", f"{kept}:train.py"], cwd=folder)
    assert found == mark + b"LR = 3\nNEW = 5\n\nDEPTH = 3\nWIDTH = 4\n".replace(b"\n", endings)


def test_a_work_tree_with_other_line_endings_is_no_change(folder, repo):
    """As git for Windows checks out what was committed with plain line feeds."""
    (folder / "train.py").write_bytes(b"LR = 1\r\n")

    assert repo.read_baseline() == "LR = 1\n"
    assert git(folder, "diff", "--stat", "HEAD", repo.commit(0, repo.get_start(), repo.read_baseline(), "fit")) == ""
    (folder / "more\t.txt").write_bytes(b"a\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "more")
    (folder / "more\t.txt").write_bytes(b"a\r\n")
    assert repo.list_changed() == []
    (folder / "more\t.txt").write_bytes(b"b\r\n")
    assert repo.list_changed() == ["more\t.txt"]


@pytest.mark.parametrize(("attribute", "encoding"), [("ident", "utf-8"), ("working-tree-encoding=UTF-16", "utf-16")])
def test_a_file_that_git_itself_shows_otherwise_is_no_edit(folder, attribute, encoding):
    text = "# $Id$\nLR = 1\n"
    (folder / ".gitattributes").write_text(f"train.py {attribute}\n")
    (folder / "train.py").write_bytes(text.encode(encoding))
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "an attribute")
    (folder / "train.py").unlink()
    git(folder, "checkout", "train.py")

    shown = (folder / "train.py").read_bytes()
    assert shown != text.encode()
    assert git(folder, "status", "--porcelain") == ""
    assert Repo(folder / "train.py", "may").read_baseline() == text
    (folder / "train.py").write_bytes(shown.replace(b"L", b"M"))
    with pytest.raises(RepoError, match=r"has edits that are not committed|is not UTF-8 text"):
        Repo(folder / "train.py", "may").read_baseline()


@pytest.mark.parametrize(("is_there", "words"), [(False, "git is not installed"), (True, "git: Permission denied")])
def test_why_git_cannot_be_started_is_said(folder, is_there, words):
    (folder / "bin").mkdir()
    if is_there:
        (folder / "bin/git").touch(0o644)
    code = "from pathlib import Path; from orchestrator.repo import Repo; Repo(Path('train.py'), 'may')"
    env = environment(PATH=str(folder / "bin"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert words in done.stderr.splitlines()[-1]
