"""Pure: the longest that anybody waits, and what it is made of. No clock, no I/O; seconds and bytes in, seconds out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import nlargest
from math import ceil
from typing import NamedTuple

from coe_server.cache.scheduler import Limits
from coe_server.engines.engine import Footprint


class Sharer(NamedTuple):
    """An expert that may have to make room on the device for another one, and what its moves take."""

    footprint: Footprint
    up_seconds: float  # to the device from wherever it may be
    down_seconds: float  # from wherever it may be to wherever it has to go


def wait_bound_seconds(limits: Limits, sharing: int, switch_seconds: float, widest: int = 1) -> float:
    """`max_wait + turns * (turn + switch)`, for so many experts that share the device; see `turn_seconds`.

    Where nobody shares the device there are no switches, but there is a turn: that of the requests for the same expert.
    """
    waiting = limits.max_wait_seconds + turns_ahead(sharing) * turn_seconds(limits, widest)
    return waiting + turns_ahead(sharing) * switch_seconds if sharing else waiting


def turns_ahead(sharing: int) -> int:
    """The most turns until an overdue request is let in: one of each expert, its own included, and the one under way.

    That one's expert may have another turn: whoever came for it when its turn had begun waits for the next.
    """
    return max(sharing, 1) + (sharing > 1)


def turn_seconds(limits: Limits, widest: int = 1) -> float:
    """The longest an expert may keep the device once others are overdue: what was queued when its turn began.

    `widest`: the most leases that one request takes. Requests go in strictly in order, so a wide one leaves places
    empty until it fits. Deal q leases to rounds in that order, a new round whenever the next request does not fit into
    c places: what is in round k has gone in when k - 1 answers of the longest kind are over. Two rounds in a row take
    more than c leases, each but the last at least c - widest + 1: there are no more rounds than `_rounds`.
    """
    return _rounds(limits.queue_limit, limits.max_concurrency, widest) * limits.max_generation_seconds


def _rounds(queued: int, places: int, widest: int) -> int:
    return min(2 * ceil(queued / places), ceil(queued / (places - widest + 1)))


def widest_request(limits: Limits) -> int:
    """The most leases that one request may take."""
    return min(limits.max_fan_out, limits.max_concurrency)


def slowest_switch_seconds(sharers: Sequence[Sharer], host_left_bytes: int) -> float:
    """The longest that bringing one of them takes: its own way up, and before it, one by one, those that make room.

    `host_left_bytes` would be left of host memory if everybody had a process; below zero sleepers have to stop, too.
    """
    device = sorted(min(filter(None, _freed(one.footprint)), default=0) for one in sharers)
    host = sorted(one.footprint.host for one in sharers)

    def victims(goal: Footprint) -> int:
        for_host = _most_needed(goal.host, host) if host_left_bytes < 0 else 0
        return min(_most_needed(goal.device_awake, device) + for_host, max(1, len(sharers) - 1))

    down = [one.down_seconds for one in sharers]
    return max((one.up_seconds + sum(nlargest(victims(one.footprint), down)) for one in sharers), default=0.0)


def _freed(footprint: Footprint) -> tuple[int, int]:
    """Of the device: by falling asleep, by stopping after that."""
    return footprint.device_awake - footprint.device_asleep, footprint.device_asleep


def _most_needed(need_bytes: int, freed: Iterable[int]) -> int:
    """The most who leave for so much; `freed` by each, least first. Nobody leaves without whom there is enough."""
    number, without_one = 1, 0
    for size in filter(None, freed):
        without_one += size
        if without_one >= need_bytes:
            break
        number += 1
    return number
