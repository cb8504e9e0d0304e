"""Pure: the rules by which the cache schedules and evicts, ours and those it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Retention = Literal["lru", "lfu"]


@dataclass(frozen=True, slots=True)
class Policy:
    """A named set of rules. Ours is what the server runs; the others exist to be compared with."""

    name: str
    collates: bool  # requests for an expert on the device overtake those for others; else strict order of arrival
    bounded: bool  # who waits longer than max_wait makes busy experts drain
    weighs_waiting: bool  # waiting that is worth a switch makes busy experts drain
    retention: Retention  # who leaves first


OURS = Policy("coe", collates=True, bounded=True, weighs_waiting=True, retention="lru")
FIFO = Policy("fifo", collates=False, bounded=False, weighs_waiting=False, retention="lru")
LRU = Policy("lru", collates=True, bounded=False, weighs_waiting=False, retention="lru")
LFU = Policy("lfu", collates=True, bounded=False, weighs_waiting=False, retention="lfu")
POLICIES = {policy.name: policy for policy in (OURS, FIFO, LRU, LFU)}
