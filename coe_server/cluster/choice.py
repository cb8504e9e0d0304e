"""Pure: the nodes that may answer a request for an expert, in the order to try, and what the router is told of them.

The price of a node is the predicted time until it admits the request. Where the expert would have to be brought up for
it, the price also has what other experts lose by that: so an expert stays on few nodes until its queue there costs
more than bringing it up elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from heapq import nsmallest
from typing import NamedTuple

from coe_server.cluster.sent import Sent
from coe_server.cluster.snapshot import ExpertOnNode, NodeSnapshot, TierOnNode

CONVERSATION_SECONDS = 2.0  # that a conversation may wait longer on its own node, whose engine has its prefix cached
RECENT_REQUESTS = 60  # an expert last asked for so many requests ago is missed half as much as one asked for now


class Candidate(NamedTuple):
    """A node that may take the request. `is_up`: the expert is loaded there, or is being loaded for others."""

    node: str
    price_seconds: float
    is_up: bool


class BestOfNodes(NamedTuple):
    """An expert as the router sees it: on the node with the shortest wait, or why no node admits requests.

    `longest_tokens`: the shortest context of these nodes, since the request may go to any of them.
    """

    tier: TierOnNode
    wait_seconds: float
    failure: str | None = None
    returns_seconds: float | None = None
    longest_tokens: int | None = None


def choose(
    expert: str,
    nodes: Iterable[NodeSnapshot],
    sent: Sent,
    conversation_node: str | None = None,
    drained: Collection[str] = (),
    answers: int = 1,
) -> tuple[str, ...]:
    """The names of the nodes to try, best first; empty if none admits requests for this expert.

    `nodes` are those that are there. A node that drains, fails this expert, or speaks another protocol is left out.
    A conversation keeps its node while the expert is loaded there and no other is better by `CONVERSATION_SECONDS`.
    `answers`: how many the request asks for. Equal nodes are in order of their names.
    """
    nodes = tuple(nodes)
    able = [node for node in nodes if admits(node, expert, drained)]
    found = [_candidate(node, node.experts[expert], nodes, sent, answers) for node in able]

    def rank(one: Candidate) -> tuple[float, bool, bool, str]:
        is_its_own = one.node == conversation_node
        credit = CONVERSATION_SECONDS if is_its_own and one.is_up else 0.0
        return one.price_seconds - credit, not one.is_up, not is_its_own, one.node

    return tuple(one.node for one in sorted(found, key=rank))


def best_of_nodes(
    expert: str, nodes: Iterable[NodeSnapshot], sent: Sent, drained: Collection[str] = ()
) -> BestOfNodes | None:
    """What the router is told of this expert; None if no node has it."""
    return OverNodes(nodes, sent, drained).get(expert)


class OverNodes(Mapping[str, BestOfNodes]):
    """What the router is told of every expert that some node has, computed on access. Valid until the next snapshot."""

    def __init__(self, nodes: Iterable[NodeSnapshot], sent: Sent, drained: Collection[str] = ()) -> None:
        self._nodes = tuple(nodes)
        self._able = [(one.experts, sent.unanswered(one.node)) for one in self._nodes if _takes_new(one, drained)]

    def __getitem__(self, name: str) -> BestOfNodes:
        best, best_seconds, shortest = None, 0.0, None
        for experts, unanswered in self._able:  # of 150 experts on 8 nodes: every line counts
            one = experts.get(name)
            if one is None or one.failure is not None:
                continue
            seconds = _wait_seconds(one, unanswered, 1) if unanswered else one.wait_seconds
            if best is None or seconds < best_seconds:
                best, best_seconds = one, seconds
            tokens = one.capabilities.context_tokens
            if tokens is not None and (shortest is None or tokens < shortest):
                shortest = tokens
        if best is not None:
            return BestOfNodes(best.tier, best_seconds, longest_tokens=shortest)
        return _absent([node.experts[name] for node in self._nodes if name in node.experts], name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for node in self._nodes for name in node.experts))

    def __len__(self) -> int:
        return len({name for node in self._nodes for name in node.experts})


def admits(node: NodeSnapshot, expert: str, drained: Collection[str] = ()) -> bool:
    """True if the node may get a new request for this expert."""
    one = node.experts.get(expert)
    return one is not None and one.failure is None and _takes_new(node, drained)


def _takes_new(node: NodeSnapshot, drained: Collection[str]) -> bool:
    return node.understood and not node.draining and node.node not in drained


def engine_of(one: ExpertOnNode) -> str:
    """The name under which its requests are counted: of the expert that has the engine."""
    return one.base or one.name


def _absent(there: Sequence[ExpertOnNode], name: str) -> BestOfNodes:
    """Of an expert that no node admits: the failure that ends first. Raises KeyError if no node has it."""
    if not there:
        raise KeyError(name)
    failed = [one for one in there if one.failure is not None]
    if not failed:
        return BestOfNodes("disk", 0.0, "every node that has it is being drained")
    first = min(failed, key=lambda one: (one.returns_seconds is None, one.returns_seconds or 0.0))
    return BestOfNodes(first.tier, first.wait_seconds, first.failure, first.returns_seconds)


def _candidate(
    node: NodeSnapshot, one: ExpertOnNode, nodes: Sequence[NodeSnapshot], sent: Sent, answers: int
) -> Candidate:
    seconds = _wait_seconds(one, sent.unanswered(node.node), answers)
    is_up = _is_loaded(one) or _is_coming(one, sent.unanswered(node.node).get(engine_of(one), 0))
    if is_up or one.pin != "disk":  # the room of a pinned expert is its own
        return Candidate(node.node, seconds, is_up)
    seconds += _unseen_turns_seconds(node, one, sent)
    return Candidate(node.node, seconds + _displaced_seconds(node, one, nodes, sent), is_up)


def _is_loaded(one: ExpertOnNode) -> bool:
    """True if it admits requests without being brought up."""
    return one.tier == "remote" or (one.tier == "device" and one.state == "device")


def _is_coming(one: ExpertOnNode, unanswered: int) -> bool:
    """True if it will be loaded without this request."""
    return one.state == "starting" or one.queued > 0 or unanswered > 0


def _wait_seconds(one: ExpertOnNode, unanswered: Mapping[str, int], answers: int) -> float:
    """The predicted wait of the snapshot, with the requests of this front that it does not show."""
    unseen = max(0, unanswered.get(engine_of(one), 0) - one.leases - one.queued)
    if _is_loaded(one):
        if unseen + answers <= max(1, one.room):
            return one.wait_seconds
        rounds = max(1, (one.leases + one.queued + unseen) // one.max_concurrency)
        return max(one.wait_seconds, rounds * one.service_seconds)
    return one.wait_seconds + unseen // one.max_concurrency * one.service_seconds


def _unseen_turns_seconds(node: NodeSnapshot, one: ExpertOnNode, sent: Sent) -> float:
    """Moves of other experts that this front has caused, that the snapshot does not show, and that come before."""
    seconds = 0.0
    for name in sent.unanswered(node.node):
        other = node.experts.get(name)
        is_unseen = other is not None and other.tier == one.tier and not _is_coming(other, 0)
        if other is not None and is_unseen:
            seconds += other.switch_seconds
    return seconds


def _displaced_seconds(node: NodeSnapshot, one: ExpertOnNode, nodes: Sequence[NodeSnapshot], sent: Sent) -> float:
    """What the experts that must leave for this one are expected to lose by it."""
    cards = one.seat if one.tier == "host" else range(len(node.capacity_bytes))
    need_bytes = one.footprint.device_awake_bytes
    short = {card: need_bytes - _free_bytes(node, card) for card in cards}
    seconds = 0.0
    if sum(lacks <= 0 for lacks in short.values()) < one.footprint.width:
        leavers = _leavers(node, sent)
        on_cards = [_displaced_on(card, leavers, short_bytes) for card, short_bytes in short.items()]
        seconds += sum(nsmallest(one.footprint.width, on_cards))
    if one.tier == "disk":
        seconds += _displaced_in_host(node, one, nodes, sent)
    return seconds


def _free_bytes(node: NodeSnapshot, card: int) -> int:
    """0 for a card that the node did not tell of."""
    known = card < len(node.capacity_bytes) and card < len(node.used_bytes)
    return node.capacity_bytes[card] - node.used_bytes[card] if known else 0


class _Leaver(NamedTuple):
    """An expert that could leave its cards for another, and the seconds for which it would be missed."""

    missed_seconds: float
    size_bytes: int  # on each card
    seat: tuple[int, ...]

    @classmethod
    def of(cls, node: NodeSnapshot, other: ExpertOnNode, sent: Sent) -> _Leaver:
        is_busy = other.leases or other.queued or other.name in sent.unanswered(node.node)
        share = 1.0 if is_busy else _returns(node, other, sent)
        return cls(other.return_seconds * share, other.footprint.device_awake_bytes, other.seat)


def _leavers(node: NodeSnapshot, sent: Sent) -> list[_Leaver]:
    """The least missed first."""
    could_leave = (
        other
        for other in node.experts.values()
        if other.tier == "device" and other.pin != "device" and other.base is None
    )
    return sorted(_Leaver.of(node, other, sent) for other in could_leave)


def _displaced_on(card: int, leavers: Iterable[_Leaver], short_bytes: int) -> float:
    """Those on this card that are missed least leave, until there is room."""
    seconds = 0.0
    for other in leavers:
        if short_bytes <= 0:
            break
        if card in other.seat:
            seconds += other.missed_seconds
            short_bytes -= other.size_bytes
    return seconds


def _displaced_in_host(node: NodeSnapshot, one: ExpertOnNode, nodes: Sequence[NodeSnapshot], sent: Sent) -> float:
    """The sleeper that was asked for least lately loses its image; that costs nothing if another node has one."""
    if one.footprint.host_bytes <= node.host_capacity_bytes - node.host_used_bytes:
        return 0.0
    sleepers = [other for other in node.experts.values() if other.tier == "host" and other.pin == "disk"]
    if not sleepers:
        return 0.0
    first = max(sleepers, key=lambda other: (sent.age(node.node, other.name), other.name))
    if any(_is_in_memory(first.name, elsewhere) for elsewhere in nodes if elsewhere is not node):
        return 0.0
    return first.start_seconds * _returns(node, first, sent)


def _is_in_memory(expert: str, node: NodeSnapshot) -> bool:
    other = node.experts.get(expert)
    return other is not None and other.tier != "disk"


def _returns(node: NodeSnapshot, other: ExpertOnNode, sent: Sent) -> float:
    """The share of such experts that are asked for again before they would have left anyway: guessed from their age."""
    return RECENT_REQUESTS / (RECENT_REQUESTS + sent.age(node.node, other.name))
