"""An OpenAI-compatible server that misbehaves, for tests under load. About seven answers in ten are right.

    python benchmarks/misbehaving_remote.py PORT

The text of a request seeds the choice of its answer, so a run can be repeated. `GET /counts` returns the number of
requests, the texts that arrived more than once (each must be sent once), and how often each behaviour was chosen.
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

CODE = "misbehaving_remote"  # in every error of OpenAI's shape
GOOD = 60  # weight of the right answer beside 1 for each of `BAD`: few enough errors that the server keeps sending
BOMB = gzip.compress(bytes(100 << 20))
_MOST_UNSENT_BYTES = 256 * 1024

Behaviour = Callable[["MisbehavingRemote", web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class MisbehavingRemote:
    """Counts requests and answers each with a behaviour chosen by its text."""

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


async def good(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    if body.get("stream"):
        return await _stream(request, _events(body))
    return web.json_response(_whole(body))


async def limited(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response(_error("slow down"), status=429, headers={"retry-after": "1"})


async def overloaded(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.Response(text="<html>busy</html>", status=503, content_type="text/html")


async def unpaid(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response(_error("Insufficient Balance"), status=402)


async def broken(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response(_error("oops"), status=500)


async def moved(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.Response(status=307, headers={"location": "http://127.0.0.1:1/"})


async def page(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.Response(text="<!doctype html><html>Sign in</html>", content_type="text/html")


async def nothing(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await _stream(request, []) if body.get("stream") else web.Response(content_type="application/json")


async def error_under_200(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response(_error("Provider returned error", 502))


async def failed_choice(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response(_whole(body, finish_reason="error"))


async def error_event(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await _stream(request, [b": PROCESSING\n\n", f"data: {json.dumps(_error('limit', 429))}\n\n".encode()])


async def named_error_event(
    remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]
) -> web.StreamResponse:
    return await _stream(request, [b'event: error\ndata: {"message": "boom"}\n\n'])


async def late_error_event(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await _stream(request, [*_events(body)[:3], f"data: {json.dumps(_error('boom', 502))}\n\n".encode()])


async def compressed(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """A right answer with a content coding that was not requested."""
    if body.get("stream"):
        return await _stream(request, [gzip.compress(b"".join(_events(body)))], **{"content-encoding": "gzip"})
    coded = gzip.compress(json.dumps(_whole(body)).encode())
    return web.Response(body=coded, headers={"content-encoding": "gzip", "content-type": "application/json"})


async def closed(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Close the connection after the request, without an answer."""
    if request.transport is not None:
        request.transport.abort()
    raise web.HTTPBadGateway


async def cut(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    with suppress(ConnectionError):
        await response.write(_events(body)[1])
        if request.transport is not None:
            request.transport.abort()
    return response


async def long_header(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """A right answer with a header of nine kilobytes."""
    return web.json_response(_whole(body), headers={"content-security-policy": "x" * 9_000})


async def _without_end(request: web.Request, piece: bytes) -> web.StreamResponse:
    """Raw bytes instead of an answer, as fast as they are read, until the client disconnects."""
    transport = request.transport
    while transport is not None and not transport.is_closing():
        if transport.get_write_buffer_size() < _MOST_UNSENT_BYTES:
            transport.write(piece)
        await asyncio.sleep(0.001)
    raise web.HTTPBadGateway


async def endless_hints(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await _without_end(request, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 1_000)


async def endless_comments(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await _stream_without_end(request, b":\n\n" * 20_000)


async def endless_event(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await _stream_without_end(request, b": an event whose end never comes")


async def _stream_without_end(request: web.Request, piece: bytes) -> web.StreamResponse:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    if request.transport is not None:
        request.transport.write(head)
    return await _without_end(request, piece)


async def switched(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    head = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
    return await _without_end(request, head)


async def bomb(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """A decompression bomb: 100 kilobytes that expand to 100 MiB, with a content coding that was not requested."""
    return web.Response(body=BOMB, headers={"content-encoding": "gzip", "content-type": "application/json"})


async def deep(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    nested = b"[" * 100_000
    if body.get("stream"):
        return await _stream(request, [b"data: " + nested + b"\n\n"])
    return web.Response(body=nested, content_type="application/json")


async def deep_error(remote: MisbehavingRemote, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.Response(body=b'{"error":' + b"[" * 100_000, status=400, content_type="application/json")


BAD: list[Behaviour] = [
    *(limited, overloaded, unpaid, broken, moved, page, nothing, error_under_200, failed_choice, error_event),
    *(named_error_event, late_error_event, compressed, closed, cut, long_header),
    *(endless_hints, endless_comments, endless_event, switched, bomb, deep, deep_error),
]


def main() -> None:
    logging.getLogger("aiohttp.server").disabled = True  # connections without an answer are intended here
    remote = MisbehavingRemote()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", remote.answer)
    app.router.add_get("/counts", remote.counts)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)


if __name__ == "__main__":
    main()
