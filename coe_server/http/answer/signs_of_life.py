"""Something said from time to time until an answer begins, so that nobody in between takes it for dead."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType


class SignsOfLife:
    """A context in which `say` is called each time `every_seconds` have passed, while `is_wanted` holds.

    Most answers begin before the first time has passed; until then there is a timer and no task.
    """

    def __init__(self, every_seconds: float, say: Callable[[], Awaitable[None]], is_wanted: Callable[[], bool]) -> None:
        self._every_seconds = every_seconds
        self._say = say
        self._is_wanted = is_wanted
        self._saying: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._every_seconds, self._begin)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._saying is not None:
            self._saying.cancel()

    def _begin(self) -> None:
        self._saying = asyncio.create_task(self._go_on())

    async def _go_on(self) -> None:
        while self._is_wanted():
            await self._say()
            await asyncio.sleep(self._every_seconds)
