"""The remote engine against a real HTTP server on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import pytest
from aiohttp import web

from coe_server.config.proxies import Proxy
from coe_server.engines.engine import EngineRequest, Footprint
from coe_server.engines.remote import RemoteEngine
from coe_server.errors import ConnectionLost, EngineDied, EngineUnreachable

REQUEST = EngineRequest(
    "POST",
    "/v1/chat/completions",
    (
        *(("Content-Type", "application/json"), ("Accept", "text/event-stream"), ("Accept-Encoding", "gzip")),
        *(("Authorization", "Bearer a-key-for-us"), ("X-Api-Key", "a-key-for-us"), ("Cookie", "a=b")),
        *(("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("Tracestate", "them=1")),
    ),
    b'{"model": "some-model"}',
)


@asynccontextmanager
async def provider() -> AsyncIterator[tuple[str, list[tuple[web.Request, bytes]]]]:
    """A remote OpenAI-compatible server under `/api/v4`; yields its base URL and the requests that it received."""
    seen: list[tuple[web.Request, bytes]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request, await request.read()))
        return web.Response(status=429, text="slow down", headers={"Retry-After": "3"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}/api/v4", seen
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(("key", "authorization"), [("hosted", "Bearer hosted"), (None, None)])
def test_a_request_goes_below_the_base_url_with_our_key_and_never_the_callers(
    key: str | None, authorization: str | None
) -> None:
    async def story() -> None:
        async with provider() as (base_url, seen):
            engine = RemoteEngine("elsewhere", base_url + "/", key)
            await engine.start()
            async with engine.send(REQUEST) as response:
                assert response.status == 429
                assert ("Retry-After", "3") in response.headers
                assert b"".join([chunk async for chunk in response.chunks()]) == b"slow down"
            await engine.stop()
            ((request, body),) = seen
            assert request.path == "/api/v4/chat/completions"
            assert body == REQUEST.body
            assert request.headers.get("Authorization") == authorization
            assert request.headers["Accept"] == "text/event-stream"
            assert request.headers.getall("Accept-Encoding") == ["identity"]  # whatever the caller can read
            assert request.headers["User-Agent"] == f"coe-server/{version('coe-server')}"
            assert not {"X-Api-Key", "Cookie", "Traceparent", "Tracestate"} & set(request.headers)

    asyncio.run(story())


def test_it_takes_no_memory_and_moving_it_does_nothing() -> None:
    async def story() -> None:
        async with provider() as (base_url, _):
            engine = RemoteEngine("elsewhere", base_url, None)
            assert engine.footprint == Footprint(device_awake=0)
            await engine.start()
            await engine.sleep()
            await engine.wake()
            async with engine.send(REQUEST) as response:
                assert response.status == 429
            await engine.stop()
            await engine.stop()
            async with engine.send(REQUEST) as response:
                assert response.status == 429, "its owner may use it again"
            await engine.stop()

    asyncio.run(story())


def test_a_server_that_cannot_be_reached_is_a_dead_engine() -> None:
    async def story() -> None:
        async with provider() as (base_url, _):
            pass
        engine = RemoteEngine("elsewhere", base_url, "hosted")
        with pytest.raises(EngineDied, match=r"^expert 'elsewhere' could not be reached\nhttp:") as caught:
            async with engine.send(REQUEST):
                pass
        assert "hosted" not in str(caught.value)
        await engine.stop()

    asyncio.run(story())


async def asked(engine: RemoteEngine, request: EngineRequest = REQUEST) -> None:
    async with engine.send(request) as response:
        assert response.status == 429


def test_a_configured_header_stands_in_the_place_of_ours_and_of_the_callers() -> None:
    async def story() -> None:
        async with provider() as (base_url, seen):
            headers = {
                "authorization": "Token t",
                "user-agent": "mine",
                "ACCEPT": "a/b",
                "api-key": "k",
                "Cookie": "c=d",
            }
            engine = RemoteEngine("elsewhere", base_url, "hosted", headers)
            await asked(engine)
            await engine.stop()
            ((request, _),) = seen
            for name, value in headers.items():
                assert request.headers.getall(name) == [value]
            assert request.headers.getall("Accept-Encoding") == ["identity"]
            assert request.headers.getall("Content-Type") == ["application/json"]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("behind", "path", "expected"),
    [
        ("?api-version=2024-10-21", "/v1/chat/completions", "/api/v4/chat/completions?api-version=2024-10-21"),
        ("/?api-version=1&x=a%26b", "/v1/chat/completions", "/api/v4/chat/completions?api-version=1&x=a%26b"),
        ("?api-version=1", "/v1/responses/r?stream=true", "/api/v4/responses/r?stream=true&api-version=1"),
        ("/v1?api-version=1", "/v1/chat/completions", "/api/v4/v1/chat/completions?api-version=1"),
        ("/v1?api-version=1", "/tokenize", "/api/v4/tokenize?api-version=1"),
        ("//", "/v1/chat/completions", "/api/v4/chat/completions"),
    ],
)
def test_a_query_of_the_base_url_stands_behind_every_path(behind: str, path: str, expected: str) -> None:
    async def story() -> None:
        async with provider() as (base_url, seen):
            engine = RemoteEngine("elsewhere", base_url + behind, None)
            await asked(engine, EngineRequest("POST", path, (), b"{}"))
            await engine.stop()
            ((request, _),) = seen
            assert request.raw_path == expected

    asyncio.run(story())


def test_an_error_shows_no_query_of_the_base_url() -> None:
    async def story() -> None:
        engine = RemoteEngine("elsewhere", "http://127.0.0.1:1/v1?key=s3cret", None)
        with pytest.raises(EngineUnreachable) as caught:
            await asked(engine)
        assert "s3cret" not in str(caught.value)
        await engine.stop()

    asyncio.run(story())


@pytest.mark.parametrize("host", ["[::1]", "[::1%251]", "127.1", "2130706433"])
def test_an_address_is_reached_in_every_spelling(host: str) -> None:
    async def story() -> None:
        heads: list[bytes] = []

        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            writer.close()

        listener = await asyncio.start_server(converse, "::1" if ":" in host else "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        engine = RemoteEngine("elsewhere", f"http://{host}:{port}/v1", None)
        await asked(engine)
        await engine.stop()
        listener.close()
        await listener.wait_closed()
        assert f"\r\nHost: {host.replace('%251', '')}:{port}\r\n".encode() in heads[0], "without the zone"

    asyncio.run(story())


def test_a_server_that_reads_a_request_and_closes_gets_it_once() -> None:
    heads: list[bytes] = []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                await reader.readexactly(len(REQUEST.whole_body))
                if len(heads) > 1:
                    return
                writer.write(b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\n\r\n")
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async def story() -> None:
        listener = await asyncio.start_server(converse, "127.0.0.1", 0)
        engine = RemoteEngine("elsewhere", f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1", None)
        await asked(engine)
        with pytest.raises(ConnectionLost):
            await asked(engine)
        await engine.stop()
        listener.close()
        await listener.wait_closed()

    asyncio.run(story())
    assert len(heads) == 2


@asynccontextmanager
async def proxy_server(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Answers every request's head, whatever it asks; yields its address and the heads."""
    heads: list[bytes] = []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        writer.close()

    listener = await asyncio.start_server(converse, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", heads
    finally:
        listener.close()
        await listener.wait_closed()


LIMITED = b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\n\r\n"
CREDENTIALS = b"\r\nProxy-Authorization: Basic dXNlcjpww6Rzcw==\r\n"  # user:päss


@pytest.mark.parametrize(("user", "password"), [("", ""), ("user", "p\u00e4ss")])
def test_a_plain_request_goes_to_the_proxy_whole(user: str, password: str) -> None:
    async def story() -> None:
        async with proxy_server(LIMITED) as (address, heads):
            engine = RemoteEngine("a", "http://api.example.invalid/v1", "k", {}, Proxy(address, user, password))
            await asked(engine)
            await engine.stop()
            (head,) = heads
            assert head.startswith(b"POST http://api.example.invalid/v1/chat/completions HTTP/1.1\r\n")
            assert (CREDENTIALS in head) == bool(user)
            assert b"\r\nAuthorization: Bearer k\r\n" in head

    asyncio.run(story())


@pytest.mark.parametrize(("user", "password"), [("", ""), ("user", "p\u00e4ss")])
@pytest.mark.parametrize("status", [b"403 No", b"407 Who", b"502 Bad", b"200 OK"])
def test_a_secure_request_goes_through_a_tunnel_or_not_at_all(user: str, password: str, status: bytes) -> None:
    """A tunnel that is refused, or that leads to no TLS, is a server that cannot be reached; it has seen no request."""

    async def story() -> None:
        async with proxy_server(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % status) as (address, heads):
            engine = RemoteEngine("a", "https://api.example.invalid/v1", "s3cret", {}, Proxy(address, user, password))
            with pytest.raises(EngineUnreachable, match=r"^expert 'a' could not be reached\n") as caught:
                await asked(engine)
            await engine.stop()
            (head,) = heads
            assert head.startswith(b"CONNECT api.example.invalid:443 HTTP/1.1\r\n")
            assert (CREDENTIALS in head) == bool(user)
            assert b"s3cret" not in head
            assert not any(word in str(caught.value) for word in ("s3cret", "p\u00e4ss", "dXNl"))

    asyncio.run(story())


def test_a_proxy_that_is_not_there_is_a_server_that_cannot_be_reached() -> None:
    async def story() -> None:
        for scheme in "http", "https":
            proxy = Proxy("http://127.0.0.1:1", "user", "s3cret")
            engine = RemoteEngine("a", f"{scheme}://api.example.invalid/v1", None, {}, proxy)
            with pytest.raises(EngineUnreachable) as caught:
                await asked(engine)
            assert "s3cret" not in str(caught.value)
            await engine.stop()

    asyncio.run(story())
