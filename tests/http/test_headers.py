"""What of an expert's headers reaches a caller, and that no browser takes any answer for a page of this server's."""

import json
import socket

import pytest

from coe_server.http.headers import content_type, passed_headers
from coe_server.keys import Key, Keyring, hashed
from tests.http.server import running_server
from tests.http.test_api import Breaking, simulated
from tests.http.test_failure import Says
from tests.patience import PATIENCE_SECONDS

ANSWER = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"<script>alert(1)</script>"}}]}'
HARMLESS = {"x-content-type-options": "nosniff", "content-security-policy": "sandbox"}
ATTACHED = {"content-type": "application/octet-stream", "content-disposition": "attachment"}


def passed(*headers):
    return [(name.lower(), value) for name, value in passed_headers(headers)]


@pytest.mark.parametrize(
    "value",
    [
        "application/json",
        "Application/JSON; charset=utf-8",
        'text/plain;charset="utf-8"',
        "text/event-stream; charset=utf-8",
        "audio/mpeg",
        "AUDIO/L16;rate=24000;channels=1",
        "image/png",
        "application/problem+json ",
        "text/plain;",
    ],
)
def test_what_no_browser_runs_keeps_its_type_as_it_was_written(value):
    assert passed(("Content-Type", value)) == [("content-type", value)]


@pytest.mark.parametrize(
    "value",
    [
        "text/html",
        "TEXT/HTML; charset=utf-8",
        "image/svg+xml",
        "application/xhtml+xml",
        "text/xml",
        "application/pdf",
        "text/javascript",
        "multipart/x-mixed-replace; boundary=x",
        "application/json, text/html",
        "text/html, application/json",
        'application/json; a="b, text/html"',
        "application/jsonx",
        "application/json text/html",
        "text/event-stream-html",
        "*/*",
        "text",
        "",
    ],
)
def test_anything_else_is_to_be_saved(value):
    assert dict(passed(("Content-Type", value))) == ATTACHED


def test_two_types_or_none_are_no_type():
    assert dict(passed(("content-type", "application/json"), ("Content-Type", "text/html"))) == ATTACHED
    assert dict(passed()) == ATTACHED
    assert content_type((("content-type", "text/plain"), ("content-type", "text/plain"))) is None


THEIRS = [
    "Clear-Site-Data",
    "Refresh",
    "NEL",
    "Report-To",
    "WWW-Authenticate",
    "Service-Worker-Allowed",
    "Link",
    "Location",
]
THEIRS += [
    "Content-Security-Policy",
    "X-Content-Type-Options",
    "X-Accel-Redirect",
    "X-Sendfile",
    "SourceMap",
    "Set-Cookie2",
]
THEIRS += [
    "Access-Control-Allow-Credentials",
    "X-Coe-Expert",
    "Content-Disposition",
    "Vary",
    "ETag",
    "X-Made-Up",
    "Server",
]


def test_headers_that_are_not_known_to_be_the_callers_stay_here():
    assert passed(*((name, "theirs") for name in THEIRS), ("content-type", "text/plain")) == [
        ("content-type", "text/plain")
    ]
    callers = [("retry-after", "7"), ("content-encoding", "zstd"), ("cache-control", "no-store"), ("request-id", "r")]
    assert passed(*callers, ("content-type", "text/plain"))[:-1] == callers


@pytest.mark.parametrize("value", ["a\x01b", "a\x00", "\x7f", "a\x1b[31m", "a\x0bb"])
def test_a_header_that_cannot_be_sent_on_does_not_cost_the_answer(value):
    answer = Says(200, ANSWER, headers=(("Content-Type", "application/json"), ("openai-model", value)))
    with running_server({"a": Breaking("a", [answer])}) as server:
        body = json.dumps({"model": "a", "messages": [{"role": "user", "content": "hello"}]})
        status, headers, raw = server.ask("POST", "/v1/chat/completions", body)
    assert (status, raw, headers["content-type"]) == (200, ANSWER, "application/json")
    assert "openai-model" not in headers
    assert passed(("request-id", "a\tb"), ("content-type", "text/plain"))[0] == ("request-id", "a\tb")


