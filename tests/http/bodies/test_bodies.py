"""The bodies that requests hold at a time: refused before they are read, counted until the answer has ended."""

import gzip
import json
import socket
import threading
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.policy import Limits
from coe_server.errors import BodiesFull, RateLimited
from coe_server.http.rate_limits import Bodies, BodyLimits
from coe_server.keys import Key, Keyring, hashed
from tests.http.server import running_server
from tests.http.test_api import simulated
from tests.http.test_fan_out_waits import Held, held
from tests.patience import PATIENCE_SECONDS, received_answer, until

ALICE, BOB = (Key(name=name, sha256=hashed(name)) for name in ("alice", "bob"))
RING = Keyring((ALICE, BOB))
SIZES = {"bodies_bytes": 400_000, "max_body_bytes": 50_000}  # of one key: 100,000


def test_a_key_may_hold_a_quarter_and_all_together_no_more_than_there_is():
    bodies = Bodies(lambda: BodyLimits(400, 50))
    one, other = bodies.hold(ALICE), bodies.hold(ALICE)
    one.reach(50)
    other.reach(50)
    with pytest.raises(RateLimited, match=r"key 'alice' is limited to 100 bytes of bodies in progress .*http\.bodies"):
        bodies.hold(ALICE).reach(1)
    everybody = bodies.hold(None)
    everybody.reach(300)
    with pytest.raises(BodiesFull, match=r"hold 400 of 400 bytes of bodies \(http\.bodies\)"):
        bodies.hold(BOB).reach(1)
    for hold in (one, other, everybody, everybody):
        hold.release()
    assert bodies.held_bytes == 0
    bodies.hold(ALICE).reach(100)


def test_a_key_may_always_send_one_body():
    bodies = Bodies(lambda: BodyLimits(100, 60))
    bodies.hold(ALICE).reach(60)
    with pytest.raises(RateLimited):
        bodies.hold(ALICE).reach(1)


@given(st.lists(st.tuples(st.sampled_from([ALICE, BOB, None]), st.lists(st.integers(0, 60), max_size=4)), max_size=20))
def test_what_was_taken_is_given_back(requests):
    bodies, holds = Bodies(lambda: BodyLimits(200, 50)), []
    for key, sizes in requests:
        holds.append(bodies.hold(key))
        for size in sizes:
            try:
                holds[-1].reach(size)
            except (RateLimited, BodiesFull):
                break
            assert bodies.held_bytes <= 200
    for hold in holds:
        hold.release()
    assert bodies.held_bytes == 0
    bodies.hold(ALICE).reach(50)


@pytest.fixture
def server():
    with running_server({"math": simulated("math")}, keyring=RING, on_loopback=False, **SIZES) as running:
        yield running


def chat(size=0, **fields):
    return json.dumps({"model": "math", "messages": [{"role": "user", "content": "x" * size}], **fields}).encode()


def ask(server, name, body=None):
    return server.ask("POST", "/v1/chat/completions", body or chat(), {"authorization": f"Bearer {name}"})


def unfinished(server, name, size, stack):
    """A request with a body of that size of which nothing has come; it is held once the server asks for it."""
    wire = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE_SECONDS))
    request, expects = "POST /v1/chat/completions HTTP/1.1", "Expect: 100-continue"
    head = (request, "Host: localhost", f"Authorization: Bearer {name}", expects)
    wire.sendall("\r\n".join((*head, f"Content-Length: {size}", "\r\n")).encode())
    return wire, wire.recv(65536)


def test_one_keys_unfinished_bodies_leave_room_for_others(server):
    with ExitStack() as stack:
        for _ in range(2):
            assert unfinished(server, "alice", 50_000, stack)[1].startswith(b"HTTP/1.1 100")
        status, headers, raw = ask(server, "alice")
        assert (status, json.loads(raw)["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "key 'alice' is limited to 100,000 bytes of bodies in progress" in json.loads(raw)["error"]["message"]
        assert int(headers["retry-after"]) >= 1
        assert ask(server, "bob")[0] == 200
    until(lambda: ask(server, "alice")[0] == 200)  # they have left


def test_over_the_budget_of_all_a_body_is_refused_unread():
    with running_server({"math": simulated("math")}, bodies_bytes=100_000, max_body_bytes=50_000) as server:
        with ExitStack() as stack:
            for _ in range(2):
                assert unfinished(server, "-", 50_000, stack)[1].startswith(b"HTTP/1.1 100")
            _, answer = unfinished(server, "-", 40_000, stack)
            assert answer.startswith(b"HTTP/1.1 503")  # and not 100: what was announced is not asked for
            assert b"retry-after: 1" in answer.lower()
        until(lambda: ask(server, "-")[0] == 200)


def test_a_body_without_a_length_is_refused_when_it_has_grown_too_large(server):
    with ExitStack() as stack:
        unfinished(server, "alice", 50_000, stack)
        unfinished(server, "alice", 40_000, stack)
        wire = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE_SECONDS))
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer alice\r\n"
        wire.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        wire.sendall(b"2ee0\r\n" + b" " * 12_000 + b"\r\n")
        assert received_answer(wire).startswith(b"HTTP/1.1 429")


def test_a_compressed_body_counts_as_what_it_becomes(server):
    packed = gzip.compress(chat(40_000))
    headers = {"authorization": "Bearer alice", "content-encoding": "gzip"}
    with ExitStack() as stack:
        unfinished(server, "alice", 50_000, stack)
        unfinished(server, "alice", 20_000, stack)
        assert server.ask("POST", "/v1/chat/completions", packed, headers)[0] == 429
        assert server.ask("POST", "/v1/chat/completions", gzip.compress(chat(10)), headers)[0] == 200


def test_a_body_is_held_until_its_answer_has_ended():
    gate, limits = threading.Event(), Limits(max_concurrency=4)
    with running_server({"math": Held(gate)}, keyring=RING, on_loopback=False, limits=limits, **SIZES) as server:
        threads = [threading.Thread(target=ask, args=(server, "alice", chat(49_000))) for _ in range(2)]
        try:
            for thread in threads:
                thread.start()
            until(lambda: held(server) == (2, 0))
            assert ask(server, "alice", chat(10_000))[0] == 429
        finally:
            gate.set()
            for thread in threads:
                thread.join()
        assert ask(server, "alice", chat(10_000))[0] == 200


@pytest.mark.parametrize("path", ["/v1/route", "/v1/embeddings", "/v1/feedback"])
def test_every_endpoint_that_reads_a_body_counts_it(server, path):
    with ExitStack() as stack:
        for _ in range(2):
            unfinished(server, "alice", 50_000, stack)
        assert server.ask("POST", path, chat(), {"authorization": "Bearer alice"})[0] == 429
