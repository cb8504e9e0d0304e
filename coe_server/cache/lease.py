"""The right to use an expert on the device; while it is held, the expert does not move."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from types import TracebackType

from coe_server.engines.engine import Engine


class Lease:
    """Held from the moment it is granted until `release`. Use it as a context manager."""

    def __init__(
        self,
        expert: str,
        engine: Engine,
        waited_seconds: float,
        gone: asyncio.Event,
        release: Callable[[], None],
        suspect: Callable[[], None],
    ) -> None:
        self.expert = expert
        self.engine = engine
        self.waited_seconds = waited_seconds
        self.suspect_engine = suspect  # it did not answer: have it examined, and buried if it hangs
        self._gone = gone
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Give it back; doing so twice is harmless."""
        release, self._release = self._release, None
        if release is not None:
            release()

    async def engine_is_gone(self, within_seconds: float) -> bool:
        """Whether the engine behind this lease turns out to be dead; waits that long for the news."""
        try:
            async with asyncio.timeout(within_seconds):
                await self._gone.wait()
        except TimeoutError:
            return False
        return True

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        if self._release is not None:
            warnings.warn(f"lease of expert '{self.expert}' was never released", ResourceWarning, stacklevel=1)
