"""What an operator may do to an expert: load, restart, unload, pin."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from coe_server.cache.conductor import Conductor
from coe_server.cache.pins import left_out
from coe_server.cache.planner import Plan
from coe_server.cache.queue import Lease
from coe_server.cache.slot import Slot, Slots, at_its_pin, place_pinned
from coe_server.cache.tiers import Bytes, Ledger, Tier, idle_tier
from coe_server.errors import ExpertBusy, NoRoom


class Controls:
    """An operator's orders. Each raises UnknownModel for a name that is unknown or was removed."""

    def __init__(
        self,
        slots: Slots,
        ledger: Ledger,
        conductor: Conductor,
        changed: asyncio.Event,
        lease: Callable[[str], Awaitable[Lease]],
    ) -> None:
        self._slots = slots
        self._ledger = ledger
        self._conductor = conductor
        self._changed = changed
        self._lease = lease

    async def load(self, name: str) -> None:
        """Load an expert onto the device, in turn like a request. A failed expert is tried again at once."""
        slot = self._served(name)
        slot.backoff.forgive()
        if slot.failure is not None:
            slot.change(failure=None)
            slot.restarts.forgive()
        (await self._lease(name)).release()

    async def restart(self, name: str) -> None:
        """Stop an expert's engine after its answers in progress, and start it again. Requests that come meanwhile wait.

        Raises ExpertBusy for a remote expert or one that shares an engine. The start is in turn, as for a request.
        """
        self._require_own_slot(name)
        slot = self._served(name)
        if slot.expert.remote:
            raise ExpertBusy(f"expert '{name}' is remote: it has no engine here to restart")
        if slot.tier is not Tier.DISK or slot.moving is not None:
            self._conductor.restart(slot)
        await self.load(name)

    def unload(self, name: str) -> None:
        """Evict an idle expert to disk. Raises ExpertBusy if it is leased, requested, moving, pinned or remote."""
        self._require_own_slot(name)
        slot = self._slots[name]
        if (why := _why_it_stays(slot)) is not None:
            raise ExpertBusy(f"expert '{name}' cannot be evicted: it {why}")
        if slot.tier is not Tier.DISK:
            self._conductor.begin(Plan((slot.move_to(Tier.DISK),)))

    def pin(self, name: str, tier: Tier) -> None:
        """Keep the expert in `tier` or above from now on (`disk`: no pin).

        An expert below its pin is loaded when no request waits; idle experts are evicted for it. Raises ExpertBusy for
        a remote expert or one that is never in that tier, NoRoom if some expert could never be loaded any more.
        """
        self._require_own_slot(name)
        slot = self._slots[name]
        if slot.expert.remote:
            raise ExpertBusy(f"expert '{name}' is remote and cannot be pinned")
        if tier is Tier.HOST and idle_tier(slot.engine.footprint) is not Tier.HOST:
            raise ExpertBusy(f"expert '{name}' never sleeps in host memory; pin it to the device, or to disk (no pin)")
        if tier.depth < slot.pin.depth:
            _refuse_to_leave_out(self._slots, name, tier, self._ledger.capacity)
        slot.change(pin=tier)
        place_pinned(self._slots, self._ledger.capacity)
        self._changed.set()

    def _served(self, name: str) -> Slot:
        """The slot of an expert that is there and stays. Raises UnknownModel."""
        slot = self._slots.present(name)
        if slot.leaves:
            raise self._slots.unknown(name)
        return slot

    def _require_own_slot(self, name: str) -> None:
        self._served(name)
        if (base := self._slots.bases.get(name)) is not None:
            raise ExpertBusy(f"expert '{name}' shares the engine of its base; ask for '{base}'")


def _refuse_to_leave_out(slots: Mapping[str, Slot], name: str, pin: Tier, capacity: Bytes) -> None:
    at_their_pins = [at_its_pin(one, pin if one.name == name else one.pin) for one in slots.values()]
    for why in left_out(at_their_pins, capacity).values():
        raise NoRoom(f"expert '{name}' is not pinned to {pin}: {why}, this one among them")


def _why_it_stays(slot: Slot) -> str | None:
    """Why an operator cannot evict it now; None if it can be evicted."""
    reasons = {
        "is remote": slot.expert.remote,
        f"is pinned to {slot.pin} (unpin it first)": slot.pin is not Tier.DISK,
        "is moving": slot.moving is not None,
        f"is in use by {slot.leases} requests": slot.leases > 0,
        f"has {len(slot.waiters)} waiting requests": bool(slot.waiters),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)
