"""Several nodes behind one front, under one virtual clock: each node is a whole machine with the server's own cache.

The front acts on snapshots, which each node sends twice a second, and on what it has itself sent and not got back.
The network takes no time. A request that one node refuses is tried on the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import groupby
from typing import cast

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.outlooks import Outlook
from coe_server.cache.slot import Slot, state_of
from coe_server.cache.tiers import Tier, idle_tier
from coe_server.cluster.choice import best_of_nodes, choose
from coe_server.cluster.sent import Sent
from coe_server.cluster.snapshot import PROTOCOL, ExpertOnNode, FootprintOnNode, NodeSnapshot, PinOnNode, TierOnNode
from coe_server.errors import Overloaded
from coe_server.simulation.simulator import (
    Answer,
    Diary,
    Prospect,
    Run,
    Scenario,
    expert_of,
    require_known,
    routed,
    run_virtually,
)
from coe_server.simulation.traces import Request, Trace

PULSE_SECONDS = 0.5  # between two snapshots of a node


@dataclass(frozen=True, slots=True)
class Seen:
    """What a front knows when a request arrives: the last snapshots by node, and what it has sent."""

    snapshots: Mapping[str, NodeSnapshot]
    sent: Sent
    number: int  # of this request, from 0


Rule = Callable[[str, Seen], Sequence[str]]  # expert, what is seen -> the nodes in the order to try


def least_price(expert: str, seen: Seen) -> Sequence[str]:
    """The front's own rule."""
    return choose(expert, seen.snapshots.values(), seen.sent)


def round_robin(expert: str, seen: Seen) -> Sequence[str]:
    nodes = list(seen.snapshots)
    first = seen.number % len(nodes)
    return nodes[first:] + nodes[:first]


def least_queue(expert: str, seen: Seen) -> Sequence[str]:
    """The fewest answers sent for and not finished; equal nodes in turn."""
    return sorted(round_robin(expert, seen), key=lambda node: sum(seen.sent.unanswered(node).values()))


def hashed(expert: str, seen: Seen) -> Sequence[str]:
    """The one node that the expert's name says."""
    return (home_of(expert, list(seen.snapshots)),)


def home_of(expert: str, nodes: Sequence[str]) -> str:
    return nodes[int(sha256(expert.encode()).hexdigest(), 16) % len(nodes)]


def node_names(number: int) -> list[str]:
    return [f"node-{position}" for position in range(1, number + 1)]


def with_own_preloads(scenario: Scenario, nodes: Sequence[str]) -> dict[str, Scenario]:
    """As many experts preloaded to host memory on each node as in `scenario`: first those that are hashed to it."""
    number = sum(one.preload is Tier.HOST for one in scenario.experts)
    found = {}
    for node in nodes:
        own_first = sorted(scenario.experts, key=lambda one: home_of(one.name, nodes) != node)
        chosen = {one.name for one in own_first[:number]}
        experts = [replace(one, preload=Tier.HOST if one.name in chosen else Tier.DISK) for one in scenario.experts]
        found[node] = replace(scenario, experts=tuple(experts))
    return found


RULES: Mapping[str, Rule] = {
    "coe": least_price,
    "round-robin": round_robin,
    "least-queue": least_queue,
    "hashed": hashed,
}


def simulate_nodes(
    nodes: Mapping[str, Scenario], trace: Trace, rule: Rule = least_price, tolerance: float = 0.0
) -> Run:
    """Simulate `trace` on these nodes (by name), which have the same experts. The clock starts after all preloading.

    `tolerance`: as in `simulate`. The wait bound is the longest of all nodes. Raises DatasetError if the trace names an
    unknown expert.
    """
    for scenario in nodes.values():
        require_known(trace, {one.name for one in scenario.experts})
    return run_virtually(_play(nodes, trace, rule, tolerance))


async def _play(nodes: Mapping[str, Scenario], trace: Trace, rule: Rule, tolerance: float) -> Run:
    async with AsyncExitStack() as stack:
        there = {name: await stack.enter_async_context(_running(name, one)) for name, one in nodes.items()}
        for node in there.values():
            await node.cache.ready.wait()
        for node in there.values():
            node.diary.begins()
        front = _Front(there, rule, tolerance)
        async with asyncio.TaskGroup() as group:
            for pulse, requests in groupby(trace.requests, lambda one: int(one.arrival_seconds / PULSE_SECONDS)):
                await front.hear(pulse, asked := tuple(requests))
                for request in asked:
                    await front.sleep_until(request.arrival_seconds)
                    group.create_task(front.ask(request))
        bounds = [node.cache.bounds.seconds() for node in there.values()]
    scenario = next(iter(nodes.values()))
    return Run(
        tuple(front.answers),
        tuple(move for node in there.values() for move in node.diary.moves),
        sum(node.diary.switches for node in there.values()),
        front.refused,
        max(bounds),
        sum(scenario.service_seconds(request.best, request.output_tokens) for request in trace.requests),
    )


