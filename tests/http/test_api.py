"""The endpoints as a client meets them: real sockets, engines that a test can break."""

import json
import socket

import openai
import pytest

from coe_server.cache.policy import Limits
from coe_server.cache.tiers import Bytes
from coe_server.engines.simulated import SimulatedEngine
from coe_server.errors import EngineDied
from tests.http.server import running_server
from tests.patience import PATIENCE_SECONDS, received, received_until, until

GIB = 2**30


def simulated(name, **timing):
    fast = {"start_seconds": 0.01, "wake_seconds": 0.01, "sleep_seconds": 0.01, "ttft_seconds": 0.001}
    return SimulatedEngine(name, weights_bytes=GIB, **{**fast, "tokens_per_second": 2000, **timing})


@pytest.fixture(scope="module")
def server():
    with running_server({"math": simulated("math"), "code": simulated("code")}) as running:
        yield running


def error_of(answer):
    status, _headers, body = answer
    assert set(body) in ({"error"}, {"error", "type"})
    assert body.get("type", "error") == "error"  # as Anthropic's clients expect it under /v1/messages
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return status, body["error"]


def test_an_expert_asked_for_by_name_answers_with_the_decision_in_the_headers(server):
    status, headers, body = server.chat(model="math")
    assert status == 200
    assert body["choices"][0]["message"]["content"] == "math answers: hello there"
    assert body["model"] == "math"
    assert (headers["x-coe-expert"], headers["x-coe-reason"]) == ("math", "requested")
    for name in ("decision-id", "residency", "routing-ms", "wait-ms", "router-version"):
        assert headers[f"x-coe-{name}"]


def test_the_official_client_reads_streams_and_whole_answers(server):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
        messages = [{"role": "user", "content": "one two three"}]
        whole = client.chat.completions.create(model="code", messages=messages)
        pieces = list(client.chat.completions.create(model="code", messages=messages, stream=True))
        streamed = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
        assert whole.choices[0].message.content == streamed == "code answers: one two three"
        assert {model.id for model in client.models.list()} == {"math", "code"}


def test_an_unknown_model_is_404_and_lists_the_models(server):
    status, error = error_of(server.chat(model="gpt-5"))
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert error["message"] == "unknown model 'gpt-5'; known: math, code"


def test_without_a_router_auto_is_refused_with_the_way_out(server):
    status, error = error_of(server.chat())
    assert status == 404
    assert "math, code" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": "hi"}, "messages", "must be a list"),
        ({"messages": [7]}, "messages", "messages[0] is not an object"),
        ({"model": 7}, "model", "must be a string"),
        ({"coe": {"alow": ["a"]}}, "coe.alow", "there is no such key; allowed: allow, objective"),
        ({"coe": {"allow": ["chess"]}}, "coe.allow", "unknown expert 'chess'; known: math, code"),
        ({"coe": {"min_confidence": 2}}, "coe.min_confidence", "must be at most 1"),
        ({"coe": 3}, "coe", "coe"),
    ],
)
def test_a_wrong_field_is_400_and_named(server, fields, param, sentence):
    status, error = error_of(server.chat(**{"model": "math", **fields}))
    assert (status, error["param"]) == (400, param)
    assert sentence in error["message"]


@pytest.mark.parametrize("body", ["", "{", "[]", '{"model": "math"', b"\xff{}"])
def test_malformed_json_is_400_in_openais_shape(server, body):
    status, _headers, raw = server.ask("POST", "/v1/chat/completions", body)
    assert status == 400
    assert json.loads(raw)["error"]["code"] == "invalid_request"
    assert "Traceback" not in raw.decode()


def test_a_body_over_the_limit_is_413(server):
    status, _, raw = server.ask("POST", "/v1/chat/completions", b" " * 100_001)
    assert status == 413
    error = json.loads(raw)["error"]
    assert error["code"] == "body_too_large"
    assert error["message"] == "the body is larger than 100000 bytes (http.max_body)"


def test_unknown_paths_and_methods_have_the_same_error_shape(server):
    for method, path, expected in (("GET", "/v2/models", 404), ("DELETE", "/v1/models", 405)):
        status, _, raw = server.ask(method, path)
        assert status == expected
        assert f"{method} {path}" in json.loads(raw)["error"]["message"]


