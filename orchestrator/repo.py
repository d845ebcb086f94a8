"""Git plumbing in the user's own repository: writes objects and refs, never the work tree or the index.

Every candidate stays under `refs/nightshift/<session>/`, and so does the last keep. The branch `research/<session>`
follows it, unless the user has checked the branch out or moved it elsewhere; set back, it looks like one that a kill
has left behind.
"""

import io
import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import lru_cache
from os.path import normpath
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from orchestrator.core.source import normalize_lines, restore_lines
from orchestrator.core.task import EXAMINED, Task
from orchestrator.core.text import make_printable
from prepare.command import UserError
from prepare.files import resolve_home
from prepare.tree import join_files, split_files

SETTINGS = (
    "core.hooksPath=/dev/null",  # the user's hooks are for the user's own commits
    "diff.autoRefreshIndex=false",  # the user's index is the user's
    "core.fsmonitor=false",  # no setting of the repository may start a program
    "fastimport.unpackLimit=1",  # one pack per commit, however small
    "core.fsync=all",  # git's default leaves empty objects behind when the power fails
    "safe.directory=*",  # a mounted repository often belongs to another user
)
AUTHOR = "Nightshift"
EMAIL = "nightshift@localhost"
ENVIRONMENT = {
    "LC_ALL": "C",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_COMMITTER_NAME": AUTHOR,  # for the reflog
    "GIT_COMMITTER_EMAIL": EMAIL,
}
"""The environment that git runs in, besides PATH and a home: the user's own ignores and attributes are read."""
UNREAD = MappingProxyType({"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"})
"""Further environment, which keeps the settings out that are the user's own or the machine's."""
TIMEOUT = 600.0  # seconds after which git, as on a dead mount, is killed


def write_git(script: Path, *words: str) -> str:
    """Return a command of git in the script's folder that can be pasted into a shell."""
    return shlex.join(["git", *([] if script.parent == Path() else ["-C", str(script.parent)]), *words])


@lru_cache(maxsize=1)
def list_folders(names: frozenset[str]) -> set[str]:
    """Return all folders around files or folders, by path; the last answer is kept, since each run asks the same."""
    found, new = set[str](), {*names}
    while new := {name.rpartition("/")[0] or "." for name in new} - found:
        found |= new
    return found


class RepoError(UserError):
    """The repository cannot be used; the message says why and what to do."""


