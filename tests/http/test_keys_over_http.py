"""Who may do what, over real sockets: keys, limits, and what is the operator's alone."""

import asyncio
import http.client
import json
import logging
import re
import threading

import openai
import pytest

from coe_server.errors import Forbidden, RateLimited
from coe_server.http.auth import MOST_CREDENTIALS, Guard
from coe_server.http.rate_limits import RateLimits
from coe_server.http.routes.admin import Fresh
from coe_server.keys import Key, Keyring, hashed
from coe_server.routing import artifact as artifacts
from coe_server.routing.router import Router
from tests.http.server import running_server
from tests.http.test_api import simulated
from tests.patience import PATIENCE_SECONDS
from tests.routing.small_artifact import SIZES, TEXTS, held_out, small_artifact

CLIENT, ADMIN, SLOW, SCRAPE = "coe-client", "coe-admin", "coe-slow", "coe-scrape"
RING = Keyring(
    (
        Key(name="client", sha256=hashed(CLIENT)),
        Key(name="boss", sha256=hashed(ADMIN), admin=True),
        Key(name="slow", sha256=hashed(SLOW), requests_per_minute=2),
        Key(name="prometheus", sha256=hashed(SCRAPE), scrape=True),
    )
)
OPERATORS = ("/admin/experts", "/admin/events", "/metrics", "/")


@pytest.fixture(scope="module")
def server():
    with running_server({"math": simulated("math")}, keyring=RING, on_loopback=False) as running:
        yield running


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def ask(server, key, **fields):
    body = {"model": "math", "messages": [{"role": "user", "content": "hi"}], **fields}
    return server.ask("POST", "/v1/chat/completions", json.dumps(body), bearer(key))


def code_of(answer):
    return answer[0], json.loads(answer[2])["error"]["code"]


@pytest.mark.parametrize("headers", [{}, bearer("wrong"), {"x-api-key": "wrong"}, {"authorization": "Basic !!"}])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/route", "/tokenize"])
def test_without_a_known_key_nothing_of_the_api_answers(server, path, headers):
    assert code_of(server.ask("POST", path, b"{}", headers)) == (401, "invalid_api_key")


def test_a_key_opens_the_api_in_either_header(server):
    assert server.ask("GET", "/v1/models", headers=bearer(CLIENT))[0] == 200
    assert server.ask("GET", "/v1/models", headers={"x-api-key": CLIENT})[0] == 200
    assert ask(server, CLIENT)[0] == 200


BASIC = "Basic dXNlcjpwdw=="  # a proxy's own, user:pw
BESIDE = {
    "a proxy's password": BASIC,
    "an empty Bearer": "Bearer ",
    "Bearer alone": "Bearer",
    "nothing": "",
    "a wrong key": "Bearer dummy",
    "another scheme": "Digest username=x",
    "a scheme unheard of": "AWS4-HMAC-SHA256 Credential=x",
    "no base64": "Basic !!",
}


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
def test_a_right_key_opens_beside_any_other_credential(server, beside):
    headers = {"x-api-key": CLIENT, "authorization": beside}
    assert server.ask("GET", "/v1/models", headers=headers)[0] == 200
    assert server.ask("GET", "/metrics", headers={**headers, "x-api-key": ADMIN})[0] == 200
    assert code_of(server.ask("GET", "/v1/models", headers={**headers, "x-api-key": "wrong"})) == (
        401,
        "invalid_api_key",
    )
    assert server.ask("GET", "/v1/models", headers={"authorization": f"bearer  {CLIENT} ", "x-api-key": "x"})[0] == 200


def raw_status(server, *lines):
    wire = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_SECONDS)
    try:
        wire.putrequest("GET", "/v1/models")
        for name, value in lines:
            wire.putheader(name, value)
        wire.endheaders()
        return wire.getresponse().status
    finally:
        wire.close()


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
def test_a_right_key_opens_in_any_of_several_lines_or_in_one_that_a_proxy_made_of_them(server, beside):
    right = f"Bearer {CLIENT}"
    for values in ((beside, right), (right, beside), (f"{beside}, {right}",), (f"{right},{beside}",)):
        assert raw_status(server, *(("authorization", value) for value in values)) == 200
    assert raw_status(server, ("x-api-key", "wrong"), ("x-api-key", CLIENT)) == 200
    assert raw_status(server, ("authorization", beside), ("x-api-key", "wrong")) == 401


