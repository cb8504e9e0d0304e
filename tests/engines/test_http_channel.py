"""HTTP to an engine: what passes through, and what a broken connection looks like."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from coe_server.engines.engine import EngineRequest
from coe_server.engines.http_channel import HttpChannel
from coe_server.errors import EngineDied, EngineError

from .conftest import DEADLINE_SECONDS

Answer = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]


@asynccontextmanager
async def server(folder: Path, answer: Answer) -> AsyncIterator[HttpChannel]:
    """A scripted server: `answer` gets each request's head and body, and returns whether the connection stays."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                body = await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b""
                stays = await answer(head + body, reader, writer)
                await writer.drain()
                if not stays:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    socket = folder / "engine.sock"
    listener = await asyncio.start_unix_server(converse, socket, backlog=2048)
    channel = HttpChannel("french", "http://engine", socket)
    try:
        yield channel
    finally:
        await channel.close()
        listener.close()
        await listener.wait_closed()


POST = EngineRequest("POST", "/v1/chat/completions", (("Content-Type", "application/json"),), b'{"a":  1}')


async def body_of(channel: HttpChannel, request: EngineRequest = POST) -> bytes:
    async with channel.send(request) as response:
        return b"".join([chunk async for chunk in response.chunks()])


def whole(body: bytes, extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), extra, body)


