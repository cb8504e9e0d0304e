"""Engines that die or fall silent: noticed, cleaned up after, and started again where nobody else wants the room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from coe_server.cache.mover import Mover
from coe_server.cache.planner import Move, Plan
from coe_server.cache.slot import Slot
from coe_server.cache.tiers import Tier
from coe_server.engines.engine import EngineRequest
from coe_server.errors import ConnectionLost, EngineError

logger = logging.getLogger(__name__)

_SIGN_OF_LIFE = EngineRequest("GET", "/health", (), b"")


class Deaths:
    """Watches over every engine that `mover` starts."""

    def __init__(
        self, slots: Mapping[str, Slot], mover: Mover, changed: Callable[[], None], sign_of_life_seconds: float
    ) -> None:
        self._slots = slots
        self._mover = mover
        self._changed = changed
        self._sign_of_life_seconds = sign_of_life_seconds
        mover.started = self._watch

    def _watch(self, slot: Slot) -> None:
        self._mover.own(self._bury_when_dead(slot))

    def examine(self, slot: Slot) -> asyncio.Task[bool]:
        """Ask an engine for a sign of life; whether it gave one. One that is silent is buried."""
        return self._mover.own(self._gives_sign_of_life(slot))

    async def _bury_when_dead(self, slot: Slot) -> None:
        """Wait for the end of this life of the engine; if nobody asked for it, clean up after it."""
        gone = asyncio.create_task(slot.gone.wait())
        died = asyncio.create_task(slot.engine.died())
        try:
            await asyncio.wait((gone, died), return_when=asyncio.FIRST_COMPLETED)
            while not gone.done() and slot.moving is not None:  # a move that meets a dead engine cleans up by itself
                still = asyncio.create_task(slot.still.wait())
                await asyncio.wait((gone, still), return_when=asyncio.FIRST_COMPLETED)
                still.cancel()
            if not gone.done():
                self._bury_or_revive(slot, died.result())
        finally:
            gone.cancel()
            died.cancel()

    async def _gives_sign_of_life(self, slot: Slot) -> bool:
        life = slot.gone
        try:
            async with asyncio.timeout(self._sign_of_life_seconds), slot.engine.send(_SIGN_OF_LIFE):
                return True
        except ConnectionLost:  # an idle connection was closed: that says nothing
            return True
        except EngineError:  # the death of an engine of ours has been noticed, or soon will be
            if slot.expert.remote:
                self._mover.count_remote_failure(slot, "unreachable", at_once=True)
            return False
        except TimeoutError:
            if slot.expert.remote:
                self._mover.count_remote_failure(slot, "not responding", at_once=True)
            elif slot.gone is life and slot.moving is None:
                seconds = self._sign_of_life_seconds
                self._bury(slot, f"engine '{slot.name}' gave no sign of life for {seconds:g} s")
            return False

    def _bury(self, slot: Slot, reason: str) -> None:
        """Nobody gets it any more from this moment on; its end may take a while."""
        self._note_end(slot, reason)
        self._take_down(slot)

    def _bury_or_revive(self, slot: Slot, reason: str) -> None:
        self._note_end(slot, reason)
        if self._is_to_start_at_once(slot):
            self._revive(slot)
        else:
            self._take_down(slot)

    def _note_end(self, slot: Slot, reason: str) -> None:
        assert slot.moving is None, "whoever moves an engine cleans up after it"
        logger.warning("expert '%s': %s", slot.name, reason)
        self._mover.count_failure(slot, reason, hopeless=False)

    def _take_down(self, slot: Slot) -> None:
        slot.depart(Move(slot.name, slot.tier, Tier.DISK))
        self._mover.own(self._lay_to_rest(slot))

    def _is_to_start_at_once(self, slot: Slot) -> bool:
        """Nobody but those who wait for it, or its pin, has a use for the room that it leaves on the device."""
        if slot.tier is not Tier.DEVICE or slot.expert.remote or slot.failure is not None or slot.draining:
            return False
        wanted = slot.waiters or slot.pin is not Tier.DISK
        return bool(wanted) and not any(other.waits_for_a_turn for other in self._slots.values())

    def _revive(self, slot: Slot) -> None:
        """Start it where it died, without a stop: its engine may load from the image that the dead one left."""
        slot.tier = Tier.DISK
        slot.end_life()
        slot.halt()  # it has left the device, as far as those are concerned who chose it for being there
        slot.gate = slot.waiters.leases
        self._mover.begin(Plan((Move(slot.name, Tier.DISK, Tier.DEVICE),)))

    async def _lay_to_rest(self, slot: Slot) -> None:
        try:
            await self._mover.put_on_disk(slot, at_once=True)
        finally:
            slot.halt()
            self._changed()
