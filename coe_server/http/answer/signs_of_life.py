"""Something said from time to time while an answer says nothing, so that no proxy in between takes it for dead."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType


class SignsOfLife:
    """A context in which `say` is called whenever nothing was said for `every_seconds`.

    `silent_since` is when something was said last, in the loop's time. Most answers are over before the first time has
    passed; until then there is a timer and no task.
    """

    def __init__(
        self, every_seconds: float, say: Callable[[], Awaitable[None]], silent_since: Callable[[], float]
    ) -> None:
        self._every_seconds = every_seconds
        self._say = say
        self._silent_since = silent_since
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
        loop = asyncio.get_running_loop()
        while True:
            left_seconds = self._silent_since() + self._every_seconds - loop.time()
            if left_seconds <= 0:
                await self._say()
                left_seconds = self._every_seconds
            await asyncio.sleep(left_seconds)
