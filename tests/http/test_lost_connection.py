"""A connection to a remote expert is lost in place of an answer: what a caller gets, and how often it was asked."""

import asyncio
import json
import threading
from contextlib import contextmanager

import pytest

from coe_server.engines.remote import RemoteEngine
from coe_server.routing import artifact as artifacts
from coe_server.routing.router import Router
from tests.http.server import running_server
from tests.http.test_api import error_of, simulated
from tests.routing.small_artifact import SIZES, TEXTS, held_out, small_artifact

WHOLE = {"object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}}]}
FRENCH = [{"role": "user", "content": TEXTS["french"]}]  # linguist is best


@contextmanager
def upstream(*closes_at):
    """A server elsewhere that reads every request, and closes its connection instead of answering those numbers."""
    posts, loop, ready = [], asyncio.new_event_loop(), threading.Event()
    told = {}

    async def converse(reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                if head.startswith(b"post"):
                    await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
                    posts.append(head)
                    if len(posts) in closes_at:
                        return
                body = json.dumps(WHOLE).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
                writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def serve():
        listener = await asyncio.start_server(converse, "127.0.0.1", 0)
        told["url"] = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
        told["over"] = asyncio.Event()
        ready.set()
        await told["over"].wait()
        listener.close()
        await listener.wait_closed()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield told["url"], posts
    finally:
        loop.call_soon_threadsafe(told["over"].set)
        thread.join(60)
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def failures(server):
    return {one.name: one.failure for one in server.cache.status()}


def test_by_name_the_caller_is_told_to_try_again_and_the_expert_has_not_failed():
    with upstream(2) as (url, posts), running_server({"a": RemoteEngine("a", url, None)}) as server:
        assert server.chat(model="a")[0] == 200
        status, headers, body = server.chat(model="a")
        assert (status, body["error"]["code"]) == (502, "connection_lost")
        assert headers["x-should-retry"] == "true"
        assert len(posts) == 2
        assert failures(server) == {"a": None}
        assert server.chat(model="a")[0] == 200


@pytest.mark.parametrize("is_streamed", [False, True])
def test_under_auto_the_next_expert_answers_and_the_first_is_asked_first_again(tmp_path, is_streamed):
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    with upstream(2) as (url, posts):
        engines = {name: simulated(name) for name in SIZES} | {"linguist": RemoteEngine("linguist", url, None)}
        with running_server(engines, router=Router.load(tmp_path / "router")) as server:
            answered = []
            for streamed in (False, is_streamed, False):
                body = json.dumps({"model": "auto", "messages": FRENCH, "stream": streamed})
                status, headers, _ = server.ask("POST", "/v1/chat/completions", body)
                assert status == 200
                answered.append(headers["x-coe-expert"])
            assert answered[0] == answered[2] == "linguist"
            assert answered[1] != "linguist"
            assert len(posts) == 3
            assert failures(server)["linguist"] is None


def test_a_new_connection_that_is_lost_is_asked_once():
    with upstream(1) as (url, posts), running_server({"a": RemoteEngine("a", url, None)}) as server:
        status, error = error_of(server.chat(model="a"))
        assert (status, error["code"]) == (502, "engine_died")
        assert len(posts) == 1


def test_a_header_that_cannot_be_sent_is_the_experts_error_and_no_mistake_of_the_server():
    with upstream() as (url, posts), running_server({"a": RemoteEngine("a", url, "s3cret\nword")}) as server:
        status, error = error_of(server.chat(model="a"))
        assert (status, error["code"]) == (502, "engine_error")
        assert "s3cret" not in error["message"]
        assert not posts