@pytest.mark.parametrize("named", ["text/html", "application/json"])
def test_an_answer_that_calls_itself_a_page_leaves_as_a_file_with_its_bytes(named):
    answer = Says(200, ANSWER, headers=(("Content-Type", named), *((name, "theirs") for name in THEIRS)))
    with running_server({"a": Breaking("a", [answer])}) as server:
        body = json.dumps({"model": "a", "messages": [{"role": "user", "content": "hello"}]})
        status, headers, raw = server.ask("POST", "/v1/chat/completions", body)
    assert (status, raw) == (200, ANSWER)
    assert headers["content-type"] == (named if named == "application/json" else "application/octet-stream")
    assert headers.get("content-disposition") == (None if named == "application/json" else "attachment")
    assert HARMLESS.items() <= headers.items()
    assert "theirs" not in headers.values()


def test_an_experts_own_refusal_leaves_the_same_way():
    told = json.dumps({"error": {"message": "<script>alert(1)</script>", "type": "t"}}).encode()
    refused = Says(400, told, headers=(("content-type", "text/html"), ("www-authenticate", 'Basic realm="yours"')))
    with running_server({"a": Breaking("a", [refused])}) as server:
        body = json.dumps({"model": "a", "messages": [{"role": "user", "content": "hello"}]})
        status, headers, raw = server.ask("POST", "/v1/chat/completions", body)
    assert (status, raw) == (400, told)
    assert ATTACHED.items() <= headers.items()
    assert "www-authenticate" not in headers


def test_every_answer_but_the_pages_files_tells_browsers_to_run_nothing():
    ring = Keyring((Key(name="boss", sha256=hashed("coe-boss"), admin=True, requests_per_minute=50),))
    with running_server({"a": simulated("a")}, keyring=ring) as server:
        body = json.dumps({"model": "a", "messages": [{"role": "user", "content": "hello"}]})
        shown = {"authorization": "Bearer coe-boss"}
        stream = json.dumps({**json.loads(body), "stream": True})
        asked = [
            ("POST", "/v1/chat/completions", body, shown, 200),
            ("POST", "/v1/chat/completions", stream, shown, 200),
            ("POST", "/v1/chat/completions", "{", shown, 400),
            ("POST", "/v1/chat/completions", b"x" * 200_000, shown, 413),
            ("POST", "/v1/route", body, shown, 200),
            ("POST", "/v1/chat/completions", body, {}, 401),
            ("GET", "/v1/models", None, shown, 200),
            ("GET", "/v1/chat/completions", None, shown, 405),
            ("GET", "/v1/nowhere", None, shown, 404),
            ("GET", "/openapi.json", None, shown, 200),
            ("GET", "/admin/experts", None, shown, 200),
            ("GET", "/admin/experts", None, {"origin": "null"}, 403),
            ("GET", "/metrics", None, shown, 200),
            ("GET", "/page/nothing.js", None, shown, 404),
            ("GET", "/healthz", None, {}, 200),
        ]
        for method, path, sent, headers, status in asked:
            answered, told, _ = server.ask(method, path, sent, headers)
            assert answered == status, path
            assert HARMLESS.items() <= told.items(), path
        told = server.ask("GET", "/", headers=shown)[1]
        assert "sandbox" not in told["content-security-policy"]


def test_what_is_refused_before_it_is_read_tells_so_too():
    head = b"Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with running_server({"a": simulated("a")}) as server:
        for request in (b"no request\r\n\r\n", b"GET /v1/realtime HTTP/1.1\r\n" + head):
            with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
                wire.sendall(request)
                lines = []
                with wire.makefile("rb") as answer:
                    while (line := answer.readline().strip().lower()) != b"":
                        lines.append(line)
            assert b"x-content-type-options: nosniff" in lines
            assert b"content-security-policy: sandbox" in lines
