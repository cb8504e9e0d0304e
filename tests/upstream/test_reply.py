"""What a server may send before its answer: few interim answers, a head of some length, and no other protocol."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import uvloop

from coe_server.engines.engine import EngineRequest
from coe_server.engines.http_channel import ELSEWHERE, HttpChannel
from coe_server.errors import EngineError
from coe_server.upstream.reply import HEADERS_LIMIT_BYTES, MOST_INTERIM
from tests.patience import PATIENCE_SECONDS

GET = EngineRequest("GET", "/v1/models", (), b"")
HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
YES = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


@pytest.fixture(params=["elsewhere", "our engine"])
def socket(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return None if request.param == "elsewhere" else tmp_path / "engine.sock"


@asynccontextmanager
async def upstream(
    said: bytes, without_end: bytes, socket: Path | None
) -> AsyncIterator[tuple[HttpChannel, asyncio.Event]]:
    """A server that answers each request with `said`, then with the other without end until it is hung up on."""
    hung_up = asyncio.Event()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(said)
                while without_end:
                    writer.write(without_end)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            hung_up.set()
        finally:  # also where the loop ends first
            writer.close()

    async with served(converse, socket) as channel:
        yield channel, hung_up


@asynccontextmanager
async def served(
    converse: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], socket: Path | None
) -> AsyncIterator[HttpChannel]:
    if socket is None:
        listener = await asyncio.start_server(converse, "127.0.0.1", 0)
        channel = HttpChannel("math", f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", reuse=ELSEWHERE)
    else:
        listener = await asyncio.start_unix_server(converse, socket)
        channel = HttpChannel("math", "http://engine", socket)
    try:
        yield channel
    finally:
        await channel.close()
        listener.close()
        await listener.wait_closed()


async def answer_of(channel: HttpChannel) -> tuple[int, bytes]:
    async with channel.send(GET) as response:
        return response.status, b"".join([chunk async for chunk in response.chunks()])


def refused(socket: Path | None, said: bytes, without_end: bytes = b"") -> str:
    """Why the expert failed; its connection is closed."""

    async def story() -> str:
        async with asyncio.timeout(PATIENCE_SECONDS), upstream(said, without_end, socket) as (channel, hung_up):
            with pytest.raises(EngineError) as caught:
                await answer_of(channel)
            await hung_up.wait()
            assert caught.value.status == 502
            return str(caught.value)

    return asyncio.run(story())


@pytest.mark.parametrize("count", [0, 1, MOST_INTERIM])
def test_a_few_interim_answers_are_left_out_for_each_answer_of_a_connection(socket: Path | None, count: int) -> None:
    async def story() -> list[tuple[int, bytes]]:
        async with asyncio.timeout(PATIENCE_SECONDS), upstream(HINT * count + YES, b"", socket) as (channel, _):
            return [await answer_of(channel) for _ in range(3)]

    assert asyncio.run(story()) == [(200, b"yes")] * 3


@pytest.mark.parametrize("without_end", [b"", HINT, HINT * 10_000])
def test_more_interim_answers_are_a_failure_of_the_expert(socket: Path | None, without_end: bytes) -> None:
    told = refused(socket, HINT * (MOST_INTERIM + 1) + (b"" if without_end else YES), without_end)
    assert told.startswith("expert 'math' did not answer with valid HTTP\n")
    assert f"more than {MOST_INTERIM} interim answers (1xx) before the answer" in told


def test_a_switch_of_protocols_is_a_failure_of_the_expert(socket: Path | None) -> None:
    assert "an unexpected change of protocol (101)" in refused(socket, SWITCH + YES)


def test_a_switch_after_interim_answers_is_one_too(socket: Path | None) -> None:
    assert "an unexpected change of protocol (101)" in refused(socket, HINT + SWITCH)


def test_heads_that_are_long_together_are_a_failure_of_the_expert(socket: Path | None) -> None:
    long = b"".join(b"X-%d: %s\r\n" % (number, b"x" * 60_000) for number in range(10))
    told = refused(socket, b"HTTP/1.1 103 Early Hints\r\n" + long + b"\r\nHTTP/1.1 200 OK\r\n" + long)
    assert re.search(f"the head(ers)? of its answer (is|are) longer than {HEADERS_LIMIT_BYTES:,} bytes", told)


@pytest.mark.parametrize("status", ["000", "099", "600", "999"])
def test_a_status_that_http_does_not_have_is_a_failure_of_the_expert(socket: Path | None, status: str) -> None:
    told = refused(socket, b"HTTP/1.1 %b No\r\nContent-Length: 3\r\n\r\nnot" % status.encode() + YES)
    assert told.startswith("expert 'math' did not answer with valid HTTP\n")
    assert f"invalid status {int(status)}" in told


def test_more_headers_than_any_server_sends_are_a_failure_of_the_expert(socket: Path | None) -> None:
    told = refused(socket, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n" + b"A:\r\n" * 100_000 + b"\r\nyes")
    assert told.startswith("expert 'math' did not answer with valid HTTP\n")


def test_a_server_that_speaks_before_it_is_asked_causes_no_error_of_ours(socket: Path | None) -> None:
    """On uvloop, as the server is: there the bytes often come before the request is sent."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(YES.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async def story() -> list[object]:
        unexpected: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unexpected.append(context))
        async with asyncio.timeout(PATIENCE_SECONDS), served(converse, socket) as channel:
            for _ in range(10):
                found = await asyncio.gather(*(answer_of(channel) for _ in range(10)), return_exceptions=True)
                unexpected += [one for one in found if one != (200, b"yes") and not isinstance(one, EngineError)]
        return unexpected

    assert uvloop.run(story()) == []
