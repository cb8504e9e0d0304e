"""What a caller sees when experts fail, are full, are slow, or are lost while it waits."""

import asyncio
import json
import logging
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import openai
import pytest

from coe_server.cache.policy import Limits
from coe_server.cache.tiers import Bytes
from coe_server.engines.remote import RemoteEngine
from coe_server.errors import EngineDied, EngineStartFailed
from coe_server.routing import artifact as artifacts
from coe_server.routing.by_name import NamedRouter
from coe_server.routing.router import Router
from tests.http.server import running_server
from tests.http.test_api import (
    GIB,
    Breaking,
    DiesAtOnce,
    DiesBeforeTheFirstWord,
    DiesMidStream,
    error_of,
    read_events,
    simulated,
)
from tests.patience import PATIENCE_SECONDS, received_answer, until
from tests.routing.small_artifact import SIZES, TEXTS, held_out, small_artifact

FRENCH = [{"role": "user", "content": TEXTS["french"]}]  # linguist is best, then big, then coder


@pytest.fixture
def router(tmp_path):
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    return Router.load(tmp_path / "router")


class Says:
    """An engine's answer as the test wrote it: chunks, exceptions to raise, or events to wait for between them."""

    def __init__(self, status, *chunks, headers=(("content-type", "application/json"),)):
        self.status = status
        self.headers = headers
        self.script = chunks
        self.closed = threading.Event()

    def __call__(self, engine, inner):
        return self.opened()

    @asynccontextmanager
    async def opened(self):
        try:
            yield self
        finally:
            self.closed.set()

    async def chunks(self):
        for chunk in self.script:
            if isinstance(chunk, Exception):
                raise chunk
            if chunk is FOREVER:
                await asyncio.Event().wait()
            elif isinstance(chunk, threading.Event):
                await asyncio.to_thread(chunk.wait, PATIENCE_SECONDS)
            else:
                yield chunk


FOREVER = object()
EVENTS = (("content-type", "text/event-stream"),)
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
WORD = b'data: {"choices":[{"index":0,"delta":{"content":"bon"}}]}\n\n'
CORE_DIED = b'data: {"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}}\n\n'
DONE = b"data: [DONE]\n\n"


def team(**first):
    """The three experts; `first` says how the named ones answer their first requests."""
    return {name: Breaking(name, first.get(name, [])) for name in SIZES}


def stream(server, messages=FRENCH, headers=None, **fields):
    body = json.dumps({"stream": True, "messages": messages, **fields})
    return server.ask("POST", "/v1/chat/completions", body, headers)


def decisions(server, count):
    """The first decisions that were followed; waits until there are so many."""
    events = []
    while sum(event["kind"] == "decision" for event in events) < count:
        events = read_events(server, 0, len(events) + 1)
    return [event for event in events if event["kind"] == "decision"]


def events_in(raw):
    return [line[6:] for line in raw.decode().splitlines() if line.startswith("data: ")]


