"""Heads that are too long or too slow end their own connection and nobody else's."""

import json
import socket

import pytest

from coe_server.http.door.connection import Connection
from tests.http.server import running_server
from tests.http.test_api import simulated


@pytest.fixture(scope="module")
def server():
    with running_server({"a": simulated("a")}) as running:
        yield running


def everything(wire):
    raw = b""
    try:
        while piece := wire.recv(65536):
            raw += piece
    except ConnectionResetError:  # it was closed while we were still sending
        pass
    return raw


def pour(wire, line):
    for number in range(10_000):
        wire.sendall(line % number)


@pytest.mark.parametrize("line", [b"x-%d: " + b"a" * 5000 + b"\r\n", b"%d" + b"a" * 5000], ids=["many", "one endless"])
def test_a_head_without_end_is_refused(server, line):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as wire:
        wire.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-first: ")
        with pytest.raises(ConnectionError):  # not all of it is taken
            pour(wire, line)
    assert server.chat(model="a")[0] == 200


def test_a_long_head_that_is_within_the_limit_is_read(server):
    assert server.ask("GET", "/healthz", headers={f"x-{n}": "a" * 1000 for n in range(50)})[0] == 200


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nhost"], ids=["silent", "half a head"])
def test_a_head_that_does_not_come_is_not_waited_for(server, sent, monkeypatch):
    monkeypatch.setattr(Connection, "head_seconds", 0.3)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as wire:
        wire.sendall(sent)
        answer = everything(wire)
    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_slow"


def test_a_second_request_on_a_connection_has_its_own_time(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as wire:
        for _ in range(3):
            wire.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert wire.recv(4096).startswith(b"HTTP/1.1 200")