@asynccontextmanager
async def _running(name: str, scenario: Scenario) -> AsyncIterator[_Node]:
    clock = asyncio.get_running_loop().time
    diary = Diary(clock)
    experts = [expert_of(one) for one in scenario.experts]
    cache = ExpertCache(experts, scenario.capacity, scenario.limits, diary, clock)
    conductor = asyncio.create_task(cache.run())
    try:
        yield _Node(name, scenario, cache, diary)
    finally:
        conductor.cancel()
        with suppress(asyncio.CancelledError):
            await conductor


class _Node:
    """A machine, and what it says of itself."""

    def __init__(self, name: str, scenario: Scenario, cache: ExpertCache, diary: Diary) -> None:
        self.scenario = scenario
        self.cache = cache
        self.diary = diary
        self._name = name
        self._sequence = 0
        self._states: dict[str, tuple[object, ...]] = {}
        self._said: dict[str, ExpertOnNode] = {}

    def snapshot(self, asked: Collection[str]) -> NodeSnapshot:
        """As things are now. The predicted waits are new for the experts `asked` for until the next one: no other is
        read, and all 150 would take most of the time of a simulation."""
        self._sequence += 1
        outlooks, ledger = self.cache.waits.outlooks(), self.cache.ledger
        cards = range(len(ledger.capacity.cards))
        for name, slot in self.cache.slots.items():
            state = (slot.tier, slot.moving, slot.let_in, slot.waiters.leases, slot.draining, slot.seat)
            if name in asked or state != self._states.get(name):
                self._states[name], self._said[name] = state, _told(slot, outlooks[name])
        return NodeSnapshot(
            self._name,
            PROTOCOL,
            self._sequence,
            dict(self._said),
            capacity_bytes=ledger.capacity.cards,
            used_bytes=tuple(ledger.used.on(card) for card in cards),
            host_capacity_bytes=ledger.capacity.host,
            host_used_bytes=ledger.used.host,
        )


def _told(slot: Slot, outlook: Outlook) -> ExpertOnNode:
    footprint, costs = slot.engine.footprint, slot.costs
    return ExpertOnNode(
        name=slot.name,
        tier=cast(TierOnNode, outlook.residency),
        state=state_of(slot).value,
        seat=slot.seat,
        leases=slot.leases,
        queued=slot.waiters.leases,
        room=max(0, slot.places - slot.leases) if slot.admits and not slot.waiters else 0,
        max_concurrency=slot.places,
        wait_seconds=outlook.predicted_wait_seconds,
        switch_seconds=costs.move(slot.tier, Tier.DEVICE),
        start_seconds=costs.start,
        return_seconds=costs.move(idle_tier(footprint), Tier.DEVICE),
        service_seconds=costs.service,
        pin=cast(PinOnNode, slot.pin.value),
        footprint=FootprintOnNode(footprint.device_awake, footprint.device_asleep, footprint.host, slot.expert.width),
    )


class _Front:
    """Sends each request to the first node of its rule that takes it, and records the times."""

    def __init__(self, nodes: Mapping[str, _Node], rule: Rule, tolerance: float) -> None:
        self.answers: list[Answer] = []
        self.refused = 0
        self._nodes = nodes
        self._rule = rule
        self._tolerance = tolerance
        self._sent = Sent()
        self._number = 0
        self._snapshots: Mapping[str, NodeSnapshot] = {}

    @property
    def _now(self) -> float:
        return next(iter(self._nodes.values())).diary.now

    async def hear(self, pulse: int, requests: Iterable[Request]) -> None:
        """Wait for that pulse of the nodes; `requests` arrive before the next one."""
        await self.sleep_until(pulse * PULSE_SECONDS)
        asked = {name for request in requests for name in (request.best, *request.scores)}
        self._snapshots = {name: node.snapshot(asked) for name, node in self._nodes.items()}

    async def sleep_until(self, moment: float) -> None:
        await asyncio.sleep(max(0.0, moment - self._now))

    async def ask(self, request: Request) -> None:
        arrived = self._now
        expert, lost, saved = routed(request, self._tolerance, self._prospect)
        order = self._rule(expert, Seen(self._snapshots, self._sent, self._number))
        self._number += 1
        for name in order:
            node = self._nodes[name]
            with self._sent.sending(name, expert, request.fan_out):
                try:
                    lease = await node.cache.lease(expert, request.priority, request.fan_out)
                except Overloaded:
                    continue
                with lease:
                    granted = self._now
                    await asyncio.sleep(node.scenario.service_seconds(expert, request.output_tokens))
                    lease.answered()
            is_resident = expert != request.best
            self.answers.append(Answer(expert, arrived, granted, self._now, lost, saved, is_resident, name))
            return
        self.refused += 1

    def _prospect(self, expert: str) -> Prospect:
        found = best_of_nodes(expert, self._snapshots.values(), self._sent)
        assert found is not None, "every node has every expert"
        return Prospect(found.tier, found.wait_seconds)
