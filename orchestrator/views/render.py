"""Render the templates of the views, every value made printable."""

import json
import shlex
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import yaml
from markupsafe import Markup

from orchestrator.core.templates import load_templates
from orchestrator.core.text import make_printable

LONGEST = 20_000  # characters of a text by an agent or a run
File = tuple[Path, object, Callable[[], str | bytes | Iterable[str]]]
"""Path, content key and renderer of a file, which is rendered again only when its key has changed."""


def format_local(at: float, pattern: str = "%Y-%m-%d %H:%M") -> str:
    """Return the local time; `at` is in seconds since the epoch."""
    return datetime.fromtimestamp(at).astimezone().strftime(pattern)


def format_time(at: float) -> str:
    """Return date and time in UTC; `at` is in seconds since the epoch."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _round(number: float | None) -> float | None:
    return None if number is None else round(number, 8)


def _clip(text: str, limit: int | None = None) -> Markup:
    return Markup(make_printable(text, limit))  # noqa: S704 - only in templates of plain text


def print_text(value: object) -> object:
    """Return what a template prints for a value: untrusted text made printable and cut."""
    return make_printable(value, LONGEST) if type(value) is str else value


TEMPLATES = load_templates(
    "orchestrator.views",
    print_text,
    local=format_local,
    time=format_time,
    rounded=_round,
    clip=_clip,
    quote=shlex.quote,
    json=partial(json.dumps, ensure_ascii=False, indent=1),
    yaml=partial(yaml.dump, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True),
)


def render_template(name: str, /, **facts: object) -> str:
    """Return the text of a template in `templates`, filled with facts."""
    return TEMPLATES.get_template(name).render(facts)
