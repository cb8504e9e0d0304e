"""Whose failure it is, as callers see it: another expert's answer, their own mistake, or an error in our words."""

import asyncio
import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest

from coe_server.errors import EngineError
from coe_server.http.client_stream import Outgoing
from coe_server.routing import artifact as artifacts
from coe_server.routing.capabilities import Capabilities
from coe_server.routing.router import Router
from tests.http.server import running_server
from tests.http.test_api import Breaking
from tests.http.test_failure import DONE, EVENTS, FRENCH, ROLE, WORD, Says, events_in, stream
from tests.patience import PATIENCE_SECONDS, until
from tests.routing.small_artifact import SIZES, held_out, small_artifact

STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DEEP = b"[" * 5_000 + b"]" * 5_000
SECRET = "org-Abc123456"


class Elsewhere(Breaking):
    """A server that is not ours to start; gives the answers of its script, then good ones. `asked` counts requests."""

    def __init__(self, name, answers):
        super().__init__(name, list(answers))
        self.asked = 0
        self._running = True
        self._awake.set()

    def send(self, request):
        self.asked += 1
        return super().send(request)


def team(**answers):
    """The three experts, all of them remote; `answers` are the first ones that those named give."""
    return {name: Elsewhere(name, answers.get(name, [])) for name in SIZES}


@pytest.fixture
def router(tmp_path):
    return saved_router(tmp_path)


def saved_router(tmp_path, **context_tokens):
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    abilities = {name: Capabilities(context_tokens=tokens) for name, tokens in context_tokens.items()}
    return Router.load(tmp_path / "router", capabilities=abilities)


def serving(router=None, experts=None, **settings):
    return running_server(experts, router=router, remote=tuple(SIZES), **settings)


def openai(status, message, *headers, **more):
    error = {"message": message, "type": "x", "param": None, "code": None, **more}
    return Says(status, json.dumps({"error": error}).encode(), headers=(("content-type", "application/json"), *headers))


def body(payload, kind="application/json"):
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return Says(200, *([raw] if raw else []), headers=(("content-type", kind),))


def events(*chunks):
    return Says(200, *chunks, headers=EVENTS)


