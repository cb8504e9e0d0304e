"""Health of experts: failures and backoff; detects engines that die or do not respond."""

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
    from coe_server.cache.mover import Mover
    from coe_server.cache.moves import Tasks
    from coe_server.cache.overview import Overview
    from coe_server.cache.slot import Slot
    from coe_server.events import EventLog

logger = logging.getLogger(__name__)

_LIVENESS_PROBE = EngineRequest("GET", "/health", (), b"")


class Failures:
    """Counts failures: of a local expert against its restart budget, of a remote one for its backoff."""

    def __init__(self, events: EventLog, clock: Callable[[], float]) -> None:
        self._events = events
        self._clock = clock

    def count(self, slot: Slot, reason: str, hopeless: bool) -> None:
        """Count a failure against its restart budget; this may begin a backoff."""
        now = self._clock()
        rest_seconds = slot.restarts.fail(now, hopeless)
        self._events.record("failure", expert=slot.name, reason=reason, rest_seconds=rest_seconds)
        if rest_seconds is not None:
            slot.change(failure=Failure(reason, now + rest_seconds))

    def count_remote(self, slot: Slot, cause: str, at_once: bool, asked_seconds: float | None = None) -> None:
        """Count a failure of a remote expert; this may begin a backoff.

        `asked_seconds`: the server's Retry-After. Failures of local engines are not counted here: they have health
        checks.
        """
        if not slot.expert.remote or slot.expert.on_nodes:
            return
        now = self._clock()
        seconds = slot.backoff.fail(now, cause, at_once, asked_seconds)
        self._events.record("failure", expert=slot.name, reason=cause, rest_seconds=seconds)
        if seconds is not None:
            told = f"expert '{slot.name}' is {slot.backoff.refusal(now)}"
            logger.warning("%s", told)
            slot.waiters.refuse_all(told, seconds)


class Health:
    """Watches every local engine for its death, and probes suspected ones."""

    def __init__(
        self,
        slots: Mapping[str, Slot],
        overview: Overview,
        mover: Mover,
        failures: Failures,
        tasks: Tasks,
        probe_timeout_seconds: float,
    ) -> None:
        self._slots = slots
        self._overview = overview
        self._mover = mover
        self._failures = failures
        self._tasks = tasks
        self._timeout_seconds = probe_timeout_seconds
        self._watching: dict[str, asyncio.Task[None]] = {}  # expert -> the task that watches its engines

    def watch(self) -> None:
        """Start watching for the death of every engine."""
        for slot in self._slots.values():
            self.watch_one(slot)

    def watch_one(self, slot: Slot) -> None:
        """Watch for the death of this expert's engine, unless it is watched already or remote."""
        if not slot.expert.remote and slot.name not in self._watching:
            self._watching[slot.name] = self._tasks.own(self._watch(slot))

    def forget(self, slot: Slot) -> None:
        """Watch it no longer."""
        if (task := self._watching.pop(slot.name, None)) is not None:
            task.cancel()

    async def _watch(self, slot: Slot) -> None:
        while True:
            await slot.up.wait()
            life = slot.gone
            self._tasks.own(self._clean_up_when_dead(slot, life))
            await life.wait()

    def examine(self, slot: Slot) -> asyncio.Task[bool]:
        """Send a liveness probe. Returns True if the engine responded; otherwise it is stopped."""
        return self._tasks.own(self._responds(slot))

    async def _clean_up_when_dead(self, slot: Slot, life: asyncio.Event) -> None:
        """Wait until the engine process ends. Clean up unless a move ended it.

        `life` is set when this process has ended: the slot may have the next one by the time this runs.
        """
        gone = asyncio.create_task(life.wait())
        died = asyncio.create_task(slot.engine.died())
        try:
            await asyncio.wait((gone, died), return_when=asyncio.FIRST_COMPLETED)
            while not life.is_set() and slot.moving is not None:  # a move that fails cleans up itself
                still = asyncio.create_task(slot.still.wait())
                await asyncio.wait((gone, still), return_when=asyncio.FIRST_COMPLETED)
                still.cancel()
            if not life.is_set():
                self._note_end(slot, died.result())
                if _may_start_at_once(slot) and not self._overview.groups.in_turn:
                    self._restart(slot)
                else:
                    self._mover.abandon(slot)
        finally:
            gone.cancel()
            died.cancel()

    async def _responds(self, slot: Slot) -> bool:
        life = slot.gone
        try:
            async with asyncio.timeout(self._timeout_seconds), slot.engine.send(_LIVENESS_PROBE):
                return True
        except ConnectionLost:  # an idle connection was closed: no evidence of a failure
            return True
        except EngineError:  # the death of a local engine is detected separately
            self._failures.count_remote(slot, "unreachable", at_once=True)
            return False
        except TimeoutError:
            self._failures.count_remote(slot, "not responding", at_once=True)
            if not slot.expert.remote and slot.gone is life and slot.moving is None:
                self._note_end(
                    slot, f"engine '{slot.name}' did not respond to a health check for {self._timeout_seconds:g} s"
                )
                self._mover.abandon(slot)
            return False

    def _note_end(self, slot: Slot, reason: str) -> None:
        assert slot.moving is None, "a move cleans up after its engine"
        logger.warning("expert '%s': %s", slot.name, reason)
        self._failures.count(slot, reason, hopeless=False)

    def _restart(self, slot: Slot) -> None:
        """Start it again without a stop first: the new engine may load from the image of the dead one."""
        slot.end_life()
        slot.halt()  # requests that chose it because it was loaded must learn that it left the device
        slot.change(gate=slot.waiters.leases)
        self._mover.begin(Plan((slot.move_to(Tier.DEVICE),)))


def _may_start_at_once(slot: Slot) -> bool:
    """True if its freed device memory is needed by its own requests or pin, unless requests wait for another expert."""
    if slot.tier is not Tier.DEVICE or slot.expert.remote or slot.failure is not None or slot.draining:
        return False
    return slot.successor is None and (bool(slot.waiters) or slot.pin is not Tier.DISK)
