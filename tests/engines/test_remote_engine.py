"""The remote engine against a real HTTP server on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from coe_server.engines.engine import EngineRequest, Footprint
from coe_server.engines.remote import RemoteEngine
from coe_server.errors import EngineDied

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
    """Somebody's OpenAI-compatible server under `/api/v4`; yields its base URL and what it got."""
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
            assert not {"X-Api-Key", "Cookie", "User-Agent", "Traceparent", "Tracestate"} & set(request.headers)

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
