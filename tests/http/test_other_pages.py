"""What a web page elsewhere can have a browser send is refused at the door; what has a key of its own is not."""

import json
import socket

import openai
import pytest

from coe_server.http.auth import is_of_this_machine
from coe_server.http.browsers import MOST_ADDRESSES, Hosts, other_page
from coe_server.keys import Key, Keyring, hashed
from tests.http.server import running_server
from tests.http.test_api import simulated
from tests.patience import PATIENCE_SECONDS

RING = Keyring((Key(name="page", sha256=hashed("coe-page")), Key(name="boss", sha256=hashed("coe-boss"), admin=True)))
REMEMBERED = {"authorization": "Basic YW55OmNvZS1ib3Nz"}  # any:coe-boss
CHAT = json.dumps({"model": "a", "messages": [{"role": "user", "content": "hello"}]})
VISIT = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
CLIENTS = [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("POST", "/tokenize"), ("GET", "/openapi.json")]
OPERATORS = [("GET", "/admin/experts"), ("POST", "/admin/experts/a/unload"), ("POST", "/admin/reload"), ("GET", "/")]


@pytest.fixture(scope="module")
def bare():
    with running_server({"a": simulated("a")}) as running:
        yield running


@pytest.fixture(scope="module")
def locked():
    with running_server({"a": simulated("a")}, keyring=RING) as running:
        yield running


def code_of(answer):
    return answer[0], json.loads(answer[2])["error"]["code"]


