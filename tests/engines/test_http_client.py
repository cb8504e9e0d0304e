"""The client of our own engines: how answers end, what it holds, and when a connection serves another request."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coe_server.engines.http_client import PlainClient
from coe_server.engines.http_exchange import SENT_BYTES, Exchange, Lost, NotHttp, NotReached, NotSendable, PlainExchange

from .conftest import DEADLINE_SECONDS

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(autouse=True, params=["asyncio", "uvloop"])
def loop_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server runs on uvloop, whose transports differ in what they are and in when they write."""
    if request.param == "uvloop":
        monkeypatch.setattr(asyncio, "run", uvloop.run)


class Server:
    """Answers each request as scripted and counts its connections."""

    def __init__(self, client: PlainClient) -> None:
        self.client = client
        self.connections = 0
        self.ended = asyncio.Event()  # a connection was closed by the client


@asynccontextmanager
async def server(folder: Path, answer: Answer, idle_seconds: float = 600.0) -> AsyncIterator[Server]:
    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await answer(reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            seen.ended.set()
            writer.close()

    path = folder / "server.sock"
    listener = await asyncio.start_unix_server(converse, path)
    seen = Server(PlainClient(path, "engine", idle_seconds, 10.0))
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            yield seen
    finally:
        await seen.client.close()
        listener.close()
        path.unlink()


async def ask(server: Server, method: str = "GET", body: bytes = b"") -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    exchange = await server.client.request(method, "/v1/x", (), body)
    try:
        return exchange.status, list(exchange.raw_headers), await rest_of(exchange)
    finally:
        exchange.leave()


async def rest_of(exchange: Exchange) -> bytes:
    pieces = []
    while piece := await exchange.read():
        pieces.append(piece)
    return b"".join(pieces)


def scripted(*answers: bytes) -> Answer:
    """One after the other, the last one again and again; `END` at the end of one closes the connection."""
    left = list(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = left.pop(0) if len(left) > 1 else left[0]
        writer.write(said.removesuffix(END))
        if said.endswith(END):
            await writer.drain()
            writer.close()

    return answer


END = b"<end>"
YES = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nye\r\n1;x=y\r\ns\r\n0\r\n"


@pytest.mark.parametrize(
    ("said", "status", "body", "connections"),
    [
        (YES, 200, b"yes", 1),
        (CHUNKED + b"\r\n", 200, b"yes", 1),
        (CHUNKED + b"X-Trailer: 1\r\n\r\n", 200, b"yes", 1),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + YES, 200, b"yes", 1),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", 1),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b"", 1),
        (YES.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), 200, b"yes", 2),
        (YES.replace(b"1.1", b"1.0"), 200, b"yes", 2),
        (YES.replace(b"200 OK", b"503 Busy"), 503, b"yes", 2),
        (YES + b"stray", 200, b"yes", 2),
        (YES + YES, 200, b"yes", 2),
        (b"HTTP/1.1 200 OK\r\n\r\nyes" + END, 200, b"yes", 2),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nyes" + END, 200, b"yes", 2),
    ],
)
def test_an_answer_ends_as_its_headers_say_and_only_then_the_connection_is_used_again(
    tmp_path: Path, said: bytes, status: int, body: bytes, connections: int
) -> None:
    async def story() -> None:
        async with server(tmp_path, scripted(said, YES)) as seen:
            found = await ask(seen)
            assert (found[0], found[2]) == (status, body)
            assert await ask(seen) == (200, [(b"Content-Length", b"3")], b"yes"), "nothing of the first answer is left"
            assert seen.connections == connections

    asyncio.run(story())


