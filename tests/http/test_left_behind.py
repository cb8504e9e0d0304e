"""A request that is over leaves no circle of objects behind: they stay until the collector comes, and cost it time."""

import gc
import json

import pytest

from coe_server.engines.simulated import SimulatedEngine
from coe_server.http.client_stream import ClientDisconnect
from coe_server.http.request_log import RequestLog
from coe_server.http.routed_response import RoutedResponse
from tests.http.server import running_server
from tests.patience import until


@pytest.fixture
def no_collector():
    """No collection, and `gc.get_objects` without what was there before: errors that other tests keep hold requests."""
    gc.collect()
    gc.disable()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("deadline", [{}, {"x-request-timeout": "0.05"}])
@pytest.mark.usefixtures("no_collector")
def test_nothing_of_a_request_is_left_to_the_collector(stream, deadline):
    slow = SimulatedEngine(
        "a", weights_bytes=1, start_seconds=0, wake_seconds=0, sleep_seconds=0, ttft_seconds=0.2, tokens_per_second=1000
    )
    body = json.dumps({"model": "a", "stream": stream, "messages": [{"role": "user", "content": "hello"}]})
    with running_server({"a": slow}) as server:
        for _ in range(3):
            status, _, raw = server.ask("POST", "/v1/chat/completions", body, deadline)
            assert (status, b"deadline_exceeded" in raw) in ([(504, True), (200, True)] if deadline else [(200, False)])
        until(
            lambda: (
                not [one for one in gc.get_objects() if isinstance(one, RequestLog | ClientDisconnect | RoutedResponse)]
            )
        )
