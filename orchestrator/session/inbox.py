"""Pass what other processes ask to a running night: small files in its folder, which it takes within a second or so.

The night alone writes its session, so a request becomes an event only there.
"""

import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from orchestrator.core.events import Frozen
from prepare.files import write_atomically

INBOX = "control"
MAX_REQUEST = 1_000
"""Bytes of a request; a larger file is none."""
Action = Literal["pause", "continue", "stop", "veto"]


class Control(Frozen):
    """What a night is asked to do."""

    action: Action
    experiment: int | None = Field(default=None, ge=1)
    """The one to veto."""

    @model_validator(mode="after")
    def _check_experiment(self) -> "Control":
        if (self.experiment is None) == (self.action == "veto"):
            raise ValueError("a veto names an experiment, and nothing else does")
        return self


def send_control(folder: Path, control: Control) -> None:
    """Put a request into the inbox of the session in that folder. Raises OSError."""
    name = f"{time.time_ns():020}-{secrets.token_hex(4)}.json"
    write_atomically(folder / INBOX / name, control.model_dump_json())


def take_controls(folder: Path) -> list[Control]:
    """Return and delete the requests of the session in that folder, oldest first; what is none is deleted, too."""
    found: list[Control] = []
    for path in sorted((folder / INBOX).glob("[!.]*.json")):
        with suppress(OSError, ValidationError):
            is_small = path.is_file() and path.stat().st_size <= MAX_REQUEST
            text = path.read_bytes() if is_small else b""
            path.unlink()  # first: what cannot be deleted would be taken again and again
            found.append(Control.model_validate_json(text))
    return found
