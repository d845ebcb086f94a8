"""Render the templates: text and Markdown verbatim, HTML with every value escaped."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from orchestrator.core.task import Metric
from orchestrator.core.text import flatten, format_count, shorten
from orchestrator.views.output import make_printable

LONGEST = 20_000
"""Characters of a text by an agent or a run."""
File = tuple[Path, object, Callable[[], str | bytes]]
"""Path, content key and renderer of a file, which is rendered again only when its key has changed."""


def format_score(score: float | None, metric: Metric) -> str:
    """Return a score as the user's value; empty where there is none."""
    return "" if score is None else metric.format_score(score)


def format_size(number: float | None, metric: Metric) -> str:
    """Return a distance between scores, such as a gain or its error; empty where there is none."""
    return "" if number is None else metric.format_size(number).replace("-", "−")


def format_change(gain: float | None, metric: Metric) -> str:
    """Return the change of the metric that a gain is; empty where it is not known."""
    return "" if gain is None else metric.format_change(-gain)


def format_local(at: float, pattern: str = "%Y-%m-%d %H:%M") -> str:
    """Return the local time; `at` is in seconds since the epoch."""
    return datetime.fromtimestamp(at).astimezone().strftime(pattern)


def count(number: int, noun: str) -> str:
    """Return a number and its noun, in the plural unless the number is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def format_time(at: float) -> str:
    """Return date and time in UTC; `at` is in seconds since the epoch."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _round(number: float | None) -> float | None:
    return None if number is None else round(number, 6)


def _clip(text: str, limit: int) -> Markup:
    return Markup(make_printable(text, limit))  # noqa: S704 - only in templates of plain text


FILTERS: dict[str, Any] = {
    "count": format_count,
    "score": format_score,
    "size": format_size,
    "change": format_change,
    "local": format_local,
    "time": format_time,
    "rounded": _round,
    "plural": count,
    "flat": flatten,
    "shorten": shorten,
    "clip": _clip,
    "json": partial(json.dumps, ensure_ascii=False, indent=1),
    "yaml": partial(yaml.safe_dump, sort_keys=False, allow_unicode=True),
}


def print_text(value: object) -> object:
    """Return what a template prints for a value: untrusted text made printable and cut."""
    return make_printable(value, LONGEST) if type(value) is str else value


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=jinja2.select_autoescape(),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=print_text,
)
TEMPLATES.filters.update(FILTERS)


def render_template(name: str, **facts: object) -> str:
    """Return the text of a template in `templates`, filled with facts."""
    return TEMPLATES.get_template(name).render(facts)
