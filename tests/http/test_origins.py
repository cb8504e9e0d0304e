"""What browsers are told about pages of other origins (CORS): the answers that a page may read, and nothing else."""

import json

import pytest

from coe_server.http import middleware
from coe_server.http.auth import Guard
from coe_server.keys import Key, Keyring, hashed
from tests.http.server import running_server
from tests.http.test_api import simulated

RING = Keyring((Key(name="page", sha256=hashed("coe-page")), Key(name="boss", sha256=hashed("coe-boss"), admin=True)))
PAGE = {"origin": "https://chat.example"}
ASKS = {**PAGE, "access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
CHAT = json.dumps({"model": "a", "messages": [{"role": "user", "content": "hello"}]})


@pytest.fixture(scope="module")
def server():
    with running_server({"a": simulated("a")}, keyring=RING) as running:
        yield running


def test_a_page_that_has_a_key_may_ask_and_read_the_answer_with_its_headers(server):
    status, headers, raw = server.ask("OPTIONS", "/v1/chat/completions", headers=ASKS)
    assert (status, raw) == (204, b"")
    assert headers["access-control-allow-origin"] == PAGE["origin"]
    assert headers["access-control-allow-headers"] == "authorization,content-type"
    assert "POST" in headers["access-control-allow-methods"]
    status, headers, _ = server.ask("POST", "/v1/chat/completions", CHAT, {**PAGE, "authorization": "Bearer coe-page"})
    assert (status, headers["access-control-allow-origin"], headers["vary"]) == (200, PAGE["origin"], "origin")
    assert (headers["access-control-expose-headers"], headers["x-coe-expert"]) == ("*", "a")
    assert (
        "access-control-allow-credentials" not in headers
    )  # a password that the browser knows opens nothing to a page


def test_a_page_reads_why_it_was_refused(server):
    for path, status in (("/v1/chat/completions", 401), ("/v1/nowhere", 401)):
        answered, headers, _ = server.ask("POST", path, CHAT, PAGE)
        assert (answered, headers["access-control-allow-origin"]) == (status, PAGE["origin"])


@pytest.mark.parametrize("path", ["/admin/experts", "/metrics", "/", "/admin/reload"])
def test_what_is_the_operators_is_for_no_other_page(server, path):
    for method, extra in (("OPTIONS", ASKS), ("GET", {**PAGE, "authorization": "Bearer coe-boss"})):
        status, headers, _ = server.ask(method, path, headers=extra)
        assert status in {401, 403}
        assert "access-control-allow-origin" not in headers


def test_a_client_that_is_no_page_gets_no_headers_about_origins(server):
    _, headers, _ = server.ask("POST", "/v1/chat/completions", CHAT, {"authorization": "Bearer coe-page"})
    assert not [name for name in headers if name.startswith("access-control") or name == "vary"]


@pytest.mark.parametrize(
    ("origin", "is_welcome"),
    [
        ("http://localhost:3000", True),
        ("https://127.0.0.1", True),
        ("http://[::1]:8000", True),
        ("https://chat.example", False),
        ("http://localhost.example", False),
        ("http://[", False),
        ("null", False),
        ("", False),
    ],
)
def test_where_there_are_no_keys_the_pages_of_this_machine_alone_are_welcome(origin, is_welcome):
    path = "/v1/chat/completions"
    assert middleware.is_welcome(origin, path, Guard(Keyring(), on_loopback=True)) == is_welcome
    assert middleware.is_welcome(origin, path, Guard(RING, on_loopback=True))
