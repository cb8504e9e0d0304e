"""Where the server listens: taken before anything begins, refused in a sentence; what it logs goes where all goes.

Its routes are built before the first request.
"""

import json
import logging
import socket
import warnings
from contextlib import closing
from types import SimpleNamespace

import pytest

from coe_server.errors import CoeError
from coe_server.http.server import Listener, taken_address
from tests.http.server import running_server
from tests.http.test_api import simulated


def test_every_address_of_a_host_is_taken():
    sockets = taken_address("localhost", 0)
    try:
        known = {address[0] for *_, address in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
        assert "127.0.0.1" in {one.getsockname()[0] for one in sockets} <= known
    finally:
        for one in sockets:
            one.close()


def test_an_address_in_use_is_refused_and_not_taken_in_part():
    with closing(socket.create_server(("127.0.0.1", 0))) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(CoeError, match=rf"cannot listen on localhost:{port}: address already in use; give another"):
            taken_address("localhost", port)
    for one in taken_address("localhost", port):
        one.close()


@pytest.mark.parametrize("host", ["not a host", "a..b", "192.0.2.1"])  # the last one belongs to no machine: RFC 5737
def test_a_host_that_is_not_this_machine_is_refused_with_a_way_out(host):
    with pytest.raises(CoeError, match=r"cannot listen on .*:0: .*; http\.host is an address or a name of this"):
        taken_address(host, 0)


def test_the_lines_of_the_web_server_are_lines_of_our_log(monkeypatch, caplog):
    for name in ("uvicorn", "uvicorn.error"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    Listener(SimpleNamespace(rejections=SimpleNamespace(count=print)), "127.0.0.1", 0, lambda: None)
    logging.getLogger("uvicorn.error").error("Cancel 1 running task(s)")
    assert caplog.messages == ["Cancel 1 running task(s)"]
    assert logging.getLogger("uvicorn").handlers == []


def test_no_request_builds_routes(monkeypatch):
    """FastAPI builds a route under `catch_warnings`: beside other threads it may leave its filters to them, or lose
    its own, and what it meant to ignore becomes an answer of 500."""
    entered = []

    class Noted(warnings.catch_warnings):
        def __enter__(self):
            entered.append(self)
            return super().__enter__()

    with running_server({"a": simulated("a")}) as server:
        monkeypatch.setattr(warnings, "catch_warnings", Noted)
        statuses = [server.ask("GET", path)[0] for path in ("/admin/experts", "/metrics", "/v1/unknown")]
    assert (statuses, entered) == ([200, 200, 404], [])


def test_every_route_knows_its_whole_path():
    """What a request is counted under."""
    with running_server({"a": simulated("a")}) as server:
        paths = json.loads(server.ask("GET", "/openapi.json")[2])["paths"]
        for path in paths:
            assert server.ask("PATCH", path)[0] == 405, path
        counted = server.ask("GET", "/metrics")[2].decode().splitlines()
    lines = {f'coe_requests_total{{endpoint="{path}",status="405"}} 1.0' for path in paths}
    assert lines - set(counted) == set()