FAILURES = {
    "the connection is refused": DiesAtOnce,
    "it dies before its first word": DiesBeforeTheFirstWord,
    "it answers with 500": Says(500, b'{"error": {"message": "oops", "code": 500}}'),
    "it is remote and full": Says(429, b"slow down", headers=(("retry-after", "7"),)),
    "our key is wrong over there": Says(401, b'{"error": {"message": "bad key"}}'),
    "its core died: an error in the stream, then [DONE]": Says(200, ROLE, CORE_DIED, DONE, headers=EVENTS),
    "the error comes in pieces": Says(200, ROLE, CORE_DIED[:20], CORE_DIED[20:] + DONE, headers=EVENTS),
    "it has no such path": Says(404, b'{"detail":"Not Found"}'),
    "it is to be found elsewhere": Says(308, b"", headers=(("location", "https://other.example/v1"),)),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
def test_a_failed_expert_is_replaced_by_the_next_in_the_ranking(router, failure):
    with running_server(team(linguist=[failure]), router=router) as server:
        status, headers, raw = stream(server)
        assert status == 200
        assert (headers["x-coe-expert"], headers["x-coe-reason"]) == ("big", "fallback")
        events = events_in(raw)
        assert json.loads(events[0])["model"] == "big"
        assert json.loads(events[0])["choices"][0]["delta"]["role"] == "assistant"  # once, of the one who answers
        assert events[-1] == "[DONE]"
        assert not any("error" in event for event in events)
        told = decisions(server, 2)
        assert [(one["expert"], one["reason"]) for one in told] == [("linguist", "mapped"), ("big", "fallback")]
        assert told[0]["decision_id"] == told[1]["decision_id"] == headers["x-coe-decision-id"]


def test_the_wait_is_that_for_the_expert_that_answers_with_those_that_failed_before(router):
    fails = threading.Event()
    experts = team(linguist=[Says(200, fails, EngineDied("x"))])
    with running_server(experts, router=router) as server, ThreadPoolExecutor() as pool:
        server.chat(model="big")  # it does not have to start any more
        answer = pool.submit(server.chat, messages=FRENCH)
        until(lambda: {one.name: one.leases for one in server.cache.status()}["linguist"] == 1)
        seen_waiting = time.perf_counter()
        for _ in range(5):
            server.ask("GET", "/healthz")
        failing_ms = (time.perf_counter() - seen_waiting) * 1000
        fails.set()
        _, headers, _ = answer.result(PATIENCE_SECONDS)
    assert headers["x-coe-expert"] == "big"
    assert float(headers["x-coe-wait-ms"]) >= failing_ms - 0.1  # as it is rounded


def test_an_unstreamed_answer_falls_back_too_and_so_on_to_the_last(router):
    with running_server(team(linguist=[DiesAtOnce], big=[DiesAtOnce]), router=router) as server:
        status, headers, body = server.chat(model="auto", messages=FRENCH)
        assert (status, headers["x-coe-expert"], headers["x-coe-reason"]) == (200, "coder", "fallback")
        assert body["model"] == "coder"


def test_a_full_queue_sends_the_request_to_the_next_expert(router):
    experts = team(linguist=[Says(200, WORD, FOREVER, headers=EVENTS)])
    limits = Limits(queue_limit=1, max_concurrency=1)
    with running_server(experts, router=router, limits=limits) as server, open_stream(server) as first:
        first.read_until(b"bon")
        with open_stream(server, model="linguist"):
            until(lambda: {one.name: one.queued for one in server.cache.status()}["linguist"] == 1)
            status, headers, _ = server.chat(model="auto", messages=FRENCH)
            assert (status, headers["x-coe-expert"], headers["x-coe-reason"]) == (200, "big", "fallback")
            status, headers, body = server.chat(model="linguist", messages=FRENCH)
        assert (status, body["error"]["code"]) == (429, "queue_full")
        assert int(headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    "failure",
    [
        DiesMidStream,
        Says(200, ROLE, WORD, CORE_DIED, DONE, headers=EVENTS),
        Says(200, WORD, EngineDied("x"), headers=EVENTS),
    ],
)
def test_after_the_first_token_no_other_expert_answers_and_the_stream_ends_with_an_error(router, failure):
    experts = team(linguist=[failure])
    with running_server(experts, router=router) as server:
        status, headers, raw = stream(server)
        assert (status, headers["x-coe-expert"]) == (200, "linguist")
        assert json.loads(events_in(raw)[-1])["error"]["code"] == "engine_died"
        assert "[DONE]" not in events_in(raw)
        assert experts["big"].starts == experts["coder"].starts == 0


def test_the_event_of_a_broken_anthropic_stream_is_one_that_its_clients_know(router):
    start = b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n'
    word = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"x"}}\n\n'
    experts = team(linguist=[Says(200, start, word, EngineDied("x"), headers=EVENTS)])
    with running_server(experts, router=router) as server:
        body = json.dumps({"stream": True, "messages": FRENCH, "max_tokens": 9})
        raw = server.ask("POST", "/v1/messages", body)[2].decode()
        last = raw.rstrip("\n").split("\n\n")[-1]
        assert last.startswith("event: error\ndata: ")
        assert json.loads(last.split("data: ")[1])["type"] == "error"