def ask(server, method, path, **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.ask(method, path, CHAT if method == "POST" else None, names)


def foreign(server):
    """What browsers send for pages elsewhere: other sites, other ports, sandboxed frames, forms."""
    return [
        {"origin": "https://evil.example", "sec_fetch_site": "cross-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://["},
        {"origin": "file://"},
        {"origin": "http://localhost:3000", "sec_fetch_site": "same-site"},
        {"origin": f"http://127.0.0.1:{server.port + 1}"},
        {"origin": "http://127.0.0.1"},
        {"origin": f"http://localhost:{server.port}", "sec_fetch_site": "cross-site"},
        {"origin": f"http://127.0.0.1:{server.port}@evil.example"},
        {"origin": f"http://127.0.0.1:{server.port}.evil.example"},
        {"origin": f"chrome-extension://127.0.0.1:{server.port}"},
        {"origin": f"http://127.0.0.1:{server.port}", "sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "Cross-Site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"},
        {
            "origin": "https://evil.example",
            "content_type": "text/plain",
            **{k.replace("-", "_"): VISIT[k] for k in VISIT},
        },
    ]


@pytest.mark.parametrize(("method", "path"), [*CLIENTS, *OPERATORS, ("GET", "/nowhere")])
def test_without_keys_a_page_elsewhere_gets_nothing(bare, method, path):
    for sent in foreign(bare):
        if method == "GET" and "sec_fetch_dest" in sent and "content_type" in sent:
            continue  # a form's
        assert code_of(ask(bare, method, path, **sent)) == (403, "forbidden"), sent


@pytest.mark.parametrize(("method", "path"), CLIENTS)
def test_with_keys_a_page_elsewhere_needs_one_of_its_own_and_a_remembered_password_is_none(locked, method, path):
    for sent in foreign(locked):
        assert code_of(ask(locked, method, path, **sent)) == (401, "invalid_api_key"), sent
        refused = ask(locked, method, path, **sent, **REMEMBERED)
        assert code_of(refused) == (401, "invalid_api_key"), sent
        assert "www-authenticate" not in refused[1]


@pytest.mark.parametrize(("method", "path"), OPERATORS[:3])
def test_what_is_the_operators_takes_no_key_from_a_page_elsewhere(locked, method, path):
    for sent in foreign(locked):
        for shown in (REMEMBERED, {"authorization": "Bearer coe-boss"}, {"x_api_key": "coe-boss"}):
            refused = ask(locked, method, path, **sent, **shown)
            assert code_of(refused) == (403, "forbidden"), sent
            assert "access-control-allow-origin" not in refused[1]


def test_a_page_elsewhere_that_shows_a_key_is_answered(locked, bare):
    for sent in foreign(locked):
        for shown in ({"authorization": "Bearer coe-page"}, {"x_api_key": "coe-page"}):
            assert ask(locked, "POST", "/v1/chat/completions", **sent, **shown)[0] == 200
            assert code_of(ask(locked, "GET", "/v1/models", **sent, x_api_key="wrong"))[0] == 401
    status, headers, _ = ask(bare, "POST", "/v1/chat/completions", origin="http://localhost:3000", x_api_key="any")
    assert (status, headers["access-control-allow-origin"]) == (200, "http://localhost:3000")


def test_without_keys_a_page_of_another_port_is_told_what_to_send(bare):
    status, headers, raw = ask(bare, "POST", "/v1/chat/completions", origin="http://localhost:3000")
    assert (status, headers["access-control-allow-origin"]) == (403, "http://localhost:3000")
    assert "send `Authorization: Bearer KEY`" in json.loads(raw)["error"]["message"]


@pytest.mark.parametrize(
    "shown", [{"authorization": "Bearer "}, {"authorization": "Digest x"}, {"x_api_key": " "}, REMEMBERED]
)
def test_what_is_no_key_excuses_no_page(bare, shown):
    refused = ask(bare, "POST", "/v1/chat/completions", origin="https://evil.example", **shown)
    assert code_of(refused) == (403, "forbidden")


def test_a_second_origin_is_seen(bare):
    lines = f"Host: 127.0.0.1:{bare.port}\r\nOrigin: http://127.0.0.1:{bare.port}\r\nOrigin: https://evil.example"
    assert status_of(bare, f"GET /v1/models HTTP/1.1\r\n{lines}\r\nConnection: close\r\n\r\n") == 403


def test_a_browser_is_told_beforehand_which_pages_may_ask(bare, locked):
    asks = {"access_control_request_method": "POST", "access_control_request_headers": "authorization"}
    site = {"sec_fetch_site": "cross-site"}
    for server, origin, status in ((bare, "http://localhost:3000", 204), (locked, "https://chat.example", 204)):
        answered, headers, _ = ask(server, "OPTIONS", "/v1/chat/completions", origin=origin, **asks, **site)
        assert (answered, headers["access-control-allow-origin"]) == (status, origin)
        assert "access-control-allow-credentials" not in headers
        assert (headers["x-content-type-options"], headers["content-security-policy"]) == ("nosniff", "sandbox")
    refused = ask(bare, "OPTIONS", "/v1/chat/completions", origin="https://evil.example", **asks, **site)
    assert refused[0] == 403
    assert "access-control-allow-origin" not in refused[1]
    named = {**asks, "host": "ai.example.com"}  # it cannot show the key yet
    assert ask(locked, "OPTIONS", "/v1/models", origin="https://chat.example", **named)[0] == 204


def test_our_own_page_asks_whatever_its_browser_tells(bare):
    own = f"http://127.0.0.1:{bare.port}"
    for sent in (
        {},
        {"origin": own},
        {"origin": f"http://localhost:{bare.port}"},
        {"origin": own.upper().replace("HTTP", "http")},
        {"origin": own, "sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "none", "sec_fetch_mode": "navigate"},
        {"host": "localhost:1", "origin": "http://localhost:1"},
        {"host": "[::1]:8080", "origin": "http://[::1]:8080"},
        {"host": "localhost", "origin": "http://localhost"},
        {"host": "localhost:443", "origin": "https://localhost"},
        {"host": "LOCALHOST.", "origin": "http://localhost:80"},
    ):
        for method, path in (*CLIENTS[:2], OPERATORS[0]):
            assert ask(bare, method, path, **sent)[0] == 200, sent


def test_behind_a_proxy_our_page_is_known_by_the_host_that_it_passes_on(locked):
    shown = {"authorization": "Bearer coe-boss", "origin": "https://ai.example.com"}
    for passed in ({"host": "ai.example.com"}, {"x_forwarded_host": "ai.example.com"}, {"host": "ai.example.com:443"}):
        assert ask(locked, "GET", "/admin/experts", **shown, **passed)[0] == 200
    assert ask(locked, "GET", "/admin/experts", **shown, x_forwarded_host="ai.example.com, inner.local")[0] == 200
    for passed in ({}, {"x_forwarded_host": "ai.example.com:8443"}, {"host": "ai.example.com.evil.example"}):
        assert code_of(ask(locked, "GET", "/admin/experts", **shown, **passed)) == (403, "forbidden")


def test_a_remembered_password_opens_what_is_any_clients_to_our_page_alone(locked):
    own = f"http://127.0.0.1:{locked.port}"
    for sent in ({"origin": own}, {"sec_fetch_site": "same-origin"}, {"x_coe_page": "1"}):
        assert ask(locked, "POST", "/v1/chat/completions", **REMEMBERED, **sent)[0] == 200
        assert ask(locked, "GET", "/v1/models", **REMEMBERED, **sent)[0] == 200
    for sent in ({}, {"sec_fetch_site": "none"}, {"sec_fetch_site": "cross-site", "x_coe_page": "1"}):
        assert code_of(ask(locked, "POST", "/v1/chat/completions", **REMEMBERED, **sent)) == (401, "invalid_api_key")
        assert ask(locked, "GET", "/v1/models", **REMEMBERED, **sent)[0] == 401
    assert ask(locked, "GET", "/admin/experts", **REMEMBERED)[0] == 200


def test_a_link_leads_to_the_page_and_to_nothing_else(bare, locked):
    assert bare.ask("GET", "/", headers=VISIT)[0] == 200
    assert locked.ask("GET", "/", headers={**VISIT, **REMEMBERED})[0] == 200
    assert locked.ask("GET", "/", headers=VISIT)[1]["www-authenticate"].startswith("Basic")
    assert bare.ask("GET", "/", headers={**VISIT, "sec-fetch-site": "same-site"})[0] == 200
    for method, path in (("GET", "/admin/experts"), ("GET", "/v1/models"), ("GET", "/page/page.js"), ("POST", "/")):
        assert bare.ask(method, path, headers=VISIT)[0] == 403
    assert bare.ask("GET", "/", headers={**VISIT, "sec-fetch-dest": "iframe"})[0] == 403


@pytest.mark.parametrize("path", ["/health", "/healthz", "/readyz"])
def test_probes_are_answered_by_any_name_and_from_any_page(bare, locked, path):
    for server in (bare, locked):
        for sent in ({"origin": "https://evil.example"}, {"host": "10.1.2.3:8080"}, {"host": "coe"}, VISIT):
            assert server.ask("GET", path, headers=sent)[0] in {200, 503}


def test_a_websocket_is_refused_as_before(bare):
    head = "GET /v1/realtime HTTP/1.1\r\nHost: evil.example\r\nOrigin: https://evil.example\r\nConnection: Upgrade\r\n"
    assert status_of(bare, f"{head}Upgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n") == 426


# Host: a name elsewhere that was pointed at this machine makes its pages of one origin with the server.


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.evil.example",
        "127.0.0.1.evil.example:8080",
        "localhost.evil.example",
        "10.1.2.3",
        "a b",
        "@",
    ],
)
def test_without_keys_only_this_machines_names_are_answered(bare, host):
    for method, path in (*CLIENTS, *OPERATORS, ("GET", "/nowhere")):
        for origin in ({}, {"origin": f"http://{host}"}):
            assert code_of(ask(bare, method, path, host=host, **origin)) == (403, "forbidden"), path


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8080", "localhost.", "127.0.0.1", "127.8.8.8:1", "[::1]:8080", "[::ffff:127.0.0.1]", ""],
)
def test_this_machines_names_are_answered_in_every_spelling(bare, host):
    assert ask(bare, "GET", "/v1/models", host=host)[0] == 200
    assert ask(bare, "GET", "/admin/experts", host=host)[0] == 200