NO_ANSWERS = {
    "no balance": openai(402, f"Insufficient balance in {SECRET}"),
    "the model is gone": openai(404, "The model `x` does not exist", code="model_not_found"),
    "the path is unknown": Says(404, b'{"detail":"Not Found"}'),
    "its own time-out": openai(408, "timeout"),
    "retired": openai(410, "retired"),
    "a dependency": openai(424, "failed"),
    "credit under 400": openai(400, "Your credit balance is too low"),
    "an image under 500": openai(500, "image input is not supported"),
    "a length under 500": openai(500, "the input length exceeds the context length"),
    "a feature under 501": Says(501, b"no embeddings here"),
    "a page under 400": Says(400, b"<html>boom</html>", headers=(("content-type", "text/html"),)),
    "an unsupported parameter": openai(400, "Unsupported parameter: 'top_k'", code="unsupported_parameter"),
    "a page": body(b"<html>Sign in</html>", "text/html"),
    "an empty body": body(b""),
    "an error": body({"error": {"message": "Provider returned error", "code": 502}}),
    "an error in text": body({"error": "boom"}),
    "a choice that failed": body({"choices": [{"finish_reason": "error", "message": {"content": ""}}]}),
    "no choices": body({"choices": []}),
    "silence": body({"choices": [{"finish_reason": "stop", "message": {"content": ""}}]}),
    "an empty stream": events(),
    "the end alone": events(ROLE, DONE),
    "a silent stream": events(ROLE, STOP, DONE),
    "an error event": events(b": ping\n\n", b'data: {"error":{"message":"boom","code":502}}\n\n', DONE),
    "a limit as an event": events(ROLE, b'data: {"error":{"message":"limit","code":429}}\n\n'),
    "a text as an event": events(b'data: {"error":"boom","code":502}\n\n', DONE),
    "an event by its name": events(b'event: error\ndata: {"message":"boom"}\n\n'),
    "an error after no choices": events(b'data: {"choices":[]}\n\n', b'data: {"error":{"message":"boom"}}\n\n'),
    "an event that is a list": events(b'data: [{"error":{"message":"boom","code":503}}]\n\n'),
    "an event without a field": events(ROLE, b'{"error":{"message":"boom","code":503}}\n'),
    "an event by its type": events(b'data: {"type":"api_error","message":"boom"}\n\n', DONE),
    "a text that is no JSON": events(b"data: boom\n\n", DONE),
    "empty events": events(b"data:\n\n", b"data: null\n\n", DONE),
    "a generation that broke": events(ROLE, STOP.replace(b'"stop"', b'"abort"'), DONE),
    "half an answer": body({"choices": [{"finish_reason": "abort", "message": {"content": "boom"}}]}),
    "JSON of a hundred thousand levels": body(b"[" * 100_000),
    "an answer that nests deeply": body(b'{"choices":[{"message":{"content":"boom"},"x":' + DEEP + b"}]}"),
    "an error that nests deeply": Says(400, b'{"error":{"message":"boom","x":' + DEEP + b"}}"),
    "a long body that nests deeply": body(b'{"choices":' + b"[" * 1_000_000),
    "a body of many parts": body(b'{"choices":[' + b"{}," * 40_000 + b"{}]}"),
    "an event that nests deeply": events(ROLE, b"data: " + b"[" * 500_000 + b"\n\n", DONE),
    "a word that nests deeply": events(b'data: {"choices":[{"delta":{"content":"boom"},"x":' + DEEP + b"}]}\n\n", DONE),
    "comments without a word": events(*(b": " + b"x" * 4_000 + b"\n\n" for _ in range(400))),
    "small comments without a word": events(*(b":\n\n" * 20_000 for _ in range(20))),
    "an error without an end": events(b'data: {"error":{"message":"boom"}}'),
}


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("answer", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_what_is_no_answer_is_replaced_by_the_next_experts(router, answer, is_streamed):
    with serving(router, team(linguist=[answer])) as server:
        status, headers, raw = stream(server, stream=is_streamed)
    assert status == 200
    assert (headers["x-coe-expert"], headers["x-coe-reason"]) == ("big", "fallback")
    assert b"boom" not in raw
    assert SECRET.encode() not in raw
    if is_streamed:
        assert events_in(raw)[-1] == "[DONE]"


CALLERS = {
    "a value": openai(400, "temperature must be between 0 and 2", param="temperature"),
    "a field": openai(422, "messages is missing"),
    "an id": openai(404, "Response with id 'resp_1234' not found.", param="response_id"),
    "a conflict": openai(409, "still in progress"),
    "a policy": openai(400, "rejected by the content filter", code="content_filter"),
}


@pytest.mark.parametrize("answer", CALLERS.values(), ids=CALLERS)
def test_a_callers_mistake_reaches_the_caller_as_it_came(router, answer):
    with serving(router, team(linguist=[answer])) as server:
        status, headers, raw = stream(server, stream=False)
    assert (status, raw) == (answer.status, answer.script[0])
    assert headers["x-coe-expert"] == "linguist"


BY_NAME = {
    "the account": (openai(402, f"Insufficient balance of {SECRET}"), 502, None),
    "the key": (openai(401, f"Incorrect API key {SECRET}"), 502, None),
    "credit under 400": (openai(400, f"Your credit balance is too low, {SECRET}"), 502, None),
    "an organisation under 403": (openai(403, f"{SECRET} may not"), 502, None),
    "an account under 500": (openai(500, f"your account {SECRET} is suspended"), 502, None),
    "an error event": (events(b'data: {"error":{"message":"credit balance of org-Abc123456"}}\n\n'), 502, None),
    "an error under 200": (body({"error": {"message": f"quota of {SECRET}", "code": 402}}), 502, None),
    "an account under 404": (Says(404, f'{{"detail": "x: Not found for account {SECRET}"}}'.encode()), 502, None),
    "a project under 404": (openai(404, "Model `projects/org-a/locations/x/models/y` was not found"), 502, None),
    "a limit": (openai(429, f"limit of {SECRET}", ("retry-after", "7")), 429, "7"),
    "a limit as an event": (events(b'data: {"error":{"message":"limit","code":429}}\n\n'), 429, "1"),
}


@pytest.mark.parametrize(("answer", "told", "retry_after"), BY_NAME.values(), ids=BY_NAME)
def test_by_name_no_caller_reads_of_an_upstreams_account(answer, told, retry_after):
    with serving(experts=team(linguist=[answer])) as server:
        status, headers, raw = stream(server, stream=False, model="linguist")
    assert (status, headers.get("retry-after")) == (told, retry_after)
    assert b"org-" not in raw
    assert b"credit" not in raw
    assert json.loads(raw)["error"]["message"].startswith("expert 'linguist' ")


@pytest.mark.parametrize(
    "answer",
    [
        openai(404, "The model `x` does not exist", code="model_not_found"),
        openai(400, "Unsupported parameter: 'top_k'"),
        openai(400, "maximum context length is 5 tokens"),
        openai(500, "oops"),
        openai(503, "busy", ("retry-after", "9")),
    ],
    ids=lambda answer: str(answer.status),
)
def test_by_name_the_rest_passes(answer):
    with serving(experts=team(linguist=[answer])) as server:
        status, headers, raw = stream(server, stream=False, model="linguist")
    assert (status, raw) == (answer.status, answer.script[0])
    assert headers.get("retry-after") == dict(answer.headers).get("retry-after")


def test_by_name_no_caller_reads_our_account_at_the_remote():
    headers = (("content-type", "application/json"), ("x-litellm-key-spend", "12.3"))
    told = {"error": {"message": "temperature", "code": 400}, "user_id": "user_2abc"}
    with serving(experts=team(linguist=[Says(400, json.dumps(told).encode(), headers=headers)])) as server:
        status, headers, raw = stream(server, stream=False, model="linguist")
    assert (status, json.loads(raw)) == (400, told | {"user_id": "*********"})
    assert "x-litellm-key-spend" not in headers


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_by_name_no_caller_reads_our_account_beside_an_error_under_200(is_streamed):
    told = {"error": {"message": "The model `x` does not exist", "code": 404}, "user_id": "user_2abc"}
    raw = json.dumps(told).encode()
    answer = events(ROLE, WORD, b"data: " + raw + b"\n\n") if is_streamed else body(raw)
    with serving(experts=team(linguist=[answer])) as server:
        status, _, said = stream(server, stream=is_streamed, model="linguist")
    assert status == 200
    assert b"user_2abc" not in said
    assert b"*********" in said


def test_by_name_a_page_with_a_status_keeps_the_status_and_is_said_in_our_shape():
    page = Says(504, b"<html>Gateway Time-out</html>", headers=(("content-type", "text/html"),))
    with serving(experts=team(linguist=[page])) as server:
        status, headers, raw = stream(server, stream=False, model="linguist")
    assert (status, headers["content-type"]) == (504, "application/json")
    assert json.loads(raw)["error"]["message"] == "expert 'linguist' answered with status 504"


@pytest.mark.parametrize(("status", "expected"), [(200, 502), (400, 502), (500, 500)])
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_by_name_json_beyond_bounds_is_the_experts_failure(status, expected, is_streamed):
    bare = Says(status, b"[" * 500_000)
    with serving(experts=team(linguist=[bare] * 4)) as server:
        told, _, raw = stream(server, model="linguist", stream=is_streamed)
    assert (told, json.loads(raw)["error"]["code"]) == (expected, "engine_error")


def test_by_name_silence_is_all_there_is():
    silent = {"choices": [{"finish_reason": "stop", "message": {"content": ""}}]}
    with serving(experts=team(linguist=[body(silent), events(ROLE, STOP, DONE)])) as server:
        assert json.loads(stream(server, stream=False, model="linguist")[2]) == silent
        assert stream(server, model="linguist")[2] == ROLE + STOP + DONE


def test_silence_is_an_answer_where_the_caller_asked_for_an_end(router):
    silent = {"choices": [{"finish_reason": "stop", "message": {"content": ""}}]}
    with serving(router, team(linguist=[body(silent), events(ROLE, STOP, DONE)])) as server:
        assert json.loads(stream(server, stream=False, stop=["\n"])[2]) == silent
        assert stream(server, max_tokens=5)[2] == ROLE + STOP + DONE


def test_too_long_for_one_goes_to_the_next_that_holds_more(tmp_path):
    router = saved_router(tmp_path, linguist=500, big=400, coder=600)
    too_long = openai(400, "maximum context length is 500 tokens")
    with serving(router, team(linguist=[too_long] * 9)) as server:
        for _ in range(4):
            _, headers, _ = stream(server, stream=False)
            assert headers["x-coe-expert"] == "coder"  # big is next in the ranking, and holds less


class Holds:
    def __init__(self, tokens):
        self.longest_tokens = tokens


def test_too_long_for_one_does_not_go_to_one_whose_engine_holds_less_than_was_said(tmp_path):
    router = saved_router(tmp_path, linguist=500, big=9000, coder=600)
    too_long = openai(400, "maximum context length is 500 tokens")
    with serving(router, team(linguist=[too_long]), lengths={"big": Holds(450)}) as server:
        _, headers, _ = stream(server, stream=False)
    assert headers["x-coe-expert"] == "coder"


def test_a_request_is_not_sent_to_an_engine_that_holds_less_than_was_said(tmp_path):
    router = saved_router(tmp_path, linguist=8000, big=8000, coder=8000)
    asked = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "bonjour " * 300}]})
    with serving(router, team(), lengths={"linguist": Holds(100), "coder": Holds(None)}) as server:
        decision = json.loads(server.ask("POST", "/v1/route", asked)[2])
    reasons = {one["expert"]: one["excluded"] for one in decision["ranking"]}
    assert reasons["linguist"].startswith("holds 100 tokens and the request needs at least about ")
    assert (reasons["big"], reasons["coder"]) == (None, None)