def test_the_callers_mistake_goes_to_no_other_expert(router):
    told = (
        b'{"error": {"message": "temperature must be positive", "type": "BadRequestError", "param": null, "code": 400}}'
    )
    experts = team(linguist=[Says(400, told)])
    with running_server(experts, router=router) as server:
        status, headers, raw = server.ask("POST", "/v1/chat/completions", json.dumps({"messages": FRENCH}))
        assert (status, raw, headers["x-coe-expert"]) == (400, told, "linguist")
        assert experts["big"].starts == 0


def test_an_error_in_a_shape_of_its_own_is_put_into_ours():
    with running_server({"a": Breaking("a", [Says(404, b"<html>no</html>"), Says(401, b"key?")])}) as server:
        status, error = error_of(server.chat(model="a"))
        assert (status, error["code"]) == (404, "engine_refused")
        assert "<html>no</html>" in error["message"]
        status, error = error_of(server.chat(model="a"))  # not 401: the caller's key is right
        assert (status, error["code"]) == (502, "engine_error")


def warned(caplog):
    return [record.getMessage() for record in caplog.records if record.name.endswith("routed_response")]


def test_an_expert_that_cannot_be_reached_is_named_and_its_address_is_for_the_log(caplog):
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        base_url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        limits = Limits(death_notice_seconds=0)
        with running_server({"coder": RemoteEngine("coder", base_url, None)}, limits=limits) as server:
            status, error = error_of(server.chat(model="coder"))
    assert (status, error["code"], error["message"]) == (
        502,
        "engine_unreachable",
        "expert 'coder' could not be reached",
    )
    (line,) = warned(caplog)
    assert base_url.removesuffix("/v1") in line


def test_where_an_upstream_sends_callers_is_for_the_log(caplog):
    moved = Says(301, b"", headers=(("Location", "https://internal.example/v1"),))
    with running_server({"a": Breaking("a", [moved])}) as server:
        status, headers, body = server.chat(model="a")
    assert (status, body["error"]["code"]) == (502, "engine_error")
    assert "internal.example" not in f"{headers} {body}"
    assert "https://internal.example/v1" in warned(caplog)[0]


def test_what_an_upstream_says_of_its_own_address_and_our_account_there_is_not_for_callers():
    theirs = ["Set-Cookie", "Alt-Svc", "Strict-Transport-Security", "OpenAI-Organization", "OpenAI-Project"]
    theirs += ["X-RateLimit-Remaining-Requests", "Anthropic-Ratelimit-Tokens-Limit", "Access-Control-Allow-Origin"]
    theirs += ["X-Coded-By"]
    passed_on = ("openai-processing-ms",)
    answer = Says(200, b'{"choices":[{"text":"bon"}]}', headers=[(name, "theirs") for name in (*theirs, *passed_on)])
    with running_server({"a": Breaking("a", [answer])}) as server:
        _, headers, _ = server.chat(model="a")
    assert [name for name, value in headers.items() if value == "theirs"] == list(passed_on)


def test_how_an_upstream_refuses_our_key_is_for_the_log(caplog):
    with running_server({"a": Breaking("a", [Says(401, b"bad key sk-1234")])}) as server:
        status, error = error_of(server.chat(model="a"))
    assert (status, error["code"]) == (502, "engine_error")
    assert error["message"] == "expert 'a' did not accept this server's own account or credentials"
    assert "401: bad key sk-1234" in warned(caplog)[0]


