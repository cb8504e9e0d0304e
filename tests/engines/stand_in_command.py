"""A program that serves an OpenAI-like API on a port or socket, holds real memory, and misbehaves on request.

stand_in_command.py --socket PATH | --port PORT [--key KEY] [--megabytes N] [--fault FAULT] [--name NAME]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import os
import signal
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests import small_web as web

OPTIONS = argparse.ArgumentParser()
for option in ("--socket", "--key", "--fault", "--name"):
    OPTIONS.add_argument(option, default="")
OPTIONS.add_argument("--port", type=int, default=0)
OPTIONS.add_argument("--megabytes", type=int, default=1)


def main() -> None:
    asked = OPTIONS.parse_args()
    if asked.fault == "dies":
        sys.exit("RuntimeError: these weights are not mine")
    if asked.fault == "forks away" and os.fork():
        os._exit(0)  # the child continues to serve without a parent
    asyncio.run(StandIn(asked).serve())


class StandIn:
    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.weights = mmap.mmap(-1, asked.megabytes << 20)
        self.weights[:] = b"w" * len(self.weights)
        self.answer = "yes"

    async def serve(self) -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            ignored = self.asked.fault == "ignores SIGTERM" and number == signal.SIGTERM
            loop.add_signal_handler(number, (lambda: None) if ignored else stopping.set)
        app = web.Application(middlewares=[self.check_key])
        app.add_routes(
            [
                web.get("/health", self.health),
                web.post("/sleep", self.move),
                web.post("/wake", self.move),
                web.post("/v1/completions", self.completions),
                web.post("/v1/chat/completions", self.chat),
                web.get("/environment", self.environment),
            ]
        )
        runner = web.AppRunner(app)
        await runner.setup()
        if self.asked.socket:
            site: web.BaseSite = web.UnixSite(runner, self.asked.socket)
        else:
            address = "0.0.0.0" if self.asked.fault == "listens everywhere" else "127.0.0.1"
            site = web.SockSite(runner, socket.create_server((address, self.asked.port)))
        await site.start()
        print("stand-in is up", flush=True)  # noqa: T201  goes to the engine's log
        await stopping.wait()
        print("stand-in ends by itself", flush=True)  # noqa: T201  goes to the engine's log
        await runner.cleanup()

    @web.middleware
    async def check_key(self, request: web.Request, handler: web.Handler) -> web.StreamResponse:  # type: ignore[name-defined]
        if self.asked.key and request.headers.get("Authorization") != f"Bearer {self.asked.key}":
            return web.json_response({"error": {"message": "no key"}}, status=401)
        response: web.StreamResponse = await handler(request)
        return response

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def environment(self, request: web.Request) -> web.Response:
        return web.json_response({"words": sys.argv[1:], "environment": dict(os.environ)})

    async def move(self, request: web.Request) -> web.Response:
        if request.path == "/wake" and self.asked.fault == "wakes up wrong":
            self.answer = "no"
        return web.Response(status=500 if self.asked.fault == "cannot sleep" else 200)

    async def completions(self, request: web.Request) -> web.Response:
        return web.json_response({"choices": [{"text": self.answer}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        words = [*asked["messages"][-1]["content"].split(), self.asked.name]
        if not asked.get("stream"):
            message = {"role": "assistant", "content": " ".join(words)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            answer = {"object": "chat.completion", "model": asked["model"], "choices": [choice]}
            return web.json_response(answer, headers={"Access-Control-Allow-Origin": "*"})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in words:
            chunk = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": word}}]}
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


if __name__ == "__main__":
    main()
