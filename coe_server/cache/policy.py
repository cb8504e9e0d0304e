"""Pure: the rules of the scheduler, and the limits on queues, concurrency and waiting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Retention = Literal["lru", "lfu"]
SEVERAL = 2  # cards


@dataclass(frozen=True, slots=True)
class Policy:
    """A named set of rules. The server uses `OURS`; the others are baselines for comparison."""

    name: str
    collates: bool  # requests for a loaded expert overtake those for others; false: strict order of arrival
    bounded: bool  # a request that waits longer than max_wait makes busy experts drain
    weighs_waiting: bool  # the most waiting per second of switch cost comes first
    retention: Retention  # which expert is evicted first
    drains_for_waiting: bool = (
        True  # waiting that exceeds the switch cost makes busy experts drain, where it is weighed
    )


OURS = Policy("coe", collates=True, bounded=True, weighs_waiting=True, retention="lru")
FIFO = Policy("fifo", collates=False, bounded=False, weighs_waiting=False, retention="lru")
LRU = Policy("lru", collates=True, bounded=False, weighs_waiting=False, retention="lru")
LFU = Policy("lfu", collates=True, bounded=False, weighs_waiting=False, retention="lfu")


def on_cards(policy: Policy, number: int) -> Policy:
    """On several cards waiting alone makes no busy expert drain: an idle one is soon found."""
    return policy if number < SEVERAL else replace(policy, drains_for_waiting=False)


POLICIES = {policy.name: policy for policy in (OURS, FIFO, LRU, LFU)}


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on queues, concurrency and waiting."""

    max_wait_seconds: float = 30.0
    queue_limit: int = 64  # waiting leases per expert
    queue_limit_total: int = 1024  # waiting leases of all experts together
    max_concurrency: int = 16  # leases of one engine at a time, where its expert has no number of its own
    max_fan_out: int = 128  # answers that one request may ask for; it takes a lease for each, as many as there may be
    max_generation_seconds: float = 120.0  # per answer
    prefetch: bool = True  # load likely experts, and free memory for them, before a request
    probe_timeout_seconds: float = 5.0  # timeout of a liveness probe; then the engine is stopped
    death_notice_seconds: float = 8.0  # vLLM's API process outlives a killed engine core by up to 7 s
    min_tenure_seconds: float = 0.0  # for so long an expert with waiting requests is evicted for overdue ones only
