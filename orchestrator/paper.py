"""Files for people: there is always a whole one, the old or the new."""

import os
from pathlib import Path


def write(path: Path, text: str | bytes) -> bool:
    """Replace the file's content at once, unless it is the same already; says whether it changed. Raises OSError."""
    data = text.encode() if isinstance(text, str) else text
    if path.is_file() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_bytes(data)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return True
