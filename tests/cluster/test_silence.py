"""What becomes of the requests at a node that has fallen silent: each by what it has to lose."""

import asyncio
import json

import pytest

from coe_server.cluster.connections import Access, Pending
from coe_server.cluster.directory import NodeAddress, StaticDirectory
from coe_server.cluster.liveness import LOST_SECONDS, MUTE_SECONDS, SILENT_SECONDS, STEP_SECONDS
from coe_server.cluster.nodes import Nodes, end_what_gains_nothing
from coe_server.engines.engine import Tries
from tests.cluster.nodes import loaded, node


async def ended_after(seconds, tries, others=(), paid=False, draining=False):
    """True if an attempt at the node `left` has ended after so much silence of it. `others`: further nodes, usable."""
    names = ("left", *others)
    directory = StaticDirectory([NodeAddress(name, "http://127.0.0.1:9") for name in names])
    nodes = Nodes(directory, lambda _: Access())
    following = asyncio.create_task(nodes.run())
    await asyncio.sleep(0)  # the links are there; what they hear comes from this test
    for name in names:
        link = nodes._links[name]
        told = node(name, loaded("coder", may_have_been_paid=paid), draining=draining and name == "left")
        link._hear("snapshot", json.dumps(told.as_json()).encode())
    left = nodes._links["left"]
    try:
        async with asyncio.timeout(None) as limit:
            with left.connections.holds(Pending("coder", tries, limit)):
                for _ in range(round(seconds / STEP_SECONDS)):
                    left.step(STEP_SECONDS)
                if left.liveness.is_silent:
                    end_what_gains_nothing(left, nodes.usable())
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                return False
    except TimeoutError:
        return True
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


JUST_SILENT, MUTE = SILENT_SECONDS + STEP_SECONDS, MUTE_SECONDS + STEP_SECONDS
BEFORE_LOST = LOST_SECONDS - STEP_SECONDS


@pytest.mark.parametrize(
    ("seconds", "tries", "around", "ends"),
    [
        (SILENT_SECONDS - STEP_SECONDS, Tries(), {"others": ("right",)}, False),
        (JUST_SILENT, Tries(), {"others": ("right",)}, True),
        (JUST_SILENT, Tries(failed={"right"}), {"others": ("right",)}, False),
        (BEFORE_LOST, Tries(), {}, False),
        (JUST_SILENT, Tries(has_substitute=True), {}, False),
        (MUTE, Tries(has_substitute=True), {}, True),
        (JUST_SILENT, Tries(has_begun=True), {"others": ("right",)}, False),
        (MUTE, Tries(has_begun=True), {"others": ("right",)}, True),
        (MUTE, Tries(has_begun=True), {}, True),
        (BEFORE_LOST, Tries(), {"others": ("right",), "paid": True}, False),
        (MUTE, Tries(has_begun=True), {"draining": True}, False),
    ],
    ids=[
        *("late", "another node takes it", "the other node failed it", "no other node", "another expert, not yet"),
        *("another expert", "begun, not yet", "begun", "begun, alone", "paid for", "begun, at a node that stops"),
    ],
)
def test_an_attempt_at_a_silent_node_ends_once_waiting_gains_nothing(seconds, tries, around, ends):
    assert asyncio.run(ended_after(seconds, tries, **around)) is ends
