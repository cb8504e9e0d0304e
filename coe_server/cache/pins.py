"""Pure: experts in the tiers of their pins, and those that can never fit beside the pinned ones."""

from __future__ import annotations

from collections.abc import Iterable

from coe_server.cache.planner import Never, plan
from coe_server.cache.tiers import Bytes, Holding, Standing, Tier, bytes_in
from coe_server.engines.engine import Footprint, Seat


def pinned(
    name: str, footprint: Footprint, pin: Tier, seats: tuple[Seat, ...] = ((0,),), seat: Seat | None = None
) -> Holding:
    """An expert in the lowest tier that its pin allows, on `seat`, or on the seat that `seated` chooses."""
    return Holding(name, pin, footprint, pin=pin, seat=seat or seats[0], seats=(seat,) if seat else seats)


def seated(experts: Iterable[Holding], capacity: Bytes) -> tuple[Holding, ...]:
    """The same experts with one seat for each pinned one: widest and largest first, each at its tightest fit.

    A pinned expert that fits on no seat stays on its first.
    """
    experts = tuple(experts)
    free, chosen = capacity, {one.name: one for one in experts}
    fixed = [one for one in experts if one.pin is not Tier.DISK and len(one.seats) == 1]
    for one in fixed:
        free -= one.held
    loose = [one for one in experts if one.pin is not Tier.DISK and len(one.seats) > 1]
    for one in sorted(loose, key=lambda one: (-len(one.seat), -one.footprint.device_awake, one.name)):
        fits = [seat for seat in one.seats if bytes_in(one.footprint, one.tier, seat).fits(free)]
        seat = min(fits, key=lambda seat: sum(map(free.on, seat)), default=one.seat)
        chosen[one.name] = one._replace(seat=seat, seats=(seat,))
        free -= chosen[one.name].held
    return tuple(chosen.values())


def left_out(experts: Iterable[Holding], capacity: Bytes) -> dict[str, str]:
    """Experts that can never be loaded, even after every permitted eviction: name -> why."""
    experts = seated(experts, capacity)
    standing = Standing.of(experts)
    plans = {one.name: plan(standing, one, capacity) for one in experts}
    return {name: found.sentence for name, found in plans.items() if isinstance(found, Never)}
