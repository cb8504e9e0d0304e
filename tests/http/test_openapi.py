"""The OpenAPI document, and that the server does what it says whatever is sent: schemathesis makes up the requests."""

import json
import socket
import warnings
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings

from coe_server import errors
from coe_server.errors import CoeError
from coe_server.http.apis import APIS
from coe_server.routing import artifact as artifacts
from coe_server.routing.router import Router
from tests.http.server import running_server
from tests.http.test_api import simulated
from tests.patience import PATIENCE_SECONDS, received, received_until, until
from tests.routing.small_artifact import SIZES, TEXTS, held_out, small_artifact

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install -e '.[dev]'")

ENDLESS = "/admin/events"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openapi") / "router"
    artifacts.save(small_artifact(), held_out(), None, folder)
    engines = {name: simulated(name, tokens_per_second=1e6, ttft_seconds=0.0) for name in SIZES}
    with running_server(engines, router=Router.load(folder)) as running:
        yield running


@pytest.fixture(scope="module")
def document(server):
    return json.loads(server.ask("GET", "/openapi.json")[2])


def test_every_api_and_every_body_is_described(document):
    for api in APIS:
        operation = document["paths"][api.path]["post"]
        (kind,) = operation["requestBody"]["content"]
        schema = operation["requestBody"]["content"][kind]["schema"]
        assert kind == ("multipart/form-data" if api.form else "application/json")
        assert "auto" in schema["properties"]["model"]["enum"]
        assert api.form or "session" in schema["properties"]["coe"]["properties"]
        types = {"text/plain", "audio/*", "image/*"} if api.media else set()
        assert {"application/json", "text/event-stream", *types} == set(operation["responses"]["200"]["content"])


def test_every_status_of_the_error_tree_is_documented_everywhere(document):
    def tree(kind):
        return {kind}.union(*(tree(one) for one in kind.__subclasses__()))

    statuses = {str(one.status) for one in tree(CoeError) if one.__module__ == errors.__name__}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert statuses <= set(operation["responses"]), path


PLAIN = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def try_out(operation, seen, how):
    """Requests to one operation, each answered with a status that it documents."""
    documented = {int(status) for status in operation.definition.raw["responses"]}

    @given(case=operation.as_strategy())
    @how
    def holds(case):
        answer = case.call(timeout=PATIENCE_SECONDS)
        seen[answer.status_code] += 1
        assert answer.status_code in documented, answer.text
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
            assert answer.json()["error"]["code"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        holds()


def exercise(server, cases_per_operation, **more):
    """Send that many requests made up for each operation; how often each status came back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # schemathesis' own
        schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
        operations = [one.ok() for one in schema.get_all_operations()]
    seen = Counter()
    for operation in operations:
        if operation.path != ENDLESS:
            try_out(operation, seen, settings(max_examples=cases_per_operation, **PLAIN, **more))
    assert json.loads(server.ask("GET", "/healthz")[2]) == {"status": "ok"}
    assert all(
        expert["leases"] == expert["queued"] == 0 for expert in json.loads(server.ask("GET", "/admin/experts")[2])
    )
    return seen


def test_made_up_requests_get_documented_answers(server):
    seen = exercise(server, 13, derandomize=True)
    assert sum(seen.values()) >= 200
    assert seen[200] > 20


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ten_thousand_made_up_requests_get_documented_answers(server):
    seen, share = Counter(), 200
    while sum(seen.values()) < 10_000:
        seen += exercise(server, share, derandomize=False)  # other ones each time
    print(dict(seen))  # noqa: T201  the figure that is reported
    assert seen[200] > 1000


NASTY = {
    "nested deeply": b'{"messages": ' + b"[" * 40_000 + b"]" * 40_000 + b"}",
    "nested deeply in a string's place": b'{"model": ' + b'{"a":' * 15_000 + b"1" + b"}" * 15_000 + b"}",
    "not UTF-8": b'{"messages": [{"role": "user", "content": "\xff\xfe\xed\xa0\x80"}]}',
    "lone surrogates": b'{"messages": [{"role": "user", "content": "\\ud800 \\udfff"}]}',
    "nothing but zeros": b"\0" * 1000,
    "a number without end": b'{"max_tokens": ' + b"9" * 90_000 + b"}",
    "many keys alike": b"{" + b'"model": "auto",' * 5_000 + b'"a": 1}',
    "reminders without end": json.dumps(
        {"messages": [{"role": "user", "content": "<system-reminder>" * 5_000}]}
    ).encode(),
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/route", "/tokenize"])
@pytest.mark.parametrize("body", NASTY.values(), ids=NASTY.keys())
def test_a_nasty_body_is_answered_in_our_shape_and_does_no_harm(server, path, body):
    status, _, raw = server.ask("POST", path, body)
    assert status in {200, 400, 404}
    assert status == 200 or json.loads(raw)["error"]["code"]
    assert server.chat(model="auto", messages=[{"role": "user", "content": TEXTS["code"]}])[0] == 200


def drip(server, announced, *pieces):
    wire = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {announced}\r\n\r\n"
    wire.sendall(head.encode())
    for piece in pieces:
        wire.sendall(piece)
    return wire


def test_bodies_that_drip_are_given_up_and_others_are_answered_meanwhile():
    with running_server({"a": simulated("a")}, body_seconds=1.0) as server:
        wires = [drip(server, 1000, b'{"model"') for _ in range(50)]
        assert server.chat(model="a")[0] == 200
        for wire in wires:
            answer = received(wire)  # and closed: what is still to come is not waited for
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"body_too_slow" in answer
            wire.close()


def test_a_body_that_is_announced_too_large_is_not_read(server):
    wire = drip(server, 10**12)
    answer = received_until(wire, b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()
    wire.close()
    assert server.chat(model="coder")[0] == 200


def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing(server):
    drip(server, 1000, b'{"model"').close()
    until(lambda: all(one.leases == one.queued == 0 for one in server.cache.status()))
    assert server.chat(model="coder")[0] == 200
