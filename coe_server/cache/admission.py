"""Grants leases on loaded experts to waiting requests, and takes them back. Moves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from coe_server.cache.health import Health
from coe_server.cache.policy import Policy
from coe_server.cache.prefetch import Guess, Guesses
from coe_server.cache.queue import Lease, Waiter
from coe_server.cache.slot import Slot


class Admission:
    """Grants leases to waiting requests in order, and takes them back."""

    def __init__(
        self,
        slots: Mapping[str, Slot],
        policy: Policy,
        guesses: Guesses,
        health: Health,
        clock: Callable[[], float],
        changed: asyncio.Event,
    ) -> None:
        self._slots = slots
        self._policy = policy
        self._guesses = guesses
        self._health = health
        self._clock = clock
        self._changed = changed

    def has_room(self, slot: Slot, leases: int) -> bool:
        """True if a new request for this many leases would be granted without waiting."""
        has_room = slot.admits and slot.leases + leases <= slot.places
        return has_room and not slot.waiters and self._policy.collates

    def admit(self, slot: Slot) -> None:
        """Grant a lease to each request that may go in now."""
        while (first := _next_waiter(slot)) is not None and slot.admits:
            if slot.leases + first.leases > slot.places:
                if first.leases > 1:  # otherwise single leases granted before it could starve it
                    first.keep_first()
                return
            if not self._policy.collates and _an_older_request_waits(slot, self._slots):
                return
            slot.waiters.leave(first)
            if first.granted.done():  # cancelled, but still in the queue
                continue
            first.granted.set_result(self.grant(slot, first))
            if not self._policy.collates:  # in strict order the next request may be for another expert
                self._changed.set()

    def grant(self, slot: Slot, waiter: Waiter) -> Lease:
        now, leases = self._clock(), waiter.leases
        let_in, gate = (*slot.let_in, *(now,) * leases), max(0, slot.gate - leases)
        slot.change(let_in=let_in, gate=gate, uses=slot.uses + 1)
        self._guesses.end(Guess.DEVICE, slot.name, self._guesses.useful)
        mortal = not slot.expert.remote
        return Lease(slot.name, slot.engine, self, slot.gone, now, now - waiter.arrived, leases, mortal)

    def give_back(self, lease: Lease) -> None:
        slot = self._slots[lease.expert]
        let_in = slot.let_in
        if slot.gone is lease.gone:  # otherwise its engine has died, which ended the lease
            at = let_in.index(lease.granted)
            let_in = let_in[:at] + let_in[at + lease.leases :]
        slot.change(let_in=let_in, last_used=self._clock())
        self.admit(slot)
        # while it has other leases, this release frees no memory
        turns = slot.leaves or slot.successor is not None
        frees_room = slot.leases == 0 and (turns or not slot.expert.remote)
        if frees_room or not self._policy.collates:
            self._changed.set()

    def forget(self, slot: Slot, waiter: Waiter) -> None:
        """Remove a cancelled request; if its lease was granted at the same moment, the lease is released."""
        if slot.waiters.leave(waiter):
            slot.change(gate=min(slot.gate, slot.waiters.leases))
        elif waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
            waiter.granted.result().release()
        self._changed.set()

    def examine(self, lease: Lease) -> Awaitable[bool]:
        slot = self._slots[lease.expert]
        if slot.gone is lease.gone:
            return asyncio.shield(self._health.examine(slot))
        dead: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        dead.set_result(False)
        return dead

    def begins(self, lease: Lease) -> None:
        self._slots[lease.expert].backoff.speak(lease.granted)

    def answered(self, lease: Lease) -> None:
        slot = self._slots[lease.expert]
        if slot.gone is lease.gone:
            slot.restarts.answer()
            slot.backoff.answer(lease.granted)
            slot.costs.learn_service(self._clock() - lease.granted)


def _next_waiter(slot: Slot) -> Waiter | None:
    """The next request to admit. While the expert has a successor, none that came later than that was named."""
    return slot.waiters.first() if slot.successor is None else slot.waiters.first(slot.renewed_at)


def _an_older_request_waits(slot: Slot, slots: Mapping[str, Slot]) -> bool:
    """True if in strict order of arrival an earlier request waits for another expert."""
    oldest = slot.waiters.arrivals[0]
    return any(other is not slot and other.waiters and other.waiters.arrivals[0] < oldest for other in slots.values())
