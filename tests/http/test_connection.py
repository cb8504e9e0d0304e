"""Request headers that are too long or too slow end their own connection and no other."""

import asyncio
import json
import socket
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from coe_server.http.connection import MOST_HEADER_BYTES, MOST_HEADERS, MOST_PIPELINED, Connection
from coe_server.http.server import Listener
from tests.http.server import running_server
from tests.http.test_api import simulated
from tests.patience import PATIENCE_SECONDS, received, received_answer


@pytest.fixture(scope="module")
def server():
    with running_server({"a": simulated("a")}) as running:
        yield running


def pour(wire, line):
    for number in range(10_000):
        wire.sendall(line % number)


@pytest.mark.parametrize("line", [b"x-%d: " + b"a" * 5000 + b"\r\n", b"%d" + b"a" * 5000], ids=["many", "one endless"])
def test_a_head_without_end_is_refused(server, line):
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
        wire.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx-first: ")
        with pytest.raises(ConnectionError):  # not all of it is taken
            pour(wire, line)
    assert server.chat(model="a")[0] == 200


def test_a_long_head_that_is_within_the_limit_is_read(server):
    assert server.ask("GET", "/healthz", headers={f"x-{n}": "a" * 1000 for n in range(50)})[0] == 200


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nhost"], ids=["silent", "half a head"])
def test_a_head_that_does_not_come_is_not_waited_for(server, sent, monkeypatch):
    monkeypatch.setattr(Connection, "header_seconds", 0.3)
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
        wire.sendall(sent)
        answer = received(wire)
    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_slow"