def test_an_answer_to_head_has_no_body_whatever_its_length_says(tmp_path: Path) -> None:
    async def story() -> None:
        async with server(tmp_path, scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", YES)) as seen:
            assert await ask(seen, "HEAD") == (200, [(b"Content-Length", b"3")], b"")
            assert (await ask(seen))[2] == b"yes"

    asyncio.run(story())


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nyes" + END,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n" + END,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\nno\r\n",
        CHUNKED + b"X-Trailer: " + b"x" * (2 << 20),
    ],
)
def test_a_body_that_does_not_end_well_is_an_error_and_not_an_end(tmp_path: Path, said: bytes) -> None:
    async def story() -> None:
        async with server(tmp_path, scripted(said)) as seen:
            exchange = await seen.client.request("GET", "/v1/x", (), b"")
            with pytest.raises((Lost, NotHttp)):
                await rest_of(exchange)
            exchange.leave()

    asyncio.run(story())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 220), max_size=12), is_chunked=st.booleans())
def test_an_answer_is_the_same_wherever_it_was_cut(tmp_path: Path, cuts: list[int], is_chunked: bool) -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    said = hint + (CHUNKED + b"X-Trailer: 1\r\n\r\n" if is_chunked else YES)
    at = [0, *sorted(cut for cut in cuts if cut < len(said)), len(said)]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for start, end in pairwise(at):
            writer.write(said[start:end])
            await asyncio.sleep(0)

    async def story() -> None:
        async with server(tmp_path, answer) as seen:
            for _ in range(2):
                status, headers, body = await ask(seen)
                assert (status, len(headers), body) == (200, 1, b"yes")
            assert seen.connections == 1

    asyncio.run(story())


def test_of_an_answer_that_is_not_read_little_is_held(tmp_path: Path) -> None:
    size_bytes, sent = 32 << 20, 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        sent = 0
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size_bytes)
        while sent < size_bytes:
            writer.write(bytes(1 << 20))
            await writer.drain()
            sent += 1 << 20

    async def story() -> None:
        async with server(tmp_path, answer) as seen:
            exchange = await seen.client.request("GET", "/v1/x", (), b"")
            before = -1
            while sent > before:  # until the server can write no more
                before = sent
                await asyncio.sleep(0.2)
            assert sent <= 8 << 20
            assert len(await rest_of(exchange)) == size_bytes
            exchange.leave()
            sent_again = await ask(seen)
            assert len(sent_again[2]) == size_bytes, "reading goes on with the next answer"

    asyncio.run(story())