def test_a_refusal_that_repeats_the_prompt_is_for_its_caller_alone(router, caplog):
    fastapis = json.dumps({"detail": [{"msg": "bad", "input": {"messages": FRENCH}}]}).encode()
    experts = {name: Breaking(name, [Says(422, fastapis)]) for name in SIZES}
    kept = []
    journal = SimpleNamespace(
        keeps_prompts=False, record=lambda decision, *_: kept.append(json.dumps(decision.as_json()))
    )
    with running_server(experts, router=router, journal=journal) as server:
        status, error = error_of(server.chat(messages=FRENCH))
    assert (status, error["code"]) == (422, "engine_refused")
    assert TEXTS["french"] in error["message"]
    assert warned(caplog), "that it was refused, and by whom"
    assert "failed: expert 'linguist' answered with status 422" in kept[1]
    assert not any(TEXTS["french"] in line for line in [*warned(caplog), *kept])


def test_a_full_upstream_is_no_full_queue_of_ours_and_its_retry_after_is_kept(caplog):
    full = Says(429, b"limit of org-1234", headers=(("retry-after", "7"),))
    with running_server({"a": Breaking("a", [full])}) as server:
        status, headers, body = server.chat(model="a")
    assert (status, headers["retry-after"], body["error"]["code"]) == (429, "7", "upstream_rate_limited")
    assert body["error"]["message"] == "expert 'a' is at the request limit of its own server"
    assert "org-1234" in warned(caplog)[0]


@pytest.mark.parametrize(
    ("given", "least", "most"),
    [
        (format_datetime(datetime.now(UTC) + timedelta(hours=3), usegmt=True), 3_600, 10_800),
        (format_datetime(datetime.now(UTC) - timedelta(hours=3), usegmt=True), 1, 1),
        ("9" * 400, 1, 1),
        ("999999999", 86_400, 86_400),
    ],
    ids=["in three hours", "three hours ago", "too many digits", "in 30 years"],
)
def test_an_upstreams_retry_after_may_be_a_date_or_nonsense(given, least, most):
    with running_server({"a": Breaking("a", [Says(429, b"slow down", headers=(("Retry-After", given),))])}) as server:
        status, headers, _ = server.chat(model="a")
    assert status == 429
    assert least <= int(headers["retry-after"]) <= most


def test_what_a_broken_stream_was_told_by_its_engine_is_for_the_log(caplog):
    with running_server({"a": Breaking("a", [Says(200, WORD, CORE_DIED, headers=EVENTS)])}) as server:
        _, _, raw = stream(server, model="a")
    assert json.loads(events_in(raw)[-1])["error"]["message"] == "expert 'a' broke off its answer"
    assert "EngineCore died" in warned(caplog)[0]


def test_why_an_expert_rests_is_told_to_callers_without_its_engines_log(router):
    class DoesNotStart(Breaking):
        async def start(self, within_seconds=None, seat=(0,)):
            raise EngineStartFailed("engine 'linguist' did not start: ended with status 1\n/home/secret/model.py")

    with running_server(team() | {"linguist": DoesNotStart("linguist", [])}, router=router) as server:
        assert server.chat(messages=FRENCH)[1]["x-coe-expert"] == "big"
        raw = server.ask("POST", "/v1/route", json.dumps({"messages": FRENCH}))[2]
        (why,) = [one["excluded"] for one in json.loads(raw)["ranking"] if one["expert"] == "linguist"]
        assert why == "engine 'linguist' did not start: ended with status 1"
        assert b"secret" in server.ask("GET", "/admin/experts")[2]


@pytest.mark.parametrize("stream", [True, False])
def test_the_callers_deadline_ends_a_wait(stream):
    with running_server({"a": simulated("a", start_seconds=60.0)}) as server:
        body = json.dumps({"model": "a", "stream": stream, "messages": FRENCH})
        status, _, raw = server.ask("POST", "/v1/chat/completions", body, {"x-request-timeout": "0.2"})
        assert (status, json.loads(raw)["error"]["code"]) == (504, "deadline_exceeded")
        assert server.cache.status()[0].queued == 0


def test_the_callers_deadline_ends_an_answer_and_frees_the_engine():
    answer = Says(200, WORD, FOREVER, headers=EVENTS)
    with running_server({"a": Breaking("a", [answer])}) as server:
        status, _, raw = stream(server, model="a", headers={"x-request-timeout": "2"})
        assert status == 200
        assert json.loads(events_in(raw)[-1])["error"]["code"] == "deadline_exceeded"
        assert answer.closed.wait(PATIENCE_SECONDS)
        assert server.cache.status()[0].leases == 0