def test_requests_that_are_sent_before_an_answer_are_answered_up_to_a_limit(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
        with suppress(ConnectionError):
            wire.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n" * 2000)
        answers = received(wire)
    assert 1 <= answers.count(b"HTTP/1.1 200") <= MOST_PIPELINED + 2
    assert server.ask("GET", "/healthz")[0] == 200


def test_a_few_requests_that_are_sent_before_an_answer_are_all_answered(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
        one = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n"
        wire.sendall((one + b"\r\n") * 9 + one + b"connection: close\r\n\r\n")
        assert received(wire).count(b"HTTP/1.1 200") == 10


def test_a_second_request_on_a_connection_has_its_own_time(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
        for _ in range(3):
            wire.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert received_answer(wire).startswith(b"HTTP/1.1 200")


def head(size_bytes, path=b"/healthz"):
    """A whole head of that length."""
    start = b"GET " + path + b" HTTP/1.1\r\nhost: localhost\r\nx-long: "
    return start + b"a" * (size_bytes - len(start) - 4) + b"\r\n\r\n"


def test_a_head_far_over_the_limit_is_told_so(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
        with suppress(ConnectionError):  # it may be refused before the last of it is sent
            wire.sendall(head(100 * 1024))
        answer = received(wire)
    assert answer.startswith(b"HTTP/1.1 431")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_large"


class Answers:
    """An application that notes what is started, reads it, and answers once `may_answer` is set."""

    def __init__(self):
        self.started = []
        self.pieces = asyncio.Queue()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, scope, receive, send):
        self.started.append(scope["path"])
        more = True
        while more:
            message = await receive()
            self.pieces.put_nowait(message["body"])
            more = message["more_body"]
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def connected(application, config=None):
    """A connection to be given what one read of its socket brings, its transport, and what the client reads."""
    ours, theirs = socket.socketpair()
    config = config or uvicorn.Config(application, log_config=None, access_log=False)
    refused = []

    def accepted():
        return Connection(config, ServerState(), {}, rejected=lambda error: refused.append(error.code))

    transport, connection = await asyncio.get_running_loop().connect_accepted_socket(accepted, theirs)
    application.refused = refused
    answers, writer = await asyncio.open_connection(sock=ours)
    try:
        yield connection, transport, answers
    finally:
        writer.close()
        await writer.wait_closed()
        transport.close()


def statuses(raw):
    return [line.split()[1] for line in raw.split(b"\r\n") if b"HTTP/1.1 " in line]


@pytest.mark.parametrize("path", [b"/healthz", b"/" + b"p" * 40_000], ids=["long header", "long path"])
def test_the_limit_of_a_head_is_exact_even_where_one_read_brings_all_of_it(path):
    async def story():
        application = Answers()
        async with connected(application) as (connection, transport, answers):
            connection.data_received(head(MOST_HEADER_BYTES, path))
            assert (await answers.readexactly(12)) == b"HTTP/1.1 200"
            await answers.readuntil(b"ok")
            assert application.started == [path.decode()]
            connection.data_received(head(MOST_HEADER_BYTES + 1, path))
            assert (await answers.readexactly(12)) == b"HTTP/1.1 431"
            await answers.read()  # and the connection ends
            assert application.started == [path.decode()]
            assert application.refused == ["headers_too_large"]
            assert transport.is_closing()

    asyncio.run(asyncio.wait_for(story(), PATIENCE_SECONDS))


@pytest.mark.parametrize("target", [b"/v1/models/" + b"m" * 70_000, b"/v1/messages?q=" + b"%20" * 30_000])
def test_a_target_over_the_limit_is_told_so_too(server, target):
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
        wire.sendall(b"GET " + target + b" HTTP/1.1\r\nhost: localhost\r\n\r\n")
        answer = received(wire)
    assert answer.startswith(b"HTTP/1.1 431")
    told = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert told.get("type") == ("error" if b"messages" in target else None), "in the shape of its API"


@pytest.mark.parametrize(
    ("sent", "started", "answered"),
    [
        (head(100) + head(100_000) + head(100, b"/never"), ["/healthz"], [b"200", b"431"]),
        (head(100_000) + head(100, b"/never"), [], [b"431"]),
    ],
    ids=["after another", "before another"],
)
def test_a_long_head_among_pipelined_ones_is_refused_in_its_turn(sent, started, answered):
    async def story():
        application = Answers()
        async with connected(application) as (connection, _transport, answers):
            connection.data_received(sent)
            assert statuses(await answers.read()) == answered
            assert application.started == started
            assert application.refused == ["headers_too_large"]

    asyncio.run(asyncio.wait_for(story(), PATIENCE_SECONDS))


def test_an_endless_head_behind_a_request_in_progress_does_not_break_into_its_answer():
    async def story():
        application = Answers()
        application.may_answer.clear()
        async with connected(application) as (connection, transport, answers):
            connection.data_received(head(100))
            await application.pieces.get()
            connection.data_received(head(100_000)[:-2])
            connection.data_received(b"x-more: " + b"a" * 100_000)
            assert not transport.is_reading()
            assert application.refused == ["headers_too_large"]
            application.may_answer.set()
            answer = await answers.read()
            assert statuses(answer) == [b"200"]
            assert answer.endswith(b"\r\n\r\nok")

    asyncio.run(asyncio.wait_for(story(), PATIENCE_SECONDS))


def test_an_idle_connection_is_kept_for_longer_than_proxies_keep_theirs():
    async def story():
        application = Answers()
        application.rejections = SimpleNamespace(count=print)
        listener = Listener(application, "127.0.0.1", 0, lambda: None)
        async with connected(application, listener.config) as (connection, _transport, answers):
            connection.data_received(head(100))
            assert statuses(await answers.readuntil(b"ok")) == [b"200"]
            left_seconds = connection.timeout_keep_alive_task.when() - asyncio.get_running_loop().time()
            assert left_seconds > 60  # nginx's, and the load balancers' of the clouds

    asyncio.run(asyncio.wait_for(story(), PATIENCE_SECONDS))


CHUNKED = b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("sent", [b"HELO\r\n\r\n", CHUNKED + b"zz\r\n"], ids=["no head", "no chunk"])
def test_what_is_no_http_is_refused_in_our_shape(server, sent):
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
        wire.sendall(sent)
        head, _, body = received(wire).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"\r\nx-request-id: " in head
    assert json.loads(body)["error"]["code"] == "no_http"


def test_what_is_no_http_does_not_break_into_the_answer_to_what_is():
    async def story():
        application = Answers()
        application.may_answer.clear()
        async with connected(application) as (connection, transport, answers):
            connection.data_received(head(100))
            await application.pieces.get()
            connection.data_received(b"HELO\r\n\r\n")
            assert not transport.is_reading()
            application.may_answer.set()
            answer = await answers.read()
            assert statuses(answer) == [b"200"]
            assert answer.endswith(b"\r\n\r\nok")

    asyncio.run(asyncio.wait_for(story(), PATIENCE_SECONDS))


def test_a_head_that_is_too_long_is_refused_in_the_shape_of_the_api_that_was_called(server):
    status, headers, raw = server.ask("POST", "/v1/messages", b"{}", {"x-long": "a" * MOST_HEADER_BYTES})
    assert (status, json.loads(raw)["type"]) == (431, "error")
    assert headers["x-request-id"]


def test_a_trailer_without_end_is_not_read():
    async def story():
        application = Answers()
        async with connected(application) as (connection, transport, _answers):
            connection.data_received(b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(20):
                connection.data_received(b"1f40\r\n" + b"a" * 8000 + b"\r\n")
                assert len(await application.pieces.get()) == 8000  # a body may be long
            assert transport.is_reading()
            connection.data_received(b"0\r\n")
            for number in range(20):
                connection.data_received(b"x-%d: " % number + b"a" * 8000 + b"\r\n")
            assert not transport.is_reading()

    asyncio.run(asyncio.wait_for(story(), PATIENCE_SECONDS))


CHAT = json.dumps({"model": "a", "messages": [{"role": "user", "content": "hello there"}]}).encode()
OFFERS = {
    "as Java's client": b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n",
    "something unheard of": b"upgrade: foo/2, bar\r\nconnection: upgrade\r\n",
    "a WebSocket in a POST": b"connection: Upgrade\r\nupgrade: websocket\r\n",
    "with words around": b"connection: keep-alive\r\nconnection: x-hop , UPGRADE\r\nupgrade: TLS/1.0\r\n",
}
PARTED = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (9, CHAT[:9], len(CHAT) - 9, CHAT[9:])
FRAMED = {
    "whole": b"content-length: %d\r\n\r\n%b" % (len(CHAT), CHAT),
    "chunked": b"transfer-encoding: chunked\r\n\r\n" + PARTED,
}


def reading(wire, answers):
    """So many answers, as status and JSON."""
    with wire.makefile("rb") as stream:
        for _ in range(answers):
            status, headers = int(stream.readline().split()[1]), {}
            while line := stream.readline().strip():
                name, _, value = line.partition(b":")
                headers[name.lower()] = value.strip()
            yield status, json.loads(b"".join(pieces_of(stream, headers)))


def pieces_of(stream, headers):
    if b"content-length" in headers:
        yield stream.read(int(headers[b"content-length"]))
        return
    while size := int(stream.readline(), 16):
        yield stream.read(size)
        stream.readline()
    stream.readline()


@pytest.mark.parametrize("framed", FRAMED.values(), ids=FRAMED)
@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_a_request_that_offers_an_upgrade_is_answered_in_http_1_1_with_its_body(server, offer, framed):
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n" + offer + framed
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
        wire.sendall(request * 3 + b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        answers = list(reading(wire, 4))
        assert [status for status, _ in answers] == [200] * 4
        assert [body["choices"][0]["message"]["content"] for _, body in answers[:3]] == ["a answers: hello there"] * 3
        wire.sendall(request)  # and the connection goes on
        assert [status for status, _ in reading(wire, 1)] == [200]


def test_an_offered_upgrade_is_passed_over_wherever_the_reads_end():
    sent = b"POST /one HTTP/1.1\r\nhost: localhost\r\n" + OFFERS["as Java's client"] + b"content-length: 4\r\n\r\nbody"

    async def story(end):
        application = Answers()
        async with connected(application) as (connection, _transport, answers):
            connection.data_received(sent[:end])
            connection.data_received(sent[end:] + sent.replace(b"one", b"two"))
            assert statuses(await answers.readuntil(b"ok")) == [b"200"]
            assert statuses(await answers.readuntil(b"ok")) == [b"200"]
            assert application.started == ["/one", "/two"]
            read = b"".join(application.pieces.get_nowait() for _ in range(application.pieces.qsize()))
            assert read == b"bodybody"

    for end in range(1, len(sent)):
        asyncio.run(asyncio.wait_for(story(end), PATIENCE_SECONDS))


def test_an_offered_upgrade_leaves_the_other_options_of_the_connection():
    async def story():
        application = Answers()
        async with connected(application) as (connection, transport, answers):
            offer = b"connection: upgrade, close\r\nupgrade: h2c\r\n"
            connection.data_received(b"POST / HTTP/1.1\r\nhost: localhost\r\n" + offer + b"content-length: 1\r\n\r\nx")
            answer = await answers.read()
            assert statuses(answer) == [b"200"]
            assert b"connection: close" in answer
            assert transport.is_closing()

    asyncio.run(asyncio.wait_for(story(), PATIENCE_SECONDS))


def test_a_body_that_waits_for_100_continue_is_asked_for_beside_an_offered_upgrade(server):
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: %d\r\n"
        % len(CHAT)
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
        wire.sendall(head + OFFERS["as Java's client"] + b"\r\n")
        with wire.makefile("rb") as stream:
            assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
            stream.readline()
        wire.sendall(CHAT)
        assert [status for status, _ in reading(wire, 1)] == [200]


def test_the_limit_of_a_head_holds_beside_an_offered_upgrade(server):
    request = b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\n" + OFFERS["as Java's client"]
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
        wire.sendall(request + b"x-long: " + b"a" * MOST_HEADER_BYTES + b"\r\n\r\n")
        assert received(wire).startswith(b"HTTP/1.1 431")


HANDSHAKE = (
    b" HTTP/1.1\r\nhost: localhost\r\n"
    b"connection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.mark.parametrize(
    "path", [b"/v1/responses", b"/v1/responses?model=a", b"/v1/realtime", b"/", b"/admin/events", b"/v1/models/"]
)
def test_a_websocket_is_refused_with_426_on_any_path(server, path):
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
        wire.sendall(
            b"GET " + path + HANDSHAKE + b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )
        first, _, rest = received(wire).partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 426 ")
    told = [line.lower() for line in first.split(b"\r\n")]
    assert b"upgrade: http/1.1" in told
    assert b"connection: upgrade" in told
    body, _ = json.JSONDecoder().raw_decode(rest.decode())
    assert body["error"]["code"] == "upgrade_required"
    assert "WebSocket" in body["error"]["message"]
    assert b"HTTP/1.1 200" in rest  # and the connection goes on


def test_a_websocket_that_a_proxy_made_a_plain_request_is_refused_with_426(server):
    headers = {"sec-websocket-version": "13", "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}
    status, answered, raw = server.ask("GET", "/v1/responses", headers=headers)
    assert (status, json.loads(raw)["error"]["code"]) == (426, "upgrade_required")
    assert answered["upgrade"] == "HTTP/1.1"
    assert server.ask("GET", "/v1/responses")[0] == 405
    assert server.ask("GET", "/healthz", headers=headers)[0] == 200


def test_an_upgrade_in_http_1_0_means_nothing(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
        wire.sendall(b"GET /healthz" + HANDSHAKE.replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert received(wire).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("target", [b"example.com:443", b"/v1/chat/completions", b"/"])
def test_a_tunnel_is_refused_in_our_shape(server, target):
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
        wire.sendall(b"CONNECT " + target + b" HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\n")
        head, _, body = received(wire).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["code"] == "no_http"


@pytest.mark.parametrize(("count", "status"), [(MOST_HEADERS, b"200"), (MOST_HEADERS + 1, b"431")])
def test_a_request_has_so_many_headers_at_most(server, count, status):
    """A lookup of one header reads all of them: thousands of short ones would hold up every other request."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
        wire.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * (count - 1) + b"\r\n")
        assert received_answer(wire).startswith(b"HTTP/1.1 " + status)


def test_a_body_in_very_small_chunks_is_put_together_once_for_each_read(monkeypatch):
    """uvicorn adds each piece to the body so far, which copies that body."""
    count, passed_on, bodies = 10_000, [], []
    pass_on = HttpToolsProtocol.on_body

    def observed(protocol, body):
        passed_on.append(len(body))
        pass_on(protocol, body)

    monkeypatch.setattr(HttpToolsProtocol, "on_body", observed)

    async def application(scope, receive, send):
        more = True
        while more:
            message = await receive()
            bodies.append(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def story():
        async with asyncio.timeout(PATIENCE_SECONDS), connected(application) as (protocol, _, answers):
            start = b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
            protocol.data_received(start + b"1\r\nx\r\n" * count)
            protocol.data_received(b"1\r\ny\r\n" * 2 + b"0\r\n\r\n" + start + b"1\r\nz\r\n0\r\n\r\n")
            for _ in range(2):
                assert (await answers.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")

    asyncio.run(story())
    assert passed_on == [count, 2, 1]
    assert b"".join(bodies) == b"x" * count + b"yyz"