def test_a_request_cannot_try_many_keys_at_once(server):
    guesses = [("x-api-key", f"guess-{number}") for number in range(MOST_CREDENTIALS)]
    assert raw_status(server, *guesses[1:], ("x-api-key", CLIENT)) == 200
    assert raw_status(server, *guesses, ("x-api-key", CLIENT)) == 401


def test_an_admin_key_opens_beside_a_key_that_is_none(server):
    assert server.ask("GET", "/metrics", headers={**bearer(CLIENT), "x-api-key": ADMIN})[0] == 200
    assert code_of(server.ask("GET", "/metrics", headers={**bearer(CLIENT), "x-api-key": "x"})) == (403, "forbidden")


def test_without_any_credential_the_refusal_says_how_to_send_one(server):
    for headers in ({}, {"authorization": "Bearer "}, {"authorization": "Digest x"}, {"x-api-key": " "}):
        message = json.loads(server.ask("GET", "/v1/models", headers=headers)[2])["error"]["message"]
        assert message.startswith("no API key was given: send `Authorization: Bearer KEY`")


def test_the_official_client_knows_the_refusal(server):
    base = f"http://127.0.0.1:{server.port}/v1"
    with (
        openai.OpenAI(base_url=base, api_key="sk-wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert caught.value.code == "invalid_api_key"


@pytest.mark.parametrize("path", OPERATORS)
def test_what_is_the_operators_takes_an_admin_key(server, path):
    assert code_of(server.ask("GET", path)) == (401, "invalid_api_key")
    assert code_of(server.ask("GET", path, headers=bearer(CLIENT))) == (403, "forbidden")
    other_page = bearer(ADMIN) | {"origin": "https://evil.example"}
    assert code_of(server.ask("GET", path, headers=other_page)) == (403, "forbidden")


def test_a_scrape_key_reads_the_metrics_and_nothing_else(server):
    assert server.ask("GET", "/metrics", headers=bearer(SCRAPE))[0] == 200
    assert server.ask("HEAD", "/metrics", headers=bearer(SCRAPE))[0] != 403
    for path in (*OPERATORS, "/v1/models", "/openapi.json", "/nope"):
        if path != "/metrics":
            assert code_of(server.ask("GET", path, headers=bearer(SCRAPE))) == (403, "forbidden"), path
    for path in ("/v1/chat/completions", "/admin/reload", "/admin/experts/math/load", "/v1/route"):
        assert code_of(server.ask("POST", path, b"{}", bearer(SCRAPE))) == (403, "forbidden"), path
    assert server.ask("DELETE", "/v1/decisions/x", headers=bearer(SCRAPE))[0] == 403
    assert server.ask("GET", "/v1/models", headers={**bearer(SCRAPE), "x-api-key": CLIENT})[0] == 200


@pytest.mark.parametrize("on_loopback", [True, False])
def test_a_scrape_key_alone_makes_no_operator_and_locks_none_out(on_loopback):
    guard = Guard(Keyring(tuple(key for key in RING.keys if not key.admin)), on_loopback=on_loopback)
    assert guard.admit("/metrics", bearer(SCRAPE)).name == "prometheus"
    assert guard.admit("/metrics", {**bearer(SCRAPE), "via": "1.1 proxy"}).name == "prometheus"
    if on_loopback:
        assert guard.admit("/admin/experts", {}) is None
        return
    for headers in ({}, bearer(SCRAPE)):
        with pytest.raises(Forbidden):
            guard.admit("/admin/experts", headers)


def test_a_new_path_needs_an_admin_key_until_it_is_opened():
    guard = Guard(RING, on_loopback=False)
    assert guard.admit("/whatever/comes/later", bearer(ADMIN)).name == "boss"
    with pytest.raises(Forbidden):
        guard.admit("/whatever/comes/later", bearer(CLIENT))


MISTAKEN = {
    "/chat/completions": "did you mean /v1/chat/completions?",
    "/v1/v1/chat/completions": "did you mean /v1/chat/completions?",
    "/openai/deployments/math/chat/completions": "did you mean /v1/chat/completions?",
    "/models/math": "did you mean /v1/models/math?",
    "/v1/chat/completion": "did you mean /v1/chat/completions?",
    "/chat/completion": "did you mean /v1/chat/completions?",
    "/v1/model": "did you mean /v1/models?",
    "/v1/messages/count_token": "did you mean /v1/messages/count_tokens?",
    "/api/embeddings": "did you mean /v1/embeddings?",
    "/api/tags": "Ollama's own API is not served; use OpenAI's, under /v1",
    "/api/chat": "Ollama's own API is not served; use OpenAI's, under /v1",
    "/api/event_logging/batch": "GET /openapi.json lists",
    "/v1/chat": "GET /openapi.json lists",
    "/v1/nope": "GET /openapi.json lists",
    "/version": "GET /openapi.json lists",
    "/admin/nope": "GET /openapi.json lists",
    "/a/b/c/d/e/f/models": "GET /openapi.json lists",
}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", MISTAKEN)
def test_where_no_endpoint_is_a_client_is_told_so_and_what_it_may_have_meant(server, method, path):
    assert code_of(server.ask(method, path, headers=bearer(CLIENT))) == (404, "unknown_url")
    message = json.loads(server.ask(method, path, headers=bearer(CLIENT))[2])["error"]["message"]
    assert message.startswith(f"{method} {path}: unknown path; {MISTAKEN[path]}")
    refused = server.ask(method, path)
    assert code_of(refused) == (401, "invalid_api_key")
    assert "www-authenticate" not in refused[1]  # no browser's business


def test_a_wrong_path_is_told_to_everybody_where_there_are_no_keys():
    with running_server({"math": simulated("math")}, on_loopback=False) as server:
        assert code_of(server.ask("POST", "/chat/completions", b"{}")) == (404, "unknown_url")


def test_an_additional_slash_changes_no_permission(server):
    for end in ("/", "//", "%2F"):
        assert server.ask("GET", f"/v1/models{end}", headers=bearer(CLIENT))[0] == 200
        assert server.ask("GET", f"/v1/models{end}")[0] == 401
        assert server.ask("GET", f"/healthz{end}")[0] == 200
        assert server.ask("GET", f"/admin/experts{end}", headers=bearer(CLIENT))[0] == 403
        assert server.ask("GET", f"/admin/experts{end}", headers=bearer(ADMIN))[0] == 200
        assert server.ask("GET", f"/metrics{end}")[0] == 401


@pytest.mark.parametrize(
    "path", ["//admin/experts", "/admin//experts", "/v1//admin/experts", "//v1/models", "/v1//models"]
)
def test_slashes_in_front_or_within_open_nothing(server, path):
    assert server.ask("GET", path)[0] == 401
    assert code_of(server.ask("GET", path, headers=bearer(CLIENT))) == (404, "unknown_url")


def test_a_slash_at_the_end_counts_against_the_same_limits():
    ring = Keyring((Key(name="slow", sha256=hashed(SLOW), requests_per_minute=2),))
    with running_server({"math": simulated("math")}, keyring=ring) as server:
        ask(server, SLOW)
        body = json.dumps({"model": "math", "messages": [{"role": "user", "content": "hi"}]})
        assert server.ask("POST", "/v1/chat/completions/", body, bearer(SLOW))[0] == 200
        assert server.ask("POST", "/v1/chat/completions/", body, bearer(SLOW))[0] == 429


def test_the_admin_key_opens_everything_also_as_a_browsers_password(server):
    assert server.ask("GET", "/metrics", headers=bearer(ADMIN))[0] == 200
    assert ask(server, ADMIN)[0] == 200
    password = "Ym9zczpjb2UtYWRtaW4="  # boss:coe-admin
    assert server.ask("GET", "/admin/experts", headers={"authorization": f"Basic {password}"})[0] == 200
    assert server.ask("GET", "/admin/experts")[1]["www-authenticate"].startswith("Basic")
    for path in ("/v1/models", "/tokenize", "/openapi.json"):
        assert "www-authenticate" not in server.ask("GET", path)[1]


@pytest.mark.parametrize("origin", ["http://evil.example", "http://[", "null"])
def test_the_admin_key_opens_nothing_to_pages_elsewhere(server, origin):
    status, _, raw = server.ask("GET", "/admin/experts", headers={**bearer(ADMIN), "origin": origin})
    assert (status, json.loads(raw)["error"]["code"]) == (403, "forbidden")


def test_health_is_for_everybody(server):
    for path in ("/health", "/healthz"):
        status, _, raw = server.ask("GET", path)
        assert (status, json.loads(raw)) == (200, {"status": "ok"})
        assert server.ask("HEAD", path)[0] == 200
    assert server.ask("GET", "/readyz")[0] in {200, 503}


def test_no_admin_key_and_no_loopback_means_no_operator():
    with running_server({"math": simulated("math")}, on_loopback=False) as server:
        for path in OPERATORS:
            status, code = code_of(server.ask("GET", path, headers=bearer("anything")))
            assert (status, code) == (403, "forbidden"), path
        assert ask(server, "anything")[0] == 200  # keys.open


@pytest.mark.parametrize(
    "header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Forwarded-Host", "X-Forwarded-Proto", "Via"]
)
def test_what_came_through_a_proxy_on_loopback_is_not_the_operator(header):
    with running_server({"math": simulated("math")}) as server:
        assert server.ask("GET", "/admin/experts")[0] == 200
        assert server.ask("GET", "/metrics")[0] == 200
        assert code_of(server.ask("GET", "/admin/experts", headers={header: "203.0.113.9"})) == (403, "forbidden")


def test_on_loopback_client_keys_do_not_lock_the_operator_out_but_an_admin_key_is_asked_for():
    with running_server({"math": simulated("math")}, keyring=Keyring(RING.keys[:1])) as server:
        assert server.ask("GET", "/admin/experts")[0] == 200
        assert code_of(server.ask("GET", "/v1/models")) == (401, "invalid_api_key")
    with running_server({"math": simulated("math")}, keyring=RING) as server:
        assert server.ask("GET", "/admin/experts")[0] == 401


def test_a_key_that_asked_often_enough_is_told_when_to_come_back(server):
    left = [ask(server, SLOW)[1]["x-ratelimit-remaining-requests"] for _ in range(2)]
    assert left == ["1", "0"]
    refused = ask(server, SLOW)
    assert code_of(refused) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused[1]["retry-after"]) <= 60
    limits = [refused[1][f"x-ratelimit-{what}-requests"] for what in ("limit", "remaining", "reset")]
    assert limits[:2] == ["2", "0"]
    assert 0.0 < float(limits[2].removesuffix("s")) <= 60.0
    for method in ("GET", "HEAD", "DELETE", "PUT"):
        for path in ("/v1/models", "/v1/decisions/none"):
            assert server.ask(method, path, headers=bearer(SLOW))[0] == 429
    assert server.ask("GET", "/healthz", headers=bearer(SLOW))[0] == 200  # open, with a key or without
    assert ask(server, CLIENT)[0] == 200