class Notes:
    """A decision log that a test can read."""

    keeps_prompts = False

    def __init__(self):
        self.decisions = []

    def record(self, decision, messages, owner):
        self.decisions.append(decision)

    def why(self, expert):
        """Why an expert was not followed in the end."""
        return next(one.excluded for one in self.decisions[-1].ranking if one.expert == expert)


class Silent:
    """A frozen engine: its liveness probe is never answered."""

    def __init__(self, engine, inner):
        pass

    async def __aenter__(self):
        await asyncio.Event().wait()

    async def __aexit__(self, *_):
        return False


@pytest.mark.parametrize("so_far", [(), (ROLE,)], ids=["unstreamed", "streamed"])
def test_an_expert_that_is_alive_and_takes_too_long_has_not_failed(router, so_far):
    experts = team(linguist=[Says(200, *so_far, FOREVER, headers=EVENTS)])
    with running_server(experts, router=router, limits=Limits(max_generation_seconds=0.5)) as server:
        body = json.dumps({"messages": FRENCH, "stream": bool(so_far)})
        status, _, raw = server.ask("POST", "/v1/chat/completions", body)
        assert (status, json.loads(raw)["error"]["code"]) == (504, "generation_timeout")
        assert experts["big"].starts == experts["coder"].starts == 0
        assert [one["expert"] for one in decisions(server, 1)] == ["linguist"]


def test_an_expert_that_is_frozen_is_replaced_by_the_next(router):
    experts = team(linguist=[Says(200, FOREVER), Silent])
    limits, journal = Limits(max_generation_seconds=1.0, probe_timeout_seconds=0.1), Notes()
    with running_server(experts, router=router, limits=limits, journal=journal) as server:
        status, headers, body = server.chat(messages=FRENCH)
        assert (status, headers["x-coe-expert"], headers["x-coe-reason"]) == (200, "big", "fallback")
        assert body["model"] == "big"
    assert journal.why("linguist") == (
        "failed: expert 'linguist' is unresponsive: the answer took longer than 1 s and its health check failed"
    )


def test_no_expert_is_tried_whose_turn_would_come_after_the_callers_deadline(router):
    """A start that was never measured is assumed to take 30 s."""
    experts, journal = team(linguist=[DiesAtOnce] * 9), Notes()
    with running_server(experts, router=router, journal=journal) as server:
        body, in_time = json.dumps({"messages": FRENCH}), {"x-request-timeout": "15"}
        status, _, raw = server.ask("POST", "/v1/chat/completions", body, in_time)
        assert (status, json.loads(raw)["error"]["code"]) == (502, "engine_died")
        assert experts["big"].starts == experts["coder"].starts == 0
        assert server.chat(model="coder")[0] == 200
        status, headers, _ = server.ask("POST", "/v1/chat/completions", body, in_time)
        assert (status, headers["x-coe-expert"]) == (200, "coder")
        assert experts["big"].starts == 0
    assert journal.why("big") == "the wait for it is longer than the caller's deadline allows"


HEADERS = ("decision-id", "expert", "reason", "residency", "routing-ms", "router-version", "category", "confidence")
ENDS = {
    "generation_timeout": ({"linguist": [Says(200, FOREVER)]}, "linguist"),
    "engine_died": ({name: [DiesAtOnce] * 9 for name in SIZES}, "coder"),
    "engine_error": ({name: [Says(401, b"key?")] for name in SIZES}, "coder"),
    "engine_refused": ({name: [Says(400, b"no")] for name in SIZES}, "coder"),
    "internal_error": ({"linguist": [Says(200, ZeroDivisionError("x"))]}, "linguist"),
}


