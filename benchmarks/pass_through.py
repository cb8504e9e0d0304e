"""The floor of a Python gateway's cost: uvicorn in front, aiohttp's client behind, every byte passed through.

    python -m benchmarks.pass_through PORT UPSTREAM_URL

It reads no body, chooses nothing, counts nothing and rejects nothing. `benchmarks/gateway.py` compares with it.
"""

from __future__ import annotations

import sys

import aiohttp
import uvicorn
from starlette.types import Receive, Scope, Send

_NOT_PASSED_ON = frozenset((b"host", b"content-length", b"connection", b"transfer-encoding", b"keep-alive"))


class PassThrough:
    """An ASGI application: one request in, the same request to the upstream, its answer back piece by piece."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._start_and_stop(receive, send)
            return
        assert self._session is not None, "the lifespan has begun"
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"] if k not in _NOT_PASSED_ON}
        url = self._upstream + scope["path"]
        async with self._session.request(scope["method"], url, data=body or None, headers=headers) as answer:
            told = [(k.lower(), v) for k, v in answer.raw_headers if k.lower() not in _NOT_PASSED_ON]
            await send({"type": "http.response.start", "status": answer.status, "headers": told})
            async for chunk in answer.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start_and_stop(self, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] == "lifespan.startup":
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
            await send({"type": "lifespan.startup.complete"})
        assert self._session is not None, f"{message['type']} before the start"
        await self._session.close()
        await send({"type": "lifespan.shutdown.complete"})


def main() -> None:
    port, upstream = sys.argv[1:]
    uvicorn.run(
        PassThrough(upstream), host="127.0.0.1", port=int(port), log_level="warning", access_log=False, ws="none"
    )


if __name__ == "__main__":
    main()
