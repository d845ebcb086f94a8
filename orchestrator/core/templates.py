"""Load the templates that hold our words, with the filters that all of them share."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from orchestrator.core.description import count_seeds
from orchestrator.core.task import Metric
from orchestrator.core.text import count, flatten, format_count, format_duration, name_numbers, shorten

NUMBERS: dict[str, Callable[[float | None, Metric], str]] = {
    "score": lambda score, metric: metric.format_score(score),
    "size": lambda number, metric: metric.format_size(number),
    "change": lambda gain, metric: metric.format_change(None if gain is None else -gain),
}
FILTERS: dict[str, Callable[..., str]] = {
    **NUMBERS,
    "count": format_count,
    "duration": format_duration,
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