@pytest.mark.parametrize("code", ENDS)
def test_an_error_after_the_decision_says_as_much_of_it_as_an_answer(router, code):
    scripts, last = ENDS[code]
    with running_server(team(**scripts), router=router, limits=Limits(max_generation_seconds=1.0)) as server:
        _, headers, body = server.chat(messages=FRENCH)
        (decided, *_) = decisions(server, 1)
    assert body["error"]["code"] == code
    assert [name for name in HEADERS if f"x-coe-{name}" not in headers] == []
    assert headers["x-coe-decision-id"] == decided["decision_id"]
    assert headers["x-coe-expert"] == last
    assert headers["x-coe-reason"] == ("mapped" if last == "linguist" else "fallback")
    assert "x-coe-wait-ms" in headers


def test_an_error_before_any_lease_has_no_wait():
    with running_server({"a": simulated("a", start_seconds=60.0)}) as server:
        body = json.dumps({"model": "a", "messages": FRENCH})
        status, headers, _ = server.ask("POST", "/v1/chat/completions", body, {"x-request-timeout": "0.1"})
    assert (status, headers["x-coe-expert"]) == (504, "a")
    assert "x-coe-wait-ms" not in headers


def test_the_callers_deadline_ends_the_reading_of_its_body():
    with running_server({"a": simulated("a")}) as server:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-request-timeout: 0.1\r\n"
        head += b"content-length: 9\r\n\r\n{"
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
            wire.sendall(head)
            answer = received_answer(wire)
    assert answer.startswith(b"HTTP/1.1 504")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "deadline_exceeded"


