"""The head of an answer leaves with the first piece of its body, in one write, and never later than its step."""

import asyncio
import socket

import pytest

from coe_server.http.joined_head import JoinedHead
from tests.http.server import running_server
from tests.http.test_api import simulated
from tests.patience import PATIENCE_SECONDS

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Wire(asyncio.Transport):
    """A transport that keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.written = []
        self.ended = None

    def write(self, data):
        self.written.append(data)

    def is_closing(self):
        return self.ended is not None

    def close(self):
        self.ended = "closed"

    def abort(self):
        self.ended = "aborted"

    def pause_reading(self):
        """Nothing is read."""

    resume_reading = pause_reading


async def after(*pieces, end=None):
    """What was written once this step is over, and once the next one is."""
    wire = Wire()
    joined = JoinedHead(wire, asyncio.get_running_loop())
    for piece in pieces:
        joined.write(piece)
    if end is not None:
        getattr(joined, end)()
    at_once = list(wire.written)
    await asyncio.sleep(0)
    return at_once, wire.written, wire.ended


@pytest.mark.parametrize(
    ("pieces", "at_once", "in_the_end"),
    [
        ((HEAD, b"hello"), [HEAD + b"hello"], [HEAD + b"hello"]),
        ((HEAD, b"hello", b" there"), [HEAD + b"hello", b" there"], [HEAD + b"hello", b" there"]),
        ((HEAD,), [], [HEAD]),
        ((HEAD, b""), [HEAD], [HEAD]),
        ((b"hello",), [b"hello"], [b"hello"]),
        ((HEAD, HEAD), [HEAD + HEAD], [HEAD + HEAD]),
        ((HEAD, b"a" * 2**17), [HEAD, b"a" * 2**17], [HEAD, b"a" * 2**17]),
    ],
    ids=["with a body", "two pieces", "alone", "without a body", "no head", "a body like a head", "a long body"],
)
def test_a_head_is_sent_with_what_follows_it_and_nothing_is_kept(pieces, at_once, in_the_end):
    first, last, _ = asyncio.run(after(*pieces))
    assert (first, last) == (at_once, in_the_end)


def test_a_head_leaves_before_its_connection_is_closed():
    assert asyncio.run(after(HEAD, end="close")) == ([HEAD], [HEAD], "closed")


def test_nothing_follows_an_aborted_connection():
    assert asyncio.run(after(HEAD, end="abort")) == ([], [], "aborted")


def test_an_answer_is_one_write():
    """The first read of an answer has all of it: a second write would wake the client a second time."""
    with running_server({"a": simulated("a")}) as server:
        found = set()
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
                wire.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
                found.add(wire.recv(65536).partition(b"\r\n\r\n")[2][:1])
        assert found == {b"{"}