def test_an_early_answer_to_a_large_body_ends_the_request(tmp_path: Path) -> None:
    """The server reads no byte of the body; what was not sent is of no use, and neither is the connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(YES.replace(b"200 OK", b"413 Too Large"))

    async def story() -> None:
        async with server(tmp_path, answer) as seen:
            exchange = await seen.client.request("POST", "/v1/x", (), tuple([bytes(SENT_BYTES)] * 300))
            assert (exchange.status, await rest_of(exchange)) == (413, b"yes")
            exchange.leave()
            assert (await ask(seen))[0] == 413
            assert seen.connections == 2

    asyncio.run(story())


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_cancelled_request_closes_its_connection(tmp_path: Path, has_begun: bool) -> None:
    async def story() -> None:
        asked = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nyes" if has_begun else b"HTTP/1.1 ")
            await writer.drain()
            asked.set()
            await reader.read()

        async with server(tmp_path, answer) as seen:
            request = asyncio.create_task(ask(seen))
            await asked.wait()
            await asyncio.sleep(0)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            await seen.ended.wait()

    asyncio.run(story())


def test_a_connection_is_closed_when_it_was_idle_for_too_long_and_another_one_is_given_back(tmp_path: Path) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        now = loop.time
        async with server(tmp_path, scripted(YES), idle_seconds=60) as seen:
            both = [await seen.client.request("GET", "/v1/x", (), b"") for _ in range(2)]
            for exchange in both:
                assert await rest_of(exchange) == b"yes"
            both[0].leave()
            loop.time = lambda: now() + 61  # type: ignore[method-assign]
            both[1].leave()
            await seen.ended.wait()
            assert (await ask(seen))[2] == b"yes"
            assert seen.connections == 2

    asyncio.run(story())


def test_an_exchange_that_was_left_reads_nothing_of_the_next_one(tmp_path: Path) -> None:
    async def story() -> None:
        async with server(tmp_path, scripted(YES)) as seen:
            first = await seen.client.request("GET", "/v1/x", (), b"")
            assert await rest_of(first) == b"yes"
            first.leave()
            second = await seen.client.request("GET", "/v1/x", (), b"")
            first.leave()
            assert (await first.read(), await rest_of(second)) == (b"", b"yes")
            second.leave()
            assert seen.connections == 1

    asyncio.run(story())


@pytest.mark.parametrize(
    ("method", "target", "header"),
    [
        ("GE T", "/", ("X", "1")),
        ("GET", "/ HTTP/1.1\r\nX: 1", ("X", "1")),
        ("GET", "v1", ("X", "1")),
        ("GET", "/é", ("X", "1")),
        ("GET", "/", ("X: Y", "1")),
        ("GET", "/", ("", "1")),
        ("GET", "/", ("X", "secret\r\nY: 1")),
        ("GET", "/", ("X", "secret\0")),
        ("GET", "/", ("X", "secret\ud800")),
    ],
)
def test_what_would_be_another_request_on_the_wire_is_not_sent(
    tmp_path: Path, method: str, target: str, header: tuple[str, str]
) -> None:
    async def story() -> None:
        async with server(tmp_path, scripted(YES)) as seen:
            with pytest.raises(NotSendable) as refused:
                await seen.client.request(method, target, (header,), b"")
            assert "secret" not in str(refused.value)
            assert seen.connections == 0

    asyncio.run(story())


def test_a_socket_that_is_not_there_is_not_reached(tmp_path: Path) -> None:
    async def story() -> None:
        client = PlainClient(tmp_path / "nothing.sock", "engine", 600.0, 10.0)
        with pytest.raises(NotReached, match="No such file"):
            await client.request("GET", "/", (), b"")
        await client.close()

    asyncio.run(story())


def test_an_exchange_leaves_no_cycles_to_the_garbage_collector(tmp_path: Path) -> None:
    said = [YES, YES, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nyes" + END]

    async def story() -> None:
        async with server(tmp_path, scripted(*said)) as seen:
            await ask(seen)
            gc.collect()
            gc.disable()
            others = {id(found) for found in gc.get_objects() if isinstance(found, PlainExchange)}  # of earlier tests
            try:
                await ask(seen)
                with pytest.raises(Lost):
                    await ask(seen)
                await seen.ended.wait()
                alive = sum(isinstance(found, PlainExchange) and id(found) not in others for found in gc.get_objects())
            finally:
                gc.enable()
            assert alive == 0

    asyncio.run(story())


class Unreadable:
    """A streamed body of which the second piece cannot be read from disk."""

    size_bytes = 6
    failure = None

    async def pieces(self) -> AsyncIterator[bytes]:
        yield b"one"
        raise OSError("Input/output error")


def test_a_body_that_cannot_be_read_ends_the_request(tmp_path: Path) -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client leaves

    async def story() -> None:
        async with server(tmp_path, never) as seen:
            with pytest.raises(Lost, match="Input/output error"):
                await seen.client.request("POST", "/v1/x", (), Unreadable())

    asyncio.run(story())


def test_an_answer_that_was_left_before_its_end_cannot_be_taken_for_a_whole_one(tmp_path: Path) -> None:
    async def story() -> None:
        async with server(tmp_path, scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nyes")) as seen:
            exchange = await seen.client.request("GET", "/v1/x", (), b"")
            assert await exchange.read() == b"yes"
            exchange.leave()
            with pytest.raises(Lost, match="abandoned before its end"):
                await exchange.read()

    asyncio.run(story())


def test_a_client_that_is_closed_while_it_connects_keeps_no_connection(tmp_path: Path) -> None:
    async def story() -> None:
        async with server(tmp_path, scripted(YES)) as seen:
            request = asyncio.create_task(ask(seen))
            await asyncio.sleep(0)
            await seen.client.close()
            with pytest.raises(Lost):
                await request

    asyncio.run(story())
