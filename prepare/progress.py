"""Progress of a stage of preparation: its name and a share from 0 to 1."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Progress = Callable[[str, float], None]


def track(items: Iterable[Item], total: int, stage: str, progress: Progress) -> Iterator[Item]:
    """Yield the items and report after each how many of `total` have passed."""
    progress(stage, 0.0)
    for done, item in enumerate(items, 1):
        yield item
        progress(stage, done / max(total, done))
