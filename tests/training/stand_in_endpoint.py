"""An OpenAI-compatible endpoint on a real socket, in a thread: answers by the test's script and counts requests."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.patience import PATIENCE_SECONDS

Body = dict[str, Any]


@dataclass(frozen=True)
class Says:
    """An answer: a completion, or anything else by `status` and `raw`. A `held` one is sent once it is released."""

    text: str | None = "yes"
    status: int = 200
    raw: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    held: bool = False
    finish_reason: str = "stop"
    logprobs: tuple[float, ...] | None = None


@dataclass
class StandIn:
    """The requests so far: `asked` counts (model, last message) on arrival; `bodies` are the whole ones."""

    script: Callable[[Body, int], Says]
    base_url: str = ""
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    bodies: list[Body] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most_at_once: int = 0
    held: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _at_once: int = 0
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        question = str(body["messages"][-1]["content"])
        self.asked[body["model"], question] += 1
        self.bodies.append(body)
        self.arrivals.append(time.monotonic())
        self.keys.append(request.headers.get("Authorization"))
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            says = self.script(body, self.asked[body["model"], question])
            if says.held:
                self.held.release()
                await self._released.wait()
            await asyncio.sleep(0)
            return _response(says)
        finally:
            self._at_once -= 1

    def models_in_order(self) -> list[str]:
        """The models in order, without repeats in a row."""
        models = [body["model"] for body in self.bodies]
        return [model for position, model in enumerate(models) if position == 0 or models[position - 1] != model]


@contextmanager
def endpoint(script: Callable[[Body, int], Says]) -> Iterator[StandIn]:
    """`script(body, times)` gets a request's body and the number of times that this model got this message."""
    stand_in, loop, ready = StandIn(script), asyncio.new_event_loop(), threading.Event()
    stopping: list[asyncio.Event] = []

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", stand_in.chat)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        stand_in.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        stopping.append(asyncio.Event())
        ready.set()
        await stopping[0].wait()
        stand_in._released.set()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(PATIENCE_SECONDS)
    try:
        yield stand_in
    finally:
        loop.call_soon_threadsafe(stopping[0].set)
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive(), "the stand-in did not stop"
        loop.close()


def _response(says: Says) -> web.Response:
    if says.raw is not None or says.status != 200:
        return web.Response(body=says.raw or b"", status=says.status, headers=says.headers)
    words = len((says.text or "").split())
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": says.text},
        "logprobs": None if says.logprobs is None else {"content": [{"logprob": value} for value in says.logprobs]},
        "finish_reason": says.finish_reason,
    }
    return web.json_response({"choices": [choice], "usage": {"completion_tokens": words}}, headers=says.headers)
