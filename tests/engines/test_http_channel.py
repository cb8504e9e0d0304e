"""HTTP to an engine: what passes through, and what a broken connection looks like."""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from coe_server.engines.engine import EngineRequest
from coe_server.engines.http_channel import ELSEWHERE, HttpChannel, Reuse
from coe_server.errors import ConnectionLost, EngineDied, EngineError, EngineUnreachable
from tests.engines.idle_server import Idle, idle_server

from .conftest import DEADLINE_SECONDS

ELSEWHERE_HOST = "127.0.0.1"  # of `server`: an address, or a name, which is reached with another client


@pytest.fixture(autouse=True, params=["asyncio", "uvloop", "uvloop, by name"])
def loop_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server runs on uvloop, whose transports differ in what they are and in when they write."""
    if request.param != "asyncio":
        monkeypatch.setattr(asyncio, "run", uvloop.run)
    if request.param == "uvloop, by name":
        monkeypatch.setattr(f"{__name__}.ELSEWHERE_HOST", "localhost")


Answer = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]


@asynccontextmanager
async def server(folder: Path, answer: Answer, reuse: Reuse | None = None) -> AsyncIterator[HttpChannel]:
    """A scripted server: `answer` gets each request's head and body, and returns whether the connection stays.

    It is one of our engines on a Unix socket; with `reuse` one elsewhere, over TCP.
    """

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

    if reuse is None:
        path = folder / "engine.sock"
        listener = await asyncio.start_unix_server(converse, path, backlog=2048)
        channel = HttpChannel("french", "http://engine", path)
    else:
        listener = await asyncio.start_server(converse, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        channel = HttpChannel("french", f"http://{ELSEWHERE_HOST}:{port}", reuse=reuse)
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


PACKED = {"gzip": gzip.compress, "X-GZip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("coding", sorted(PACKED))
def test_a_compressed_answer_is_plain_here_and_says_nothing_of_its_coding(tmp_path: Path, coding: str) -> None:
    packed = PACKED[coding](b"words " * 100)

    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(whole(packed, b"Content-Encoding: %s\r\nX-Kept: 1\r\n" % coding.encode()))
        return True

    async def story() -> None:
        async with server(tmp_path, answer) as channel, channel.send(POST) as response:
            assert b"".join([chunk async for chunk in response.chunks()]) == b"words " * 100
            assert response.headers == (("X-Kept", "1"),)

    asyncio.run(story())


def passed(tmp_path: Path, body: bytes, coding: bytes) -> tuple[bytes, dict[str, str]]:
    """What of an answer in this coding is passed on: its body and its headers."""

    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(whole(body, b"Content-Encoding: %s\r\n" % coding))
        return True

    async def story() -> tuple[bytes, dict[str, str]]:
        async with server(tmp_path, answer) as channel, channel.send(POST) as response:
            return b"".join([chunk async for chunk in response.chunks()]), dict(response.headers)

    return asyncio.run(story())


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"gzip, br", b"aes128gcm"])
def test_a_coding_that_is_not_known_here_leaves_bytes_and_headers_as_they_are(tmp_path: Path, coding: bytes) -> None:
    headers = {"Content-Length": "3", "Content-Encoding": coding.decode()}
    assert passed(tmp_path, b"\x8b\x00\xff", coding) == (b"\x8b\x00\xff", headers)


@pytest.mark.parametrize("coding", [b"", b"identity", b" , Identity"])
def test_a_coding_that_is_none_is_not_told(tmp_path: Path, coding: bytes) -> None:
    assert passed(tmp_path, b"yes", coding) == (b"yes", {"Content-Length": "3"})


def test_each_word_of_a_compressed_stream_arrives_before_the_next_is_sent(tmp_path: Path) -> None:
    received = asyncio.Queue[bytes]()

    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        packer = zlib.compressobj(wbits=31)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")
        for word in (b"one", b"two", b"three"):
            packed = packer.compress(word) + packer.flush(zlib.Z_SYNC_FLUSH)
            writer.write(b"%x\r\n%s\r\n" % (len(packed), packed))
            assert await received.get() == word
        packed = packer.flush()
        writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(packed), packed))
        return True

    async def story() -> list[bytes]:
        pieces = []
        async with server(tmp_path, answer) as channel, channel.send(POST) as response:
            async for chunk in response.chunks():
                pieces.append(chunk)
                received.put_nowait(chunk)
        return pieces

    assert asyncio.run(story()) == [b"one", b"two", b"three"]


@pytest.mark.parametrize("body", [b'{"plain": 1}', gzip.compress(b"words " * 100, mtime=0)[:-9]])
def test_compressed_data_that_are_damaged_are_the_engines_error(tmp_path: Path, body: bytes) -> None:
    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(whole(body, b"Content-Encoding: gzip\r\n"))
        return True

    async def story() -> None:
        async with server(tmp_path, answer) as channel:
            with pytest.raises(EngineError, match=r"^expert 'french' sent an answer that cannot be decompressed\n"):
                await body_of(channel)

    asyncio.run(story())


def test_a_header_of_an_answer_may_have_sixty_thousand_bytes(tmp_path: Path) -> None:
    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(whole(b"yes", b"Content-Security-Policy: %s\r\n" % (b"a" * int(request.rpartition(b"=")[2]))))
        return True

    async def story() -> None:
        async with server(tmp_path, answer) as channel:
            long = EngineRequest("POST", "/x", (), b"length=60000")
            async with channel.send(long) as response:
                assert len(dict(response.headers)["Content-Security-Policy"]) == 60_000
                assert b"".join([chunk async for chunk in response.chunks()]) == b"yes"
            with pytest.raises(EngineError, match=r"^expert 'french' did not answer with valid HTTP\n"):
                await body_of(channel, EngineRequest("POST", "/x", (), b"length=70000"))

    asyncio.run(story())


@pytest.mark.parametrize("value", ["s3cret\nX-B: 1", "s3cret\x00"])
def test_what_the_client_refuses_to_send_is_an_error_of_this_engine(tmp_path: Path, value: str) -> None:
    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        raise AssertionError("it was sent")

    async def story() -> None:
        async with server(tmp_path, answer) as channel:
            with pytest.raises(
                EngineError, match=r"^expert 'french' cannot be reached: its address or a request header"
            ) as told:
                await body_of(channel, EngineRequest("POST", "/x", (("X-A", value),), b"{}"))
            assert not isinstance(told.value, EngineDied)
            assert "s3cret" not in str(told.value)

    asyncio.run(story())


@pytest.mark.parametrize("address", ["http://", "http://a:b", "http://a..b", "ftp://a", f"http://{'a' * 64}.invalid"])
def test_an_address_that_the_client_cannot_use_is_an_error_of_this_engine(address: str) -> None:
    async def story() -> None:
        channel = HttpChannel("french", address, reuse=ELSEWHERE)
        with pytest.raises(EngineError, match=r"^expert 'french' (cannot be reached|could not be reached)"):
            await body_of(channel)
        await channel.close()

    asyncio.run(story())


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


METHODS = ("POST", "GET", "PUT", "DELETE")  # some clients send what they take to be idempotent again


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reuse", [None, ELSEWHERE])
def test_a_request_that_is_read_and_not_answered_is_sent_once(tmp_path: Path, method: str, reuse: Reuse | None) -> None:
    requests: list[bytes] = []

    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        requests.append(request)
        if len(requests) > 1:
            return False
        writer.write(whole(b"yes"))
        return True

    async def story() -> None:
        async with server(tmp_path, answer, reuse) as channel:
            assert await body_of(channel) == b"yes"
            with pytest.raises(EngineDied if reuse is None else ConnectionLost):
                await body_of(channel, EngineRequest(method, "/x", (), b""))

    asyncio.run(story())
    assert len(requests) == 2


@pytest.mark.parametrize("is_reset", [False, True])
def test_the_loss_of_a_connection_used_before_is_no_death_of_a_server_elsewhere(tmp_path: Path, is_reset: bool) -> None:
    requests: list[bytes] = []

    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        requests.append(request)
        if len(requests) != 2:
            writer.write(whole(b"yes"))
            return True
        if is_reset:
            writer.transport.abort()
        return False

    async def story() -> None:
        async with server(tmp_path, answer, ELSEWHERE) as channel:
            assert await body_of(channel) == b"yes"
            with pytest.raises(ConnectionLost) as lost:
                await body_of(channel)
            assert not isinstance(lost.value, EngineDied)
            assert lost.value.sentence == (
                "expert 'french' closed the connection without an answer; the request was not sent again"
            )
            assert (lost.value.status, lost.value.code, lost.value.should_retry) == (502, "connection_lost", True)
            assert await body_of(channel) == b"yes", "the next one has a connection of its own"

    asyncio.run(story())
    assert len(requests) == 3


@pytest.mark.parametrize("begun", [b"H", b"HTTP/1.1 200 OK\r\nContent-Len"])
def test_an_answer_that_has_begun_is_broken_off_on_whatever_connection(tmp_path: Path, begun: bytes) -> None:
    requests: list[bytes] = []

    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        requests.append(request)
        writer.write(whole(b"yes") if len(requests) == 1 else begun)
        return len(requests) == 1

    async def story() -> None:
        async with server(tmp_path, answer, ELSEWHERE) as channel:
            assert await body_of(channel) == b"yes"
            with pytest.raises(EngineDied, match=r"^expert 'french' broke off its answer\n"):
                await body_of(channel)

    asyncio.run(story())
    assert len(requests) == 2


@pytest.mark.parametrize("reuse", [None, ELSEWHERE])
@pytest.mark.parametrize("method", METHODS)
def test_a_new_connection_that_breaks_is_a_dead_engine_and_nothing_is_sent_again(
    tmp_path: Path, reuse: Reuse | None, method: str
) -> None:
    requests: list[bytes] = []

    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        requests.append(request)
        return False

    async def story() -> None:
        async with server(tmp_path, answer, reuse) as channel:
            with pytest.raises(EngineDied, match="'french' did not take the request") as died:
                await body_of(channel, EngineRequest(method, "/x", (), b""))
            assert not isinstance(died.value, EngineUnreachable)

    asyncio.run(story())
    assert len(requests) == 1


def test_a_connection_that_has_been_idle_for_too_long_is_not_used_again(tmp_path: Path) -> None:
    connections: set[asyncio.StreamWriter] = set()

    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        connections.add(writer)
        writer.write(whole(b"yes"))
        return True

    async def story(reuse: Reuse) -> int:
        connections.clear()
        async with server(tmp_path, answer, reuse) as channel:
            for _ in range(3):
                assert await body_of(channel) == b"yes"
        return len(connections)

    assert asyncio.run(story(Reuse(0.0, ConnectionLost))) == 3
    assert asyncio.run(story(Reuse(600.0, ConnectionLost))) == 1
    assert ELSEWHERE.idle_seconds == 4.0, "the shortest keep-alive that servers usually have is five seconds"


@pytest.mark.parametrize("is_short", [True, False])
def test_a_connection_is_not_used_again_after_a_failure_of_its_server(tmp_path: Path, is_short: bool) -> None:
    """An application that failed has its connection closed by uvicorn, a moment after the answer and without a word."""
    connections: list[asyncio.StreamWriter] = []

    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        connections.append(writer)
        if len(connections) == 2:
            writer.write(b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n" + (b"no" if is_short else b"n"))
            await writer.drain()
            writer.write(b"" if is_short else b"o")
        else:
            writer.write(whole(b"yes"))
        return True

    async def story() -> None:
        async with server(tmp_path, answer) as channel:
            for _ in range(4):
                await body_of(channel)

    asyncio.run(story())
    first, second, third, fourth = connections
    assert first is second is not third is fourth


STRAY = whole(b"no")


@pytest.mark.parametrize(("parting", "ends"), [(b"", True), (STRAY, False), (STRAY, True), (b"HTTP/1.1 408", True)])
@pytest.mark.parametrize("is_noticed", [False, True])
def test_a_connection_that_was_closed_or_spoke_while_idle_is_not_used_again(
    parting: bytes, ends: bool, is_noticed: bool
) -> None:
    """Whether the client's loop has noticed it by then or not."""

    async def story(idle: Idle) -> None:
        channel = HttpChannel("french", f"http://{ELSEWHERE_HOST}:{idle.port}", reuse=ELSEWHERE)
        request = EngineRequest("POST", "/x", (), b"{}")
        assert await body_of(channel, request) == b"yes"
        idle.may_part.set()
        if is_noticed:
            assert await asyncio.to_thread(idle.has_parted.wait, 60)
            await asyncio.sleep(0)
        else:
            assert idle.has_parted.wait(60), "the loop stands still meanwhile, on purpose"
        assert await body_of(channel, request) == b"yes"
        await channel.close()

    with idle_server(parting, ends) as idle:
        asyncio.run(story(idle))
        assert (idle.requests, idle.connections) == (2, 2)


