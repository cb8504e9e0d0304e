"""One expert as a person sees it from outside. Changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from coe_server.cache.slot import MoveRecord, Slot, State
from coe_server.cache.tiers import Bytes, Tier
from coe_server.cache.waits import Outlook


@dataclass(frozen=True, slots=True)
class ExpertStatus:
    """Where it is, what it holds, who uses it and waits for it, and what it did last."""

    name: str
    state: State
    residency: str
    held: Bytes
    leases: int
    queued: int  # leases that are waited for
    pin: Tier
    last_move: MoveRecord | None
    failure: str | None
    predicted_wait_seconds: float
    returns_seconds: float | None  # of one that has failed: until a request may be let in again

    @classmethod
    def of(cls, slot: Slot, outlook: Outlook, held: Bytes) -> ExpertStatus:
        return cls(
            name=slot.name,
            state=slot.state if outlook.failure is None else State.FAILED,
            residency=outlook.residency,
            held=held,
            leases=slot.leases,
            queued=slot.waiters.leases,
            pin=slot.pin,
            last_move=slot.last_move,
            failure=outlook.failure,
            predicted_wait_seconds=outlook.predicted_wait_seconds,
            returns_seconds=outlook.returns_seconds,
        )