def test_the_body_arrives_as_sent_and_hop_by_hop_headers_do_not(tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        seen.append(request)
        writer.write(whole(b"yes", b"X-Kept: 1\r\nConnection: keep-alive, X-Secret\r\nX-Secret: 2\r\nTrailer: T\r\n"))
        return True

    async def story() -> tuple[tuple[str, str], ...]:
        headers = (("Content-Type", "application/json"), ("X-A", "1"), ("X-A", "2"), ("Host", "us"), ("TE", "gzip"))
        headers += (("Content-Length", "999"), ("Transfer-Encoding", "chunked"), ("Connection", "X-Gone"))
        request = EngineRequest("POST", "/v1/x?y=1", (*headers, ("X-Gone", "3")), b'{"a":  1}')
        async with server(tmp_path, answer) as channel, channel.send(request) as response:
            return response.headers

    assert asyncio.run(story()) == (("Content-Length", "3"), ("X-Kept", "1"))
    (request,) = seen
    head, _, body = request.partition(b"\r\n\r\n")
    assert body == b'{"a":  1}'
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /v1/x?y=1 HTTP/1.1"
    expected = [b"Content-Length: 9", b"Content-Type: application/json", b"Host: engine", b"X-A: 1", b"X-A: 2"]
    assert sorted(lines[1:]) == expected, "nothing was added, nothing of one hop was kept"


def test_a_compressed_answer_stays_compressed(tmp_path: Path) -> None:
    packed = gzip.compress(b"words " * 100)

    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(whole(packed, b"Content-Encoding: gzip\r\n"))
        return True

    async def story() -> bytes:
        async with server(tmp_path, answer) as channel:
            return await body_of(channel)

    assert asyncio.run(story()) == packed


def test_each_piece_of_a_stream_arrives_before_the_next_is_sent(tmp_path: Path) -> None:
    received = asyncio.Queue[bytes]()

    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for word in (b"one", b"two", b"three"):
            writer.write(b"%x\r\n%s\r\n" % (len(word), word))
            assert await received.get() == word, "it waits for its reader: nothing may be held back on the way"
        writer.write(b"0\r\n\r\n")
        return True

    async def story() -> list[bytes]:
        pieces = []
        async with server(tmp_path, answer) as channel, channel.send(POST) as response:
            async for chunk in response.chunks():
                pieces.append(chunk)
                received.put_nowait(chunk)
        return pieces

    assert asyncio.run(story()) == [b"one", b"two", b"three"]


def test_leaving_an_unfinished_answer_closes_the_connection(tmp_path: Path) -> None:
    closed = asyncio.Event()

    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await writer.drain()
        assert await reader.read() == b"", "the client's end"
        closed.set()
        return False

    async def story() -> None:
        async with server(tmp_path, answer) as channel:
            async with channel.send(POST) as response:
                assert await anext(response.chunks()) == b"one"
            await asyncio.wait_for(closed.wait(), DEADLINE_SECONDS)

    asyncio.run(story())


def test_a_connection_that_closed_while_idle_is_replaced_once(tmp_path: Path) -> None:
    connections: dict[asyncio.StreamWriter, int] = {}

    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        connections[writer] = connections.get(writer, 0) + 1
        if connections[writer] == 2:
            return False  # closes without a word, as a server does whose idle timer just fired
        writer.write(whole(b"yes"))
        return True

    async def story() -> None:
        async with server(tmp_path, answer) as channel:
            assert await body_of(channel) == b"yes"
            assert await body_of(channel) == b"yes"

    asyncio.run(story())
    assert sorted(connections.values()) == [1, 2]


def test_a_new_connection_that_breaks_is_not_tried_again(tmp_path: Path) -> None:
    requests: list[bytes] = []

    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        requests.append(request)
        return False

    async def story() -> None:
        async with server(tmp_path, answer) as channel:
            with pytest.raises(EngineDied, match="'french' did not take the request"):
                await body_of(channel)

    asyncio.run(story())
    assert len(requests) == 1


def test_nobody_listening_is_a_dead_engine(tmp_path: Path) -> None:
    async def story() -> None:
        channel = HttpChannel("french", "http://engine", tmp_path / "nothing.sock")
        with pytest.raises(EngineDied, match=r"^expert 'french' could not be reached\nhttp://engine: "):
            await body_of(channel)
        await channel.close()

    asyncio.run(story())


@pytest.mark.parametrize("framing", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
def test_an_answer_cut_short_is_a_dead_engine_and_not_an_end(tmp_path: Path, framing: bytes) -> None:
    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\n%s\r\n\r\n3\r\none\r\n" % framing)
        return False

    async def story() -> None:
        async with server(tmp_path, answer) as channel:
            with pytest.raises(EngineDied, match=r"^expert 'french' broke off its answer\n"):
                await body_of(channel)

    asyncio.run(story())


def test_a_body_in_pieces_arrives_whole_and_with_its_length(tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        seen.append(request)
        writer.write(whole(b"yes"))
        return True

    text = bytes(range(256)) * 1024
    pieces = (b"{", memoryview(text), b"", memoryview(b"}"))

    async def story() -> None:
        async with server(tmp_path, answer) as channel:
            for _ in range(2):
                assert await body_of(channel, EngineRequest("POST", "/v1/x", (), pieces)) == b"yes"

    asyncio.run(story())
    for request in seen:
        head, _, body = request.partition(b"\r\n\r\n")
        assert body == b"{" + text + b"}"
        assert b"content-length: 262146" in head.lower()
        assert b"transfer-encoding" not in head.lower()


def test_a_request_under_way_when_its_channel_is_closed_was_not_delivered(tmp_path: Path) -> None:
    """Its engine is being stopped; trying again on another connection must not be a fault of our own."""
    asked_again = asyncio.Event()

    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if b"again" in request:
            asked_again.set()
            await reader.read()
            return False
        writer.write(whole(b"yes"))
        return True

    async def story() -> None:
        async with server(tmp_path, answer) as channel:
            assert await body_of(channel) == b"yes"
            again = asyncio.create_task(body_of(channel, EngineRequest("POST", "/again", (), b"")))
            await asked_again.wait()
            await channel.close()
            with pytest.raises(EngineDied, match="'french' did not take the request"):
                await again
            with pytest.raises(EngineDied, match=r"'french' did not take the request\n.*: its channel is closed"):
                await body_of(channel)

    asyncio.run(story())


def test_a_control_call_that_fails_quotes_the_engine(tmp_path: Path) -> None:
    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 500 Oops\r\nContent-Length: 7\r\n\r\nno room")
        return True

    async def story() -> None:
        async with server(tmp_path, answer) as channel:
            with pytest.raises(EngineError, match="'french' answered POST /wake_up with 500\nno room"):
                await channel.ask("POST", "/wake_up", 30)

    asyncio.run(story())


def test_many_requests_share_an_engine_without_waiting_for_each_other(tmp_path: Path) -> None:
    waiting = 0
    everybody_is_here = asyncio.Event()

    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        nonlocal waiting
        waiting += 1
        if waiting == 150:
            everybody_is_here.set()
        await everybody_is_here.wait()
        writer.write(whole(b"yes"))
        return True

    async def story() -> list[bytes]:
        async with server(tmp_path, answer) as channel:
            return await asyncio.gather(*(body_of(channel) for _ in range(150)))

    assert asyncio.run(story()) == [b"yes"] * 150
