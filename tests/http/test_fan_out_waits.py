"""A request that asks for several answers waits until the engine has room for all of them, and holds that room."""

import asyncio
import json
import threading
from contextlib import asynccontextmanager

import pytest

from coe_server.cache.policy import Limits
from coe_server.engines.simulated import SimulatedEngine
from tests.http.server import running_server
from tests.patience import until

MESSAGES = [{"role": "user", "content": "hello"}]


QUICK = {
    "start_seconds": 0.01,
    "wake_seconds": 0.01,
    "sleep_seconds": 0.01,
    "ttft_seconds": 0.001,
    "tokens_per_second": 2000,
}


class Held(SimulatedEngine):
    """Answers once the gate is open."""

    def __init__(self, gate):
        super().__init__("math", weights_bytes=2**20, **QUICK)
        self.gate = gate

    @asynccontextmanager
    async def send(self, request):
        await asyncio.to_thread(self.gate.wait)
        async with super().send(request) as answer:
            yield answer


def held(server):
    (expert,) = server.cache.status()
    return expert.leases, expert.queued


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES, "n": 3}),
        ("/v1/completions", {"prompt": ["a", "b", "c"]}),
        ("/v1/completions", {"prompt": ["x" * 40_000] * 3}),  # read aside
    ],
)
def test_the_server_counts_answers_and_not_requests(path, fields):
    gate, limits = threading.Event(), Limits(max_concurrency=4)
    with running_server({"math": Held(gate)}, limits=limits, max_body_bytes=10**6) as server:
        asked = [
            threading.Thread(target=server.ask, args=("POST", path, json.dumps({"model": "math", **fields})))
            for _ in range(2)
        ]
        for thread in asked:
            thread.start()
        try:
            until(lambda: held(server) == (3, 3))
        finally:
            gate.set()
        for thread in asked:
            thread.join()
        until(lambda: held(server) == (0, 0))
