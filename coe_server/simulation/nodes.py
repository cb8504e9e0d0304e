"""Several nodes behind one front, under one virtual clock: each node is a whole machine with the server's own cache.

The front acts on snapshots that the nodes send twice a second, and on what it has itself sent and not got back.
Requests and answers take no time on the network. A request that one node refuses is tried on the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.scheduler import OURS
from coe_server.cache.slot import Slot, state_of
from coe_server.cache.tiers import Tier
from coe_server.cache.wait_times import Outlook
from coe_server.cluster.choice import choose
from coe_server.cluster.sent import Sent
from coe_server.cluster.snapshot import PROTOCOL, ExpertOnNode, FootprintOnNode, NodeSnapshot
from coe_server.errors import Overloaded
from coe_server.simulation.simulator import Answer, Diary, Run, Scenario, expert_of, require_known, run_virtually
from coe_server.simulation.traces import Request, Trace

PULSE_SECONDS = 0.5  # between two snapshots of a node


@dataclass(frozen=True, slots=True)
class Seen:
    """What a front knows when a request arrives: the last snapshots, and its own requests that are not answered."""

    snapshots: Mapping[str, NodeSnapshot]
    sent: Sent
    number: int  # of this request, from 0


Rule = Callable[[str, Seen], Collection[str]]  # expert, what is seen -> nodes in the order to try


def ours(expert: str, seen: Seen) -> Collection[str]:
    return choose(expert, seen.snapshots.values(), seen.sent)


def round_robin(expert: str, seen: Seen) -> Collection[str]:
    nodes = list(seen.snapshots)
    first = seen.number % len(nodes)
    return nodes[first:] + nodes[:first]


def least_queue(expert: str, seen: Seen) -> Collection[str]:
    """The fewest requests sent and not answered; among equal nodes in turn."""
    return sorted(round_robin(expert, seen), key=lambda node: sum(seen.sent.unanswered(node).values()))


def hashed(expert: str, seen: Seen) -> Collection[str]:
    """The one node that the expert's name says."""
    return (home_of(expert, list(seen.snapshots)),)


def home_of(expert: str, nodes: list[str]) -> str:
    return nodes[int(sha256(expert.encode()).hexdigest(), 16) % len(nodes)]


RULES: dict[str, Rule] = {
    "coe": ours,
    "round robin": round_robin,
    "least queue": least_queue,
    "hashed": hashed,
}


def simulate_nodes(nodes: Mapping[str, Scenario], trace: Trace, rule: Rule = ours) -> Run:
    """Simulate `trace` on these nodes, by name. The clock starts when all have preloaded.

    The wait bound is the longest of all nodes. Raises DatasetError if the trace names an expert that no node has.
    """
    require_known(trace, {one.name for scenario in nodes.values() for one in scenario.experts})
    return run_virtually(_play(nodes, trace, rule))


async def _play(nodes: Mapping[str, Scenario], trace: Trace, rule: Rule) -> Run:
    clock = asyncio.get_running_loop().time
    async with AsyncExitStack() as stack:
        there = {name: await stack.enter_async_context(_running(name, one)) for name, one in nodes.items()}
        for node in there.values():
            await node.cache.ready.wait()
        for node in there.values():
            node.diary.begins()
        zero = clock()
        front = _Front(there, rule, lambda: clock() - zero)
        pulses = asyncio.create_task(front.listen())
        async with asyncio.TaskGroup() as group:
            for request in trace.requests:
                await asyncio.sleep(max(0.0, request.arrival_seconds - front.now()))
                group.create_task(front.ask(request))
        pulses.cancel()
        bounds = [node.cache.waits.bound_seconds() for node in there.values()]
    scenario = next(iter(nodes.values()))
    return Run(
        tuple(front.answers),
        tuple(move for node in there.values() for move in node.diary.moves),
        sum(node.diary.switches for node in there.values()),
        front.refused,
        max(bounds),
        sum(scenario.service_seconds(request.best, request.output_tokens) for request in trace.requests),
    )


@dataclass(slots=True)
class _Node:
    name: str
    scenario: Scenario
    cache: ExpertCache
    diary: Diary
    sequence: int = 0
    said: dict[str, ExpertOnNode] = field(default_factory=dict)

    def snapshot(self) -> NodeSnapshot:
        self.sequence += 1
        outlooks, ledger = self.cache.waits.outlooks(), self.cache.ledger
        cards = range(len(ledger.capacity.cards))
        for name, slot in self.cache.slots.items():
            outlook, before = outlooks[name], self.said.get(name)
            if before is None or not _still_holds(before, slot, outlook):
                self.said[name] = _told(slot, outlook)
        return NodeSnapshot(
            self.name,
            PROTOCOL,
            self.sequence,
            dict(self.said),
            capacity_bytes=ledger.capacity.cards,
            used_bytes=tuple(ledger.used.on(card) for card in cards),
            host_capacity_bytes=ledger.capacity.host,
            host_used_bytes=ledger.used.host,
        )


@asynccontextmanager
async def _running(name: str, scenario: Scenario):
    clock = asyncio.get_running_loop().time
    diary = Diary(clock)
    cache = ExpertCache(
        [expert_of(one) for one in scenario.experts], scenario.capacity, scenario.limits, diary, clock, OURS
    )
    conductor = asyncio.create_task(cache.run())
    try:
        yield _Node(name, scenario, cache, diary)
    finally:
        conductor.cancel()
        with suppress(asyncio.CancelledError):
            await conductor


def _still_holds(said: ExpertOnNode, slot: Slot, outlook: Outlook) -> bool:
    return (
        said.wait_seconds == outlook.predicted_wait_seconds
        and said.leases == slot.leases
        and said.queued == slot.waiters.leases
        and said.tier == slot.residency
        and said.state == state_of(slot)
        and said.seat == slot.seat
    )


def _told(slot: Slot, outlook: Outlook) -> ExpertOnNode:
    footprint = slot.engine.footprint
    return ExpertOnNode(
        slot.name,
        outlook.residency,
        state_of(slot).value,
        slot.seat,
        slot.leases,
        slot.waiters.leases,
        max(0, slot.places - slot.leases) if slot.admits and not slot.waiters else 0,
        slot.places,
        outlook.predicted_wait_seconds,
        slot.switch_seconds(),
        slot.costs.start,
        slot.costs.move(slot.idle_tier, Tier.DEVICE),
        slot.costs.service,
        slot.pin.value,
        outlook.failure,
        outlook.returns_seconds,
        footprint=FootprintOnNode(footprint.device_awake, footprint.device_asleep, footprint.host, slot.expert.width),
    )


class _Front:
    """Sends each request to the first node of its rule that takes it, and records the times."""

    def __init__(self, nodes: Mapping[str, _Node], rule: Rule, now: Callable[[], float]) -> None:
        self.now = now
        self.answers: list[Answer] = []
        self.refused = 0
        self._nodes = nodes
        self._rule = rule
        self._sent = Sent()
        self._number = 0
        self._snapshots = {name: node.snapshot() for name, node in nodes.items()}

    async def listen(self) -> None:
        while True:
            await asyncio.sleep(PULSE_SECONDS)
            for name, node in self._nodes.items():
                self._snapshots[name] = node.snapshot()

    async def ask(self, request: Request) -> None:
        arrived, expert = self.now(), request.best
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
                    granted = self.now()
                    await asyncio.sleep(node.scenario.service_seconds(expert, request.output_tokens))
                    lease.answered()
            self.answers.append(Answer(expert, arrived, granted, self.now(), node=name))
            return
        self.refused += 1
