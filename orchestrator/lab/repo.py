"""Git plumbing in the user's own repository: writes objects and refs, never the work tree or the index.

Every candidate stays under `refs/nightshift/<session>/`, and so does the last keep. The branch `research/<session>`
follows it, unless the user has checked the branch out or moved it.
"""

import json
import os
import shlex
import subprocess
import time
from contextlib import suppress
from pathlib import Path, PurePosixPath

from orchestrator.core.source import normalize_lines, restore_lines
from prepare.command import UserError

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
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_COMMITTER_NAME": AUTHOR,  # for the reflog
    "GIT_COMMITTER_EMAIL": EMAIL,
}
"""The environment that git runs in, besides PATH."""


def write_git(script: Path, *words: str) -> str:
    """Return a command of git in the script's folder that can be pasted into a shell."""
    return shlex.join(["git", *([] if script.parent == Path() else ["-C", str(script.parent)]), *words])


class RepoError(UserError):
    """The repository cannot be used; the message says why and what to do."""


class Repo:
    """The training script in its repository, and the refs of one session."""

    def __init__(self, script: Path, session: str) -> None:
        """Find the repository around `script`. Raises RepoError."""
        self.script, self.session = script, session
        self.branch, self.kept = f"research/{session}", f"refs/nightshift/{session}/kept"
        self.trouble = ""
        """Why the branch is not at the last keep, and what to do about it; empty if it is."""
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
        self.path, self.common = PurePosixPath(prefix, script.name), folder / common

    def check_free(self) -> None:
        """Raise RepoError if the session's branch cannot be created: it exists, or another conflicts with it."""
        ours = f"refs/heads/{self.branch}"
        for ref in self._git("for-each-ref", "--format=%(refname)", "refs/heads/research").splitlines():
            if ref == ours:
                raise RepoError(f"the branch {self.branch} exists already: choose another name, or delete it")
            if ours.startswith(f"{ref}/") or ref.startswith(f"{ours}/"):
                name = ref.removeprefix("refs/heads/")
                remedy = self.write_command("branch", "-m", name, name.replace("/", "-") + "-old")
                raise RepoError(f"the branch {name} conflicts with {self.branch}: rename it (`{remedy}`)")
        if not os.access(self.common / "objects", os.W_OK):
            raise RepoError(f"{self.common} cannot be written")

    def get_head(self) -> str:
        """Return the commit at HEAD, detached or not. Raises RepoError if there is none."""
        commit = self._resolve("HEAD")
        if commit is None:
            raise RepoError(f"{self.script.parent.resolve()} has no commit yet: commit {self.script.name} first")
        return commit

    def read_baseline(self) -> str:
        """Return the script in the user's commit. Raises RepoError, also where the file has edits beyond it."""
        source = normalize_lines(self.read_source(self.get_head()))
        try:
            source.encode()
            edited = self.script.is_file() and normalize_lines(self.script.read_bytes().decode()) != source
        except UnicodeError as error:
            raise RepoError(f"{self.script} is not UTF-8 text") from error
        except OSError as error:
            raise RepoError(f"{self.script} cannot be read: {error.strerror}") from error
        if edited:
            take = self.write_command("commit", "-m", "edits", self.script.name)
            leave = self.write_command("stash", "push", self.script.name)
            raise RepoError(f"{self.script} has edits that are not committed: `{take}`, or leave them out: `{leave}`")
        return source

    def read_source(self, commit: str) -> str:
        """Return the script's text in a commit. Raises RepoError."""
        blob = self._resolve(f"{commit}:{self.path}")
        if blob is None:
            raise RepoError(f"{self.script} does not exist in commit {commit[:10]}: commit it first")
        return self._git("cat-file", "blob", blob, strip=False)

    def extract(self, commit: str, folder: Path, source: str) -> None:
        """Write everything that git tracks at a commit into a folder, with another text of the script.

        Raises RepoError, OSError.
        """
        folder.mkdir(parents=True, exist_ok=True)
        index, root = folder.with_suffix(".index"), self._git("rev-parse", "--show-toplevel")
        self._git("read-tree", commit, index=index)
        self._git("-C", root, "checkout-index", "--all", f"--prefix={folder}/", index=index)
        path = folder / self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        old = self.read_source(commit) if path.exists() else ""
        path.write_bytes(restore_lines(source, old).encode("utf-8", "surrogateescape"))

    def list_changed(self) -> list[str]:
        """Return the tracked files with uncommitted changes, from the top of the repository. Raises RepoError."""
        return self._git("diff", "--name-only", "HEAD").splitlines()

    def write_command(self, *words: str) -> str:
        """Return a git command for this repository, to be pasted into a shell."""
        return write_git(self.script, *words)

    def commit(self, experiment: int, parent: str, source: str, message: str) -> str:
        """Commit a candidate under its own ref; repeating it changes nothing. Raises RepoError."""
        return self._commit(f"refs/nightshift/{self.session}/{experiment}", parent, source, message)

    def promote(self, parent: str, source: str, message: str) -> str:
        """Commit a keep on top of `parent` and advance the branch; repeating it changes nothing. Raises RepoError."""
        kept = self._commit(self.kept, parent, source, message)
        self.advance_branch()
        return kept

    def _commit(self, name: str, parent: str, source: str, message: str) -> str:
        """Commit under a ref, unless it has the same commit already. Only `kept` is moved; other refs get a number."""
        if self._resolve(f"{parent}:{self.path}"):
            source = restore_lines(source, self.read_source(parent))
        found = self._git("for-each-ref", "--format=%(objectname)", name, f"{name}-*").splitlines()
        for commit in found:
            if self._is_commit(commit, parent, source, message):
                return commit
        moves = name == self.kept or not found
        return self._import_commit(name if moves else f"{name}-{len(found) + 1}", parent, source, message)

    def begin_branch(self, commit: str) -> str:
        """Create the branch, and return its last keep: `commit` unless there is one. Raises RepoError."""
        kept = self._resolve(self.kept) or self._git("update-ref", self.kept, commit) or commit
        self.advance_branch()
        return kept

    def advance_branch(self) -> None:
        """Move the branch to the last keep, or set `trouble` where it must stay."""
        self.trouble, ref = "", f"refs/heads/{self.branch}"
        try:
            kept = self._git("rev-parse", "--verify", self.kept)
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
        except RepoError as error:
            self.trouble = f"{self.branch} stays behind {self.kept}: {error}"

    def unlock(self) -> None:
        """Remove locks on this session's refs, left by an earlier process that was killed while it wrote."""
        branch = self.common / "refs/heads" / f"{self.branch}.lock"
        for lock in [branch, *(self.common / "refs/nightshift" / self.session).glob("*.lock")]:
            with suppress(FileNotFoundError):
                lock.unlink()

    def _import_commit(self, ref: str, parent: str, source: str, message: str) -> str:
        """Commit the parent's tree with another text of the script, and move the ref there, by fast-forward only.

        All objects are in one pack, which `git gc --prune=now` does not touch before the ref exists.
        """
        executable = self._git("ls-tree", "--full-tree", parent, str(self.path)).startswith("100755")
        texts = (f"{message.rstrip()}\n", source)
        body, script = (f"data {len(text.encode('utf-8', 'surrogateescape'))}\n{text}" for text in texts)
        stream = [
            f"commit {ref}",
            "mark :1",
            f"committer {AUTHOR} <{EMAIL}> {time.time():.0f} +0000",
            body,
            f"from {parent}",
            f"M {'100755' if executable else '100644'} inline {json.dumps(str(self.path), ensure_ascii=False)}",
            script,
            "get-mark :1\n",
        ]
        return self._git("fast-import", "--quiet", stdin="\n".join(stream))

    def _is_commit(self, commit: str, parent: str, source: str, message: str) -> bool:
        """Return True if a commit has this parent, script and message, whatever its date."""
        header, _, body = self._git("cat-file", "commit", commit, strip=False).partition("\n\n")
        same = header.splitlines()[1] == f"parent {parent}" and body.rstrip("\n") == message.rstrip("\n")
        return same and self.read_source(commit) == source

    def _resolve(self, name: str) -> str | None:
        return self._git("rev-parse", "--verify", "--quiet", "--end-of-options", name, absent=1) or None

    def _git(
        self, *arguments: str, stdin: str = "", strip: bool = True, absent: int = 0, index: Path | None = None
    ) -> str:
        """Return git's output; the exit code `absent` means "not found", not an error. Raises RepoError."""
        settings = [word for setting in SETTINGS for word in ("-c", setting)]
        more = {"GIT_INDEX_FILE": str(index)} if index else {}
        try:
            done = subprocess.run(
                ["git", *settings, *arguments],
                cwd=self.script.parent,
                env={"PATH": os.environ.get("PATH", os.defpath), **ENVIRONMENT, **more},
                input=stdin.encode("utf-8", "surrogateescape"),
                capture_output=True,
                check=False,
            )
        except OSError as error:
            if not self.script.parent.is_dir():
                raise RepoError(f"{self.script.parent} is not a folder") from error
            raise RepoError("git is not installed, or not in PATH") from error
        if done.returncode not in {0, absent}:
            lines = done.stderr.decode(errors="replace").splitlines()
            reason = next((line for line in lines if line.startswith(("fatal: ", "error: "))), f": {done.returncode}")
            raise RepoError(f"git {arguments[0]}: {reason.partition(': ')[2]}")
        text = done.stdout.decode("utf-8", "surrogateescape")
        return text.strip("\n") if strip else text