def test_too_long_for_all_is_the_callers_to_read(tmp_path):
    router = saved_router(tmp_path, linguist=500, big=400, coder=500)
    too_long = openai(400, "maximum context length is 500 tokens")
    with serving(router, team(linguist=[too_long])) as server:
        status, headers, raw = stream(server, stream=False)
    assert (status, raw) == (400, too_long.script[0])
    assert headers["x-coe-expert"] == "linguist"


def test_json_where_a_stream_has_begun_is_no_answer(router):
    late = threading.Event()
    whole = json.dumps({"choices": [{"message": {"content": "bon"}, "finish_reason": "stop"}]}).encode()
    answer = Says(200, late, whole)
    with serving(router, team(linguist=[answer]), keepalive_seconds=0.05) as server:
        first, rest = read_until(server, b": coe waiting", late)
    assert first.startswith(b": coe waiting expert=linguist")
    assert b"\n: coe answering expert=big reason=fallback" in b"\n" + rest
    assert whole not in rest
    assert rest.endswith(b"data: [DONE]\n\n")


def test_by_name_json_where_a_stream_has_begun_is_an_error_event():
    late = threading.Event()
    answer = Says(200, late, b'{"choices": [{"message": {"content": "bon"}}]}')
    with serving(experts=team(linguist=[answer]), keepalive_seconds=0.05) as server:
        _, rest = read_until(server, b": coe waiting", late, model="linguist")
    (event,) = events_in(rest)
    assert json.loads(event)["error"]["code"] == "engine_error"
    assert "a body where a stream was asked for" in json.loads(event)["error"]["message"]


