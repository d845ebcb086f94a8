"""What the training code may see: a sandbox turns the command of a run into one that shuts it in."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run: nothing of our environment, no descriptors but these."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    folder: Path
    """Its working folder: the only place where it may write."""
    fds: tuple[int, ...]


class Sandbox(Protocol):
    @property
    def tier(self) -> str: ...
    def wrap(self, command: Command) -> Command: ...


class NoSandbox:
    """Nothing but a clean environment and a fresh folder."""

    tier = "none"

    def wrap(self, command: Command) -> Command:
        return command