def test_requests_are_counted_by_the_name_of_their_key(server):
    ask(server, CLIENT)
    text = server.ask("GET", "/metrics", headers=bearer(ADMIN))[2].decode()
    assert 'coe_key_requests_total{key="client",status="200"}' in text
    assert CLIENT not in text


def test_a_reload_says_whose_keys_came_and_went(caplog):
    ring = [Key(name=name, sha256=hashed(name)) for name in ("alice", "bob")]

    def rebuild(serving):
        return Fresh(serving, Guard(Keyring((ring[1],)), on_loopback=True), log_prompts=False, changed=())

    with (
        caplog.at_level(logging.INFO),
        running_server({"math": simulated("math")}, keyring=Keyring((ring[0],)), rebuild=rebuild) as server,
    ):
        told = json.loads(server.ask("POST", "/admin/reload")[2])
        assert (ask(server, "alice")[0], ask(server, "bob")[0]) == (401, 200)
    assert told["changed"] == []
    assert told["api_keys"] == {"added": ["bob"], "removed": ["alice"], "changed": []}
    assert "configuration: as before; API keys: added bob; removed alice" in caplog.text


def counted(server, key, status):
    text = server.ask("GET", "/metrics", headers=bearer(ADMIN))[2].decode()
    found = re.search(rf'^coe_key_requests_total{{key="{key}",status="{status}"}} ([\d.]+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_what_is_refused_counts_for_the_key_that_asked(server):
    before = [counted(server, *one) for one in (("slow", 429), ("client", 403), ("boss", 403))]
    while ask(server, SLOW)[0] != 429:
        pass
    server.ask("GET", "/admin/experts", headers=bearer(CLIENT))
    server.ask("GET", "/admin/experts", headers=bearer(ADMIN) | {"origin": "https://evil.example"})
    server.ask("GET", "/admin/experts", headers=bearer("coe-nobodys"))
    after = [counted(server, *one) for one in (("slow", 429), ("client", 403), ("boss", 403))]
    assert after == [count + 1 for count in before]
    assert "nobodys" not in server.ask("GET", "/metrics", headers=bearer(ADMIN))[2].decode()


def test_too_many_at_a_time_is_told_with_what_is_left_of_the_minute():
    limits = RateLimits(clock=lambda: 0.0)
    key = Key(name="a", sha256=hashed("a"), requests_per_minute=5, concurrency=1)
    limits.enter(key)
    with pytest.raises(RateLimited):
        limits.enter(key)
    assert limits.left(key)["x-ratelimit-remaining-requests"] == "4"
    assert limits.left(Key(name="b", sha256=hashed("b"))) == {}


def test_a_minute_passes_and_the_key_may_ask_again():
    now = [0.0]
    limits = RateLimits(clock=lambda: now[0])
    key = Key(name="a", sha256=hashed("a"), requests_per_minute=2)
    limits.enter(key)
    now[0] = 30.0
    limits.enter(key)
    with pytest.raises(RateLimited) as caught:
        limits.enter(key)
    assert caught.value.retry_after_seconds == 30.0
    now[0] = 60.0
    limits.enter(key)
    with pytest.raises(RateLimited):
        limits.enter(key)


def test_requests_at_a_time_are_given_back_when_they_end():
    answering, end = threading.Event(), threading.Event()
    one = Keyring((Key(name="one", sha256=hashed("one"), concurrency=1),))
    with running_server({"math": held("math", answering, end)}, keyring=one) as server:
        first = threading.Thread(target=ask, args=(server, "one"))
        first.start()
        assert answering.wait(PATIENCE_SECONDS)
        assert code_of(ask(server, "one")) == (429, "rate_limit_exceeded")
        end.set()
        first.join(PATIENCE_SECONDS)
        assert ask(server, "one")[0] == 200
        assert ask(server, "one", model=7)[0] == 400  # an error gives it back too
        assert ask(server, "one")[0] == 200


COUSIN = Keyring(
    (
        Key(
            name="cousin",
            sha256=hashed("cousin"),
            experts=frozenset({"coder", "linguist"}),
            objectives=frozenset({"cheap"}),
        ),
        Key(name="free", sha256=hashed("free")),
    )
)


@pytest.fixture(scope="module")
def routed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("router") / "router"
    artifacts.save(small_artifact(), held_out(), None, folder)
    with running_server({name: simulated(name) for name in SIZES}, Router.load(folder), keyring=COUSIN) as running:
        yield running


def test_a_key_lists_and_reaches_what_it_may_use(routed):
    found = json.loads(routed.ask("GET", "/v1/models", headers=bearer("cousin"))[2])["data"]
    assert [model["id"] for model in found] == ["auto", "auto:cheap", "coder", "linguist"]
    assert routed.ask("GET", "/v1/models/big", headers=bearer("cousin"))[0] == 404
    assert routed.ask("GET", "/v1/models/big", headers=bearer("free"))[0] == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "big"},
        {"model": "auto:quality"},
        {"model": "auto", "coe": {"objective": "quality"}},
        {"model": "auto", "coe": {"allow": ["coder", "big"]}},
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/route"])
def test_what_a_key_may_not_use_is_403_and_looks_like_openais(routed, path, fields):
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields})
    assert code_of(routed.ask("POST", path, body, bearer("cousin"))) == (403, "model_not_found")
    assert routed.ask("POST", path, body, bearer("free"))[0] == 200


def test_what_is_nowhere_is_404_and_the_rest_is_not_named(routed):
    refused = ask(routed, "cousin", model="gpt-5")
    assert code_of(refused) == (404, "model_not_found")
    assert "big" not in refused[2].decode()


def test_auto_stays_within_the_keys_experts_and_objectives(routed):
    for text in TEXTS.values():
        asked = {"model": "auto", "messages": [{"role": "user", "content": text}]}
        decision = json.loads(routed.ask("POST", "/v1/route", json.dumps(asked), bearer("cousin"))[2])
        assert decision["objective"] == "cheap"
        assert decision["expert"] in {"coder", "linguist"}
        assert {one["expert"] for one in decision["ranking"]} <= {"coder", "linguist"}


def held(name, answering, end):
    """A simulated engine that, once it is up, waits for the test before it says anything."""
    engine = simulated(name)

    async def pause(seconds):
        if engine._running:
            answering.set()
            await asyncio.to_thread(end.wait, PATIENCE_SECONDS)

    engine._pause = pause
    return engine
