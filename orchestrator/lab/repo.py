"""Git plumbing in the user's own repository: writes objects and refs, never the work tree or the index.

Every candidate stays under `refs/nightshift/<session>/`, and so does the last commit that was kept. The branch
`research/<session>` follows it, unless the user has it checked out or has moved it.
"""

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from orchestrator.core.source import normalize_lines, restore_lines
from prepare.errors import UserError

SETTINGS = (
    "core.hooksPath=/dev/null",  # the user's hooks are for the user's commits,
    "diff.autoRefreshIndex=false",  # the user's index is the user's
    "core.fsmonitor=false",  # and no setting of the repository may start a program
    "fastimport.unpackLimit=1",  # one pack a commit, however small
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
    "GIT_COMMITTER_NAME": AUTHOR,  # of the reflog
    "GIT_COMMITTER_EMAIL": EMAIL,
}
"""All that git sees of the environment, beside PATH."""


class RepoError(UserError):
    """The repository cannot be used; the message is one line that says what to do."""


class Repo:
    """The training script in its repository, and the refs of one session."""

    def __init__(self, script: Path, session: str, patience: float = 20.0) -> None:
        """Find the repository around `script`; a write is tried for `patience` seconds. Raises RepoError."""
        self.script, self.session, self.patience = script, session, patience
        self.branch, self.kept = f"research/{session}", f"refs/nightshift/{session}/kept"
        self.trouble = ""
        """Why the branch is not at the last commit that was kept, and what to do about it."""
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
        """Raise RepoError where the session's branch cannot be created: it is there, or another is in the way."""
        ours = f"refs/heads/{self.branch}"
        for ref in self._git("for-each-ref", "--format=%(refname)", "refs/heads/research").splitlines():
            if ref == ours:
                raise RepoError(f"the branch {self.branch} exists already: choose another name, or delete it")
            if ours.startswith(f"{ref}/") or ref.startswith(f"{ours}/"):
                name = ref.removeprefix("refs/heads/")
                remedy = self.write_command("branch", "-m", name, name.replace("/", "-") + "-old")
                raise RepoError(f"the branch {name} is in the way of {self.branch}: rename it (`{remedy}`)")
        if not os.access(self.common / "objects", os.W_OK):
            raise RepoError(f"{self.common} cannot be written")

    def get_head(self) -> str:
        """Return the user's commit, on a branch or not. Raises RepoError where there is none."""
        commit = self._resolve("HEAD")
        if commit is None:
            raise RepoError(f"{self.script.parent.resolve()} has no commit yet: commit {self.script.name} first")
        return commit

    def read_baseline(self) -> str:
        """Return the script's file, uncommitted edits included, or else its text at the head. Raises RepoError."""
        if not self.script.is_file():
            return normalize_lines(self.read_source(self.get_head()))
        try:
            return normalize_lines(self.script.read_bytes().decode())
        except UnicodeDecodeError as error:
            raise RepoError(f"{self.script} is not UTF-8 text") from error
        except OSError as error:
            raise RepoError(f"{self.script} cannot be read: {error.strerror}") from error

    def read_source(self, commit: str) -> str:
        """Return the script's text in a commit. Raises RepoError."""
        blob = self._resolve(f"{commit}:{self.path}")
        if blob is None:
            raise RepoError(f"{self.script} does not exist, neither as a file nor in {commit[:10]}")
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
        """Return a command of git about this repository that can be pasted into a shell."""
        folder = [] if self.script.parent == Path() else ["-C", str(self.script.parent)]
        return shlex.join(["git", *folder, *words])

    def commit(self, experiment: int, parent: str, source: str, message: str) -> str:
        """Commit a candidate under a ref of its own; the same one twice is one commit. Raises RepoError."""
        ref = f"refs/nightshift/{self.session}/{experiment}"
        return self._attempt(lambda: self._commit(ref, parent, source, message))

    def promote(self, parent: str, source: str, message: str) -> str:
        """Commit what is kept on top of `parent`; the same one twice is one commit. Raises RepoError."""
        kept = self._attempt(lambda: self._commit(self.kept, parent, source, message))
        self.advance_branch()
        return kept

    def _commit(self, name: str, parent: str, source: str, message: str) -> str:
        """Commit under a ref, unless it has the same commit already. Only `kept` moves: others get a number."""
        if self._resolve(f"{parent}:{self.path}"):
            source = restore_lines(source, self.read_source(parent))
        found = self._git("for-each-ref", "--format=%(objectname)", name, f"{name}-*").splitlines()
        for commit in found:
            if self._is_commit(commit, parent, source, message):
                return commit
        moves = name == self.kept or not found
        return self._import_commit(name if moves else f"{name}-{len(found) + 1}", parent, source, message)

    def begin_branch(self, commit: str) -> None:
        """Begin with this commit as the last one that was kept, unless there is one. Raises RepoError."""
        self._attempt(lambda: self._resolve(self.kept) or self._git("update-ref", self.kept, commit))
        self.advance_branch()

    def advance_branch(self) -> None:
        """Move the branch on to the last commit that was kept; where that is not ours to do, set `trouble`."""
        try:
            self.trouble = self._attempt(self._advance_branch)
        except RepoError as error:
            self.trouble = f"{self.branch} stays behind {self.kept}: {error}"

    def _advance_branch(self) -> str:
        ref, kept = f"refs/heads/{self.branch}", self._git("rev-parse", "--verify", self.kept)
        at, _, user = self._git("for-each-ref", "--format=%(objectname) %(worktreepath)", ref).partition(" ")
        if at == kept:
            return ""
        if user:  # its index would take back what the commits brought
            remedy = shlex.join(["git", "-C", user, "merge", "--ff-only", self.kept])
            return f"{self.branch} is checked out in {user} and stays as it is: {remedy}"
        if at and self._git("rev-list", "-1", at, f"^{kept}"):
            remedy = self.write_command("branch", "-f", self.branch, self.kept)
            return f"{self.branch} was moved by another program and stays as it is: {remedy}"
        self._git("update-ref", "-m", "nightshift: keep", ref, kept, at)
        return ""

    def _attempt(self, write: Callable[[], str]) -> str:
        """Try again while git cannot: a lock is held, `git gc` moves objects, the disk is away."""
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return write()
            except RepoError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def unlock(self) -> None:
        """Remove the locks that an earlier process, killed in the middle of a write, left on this session's refs."""
        branch = self.common / "refs/heads" / f"{self.branch}.lock"
        for lock in [branch, *(self.common / "refs/nightshift" / self.session).glob("*.lock")]:
            with suppress(FileNotFoundError):
                lock.unlink()

    def _import_commit(self, ref: str, parent: str, source: str, message: str) -> str:
        """Write the parent's tree with another text of the script, its commit and its ref, which only moves on.

        All are one pack, which `git gc --prune=now` leaves alone until the ref is there.
        """
        executable = self._git("ls-tree", "--full-tree", parent, str(self.path)).startswith("100755")
        texts = (f"{message.rstrip()}\n", source)
        said, script = (f"data {len(text.encode('utf-8', 'surrogateescape'))}\n{text}" for text in texts)
        stream = [
            f"commit {ref}",
            "mark :1",
            f"committer {AUTHOR} <{EMAIL}> {time.time():.0f} +0000",
            said,
            f"from {parent}",
            f"M {'100755' if executable else '100644'} inline {json.dumps(str(self.path), ensure_ascii=False)}",
            script,
            "get-mark :1\n",
        ]
        return self._git("fast-import", "--quiet", stdin="\n".join(stream))

    def _is_commit(self, commit: str, parent: str, source: str, message: str) -> bool:
        """Tell whether a commit has this parent, script and message; its date does not matter."""
        header, _, body = self._git("cat-file", "commit", commit, strip=False).partition("\n\n")
        same = header.splitlines()[1] == f"parent {parent}" and body.rstrip("\n") == message.rstrip("\n")
        return same and self.read_source(commit) == source

    def _resolve(self, name: str) -> str | None:
        return self._git("rev-parse", "--verify", "--quiet", "--end-of-options", name, absent=1) or None

    def _git(
        self, *arguments: str, stdin: str = "", strip: bool = True, absent: int = 0, index: Path | None = None
    ) -> str:
        """Return git's output; `absent` is the exit code that means "not found" and not failure. Raises RepoError."""
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