def test_a_method_that_a_path_does_not_have_is_refused_with_those_that_it_has(server):
    status, headers, raw = server.ask("GET", "/v1/chat/completions")
    assert (status, headers["allow"]) == (405, "POST")
    told = json.loads(raw)["error"]["message"]
    assert told == "GET /v1/chat/completions: method not allowed; use POST"
    status, headers, raw = server.ask("PUT", "/v1/decisions/7")
    assert (status, headers["allow"]) == (405, "DELETE, GET")
    assert json.loads(raw)["error"]["message"] == "PUT /v1/decisions/7: method not allowed; use DELETE, GET"


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/models/math", "/healthz", "/readyz", "/v1/models/chess"])
def test_a_probe_with_head_has_the_status_and_headers_of_get(server, path):
    status, headers, _ = server.ask("GET", path)
    probed, its_headers, raw = server.ask("HEAD", path)
    assert (probed, raw) == (status, b"")
    assert its_headers["content-type"] == headers["content-type"]
    assert its_headers["content-length"] == headers["content-length"]


def test_health_readiness_and_the_operators_view(server):
    assert server.ask("GET", "/healthz")[0] == 200
    assert server.ask("GET", "/readyz")[0] == 200
    server.chat(model="math")
    experts = json.loads(server.ask("GET", "/admin/experts")[2])
    assert [set(e) for e in experts] == [
        {"name", "base", "state", "residency", "bytes", "cards", "leases", "max_concurrency", "queued"}
        | {"context_tokens", "pin", "last_move", "failure", "has_log", "download"}
    ] * 2
    math = next(e for e in experts if e["name"] == "math")
    assert (math["residency"], math["leases"], math["queued"]) == ("device", 0, 0)
    assert math["last_move"] == {"from": "disk", "to": "device", "seconds": math["last_move"]["seconds"], "bytes": GIB}


def test_the_dry_run_answers_with_the_decision_alone(server):
    body = json.dumps({"model": "code", "messages": [{"role": "user", "content": "x"}]})
    status, _, raw = server.ask("POST", "/v1/route", body)
    decision = json.loads(raw)
    assert status == 200
    assert (decision["expert"], decision["reason"]) == ("code", "requested")
    assert decision["ranking"][0]["residency"] in {"device", "disk"}


def test_moves_can_be_followed_live_and_resumed():
    engines = {"a": simulated("a"), "b": simulated("b")}
    with running_server(engines, capacity=Bytes(GIB, 9 * GIB)) as server:
        for name in "aba":
            assert server.chat(model=name)[0] == 200
        events = read_events(server, last_seq=0, count=10)
        moves = [e for e in events if e["kind"] == "move"]
        assert [(m["expert"], m["from"], m["to"]) for m in moves] == [
            ("a", "disk", "device"),
            ("a", "device", "host"),
            ("b", "disk", "device"),
            ("b", "device", "host"),
            ("a", "host", "device"),
        ]
        assert [(e["expert"], e["victims"]) for e in events if e["kind"] == "switch"] == [("b", ["a"]), ("a", ["b"])]
        assert [(e["expert"], e["reason"]) for e in events if e["kind"] == "decision"] == [
            (name, "requested") for name in "aba"
        ]
        assert [e["seq"] for e in events] == list(range(1, 11))
        assert read_events(server, last_seq=8, count=2) == events[8:]


def test_an_operator_loads_unloads_and_pins_over_http():
    with running_server({"a": simulated("a"), "b": simulated("b")}) as server:

        def order(path, expected=200):
            status, _, raw = server.ask("POST", f"/admin/experts/{path}")
            assert status == expected
            return json.loads(raw)

        assert order("a/load")["residency"] == "device"
        assert order("a/pin")["pin"] == "device"
        assert order("a/unload", 409)["error"]["code"] == "expert_busy"
        assert order("a/unpin")["pin"] is None
        order("a/unload")
        until(lambda: server.cache.status()[0].residency == "disk")
        assert order("nobody/load", 404)["error"]["code"] == "model_not_found"
        assert order("a/pin?tier=moon", 400)["error"]["param"] == "tier"


