"""Pure: do pins leave room for everybody? Knows nothing of who is where at the moment."""

from __future__ import annotations

from collections.abc import Iterable

from coe_server.cache.planner import Never, plan
from coe_server.cache.standing import Holding, Standing
from coe_server.cache.tiers import Bytes, Tier
from coe_server.engines.engine import Footprint


def pinned(name: str, footprint: Footprint, pin: Tier) -> Holding:
    """An expert that is as far down as its pin lets it."""
    return Holding(name, pin, footprint, pin=pin)


def left_out(experts: Iterable[Holding], capacity: Bytes) -> dict[str, str]:
    """Who of these could never come to the device, whoever leaves that may: name -> why."""
    experts = tuple(experts)
    standing = Standing.of(experts)
    plans = {one.name: plan(standing, one, capacity) for one in experts}
    return {name: found.sentence for name, found in plans.items() if isinstance(found, Never)}
