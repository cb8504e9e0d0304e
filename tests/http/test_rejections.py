"""What is turned away at the door is told in the log: who and where, never a key, and not without end."""

import json
import logging
import re
import socket
from contextlib import suppress

import pytest

from coe_server.errors import InvalidApiKey
from coe_server.http.apis import APIS
from coe_server.http.connection import MOST_HEADER_BYTES, Connection
from coe_server.http.rate_limits import MOST_LINES, WINDOW_SECONDS, Rejections
from coe_server.keys import Key, Keyring, hashed
from coe_server.metrics import Telemetry
from tests.http.bodies.test_uploads import END, TYPE, field_of, file_of
from tests.http.server import running_server
from tests.http.test_api import simulated
from tests.http.test_keys_over_http import ADMIN, CLIENT, RING, SLOW, ask, bearer
from tests.patience import PATIENCE_SECONDS, received

SECRET = "xylophone-diary"
LIMITED = "coe-limited"
SENT = {
    "no key": (("POST", "/v1/chat/completions", {}), (401, "invalid_api_key", "/v1/chat/completions", None)),
    "a wrong key": (("GET", "/v1/models", bearer(SECRET)), (401, "invalid_api_key", "/v1/models", None)),
    "a made-up path": (("GET", f"/{SECRET}", {}), (401, "invalid_api_key", "other", None)),
    "another key's decision": (
        ("GET", f"/v1/decisions/{SECRET}", {}),
        (401, "invalid_api_key", "/v1/decisions/*", None),
    ),
    "an expert": (
        ("POST", f"/admin/experts/{SECRET}/load", {}),
        (401, "invalid_api_key", "/admin/experts/*/load", None),
    ),
    "a user at the operator's": (("GET", "/metrics", bearer(CLIENT)), (403, "forbidden", "/metrics", "client")),
    "another page": (
        ("GET", "/metrics", bearer(ADMIN) | {"origin": "https://evil.example"}),
        (403, "forbidden", "/metrics", "boss"),
    ),
}


@pytest.fixture(scope="module")
def server():
    ring = Keyring((*RING.keys, Key(name="limited", sha256=hashed(LIMITED), experts=frozenset({"code"}))))
    engines = {name: simulated(name) for name in ("math", "code")}
    with running_server(engines, keyring=ring, on_loopback=False) as running:
        yield running


def refusals(caplog):
    return [record for record in caplog.records if record.name == "coe_server.http.rate_limits"]


def told(caplog):
    (record,) = refusals(caplog)
    assert record.levelno == logging.WARNING
    assert not any(secret in str(record.__dict__) for secret in (CLIENT, ADMIN, SLOW, LIMITED, SECRET))
    fields = record.fields
    return fields["status"], fields["code"], fields.get("path"), fields.get("key")


@pytest.mark.parametrize("case", SENT)
def test_a_rejection_is_logged_with_the_path_and_the_keys_name(server, caplog, case):
    (method, path, headers), expected = SENT[case]
    assert server.ask(method, path, headers=headers)[0] == expected[0]
    assert told(caplog) == expected


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (f"GET /{SECRET} HTTP/1.1\r\nx-{SECRET}: {SECRET}", 408, "headers_too_slow"),
        (f"GET /{SECRET} HTTP/1.1\r\nx-{SECRET}: {'a' * MOST_HEADER_BYTES}\r\n\r\n", 431, "headers_too_large"),
        (f"GET /{SECRET} HTTP/1.1\r\nx-{SECRET}: {'a' * 10 * MOST_HEADER_BYTES}", 431, "headers_too_large"),
    ],
    ids=["slow", "long", "endless"],
)
def test_a_head_that_is_refused_is_counted_and_told_without_a_word_of_it(
    server, caplog, monkeypatch, sent, status, code
):
    def counted():
        found = server.ask("GET", "/metrics", headers=bearer(ADMIN))[2].decode()
        series = (
            rf'coe_requests_total\{{endpoint="refused",status="{status}"\}}',
            rf'coe_errors_total\{{code="{code}"\}}',
        )
        return [sum(map(float, re.findall(f"^{one} (.*)$", found, re.MULTILINE))) for one in series]

    before = counted()
    with monkeypatch.context() as patient:
        patient.setattr(Connection, "header_seconds", 0.2 if status == 408 else 20.0)
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
            with suppress(ConnectionError):  # it may be refused before the last of it is sent
                wire.sendall(sent.encode())
            received(wire)
    assert told(caplog) == (status, code, None, None)
    assert counted() == [one + 1 for one in before]


def test_a_body_that_does_not_come_is_told_with_its_path(server, caplog):
    with running_server({"math": simulated("math")}, body_seconds=0.1) as impatient:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{SECRET}"
        with socket.create_connection(("127.0.0.1", impatient.port), timeout=PATIENCE_SECONDS) as wire:
            wire.sendall(head.encode())
            assert received(wire).startswith(b"HTTP/1.1 408")
    assert told(caplog) == (408, "body_too_slow", "/v1/chat/completions", None)


def test_a_rate_limited_request_is_logged(server, caplog):
    while ask(server, SLOW)[0] == 200:
        pass
    assert told(caplog) == (429, "rate_limit_exceeded", "/v1/chat/completions", "slow")
    assert refusals(caplog)[0].getMessage() == "refused: key 'slow' is limited to 2 requests a minute"


@pytest.mark.parametrize("path", [*(api.path for api in APIS), "/v1/route"])
def test_a_request_that_its_key_forbids_is_logged_and_counted_once(server, caplog, path):
    def counted():
        found = server.ask("GET", "/metrics", headers=bearer(ADMIN))[2].decode()
        return sum(map(float, re.findall(r'^coe_errors_total\{code="model_not_found"\} (.*)$', found, re.MULTILINE)))

    before = counted()
    asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "query": "x", "documents": ["x"]}
    body = json.dumps({"model": "math", **asked, **dict.fromkeys(("input", "prompt", "text_1", "text_2"), "x")})
    headers = bearer(LIMITED)
    if path in {api.path for api in APIS if api.form}:
        body, headers = field_of("model", "math") + file_of(b"x") + END, {**headers, **TYPE}
    assert server.ask("POST", path, body, headers)[0] == 403
    assert told(caplog) == (403, "model_not_found", path, "limited")
    assert counted() == before + 1


def test_what_is_answered_is_no_refusal(server, caplog):
    assert ask(server, CLIENT)[0] == 200
    assert ask(server, CLIENT, model="nobody")[0] == 404
    assert server.ask("GET", "/nope", headers=bearer(CLIENT))[0] == 404
    assert refusals(caplog) == []


def test_a_flood_has_so_many_lines_a_minute_and_then_a_number(caplog):
    now = [0.0]
    door = Rejections(Telemetry(), lambda path: None, clock=lambda: now[0])
    for _ in range(MOST_LINES + 5):
        door.count(InvalidApiKey("no"), "/v1/models", None)
    assert len(refusals(caplog)) == MOST_LINES
    now[0] = WINDOW_SECONDS
    door.count(InvalidApiKey("no"), "/v1/models", None)
    assert [record.getMessage() for record in refusals(caplog)[MOST_LINES:]] == [
        "5 more requests were refused without log lines",
        "refused: no",
    ]
