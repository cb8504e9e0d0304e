"""A timing-accurate engine without a model or a process: a server can be load- and fault-tested without weights."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from coe_server.engines.engine import EngineRequest, EngineResponse, Footprint
from coe_server.errors import EngineDied

_CHAT = "/v1/chat/completions"


class SimulatedEngine:
    """An `Engine` (see `engine.py`) that names itself and repeats the last user message, at the stated speed."""

    def __init__(
        self,
        name: str,
        *,
        weights_bytes: int,
        start_seconds: float,
        wake_seconds: float,
        sleep_seconds: float,
        ttft_seconds: float,
        tokens_per_second: float,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._name = name
        self._weights_bytes = weights_bytes
        self._start_seconds = start_seconds
        self._wake_seconds = wake_seconds
        self._sleep_seconds = sleep_seconds
        self._ttft_seconds = ttft_seconds
        self._seconds_per_token = 1 / tokens_per_second
        self._pause = pause
        self._running = False
        self._awake = asyncio.Event()
        self._died = asyncio.Event()
        self._death = ""

    @property
    def footprint(self) -> Footprint:
        return Footprint(device_awake=self._weights_bytes, host_image=self._weights_bytes)

    async def start(self) -> None:
        await self._pause(self._start_seconds)
        self._running = True
        self._died.clear()
        self._awake.set()

    async def sleep(self) -> None:
        self._require_life()
        self._awake.clear()
        await self._pause(self._sleep_seconds)

    async def wake(self) -> None:
        self._require_life()
        await self._pause(self._wake_seconds)
        self._awake.set()

    async def stop(self) -> None:
        self._running = False
        self._awake.clear()

    async def died(self) -> str:
        await self._died.wait()
        return self._death

    def kill(self, reason: str) -> None:
        """What SIGKILL does to a real engine; streams break where they are."""
        self._running = False
        self._death = f"engine '{self._name}' {reason}"
        self._awake.set()  # whoever waits for it finds out
        self._died.set()

    @asynccontextmanager
    async def send(self, request: EngineRequest) -> AsyncIterator[EngineResponse]:
        self._require_life()
        await self._awake.wait()  # as vLLM does: a request to a sleeping engine waits
        self._require_life()
        yield self._answer(request)

    def _answer(self, request: EngineRequest) -> _SimulatedResponse:
        if (request.method, request.path) != ("POST", _CHAT):
            return _complaint(404, f"a simulated engine only knows POST {_CHAT}")
        try:
            body = json.loads(request.body)
            question = _last_user_message(body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return _complaint(400, f"not a chat completion request: {error!r}")
        answer = _Answer(self._name, question, body)
        if body.get("stream"):
            return _SimulatedResponse(200, "text/event-stream; charset=utf-8", self._stream(answer))
        return _SimulatedResponse(200, "application/json", self._whole(answer))

    async def _stream(self, answer: _Answer) -> AsyncIterator[bytes]:
        async for token in self._timed(answer.tokens):
            yield _event(answer.chunk({"role": "assistant", "content": ""} if token is None else {"content": token}))
        yield _event(answer.chunk({}, answer.finish_reason))
        if answer.with_usage:
            yield _event(answer.head("chat.completion.chunk") | {"choices": [], "usage": answer.usage})
        yield b"data: [DONE]\n\n"

    async def _whole(self, answer: _Answer) -> AsyncIterator[bytes]:
        content = "".join([token async for token in self._timed(answer.tokens) if token is not None])
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": content},
            "finish_reason": answer.finish_reason,
        }
        body = answer.head("chat.completion") | {"choices": [choice], "usage": answer.usage}
        yield json.dumps(body).encode()

    async def _timed(self, tokens: list[str]) -> AsyncIterator[str | None]:
        """None at once, then the tokens at the stated speed."""
        yield None
        for position, token in enumerate(tokens):
            await self._pause(self._seconds_per_token if position else self._ttft_seconds)
            self._require_life()
            yield token

    def _require_life(self) -> None:
        if not self._running:
            raise EngineDied(self._death or f"engine '{self._name}' is not running")


class _Answer:
    """The deterministic text for one question, cut at the caller's `max_tokens`; one word is one token."""

    def __init__(self, name: str, question: str, body: dict[str, Any]) -> None:
        words = f"{name} answers: {question}".split()
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or len(words)
        self.tokens = [word if position == 0 else f" {word}" for position, word in enumerate(words[:limit])]
        self.finish_reason = "stop" if limit >= len(words) else "length"
        self.with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        prompt_tokens = max(1, len(question.split()))
        self.usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(self.tokens),
            "total_tokens": prompt_tokens + len(self.tokens),
        }
        self._name = name
        self._created = int(time.time())

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-simulated", "object": kind, "created": self._created, "model": self._name}

    def chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return self.head("chat.completion.chunk") | {"choices": [choice]}


class _SimulatedResponse:
    """An `EngineResponse` made here."""

    def __init__(self, status: int, content_type: str, body: AsyncIterator[bytes]) -> None:
        self.status = status
        self.headers = (("content-type", content_type),)
        self._body = body

    def chunks(self) -> AsyncIterator[bytes]:
        return self._body


def _last_user_message(body: dict[str, Any]) -> str:
    content = [message for message in body["messages"] if message["role"] == "user"][-1:]
    if not content:
        return ""
    text = content[0]["content"]
    return text if isinstance(text, str) else " ".join(part["text"] for part in text if part["type"] == "text")


def _complaint(status: int, message: str) -> _SimulatedResponse:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}

    async def body() -> AsyncIterator[bytes]:
        yield json.dumps({"error": error}).encode()

    return _SimulatedResponse(status, "application/json", body())


def _event(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"