def test_a_refused_connection_is_a_dead_engine(tmp_path: Path) -> None:
    async def story() -> None:
        channel = HttpChannel("french", "http://engine", tmp_path / "nothing.sock")
        with pytest.raises(EngineUnreachable, match=r"^expert 'french' could not be reached\nhttp://engine: ") as gone:
            await body_of(channel)
        assert isinstance(gone.value, EngineDied)
        await channel.close()

    asyncio.run(story())


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "https://127.0.0.1:{port}", "http://[::1]:1"])
def test_an_address_without_a_connection_is_unreachable(tmp_path: Path, address: str) -> None:
    """Refused, unknown, or no TLS behind it: nothing has seen the request."""
    heard: list[bytes] = []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100))
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def story() -> None:
        listener = await asyncio.start_server(converse, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        channel = HttpChannel("french", address.format(port=port), reuse=ELSEWHERE)
        with pytest.raises(EngineUnreachable, match=r"^expert 'french' could not be reached\n"):
            await body_of(channel)
        await channel.close()
        listener.close()
        await listener.wait_closed()

    asyncio.run(story())
    assert not any(b"POST" in words for words in heard)


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


@pytest.mark.parametrize("is_reset", [False, True])
def test_a_body_that_ends_with_its_connection_is_whole_unless_that_was_reset(tmp_path: Path, is_reset: bool) -> None:
    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\none")
        if is_reset:
            await seen.wait()
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        return False

    async def story() -> list[bytes]:
        async with server(tmp_path, answer, ELSEWHERE) as channel, channel.send(POST) as response:
            read = []
            async for chunk in response.chunks():
                read.append(chunk)
                seen.set()
            return read

    seen = asyncio.Event()
    if not is_reset:
        assert b"".join(asyncio.run(story())) == b"one"
        return
    with pytest.raises(EngineDied, match=r"^expert 'french' broke off its answer\n"):
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


@pytest.mark.parametrize(
    ("said", "told"),
    [(b"[" * 100_000, "without JSON"), (b" " * (2 << 20), "with more than 1,048,576 bytes")],
)
def test_an_answer_to_a_control_call_is_bounded(tmp_path: Path, said: bytes, told: str) -> None:
    async def answer(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(whole(said))
        return False

    async def story() -> None:
        async with server(tmp_path, answer) as channel:
            with pytest.raises(EngineError, match=f"engine 'french' answered POST /wake_up {told}"):
                await channel.ask("POST", "/wake_up", DEADLINE_SECONDS)

    asyncio.run(story())


def test_a_body_in_very_small_chunks_leaves_other_tasks_their_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk of one byte takes aiohttp as long as a large one; a read of the socket may have forty thousand."""
    monkeypatch.setattr(f"{__name__}.ELSEWHERE_HOST", "localhost")  # a name: aiohttp's client
    count = 40_000

    async def answer(said: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * count + b"0\r\n\r\n")
        return True

    async def story() -> None:
        turns = [0]

        async def others() -> None:
            while True:
                turns[0] += 1
                await asyncio.sleep(0)

        async with server(tmp_path, answer, ELSEWHERE) as channel:
            other = asyncio.create_task(others())
            async with channel.send(EngineRequest("GET", "/v1/x", (), b"")) as response:
                pieces, after = [], []
                async for piece in response.chunks():
                    pieces.append(len(piece))
                    after.append(turns[0])
            other.cancel()
        assert sum(pieces) == count
        assert max(pieces) <= 5_000
        assert len(set(after)) == len(after), "each piece came in a turn of its own"

    asyncio.run(story())
