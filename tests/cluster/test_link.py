"""What a front makes of a node's stream and of its silence."""

import asyncio
import json
from dataclasses import replace

import pytest

from coe_server.cluster.connections import Access, Pending
from coe_server.cluster.directory import NodeAddress
from coe_server.cluster.link import NodeLink
from coe_server.cluster.liveness import LOST_SECONDS, MUTE_SECONDS, SILENT_SECONDS, STEP_SECONDS
from coe_server.cluster.snapshot import PROTOCOL, ExpertOnNode, NodeSnapshot
from coe_server.engines.engine import Tries
from tests.patience import PATIENCE_SECONDS

SNAPSHOT = NodeSnapshot("itself", PROTOCOL, 0, {"coder": ExpertOnNode("coder", "device")}, process="one")


def message(kind, snapshot):
    return f"event: {kind}\nid: {snapshot.sequence}\ndata: {json.dumps(snapshot.as_json())}\n\n".encode()


class Node:
    """A node that says what it is told to, in a stream that stays open."""

    def __init__(self, connected):
        self._connected = connected
        self.said = asyncio.Queue()
        self.connections = 0

    async def serve(self, reader, writer):
        self.connections += 1
        self._connected()
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
            left = asyncio.create_task(reader.read())
            while True:
                told = asyncio.create_task(self.said.get())
                await asyncio.wait({left, told}, return_when=asyncio.FIRST_COMPLETED)
                if left.done():
                    told.cancel()
                    return
                writer.write(told.result())
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


def run(story, link_ends=False):
    """Run a story with a node, a link to it, and a function that waits until a condition holds."""

    async def told():
        news = asyncio.Event()
        node = Node(news.set)
        server = await asyncio.start_server(node.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        link = NodeLink(NodeAddress("left", f"http://127.0.0.1:{port}"), Access("key"), lambda _: news.set())
        following = asyncio.create_task(link.run())

        async def until(condition):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not condition():
                    news.clear()
                    await news.wait()

        try:
            await story(node, link, until)
            if link_ends:
                await asyncio.wait_for(following, PATIENCE_SECONDS)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            server.close()

    asyncio.run(told())


def test_a_snapshot_makes_a_node_usable_under_the_directorys_name_and_changes_follow_it():
    async def story(node, link, until):
        assert link.known.unusable == "no answer yet"
        node.said.put_nowait(message("snapshot", SNAPSHOT))
        await until(lambda: link.known.usable)
        assert link.liveness.snapshot == replace(SNAPSHOT, node="left")
        more = ExpertOnNode("coder", "host", wait_seconds=3.0)
        node.said.put_nowait(message("changes", replace(SNAPSHOT, sequence=1, experts={"coder": more})))
        await until(lambda: link.liveness.snapshot.sequence == 1)
        assert link.liveness.snapshot.experts == {"coder": more}

    run(story)


def test_silence_loses_a_node_and_a_pause_of_the_fronts_own_loop_does_not():
    async def story(node, link, until):
        node.said.put_nowait(message("snapshot", SNAPSHOT))
        await until(lambda: link.known.usable)
        link.step(1000 * LOST_SECONDS)  # the loop stood still: one step, however long it took
        assert link.known.usable
        channel = link.connections.channel
        for _ in range(round(SILENT_SECONDS / STEP_SECONDS) + 1):
            link.step(STEP_SECONDS)
        assert link.known.unusable == f"no pulse for {SILENT_SECONDS:g} s"
        assert not link.liveness.is_mute
        for _ in range(round((MUTE_SECONDS - SILENT_SECONDS) / STEP_SECONDS) + 1):
            link.step(STEP_SECONDS)
        assert link.liveness.is_mute
        assert link.connections.channel is channel
        node.said.put_nowait(b"event: pulse\ndata: {}\n\n")  # it was slow
        await until(lambda: link.known.usable)
        for _ in range(round(LOST_SECONDS / STEP_SECONDS) + 1):
            link.step(STEP_SECONDS)
        assert not link.known.usable
        assert link.connections.channel is not channel
        await until(lambda: node.connections == 2)
        node.said.put_nowait(message("snapshot", SNAPSHOT))
        await until(lambda: link.known.usable)

    run(story)


def test_a_node_of_another_protocol_gets_nothing_and_is_told_apart():
    async def story(node, link, until):
        node.said.put_nowait(message("snapshot", replace(SNAPSHOT, protocol=PROTOCOL + 1, version="9.0")))
        await until(lambda: link.liveness.snapshot is not None)
        assert not link.known.usable
        assert "speaks protocol" in link.known.unusable
        assert "9.0" in link.known.unusable

    run(story)


@pytest.mark.parametrize("wrong", ["a gap", "no JSON", "no end"])
def test_what_cannot_be_followed_ends_the_connection_and_the_next_one_starts_anew(wrong):
    pieces = {
        "a gap": message("changes", replace(SNAPSHOT, sequence=7)),
        "no JSON": b"event: changes\ndata: {\n\n",
        "no end": b"data: " + b"x" * (17 << 20),
    }

    async def story(node, link, until):
        node.said.put_nowait(message("snapshot", SNAPSHOT))
        await until(lambda: link.known.usable)
        node.said.put_nowait(pieces[wrong])
        await until(lambda: "snapshot" in (link.known.unusable or ""))
        await until(lambda: node.connections == 2)
        node.said.put_nowait(message("snapshot", SNAPSHOT))
        await until(lambda: link.known.usable)

    run(story)


def test_a_node_that_stops_says_so_and_is_not_lost():
    async def story(node, link, until):
        node.said.put_nowait(message("snapshot", SNAPSHOT))
        await until(lambda: link.known.usable)
        channel = link.connections.channel
        node.said.put_nowait(message("changes", replace(SNAPSHOT, sequence=1, draining=True)))
        await until(lambda: not link.known.usable)
        for _ in range(100):
            link.step(STEP_SECONDS)
        assert (link.connections.channel is channel, link.liveness.is_mute) == (True, False)  # its last answers may end

    run(story)


def test_a_node_that_is_no_longer_listed_may_end_its_answers():
    async def story(node, link, until):
        node.said.put_nowait(message("snapshot", SNAPSHOT))
        await until(lambda: link.known.usable)
        channel = link.connections.channel
        with link.connections.holds(Pending("coder", Tries(), asyncio.timeout(None))):
            link.leave()
            for _ in range(100):
                await asyncio.sleep(0)
            assert link.connections.channel is channel
            assert not channel._client.closed

    run(story, link_ends=True)
