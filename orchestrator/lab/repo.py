"""Git plumbing in the user's own repository: writes objects and refs, never the work tree or the index.

Every candidate stays under `refs/nightshift/<session>/`; each keep moves the branch `research/<session>` forward.
"""

import os
import subprocess
from contextlib import suppress
from itertools import count
from pathlib import Path, PurePosixPath

from orchestrator.core.source import normalize_lines, restore_lines

SETTINGS = (
    "core.hooksPath=/dev/null",  # the user's hooks are for the user's commits,
    "core.fsmonitor=false",  # and no setting of the repository may start a program
    "core.fsync=all",  # git's default leaves empty objects behind when the power fails
    "safe.directory=*",  # a mounted repository often belongs to another user
    "i18n.commitEncoding=UTF-8",
)
AUTHOR = "Nightshift"
EMAIL = "nightshift@localhost"


class RepoError(Exception):
    """The repository cannot be used; the message is one line that says what to do."""


class Repo:
    """The training script in its repository, and the refs of one session."""

    def __init__(self, script: Path, session: str) -> None:
        """Find the repository around `script`. Raises RepoError."""
        self.script, self.session = script, session
        if not script.parent.is_dir():
            raise RepoError(f"{script.parent} is not a folder")
        try:
            self.path = PurePosixPath(self._git("rev-parse", "--show-prefix"), script.name)
        except RepoError as error:
            if "not a git repository" not in str(error):
                raise
            raise RepoError(f"{script.parent.resolve()} is not in a git repository: `git init`, then commit") from error
        self.branch = f"research/{session}"
        try:
            self._git("check-ref-format", f"refs/heads/{self.branch}")
        except RepoError as error:
            raise RepoError(f"{session!r} cannot be part of a branch's name: choose another session name") from error

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

    def find_branch(self) -> str | None:
        """Return the commit that the session's branch is at; None where it has no branch."""
        return self._resolve(f"refs/heads/{self.branch}")

    def commit(self, experiment: int, parent: str, source: str, message: str) -> str:
        """Commit a candidate under a ref of its own; the same one twice is one commit. Raises RepoError."""
        tree = self._write_tree(parent, source)
        for attempt in count(1):
            ref = f"refs/nightshift/{self.session}/{experiment}" + f"-{attempt}" * (attempt > 1)
            existing = self._resolve(ref)
            if existing is None:
                commit = self._write_commit(tree, parent, message)
                self._git("update-ref", ref, commit, "")
                return commit
            if self._is_commit(existing, tree, parent, message):
                return existing
        raise AssertionError("integers are endless")

    def create_branch(self, commit: str) -> None:
        """Create the session's branch at the commit, unless it is there. Raises RepoError where it is elsewhere."""
        existing = self._resolve(f"refs/heads/{self.branch}")
        if existing is None:
            self._git("update-ref", "-m", "nightshift: begin", f"refs/heads/{self.branch}", commit, "")
        elif existing != commit:
            raise RepoError(f"the branch {self.branch} exists already: choose another session name, or delete it")

    def promote(self, parent: str, source: str, message: str) -> str:
        """Move the branch from `parent` to a new commit; the same one twice is one commit.

        Raises RepoError where the branch is not at `parent`.
        """
        ref = f"refs/heads/{self.branch}"
        tree, existing = self._write_tree(parent, source), self._resolve(ref)
        if existing and self._is_commit(existing, tree, parent, message):
            return existing
        if existing != parent:
            remedy = f"`git branch -f {self.branch} {parent[:10]}`, then resume"
            raise RepoError(f"{self.branch} was moved by another program: {remedy}")
        commit = self._write_commit(tree, parent, message)
        self._git("update-ref", "-m", "nightshift: keep", ref, commit, parent)
        return commit

    def unlock(self) -> None:
        """Remove the locks that an earlier process, killed in the middle of a write, left on this session's refs."""
        folder = self.script.parent / self._git("rev-parse", "--git-common-dir")
        branch = folder / "refs/heads" / f"{self.branch}.lock"
        for lock in [branch, *(folder / "refs/nightshift" / self.session).glob("*.lock")]:
            with suppress(FileNotFoundError):
                lock.unlink()

    def _write_tree(self, commit: str, source: str) -> str:
        """Write the commit's tree with another text of the script, whose lines end as they do there."""
        if self._resolve(f"{commit}:{self.path}"):
            source = restore_lines(source, self.read_source(commit))
        blob = self._git("hash-object", "-w", "--stdin", stdin=source)
        return self._replace_blob(f"{commit}^{{tree}}", self.path.parts, blob)

    def _replace_blob(self, tree: str | None, parts: tuple[str, ...], blob: str) -> str:
        """Write the tree with another blob at the path `parts`."""
        name, *rest = parts
        listing = self._git("ls-tree", "--full-tree", "-z", tree).split("\0") if tree else []
        entries = {entry.partition("\t")[2]: entry.partition("\t")[0] for entry in listing if entry}
        mode, kind, old = entries.get(name, "100644 blob ").split(" ")
        if rest:
            entries[name] = f"040000 tree {self._replace_blob(old if kind == 'tree' else None, tuple(rest), blob)}"
        else:
            entries[name] = f"{mode if kind == 'blob' and mode != '120000' else '100644'} blob {blob}"
        # --missing: in a partial clone the other files need not be here.
        return self._git("mktree", "-z", "--missing", stdin="".join(f"{e}\t{n}\0" for n, e in entries.items()))

    def _write_commit(self, tree: str, parent: str, message: str) -> str:
        return self._git("commit-tree", tree, "-p", parent, "-F", "-", stdin=message)

    def _is_commit(self, commit: str, tree: str, parent: str, message: str) -> bool:
        """Tell whether a commit has this tree, parent and message; its date does not matter."""
        header, _, body = self._git("cat-file", "commit", commit, strip=False).partition("\n\n")
        fields = [line.split(" ", 1) for line in header.splitlines()]
        return [["tree", tree], ["parent", parent]] == fields[:2] and body.rstrip("\n") == message.rstrip("\n")

    def _resolve(self, name: str) -> str | None:
        try:
            return self._git("rev-parse", "--verify", "--quiet", "--end-of-options", name)
        except RepoError:
            return None

    def _git(self, *arguments: str, stdin: str = "", strip: bool = True) -> str:
        """Run git and return its output. Raises RepoError with git's own reason."""
        settings = [word for setting in SETTINGS for word in ("-c", setting)]
        try:
            done = subprocess.run(
                ["git", *settings, *arguments],
                cwd=self.script.parent,
                env=_make_environment(),
                input=stdin.encode("utf-8", "surrogateescape"),
                capture_output=True,
                check=False,
            )
        except FileNotFoundError as error:
            raise RepoError("git is not installed, or not in PATH") from error
        if done.returncode:
            lines = done.stderr.decode(errors="replace").splitlines()
            reason = next((line for line in lines if line.startswith(("fatal: ", "error: "))), f": {done.returncode}")
            raise RepoError(f"git {arguments[0]}: {reason.partition(': ')[2]}")
        text = done.stdout.decode("utf-8", "surrogateescape")
        return text.strip("\n") if strip else text


def _make_environment() -> dict[str, str]:
    """Return an environment without GIT_* variables and without the settings of user and system."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_AUTHOR_NAME": AUTHOR,
        "GIT_AUTHOR_EMAIL": EMAIL,
        "GIT_COMMITTER_NAME": AUTHOR,
        "GIT_COMMITTER_EMAIL": EMAIL,
    }
