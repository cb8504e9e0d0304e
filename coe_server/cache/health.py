"""Health of experts: the backoff of remote ones that fail, and engines that die or do not respond."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from coe_server.cache.planner import Move, Plan
from coe_server.cache.tiers import Tier
from coe_server.engines.engine import EngineRequest
from coe_server.errors import ConnectionLost, EngineError

if TYPE_CHECKING:
    from coe_server.cache.mover import Mover, Tasks
    from coe_server.cache.slot import Slot
    from coe_server.events import EventLog

FAILURES_IN_A_ROW = 3  # without an answer in between, where one alone says little of the next
SHORTEST_SECONDS = 1.0
LONGEST_SECONDS = 300.0  # unless its server asks for more with Retry-After
_MOST_DOUBLINGS = 10  # 2.0 ** 1024 is an error


@dataclass(slots=True)
class Backoff:
    """One expert's. When the time is over, one request tries it; the others wait for what becomes of that one."""

    in_a_row: int = 0
    backoffs: int = 0  # since its last answer
    cause: str = ""  # of the last one, in a word or a status
    since: float | None = None  # None: it is not backing off
    until: float = 0.0
    is_tried: bool = False

    def fail(self, now: float, cause: str, at_once: bool, asked_seconds: float | None = None) -> float | None:
        """Count a failure; the seconds of the backoff that it begins, None if it begins none.

        `asked_seconds`: what the expert's server asked for. Those who were inside already when it began prolong it by
        that alone: ten requests that fail together are one failure.
        """
        self.in_a_row += 1
        if self.since is not None and not self.is_tried:
            self.until = max(self.until, now + (asked_seconds or 0.0))
            return None
        if not at_once and self.in_a_row < FAILURES_IN_A_ROW:
            return None
        grown = min(SHORTEST_SECONDS * 2.0 ** min(self.backoffs, _MOST_DOUBLINGS), LONGEST_SECONDS)
        seconds = max(asked_seconds, SHORTEST_SECONDS) if asked_seconds is not None else grown
        self.backoffs += 1
        self.cause, self.since, self.until, self.is_tried = cause, now, now + seconds, False
        return seconds

    def speak(self, asked: float) -> None:
        """It begins to answer a request that it was asked at that moment: the others may follow, for a whole answer
        may take long. If it breaks off, the next backoff is longer still."""
        if self._is_news(asked):
            self.since, self.is_tried = None, False

    def answer(self, asked: float) -> None:
        """It answered that request."""
        if self._is_news(asked):
            self.forgive()

    def _is_news(self, asked: float) -> bool:
        """From before a backoff an answer says nothing of it."""
        return self.since is None or asked >= self.since

    def forgive(self) -> None:
        """A person wants it tried again."""
        self.in_a_row = self.backoffs = 0
        self.since, self.is_tried = None, False

    def begin_try(self) -> bool:
        """The time is over, and a request is let in: True if it is the one that tries."""
        tries = self.since is not None
        self.is_tried = self.is_tried or tries
        return tries

    def end_try(self) -> None:
        """The request that tried it ended without saying anything of the expert: the next one tries."""
        self.is_tried = False

    def refusal(self, now: float) -> str | None:
        """Why no request is let in now; None if one is."""
        if self.since is None or (now >= self.until and not self.is_tried):
            return None
        if self.is_tried:
            return f"backing off: {self.cause}; one request tries it now"
        return f"backing off {ceil(self.until - now)} s: {self.cause}"

    def seconds_left(self, now: float) -> float:
        """Until a request may be let in; while one tries it, the time that the next backoff would take at least."""
        return SHORTEST_SECONDS if self.is_tried else max(0.0, self.until - now)


logger = logging.getLogger(__name__)