class Repo:
    """The files that candidates change in their repository, and the refs of one session."""

    def __init__(self, script: Path, session: str, task: Task = EXAMINED, begins: str = "") -> None:
        """Find the repository around `script`, beside which the task's paths begin. Raises RepoError.

        The session `begins` at that commit, or at HEAD, which the user may move.
        """
        self.task = task if task.editable else task.model_copy(update={"editable": (script.name,)})
        self.home, self.session, self.begins, self.timeout = script.parent, session, begins, TIMEOUT
        self.script = script.parent / next(iter(self.task.named), script.name)
        self.branch, self.kept = f"research/{session}", f"refs/nightshift/{session}/kept"
        self.trouble = ""  # why the branch is not at the last keep, and what to do about it; empty if it is
        self.folder = folder = script.parent.resolve()
        try:
            facts = self._git("rev-parse", "--is-inside-work-tree", "--git-common-dir", "--show-prefix", strip=False)
        except RepoError as error:
            if "not a git repository" not in str(error):
                raise
            raise RepoError(f"{folder} is not in a git repository: `git init`, then commit") from error
        inside, common, prefix = facts.split("\n")[:3]
        if inside != "true":
            raise RepoError(f"{folder} has no work tree: clone the repository, and start the night in the clone")
        self.prefix, self.common = PurePosixPath(prefix), folder / common

    def check_free(self) -> None:
        """Raise RepoError if the session's refs cannot be created: they exist, or others conflict with them."""
        ours = f"refs/heads/{self.branch}"
        for ref in self._git("for-each-ref", "--format=%(refname)", "refs/heads/research").splitlines():
            if ref == ours:
                raise RepoError(f"the branch {self.branch} exists already: choose another name, or delete it")
            if ours.startswith(f"{ref}/") or ref.startswith(f"{ours}/"):
                name = ref.removeprefix("refs/heads/")
                remedy = self.write_command("branch", "-m", name, name.replace("/", "-") + "-old")
                raise RepoError(f"the branch {name} conflicts with {self.branch}: rename it (`{remedy}`)")
        own = self.kept.removesuffix("/kept")
        for ref in self._git("for-each-ref", "--format=%(refname)", "refs/nightshift").splitlines():
            if f"{ref}/".startswith(f"{own}/") or own.startswith(f"{ref}/"):
                listed = self.write_command("for-each-ref", "--format=delete %(refname)", min(ref, own, key=len))
                deletes = self.write_command("update-ref", "--stdin")
                remedy = f"choose another name, or delete them (`{listed} | {deletes}`)"
                raise RepoError(f"git still has commits of an earlier session called {self.session}: {remedy}")
        if not os.access(self.common / "objects", os.W_OK):
            raise RepoError(f"{self.common} cannot be written")

    def get_start(self) -> str:
        """Return the commit where the session begins, or HEAD's, detached or not. Raises RepoError if there is none."""
        if commit := self.begins or self._resolve("HEAD"):
            return commit
        raise RepoError(f"{self.folder} has no commit yet: commit {self.script.name} first")

    def read_baseline(self) -> str:
        """Return the script in the user's commit. Raises RepoError, also where a file has edits beyond it."""
        head = self.get_start()
        if linked := [name for name, (mode, _) in self._list_files(head, "").items() if not mode.startswith("100")]:
            words = "is a symbolic link or a submodule, which no candidate can change: name the files behind it"
            raise RepoError(f"{self.home / linked[0]} {words} as editable, or protect it")
        source, files, blobs = self.read_source(head), self._read_files(head), self._list_files(head)
        if missing := [name for name in self.task.named if name not in files]:
            raise self._make_absence_error(missing[0], head)
        how = ("--name-only", "-z", "--no-renames", "--diff-filter=D", "--relative", "--ignore-submodules=all")
        gone = {*self._git("diff", *how, head, env=self._drop_filters()).split("\0")} & files.keys()  # also if staged
        if edited := [at for at, text in files.items() if at in gone or self._is_edited(at, text, blobs[at][1])]:
            which = ", ".join(str(self.home / name) for name in edited)
            if passed := [*self._find_filters(edited).values()]:
                remedy = f"its filter {passed[0]} is not run here: set -filter in .git/info/attributes, and commit it"
                raise RepoError(f"{which} is not what is committed, and {remedy}")
            take = self.write_command("commit", "-m", "edits", *edited)
            leave = self.write_command("stash", "push", *edited)
            leave = f"{self.write_command('reset', '-q', '--', *sorted(gone))} && {leave}" if gone else leave
            raise RepoError(f"{which} has edits that are not committed: `{take}`, or leave them out: `{leave}`")
        if new := [name for name in self.list_untracked() if self.task.is_editable(name)]:
            remedy = self.write_command("add", *new)
            raise RepoError(f"{', '.join(new)} may change, but is not committed: `{remedy}`, then commit")
        return source

    def _make_absence_error(self, name: str, commit: str) -> RepoError:
        add = f"commit it first (`{self.write_command('add', '-f', name)}`)"
        remedy = add if (self.folder / name).is_file() else "choose another file with --script, or as editable"
        return RepoError(f"{self.home / name} does not exist in commit {commit[:10]}: {remedy}")

    def _is_edited(self, name: str, committed: str, blob: str) -> bool:
        """Return whether a file is there and differs from the commit, also as git would commit it. Raises RepoError."""
        path = self.home / name
        try:
            committed.encode()
            raw = path.read_bytes() if path.is_file() else committed.encode()
            with suppress(UnicodeDecodeError):  # under an attribute, such as working-tree-encoding
                if normalize_lines(raw.decode()) == normalize_lines(committed):
                    return False
            if self._git("hash-object", "--", name, env=self._drop_filters()) == blob:
                return False
            raw.decode()
        except UnicodeError as error:
            raise RepoError(f"{path} is not UTF-8 text: save it as UTF-8") from error
        except OSError as error:
            raise RepoError(f"{path} cannot be read: {error.strerror}") from error
        return True

    def read_source(self, commit: str) -> str:
        """Return the script's text in a commit, or that of all editable files. Raises RepoError."""
        files = {name: normalize_lines(text) for name, text in self._read_files(commit).items()}
        if not files:
            raise self._make_absence_error(self.task.editable[0], commit)
        return join_files(files) if self.task.has_tree else files[self.task.editable[0]]

    def extract(self, commit: str, folder: Path, source: str) -> None:
        """Write what git tracks at a commit into a folder, with the files of a candidate. Raises RepoError, OSError."""
        before = self._read_files(commit)
        files, here = self._split(source, before), folder / self.prefix
        folder.mkdir(parents=True, exist_ok=True)
        index, gone = folder.with_suffix(".index"), [*before.keys() - files.keys()]
        self._git("read-tree", commit, index=index)
        data = (normpath(self.prefix / name) for name in self.task.data)  # which a run sees as they lie here
        if inside := [f":(top,literal){name}" for name in data if name.split("/")[0] not in {"", ".", ".."}]:
            gone += filter(None, self._git("ls-files", "-z", "--", *inside, index=index).split("\0"))
        if deleted := "".join(f"{name}\0" for name in gone):  # nor are there folders for them
            self._git("update-index", "--force-remove", "-z", "--stdin", index=index, stdin=deleted)
        own = {"GIT_WORK_TREE": str(folder), "XDG_CONFIG_HOME": os.devnull}  # the user's attributes are no commit's
        self._git("checkout-index", "--all", index=index, env={**self._drop_filters(), **own})
        for name, text in files.items():
            path = here / name
            for part in reversed([path, *path.parents][: len(path.relative_to(folder).parts)]):
                if part.is_symlink():  # what lies behind it is not the run's
                    part.unlink()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode("utf-8", "surrogateescape"))

    def list_untracked(self) -> list[str]:
        """Return the files in the script's folder that are neither committed nor data, nor ignored by git."""
        there = self._git("ls-files", "-z", "--cached", "--others", "--exclude-standard", env=self._find_ignores())
        committed = self._git("ls-tree", "-r", "-z", "--name-only", "HEAD")
        data = tuple(f"{normpath(name)}/" for name in self.task.data)
        return sorted(name for name in {*there.split("\0")} - {*committed.split("\0")} if not name.startswith(data))

    def list_absent(self) -> Iterator[str]:
        """Yield what git tracks and no run has, by its path from here: submodules, links that lead out.

        Nor has it what a filter, as that of Git LFS, makes of a file.
        """
        rows = (row.split("\t", 1) for row in self._git("ls-files", "-z", "--stage", ":/").split("\0") if row)
        modes = {name: facts[:6] for facts, name in rows}
        odd = {name for name, mode in modes.items() if mode in {"120000", "160000"}}
        odd |= {name for name in self._find_filters(modes) if not self.task.is_editable(name)}
        top = Path(self._git("rev-parse", "--show-toplevel"))
        shown = [(self.folder / resolve_home(name)).resolve() for name in self.task.data]
        for name, path in ((name, self.folder / name) for name in sorted(odd) if (self.folder / name).exists()):
            real, is_moved = path.resolve(), path.is_symlink() and not path.readlink().is_absolute()
            if not (is_moved and real.is_relative_to(top)) and not any(map(real.is_relative_to, shown)):
                yield name

    def list_committed(self) -> list[str]:
        """Return all files of the commit where the session begins, by path from here. Raises RepoError."""
        rows = self._git("ls-tree", "-r", "-z", "--full-tree", "--name-only", self.get_start()).split("\0")
        return [os.path.relpath(name, self.prefix) for name in rows if name]

    def list_others(self, kept: Iterable[str] = ()) -> Iterator[str]:
        """Yield where no candidate may have a file: what it may not change, or git ignores, folders as a whole.

        The best has the files `kept`: where they lie, and in folders around them, candidates may have some.
        """
        committed = {*self.list_committed()}
        yield from (name for name in committed if not self.task.is_editable(name))
        how = ("-z", "--others", "--ignored", "--exclude-standard", "--directory")
        rows = self._git("ls-files", *how, env=self._find_ignores()).split("\0")
        ignored, ours = {*map(normpath, filter(None, rows))}, committed.union(kept)
        around = list_folders(frozenset(ignored | ours))  # they are listed, too, if all else in them is ignored
        yield from ignored - ours - around

    def check_whole(self) -> None:
        """Raise RepoError where git has not fetched all files of the commit that runs are laid out from."""
        rows = self._git("rev-list", "--objects", "--missing=print", f"{self.get_start()}^{{tree}}")
        if "\n?" in rows:
            remedy = self.write_command("sparse-checkout", "disable")
            raise RepoError(f"{self.home} is in a partial clone, without files that runs need: `{remedy}` fetches them")

    def has_mention(self, word: str) -> bool:
        """Return whether a Python file beside or below the script holds a word where the session begins."""
        return bool(self._git("grep", "-lF", "-e", word, self.get_start(), "--", "*.py", absent=1))

    def list_changed(self) -> list[str]:
        """Return the other tracked files with uncommitted changes, from the top of the repository. Raises RepoError."""
        how = ("--numstat", "--no-renames", "--ignore-cr-at-eol")  # as autocrlf adds them, in settings unread here
        how += ("--ignore-submodules=dirty", "--no-ext-diff", "--no-textconv")  # a submodule has settings of its own
        rows = self._git("diff", *how, "-z", "HEAD", env=self._drop_filters())
        changed = (row.split("\t", 2)[-1] for row in rows.split("\0"))
        return [name for name in changed if name and not self.task.is_editable(os.path.relpath(name, self.prefix))]

    def write_command(self, *words: str) -> str:
        """Return a git command for this repository, to be pasted into a shell."""
        return write_git(self.home / self.script.name, *words)

    def commit(self, experiment: int, parent: str, source: str, message: str) -> str:
        """Commit a candidate under its own ref; repeating it changes nothing. Raises RepoError."""
        return self._commit(f"refs/nightshift/{self.session}/{experiment}", parent, source, message)

    def promote(self, parent: str, source: str, message: str) -> str:
        """Commit a keep on top of `parent` and advance the branch; repeating it changes nothing. Raises RepoError."""
        kept = self._commit(self.kept, parent, source, message)
        self.restore_branch(kept)
        return kept

    def _commit(self, name: str, parent: str, source: str, message: str) -> str:
        """Commit under a ref, unless it has the same commit already. Only `kept` is moved; other refs get a number."""
        files, message = self._split(source, self._read_files(parent)), make_printable(message)  # agents wrote it
        found = self._git("for-each-ref", "--format=%(objectname)", name, f"{name}-*").splitlines()
        for commit in found:
            if self._is_commit(commit, parent, files, message):
                return commit
        moves = name == self.kept or not found
        return self._import_commit(name if moves else f"{name}-{len(found) + 1}", parent, files, message)

    def restore_branch(self, commit: str, patience: float = 0) -> None:
        """Bring the branch to the last keep, or set `trouble`; wait for git for so many seconds."""
        until = time.monotonic() + patience
        while True:
            try:
                return self.advance_branch(commit)
            except RepoError as error:
                self.trouble = f"{self.branch} stays behind {self.kept}: {error}"
                if time.monotonic() > until:
                    return None
            time.sleep(0.5)

    def check_kept(self, known: Sequence[str], *, is_due: bool) -> None:
        """Raise RepoError if git's last keep is not `known`, oldest first; one on the last may be, where one is due."""
        kept = self._resolve(self.kept)
        if kept in {None, *known} or (is_due and self._resolve(f"{kept}^") == known[-1]):
            return
        words = "is a keep that the session's file does not hold, so the file is older: put the later one back"
        raise RepoError(
            f"{self.kept} {words}, or go without (`{self.write_command('update-ref', self.kept, known[-1])}`)"
        )

    def has_begun(self, commit: str, folder: str) -> bool:
        """Return whether a session that began at that commit, in that folder of its repository, is of this project.

        What scores it is the same then, too: the files that are protected, and those that the command names.
        """
        if folder not in {"", str(self.prefix)} or self._resolve(f"{commit}^{{commit}}") is None:
            return False
        judges = *self.task.protected, *self.task.command.split()
        fixed = [name for name in self.list_changed_since(commit) if not self.task.is_editable(name)]
        return not any(fnmatchcase(name, judge) for name in fixed for judge in judges)

    def list_changed_since(self, commit: str) -> list[str]:
        """Return what has changed from a commit to where the session begins, by path from here. Raises RepoError."""
        rows = self._git("diff-tree", "-r", "-z", "--name-only", commit, self.get_start()).split("\0")
        return [os.path.relpath(name, self.prefix) for name in rows if name]

    def begin_with(self, origin: str, source: str, message: str) -> str:
        """Return a commit of another session's best, whose text is `source` unless `origin` is here. Raises RepoError.

        It is `origin` where that contains HEAD, else HEAD itself or a new commit on it.
        """
        head = self.get_start()
        if found := self._resolve(f"{origin}^{{commit}}"):
            source = self.read_source(found)
            if not self._git("rev-list", "-1", head, f"^{found}"):
                return found
        return head if self.read_source(head) == source else self.commit(0, head, source, message)

    def advance_branch(self, commit: str) -> None:
        """Create the branch or move it to the last keep, or `commit`; `trouble` says why it stays. Raises RepoError."""
        self.trouble, ref = "", f"refs/heads/{self.branch}"
        kept = self._resolve(self.kept) or self._git("update-ref", self.kept, commit) or commit
        at, _, user = self._git("for-each-ref", "--format=%(objectname) %(worktreepath)", ref).partition(" ")
        if at == kept:
            return
        if user:  # moving it would make the user's index look like a revert
            remedy = shlex.join(["git", "-C", user, "merge", "--ff-only", self.kept])
            self.trouble = f"{self.branch} is checked out in {user} and stays as it is: {remedy}"
        elif at and self._git("rev-list", "-1", at, f"^{kept}"):
            remedy = self.write_command("branch", "-f", self.branch, self.kept)
            self.trouble = f"{self.branch} was moved by another program and stays as it is: {remedy}"
        else:
            self._git("update-ref", "-m", "nightshift: keep", ref, kept, at)

    def unlock(self, age: float = 0.0) -> None:
        """Remove locks on this session's refs that are so many seconds old: who held them was killed, or lost them."""
        branch = self.common / "refs/heads" / f"{self.branch}.lock"
        for lock in [branch, *(self.common / "refs/nightshift" / self.session).glob("*.lock")]:
            with suppress(OSError):
                if not age or time.time() - lock.stat().st_mtime >= age:
                    lock.unlink()

    def _import_commit(self, ref: str, parent: str, files: Mapping[str, str], message: str) -> str:
        """Commit the parent's tree with other editable files, and move the ref there, by fast-forward only.

        All objects are in one pack, which `git gc --prune=now` does not touch before the ref exists.
        """
        before = self._list_files(parent)
        paths = {name: json.dumps(str(self.prefix / name), ensure_ascii=False) for name in {**before, **files}}
        texts = (f"{message.rstrip()}\n", *files.values())
        body, *blobs = (f"data {len(text.encode('utf-8', 'surrogateescape'))}\n{text}" for text in texts)
        modes = [before[name][0] if name in before else "100644" for name in files]
        stream = [
            f"commit {ref}",
            "mark :1",
            f"committer {AUTHOR} <{EMAIL}> {time.time():.0f} +0000",
            body,
            f"from {parent}",
            *(f"D {paths[name]}" for name in before.keys() - files.keys()),
            *(f"M {mode} inline {paths[name]}\n{blob}" for name, mode, blob in zip(files, modes, blobs, strict=True)),
            "get-mark :1\n",
        ]
        exact = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.ignoreCase", "GIT_CONFIG_VALUE_0": "false"}
        return self._git("fast-import", "--quiet", stdin="\n".join(stream), env=exact)  # runs tell Net.py from net.py

    def _is_commit(self, commit: str, parent: str, files: Mapping[str, str], message: str) -> bool:
        """Return True if a commit has this parent, these files and this message, whatever its date."""
        header, _, body = self._git("cat-file", "commit", commit, strip=False).partition("\n\n")
        same = header.splitlines()[1] == f"parent {parent}" and body.rstrip("\n") == message.rstrip("\n")
        return same and self._read_files(commit) == files

    def _split(self, source: str, before: Mapping[str, str]) -> dict[str, str]:
        """Return a candidate's files, with line endings as before. Raises RepoError where it may not have one."""
        files = split_files(source) if self.task.has_tree else {self.task.editable[0]: source}
        if strange := [name for name in files if not self.task.is_editable(name)]:
            raise RepoError(f"a candidate has a file {strange[0]!r}, which is not editable")
        return {name: restore_lines(text, before.get(name, "")) for name, text in files.items()}

    def _read_files(self, commit: str) -> dict[str, str]:
        """Return the editable files of a commit as they are there, by their paths from the script's folder."""
        listed = self._list_files(commit)
        wanted = "".join(f"{blob}\n" for _, blob in listed.values())
        batch = self._git("cat-file", "--batch", stdin=wanted, strip=False)
        found, files = io.BytesIO(batch.encode("utf-8", "surrogateescape")), dict[str, str]()
        for name in listed:
            blob, _, *size = found.readline().decode().split()
            if not size:
                raise RepoError(f"git has no object {blob} for {name}")
            files[name] = found.read(int(size[0]) + 1)[:-1].decode("utf-8", "surrogateescape")
        return files

    def _list_files(self, commit: str, kind: str = "100") -> dict[str, tuple[str, str]]:
        """Return mode and blob of the editable files of a commit whose mode begins with `kind`: plain files."""
        where = f"{self.prefix}/" if self.task.has_tree else str(self.prefix / self.task.editable[0])
        try:
            rows = self._git("ls-tree", "-r", "-z", "--full-tree", commit, where).split("\0")
        except RepoError as error:
            files = ", ".join(self.task.editable)
            raise RepoError(f"{files} cannot be read in {self.home} at commit {commit[:10]}: {error}") from error
        found = (row.split("\t", 1) for row in rows if row and row.startswith(kind))
        files = {str(PurePosixPath(path).relative_to(self.prefix)): facts.split() for facts, path in found}
        return {name: (mode, blob) for name, (mode, _, blob) in files.items() if self.task.is_editable(name)}

    def _resolve(self, name: str) -> str | None:
        return self._git("rev-parse", "--verify", "--quiet", "--end-of-options", name, absent=1) or None

    def _find_filters(self, names: Iterable[str]) -> dict[str, str]:
        """Return the filter of each file that has one, also where only the user's own settings say what it is."""
        rows = self._git("check-attr", "-z", "--stdin", "filter", stdin="".join(f"{name}\0" for name in names))
        found, none = rows.split("\0"), {"unspecified", "unset"}
        return {name: at for name, at in zip(found[::3], found[2::3], strict=False) if at not in none}

    def _find_ignores(self) -> dict[str, str]:
        """Return the environment in which git ignores what the user's core.excludesFile names, if that is set.

        Of the user's own settings only this path is taken: others may start programs.
        """
        name, own = "core.excludesFile", {at: it for at, it in os.environ.items() if at.startswith("GIT_CONFIG_")}
        with suppress(RepoError):  # settings that git cannot read
            if found := self._git("config", "-z", "--type=path", name, absent=1, settings=own):
                keys = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": name}
                return {**keys, "GIT_CONFIG_VALUE_0": found.removesuffix("\0")}
        return {}

    def _drop_filters(self) -> dict[str, str]:
        """Return the environment in which git starts no filter: the programs are the repository's, maybe a stranger's.

        On the command line a filter with = in its name would keep its program.
        """
        pattern = r"^filter\..+\.(clean|smudge|process|required)$"
        named = self._git("config", "-z", "--name-only", "--get-regexp", pattern, absent=1).split("\0")
        off = {name: "false" * name.endswith("required") for name in named if name}
        keys = {f"GIT_CONFIG_KEY_{n}": name for n, name in enumerate(off)}
        values = {f"GIT_CONFIG_VALUE_{n}": value for n, value in enumerate(off.values())}
        return {"GIT_CONFIG_COUNT": str(len(off)), **keys, **values}

    def _git(
        self,
        *arguments: str,
        stdin: str = "",
        strip: bool = True,
        absent: int = 0,
        index: Path | None = None,
        env: Mapping[str, str] = MappingProxyType({}),
        settings: Mapping[str, str] = UNREAD,
    ) -> str:
        """Return git's output; the exit code `absent` means "not found", not an error. Raises RepoError."""
        fixed = [word for setting in SETTINGS for word in ("-c", setting)]
        more = {**env, "GIT_INDEX_FILE": str(index)} if index else env
        own = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(resolve_home("~"))}
        own |= {name: value for name, value in os.environ.items() if name == "XDG_CONFIG_HOME"}
        try:
            done = subprocess.run(
                ["git", *fixed, *arguments],
                cwd=self.folder,
                env={**own, **ENVIRONMENT, **settings, **more},
                input=stdin.encode("utf-8", "surrogateescape"),
                capture_output=True,
                check=False,
                timeout=self.timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise RepoError(f"git {arguments[0]} did not end in {self.timeout / 60:g} minutes") from error
        except OSError as error:
            if not self.folder.is_dir():
                raise RepoError(f"{self.home} is not a folder") from error
            missing = "git is not installed, or not in PATH"
            raise RepoError(missing if isinstance(error, FileNotFoundError) else f"git: {error.strerror}") from error
        if done.returncode not in {0, absent}:
            lines = done.stderr.decode(errors="replace").splitlines()
            reason = next((line for line in lines if line.startswith(("fatal: ", "error: "))), f": {done.returncode}")
            raise RepoError(f"git {arguments[0]}: {reason.partition(': ')[2]}")
        text = done.stdout.decode("utf-8", "surrogateescape")
        return text.strip("\n") if strip else text
