"""An expert as operators see it."""

from __future__ import annotations

from dataclasses import dataclass

from coe_server.cache.outlooks import Outlook
from coe_server.cache.slot import MoveRecord, Slot, State, state_of
from coe_server.cache.tiers import Bytes, Tier


@dataclass(frozen=True, slots=True)
class ExpertStatus:
    """Operator's view of one expert: tier, memory, leases, queue, last move, failure."""

    name: str
    state: State
    residency: str
    held: Bytes
    leases: int
    max_concurrency: int  # leases at a time
    queued: int  # waiting leases
    pin: Tier
    last_move: MoveRecord | None
    failure: str | None
    predicted_wait_seconds: float
    returns_seconds: float | None  # seconds until a failed expert admits requests again

    @classmethod
    def of(cls, slot: Slot, outlook: Outlook, held: Bytes) -> ExpertStatus:
        return cls(
            name=slot.name,
            state=state_of(slot) if outlook.failure is None else State.FAILED,
            residency=outlook.residency,
            held=held,
            leases=slot.leases,
            max_concurrency=slot.places,
            queued=slot.waiters.leases,
            pin=slot.pin,
            last_move=slot.last_move,
            failure=outlook.failure,
            predicted_wait_seconds=outlook.predicted_wait_seconds,
            returns_seconds=outlook.returns_seconds,
        )
