"""What the router is told of an expert is kept from request to request, and is never older than the last change."""

import asyncio
import json
from contextlib import ExitStack
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.cluster import operations
from coe_server.cluster.choice import best_of_nodes
from coe_server.cluster.connections import Access
from coe_server.cluster.directory import NodeAddress, StaticDirectory
from coe_server.cluster.liveness import SILENT_SECONDS, STEP_SECONDS
from coe_server.cluster.nodes import Nodes
from tests.cluster.nodes import NAMES, experts, loaded, node, several_nodes
from tests.examples import examples

PLACES = [f"node-{place}" for place in range(5)]


def listening():
    """Nodes whose links hear what the test says: to be used in a loop."""
    directory = StaticDirectory([NodeAddress(name, "http://127.0.0.1:9") for name in PLACES])
    return Nodes(directory, lambda _: Access())


def hear(nodes, place, event, snapshot):
    nodes._links[place]._hear(event, json.dumps(snapshot.as_json()).encode())


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("expert"), st.sampled_from(PLACES), st.sampled_from(NAMES).flatmap(experts)),
        st.tuples(st.sampled_from(["drain", "resume", "silent", "pulse", "stop"]), st.sampled_from(PLACES), st.none()),
        st.tuples(st.sampled_from(["send", "answer"]), st.sampled_from(PLACES), st.sampled_from(NAMES)),
    ),
    max_size=12,
)


async def changed(nodes, open_requests, change):
    """One change, as a node, an operator or a request makes it."""
    kind, place, what = change
    if kind == "send":
        open_requests.append(nodes.sent.sending(place, what))
        open_requests[-1].__enter__()
    elif kind == "answer" and open_requests:
        open_requests.pop().__exit__(None, None, None)
    elif kind in {"drain", "resume"}:
        await getattr(operations, kind)(nodes, place)
    elif (told := nodes._links[place].liveness.snapshot) is not None and told.understood:
        tell(nodes, place, kind, replace(told, sequence=told.sequence + 1), what)


def tell(nodes, place, kind, news, expert):
    """One message of a node, or its silence."""
    link = nodes._links[place]
    match kind:
        case "expert":
            hear(nodes, place, "changes", replace(news, experts={expert.name: expert}))
        case "stop":
            hear(nodes, place, "changes", replace(news, draining=True))
        case "silent":
            for _ in range(round(SILENT_SECONDS / STEP_SECONDS) + 1):
                link.step(STEP_SECONDS)
        case "pulse":
            link._hear("pulse", b"{}")


@examples(50)
@given(several_nodes(), CHANGES)
def test_what_is_kept_is_what_would_be_computed_now(snapshots, changes):
    async def story():
        nodes, open_requests = listening(), []
        following = asyncio.create_task(nodes.run())
        await asyncio.sleep(0)
        try:
            for one in snapshots:
                hear(nodes, one.node, "snapshot", one)
            for change in [None, *changes]:
                if change is not None:
                    await changed(nodes, open_requests, change)
                for name in nodes.experts:
                    fresh, told = best_of_nodes(name, nodes.usable(), nodes.sent), nodes.best[name]
                    kept = (told.tier, told.wait_seconds, told.unavailable, told.returns_seconds, told.longest_tokens)
                    assert fresh is None or kept == tuple(fresh), (change, name)
                    assert fresh is not None or told.unavailable.startswith("no node that has it takes requests")
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            with ExitStack() as held:
                for one in open_requests:
                    held.push(one)

    asyncio.run(story())


@pytest.mark.parametrize("base", [None, "shared"])
def test_it_is_the_same_object_until_something_changes_or_a_request_is_open(base):
    async def story():
        nodes = listening()
        following = asyncio.create_task(nodes.run())
        await asyncio.sleep(0)
        told = node("node-0", loaded("coder", base=base), loaded("poet"), *([loaded(base)] if base else []))
        hear(nodes, "node-0", "snapshot", told)
        first, poet = nodes.best["coder"], nodes.best["poet"]
        assert nodes.best["coder"] is first
        with nodes.sent.sending("node-0", base or "coder", answers=9):
            assert nodes.best["coder"].wait_seconds > 0
        assert nodes.best["coder"].wait_seconds == 0
        hear(
            nodes, "node-0", "changes", replace(told, sequence=2, experts={"coder": loaded("coder", wait_seconds=7.0)})
        )
        assert (nodes.best["coder"].wait_seconds, nodes.best["poet"]) == (7.0, poet)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    asyncio.run(story())
