"""Pass what other processes ask to a running night, which alone writes its session: small files in its folder."""

import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from orchestrator.core.events import Frozen
from prepare.files import write_atomically

INBOX = "control"
MAX_REQUEST = 1_000  # bytes of a request; a larger file is none


class Control(Frozen):
    """What a night is asked to do."""

    action: Literal["pause", "continue", "stop", "veto"]
    experiment: int = Field(default=0, ge=0)  # the one to veto


def send_control(folder: Path, control: Control) -> None:
    """Put a request into the inbox of the session in that folder. Raises OSError."""
    name = f"{time.time_ns():020}-{secrets.token_hex(4)}.json"
    write_atomically(folder / INBOX / name, control.model_dump_json())


def take_controls(folder: Path, refuse: Callable[[Path], object] = lambda _: None) -> list[Control]:
    """Return and delete the requests of the session in that folder, oldest first; what is none is deleted, too.

    `refuse` is called for that, and each time for what cannot be taken: a file, or the whole inbox.
    """
    found, paths, box = list[Control](), list[Path](), folder / INBOX
    with suppress(OSError):
        if box.is_dir() and not os.access(box, os.R_OK | os.W_OK | os.X_OK):
            refuse(box)
        else:
            paths = sorted(box.glob("[!.]*.json"))
    for path in paths:
        try:
            text = path.read_bytes() if path.is_file() and path.stat().st_size <= MAX_REQUEST else b""
            path.unlink()  # first: what cannot be deleted would be taken again and again
            found.append(Control.model_validate_json(text))
        except (OSError, ValidationError):
            refuse(path)
    return found