_LIVENESS_PROBE = EngineRequest("GET", "/health", (), b"")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an expert is not to be had, and until when (in the cache's clock)."""

    reason: str
    until: float


class Failures:
    """Counts failures against an expert's restart budget or, of a remote one, against its backoff."""

    def __init__(self, events: EventLog, clock: Callable[[], float]) -> None:
        self._events = events
        self._clock = clock

    def count(self, slot: Slot, reason: str, hopeless: bool) -> None:
        """One more against its restart budget; it may have to back off now."""
        now = self._clock()
        rest_seconds = slot.restarts.fail(now, hopeless)
        self._events.record("failure", expert=slot.name, reason=reason, rest_seconds=rest_seconds)
        if rest_seconds is not None:
            slot.change(failure=Failure(reason, now + rest_seconds))

    def count_remote(self, slot: Slot, cause: str, at_once: bool, asked_seconds: float | None = None) -> None:
        """One more of an expert that is answered elsewhere; requests may be kept away from it now.

        `asked_seconds`: the backoff that its server asked for. An engine that runs here has health checks instead: of
        it nothing is counted.
        """
        if not slot.expert.remote:
            return
        now = self._clock()
        seconds = slot.backoff.fail(now, cause, at_once, asked_seconds)
        self._events.record("failure", expert=slot.name, reason=cause, rest_seconds=seconds)
        if seconds is not None:
            told = f"expert '{slot.name}' is {slot.backoff.refusal(now)}"
            logger.warning("%s", told)
            slot.waiters.refuse_all(told, seconds)


class Health:
    """Watches every engine that runs here, and examines those that are suspected."""

    def __init__(
        self,
        slots: Mapping[str, Slot],
        mover: Mover,
        failures: Failures,
        tasks: Tasks,
        changed: Callable[[], None],
        sign_of_life_seconds: float,
    ) -> None:
        self._slots = slots
        self._mover = mover
        self._failures = failures
        self._tasks = tasks
        self._changed = changed
        self._probe_seconds = sign_of_life_seconds

    def watch(self) -> None:
        """From now on an engine that dies is noticed."""
        for slot in self._slots.values():
            if not slot.expert.remote:
                self._tasks.own(self._watch(slot))

    async def _watch(self, slot: Slot) -> None:
        while True:
            await slot.up.wait()
            life = slot.gone
            self._tasks.own(self._clean_up_when_dead(slot))
            await life.wait()

    def examine(self, slot: Slot) -> asyncio.Task[bool]:
        """Send a liveness probe; whether the engine responded. One that does not is stopped."""
        return self._tasks.own(self._responds(slot))

    async def _clean_up_when_dead(self, slot: Slot) -> None:
        """Wait for the end of this life of the engine; if no move ended it, clean up after it."""
        gone = asyncio.create_task(slot.gone.wait())
        died = asyncio.create_task(slot.engine.died())
        try:
            await asyncio.wait((gone, died), return_when=asyncio.FIRST_COMPLETED)
            while not gone.done() and slot.moving is not None:  # a move that meets a dead engine cleans up by itself
                still = asyncio.create_task(slot.still.wait())
                await asyncio.wait((gone, still), return_when=asyncio.FIRST_COMPLETED)
                still.cancel()
            if not gone.done():
                self._restart_or_stop(slot, died.result())
        finally:
            gone.cancel()
            died.cancel()

    async def _responds(self, slot: Slot) -> bool:
        life = slot.gone
        try:
            async with asyncio.timeout(self._probe_seconds), slot.engine.send(_LIVENESS_PROBE):
                return True
        except ConnectionLost:  # an idle connection was closed: that says nothing
            return True
        except EngineError:  # the death of an engine of ours has been noticed, or soon will be
            self._failures.count_remote(slot, "unreachable", at_once=True)
            return False
        except TimeoutError:
            self._failures.count_remote(slot, "not responding", at_once=True)
            if not slot.expert.remote and slot.gone is life and slot.moving is None:
                self._note_end(
                    slot, f"engine '{slot.name}' did not respond to a health check for {self._probe_seconds:g} s"
                )
                self._stop(slot)
            return False

    def _restart_or_stop(self, slot: Slot, reason: str) -> None:
        self._note_end(slot, reason)
        if self._is_to_start_at_once(slot):
            self._restart(slot)
        else:
            self._stop(slot)

    def _note_end(self, slot: Slot, reason: str) -> None:
        assert slot.moving is None, "a move cleans up after its engine"
        logger.warning("expert '%s': %s", slot.name, reason)
        self._failures.count(slot, reason, hopeless=False)

    def _stop(self, slot: Slot) -> None:
        """It admits no request from this moment on; its end may take a while."""
        slot.depart(Move(slot.name, slot.tier, Tier.DISK))
        self._tasks.own(self._put_on_disk(slot))

    def _is_to_start_at_once(self, slot: Slot) -> bool:
        """Only requests for it, or its pin, have a use for the room that it leaves on the device."""
        if slot.tier is not Tier.DEVICE or slot.expert.remote or slot.failure is not None or slot.draining:
            return False
        wanted = slot.waiters or slot.pin is not Tier.DISK
        return bool(wanted) and not any(other.waits_for_a_turn for other in self._slots.values())

    def _restart(self, slot: Slot) -> None:
        """Start it where it died, without a stop: its engine may load from the image that the dead one left."""
        slot.end_life()
        slot.halt()  # it has left the device, as far as those are concerned who chose it for being there
        slot.change(gate=slot.waiters.leases)
        self._mover.begin(Plan((Move(slot.name, Tier.DISK, Tier.DEVICE),)))

    async def _put_on_disk(self, slot: Slot) -> None:
        try:
            await self._mover.put_on_disk(slot, at_once=True)
        finally:
            slot.halt()
            self._changed()
