"""An event loop whose clock leaps to the next timer: a night passes in milliseconds, in a fixed order."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Leaping(selectors.DefaultSelector):
    """Never waits; counts the waiting instead."""

    now = 0.0

    def select(self, timeout=None):
        if timeout:
            self.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.leaping = _Leaping()
        super().__init__(self.leaping)

    def time(self) -> float:
        return self.leaping.now

    def run_in_executor(self, executor, func, *args):
        """Do at once what is meant for a thread, or the clock would leap on meanwhile."""

        async def call():
            return func(*args)

        return self.create_task(call())


def run_virtually(coroutine: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)


def virtual_clock() -> float:
    """Seconds since an arbitrary epoch, on the loop's clock; for use inside run_virtually."""
    try:
        return 1_800_000_000 + asyncio.get_running_loop().time()
    except RuntimeError:
        return 1_800_000_000
