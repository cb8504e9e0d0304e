"""Snapshots of nodes for tests: small machines, and random ones."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from coe_server.cluster.sent import Sent
from coe_server.cluster.snapshot import PROTOCOL, ExpertOnNode, FootprintOnNode, NodeSnapshot

SIZE = FootprintOnNode(10, 1, 10)


def loaded(name: str, leases: int = 0, queued: int = 0, wait_seconds: float = 0.0, **more: Any) -> ExpertOnNode:
    """On the device, with four places."""
    room = 0 if queued else max(0, 4 - leases)
    facts: dict[str, Any] = {
        "seat": (0,),
        "room": room,
        "wait_seconds": wait_seconds,
        "service_seconds": 3.0,
        "return_seconds": 0.4,
    } | more
    return ExpertOnNode(name, "device", leases=leases, queued=queued, max_concurrency=4, footprint=SIZE, **facts)


def asleep(name: str, wait_seconds: float = 0.4, **more: Any) -> ExpertOnNode:
    facts: dict[str, Any] = {
        "seat": (0,),
        "state": "host",
        "switch_seconds": 0.4,
        "start_seconds": 40.0,
        "service_seconds": 3.0,
        "return_seconds": 0.4,
    } | more
    return ExpertOnNode(name, "host", max_concurrency=4, wait_seconds=wait_seconds, footprint=SIZE, **facts)


def on_disk(name: str, wait_seconds: float = 40.0, **more: Any) -> ExpertOnNode:
    facts: dict[str, Any] = {
        "seat": (0,),
        "state": "disk",
        "switch_seconds": 40.0,
        "start_seconds": 40.0,
        "service_seconds": 3.0,
        "return_seconds": 0.4,
    } | more
    return ExpertOnNode(name, "disk", max_concurrency=4, wait_seconds=wait_seconds, footprint=SIZE, **facts)


def node(name: str, *experts: ExpertOnNode, on_device: int = 2, in_host: int = 4, **more: Any) -> NodeSnapshot:
    """A machine with one card, on which as many experts of `SIZE` fit as said."""
    used = sum(one.footprint.device_awake_bytes for one in experts if one.tier == "device")
    held = sum(one.footprint.host_bytes for one in experts if one.tier != "disk")
    facts: dict[str, Any] = {"capacity_bytes": (10 * on_device,), "host_capacity_bytes": 10 * in_host} | more
    return NodeSnapshot(
        name,
        PROTOCOL,
        1,
        {one.name: one for one in experts},
        used_bytes=(used,),
        host_used_bytes=held,
        **facts,
    )


class _Unanswered(Sent):
    """Keeps its requests open: a context that is dropped ends."""

    def __init__(self) -> None:
        super().__init__()
        self.open = ExitStack()


def sent_to(*requests: tuple[str, str]) -> Sent:
    """What a front knows that has sent these requests (node, expert), none of them answered."""
    sent = _Unanswered()
    for where, expert in requests:
        sent.open.enter_context(sent.sending(where, expert))
    return sent


def answered(sent: Sent, requests: Iterable[tuple[str, str]]) -> Sent:
    """The same after these requests went out and were answered."""
    for where, expert in requests:
        with sent.sending(where, expert):
            pass
    return sent


NAMES = "abcd"
_SECONDS = st.floats(0, 100, allow_nan=False)


@st.composite
def experts(draw: st.DrawFn, name: str) -> ExpertOnNode:
    """Loaded, asleep or on disk, with any queue; what is loaded, idle and not full admits at once."""
    tier = draw(st.sampled_from(["device", "host", "disk"]))
    if tier == "device":
        leases, queued = draw(st.integers(0, 4)), draw(st.integers(0, 6))
        wait_seconds = 0.0 if leases < 4 and not queued else draw(_SECONDS)
        state = draw(st.sampled_from(["device", "device", "draining"]))
        found = loaded(name, leases, queued, wait_seconds, state=state)
    else:
        make = asleep if tier == "host" else on_disk
        move = draw(st.floats(0.01, 60))
        state = draw(st.sampled_from([tier, "starting"]))
        found = make(name, move + draw(_SECONDS), switch_seconds=move, queued=draw(st.integers(0, 6)), state=state)
    failure = draw(st.sampled_from([None, None, None, "its engine died"]))
    pin = draw(st.sampled_from(["disk", "disk", "host", "device"]))
    return replace(found, failure=failure, pin=pin, return_seconds=draw(st.floats(0, 60)))


@st.composite
def several_nodes(draw: st.DrawFn) -> list[NodeSnapshot]:
    """One to five nodes that have some of four experts."""
    found = []
    for place in range(draw(st.integers(1, 5))):
        names = draw(st.lists(st.sampled_from(NAMES), unique=True))
        there = [draw(experts(name)) for name in sorted(names)]
        drains = draw(st.sampled_from([False, False, False, True]))
        protocol = draw(st.sampled_from([PROTOCOL, PROTOCOL, PROTOCOL, PROTOCOL + 1]))
        made = node(f"node-{place}", *there, on_device=4, draining=drains)
        found.append(replace(made, protocol=protocol))
    return found


@st.composite
def traffic(draw: st.DrawFn) -> Sent:
    """Some requests that were sent, some of them answered."""
    one = st.tuples(st.integers(0, 5).map("node-{}".format), st.sampled_from(NAMES))
    return answered(sent_to(*draw(st.lists(one, max_size=6))), draw(st.lists(one, max_size=6)))