def test_a_pin_that_leaves_no_room_for_another_expert_is_refused_with_the_figures():
    engines = {name: simulated(name) for name in "abc"}
    with running_server(engines, capacity=Bytes(2 * GIB + GIB // 2, 9 * GIB)) as server:

        def pin(path, expected=200):
            status, _, raw = server.ask("POST", f"/admin/experts/{path}")
            assert status == expected
            return json.loads(raw)

        pin("a/pin")
        error = pin("b/pin", 409)["error"]
        assert error["code"] == "no_room"
        assert error["message"].startswith("expert 'b' is not pinned to device: expert 'c' needs 1,024 MiB of device")
        assert "the limit is 2,560 MiB, of which pinned experts keep 2,048 MiB, this one among them" in error["message"]
        assert server.chat(model="c")[0] == 200
        pin("b/pin?tier=host")
        pin("a/unpin")
        pin("b/pin")
        pin("a/pin", 409)
        pin("b/pin?tier=host")
        pin("a/pin")


@pytest.mark.parametrize(
    "headers", [{name: at} for name in ("Origin", "Host") for at in ("http://evil.example", "http://[")]
)
def test_a_web_page_elsewhere_cannot_steer_the_experts(server, headers):
    status, _, raw = server.ask("POST", "/admin/experts/math/unload", headers=headers)
    assert status == 403
    assert json.loads(raw)["error"]["code"] == "forbidden"
    status, _, _ = server.ask("GET", "/admin/experts", headers={"Origin": f"http://localhost:{server.port}"})
    assert status == 200


def test_what_no_encoding_can_write_is_answered_in_escapes(server):
    status, _, raw = server.ask("POST", "/v1/chat/completions", '{"model": "\\ud800", "messages": [{}]}')
    assert status == 404
    assert json.loads(raw)["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    "body",
    [
        "{" + ", ".join(f'"k{i}": 0' for i in range(300)) + "}",
        json.dumps({"model": "math", "messages": [{}] * 10_001}),
    ],
)
def test_a_body_made_to_be_slow_is_refused(server, body):
    status, _, raw = server.ask("POST", "/v1/chat/completions", body)
    assert status == 400
    assert "256" in json.loads(raw)["error"]["message"] or "10000" in json.loads(raw)["error"]["message"]


def test_a_client_that_does_not_read_holds_nothing_for_longer_than_one_answer_may_take():
    fast = simulated("a", tokens_per_second=1e9)
    with running_server({"a": fast}, limits=Limits(max_generation_seconds=1.0), max_body_bytes=1 << 25) as server:
        body = json.dumps({"model": "a", "stream": True, "messages": [{"role": "user", "content": "w " * 300_000}]})
        wire = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS)
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        wire.sendall(head.encode() + body.encode())
        # counted when a lease is granted: on a busy machine the lease itself may be over before it is seen
        until(lambda: b'coe_wait_seconds_count{expert="a"} 1.0' in server.ask("GET", "/metrics")[2])
        until(lambda: server.cache.status()[0].leases == 0)
        wire.close()


def test_a_request_that_waits_when_the_server_stops_gets_a_clear_error():
    slow = simulated("a", start_seconds=60.0)
    with running_server({"a": slow}) as server:
        body = b'{"model":"a","messages":[{"role":"user","content":"x"}]}'
        wire = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        wire.sendall(head.encode() + body)
        until(lambda: server.cache.status()[0].queued == 1)
    answer = received(wire)
    wire.close()
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"the server is stopping" in answer


def test_a_follower_of_events_does_not_hold_up_the_end_of_the_server():
    with running_server({"a": simulated("a")}, grace_seconds=10 * PATIENCE_SECONDS) as server:
        wire = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS)
        wire.sendall(b"GET /admin/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
        received_until(wire, b": coe events")
    assert received(wire).endswith(b"0\r\n\r\n")
    wire.close()


def read_events(server, last_seq, count):
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
        wire.sendall(f"GET /admin/events HTTP/1.1\r\nhost: localhost\r\nlast-event-id: {last_seq}\r\n\r\n".encode())
        lines = wire.makefile("rb")
        found = []
        while len(found) < count:
            line = lines.readline()
            if line.startswith(b"data: "):
                found.append(json.loads(line[6:]))
        return found


class Breaking(SimulatedEngine):
    """Dies when told to, before or after the first byte."""

    def __init__(self, name, deaths):
        super().__init__(
            name,
            weights_bytes=GIB,
            start_seconds=0.0,
            wake_seconds=0.0,
            sleep_seconds=0.0,
            ttft_seconds=0.0,
            tokens_per_second=1000,
        )
        self.deaths = deaths
        self.starts = 0

    async def start(self, within_seconds=None, seat=(0,)):
        self.starts += 1
        await super().start(within_seconds, seat)

    def send(self, request):
        if self.deaths:
            death = self.deaths.pop(0)
            return death(self, super().send(request))
        return super().send(request)


class DiesAtOnce:
    """The connection is refused and the process is gone."""

    def __init__(self, engine, inner):
        self.engine = engine

    async def __aenter__(self):
        self.engine.kill("killed by the test")
        raise EngineDied("the engine refused the connection")

    async def __aexit__(self, *_):
        return False


class DiesMidStream:
    """The answer begins, says its first word (after the chunk that only names the role) and breaks off."""

    chunks_first = 2

    def __init__(self, engine, inner):
        self.inner = inner

    async def __aenter__(self):
        self.answer = await self.inner.__aenter__()
        return self

    async def __aexit__(self, *error):
        return await self.inner.__aexit__(*error)

    @property
    def status(self):
        return self.answer.status

    @property
    def headers(self):
        return self.answer.headers

    async def chunks(self):
        left = self.chunks_first
        async for chunk in self.answer.chunks():
            yield chunk
            left -= 1
            if left == 0:
                raise EngineDied("the engine died mid-answer")


class DiesBeforeTheFirstWord(DiesMidStream):
    """The answer breaks off after the chunk that only names the role."""

    chunks_first = 1


def test_a_request_that_meets_a_dead_engine_is_answered_after_a_restart():
    engine = Breaking("a", [DiesAtOnce])
    with running_server({"a": engine}) as server:
        status, _, body = server.chat(model="a")
        assert status == 200
        assert body["choices"][0]["message"]["content"] == "a answers: hello there"
        assert engine.starts == 2


def test_an_engine_that_dies_again_and_again_gives_a_clear_error_and_no_lease_is_left():
    engine = Breaking("a", [DiesAtOnce] * 9)
    with running_server({"a": engine}) as server:
        status, error = error_of(server.chat(model="a"))
        assert status in {502, 503}
        assert "killed by the test" in error["message"] or "refused the connection" in error["message"]
        assert json.loads(server.ask("GET", "/admin/experts")[2])[0]["leases"] == 0


def test_a_stream_that_breaks_off_ends_with_an_error_event():
    with running_server({"a": Breaking("a", [DiesMidStream])}) as server:
        body = json.dumps({"model": "a", "stream": True, "messages": [{"role": "user", "content": "x y z"}]})
        status, _, raw = server.ask("POST", "/v1/chat/completions", body)
        events = [line[6:] for line in raw.decode().splitlines() if line.startswith("data: ")]
        assert status == 200
        assert json.loads(events[-2])["choices"][0]["delta"]["content"] == "a"
        assert json.loads(events[-1])["error"]["code"] == "engine_died"
        assert "[DONE]" not in events


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_takes_too_long_is_ended_with_an_error(stream):
    slow = simulated("a", tokens_per_second=2)
    with running_server({"a": slow}, limits=Limits(max_generation_seconds=1.0)) as server:
        body = {"model": "a", "stream": stream, "messages": [{"role": "user", "content": "w " * 50}]}
        status, _, raw = server.ask("POST", "/v1/chat/completions", json.dumps(body))
        if stream:
            assert status == 200
            last = [line for line in raw.decode().splitlines() if line][-1]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "generation_timeout"
        else:
            assert (status, json.loads(raw)["error"]["code"]) == (504, "generation_timeout")
        assert server.cache.status()[0].leases == 0


@pytest.mark.parametrize("when", ["waiting", "streaming"])
def test_a_client_that_leaves_takes_its_place_in_queue_or_engine_with_it(when):
    slow = simulated("a", start_seconds=1.0 if when == "waiting" else 0.0, tokens_per_second=5)
    with running_server({"a": slow}, limits=Limits(max_concurrency=1)) as server:
        body = json.dumps(
            {"model": "a", "stream": True, "messages": [{"role": "user", "content": "w " * 200}]}
        ).encode()
        wire = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        wire.sendall(head.encode() + body)
        if when == "streaming":
            assert received_until(wire, b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        until(lambda: server.cache.status()[0].queued + server.cache.status()[0].leases == 1)
        wire.close()
        until(lambda: server.cache.status()[0].queued + server.cache.status()[0].leases == 0)


def test_a_full_queue_is_429_with_a_time_to_come_back():
    slow = simulated("a", start_seconds=30.0)
    with running_server({"a": slow}, limits=Limits(queue_limit=1)) as server:
        body = b'{"model":"a","messages":[{"role":"user","content":"x"}]}'
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
            wire.sendall(head.encode() + body)
            until(lambda: server.cache.status()[0].queued == 1)
            status, headers, answer = server.chat(model="a")
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        assert int(headers["retry-after"]) >= 1
