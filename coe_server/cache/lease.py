"""The right to use an expert on the device; while it is held, the expert does not move."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType

from coe_server.engines.engine import Engine


@dataclass(frozen=True, slots=True)
class LeaseActs:
    """What its holder can do with a lease, as the cache carries it out."""

    give_back: Callable[[], None]
    suspect: Callable[[], None]
    is_alive: Callable[[], Awaitable[bool]]
    speaks: Callable[[], None]
    answered: Callable[[], None]


class Lease:
    """Held from the moment it is granted until `release`. Use it as a context manager."""

    def __init__(
        self,
        expert: str,
        engine: Engine,
        waited_seconds: float,
        gone: asyncio.Event,
        acts: LeaseActs,
        mortal: bool = True,
    ) -> None:
        self.expert = expert
        self.engine = engine
        self.waited_seconds = waited_seconds
        self._gone = gone
        self._acts = acts
        self.mortal = mortal  # false: it is answered elsewhere, and its process is not ours to watch
        self.is_try = False  # of an expert whose backoff is over: how it ends says whether others follow
        self._held = True

    def release(self) -> None:
        """Give it back; doing so twice is harmless."""
        held, self._held = self._held, False
        if held:
            self._acts.give_back()

    def suspect_engine(self) -> None:
        """It did not answer: have it examined, and buried if it hangs."""
        self._acts.suspect()

    async def engine_is_alive(self) -> bool:
        """The same, for who needs to know: whether it gives a sign of life, within `Limits.sign_of_life_seconds`."""
        return await self._acts.is_alive()

    def speaks(self) -> None:
        """Its answer has begun: requests that were kept away from it may come."""
        self._acts.speaks()

    def answered(self) -> None:
        """It gave a whole answer: its earlier failures are forgiven, and how long that took is learned."""
        self._acts.answered()

    async def engine_is_gone(self, within_seconds: float) -> bool:
        """Whether the engine behind this lease turns out to be dead; waits that long for the news."""
        try:
            async with asyncio.timeout(within_seconds if self.mortal else 0):
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
        if self._held:
            warnings.warn(f"lease of expert '{self.expert}' was never released", ResourceWarning, stacklevel=1)
