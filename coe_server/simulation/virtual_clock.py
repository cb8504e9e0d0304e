"""An event loop whose seconds pass at once: when nothing is ready it jumps to the next timer. Waits for no I/O."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0 and moves only when every task waits; what runs is single-threaded and repeatable."""

    def __init__(self) -> None:
        self._jumps = _JumpingSelector()
        super().__init__(self._jumps)

    def time(self) -> float:
        return self._jumps.now


class _JumpingSelector(selectors.SelectSelector):
    """Lets time pass instead of waiting for files."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "every task waits for another one: nothing can ever happen again"
        self.now += max(0.0, timeout)
        return []


def run_virtually(story: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end under a clock of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(story)
