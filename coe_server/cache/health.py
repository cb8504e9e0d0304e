"""Health of experts: the backoff of remote ones that fail, and engines that die or do not respond."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from coe_server.cache.backoff import Failure
from coe_server.cache.planner import Plan
from coe_server.cache.tiers import Tier
from coe_server.engines.engine import EngineRequest
from coe_server.errors import ConnectionLost, EngineError

if TYPE_CHECKING:
    from coe_server.cache.mover import Mover, Tasks
    from coe_server.cache.slot import Slot
    from coe_server.events import EventLog

logger = logging.getLogger(__name__)

_LIVENESS_PROBE = EngineRequest("GET", "/health", (), b"")


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
        self._mover.abandon(slot)

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
        self._mover.begin(Plan((slot.move_to(Tier.DEVICE),)))