def test_the_callers_deadline_ends_the_embedding_of_its_prompt(router):
    class Never:
        def __init__(self):
            self.given_up = threading.Event()

        async def embed(self, texts):
            try:
                await asyncio.Event().wait()
            finally:
                self.given_up.set()

        async def close(self):
            pass

    embedder = Never()
    with running_server(team(), router=router, embedder=embedder) as server:
        body = json.dumps({"messages": FRENCH})
        status, _, raw = server.ask("POST", "/v1/chat/completions", body, {"x-request-timeout": "0.1"})
        assert embedder.given_up.wait(PATIENCE_SECONDS)
    assert (status, json.loads(raw)["error"]["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize("given", ["soon", "-1", "0", "nan", "inf"])
def test_a_deadline_that_is_none_is_400(given):
    with running_server({"a": simulated("a")}) as server:
        status, _, raw = stream(server, model="a", headers={"x-request-timeout": given})
        assert (status, json.loads(raw)["error"]["param"]) == (400, "x-request-timeout")


class open_stream:  # noqa: N801  reads as a verb: with open_stream(...)
    """A streamed chat request on a socket of its own."""

    def __init__(self, server, messages=FRENCH, **fields):
        body = json.dumps({"stream": True, "messages": messages, **fields}).encode()
        self.wire = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        self.wire.sendall(head.encode() + body)
        self.raw = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wire.close()

    def read_until(self, mark):
        while mark not in self.raw:
            piece = self.wire.recv(4096)
            assert piece, self.raw
            self.raw += piece
        return self.raw


def test_a_stream_that_waits_long_is_kept_alive_until_its_first_word():
    with running_server({"a": simulated("a", start_seconds=1.0)}, keepalive_seconds=0.1) as server:
        with open_stream(server, model="a") as client:
            head, _, body = client.read_until(b"[DONE]").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"content-type: text/event-stream" in head
        assert b"x-coe-expert: a" in head
        assert b"x-coe-wait-ms" not in head
        assert body.count(b": coe waiting expert=a state=starting eta=") >= 2
        assert body.rindex(b": coe waiting") < body.index(b'"role"') < body.index(b"[DONE]")
        told = re.search(rb": coe answering expert=a reason=requested wait_ms=(\d+\.\d)\n\n", body)
        assert float(told[1]) > 100  # what a head that was not kept waiting would have said
        assert body.rindex(b": coe waiting") < told.start() < body.index(b'"role"')


def test_a_stream_that_did_not_wait_says_all_in_its_headers():
    with running_server({"a": simulated("a")}) as server:
        server.chat(model="a")
        _, headers, raw = stream(server, model="a")
        assert headers["x-coe-expert"] == "a"
        assert b": coe" not in raw


def test_an_unstreamed_answer_is_not_kept_alive():
    with running_server({"a": simulated("a", start_seconds=0.5)}, keepalive_seconds=0.05) as server:
        status, headers, _ = server.chat(model="a")
        assert status == 200
        assert "x-coe-wait-ms" in headers


def test_the_official_client_takes_no_notice_of_signs_of_life():
    with (
        running_server({"a": simulated("a", start_seconds=0.4)}, keepalive_seconds=0.05) as server,
        openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client,
    ):
        pieces = client.chat.completions.create(model="a", messages=FRENCH, stream=True)
        assert "".join(one.choices[0].delta.content or "" for one in pieces) == f"a answers: {TEXTS['french']}"


@pytest.mark.parametrize("who_dies", [["linguist"], list(SIZES)], ids=["one", "all"])
def test_a_failure_after_signs_of_life_is_answered_by_another_or_told_in_the_stream(router, who_dies):
    class SlowBreaking(Breaking):
        async def start(self, within_seconds=None, seat=(0,)):
            await asyncio.sleep(0.2)  # the engine's own time
            await super().start(within_seconds, seat)

    experts = {name: SlowBreaking(name, [DiesAtOnce] * 9 if name in who_dies else []) for name in SIZES}
    with running_server(experts, router=router, keepalive_seconds=0.05) as server:
        status, headers, raw = stream(server)
        assert (status, headers["x-coe-expert"]) == (200, "linguist")  # who was waited for when the head went out
        assert b": coe waiting expert=linguist" in raw
        if len(who_dies) == 1:
            assert raw.count(b": coe answering") == 1
            assert raw.index(b": coe answering expert=big reason=fallback wait_ms=") < raw.index(b"data: ")
            assert json.loads(events_in(raw)[0])["model"] == "big"
            assert events_in(raw)[-1] == "[DONE]"
        else:
            assert json.loads(events_in(raw)[-1])["error"]["code"] in {"engine_died", "expert_unavailable"}


def test_a_response_that_fails_before_its_first_word_is_made_by_the_next(router):
    created = b'event: response.created\ndata: {"type":"response.created","response":{"error":null}}\n\n'
    failed = b'event: error\ndata: {"type":"error","code":"server_error","message":"oops","param":null}\n\n'
    with running_server(team(linguist=[Says(200, created, failed, headers=EVENTS)]), router=router) as server:
        body = json.dumps({"stream": True, "input": TEXTS["french"]})
        _, headers, raw = server.ask("POST", "/v1/responses", body)
        assert (headers["x-coe-expert"], headers["x-coe-reason"]) == ("big", "fallback")
        assert b"oops" not in raw


@pytest.mark.parametrize(("path", "event"), [("/v1/messages", "event: error\n"), ("/v1/chat/completions", "")])
def test_an_engines_refusal_after_signs_of_life_is_an_event_that_clients_of_that_api_know(path, event):
    class Waits(Breaking):
        async def start(self, within_seconds=None, seat=(0,)):
            await asyncio.sleep(0.2)  # the engine's own time
            await super().start(within_seconds, seat)

    told = {"error": {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}}
    experts = {"a": Waits("a", [Says(400, json.dumps(told).encode())])}
    with running_server(experts, keepalive_seconds=0.05) as server:
        body = json.dumps({"model": "a", "stream": True, "messages": FRENCH, "max_tokens": 9})
        last = server.ask("POST", path, body)[2].decode().removesuffix("\n\n").split("\n\n")[-1]
    name, _, data = last.partition("data: ")
    assert (name, json.loads(data)["error"]) == (event, told["error"])


@pytest.mark.parametrize(
    "script", [(FOREVER,), (ROLE, FOREVER), (ROLE, WORD, FOREVER)], ids=["before", "role", "during"]
)
def test_a_client_that_leaves_takes_the_engine_with_it(script):
    answer = Says(200, *script, headers=EVENTS)
    with running_server({"a": Breaking("a", [answer])}) as server:
        with open_stream(server, model="a") as client:
            until(lambda: server.cache.status()[0].leases == 1)
            if WORD in script:
                client.read_until(b"bon")
        assert answer.closed.wait(PATIENCE_SECONDS)
        until(lambda: server.cache.status()[0].leases == 0)


def test_a_choice_made_for_residency_is_made_once_more_when_the_expert_leaves(tmp_path):
    """`coder` is taken because it is there; before its turn comes it has to leave, so the better one is taken."""
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    router = Router.load(tmp_path / "router", residency_tolerance=0.05)
    limits = Limits(max_wait_seconds=0.2, max_concurrency=1, max_generation_seconds=60)
    holding = Says(200, WORD, FOREVER, headers=EVENTS)
    experts = team(coder=[holding])
    with running_server(experts, router=router, limits=limits, capacity=Bytes(GIB, 9 * GIB)) as server:
        code = [{"role": "user", "content": TEXTS["code"]}]  # coder 0.80, big 0.82
        with open_stream(server, model="coder") as first:
            first.read_until(b"bon")
            with open_stream(server, model="linguist"):
                until(lambda: {one.name: one.queued for one in server.cache.status()}["linguist"] == 1)  # the older one
                with open_stream(server, messages=code) as waiting:
                    until(lambda: {one.name: one.queued for one in server.cache.status()}["coder"] == 1)
                    until(lambda: {one.name: one.state for one in server.cache.status()}["coder"] == "draining")
                    first.wire.close()
                    head = waiting.read_until(b"\r\n\r\n").decode()
        assert "x-coe-expert: big" in head
        assert [(e["expert"], e["reason"]) for e in decisions(server, 4) if e["reason"] != "requested"] == [
            ("coder", "resident"),
            ("big", "mapped"),
        ]


class Mistaken(Breaking):
    """An engine whose code has a mistake, which no caller can be blamed for."""

    def __init__(self, name, *chunks, headers=EVENTS):
        super().__init__(name, [Says(200, *chunks, ZeroDivisionError("secret"), headers=headers)])


def tracebacks(caplog):
    return [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_mistake_of_ours_is_a_500_in_our_shape_and_one_traceback_in_the_log(path, caplog):
    with running_server({"a": Mistaken("a")}) as server:
        status, _, raw = server.ask("POST", path, json.dumps({"model": "a", "messages": FRENCH, "max_tokens": 9}))
        assert (status, json.loads(raw)["error"]["code"]) == (500, "internal_error")
        assert b"secret" not in raw
        assert server.cache.status()[0].leases == 0
        assert server.chat(model="a")[0] == 200
    assert [record.name for record in tracebacks(caplog)] == ["coe_server.http.errors"]


def test_a_mistake_of_ours_in_the_middle_of_a_stream_ends_it_with_an_event(caplog):
    with running_server({"a": Mistaken("a", WORD)}) as server:
        status, _, raw = stream(server, model="a")
        assert status == 200
        assert json.loads(events_in(raw)[-1])["error"]["code"] == "internal_error"
    assert len(tracebacks(caplog)) == 1


@pytest.mark.parametrize("where", [("POST", "/v1/chat/completions"), ("POST", "/v1/route"), ("GET", "/v1/models")])
def test_a_mistake_of_ours_before_any_expert_is_asked_is_told_alike(where, caplog):
    class Muddled(NamedRouter):
        @property
        def objectives(self):
            raise ZeroDivisionError("secret")

    caplog.set_level(logging.WARNING)
    with running_server({"a": simulated("a")}, router=Muddled(["a"])) as server:
        status, headers, raw = server.ask(*where, json.dumps({"model": "a", "messages": FRENCH}))
        assert (status, json.loads(raw)["error"]["code"]) == (500, "internal_error")
        assert headers["content-type"] == "application/json"
        assert b"secret" not in raw
        told = server.ask("GET", "/metrics")
        assert told[0] == 500  # it looks at the router, too
    assert len(tracebacks(caplog)) == 2