def test_names_that_were_allowed_are_answered_with_any_port():
    with running_server({"a": simulated("a")}, hosts=Hosts(frozenset({"coe", "10.1.2.3"}))) as server:
        for host in ("coe", "COE:8080", "10.1.2.3:8080"):
            assert ask(server, "POST", "/v1/chat/completions", host=host)[0] == 200
        assert ask(server, "POST", "/v1/chat/completions", host="coe.example")[0] == 403


def test_an_open_server_answers_by_any_name_and_still_no_page_elsewhere():
    with running_server({"a": simulated("a")}, hosts=Hosts(any_for_clients=True)) as server:
        assert ask(server, "POST", "/v1/chat/completions", host="10.1.2.3:8080")[0] == 200
        assert (
            ask(server, "POST", "/v1/chat/completions", host="ai.example.com", origin="https://evil.example")[0] == 403
        )
        assert ask(server, "GET", "/admin/experts", host="ai.example.com")[0] == 403  # the operator's still


def test_a_key_opens_by_any_name_and_its_lack_is_told(locked):
    sent = {"host": "ai.example.com"}
    assert ask(locked, "POST", "/v1/chat/completions", **sent, authorization="Bearer coe-page")[0] == 200
    assert ask(locked, "GET", "/admin/experts", **sent, **REMEMBERED)[0] == 200
    assert code_of(ask(locked, "GET", "/v1/models", **sent)) == (401, "invalid_api_key")
    assert ask(locked, "GET", "/", **sent)[1]["www-authenticate"].startswith("Basic")


