"""Pure: which expert is worth bringing before anybody asks for it. No clock, no I/O; values in, a plan out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from coe_server.cache.planner import Holding, Plan, Standing, plan
from coe_server.cache.tiers import Bytes, Tier

LEAST_DEMAND = 0.5  # half a recent request: less is not worth a start


def prefetch(standing: Standing, away: Iterable[Holding], demand: Mapping[str, float], capacity: Bytes) -> Plan | None:
    """The way to the device of the expert most in demand that finds room there without anybody leaving; or None."""
    likely = [h for h in away if h.tier is not Tier.DEVICE and not h.busy and demand[h.name] >= LEAST_DEMAND]
    for holding in sorted(likely, key=lambda h: (-demand[h.name], h.name)):
        way = plan(standing, holding, capacity)
        if isinstance(way, Plan) and len(way.moves) == 1:
            return way
    return None