def test_events_that_are_called_something_else_are_events_where_a_stream_has_begun():
    late = threading.Event()
    answer = Says(200, late, ROLE + WORD, STOP + DONE, headers=(("content-type", "text/plain"),))
    with serving(experts=team(linguist=[answer]), keepalive_seconds=0.05) as server:
        _, rest = read_until(server, b": coe waiting", late, model="linguist")
    assert rest.endswith(ROLE + WORD + STOP + DONE)


def test_a_silence_after_the_first_word_is_kept_alive():
    late = threading.Event()
    answer = events(ROLE, WORD, late, STOP, DONE)
    with serving(experts=team(linguist=[answer]), keepalive_seconds=0.05) as server:
        first, rest = read_until(server, b": coe generating expert=linguist\n\n", late, model="linguist")
    assert first.startswith(ROLE + WORD)
    assert rest.endswith(STOP + DONE)


def test_a_stream_is_not_buffered_and_has_no_length():
    told = (*EVENTS, ("Content-Length", "400"), ("X-Accel-Buffering", "yes"))
    broken = Says(200, ROLE + WORD + b'data: {"error":{"message":"mid","code":502}}\n\n', headers=told)
    with serving(experts=team(linguist=[broken])) as server:
        _, headers, raw = stream(server, model="linguist")
    assert "content-length" not in headers
    assert headers["x-accel-buffering"] == "no"
    assert json.loads(events_in(raw)[-1])["error"]["code"] == "engine_died"


def test_bytes_that_cannot_be_read_here_pass_as_they_came():
    coded = Says(200, b"\x01\x02", b"\x03", headers=(*EVENTS, ("content-encoding", "unheard-of")))
    with serving(experts=team(linguist=[coded])) as server:
        _, headers, raw = stream(server, model="linguist")
    assert (raw, headers["content-encoding"]) == (b"\x01\x02\x03", "unheard-of")


