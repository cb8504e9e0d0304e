"""An OpenAI-compatible server of bad manners, for tests under load: of its answers four in five are good.

    python benchmarks/bad_manners.py PORT

What it does with a request is drawn by the request's own text, so a run can be repeated. `GET /counts` tells how many
requests it read, and how many texts came more than once: each is to be sent once.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from aiohttp import web

CODE = "bad_manners"  # of every error that it makes in OpenAI's shape
GOOD = 60  # of its answers are good for each bad one below: what makes requests stay away is rare enough to go on
BOMB = gzip.compress(bytes(100 << 20))
_MOST_UNSENT_BYTES = 256 * 1024

Behaviour = Callable[["Manners", web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class Manners:
    """Counts what it reads, and answers as it is drawn."""

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text = str(body["messages"][-1]["content"])
        self.read[text] += 1
        drawn = random.Random(text).choice([good] * GOOD + BAD)
        self.done[drawn.__name__] += 1
        return await drawn(self, request, body)

    async def counts(self, _: web.Request) -> web.Response:
        twice = [text for text, times in self.read.items() if times > 1]
        return web.json_response({"read": self.read.total(), "twice": twice, "done": self.done})


def _said(body: dict[str, Any]) -> str:
    return f"{body['model']} heard: {body['messages'][-1]['content']}"


def _whole(body: dict[str, Any], **choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": _said(body)}
    choices = [{"index": 0, "message": message, "finish_reason": "stop", **choice}]
    return {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": choices}


def _event(body: dict[str, Any], finish: str | None = None, **delta: Any) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
    return f"data: {json.dumps({**head, 'choices': choices})}\n\n".encode()


def _events(body: dict[str, Any]) -> list[bytes]:
    words = [_event(body, content=word + " ") for word in _said(body).split(" ")[:-1]]
    last = _event(body, content=_said(body).split(" ")[-1])
    return [_event(body, role="assistant", content=""), *words, last, _event(body, "stop"), b"data: [DONE]\n\n"]


def _error(message: str, code: object = CODE) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error", "param": None, "code": code}}


async def _stream(request: web.Request, events: list[bytes], **headers: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream", **headers})
    await response.prepare(request)
    with suppress(ConnectionError):
        for event in events:
            await response.write(event)
            await asyncio.sleep(0.005)
        await response.write_eof()
    return response


async def good(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    if body.get("stream"):
        return await _stream(request, _events(body))
    return web.json_response(_whole(body))


async def limited(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response(_error("slow down"), status=429, headers={"retry-after": "1"})


async def overloaded(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.Response(text="<html>busy</html>", status=503, content_type="text/html")


async def unpaid(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response(_error("Insufficient Balance"), status=402)


async def broken(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response(_error("oops"), status=500)


async def moved(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.Response(status=307, headers={"location": "http://127.0.0.1:1/"})


async def page(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.Response(text="<!doctype html><html>Sign in</html>", content_type="text/html")


async def nothing(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await _stream(request, []) if body.get("stream") else web.Response(content_type="application/json")


async def error_under_200(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response(_error("Provider returned error", 502))


async def failed_choice(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response(_whole(body, finish_reason="error"))


async def error_event(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await _stream(request, [b": PROCESSING\n\n", f"data: {json.dumps(_error('limit', 429))}\n\n".encode()])


async def named_error_event(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await _stream(request, [b'event: error\ndata: {"message": "boom"}\n\n'])


async def late_error_event(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await _stream(request, [*_events(body)[:3], f"data: {json.dumps(_error('boom', 502))}\n\n".encode()])


async def compressed(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """A right answer, in a coding that was not asked for."""
    if body.get("stream"):
        return await _stream(request, [gzip.compress(b"".join(_events(body)))], **{"content-encoding": "gzip"})
    coded = gzip.compress(json.dumps(_whole(body)).encode())
    return web.Response(body=coded, headers={"content-encoding": "gzip", "content-type": "application/json"})


async def closed(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """It has read the request, and closes in the place of an answer."""
    if request.transport is not None:
        request.transport.abort()
    raise web.HTTPBadGateway


async def cut(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    with suppress(ConnectionError):
        await response.write(_events(body)[1])
        if request.transport is not None:
            request.transport.abort()
    return response


async def long_header(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """A right answer with a header of nine kilobytes."""
    return web.json_response(_whole(body), headers={"content-security-policy": "x" * 9_000})


async def _without_end(request: web.Request, piece: bytes) -> web.StreamResponse:
    """Raw bytes in the place of an answer, as fast as they are taken, until the other end hangs up."""
    transport = request.transport
    while transport is not None and not transport.is_closing():
        if transport.get_write_buffer_size() < _MOST_UNSENT_BYTES:
            transport.write(piece)
        await asyncio.sleep(0.001)
    raise web.HTTPBadGateway


async def endless_hints(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await _without_end(request, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 1_000)


async def endless_comments(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await _stream_without_end(request, b":\n\n" * 20_000)


async def endless_event(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await _stream_without_end(request, b": an event whose end never comes")


async def _stream_without_end(request: web.Request, piece: bytes) -> web.StreamResponse:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    if request.transport is not None:
        request.transport.write(head)
    return await _without_end(request, piece)


async def switched(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    head = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
    return await _without_end(request, head)


async def bomb(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """A hundred kilobytes that stand for a hundred megabytes, in a coding that was not asked for."""
    return web.Response(body=BOMB, headers={"content-encoding": "gzip", "content-type": "application/json"})


async def deep(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    nested = b"[" * 100_000
    if body.get("stream"):
        return await _stream(request, [b"data: " + nested + b"\n\n"])
    return web.Response(body=nested, content_type="application/json")


async def deep_error(manners: Manners, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.Response(body=b'{"error":' + b"[" * 100_000, status=400, content_type="application/json")


BAD: list[Behaviour] = [
    *(limited, overloaded, unpaid, broken, moved, page, nothing, error_under_200, failed_choice, error_event),
    *(named_error_event, late_error_event, compressed, closed, cut, long_header),
    *(endless_hints, endless_comments, endless_event, switched, bomb, deep, deep_error),
]


def main() -> None:
    logging.getLogger("aiohttp.server").disabled = True  # it closes where an answer is due, and means it
    manners = Manners()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", manners.answer)
    app.router.add_get("/counts", manners.counts)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)


if __name__ == "__main__":
    main()
