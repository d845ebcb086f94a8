"""Load the templates that hold our words, with the filters that all of them share."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import humanize
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from orchestrator.core.description import count_seeds
from orchestrator.core.task import Metric
from orchestrator.core.text import flatten, format_count, name_numbers, shorten


def format_score(score: float | None, metric: Metric) -> str:
    """Return a score as the user's value; empty where there is none."""
    return "" if score is None else metric.format_score(score)


def format_size(number: float | None, metric: Metric) -> str:
    """Return a distance between scores, such as a gain or its error; empty where there is none."""
    return "" if number is None else metric.format_size(number).replace("-", "−")


def format_change(gain: float | None, metric: Metric) -> str:
    """Return the change of the metric that a gain is; empty where it is not known."""
    return "" if gain is None else metric.format_change(-gain)


def count(number: int, noun: str) -> str:
    """Return a number and its noun, in the plural unless the number is 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_duration(hours: float) -> str:
    """Return a duration in words: 2 hours and 40 minutes."""
    least = "seconds" if hours < 1 / 6 else "minutes"
    return humanize.precisedelta(3600 * hours, minimum_unit=least, suppress=["days"], format="%.0f")


FILTERS: dict[str, Callable[..., str]] = {
    "count": format_count,
    "duration": format_duration,
    "score": format_score,
    "size": format_size,
    "change": format_change,
    "plural": count,
    "seeds": count_seeds,
    "flat": flatten,
    "shorten": shorten,
    "numbers": name_numbers,
}


def load_templates(
    package: str, finalize: Callable[[object], object] | None = None, **filters: Callable[..., Any]
) -> Environment:
    """Return a package's `templates`, HTML with values escaped; `finalize` is applied to all, `filters` are more."""
    templates = Environment(
        loader=PackageLoader(package),
        autoescape=select_autoescape(default_for_string=False),
        undefined=StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )
    templates.filters.update({**FILTERS, **filters})
    return templates


class Macros:
    """The macros of a template, as functions. It is compiled when the first is used, since that takes a while."""

    def __init__(self, templates: Environment, name: str) -> None:
        self._load = cache(partial(templates.get_template, name))

    def __getattr__(self, macro: str) -> Any:
        return getattr(self._load().module, macro)