def test_a_long_body_passes_and_one_that_ends_in_an_error_is_not_taken_for_whole(router):
    good = json.dumps({"choices": [{"message": {"content": "x" * 300_000}, "finish_reason": "stop"}]}).encode()
    bad = good.replace(b'"stop"', b'"error"')
    pieces = [good[start : start + 50_000] for start in range(0, len(good), 50_000)]
    broken = [bad[start : start + 50_000] for start in range(0, len(bad), 50_000)]
    with serving(router, team(linguist=[Says(200, *pieces), Says(200, *broken)])) as server:
        assert stream(server, stream=False)[2] == good
        with pytest.raises(Exception, match=r"IncompleteRead|incomplete|closed"):
            stream(server, stream=False)


@contextmanager
def client(server, **fields):
    """A stream that is read piece by piece."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_SECONDS)) as connection:
        body = json.dumps({"stream": True, "messages": FRENCH, **fields})
        connection.request("POST", "/v1/chat/completions", body)
        yield connection.getresponse()


def read_until(server, mark, then, **fields):
    """What a stream says up to a mark, then, once the event is set, the rest."""
    with client(server, **fields) as answer:
        first = b""
        while mark not in first:
            piece = answer.read1()
            assert piece, first
            first += piece
        then.set()
        return first, answer.read()


def admin(server):
    return {one["name"]: one for one in json.loads(server.ask("GET", "/admin/experts")[2])}


def metric(server, name):
    lines = server.ask("GET", "/metrics")[2].decode().splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " "))


def test_an_expert_that_is_limited_is_left_alone_and_everything_says_so(router):
    experts = team(linguist=[openai(429, "limit", ("retry-after", "42"))])
    with serving(router, experts) as server:
        assert [stream(server)[1]["x-coe-expert"] for _ in range(3)] == ["big"] * 3
        assert experts["linguist"].asked == 1
        assert (admin(server)["linguist"]["state"], admin(server)["linguist"]["failure"]) in [
            ("failed", f"backing off {seconds} s: 429") for seconds in (40, 41, 42)
        ]
        _, _, raw = server.ask("POST", "/v1/route", json.dumps({"messages": FRENCH}))
        ranked = {one["expert"]: one["excluded"] for one in json.loads(raw)["ranking"]}
        assert ranked["linguist"].startswith("backing off 4")
        assert 30 < metric(server, 'coe_expert_backoff_seconds{expert="linguist"}') <= 42
        assert metric(server, 'coe_expert_backoff_seconds{expert="big"}') == 0
        status, headers, _ = stream(server, stream=False, model="linguist")
        assert (status, int(headers["retry-after"]) in range(38, 43)) == (503, True)


def test_where_all_are_left_alone_the_soonest_return_is_told(router):
    limited = {
        name: [openai(429, "limit", ("retry-after", str(seconds)))]
        for name, seconds in {"linguist": 300, "big": 60, "coder": 200}.items()
    }
    with serving(router, team(**limited)) as server:
        assert stream(server, stream=False)[0] == 429
        status, headers, raw = stream(server, stream=False)
    assert (status, json.loads(raw)["error"]["code"]) == (503, "expert_unavailable")
    assert int(headers["retry-after"]) in range(55, 61)


def test_a_request_that_fails_on_two_experts_counts_against_neither(router):
    poison = [openai(500, "I choke on this")] * 12
    with serving(router, team(linguist=poison, big=poison, coder=poison)) as server:
        for _ in range(6):
            assert stream(server, stream=False)[0] == 500
        assert all(one["failure"] is None for one in admin(server).values())
    with serving(router, team(linguist=poison)) as server:
        for _ in range(3):
            assert stream(server, stream=False)[1]["x-coe-expert"] == "big"
        assert admin(server)["linguist"]["failure"] == "backing off 1 s: 500"


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        (openai(503, "busy", ("retry-after", "42")), 1),
        (openai(500, "oops"), 3),
        (openai(404, "The model `x` does not exist"), 3),
        (body({"error": {"message": "The model `x` does not exist", "code": 404}}), 3),
        (events(b'data: {"error":{"message":"The model `x` does not exist","code":404}}\n\n'), 3),
    ],
    ids=["busy", "broken", "gone", "gone under 200", "gone as an event"],
)
def test_a_failure_counts_where_the_caller_reads_it_in_the_experts_words(answer, count):
    experts = team(linguist=[answer] * count)
    with serving(experts=experts) as server:
        for _ in range(count):
            assert stream(server, stream=False, model="linguist")[2] == answer.script[0]
        assert admin(server)["linguist"]["failure"].endswith(f": {404 if answer.status == 200 else answer.status}")
        assert experts["linguist"].asked == count


def test_poison_for_the_only_two_experts_that_may_answer_counts_against_neither(router):
    poison = [openai(500, "I choke on this")] * 4
    with serving(router, team(linguist=poison, big=poison)) as server:
        for _ in range(4):
            assert stream(server, stream=False, coe={"allow": ["linguist", "big"]})[0] == 500
        assert all(one["failure"] is None for one in admin(server).values())


def until_it_may_be_tried(server):
    until(lambda: admin(server)["linguist"]["failure"] is None)


def test_a_try_that_another_expert_answers_at_length_is_over_before_that_answer(router):
    late = threading.Event()
    refused = openai(400, "Unsupported parameter: 'top_k'")
    experts = team(linguist=[openai(429, "limit"), refused], big=[events(WORD, DONE), events(ROLE, late, WORD, DONE)])
    with serving(router, experts, keepalive_seconds=0.05) as server:
        stream(server)
        until_it_may_be_tried(server)
        with ThreadPoolExecutor() as pool:
            slow = pool.submit(read_until, server, b": coe waiting expert=big", late)
            until(lambda: experts["linguist"].asked == 2)
            assert stream(server)[1]["x-coe-expert"] == "linguist"
            assert slow.result()[1].endswith(DONE)


def test_the_first_word_of_the_one_that_tries_lets_the_others_in(router):
    late = threading.Event()
    experts = team(linguist=[openai(429, "limit"), events(ROLE, WORD, late, STOP, DONE)])
    with serving(router, experts) as server:
        stream(server)
        until_it_may_be_tried(server)
        with client(server) as answer:
            assert answer.read1() == ROLE + WORD
            assert stream(server)[1]["x-coe-expert"] == "linguist"
            late.set()


def test_one_failed_choice_of_several_ends_no_stream(router):
    """Without a word of any the stream is none."""
    failed = b'data: {"choices":[{"index":1,"delta":{},"finish_reason":"error"}]}\n\n'
    good = ROLE + failed + WORD + failed + STOP
    silent = ROLE + failed + failed.replace(b'"index":1', b'"index":0')
    with serving(router, team(linguist=[events(good, DONE), events(silent, DONE)])) as server:
        assert stream(server, n=2)[2] == good + DONE
        assert stream(server, n=2)[1]["x-coe-expert"] == "big"


@pytest.mark.parametrize(
    ("headers", "piece"),
    [((*EVENTS, ("content-encoding", "br")), b"\x01\n\n"), (EVENTS, b'data: {"type":"image","delta":"AAAA')],
    ids=["coded", "in the middle of an event"],
)
def test_no_sign_of_life_stands_inside_what_it_would_break(headers, piece):
    sent = []

    async def send(message):
        sent.append(message)

    async def talk():
        out = Outgoing({"path": "/v1/chat/completions"}, send)
        await out.begin(200, {}, headers)
        await out.say(piece)
        await out.wait({}, "answering")
        return out

    out = asyncio.run(talk())
    assert [message["body"] for message in sent[1:]] == [piece]
    asyncio.run(out.fail(EngineError("no more"), {}))
    told = [message["body"] for message in sent[2:]]
    assert told == [] if headers != EVENTS else told[0].startswith(b"\n\ndata: ")


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize(
    "answer",
    [
        openai(400, "maximum context length is 5 tokens"),
        openai(400, "Unsupported parameter: 'top_k'"),
        openai(500, "image input is not supported"),
        Says(501, b"no embeddings here"),
        Says(404, b'{"detail":"Not Found"}'),
        body({"choices": [{"finish_reason": "stop", "message": {"content": ""}}]}),
        openai(400, "temperature"),
    ],
    ids=["too long", "unsupported", "an image", "not implemented", "no such path", "silence", "the caller's"],
)
def test_what_depends_on_the_request_keeps_no_other_away(router, answer, count):
    with serving(router, team(linguist=[answer] * count)) as server:
        for _ in range(count):
            stream(server, stream=False)
        assert admin(server)["linguist"]["failure"] is None
        assert stream(server)[1]["x-coe-expert"] == "linguist"