def test_the_address_that_was_connected_to_is_a_name_of_the_server():
    hosts = Hosts()
    assert hosts.unknown(["10.1.2.3:8080"], "10.1.2.3") is None
    assert hosts.unknown(["[fe80::1]:8080"], "fe80:0::1") is None
    assert hosts.unknown(["10.1.2.4:8080"], "10.1.2.3") == "10.1.2.4:8080"
    assert hosts.unknown(["localhost", "evil.example"], "127.0.0.1") == "evil.example"


def test_old_clients_without_host_are_answered(bare):
    assert status_of(bare, "GET /v1/models HTTP/1.0\r\n\r\n") == 200
    assert status_of(bare, "GET /admin/experts HTTP/1.0\r\n\r\n") == 200


def test_the_official_client_needs_no_origin(bare, locked):
    for server, key in ((bare, "none"), (locked, "coe-page")):
        with openai.OpenAI(base_url=f"http://localhost:{server.port}/v1", api_key=key, max_retries=0) as client:
            told = client.chat.completions.create(model="a", messages=[{"role": "user", "content": "hello"}])
        assert told.choices[0].message.content


@pytest.mark.parametrize(
    "address", ["localhost", "http://localhost:3000", "127.8.8.8:1", "http://[::1]:1", "https://127.1"]
)
def test_an_address_of_this_machine_is_known(address):
    assert is_of_this_machine(address)


@pytest.mark.parametrize(
    "address",
    ["127.evil.example", "http://127.evil.example:80", "http://127.0.0.1@evil.example", "null", "", "//localhost"],
)
def test_a_name_that_looks_like_this_machines_is_not(address):
    assert not is_of_this_machine(address)


def status_of(server, request):
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
        wire.sendall(request.encode())
        return int(wire.makefile("rb").readline().split()[1])


@pytest.mark.parametrize(("others", "is_ours"), [(MOST_ADDRESSES - 2, True), (MOST_ADDRESSES - 1, False)])
def test_of_the_addresses_that_proxies_name_the_first_few_count(others, is_ours):
    """They are read before any key is: thirty thousand of them would hold up every other request for a second."""
    origin = "https://coe.example"
    headers = {"host": "127.0.0.1", "origin": origin, "x-forwarded-host": "a," * others + "coe.example"}
    assert other_page(headers) == (None if is_ours else origin)
